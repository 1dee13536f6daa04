"""The built site, a server for it, and a browser, wherever one can be found."""

import functools
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
NO_BROWSER = (
    "NO BROWSER WAS FOUND: the pages were not looked at, only their files were checked. Install Chromium, or name "
    "one in the environment variable CHROMIUM, or run: playwright install chromium"
)


def toc_pages() -> list[str]:
    """The pages of _toc.yml, such as book/adaptive/adam."""

    def files(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield value
                else:
                    yield from files(value)
        elif isinstance(node, list):
            for item in node:
                yield from files(item)

    return list(files(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))


@functools.cache
def find_browser() -> str | None:
    """An executable: the environment's CHROMIUM, one on the PATH, or Playwright's own. None if there is none."""
    if named := os.environ.get("CHROMIUM"):
        return named
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if find_browser() is None:
        terminalreporter.section("site checks", red=True, bold=True)
        terminalreporter.write_line(NO_BROWSER, red=True, bold=True)


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the finished site."""
    if not (SITE / "index.html").is_file():
        pytest.fail(f"there is no site at {SITE}: run `make book`", pytrace=False)
    return SITE


@pytest.fixture(scope="module")  # no longer: while it lives, nothing else can run an event loop in this thread
def browser() -> Iterator[Any]:
    executable = find_browser()
    if executable is None:
        warnings.warn(NO_BROWSER, stacklevel=1)
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        running = playwright.chromium.launch(executable_path=executable, args=[*options, "--disable-sync"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def addresses(site: Path) -> Iterator[dict[str, str]]:
    """Where the site is, as files and from a server of our own."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"file": site.as_uri(), "http": f"http://127.0.0.1:{server.server_port}"}
    server.shutdown()
    server.server_close()
