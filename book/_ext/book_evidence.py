"""The directives {claims}, {scoreboard} and {provenance}: what a paper claims, what was measured, on what.

Everything in them is computed from `book/claims/<slug>.yaml` and the published record when the page is read. The
records and notebooks that they link to are copied into the site.
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from book_values import EVERY, format_value, note, typeset
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from experiments import claims, code_hash, records
from experiments.claims import Check, Claim, Evidence, Verdict
from experiments.errors import UserError
from experiments.records import Record

# Each verdict is told by its word, its mark and its color: by the word first.
MARKS = {
    "reproduced": "✓",
    "reproduced in part": "◐",
    "not reproduced at this scale": "○",
    "refuted": "✗",
    "not testable": "–",
    "no result yet": "…",
}


class EvidenceDirective(SphinxDirective):
    """What the three have in common: a paper's claims and record, and MyST in the claims' texts."""

    def paragraph(self, text: str, *classes: str) -> nodes.paragraph:
        """A paragraph of MyST, so that a claim may hold a formula or a citation."""
        box = nodes.Element()
        self.state.nested_parse(StringList([text], self.get_source_info()[0]), self.content_offset, box)
        children = box.children[0].children if len(box) == 1 else box.children
        return nodes.paragraph("", "", *children, classes=list(classes))

    def link(self, text: str, path: str) -> nodes.reference:
        """A link to a file of the repository that the site carries a copy of."""
        target = "../" * self.env.docname.count("/") + path
        return nodes.reference("", text, refuri=target, internal=False, classes=["file"])

    def run(self) -> list[nodes.Node]:
        try:
            return self.make()
        except UserError as error:
            raise self.error(str(error)) from error

    def make(self) -> list[nodes.Node]:
        """What the directive leaves in the page."""
        raise NotImplementedError


class Claims(EvidenceDirective):
    """{claims} slug -> each claim with its criteria, what was measured, and the verdict."""

    required_arguments = 1

    def make(self) -> list[nodes.Node]:
        slug = self.arguments[0]
        note(self.env, [slug])
        record = records.published(slug)
        result: list[nodes.Node] = [self.card(claim, record) for claim in claims.load(slug)]
        if record is not None:
            files = nodes.paragraph("", "The evidence: ", classes=["evidence-files"])
            files += evidence_links(self, record)
            result.append(files)
        return result

    def card(self, claim: Claim, record: Record | None) -> nodes.container:
        verdict = claim.verdict(record)
        heading = nodes.paragraph("", "", badge(verdict), classes=["claim-verdict"])
        heading += nodes.inline("", f" {claim.where} · {claim.kind}", classes=["claim-where"])
        checks = nodes.bullet_list(classes=["checks"])
        evidence = (
            verdict.evidence if verdict else [Evidence(c, None, None, None, "undecided") for c in claim.checks]
        )
        for item in evidence:
            checks += self.check(item, record)
        card = nodes.container("", heading, self.paragraph(claim.claim, "claim-text"), checks, classes=["claim"])
        card["ids"] = [f"claim-{claim.file.stem}-{claim.id}"]
        self.state.document.note_explicit_target(card)
        card += self.paragraph(f"**Experiment.** {claim.experiment}", "claim-note")
        card += self.paragraph(f"**Control.** {claim.control}", "claim-note")
        if claim.precondition is not None:
            card += self.precondition(claim.precondition, record)
        return card

    def precondition(self, check: Check, record: Record | None) -> nodes.paragraph:
        line = self.paragraph(f"**Precondition.** {check.says}", "claim-note")
        text = f" ({check.describe(record.scale if record else check.only_at[0])})."
        line += typeset(text if record is None else f"{text} Measured: {measured_text(record, check.metric)}.")
        return line

    def check(self, item: Evidence, record: Record | None) -> nodes.list_item:
        scale = record.scale if record else item.check.only_at[0]
        line = self.paragraph(item.check.says, "check")
        line += nodes.Text(": ")
        if record is None:
            line += nodes.inline("", "no result yet", classes=["no-result"])
        else:
            line += nodes.strong("", "", *typeset(measured(item, scale)), classes=["measured"])
            line.insert(0, nodes.inline("", item.outcome, classes=["outcome", f"outcome-{item.outcome}"]))
            line.insert(1, nodes.Text(" "))
        criterion = typeset(item.check.describe(scale))
        line += [nodes.Text(" "), nodes.inline("", "", nodes.Text("criterion "), *criterion, classes=["criterion"])]
        return nodes.list_item("", line)


class Scoreboard(EvidenceDirective):
    """{scoreboard} -> every claim of every paper, its verdict, and where the evidence is."""

    def make(self) -> list[nodes.Node]:
        note(self.env, [EVERY])
        papers = [(slug, claims.load(slug), records.published(slug)) for slug in claims.slugs()]
        verdicts = [(slug, c, record, c.verdict(record)) for slug, cs, record in papers for c in cs]
        if not verdicts:
            return [nodes.paragraph("", "No paper has a claims file yet.")]
        rows = [self.row(slug, claim, record, verdict) for slug, claim, record, verdict in verdicts]
        table = make_table(["Claim", "Verdict", "Evidence"], rows, [55, 20, 25], "scoreboard")
        counts = Counter(word(verdict) for *_, verdict in verdicts)
        summary = nodes.paragraph(classes=["verdict-counts"])
        for name in MARKS:
            if counts[name]:
                count = nodes.inline("", f"{counts[name]} ", classes=["count"])
                summary += [nodes.inline("", "", count, badge_of(name), classes=["counted"]), nodes.Text("  ")]
        return [summary, table]

    def row(
        self, slug: str, claim: Claim, record: Record | None, verdict: Verdict | None
    ) -> list[list[nodes.Node]]:
        text = self.paragraph(claim.claim)
        source = self.paragraph(f"{{cite:t}}`{claim.paper}`, {claim.where}", "claim-where")
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
        return [[text, source], [nodes.paragraph("", "", badge(verdict))], [evidence]]


class Provenance(EvidenceDirective):
    """{provenance} slug -> what the chapter's numbers come from, in one line."""

    required_arguments = 1

    def make(self) -> list[nodes.Node]:
        slug = self.arguments[0]
        note(self.env, [slug])
        record = records.published(slug)
        line = nodes.paragraph(classes=["provenance"])
        if record is None:
            line += [nodes.inline("", "No result yet", classes=["no-result"]), nodes.Text(". It will come from ")]
            source = str(records.source(slug).relative_to(records.ROOT))
            line += self.link(source, source)
            return [line]
        known = record.provenance
        line += [nodes.Text("From "), *evidence_links(self, record)]
        parameters = ", ".join(f"{key} = {value}" for key, value in record.parameters.items() if key != "out")
        data = ", ".join(f"{name} {digest[:12]}" for name, digest in known["data"].items()) or "none needed"
        # Records are made before they are committed, so what names the code is its hash; the commit tells the rest.
        commit = (known["commit"] or "none")[:10] + (" with changes" if known["dirty"] else "")
        facts = {
            "parameters": parameters,
            "data (SHA-256)": data,
            "code": known["code_hash"],
            "commit": commit,
            "device": f"{known['device_name']}, {known['threads']} thread{'s' * (known['threads'] != 1)}",
            "torch": known["packages"]["torch"],
        }
        for name, value in facts.items():
            line += [nodes.Text(f" · {name}: "), nodes.literal("", str(value))]
        line += self.since(record, commit)
        return [line]

    def since(self, record: Record, commit: str) -> list[nodes.Node]:
        """What has become of the code that the numbers come from, where it has changed."""
        source, today = records.source(record.slug), records.code_today(record.slug, record.scale)
        if today is None:
            return []
        for file in code_hash.files_of_notebook(source, records.ROOT):
            self.env.note_dependency(str(file))
        if not record.is_of(today):
            return [nodes.Text(" · "), nodes.strong("", "measured with an earlier version of this code")]
        for one in record.provenance.get("confirmations", []):
            if one["code_hash"] == today:
                return [nodes.Text(f" · measured with {commit}, confirmed for today's code on {one['date']}")]
        return []


def evidence_links(directive: EvidenceDirective, record: Record) -> list[nodes.Node]:
    """Links to the record, the notebook as it was run, and its source."""
    slug, scale = record.slug, record.scale
    source = records.source(slug).relative_to(records.ROOT)
    files = [(f"record ({scale})", f"results/{scale}/{slug}.json"), (source.parts[0].rstrip("s"), str(source))]
    executed = f"results/quick/{slug}.ipynb"
    if (records.ROOT / executed).exists():
        files.append(("executed (quick)", executed))
    result: list[nodes.Node] = []
    for text, path in files:
        result += [*([nodes.Text(" · ")] if result else []), directive.link(text, path)]
    return result


def measured(item: Evidence, scale: str) -> str:
    """The mean, with its interval where several seeds give one."""
    if item.mean is None or item.low is None or item.high is None:
        return "not finite"
    # As many digits as it takes to tell the number from the criterion it is held against.
    _, bounds = item.check.bounds(scale)
    digits = 3
    while digits < 9 and any(float(f"{item.mean:.{digits}g}") == bound != item.mean for bound in bounds):
        digits += 1
    if item.low == item.high:
        return f"{item.mean:.{max(digits, 5)}g}" if abs(item.mean) >= 1 else f"{item.mean:.{digits}g}"
    return f"{item.mean:.{digits}g} ({item.low:.{digits}g} to {item.high:.{digits}g})"


def measured_text(record: Record, metric: str) -> str:
    return format_value(record.get(metric), ".3g")


def word(verdict: Verdict | None) -> str:
    return verdict.word if verdict else "no result yet"


def badge(verdict: Verdict | None) -> nodes.inline:
    return badge_of(word(verdict))


def badge_of(name: str) -> nodes.inline:
    return nodes.inline("", f"{MARKS[name]} {name}", classes=["verdict", f"verdict-{name.replace(' ', '-')}"])


def make_table(
    head: list[str], rows: list[list[list[nodes.Node]]], widths: list[int], *classes: str
) -> nodes.table:
    """A docutils table whose cells hold the nodes given. `widths` are relative."""

    def row(cells: list[list[nodes.Node]]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", *cell) for cell in cells))

    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths), cols=len(head))
    group += nodes.thead("", row([[nodes.paragraph("", text)] for text in head]))
    group += nodes.tbody("", *(row(cells) for cells in rows))
    return nodes.table("", group, classes=list(classes))


def copy(app: Sphinx, error: Exception | None) -> None:
    """Put the files that the pages link to into the site, and nothing else."""
    if error or app.builder.format != "html":
        return
    for pattern in ("notebooks/*.py", "benchmarks/step_time.py", "results/*/*.json", "results/*/*.ipynb"):
        for path in records.ROOT.glob(pattern):
            target = Path(app.outdir) / path.relative_to(records.ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("book_values")
    app.add_directive("claims", Claims)
    app.add_directive("scoreboard", Scoreboard)
    app.add_directive("provenance", Provenance)
    app.connect("build-finished", copy)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
