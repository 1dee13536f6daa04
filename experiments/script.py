"""A notebook run as the script that it is: in this interpreter, with other parameters, and without Jupyter.

    python -m experiments.script SLUG '{"scale": "paper", "device": "cuda", "out": "/tmp/adam.json"}'

It needs neither jupytext nor papermill, which a machine with a GPU may lack. Nothing is kept but the record.
"""

import ast
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.errors import UserError

MARKER = re.compile(r"^# %%", re.MULTILINE)  # where a cell begins in the percent format
TAGGED = re.compile(r"""^# %%.*["']?tags["']?\s*[=:]\s*\[[^\]]*["']parameters["']""")
REQUIRED = ("scale", "seeds", "device", "out")


def literals(source: str, slug: str) -> dict[str, Any]:
    """The values that a parameters cell gives to its names; UserError where one is no literal, or is missing."""
    values: dict[str, Any] = {}
    try:
        assignments = ast.parse(source).body
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise UserError(f"notebooks/{slug}.py: its parameters cell is not Python: {error.msg}: {line}") from error
    for node in assignments:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)) if node.value:
                try:
                    values[name] = ast.literal_eval(node.value)
                except ValueError as error:
                    raise UserError(f"notebooks/{slug}.py: parameter {name!r} is not a literal value") from error
    if missing := [name for name in REQUIRED if name not in values]:
        raise UserError(f"notebooks/{slug}.py: its parameters cell lacks {', '.join(missing)}")
    return values


def run(path: Path, parameters: Mapping[str, Any]) -> None:
    """Execute the notebook in a file, with these values in place of those in its parameters cell.

    Raises UserError where it has no such cell or no such parameter, and whatever a cell raises.
    """
    text = path.read_text(encoding="utf-8")
    begins = [match.start() for match in MARKER.finditer(text)]
    tagged = [begin for begin in begins if TAGGED.match(text[begin:])]
    if len(tagged) != 1:
        raise UserError(f"{path} has {len(tagged)} cells with the tag `parameters`; it needs one")
    end = min((begin for begin in begins if begin > tagged[0]), default=len(text))
    known = literals(text[tagged[0] : end], path.stem)
    if unknown := [name for name in parameters if name not in known]:
        raise UserError(f"{path} has no parameter {unknown[0]!r} to set; it has {', '.join(known)}")
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    exec(compile(text[:end], path, "exec"), namespace)
    namespace.update(parameters)
    # Empty lines in front, so that a traceback names the right one.
    exec(compile("\n" * text.count("\n", 0, end) + text[end:], path, "exec"), namespace)


if __name__ == "__main__":
    from experiments import records

    run(records.ROOT / "notebooks" / f"{sys.argv[1]}.py", json.loads(sys.argv[2]))
