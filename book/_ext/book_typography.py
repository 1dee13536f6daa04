"""Keep a formula and the punctuation that touches it on one line: a browser would break between them."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

BEFORE = re.compile(r"[(\[“‘—]+$")
AFTER = re.compile(r"^[.,;:!?)\]”’]+")


class Unbroken(SphinxTransform):
    """Wraps `(`, the formula and `),` in one inline node that the style sheet does not break."""

    default_priority = 800  # after everything that makes math nodes

    def apply(self, **_: Any) -> None:
        for math in list(self.document.findall(nodes.math)):
            parent = math.parent
            if not isinstance(parent, nodes.TextElement):
                continue
            position = parent.index(math)
            before = self.cut(parent, position - 1, BEFORE)
            after = self.cut(parent, position + 1, AFTER)
            if before or after:
                parts = [nodes.Text(text) for text in (before, after)]
                whole = nodes.inline("", "", classes=["unbroken"])
                parent.replace(math, whole)
                whole += [*(parts[:1] if before else []), math, *(parts[1:] if after else [])]

    @staticmethod
    def cut(parent: nodes.Element, position: int, pattern: re.Pattern[str]) -> str:
        """Take what matches off the neighboring text, and return it."""
        if not 0 <= position < len(parent) or not isinstance(parent[position], nodes.Text):
            return ""
        text = str(parent[position])
        found = pattern.search(text)
        if not found:
            return ""
        parent[position] = nodes.Text(text[: found.start()] + text[found.end() :])
        return found[0]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(Unbroken)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
