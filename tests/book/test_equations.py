"""The check that ties a page's equations to their tests: it must fail where one of the two is alone."""

from pathlib import Path

import pytest

from . import equations
from .conftest import ROOT, toc_pages
from .equations import Chapter

PAGE = "# A page\n\n$$\na = b +\n  c\n$$ (eq-page-sum)\n"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(equations, "ROOT", tmp_path)
    (tmp_path / "book").mkdir()
    path = tmp_path / "book" / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_an_equation_and_its_test_belong_together(page: Path) -> None:
    chapter = Chapter("page")
    assert chapter.equations == {"eq-page-sum": "a = b + c"}  # line breaks do not count
    assert chapter.tested != chapter.equations
    chapter.equation("eq-page-sum", "a = b + c")
    assert chapter.tested == chapter.equations
    page.write_text(PAGE.replace("c\n", "d\n"), encoding="utf-8")
    assert chapter.tested != Chapter("page").equations
    with pytest.raises(AssertionError, match="tied twice"):
        chapter.equation("eq-page-sum", "a = b + c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# A page\n", "no displayed equation"),
        (PAGE + "\n$$\nx = y\n$$\n", "without a label"),
        (PAGE + PAGE, "stands twice"),
    ],
)
def test_an_equation_that_no_test_could_see(page: Path, text: str, message: str) -> None:
    page.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError, match=message):
        Chapter("page")


def test_every_page_with_equations_has_its_tests() -> None:
    # The errata quote the papers' rules; test_errata.py runs the page's own cells against the package.
    for name in set(toc_pages()) - {"book/errata"}:
        if "$$ (eq-" in (ROOT / f"{name}.md").read_text(encoding="utf-8"):
            assert (ROOT / f"tests/book/test_equations_{Path(name).name}.py").is_file(), name
