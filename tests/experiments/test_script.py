"""A notebook run as a script: its own text, other parameters, and tracebacks that name the right line."""

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import records, run, script
from experiments.errors import UserError

from .conftest import REPOSITORY


def test_parameters_take_the_place_of_those_in_the_cell(notebook: Callable[..., Path], tmp_path: Path) -> None:
    path = notebook("tiny")
    script.run(path, {"scale": "paper", "seeds": [1, 2], "out": str(tmp_path / "tiny.json")})
    record = records.read(tmp_path / "tiny.json")
    assert (record.scale, record.parameters) == ("paper", {"seeds": [1, 2], "device": "cpu", "lr": 0.1})
    assert record.get("loss") == [0.1, 0.2]
    assert record.provenance["code_hash"] is not None


def test_a_traceback_names_the_line_of_the_notebook(notebook: Callable[..., Path]) -> None:
    path = notebook("broken", "x = 1\n\n# %%\nraise ValueError(scale)\n")
    with pytest.raises(ValueError, match=r"^standard$") as caught:
        script.run(path, {"scale": "standard"})
    (frame,) = [each for each in traceback.extract_tb(caught.tb) if each.filename == str(path)]
    line = path.read_text().splitlines()[(frame.lineno or 0) - 1]
    assert line == "raise ValueError(scale)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["parameters"]', '["other"]', "has 0 cells with the tag `parameters`; it needs one"),
        ("lr = 0.1", 'lr = 0.1\n# %% tags=["parameters"]', "has 2 cells with the tag `parameters`; it needs one"),
        ("lr = 0.1", "lr = 1 / 10", "notebooks/tiny.py: parameter 'lr' is not a literal value"),
        ("seeds = [0, 1, 2]\n", "", "notebooks/tiny.py: its parameters cell lacks seeds"),
        ("lr = 0.1", "lr = ", "notebooks/tiny.py: its parameters cell is not Python: .*: lr ="),
    ],
)
def test_mistakes_are_one_line(notebook: Callable[..., Path], old: str, new: str, message: str) -> None:
    path = notebook("tiny")
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        script.run(path, {})


def test_an_unknown_parameter_is_refused_before_anything_runs(notebook: Callable[..., Path]) -> None:
    path = notebook("tiny", "raise SystemExit")
    with pytest.raises(UserError, match="has no parameter 'rate' to set; it has scale, seeds, device, out, lr"):
        script.run(path, {"rate": 1})


@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_it_reads_the_parameters_that_jupytext_reads(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    (begin,) = (
        match.start() for match in script.MARKER.finditer(text) if script.TAGGED.match(text[match.start() :])
    )
    end = text.index("\n# %%", begin)
    assert script.literals(text[begin:end], path.stem) == run.defaults(path.stem)
