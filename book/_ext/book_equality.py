"""The directive {equality}: a table of book/equality.yaml, whose rows are the cases of tests/book/test_equality.py.

{equality} Adam               the comparisons of a group
{equality} behaviors torch    the behaviors of a group
"""

import functools
import re
from typing import Any

import yaml
from book_evidence import EvidenceDirective, make_table
from book_values import typeset
from docutils import nodes
from sphinx.application import Sphinx

from experiments import records
from experiments.errors import UserError


@functools.cache
def load(text: str) -> Any:
    """The tables, read once for all that they are printed in."""
    return yaml.safe_load(text)


class Equality(EvidenceDirective):
    required_arguments = 1
    final_argument_whitespace = True

    def make(self) -> list[nodes.Node]:
        path = records.ROOT / "book" / "equality.yaml"
        self.env.note_dependency(str(path))
        group = self.arguments[0].removeprefix("behaviors ")
        part = "comparisons" if group == self.arguments[0] else "behaviors"
        tables = load(path.read_text(encoding="utf-8"))[part]
        if group not in tables:
            raise UserError(f"book/equality.yaml has no {part} for {group!r}: {', '.join(tables)}")
        if part == "behaviors":
            rows = [[[self.paragraph(row[key])] for key in ("other", "ours", "why")] for row in tables[group]]
            heads = ["There", "Here", "Because"]
            return [make_table(heads, rows, [36, 36, 28], "facts", "equality")]
        rows = [
            [[code(row["ours"])], [relation(row)], self.other(row), [self.paragraph(row["why"])]]
            for row in tables[group]
        ]
        heads = ["Here", "Relation", "There", "Because"]
        return [make_table(heads, rows, [28, 16, 28, 28], "facts", "equality", "equality-pairs")]

    def other(self, row: dict[str, Any]) -> list[nodes.Node]:
        """Names of implementations, every call as code, and how far the libraries' own code was from ours."""
        from benchmarks import equality, rules  # which need torch: only this page pays for it

        names = self.paragraph(re.sub(r"[\w.]+\((?:[^()]|\([^()]*\))*\)", r"`\g<0>`", row["theirs"]))
        path = records.published_path(equality.SLUG, equality.SCALE)
        self.env.note_dependency(str(path))
        if "libraries" not in row or not path.exists():
            return [names]
        record, run = records.read(path), nodes.paragraph(classes=["run"])
        for call in row["libraries"]:
            package, far = rules.PEERS[equality.library_of(call)][1], record.get(equality.key(row, call))
            run += nodes.Text(", " if run.children else "run: ")
            run += nodes.Text(f"{package} {record.provenance['packages'][package]}, ")
            run += nodes.inline("", "", *typeset(f"{far:.0e}" if far else "0"), classes=["bound"])
        return [names, run]


def code(text: str) -> nodes.paragraph:
    return nodes.paragraph("", "", nodes.literal("", text))


def relation(row: dict[str, Any]) -> nodes.paragraph:
    """The word first, then by how much, and what it depends on."""
    word, bound = ("equals", row["equals"]) if "equals" in row else ("differs", row["apart"])
    sign = "≤" if word == "equals" else ">"
    result = nodes.paragraph("", "", nodes.strong("", word, classes=[f"relation-{word}"]))
    result += nodes.inline("", "", *typeset(f" {sign}\u202f{float(bound):g}"), classes=["bound"])
    if not row.get("schedule", True):
        result += nodes.Text(" at a constant learning rate")
    return result


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("book_evidence")
    app.add_directive("equality", Equality)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
