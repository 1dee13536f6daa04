"""The role {value}: how a number of a record is printed, and which pages a changed record concerns."""

import math
import re
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import records
from experiments.errors import UserError

from .conftest import ROOT

sys.path.insert(0, str(ROOT / "book/_ext"))
import book_values


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (0.123456, "", "0.123"),
        (1234.5, ".1f", "1234.5"),
        (60000, "", "60,000"),
        (0.973, ".1%", "97.3%"),
        (-1.2e-7, ".1e", "−1.2\u202f×\u202f10−7"),
        (1e-6, ".0e", "10−6"),
        ([1.0, 2.0, 3.0], ".2f", "2.00"),
        # 2 ± 4.303 / √3, Student's t with two degrees of freedom
        ([1.0, 2.0, 3.0], "interval.2f", "2.00 (−0.48 to 4.48)"),
        ([1e-9, 1.0, 1e-6], "median.0e", "10−6"),
        ([1.0, None, 3.0], "median.0e", "not finite"),
        (2.0, "interval.1f", "2.0 (2.0 to 2.0)"),
        ([0, 1, 2], "len", "3"),
        ([1.0, None], "", "not finite"),
        (None, ".0e", "not finite"),
        ("cpu", "", "cpu"),
    ],
)
def test_format(value: Any, form: str, expected: str) -> None:
    nodes = book_values.typeset(book_values.format_value(value, form))
    assert "".join(node.astext() for node in nodes) == expected


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (math.log(0.68), "percent", "32 % less"),
        ([math.log(0.5), math.log(2)], "percent", "0 % (6,700 times less to 6,700 times as much)"),
        (0.0, "percent", "0 %"),
        # ln 0.68 ± 4.303 · 0.1 / √3: 0.530 to 0.872
        ([math.log(0.68) + off for off in (-0.1, 0, 0.1)], "percent", "32 % less (13 to 47)"),
        ([math.log(1.5) + off for off in (-0.1, 0, 0.1)], "percent", "50 % more (17 to 92)"),
        ([math.log(1.8) + off for off in (-0.1, 0, 0.1)], "percent", "80 % more (40 to 131)"),
        ([math.log(2.1) + off for off in (-0.1, 0, 0.1)], "percent", "2.1 times as much (1.6 to 2.7)"),
        ([math.log(0.02) + off for off in (-0.8, 0, 0.8)], "percent", "98 % less (85 to 99.7)"),
        # of two sides each says its own
        ([math.log(0.9) + off for off in (-0.1, 0, 0.1)], "percent", "10 % less (30 % less to 15 % more)"),
        # what is small keeps its digits
        ([0.004, 0.29, -0.3], "percent", "0 % (52 % less to 2.1 times as much)"),
        ([0.002, 0.003, 0.004], "percent", "0.30 % more (0.05 to 0.55)"),
        (math.log(0.958), "percent", "4.2 % less"),
        # what is large is a factor: 99.99 % less and 31,900 % more say nothing to anyone
        ([math.log(3.2) + off for off in (-0.1, 0, 0.1)], "percent", "3.2 times as much (2.5 to 4.1)"),
        (math.log(9.97), "percent", "10 times as much"),
        (math.log(324), "percent", "320 times as much"),
        (-math.log(320), "percent", "320 times less"),
        (math.log(4e9), "percent", "4 × 109 times as much"),
        # other units
        (-1.0, "percent log2", "50 % less"),
        (0.68, "percent ratio", "32 % less"),
        ([0.5, 2.0], "percent ratio", "0 % (6,700 times less to 6,700 times as much)"),
        ([0.1, None], "percent", "not finite"),
    ],
)
def test_percent(value: Any, form: str, expected: str) -> None:
    text = "".join(node.astext() for node in book_values.typeset(book_values.format_value(value, form)))
    assert text.replace("\u202f", " ") == expected


@pytest.mark.parametrize(
    ("value", "form", "error", "match"),
    [
        (0.5, "percent log7", ValueError, "there are ln, log2, ratio"),
        ([0.5, 0.0], "percent ratio", ValueError, "not above 0"),
        (1e6, "percent", OverflowError, "range"),
        ({"a": 1}, "percent", TypeError, "not a number"),
    ],
)
def test_percent_of_what_has_none(value: Any, form: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        book_values.format_value(value, form)


def test_exponents_are_raised() -> None:
    nodes = book_values.typeset("2.5e-08 to 1e+03")
    assert [type(node).__name__ for node in nodes] == ["Text", "superscript", "Text", "superscript"]
    assert [node.astext() for node in nodes if type(node).__name__ == "superscript"] == ["−8", "3"]


def test_find_reads_metrics_and_everything_else() -> None:
    record = records.Record("tiny", "quick", {"seeds": [0, 1]}, metrics={"a": {"b": 3.0}})
    assert book_values.find(record, "a.b") == 3.0
    assert book_values.find(record, "@parameters.seeds") == [0, 1]
    assert book_values.find(record, "@scale") == "quick"
    for wrong in ("a.c", "@parameters.steps"):
        with pytest.raises(UserError, match="no"):
            book_values.find(record, wrong)


def test_a_value_may_name_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROOT", tmp_path)
    for scale in ("quick", "standard"):
        records.write(records.new("tiny", scale, {}), records.published_path("tiny", scale))
    found = [book_values.record_of(name) for name in ("tiny", "tiny/quick", "tiny/paper", "other")]
    assert [record and record.scale for record in found] == ["standard", "quick", None, None]


def test_a_changed_record_makes_its_pages_outdated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROOT", tmp_path)
    env: Any = SimpleNamespace(docname="one", metadata=defaultdict(dict))
    book_values.note(env, ["tiny"])
    env.docname = "two"
    book_values.note(env, ["other"])
    env.docname = "all"
    book_values.note(env, [book_values.EVERY])
    outdated = lambda: sorted(book_values.outdated(None, env))  # noqa: E731
    assert outdated() == []
    (tmp_path / "results/quick").mkdir(parents=True)
    (tmp_path / "results/quick/tiny.json").write_text("{}", encoding="utf-8")
    assert outdated() == ["all", "one"]
    env.docname = "one"
    env.metadata.pop("one")  # as Sphinx does before it reads a page again
    book_values.note(env, ["tiny"])
    assert outdated() == ["all"]


@pytest.mark.parametrize("path", sorted((ROOT / "book").rglob("*.md")), ids=lambda path: path.stem)
def test_a_bar_in_a_table_is_escaped(path: Path) -> None:
    # A bare one ends the cell, and the page shows half of the role, without a warning.
    rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert [row for row in rows if re.search(r"\{value\}`[^`|]*(?<!\\)\|", row)] == []
