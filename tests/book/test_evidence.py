"""The claims as the page prints them: numbers are typeset wherever they stand."""

import datetime
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docutils import nodes

from experiments import records
from experiments.checks import Check, Grid, Was
from experiments.claims import Claim
from experiments.records import Record

from .conftest import ROOT

sys.path.insert(0, str(ROOT / "book/_ext"))
import book_equality
import book_evidence
import book_scoreboard

LOW = Check("loss.low", "ln of a ratio", {"below": -0.4}, origin="theory: eq. 1")
TINY = Check("loss.tiny", "a deviation", {"between": [-1e-12, 1e-12]}, origin="paper: table 2")
SEEDS = Check("loss.seeds", "ln of a ratio, per seed", {"above": -2}, origin="pilot: −1 had been computed")
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


def claim_of(*checks: Check, **changes: Any) -> Claim:
    texts = {"id": "one", "claim": "c", "where": "§1", "kind": "exact", "experiment": "run", "control": "none"}
    fields: dict[str, Any] = {**texts, "paper": "key", "file": Path("tiny.yaml"), **changes}
    return Claim(checks=checks, **fields)


def test_a_check_has_minus_signs(record: Record) -> None:
    verdict = claim_of(LOW, TINY, SEEDS).verdict(record)
    assert verdict is not None
    texts = [Plain().check(item, record).astext() for item in verdict.evidence]
    assert "−1.38 criterion < −0.4" in texts[0]
    assert "−2.5\u202f×\u202f10−13 criterion −10−12 to 10−12" in texts[1]
    assert "−1.1 (−1.35 to −0.852) criterion > −2" in texts[2]
    assert not any("-" in text for text in texts)


def test_criteria_are_those_of_the_records_scale() -> None:
    later = Check("loss.low", "ln of a ratio", {}, {"paper": {"above": 0.123}}, only_at=("paper",))
    verdict = claim_of(later).verdict(Record("tiny", "paper", {}, metrics={"loss": {"low": 0.12346}}))
    assert verdict is not None
    # Three digits would print the bound itself.
    text = Plain().check(verdict.evidence[0], Record("tiny", "paper", {})).astext()
    assert "0.1235 criterion > 0.123" in text
    # Without a record: the first scale that has a criterion.
    waiting = book_evidence.Evidence(later, None, None, None, "undecided")
    assert Plain().check(waiting, None).astext().startswith("ln of a ratio: no result yet criterion > 0.123")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The card of a claim, as a list of its paragraphs."""
    directive: Any = Plain()
    directive.state = SimpleNamespace(document=SimpleNamespace(note_explicit_target=lambda *_: None))
    return lambda *args: [node.astext() for node in directive.card(*args).findall(nodes.paragraph)]


def test_a_card_keeps_controls_and_preconditions_apart(card: Any, record: Record) -> None:
    claim = claim_of(SEEDS, controls=(TINY,), preconditions=(LOW,), kind="empirical", own=True)
    lines = card(claim, record)
    assert lines[0] == "✓ reproduced §1 · empirical · the book’s own"
    starts = (
        *("c", "holds ln of a ratio, per seed", "Chosen by the book: −1 had been computed"),
        *("**Experiment.** run", "**Control.** none", "holds a deviation", "From the paper: table 2"),
        *("**Precondition.** Without it", "holds ln of a ratio: −1.38", "From theory: eq. 1"),
    )
    assert len(lines) == 1 + len(starts)
    assert all(line.startswith(start) for line, start in zip(lines[1:], starts, strict=True)), lines
    assert [line.count("no result yet") for line in card(claim, None)].count(1) == 4  # the badge, and three checks


def test_a_control_that_fails_stands_beside_the_verdict(card: Any, record: Record) -> None:
    failing = Check("loss.low", "a control", {"above": 0})
    line = card(claim_of(SEEDS, controls=(failing,), universal=True), record)[0]
    assert line == "✓ reproduced a control fails §1 · exact, universal"


def test_each_check_says_where_its_threshold_comes_from(card: Any, record: Record) -> None:
    """Once for all of which it is true."""
    lines = card(claim_of(LOW, TINY), record)
    assert (lines[3], lines[5]) == ("From theory: eq. 1", "From the paper: table 2")
    lines = card(claim_of(LOW, LOW, TINY), record)
    assert (lines[4], lines[6]) == ("These 2: From theory: eq. 1", "From the paper: table 2")
    assert sum("From theory" in line for line in lines) == 1


def test_a_card_tells_what_was_changed(card: Any, record: Record) -> None:
    was = Was("below −2", "the word is one-sided", datetime.date(2026, 11, 28))
    moved = Check("loss.low", "says", {"below": -0.4}, origin="theory: eq. 1", was=(was,))
    text = "Until 2026-11-28: below −2. Changed: the word is one-sided"
    assert text in card(claim_of(moved), record)
    assert text in card(claim_of(LOW, was=(was,)), record)


def test_an_interval_says_that_it_includes_the_grid(record: Record) -> None:
    ratio = Check("loss.seeds", "ln of a ratio", {"below": 0}, grid=Grid("ln", 2, 1))
    text = book_evidence.measured(ratio.evidence(record), "quick")
    # Student's t with two degrees of freedom, and ln 2 on either side.
    half = 4.302653 * 0.1 / 3**0.5 + 0.693147
    assert text == f"-1.1 ({-1.1 - half:.3g} to {-1.1 + half:.3g}, the grid’s step included)"


class Board(book_scoreboard.Scoreboard):
    """The scoreboard without Sphinx, in a book with one chapter."""

    def __init__(self) -> None:
        builder = SimpleNamespace(get_relative_uri=lambda here, there: f"{there}.html")
        env = SimpleNamespace(docname="book/scoreboard", app=SimpleNamespace(builder=builder))
        self.state: Any = SimpleNamespace(document=SimpleNamespace(settings=SimpleNamespace(env=env)))

    paragraph = Plain.paragraph


class Wrong(Board, book_scoreboard.Surprises):
    """What did not hold, in a book whose other pages refer to one chapter twice."""

    show = book_scoreboard.Surprises.show

    def sources(self) -> dict[str, str]:
        return {
            "a": "{doc}`part/loved`",
            "b": "{doc}`Loved <../part/loved>`, {cite:p}`other, key`",
            "part/loved": "",
        }


def entry_of(claim: Claim, record: Record | None, page: str = "book/part/tiny") -> book_scoreboard.Entry:
    return book_scoreboard.Entry("Part", page, claim, record, claim.verdict(record))


@pytest.mark.parametrize(("loss", "word"), [(0.5, "reproduced"), (2.0, "refuted"), (None, "undecided")])
def test_a_claim_wears_its_own_verdict(loss: float | None, word: str) -> None:
    claim = claim_of(Check("loss", "small", {"below": 1.0}))
    made = Record("tiny", "quick", {}, metrics={"loss": loss})
    badge = f"{book_evidence.MARKS[word]} {word}"
    cell = Board().cell(entry_of(claim, made))
    assert f"verdict-{word} kind-exact'>{book_evidence.MARKS[word]} one<" in cell[0].astext()
    (worn, _) = cell[1].findall(nodes.inline)
    assert (worn.astext(), worn["classes"]) == (badge, ["verdict", f"verdict-{word.replace(' ', '-')}"])
    assert next(cell[-2].findall(nodes.reference))["refuri"] == "book/part/tiny.html#claim-tiny-one"
    directive: Any = Plain()
    directive.state = SimpleNamespace(document=SimpleNamespace(note_explicit_target=lambda *_: None))
    card = directive.card(claim, made)
    assert card.children[0].astext() == f"{badge} §1 · exact"
    assert card["ids"] == ["claim-tiny-one"]
    chip = book_evidence.chip(claim, claim.verdict(made), "there")
    assert chip.astext() == f"{book_evidence.MARKS[word]} one, {word}"


def test_a_paper_without_a_chapter_or_a_record_is_on_the_scoreboard() -> None:
    cell = Board().cell(entry_of(claim_of(LOW), None, page=""))
    assert "… one" in cell[0].astext()
    assert not list(nodes.container("", *cell).findall(nodes.reference))


def test_what_stands_out_is_computed() -> None:
    """Refuted first, then by how many pages refer to the chapter, and one of each chapter."""
    failing, made = Check("loss", "small", {"below": 1.0}), Record("tiny", "quick", {}, metrics={"loss": 2.0})
    everything = [
        entry_of(
            claim_of(failing, id=f"{page} {kind} {own} {i}", claim=f"{page} {kind} {i}", kind=kind, own=own),
            made,
            page,
        )
        for kind in ("empirical", "exact")
        for page in ("part/plain", "part/loved", "part/last")
        for own in (False, True)
        for i in (1, 2)
    ]
    shown = Wrong().show([*everything, entry_of(claim_of(LOW), Record("tiny", "quick", {}, metrics=METRICS))])
    named = [
        [item.children[0].astext() for item in group.children]
        for group in shown
        if isinstance(group, nodes.bullet_list)
    ]
    assert named[0] == [f"✗ refuted {page} exact 1" for page in ("part/loved", "part/plain", "part/last")]
    assert [text.split(" part/")[1] for text in named[1]] == [
        *("loved exact 2", "plain exact 2", "last exact 2"),
        *(f"{page} empirical {i}" for page in ("loved", "plain", "last") for i in (1, 2)),
    ]
    assert Wrong().show([])[0].astext().startswith("No claim")


def test_references_are_pages_that_link_or_cite() -> None:
    pages = Wrong().sources()
    count = lambda page, paper: book_scoreboard.references(pages, page, paper)  # noqa: E731
    assert (count("part/loved", "none"), count("part/love", "none")) == (2, 0)
    assert (count("part/x", "key"), count("part/x", "other"), count("part/x", "the")) == (1, 1, 0)


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
