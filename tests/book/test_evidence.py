"""The claims as the page prints them: numbers are typeset wherever they stand."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docutils import nodes

from experiments import records
from experiments.claims import Check, Claim
from experiments.records import Record

from .conftest import ROOT

sys.path.insert(0, str(ROOT / "book/_ext"))
import book_equality
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


class Board(book_evidence.Scoreboard):
    """The scoreboard without Sphinx, in a book with one chapter."""

    def __init__(self) -> None:
        builder = SimpleNamespace(get_relative_uri=lambda here, there: f"{there}.html")
        app, found = SimpleNamespace(builder=builder), {"book/part/tiny"}
        env = SimpleNamespace(docname="book/scoreboard", found_docs=found, app=app)
        self.state: Any = SimpleNamespace(document=SimpleNamespace(settings=SimpleNamespace(env=env)))

    paragraph = Plain.paragraph


@pytest.mark.parametrize(
    ("loss", "word"), [(0.5, "reproduced"), (2.0, "refuted"), (None, "not reproduced at this scale")]
)
def test_a_claim_wears_its_own_verdict(loss: float | None, word: str) -> None:
    check = Check("loss", "small", {"below": 1.0}, {})
    claim = Claim("one", "c", "§1", "exact", "x", "y", (check,), None, "key", Path("tiny.yaml"))
    made = Record("tiny", "quick", {}, metrics={"loss": loss})
    badge = f"{book_evidence.MARKS[word]} {word}"
    _, (cell,), (links,) = Board().row("tiny", claim, made, claim.verdict(made))
    (worn,) = cell.findall(nodes.inline)
    assert (worn.astext(), worn["classes"]) == (badge, ["verdict", f"verdict-{word.replace(' ', '-')}"])
    assert next(links.findall(nodes.reference))["refuri"] == "book/part/tiny.html#claim-tiny-one"
    directive: Any = Plain()
    directive.state = SimpleNamespace(document=SimpleNamespace(note_explicit_target=lambda *_: None))
    card = directive.card(claim, made)
    assert card.children[0].astext() == f"{badge} §1 · exact"
    assert card["ids"] == ["claim-tiny-one"]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"equals": 1e-12}, "equals ≤\u202f10−12"),
        ({"apart": 0.5}, "differs >\u202f0.5"),
        ({"equals": "1e-12", "schedule": False}, "equals ≤\u202f10−12 at a constant learning rate"),
    ],
)
def test_a_row_of_the_equality_table_says_what_its_test_asks(row: dict[str, Any], text: str) -> None:
    assert book_equality.relation(row).astext() == text


class Line(book_evidence.Provenance):
    """The line of provenance without Sphinx."""

    def __init__(self) -> None:
        env = SimpleNamespace(note_dependency=lambda file: None)
        self.state: Any = SimpleNamespace(document=SimpleNamespace(settings=SimpleNamespace(env=env)))

    def text(self, record: Record) -> str:
        return nodes.paragraph("", "", *self.since(record, "0123456789")).astext()


def test_what_has_become_of_the_code() -> None:
    """Today's code, earlier code, and earlier code whose numbers were confirmed for today's."""
    today, earlier = records.code_today("adam", "quick"), {"code_hash": "0" * 16}
    confirmations = [
        {"code_hash": "1" * 16, "date": "2026-01-02"},
        {"code_hash": today, "date": "2026-02-03"},
    ]

    def text(**provenance: Any) -> str:
        return Line().text(Record("adam", "quick", {}, provenance=provenance))

    assert text(code_hash=today) == ""
    assert text(**earlier) == " · measured with an earlier version of this code"
    assert text(**earlier, confirmations=confirmations[:1]) == " · measured with an earlier version of this code"
    assert (
        text(**earlier, confirmations=confirmations)
        == " · measured with 0123456789, confirmed for today's code on 2026-02-03"
    )
