"""The built site's files: what can be checked without a browser."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from experiments import claims, records

from .conftest import ROOT, toc_pages

# What makes a browser fetch something when the page opens; a link that a reader may follow is no such thing.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


class Page(HTMLParser):
    """What the checks need to know of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.classes: Counter[str] = Counter()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.add(str(given["id"]))
        self.classes.update((given.get("class") or "").split())
        address = given.get(FETCHED.get(tag, ""))
        if address and given.get("rel") not in ("canonical", "search", "index", "next", "prev"):
            self.fetched.append(address)
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        if tag == "img":
            self.images.append(given)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {name: Page((site / f"{name}.html").read_text(encoding="utf-8")) for name in toc_pages()}


def test_every_page_of_the_table_of_contents_is_there(site: Path) -> None:
    assert [name for name in toc_pages() if not (site / f"{name}.html").is_file()] == []
    front = (site / "index.html").read_text(encoding="utf-8")
    assert "book/intro.html" in front


def test_nothing_is_fetched_from_elsewhere(pages: dict[str, Page], site: Path) -> None:
    outside = {name: [a for a in page.fetched if urlsplit(a).netloc] for name, page in pages.items()}
    assert {name: found for name, found in outside.items() if found} == {}
    for sheet in site.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", sheet.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^)\"']+)", text) == [], sheet


def test_every_link_within_the_site_leads_somewhere(pages: dict[str, Page], site: Path) -> None:
    """Records, notebooks, chapters and their sections."""
    for name, page in pages.items():
        folder = (site / name).parent
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            if not parts.path:
                assert not parts.fragment or unquote(parts.fragment) in page.ids, f"{name}: {link}"
                continue
            target = (folder / unquote(parts.path)).resolve()
            assert target.is_file(), f"{name}: {link}"
            other = pages.get(target.relative_to(site.resolve()).with_suffix("").as_posix())
            if parts.fragment and other is not None:
                assert unquote(parts.fragment) in other.ids, f"{name}: {link}"


def test_every_image_has_alternative_text(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        assert all((image.get("alt") or "").strip() for image in page.images), name


def test_every_figure_has_a_title(site: Path) -> None:
    for name in toc_pages():
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        drawings = re.findall(r'<div class="book-figure\b.*?</div>', text, flags=re.DOTALL)
        assert drawings or "figures.show(" not in (ROOT / f"{name}.md").read_text(encoding="utf-8"), name
        for drawing in drawings:
            assert re.search(r'<svg role="img".*?<title id="[^"]+">[^<]{10,}</title>', drawing, flags=re.DOTALL), (
                name
            )


def test_no_markup_is_left_over(site: Path) -> None:
    """A role or directive that nobody knows would stand in the text as it was typed."""
    for name in toc_pages():
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        body = re.sub(r"<(script|style|pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert re.findall(r"\{(?:value|doc|ref|numref|eq|cite:\w+|claims|provenance)\}", body) == [], name
        assert "problematic" not in Page(text).classes, name


def test_every_number_of_the_prose_is_there(pages: dict[str, Page]) -> None:
    """Each {value} of a page's source is a number from a record, or says that there is none."""
    for name, page in pages.items():
        source = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        used = re.findall(r"\{value\}`(\w+)(?:/\w+)?:", source)
        assert page.classes["value"] == len(used), name


def test_every_claim_is_on_the_scoreboard(site: Path) -> None:
    """In reading order, each with its own verdict and the way to its card."""
    text = (site / "book/scoreboard.html").read_text(encoding="utf-8")
    cells = re.findall(r"<details class='cell'.*?</details>", text, flags=re.DOTALL)
    chapters = [name.rpartition("/")[2] for name in toc_pages()]
    assert set(claims.slugs()) <= set(chapters)
    expected = {
        (slug, claim.id): claim for slug in chapters if slug in claims.slugs() for claim in claims.load(slug)
    }
    found = [re.findall(r"#claim-(\w+)-([\w-]+)", cell) for cell in cells]
    assert sorted(place for (place,) in found) == sorted(expected)
    order = [slug for ((slug, _),) in found]
    assert order == sorted(order, key=chapters.index)
    for ((slug, id_),), cell in zip(found, cells, strict=True):
        verdict = expected[slug, id_].verdict(records.published(slug))
        assert verdict is not None, slug
        assert re.findall(r'class="verdict verdict-([\w-]+)"', cell) == [verdict.word.replace(" ", "-")], cell
        assert f"data-verdict='{verdict.word}' data-kind='{expected[slug, id_].kind}'" in cell


def test_the_totals_count_every_claim_once(site: Path) -> None:
    """Exact and empirical apart, and the book's own apart from the papers'."""
    text = (site / "book/scoreboard.html").read_text(encoding="utf-8")
    body = text.split('<table class="totals')[1].split("<tbody>")[1].split("</tbody>")[0]
    *rows, last = (re.findall(r'<p class="count">(\S+)</p>', row) for row in body.split("</tr>")[:-1])
    columns = [[0 if cell == "·" else int(cell) for cell in column] for column in zip(*rows, strict=True)]
    assert list(map(sum, columns)) == list(map(int, last))
    everything = [claim for slug in claims.slugs() for claim in claims.load(slug)]
    kinds = Counter("own" if claim.own else claim.kind for claim in everything)
    assert list(map(int, last)) == [kinds["exact"], kinds["empirical"], kinds["own"]]
    changed = sum(claim.changed for claim in everything)
    assert f"{changed} of {len(everything)} claims" in text


def test_every_cited_paper_is_in_the_bibliography(site: Path) -> None:
    keys = set(
        re.findall(r"^@\w+\{([^,]+),", (ROOT / "book/references.bib").read_text("utf-8"), flags=re.MULTILINE)
    )
    assert {claim.paper for slug in claims.slugs() for claim in claims.load(slug)} <= keys
    listed = Page((site / "book/bibliography.html").read_text(encoding="utf-8")).classes["citation"]
    assert 21 <= listed <= len(keys)


def test_the_sites_records_are_the_published_ones(site: Path) -> None:
    published = sorted((ROOT / "results").glob("*/*.json"))
    for path in published:
        assert (site / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path
    copied = sorted(path.relative_to(site) for path in (site / "results").glob("*/*.json"))
    assert copied == [path.relative_to(ROOT) for path in published]


def test_configuration_executes_nothing_itself() -> None:
    """jupyter-book's own cache shows stale numbers: it does not see a changed import."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["execute"]["execute_notebooks"] == "off"
    assert "sphinx_thebe" not in config["sphinx"]["config"]["extensions"]
