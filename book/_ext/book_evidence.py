"""The directives {claims} and {provenance}: what a paper claims, what was measured, on what.

Everything in them is computed from `book/claims/<slug>.yaml` and the published record when the page is read. The
records and notebooks that they link to are copied into the site.
"""

import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from book_values import note, typeset
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from experiments import claims, code_hash, records
from experiments.checks import Check, Evidence, Was
from experiments.claims import Claim, Verdict
from experiments.errors import UserError
from experiments.records import Record

# Each verdict is told by its word, its mark and its color: by the word first.
MARKS = {
    "reproduced": "✓",
    "reproduced in part": "◐",
    "undecided": "≈",
    "not reproduced at this scale": "○",
    "refuted": "✗",
    "not testable": "–",
    "no result yet": "…",
}


class EvidenceDirective(SphinxDirective):
    """What they have in common: a paper's claims and record, and MyST in the claims' texts."""

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

    def run(self) -> list[nodes.Node]:
        try:
            return self.make()
        except UserError as error:
            raise self.error(str(error)) from error

    def make(self) -> list[nodes.Node]:
        """What the directive leaves in the page."""
        raise NotImplementedError


class Claims(EvidenceDirective):
    """{claims} slug -> what was read, and each claim with its criteria, what was measured, and the verdict."""

    required_arguments = 1

    def make(self) -> list[nodes.Node]:
        slug = self.arguments[0]
        note(self.env, [slug])
        record = records.published(slug)
        result: list[nodes.Node] = [self.paragraph(f"**What was read.** {claims.read(slug)}", "what-was-read")]
        result += [self.card(claim, record) for claim in claims.load(slug)]
        if record is not None:
            files = nodes.paragraph("", "The evidence: ", classes=["evidence-files"])
            files += evidence_links(self, record)
            result.append(files)
        return result

    def card(self, claim: Claim, record: Record | None) -> nodes.container:
        """The claim and its checks; then how it was tried, and apart from them controls and preconditions."""
        verdict = claim.verdict(record)
        heading = nodes.paragraph("", "", badge(verdict), *qualification(verdict), classes=["claim-verdict"])
        kind = f"{claim.kind}{', universal' * claim.universal}{' · the book’s own' * claim.own}"
        heading += nodes.inline("", f" {claim.where} · {kind}", classes=["claim-where"])
        card = nodes.container("", heading, self.paragraph(claim.claim, "claim-text"), classes=["claim"])
        card["ids"] = [f"claim-{claim.file.stem}-{claim.id}"]
        self.state.document.note_explicit_target(card)
        evidence = verdict or Verdict("", *map(unmeasured, (claim.checks, claim.controls, claim.preconditions)))
        card += [*self.criteria(evidence.evidence, record), *self.changes(claim.was)]
        card += self.paragraph(f"**Experiment.** {claim.experiment}", "claim-note")
        card += self.paragraph(f"**Control.** {claim.control}", "claim-note")
        card += self.criteria(evidence.controls, record)
        if claim.preconditions:
            card += self.paragraph("**Precondition.** Without it the claim is not testable.", "claim-note")
            card += self.criteria(evidence.preconditions, record)
        return card

    def criteria(self, evidence: Sequence[Evidence], record: Record | None) -> list[nodes.Node]:
        """A list of criteria. Where thresholds come from, and what was changed, is said once for all alike."""
        origins = run_ends([item.check.origin for item in evidence])
        changes = run_ends([item.check.was for item in evidence])
        lines = nodes.bullet_list(classes=["checks"])
        for item, same_origin, same_change in zip(evidence, origins, changes, strict=True):
            line = self.check(item, record)
            if same_origin:
                line += self.paragraph(these(same_origin) + origin(item.check.origin), "origin")
            if same_change:
                line += self.changes(item.check.was, these(same_change))
            lines += line
        return [lines] if evidence else []

    def changes(self, versions: Sequence[Was], whose: str = "") -> list[nodes.paragraph]:
        """The criteria that were moved after the fact, in the open."""
        texts = (f"{whose}Until {was.date}: {was.old}. Changed: {was.why}" for was in versions)
        return [self.paragraph(text, "was") for text in texts]


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


def unmeasured(checks: Sequence[Check]) -> list[Evidence]:
    """What stands in a card as long as there is no record."""
    return [Evidence(check, None, None, None, "undecided") for check in checks]


def run_ends(values: Sequence[Any]) -> list[int]:
    """For each value the length of the run of equals that it ends, or 0 if the next is equal, too."""
    lengths = [len(list(run)) for _, run in groupby(values)]
    return [length * (i == length) for length in lengths for i in range(1, length + 1)]


def these(count: int) -> str:
    return f"These {count}: " if count > 1 else ""


def origin(text: str) -> str:
    """Where a threshold comes from, as the card says it."""
    word, _, source = text.partition(":")
    start = {"theory": "From theory", "paper": "From the paper", "pilot": "Chosen by the book"}[word]
    return f"{start}: {source.strip()}"


def measured(item: Evidence, scale: str) -> str:
    """The mean, with its interval where several seeds, or a grid, give one."""
    if item.mean is None or item.low is None or item.high is None:
        return "not finite"
    # As many digits as it takes to tell the number from the criterion it is held against.
    _, bounds = item.check.bounds(scale)
    digits = 3
    while digits < 9 and any(float(f"{item.mean:.{digits}g}") == bound != item.mean for bound in bounds):
        digits += 1
    if item.low == item.high:
        return f"{item.mean:.{max(digits, 5)}g}" if abs(item.mean) >= 1 else f"{item.mean:.{digits}g}"
    grid = ", the grid’s step included" if item.check.grid else ""
    return f"{item.mean:.{digits}g} ({item.low:.{digits}g} to {item.high:.{digits}g}{grid})"


def word(verdict: Verdict | None) -> str:
    return verdict.word if verdict else "no result yet"


def badge(verdict: Verdict | None) -> nodes.inline:
    return badge_of(word(verdict))


def qualification(verdict: Verdict | None) -> list[nodes.Node]:
    """Behind the badge: that a control failed, which the reader of the verdict should know."""
    if verdict is None or not verdict.qualified:
        return []
    return [nodes.Text(" "), nodes.inline("", "a control fails", classes=["qualified"])]


def chip(claim: Claim, verdict: Verdict | None, target: str) -> nodes.reference:
    """A claim in two words, with its verdict's mark and color, as a link; the verdict's own words are for the ear.

    A chip with corners is an exact claim, a round one an empirical.
    """
    classes = ["chip", css_class(word(verdict)), f"kind-{claim.kind}"]
    link = nodes.reference("", "", refuri=target, internal=True, classes=classes)
    heard = nodes.inline("", f", {word(verdict)}", classes=["visually-hidden"])
    link += [nodes.Text(f"{MARKS[word(verdict)]} {label(claim)}"), heard]
    return link


def label(claim: Claim) -> str:
    """A claim's name as one reads it."""
    return claim.id.replace("-", " ")


def css_class(name: str) -> str:
    return f"verdict-{name.replace(' ', '-')}"


def badge_of(name: str) -> nodes.inline:
    return nodes.inline("", f"{MARKS[name]} {name}", classes=["verdict", css_class(name)])


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
    for pattern in (
        "notebooks/*.py",
        "benchmarks/step_time.py",
        "benchmarks/equality.py",
        "results/*/*.json",
        "results/*/*.ipynb",
    ):
        for path in records.ROOT.glob(pattern):
            target = Path(app.outdir) / path.relative_to(records.ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("book_values")
    app.add_directive("claims", Claims)
    app.add_directive("provenance", Provenance)
    app.connect("build-finished", copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
