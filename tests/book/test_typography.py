"""What a page's text is set with: no line begins with the punctuation of a formula, and no letter is lost."""

import sys
from typing import Any

from docutils import nodes

from .conftest import ROOT

sys.path.insert(0, str(ROOT / "book/_ext"))
import book_typography


def test_punctuation_stays_with_its_formula_and_no_letter_is_lost() -> None:
    document: Any = nodes.paragraph("", "")
    document += [nodes.Text("so (see "), nodes.math("", "x"), nodes.Text("), and (")]
    document += [nodes.math("", "y"), nodes.Text(") too")]
    before = document.astext()
    transform: Any = book_typography.Unbroken.__new__(book_typography.Unbroken)
    transform.document = document
    transform.apply()
    assert document.astext() == before
    assert [whole.astext() for whole in document.findall(nodes.inline)] == ["x),", "(y)"]
