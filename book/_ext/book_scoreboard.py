"""The directive {scoreboard}: every claim, the papers' and the book's own, with its verdict."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from book_evidence import (
    MARKS,
    EvidenceDirective,
    badge,
    badge_of,
    evidence_links,
    make_table,
    qualification,
    word,
)
from book_values import EVERY, note
from docutils import nodes
from sphinx.application import Sphinx

from experiments import claims, records
from experiments.claims import Claim, Verdict
from experiments.records import Record


class Scoreboard(EvidenceDirective):
    """{scoreboard} -> every claim, its verdict, and where the evidence is; what the book claims itself apart."""

    def make(self) -> list[nodes.Node]:
        note(self.env, [EVERY])
        papers = [(slug, claims.load(slug), records.published(slug)) for slug in claims.slugs()]
        verdicts = [(slug, c, record, c.verdict(record)) for slug, cs, record in papers for c in cs]
        if not verdicts:
            return [nodes.paragraph("", "No paper has a claims file yet.")]
        result: list[nodes.Node] = []
        for title, own in (("What the papers claim", False), ("What this book claims itself", True)):
            chosen = [one for one in verdicts if one[1].own == own]
            if chosen:
                result += [nodes.rubric("", title), counts([verdict for *_, verdict in chosen])]
                rows = [self.row(*one) for one in chosen]
                result.append(make_table(["Claim", "Verdict", "Evidence"], rows, [55, 20, 25], "scoreboard"))
        return [self.changed([claim for _, claim, *_ in verdicts]), *result]

    def changed(self, listed: Sequence[Claim]) -> nodes.paragraph:
        """How much of what decides was moved after the fact."""
        changed = [claim for claim in listed if claim.changed]
        text = f"Changed after their first verdict had been printed: {len(changed)} of {len(listed)} claims."
        return nodes.paragraph(
            "", f"{text} Each keeps its old criterion, and the reason, in its card.", classes=["changed"]
        )

    def row(
        self, slug: str, claim: Claim, record: Record | None, verdict: Verdict | None
    ) -> list[list[nodes.Node]]:
        text = self.paragraph(claim.claim)
        whose = "This book" if claim.own else f"{{cite:t}}`{claim.paper}`"
        source = self.paragraph(f"{whose}, {claim.where}", "claim-where")
        page = next((name for name in sorted(self.env.found_docs) if name.endswith(f"/{slug}")), None)
        evidence = nodes.paragraph()
        if page is not None:
            target = self.env.app.builder.get_relative_uri(self.env.docname, page)
            anchor = f"{target}#claim-{slug}-{claim.id}"
            evidence += [nodes.reference("", "the chapter", refuri=anchor, internal=True), nodes.Text(" · ")]
        if record is None:
            evidence += nodes.inline("", "no result yet", classes=["no-result"])
        else:
            evidence += evidence_links(self, record)
        return [[text, source], [nodes.paragraph("", "", badge(verdict), *qualification(verdict))], [evidence]]


def counts(verdicts: Sequence[Verdict | None]) -> nodes.paragraph:
    """How many there are of each word."""
    number = Counter(map(word, verdicts))
    summary = nodes.paragraph(classes=["verdict-counts"])
    for name in MARKS:
        if number[name]:
            count = nodes.inline("", f"{number[name]} ", classes=["count"])
            summary += [nodes.inline("", "", count, badge_of(name), classes=["counted"]), nodes.Text("  ")]
    return summary


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("book_evidence")
    app.add_directive("scoreboard", Scoreboard)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
