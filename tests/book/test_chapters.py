"""How a paper's chapter opens: the idea, and under it what we found."""

import re
from pathlib import Path

import pytest

from experiments import claims

from .conftest import ROOT

CHAPTERS = sorted((ROOT / "book").glob("*/*.md"))
FOUND = "**What we found.** "


def test_every_paper_has_its_chapter() -> None:
    assert {path.stem for path in CHAPTERS} == set(claims.slugs()) - {"benchmark"}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_it_opens_with_what_was_found(path: Path) -> None:
    paragraphs = path.read_text(encoding="utf-8").split("\n\n")
    (place,) = (i for i, text in enumerate(paragraphs) if text.startswith("**The idea in one sentence.** "))
    found = [text for text in paragraphs if FOUND in text]
    assert found == [paragraphs[place + 1]], "once, and under the idea"
    assert found[0].startswith(FOUND)
    values = re.findall(r"\{value\}`([\w/]+):", found[0])
    assert len(values) <= 3, "at most three numbers"
    assert set(values) <= {path.stem}, "of the chapter's own record"
    plain = re.sub(r"\{value\}`[^`]*`|\$[^$]*\$", "", found[0])
    assert len(re.findall(r"\.(?=\s|$)", plain.removeprefix(FOUND))) in (2, 3), "two or three sentences"
    assert not re.search(r"\d\.\d|\d ?%", plain), "a number comes from the record"
