"""Records: what is read back is what was written, and nothing else passes for a record."""

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import data, records
from experiments.errors import RecordError


def example(root: Path, scale: str = "quick") -> records.Record:
    record = records.new("tiny", scale, {"seeds": range(2), "lr": np.float32(0.1), "device": "cpu"})
    record.metric("a.b", 0.1 + 0.2)
    record.metric("a.c", [1e-300, 2.0, 3])
    record.curve("SGD", [1, 2], [[0.5, 0.25], [0.5]], "step", "loss")
    record.uses(data.load("digits"))
    return record


def test_round_trip(root: Path) -> None:
    record = example(root)
    path = records.write(record, root / "_build" / "tiny.json")
    back = records.read(path)
    assert back.content() == record.content()
    assert back.get("a.b") == 0.1 + 0.2, "floats read back exactly"
    assert back.get("a.c") == [1e-300, 2.0, 3]
    assert back.parameters == {"seeds": [0, 1], "lr": float(np.float32(0.1)), "device": "cpu"}
    assert back.curves["SGD"]["seeds"] == [[0.5, 0.25], [0.5, None]]
    assert back.keys() == ["a.b", "a.c"]


def test_provenance(root: Path, notebook: Callable[..., Path]) -> None:
    notebook("tiny")
    provenance = records.read(records.write(example(root), root / "tiny.json")).provenance
    assert provenance["data"] == {"digits": data.DIGESTS["digits"]}
    assert provenance["packages"]["torch"] == torch.__version__
    assert provenance["threads"] == torch.get_num_threads() == 1
    assert len(provenance["code_hash"]) == 16
    assert provenance["commit"] is None, "the temporary book is in no repository"
    assert provenance["device_name"]
    assert {"python", "platform", "device", "precision", "seconds", "finished", "dirty"} <= set(provenance)


@pytest.mark.parametrize("dirty", [False, True])
def test_the_commit_and_whether_the_code_is_that_commits(root: Path, dirty: bool) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(root), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    (root / "notebooks/tiny.py").write_text("x = 1\n")
    git("add", "notebooks")
    git("commit", "-q", "-m", "one")
    (root / "README.md").write_text("no code")  # what is not code does not count
    if dirty:
        (root / "notebooks/tiny.py").write_text("x = 2\n")
    provenance = records.new("tiny", "quick", {}).provenance
    assert (provenance["commit"], provenance["dirty"]) == (git("rev-parse", "HEAD"), dirty)


def test_two_runs_differ_only_in_their_times(root: Path) -> None:
    first, second = (records.read(records.write(example(root), root / f"{i}.json")).content() for i in range(2))
    for content in (first, second):
        del content["provenance"]["seconds"], content["provenance"]["finished"]
    assert first == second


def test_non_finite_becomes_null_and_the_file_stays_json(root: Path) -> None:
    record = example(root)
    record.metric("lost", [1.0, math.nan, math.inf, torch.tensor(-math.inf), np.float64("nan")])
    text = records.write(record, root / "tiny.json").read_text()
    assert records.read(root / "tiny.json").get("lost") == [1.0, None, None, None, None]
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("0.30000000000000004", "0.3"),
        lambda text: text.replace('"quick"', '"paper"'),
        lambda text: text.replace('"threads": 1', '"threads": 2'),
        lambda text: text.replace("0.25", "0.24"),
    ],
)
def test_a_hand_edited_record_is_refused(root: Path, edit: Callable[[str], str]) -> None:
    path = records.write(example(root), root / "tiny.json")
    before = path.read_text()
    path.write_text(edit(before))
    assert path.read_text() != before
    with pytest.raises(RecordError, match=r"tiny\.json does not match its own digest.*never by hand"):
        records.read(path)


def test_reformatting_is_no_edit(root: Path) -> None:
    path = records.write(example(root), root / "tiny.json")
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert records.read(path).get("a.c") == [1e-300, 2.0, 3]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"digest": "x"}', "\x00"])
def test_a_damaged_record_is_refused(root: Path, text: str) -> None:
    (root / "tiny.json").write_text(text)
    with pytest.raises(RecordError, match=r"tiny\.json is not a whole record"):
        records.read(root / "tiny.json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", '"\\ud800"'])
def test_what_a_record_cannot_hold_is_refused(root: Path, number: str) -> None:
    path = records.write(example(root), root / "tiny.json")
    path.write_text(path.read_text().replace("0.25", number))
    with pytest.raises(RecordError, match=r"tiny\.json is not a whole record"):
        records.read(path)


def test_a_cut_or_future_record_is_refused(root: Path) -> None:
    path = records.write(example(root), root / "tiny.json")
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(RecordError, match="not a whole record"):
        records.read(path)
    path.write_text(whole.replace('"format": 1', '"format": 99'))
    with pytest.raises(RecordError, match="has format 99, this code reads format 1"):
        records.read(path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupted_write_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    target = root / "out"
    target.mkdir()
    records.write(example(root), target / "old.json")
    old = (target / "old.json").read_bytes()
    monkeypatch.setattr(records.os, call, interrupt)
    for name in ("old.json", "new.json"):
        with pytest.raises(KeyboardInterrupt):
            records.write(example(root), target / name)
    assert [path.name for path in target.iterdir()] == ["old.json"]
    assert (target / "old.json").read_bytes() == old


def test_published_is_the_largest_scale(root: Path) -> None:
    assert records.published("tiny") is None
    assert records.local("tiny", "quick") is None
    for scale in ("quick", "standard"):
        records.write(example(root, scale), records.published_path("tiny", scale))
    found = records.published("tiny")
    assert found is not None
    assert found.scale == "standard"
    records.write(example(root), records.local_path("tiny", "quick"))
    assert records.local("tiny", "quick") is not None


def test_mistakes_of_a_notebook_are_named(root: Path) -> None:
    record = example(root)
    with pytest.raises(ValueError, match=r"metric 'a\.b': is already there"):
        record.metric("a.b", 1)
    with pytest.raises(ValueError, match=r"metric 'a\.b\.c': 'b' is already a number"):
        record.metric("a.b.c", 1)
    with pytest.raises(ValueError, match=r"metric 'x\.\.y': has an empty part"):
        record.metric("x..y", 1)
    with pytest.raises(ValueError, match="metric 'z' is a object"):
        record.metric("z", object())
    with pytest.raises(ValueError, match=r"has 201 points, not 1 to 200: use training\.downsample"):
        record.curve("long", range(201), [range(201)], "x", "y")
    with pytest.raises(ValueError, match="every seed needs a list of at most 2 values"):
        record.curve("ragged", [1, 2], [[1, 2, 3]], "x", "y")
    with pytest.raises(RecordError, match=r"has no metric 'a\.d'; the nearest are a\.\w, a\.\w"):
        record.get("a.d")
    with pytest.raises(RecordError, match=r"'a' is a group of metrics \(b, c\)"):
        record.get("a")
    with pytest.raises(RecordError, match="there is no scale 'foo'; there are quick, standard, paper"):
        records.new("tiny", "foo", {})
