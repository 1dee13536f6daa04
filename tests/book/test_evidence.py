"""The claims as the page prints them: numbers are typeset wherever they stand."""

import sys
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes

from experiments.claims import Check, Claim
from experiments.records import Record

from .conftest import ROOT

sys.path.insert(0, str(ROOT / "book/_ext"))
import book_evidence

LOW = Check("loss.low", "ln of a ratio", {"below": -0.4}, {})
TINY = Check("loss.tiny", "a deviation", {"between": [-1e-12, 1e-12]}, {})
SEEDS = Check("loss.seeds", "ln of a ratio, per seed", {"above": -2}, {})
METRICS = {"loss": {"low": -1.38, "tiny": -2.5e-13, "seeds": [-1.0, -1.1, -1.2]}}


class Plain(book_evidence.Claims):
    """The directive without Sphinx: texts stand as they are written."""

    def __init__(self) -> None:
        pass

    def paragraph(self, text: str, *classes: str) -> nodes.paragraph:
        return nodes.paragraph("", text, classes=list(classes))


@pytest.fixture
def record() -> Record:
    return Record("tiny", "quick", {"seeds": [0]}, metrics=METRICS)


def test_a_precondition_has_minus_signs(record: Record) -> None:
    text = Plain().precondition(LOW, record).astext()
    assert text == "**Precondition.** ln of a ratio (< −0.4). Measured: −1.38."
    text = Plain().precondition(TINY, record).astext()
    assert text.endswith(" (−10−12 to 10−12). Measured: −2.5\u202f×\u202f10−13.")
    assert Plain().precondition(LOW, None).astext() == "**Precondition.** ln of a ratio (< −0.4)."


def test_a_check_has_minus_signs(record: Record) -> None:
    claim = Claim("id", "claim", "§1", "empirical", "run", "control", (LOW, TINY, SEEDS), None, "key", Path("f"))
    verdict = claim.verdict(record)
    assert verdict is not None
    texts = [Plain().check(item, record).astext() for item in verdict.evidence]
    assert "−1.38 criterion < −0.4" in texts[0]
    assert "−2.5\u202f×\u202f10−13 criterion −10−12 to 10−12" in texts[1]
    assert "−1.1 (−1.35 to −0.852) criterion > −2" in texts[2]
    assert not any("-" in text for text in texts)


def test_criteria_are_those_of_the_records_scale() -> None:
    later = Check("loss.low", "ln of a ratio", {}, {"paper": {"above": 0.123}}, only_at=("paper",))
    claim = Claim("id", "claim", "§1", "empirical", "run", "control", (later,), None, "key", Path("f"))
    verdict = claim.verdict(Record("tiny", "paper", {}, metrics={"loss": {"low": 0.12346}}))
    assert verdict is not None
    # Three digits would print the bound itself.
    text = Plain().check(verdict.evidence[0], Record("tiny", "paper", {})).astext()
    assert "0.1235 criterion > 0.123" in text
    # Without a record: the first scale that has a criterion.
    waiting = book_evidence.Evidence(later, None, None, None, "undecided")
    assert Plain().check(waiting, None).astext().endswith("no result yet criterion > 0.123")
    assert Plain().precondition(later, None).astext().endswith("(> 0.123).")


def test_a_card_holds_its_precondition(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    directive: Any = Plain()
    directive.state = type("State", (), {"document": nodes.Element()})()
    monkeypatch.setattr(nodes.Element, "note_explicit_target", lambda *_: None, raising=False)
    claim = Claim("id", "claim", "§1", "empirical", "run", "control", (SEEDS,), LOW, "key", Path("f"))
    assert "Measured: −1.38." in directive.card(claim, record).astext()
