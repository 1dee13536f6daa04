"""The directives of the scoreboard, all computed from the claims files and the published records.

{surprises}         what did not hold, the furthest-reaching first
{verdict-totals}    how many of each verdict: exact and empirical, the papers' claims and the book's own
{scoreboard}        every claim in reading order, a row for each chapter; each opens to its evidence
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from book_evidence import (
    MARKS,
    EvidenceDirective,
    badge,
    badge_of,
    css_class,
    evidence_links,
    label,
    make_table,
    qualification,
    word,
)
from book_values import EVERY, note
from docutils import nodes
from sphinx.application import Sphinx

from experiments import claims, records
from experiments.checks import Evidence
from experiments.claims import KINDS, Claim, Verdict
from experiments.records import Record

STANDING_OUT = 3
NEGATIVE = ("refuted", "not reproduced at this scale")


class Entry(NamedTuple):
    """A claim where it stands in the book: `page` is its chapter, if it has one; `part` the caption of the part."""

    part: str
    page: str
    claim: Claim
    record: Record | None
    verdict: Verdict | None

    @property
    def word(self) -> str:
        return word(self.verdict)


class ScoreboardDirective(EvidenceDirective):
    """What the three have in common: all claims, in the order in which one reads the book."""

    def make(self) -> list[nodes.Node]:
        note(self.env, [EVERY])
        self.env.note_reread()  # what other pages refer to, and in which order they stand
        entries = list(self.entries())
        return self.show(entries) if entries else [nodes.paragraph("", "No paper has a claims file yet.")]

    def show(self, entries: Sequence[Entry]) -> list[nodes.Node]:
        """What the directive leaves in the page."""
        raise NotImplementedError

    def entries(self) -> Iterator[Entry]:
        """In a chapter the exact claims come first; papers that have no chapter yet come last."""
        parts = self.env.external_site_map.root.subtrees
        places = {
            str(page).rpartition("/")[2]: (part.caption or "", str(page)) for part in parts for page in part.items
        }
        known = claims.slugs()
        reading_order = [slug for slug in places if slug in known]
        for slug in [*reading_order, *(slug for slug in known if slug not in places)]:
            record = records.published(slug)
            for claim in sorted(claims.load(slug), key=lambda claim: KINDS.index(claim.kind)):
                yield Entry(*places.get(slug, ("No chapter yet", "")), claim, record, claim.verdict(record))

    def chapter(self, entry: Entry) -> str:
        """Its name, in MyST."""
        return f"{{doc}}`/{entry.page}`" if entry.page else entry.claim.file.stem

    def card(self, entry: Entry, text: str) -> list[nodes.Node]:
        """A link to the claim's card in its chapter."""
        if not entry.page:
            return []
        page = self.env.app.builder.get_relative_uri(self.env.docname, entry.page)
        address = f"{page}#claim-{entry.claim.file.stem}-{entry.claim.id}"
        return [nodes.reference("", text, refuri=address, internal=True)]


class Surprises(ScoreboardDirective):
    """{surprises} -> the papers' claims that did not hold, and what was measured against them.

    Refuted comes before not reproduced, and then the claims whose chapters most other pages refer to: the more that
    builds on a paper, the more it matters. Three stand out, each of another chapter.
    """

    def show(self, entries: Sequence[Entry]) -> list[nodes.Node]:
        negative = [entry for entry in entries if entry.word in NEGATIVE and not entry.claim.own]
        if not negative:
            return [nodes.paragraph("", "No claim of a paper was refuted, and none failed to be reproduced.")]
        reach = {entry.page: references(self.sources(), entry.page, entry.claim.paper) for entry in negative}
        negative.sort(key=lambda entry: (NEGATIVE.index(entry.word), -reach[entry.page]))
        first = list({entry.page: entry for entry in reversed(negative)}.values())
        first = sorted(first, key=negative.index)[:STANDING_OUT]
        rest = [entry for entry in negative if entry not in first]
        result: list[nodes.Node] = [self.listed(first, "surprises")]
        if rest:
            summary = f"<details class='surprises-rest'><summary>{len(rest)} more</summary>"
            result += [raw(summary), self.listed(rest, "surprises"), raw("</details>")]
        return result

    def sources(self) -> dict[str, str]:
        """The text of every page."""
        return {
            page: Path(self.env.doc2path(page)).read_text(encoding="utf-8") for page in sorted(self.env.found_docs)
        }

    def listed(self, entries: Sequence[Entry], name: str) -> nodes.bullet_list:
        items = nodes.bullet_list(classes=[name])
        for entry in entries:
            line = self.paragraph(entry.claim.claim, "surprise")
            line.insert(0, [badge(entry.verdict), nodes.Text(" ")])
            against = next(item for item in evidence_of(entry) if item.outcome == "fails")
            where = self.paragraph(f"{self.chapter(entry)}, {entry.claim.where}", "claim-where")
            where += [nodes.Text(" · "), *self.card(entry, "all the evidence")]
            items += nodes.list_item("", line, *self.check(against, entry.record).children, where)
        return items


class Totals(ScoreboardDirective):
    """{verdict-totals} -> the numbers of verdicts as a table, and how many criteria were moved after the fact."""

    def show(self, entries: Sequence[Entry]) -> list[nodes.Node]:
        columns = {
            "The papers’, exact": [e.word for e in entries if not e.claim.own and e.claim.kind == "exact"],
            "The papers’, empirical": [e.word for e in entries if not e.claim.own and e.claim.kind == "empirical"],
            "The book’s own": [e.word for e in entries if e.claim.own],
        }
        rows = [
            [[nodes.paragraph("", "", badge_of(name))], *(number(words.count(name)) for words in columns.values())]
            for name in MARKS
            if any(name in words for words in columns.values())
        ]
        rows.append([[nodes.paragraph("", "All")], *(number(len(words)) for words in columns.values())])
        table = make_table(["Verdict", *columns], rows, [40, 20, 20, 20], "totals")
        changed = sum(entry.claim.changed for entry in entries)
        text = f"Changed after their first verdict had been printed: {changed} of {len(entries)} claims."
        text += " Each keeps its old criterion, and the reason, in its card."
        return [table, nodes.paragraph("", text, classes=["changed"])]


class Scoreboard(ScoreboardDirective):
    """{scoreboard} -> parts, in them chapters, in them claims; each claim is a native <details>."""

    def show(self, entries: Sequence[Entry]) -> list[nodes.Node]:
        result: list[nodes.Node] = [raw(f"<div class='scoreboard'>{filters(entries)}")]
        for part, of_part in groupby(entries, key=lambda entry: entry.part):
            result += [raw("<section class='part'>"), nodes.rubric("", part)]
            for _, group in groupby(of_part, key=lambda entry: entry.claim.file):
                of_page = list(group)
                result += [raw("<div class='chapter'>"), self.paragraph(self.chapter(of_page[0]), "chapter-name")]
                result += [raw("<div class='cells'>"), *(node for entry in of_page for node in self.cell(entry))]
                result.append(raw("</div></div>"))
            result.append(raw("</section>"))
        return [*result, raw("</div>")]

    def cell(self, entry: Entry) -> list[nodes.Node]:
        """The claim's mark and name; behind them its words, what was measured, and where the rest is."""
        claim, verdict = entry.claim, entry.verdict
        name, own = escape(label(claim)), " · ours" * claim.own
        opening = (
            f"<details class='cell' id='score-{claim.file.stem}-{claim.id}' data-verdict='{entry.word}' "
            f"data-kind='{claim.kind}'><summary class='chip {css_class(entry.word)} kind-{claim.kind}'>"
            f"{MARKS[entry.word]} {name}{own}<span class='visually-hidden'>, {entry.word}, {claim.kind}</span>"
            "</summary><div class='evidence'>"
        )
        heading = nodes.paragraph("", "", badge(verdict), *qualification(verdict))
        kind = f"{claim.kind}{', universal' * claim.universal}{' · the book’s own' * claim.own}"
        heading += nodes.inline("", f" {claim.where} · {kind}", classes=["claim-where"])
        links = nodes.paragraph("", "", classes=["evidence-files"])
        links += self.card(entry, "its card in the chapter")
        links += [nodes.Text(" · "), *evidence_links(self, entry.record)] if entry.record else []
        lines = nodes.bullet_list(classes=["checks"])
        lines += [self.check(item, entry.record) for item in (verdict.evidence if verdict else ())]
        body = [
            self.paragraph(claim.claim, "claim-text"),
            *([lines] if verdict and verdict.evidence else []),
            links,
        ]
        return [raw(opening), heading, *body, raw("</div></details>")]


def evidence_of(entry: Entry) -> Sequence[Evidence]:
    return entry.verdict.evidence if entry.verdict else ()


def filters(entries: Sequence[Entry]) -> str:
    """Two lists to choose from, which also explain the marks. scoreboard.js shows them: without it all is shown."""
    number = Counter(entry.word for entry in entries)
    words = [(name, f"{MARKS[name]} {name} ({number[name]})") for name in MARKS if number[name]]
    groups = {"verdict": words, "kind": [(kind, kind) for kind in KINDS]}
    text = ""
    for group, choices in groups.items():
        options = "".join(
            f"<option value='{escape(value)}'>{escape(shown)}</option>" for value, shown in [("", "all"), *choices]
        )
        text += f"<label>{group} <select name='{group}'>{options}</select></label> "
    return f"<form class='score-filter' hidden>{text}<output></output></form>"


def references(sources: dict[str, str], page: str, paper: str) -> int:
    """How many other pages link to a chapter or cite its paper."""
    name = re.escape(page.rpartition("/")[2])
    link = re.compile(rf"\{{doc\}}`(?:[^`<]*<)?(?:[^`<>]*/)?{name}>?`|\{{cite:\w+\}}`[^`]*\b{re.escape(paper)}\b")
    return sum(bool(link.search(text)) for other, text in sources.items() if other != page)


def number(count: int) -> list[nodes.Node]:
    return [nodes.paragraph("", str(count) if count else "·", classes=["count"])]


def raw(markup: str) -> nodes.raw:
    return nodes.raw("", markup, format="html")


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("book_evidence")
    app.add_directive("surprises", Surprises)
    app.add_directive("verdict-totals", Totals)
    app.add_directive("scoreboard", Scoreboard)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
