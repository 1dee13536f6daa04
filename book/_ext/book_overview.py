"""The directives {papers} and {build-record}: which chapters there are, and what this site was built with."""

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from book_evidence import EvidenceDirective, chip, make_table
from book_values import EVERY, note
from docutils import nodes
from sphinx.application import Sphinx

from experiments import claims, records
from experiments.errors import UserError
from experiments.records import SCALES

PACKAGES = (
    *("torch", "torchvision", "numpy", "scikit-learn", "matplotlib", "papermill", "snakemake"),
    *("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "sphinx-mathjax-offline"),
)


class Papers(EvidenceDirective):
    """A list of `slug citation-key what it is about`; a slug that has a page becomes a link, the others wait."""

    has_content = True

    def make(self) -> list[nodes.Node]:
        note(self.env, [EVERY])
        pages = {name.rpartition("/")[2]: name for name in self.env.found_docs}
        items = nodes.bullet_list(classes=["papers"])
        for line in self.content:
            try:
                slug, key, about = line.split(maxsplit=2)
            except ValueError:
                raise UserError(f"{line!r} is no paper: write `slug key what it is about`") from None
            page = pages.get(slug)
            text = f"**[{about}](/{page})**" if page else about
            entry = self.paragraph(f"{text} {{cite:p}}`{key}`")
            chips = [self.verdicts(slug, page)] if page and slug in claims.slugs() else []
            items += nodes.list_item("", entry, *chips, classes=["written" if page else "planned"])
        return [items]

    def verdicts(self, slug: str, page: str) -> nodes.paragraph:
        """A chip for each claim, which leads to its card."""
        record = records.published(slug)
        target = self.env.app.builder.get_relative_uri(self.env.docname, page)
        line = nodes.paragraph(classes=["chips"])
        for one in claims.load(slug):
            line += [chip(one, one.verdict(record), f"{target}#claim-{slug}-{one.id}"), nodes.Text(" ")]
        return line


class BuildRecord(EvidenceDirective):
    """{build-record} -> the versions, the machine, and the seconds of every experiment and chapter."""

    def make(self) -> list[nodes.Node]:
        self.env.note_reread()
        note(self.env, [EVERY])
        when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        facts = {
            "Built": when,
            "Python": platform.python_version(),
            "Machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            **{name: version(name) for name in PACKAGES},
        }
        rows = [[[nodes.paragraph("", name)], [nodes.paragraph("", "", nodes.literal("", value))]]
                for name, value in facts.items()]  # fmt: skip
        return [
            nodes.rubric("", "This build"),
            make_table(["What", "Which"], rows, [40, 60], "facts"),
            nodes.rubric("", "The experiments whose records the book prints"),
            self.experiments(),
            nodes.rubric("", "The chapters, executed for this build"),
            self.chapters(),
        ]

    def experiments(self) -> nodes.Node:
        paths = [path for scale in SCALES for path in sorted((records.ROOT / "results" / scale).glob("*.json"))]
        if not paths:
            return nodes.paragraph("", "There is no published record yet.", classes=["no-result"])
        rows = []
        for path in paths:
            record = records.read(path)
            known = record.provenance
            link = self.link(f"{record.slug} ({record.scale})", f"results/{record.scale}/{record.slug}.json")
            cells = [f"{known['seconds']:,.1f}", f"{known['device_name']}, {known['threads']} thread(s)",
                     f"torch {known['packages']['torch']}", known["finished"][:10]]  # fmt: skip
            rows.append([[nodes.paragraph("", "", link)], *([nodes.paragraph("", cell)] for cell in cells)])
        return make_table(
            ["Record", "Seconds", "Device", "Version", "Finished"], rows, [22, 12, 34, 18, 14], "facts"
        )

    def chapters(self) -> nodes.Node:
        """From the executed notebooks themselves: book/build.py notes how long each took."""
        rows = []
        for path in sorted(Path(self.env.srcdir, "book").rglob("*.ipynb")):
            notes = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("book", {})
            page = path.relative_to(self.env.srcdir).with_suffix("").as_posix()
            seconds = f"{notes.get('seconds', float('nan')):.1f}"
            rows.append([[self.paragraph(f"{{doc}}`/{page}`")], [nodes.paragraph("", seconds)]])
        if not rows:
            return nodes.paragraph("", "No chapter has cells to execute.")
        return make_table(["Chapter", "Seconds"], rows, [75, 25], "facts")


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("book_evidence")
    app.add_directive("papers", Papers)
    app.add_directive("build-record", BuildRecord)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
