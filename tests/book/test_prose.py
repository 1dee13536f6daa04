"""No measured number is typed: where a page needs one, its source names the record."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import records
from experiments.errors import RecordError
from experiments.intervals import interval
from experiments.records import Record

from .conftest import ROOT

PAGES = sorted(
    path for path in (ROOT / "book").rglob("*.md") if list((ROOT / "results").glob(f"*/{path.stem}.json"))
)
# Numbers that a record has, too, but that do not come from there.
SETTINGS = {"0.995", "0.999", "0.9999"}  # coefficients of averages
OTHERWISE = {
    "adam": {"31.6": "the square root of 1,000"},
    "gradient_noise": {"94.5": "the paper's, Table 1", "97.4": "the paper's, Table 1"},
    "hogwild": {"1.34": "the paper's, §5"},
    "large_scale": dict.fromkeys(("0.0556", "0.0263", "0.0128"), "an equation, beside what was measured"),
}


def prose(source: str) -> str:
    """A page without its cells and directives, roles, code and formulas."""
    for what in (r"^```.*?^```", r"^\$\$.*?^\$\$.*?$"):
        source = re.sub(what, "", source, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\{\w[\w:-]*\}`[^`]*`|`[^`]*`|\$[^$]*\$", "", source)


def decimals(text: str) -> Iterator[str]:
    """The decimal numbers of three digits or more; with fewer, too much agrees by chance."""
    for number in re.findall(r"(?<![\w.,/])[−-]?\d[\d,]*\.\d+(?![\w.]*\d)", text):
        if len(re.sub(r"\D", "", number).lstrip("0")) >= 3:
            yield number.replace("−", "").replace("-", "").replace(",", "")


def typed(text: str, record: Record) -> set[str]:
    """The numbers of a text that are a metric of the record, its mean or an end of its interval, as printed."""
    values: list[float] = []
    for key in record.keys():  # noqa: SIM118 - a record is no mapping
        try:
            values += [value for value in interval(record.get(key)) if value is not None]
        except (TypeError, RecordError):
            continue
    found = set()
    for number in decimals(text):
        places = len(number.partition(".")[2])
        if any(abs(round(scale * value, places)) == float(number) for value in values for scale in (1, 100)):
            found.add(number)
    return found


def test_a_typed_number_is_found() -> None:
    record = Record("tiny", "quick", {}, metrics={"a": [0.1234, 0.1236], "b": -4.7161, "c": "text", "d": None})
    text = "It is 0.1235 (12.35 %), and −4.72. Not: 0.129, 4.73, 0.12, `4.716`, $4.716$, {value}`tiny:b|4.716`"
    assert typed(prose(text), record) == {"0.1235", "12.35", "4.72"}
    cells = "```{code-cell}\n4.716\n```\n$$\n4.716\n$$ (eq-tiny)\n"
    assert typed(prose(cells), record) == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_number_of_a_record_is_typed(path: Path) -> None:
    text = prose(path.read_text(encoding="utf-8"))
    found = set[str]()
    for file in (ROOT / "results").glob(f"*/{path.stem}.json"):
        found |= typed(text, records.read(file))
    assert found - SETTINGS == set(OTHERWISE.get(path.stem, {})), "write {value}`slug:metric|format`"
