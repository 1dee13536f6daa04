"""A chapter's displayed equations, and the tests that evaluate them.

Each test of an equation holds the page's LaTeX beside its translation, so that a formula changed on the page alone
is found, and so is a translation that does not agree with the code.
"""

import re
from collections.abc import Callable
from typing import TypeVar

from .conftest import ROOT

Test = TypeVar("Test", bound=Callable[..., None])
DISPLAYED = re.compile(r"^\$\$\n(.*?)\n\$\$ \((eq-[\w-]+)\)$", re.MULTILINE | re.DOTALL)


class Chapter:
    """The equations of a page such as ``adaptive/adam``: on the page, and as they are tested; label -> LaTeX."""

    def __init__(self, page: str) -> None:
        text = (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")
        found = DISPLAYED.findall(text)
        self.equations = {label: " ".join(latex.split()) for latex, label in found}
        self.tested: dict[str, str] = {}
        # An equation without a label would be seen by no test.
        assert found, f"{page} has no displayed equation"
        assert len(self.equations) == len(found), f"{page}: a label stands twice"
        assert "```{math}" not in text, f"{page}: a displayed equation that no test sees: write it between $$"
        assert text.count("$$") == 2 * len(found), f"{page}: a displayed equation without a label"

    def equation(self, label: str, latex: str) -> Callable[[Test], Test]:
        """Tie a test to the equation that the page labels `label` and writes as `latex`."""
        assert label not in self.tested, f"{label} is tied twice"
        self.tested[label] = " ".join(latex.split())
        return lambda test: test
