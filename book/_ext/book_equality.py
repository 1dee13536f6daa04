"""The directive {equality}: a table of book/equality.yaml, whose rows are the cases of tests/book/test_equality.py.

{equality} Adam               the comparisons of a group
{equality} behaviors torch    the behaviors of a group
"""

import functools
import re
from typing import Any

import yaml
from book_evidence import EvidenceDirective, make_table
from book_values import typeset
from docutils import nodes
from sphinx.application import Sphinx

from experiments import records
from experiments.errors import UserError


@functools.cache
def load(text: str) -> Any:
    """The tables, read once for all that they are printed in."""
    return yaml.safe_load(text)


class Equality(EvidenceDirective):
    required_arguments = 1
    final_argument_whitespace = True

    def make(self) -> list[nodes.Node]:
        path = records.ROOT / "book" / "equality.yaml"
        self.env.note_dependency(str(path))
        group = self.arguments[0].removeprefix("behaviors ")
        part = "comparisons" if group == self.arguments[0] else "behaviors"
        tables = load(path.read_text(encoding="utf-8"))[part]
        if group not in tables:
            raise UserError(f"book/equality.yaml has no {part} for {group!r}: {', '.join(tables)}")
        if part == "behaviors":
            rows = [[[self.paragraph(row[key])] for key in ("other", "ours", "why")] for row in tables[group]]
            heads = ["There", "Here", "Because"]
            return [make_table(heads, rows, [36, 36, 28], "facts", "equality")]
        rows = [
            [[code(row["ours"])], [relation(row)], [self.theirs(row["theirs"])], [self.paragraph(row["why"])]]
            for row in tables[group]
        ]
        heads = ["Here", "Relation", "There", "Because"]
        return [make_table(heads, rows, [28, 16, 28, 28], "facts", "equality", "equality-pairs")]

    def theirs(self, text: str) -> nodes.paragraph:
        """Names of implementations, in which every call is code."""
        return self.paragraph(re.sub(r"[\w.]+\((?:[^()]|\([^()]*\))*\)", r"`\g<0>`", text))


def code(text: str) -> nodes.paragraph:
    return nodes.paragraph("", "", nodes.literal("", text))


def relation(row: dict[str, Any]) -> nodes.paragraph:
    """The word first, then by how much, and what it depends on."""
    word, bound = ("equals", row["equals"]) if "equals" in row else ("differs", row["apart"])
    sign = "≤" if word == "equals" else ">"
    result = nodes.paragraph("", "", nodes.strong("", word, classes=[f"relation-{word}"]))
    result += nodes.inline("", "", *typeset(f" {sign}\u202f{float(bound):g}"), classes=["bound"])
    if not row.get("schedule", True):
        result += nodes.Text(" at a constant learning rate")
    return result


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("book_evidence")
    app.add_directive("equality", Equality)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
