"""Every page in a real browser: light and dark, phone and desk, from files and from a server."""

from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import toc_pages

LOOKS = [(theme, width) for theme in ("light", "dark") for width in (390, 1280)]

# Everything below is asked of the page in one go.
RENDERED = """() => [...document.querySelectorAll('.math')].every(
    (formula) => formula.querySelector('mjx-container'))"""
FACTS = """() => {
  const label = (e) => e.outerHTML.slice(0, 160);
  const article = document.querySelector('article') || document.body;
  return {
    formulas: document.querySelectorAll('.math').length,
    containers: document.querySelectorAll('mjx-container').length,
    errors: [...document.querySelectorAll('mjx-merror')].map(label),
    scroll: document.documentElement.scrollWidth - window.innerWidth,
    images: [...document.querySelectorAll('img')].filter((i) => !i.alt.trim() || !i.naturalWidth).map(label),
    // Less the theme's own icons.
    drawings: [...article.querySelectorAll('svg:not([aria-hidden=true], .tb-icon, button *)')].filter((s) =>
        !s.querySelector('title')?.textContent.trim()).map(label),
    // sphinx-exercise and sphinx-proof call every body of theirs the same: "exercise-content".
    ids: [...document.querySelectorAll('[id]:not(.admonition *)')].map((e) => e.id)
        .filter((id, i, all) => all.indexOf(id) !== i),
    theme: document.documentElement.dataset.theme,
  };
}"""
# Contrast of every text of ours with what lies behind it, by WCAG's formula; the worst of each kind.
CONTRAST = """(selectors) => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (css) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (c) => {
    const [r, g, b] = c.map((x) => x / 255).map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const color = rgba(getComputedStyle(e).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const worst = {};
  for (const selector of selectors) for (const e of document.querySelectorAll(selector)) {
    const style = getComputedStyle(e);
    const color = rgba(e.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [a, b] = [luminance(color), luminance(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    worst[selector] = Math.min(worst[selector] ?? 99, ratio);
  }
  return worst;
}"""
OURS = [
    *(".verdict", ".outcome", ".no-result", ".claim-where", ".claim-note", ".criterion", ".measured"),
    *(".qualified", ".origin", ".was", ".chip", ".chapter-name", ".score-filter select"),
    *(".provenance", ".provenance code", ".evidence-files", "figcaption p", ".book-figure svg text"),
    *(".ot-name", ".ot-end", ".ot-summary", ".ot-row label", ".ot-row output"),
]


@pytest.fixture(scope="module")
def contexts(browser: Any) -> Iterator[dict[tuple[str, int], Any]]:
    """One browser profile per look, shared by all pages."""
    made = {
        look: browser.new_context(color_scheme=look[0], viewport={"width": look[1], "height": 900})
        for look in LOOKS
    }
    yield made
    for context in made.values():
        context.close()


@pytest.mark.parametrize("name", toc_pages())
@pytest.mark.parametrize("way", ["file", "http"])
def test_page(contexts: dict[tuple[str, int], Any], addresses: dict[str, str], way: str, name: str) -> None:
    for look in LOOKS:
        theme, _ = look
        page = contexts[look].new_page()
        troubles: list[str] = []
        page.on("console", lambda m, t=troubles: t.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error, t=troubles: t.append(str(error)))
        page.on("requestfailed", lambda request, t=troubles: t.append(f"failed: {request.url}"))
        page.on("response", lambda r, t=troubles: t.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.on(
            "request",
            lambda request, t=troubles: (
                None
                if request.url.startswith((addresses[way], "data:", "blob:"))
                else t.append(f"outside: {request.url}")
            ),
        )
        page.goto(f"{addresses[way]}/{name}.html", wait_until="load")
        page.wait_for_function(RENDERED, timeout=20_000)
        facts = page.evaluate(FACTS)
        where = f"{name}, {look}"
        assert troubles == [], where
        assert facts["theme"] == theme, where
        assert facts["errors"] == [], where
        assert facts["containers"] >= facts["formulas"], where
        assert facts["scroll"] <= 0, f"{where}: the page scrolls sideways by {facts['scroll']} px"
        assert facts["images"] == [], f"{where}: images that are broken or without alternative text"
        assert facts["drawings"] == [], f"{where}: drawings without a title"
        assert facts["ids"] == [], f"{where}: ids that stand twice"
        faint = {kind: ratio for kind, ratio in page.evaluate(CONTRAST, OURS).items() if ratio < 4.5}
        assert faint == {}, f"{where}: contrast below 4.5"
        page.close()


def test_search_quotes_the_article(contexts: dict[tuple[str, int], Any], addresses: dict[str, str]) -> None:
    """Not the window around it ("Contents", the buttons), and no hidden code."""
    page = contexts["light", 1280].new_page()
    page.goto(f"{addresses['http']}/search.html?q=lookahead")
    page.wait_for_selector("#search-results p.context")
    page.wait_for_function("() => document.querySelector('#search-results')?.innerText.includes('Search finished')")
    excerpts = page.locator("#search-results p.context").all_inner_texts()
    assert any("slow weights" in excerpt for excerpt in excerpts)
    assert not any(".pdf" in excerpt or "Contents" in excerpt or "Show code" in excerpt for excerpt in excerpts)
    page.close()


def test_the_scoreboard_is_filtered(contexts: dict[tuple[str, int], Any], addresses: dict[str, str]) -> None:
    """By verdict and kind; an address opens a claim, and so does the keyboard."""
    page = contexts["light", 390].new_page()
    page.goto(f"{addresses['file']}/book/scoreboard.html#score-adam-step-bound")
    opened = page.locator("#score-adam-step-bound")
    assert opened.get_attribute("open") is not None
    assert "longest step" in opened.inner_text()
    shown = page.locator(".cell:visible")
    everything = shown.count()
    page.select_option("select[name=verdict]", "refuted")
    assert {cell.get_attribute("data-verdict") for cell in shown.all()} == {"refuted"}
    assert page.inner_text(".score-filter output") == f"{shown.count()} of {everything} claims"
    page.select_option("select[name=kind]", "empirical")
    assert shown.count() == page.locator(".chapter:visible").count() == 0
    page.select_option("select[name=verdict]", "")
    assert {cell.get_attribute("data-kind") for cell in shown.all()} == {"empirical"}
    page.select_option("select[name=kind]", "")
    first = page.locator(".cell").first
    first.locator("summary").press("Enter")
    assert first.get_attribute("open") is not None
    page.close()


def test_there_are_formulas_and_figures(contexts: dict[tuple[str, int], Any], addresses: dict[str, str]) -> None:
    """The checks above could pass on an empty page."""
    page = contexts["light", 1280].new_page()
    page.goto(f"{addresses['file']}/book/adaptive/adam.html")
    page.wait_for_function(RENDERED)
    facts = page.evaluate(FACTS)
    assert facts["formulas"] > 20
    assert page.locator("mjx-container").count() > 20
    assert page.locator(".claim .verdict").count() >= 2
    assert page.locator(".book-figure svg").count() >= 3
    page.close()
