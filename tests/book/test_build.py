"""Building the book: what is executed again and what is not, and that a failed or killed build changes nothing."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from experiments import records

from .conftest import ROOT

CHAPTER = """---
kernelspec: {name: python3, display_name: Python 3, language: python}
---
(sec:chapter)=
# A chapter

The answer is $x$, or {value}`tiny:answer`.

```{code-cell} ipython3
from tiny import ANSWER
from experiments import records
record = records.published("tiny")
print("answer", ANSWER)
```
"""
TOC = "format: jb-book\nroot: book/intro\nchapters:\n- file: book/part/chapter\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small book with this book's machinery."""
    for name in ("book/_ext", "book/_static", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("book/build.py", "_config.yml", "book/references.bib"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "book/part").mkdir()
    (tmp_path / "book/part/chapter.md").write_text(CHAPTER, encoding="utf-8")
    (tmp_path / "book/intro.md").write_text("# A book\n\nRead {doc}`part/chapter`.\n", encoding="utf-8")
    (tmp_path / "_toc.yml").write_text(TOC, encoding="utf-8")
    (tmp_path / "tiny.py").write_text('"""Tiny."""\n\nANSWER = 42\n', encoding="utf-8")
    return tmp_path


def command(project: Path) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key != "BOOK_ROOT"}
    return {"args": [sys.executable, "book/build.py"], "cwd": project, "env": environment, "text": True}


def build(project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command(project), capture_output=True, check=False)


def page(project: Path) -> str:
    return (project / "_build/html/book/part/chapter.html").read_text(encoding="utf-8")


def load(project: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module book/build.py, for the project given."""
    monkeypatch.setenv("BOOK_ROOT", str(project))
    spec = importlib.util.spec_from_file_location("book_build", project / "book/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_an_execution_depends_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = load(project, monkeypatch)
    name = Path("book/part/chapter.md")

    def key() -> str:
        return str(module.key_of(name, module.read_chapter(name)))

    def edit(path: str, old: str, new: str) -> None:
        file = project / path
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")

    first = key()
    edit("tiny.py", "ANSWER = 42", "ANSWER = 42  # of course")
    edit("tiny.py", '"""Tiny."""', '"""Another docstring."""')
    edit("book/part/chapter.md", "The answer is", "The true answer is")
    (project / "book/claims").mkdir()
    (project / "book/claims/other.yaml").write_text("another paper's claims", encoding="utf-8")
    assert key() == first, "comments, prose and other papers' files change no output"

    keys = {first}
    edit("tiny.py", "42", "43")
    keys.add(key())
    (project / "results/quick").mkdir(parents=True)
    (project / "results/quick/tiny.json").write_text("a record that a cell names", encoding="utf-8")
    keys.add(key())
    (project / "book/claims/chapter.yaml").write_text("the chapter's own claims", encoding="utf-8")
    keys.add(key())
    edit("book/part/chapter.md", 'print("answer", ANSWER)', 'print("answer", ANSWER + 1)')
    keys.add(key())
    assert len(keys) == 5, "code, records, claims and cells do"


@pytest.mark.timeout(600)
def test_build_failure_kill_and_change(project: Path) -> None:
    done = build(project)
    assert done.returncode == 0, done.stderr
    assert "executing book/part/chapter.md" in done.stdout
    assert "answer 42" in page(project)
    assert "(no result yet)" in page(project)

    # Nothing changed: nothing is executed. Prose changed: still nothing is, but the page is new. What stays the
    # same is shared with the last site, and never with the files that Sphinx writes to.
    html, written = project / "_build/html", project / "_build/site/_build/html"
    style, own = "_static/custom.css", "book/part/chapter.html"
    before = {name: (html / name).stat().st_ino for name in (style, own)}
    chapter = project / "book/part/chapter.md"
    chapter.write_text(CHAPTER.replace("The answer", "The final answer"), encoding="utf-8")
    done = build(project)
    assert (done.returncode, "executing" in done.stdout) == (0, False), done.stderr
    assert "The final answer" in page(project)
    assert (html / style).stat().st_ino == before[style]
    assert (html / own).stat().st_ino != before[own]
    assert not any((html / name).samefile(written / name) for name in (style, own))

    # A link to nowhere is a failure, told in one place, and the old site stays.
    chapter.write_text(CHAPTER + "\nSee {ref}`nowhere`.\n", encoding="utf-8")
    done = build(project)
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert "The final answer" in page(project)

    # So is a cell that fails.
    chapter.write_text(CHAPTER.replace('print("answer", ANSWER)', "print(1 / 0)"), encoding="utf-8")
    done = build(project)
    assert done.returncode == 1
    assert "book/part/chapter.md: a cell failed" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "The final answer" in page(project)

    # Killed while jupyter-book writes: the next build starts over, and is right.
    chapter.write_text(CHAPTER.replace("The answer", "The last answer"), encoding="utf-8")
    process = subprocess.Popen(
        **command(project), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    site = project / "_build/site"
    deadline = time.monotonic() + 120
    while not (site / "_build/html").is_dir():
        assert process.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (site / "whole").exists()
    assert "The final answer" in page(project)
    assert not list((project / "_build/executed").glob("*.part"))
    done = build(project)
    assert done.returncode == 0, done.stderr
    assert "The last answer" in page(project)


@pytest.mark.timeout(600)
def test_pages_that_are_read_side_by_side(project: Path) -> None:
    # From six pages on, other processes read and write them: what these find must not be lost.
    names = [f"book/part/page{number}" for number in range(6)]
    for name in names:
        (project / f"{name}.md").write_text(f"# {name}\n\n{{cite:p}}`kingma2015adam`\n", encoding="utf-8")
    (project / "_toc.yml").write_text(TOC + "".join(f"- file: {name}\n" for name in names), encoding="utf-8")
    for name in (names[1], names[4]):
        text = "# References\n\n{cite:p}`kingma2015adam`\n\n```{bibliography}\n:filter: docname in docnames\n```\n"
        (project / f"{name}.md").write_text(text, encoding="utf-8")
    wrong = project / f"{names[3]}.md"
    wrong.write_text("# Wrong\n\n{value}`no-colon`\n", encoding="utf-8")
    done = build(project)
    assert done.returncode == 1
    assert "book/part/page3.md" in done.stderr
    assert "write it as slug:metric" in done.stderr
    wrong.write_text("# Right\n\n{value}`tiny:answer`\n", encoding="utf-8")
    assert build(project).returncode == 0
    html = project / "_build/html"
    places = {name: (html / f"{name}.html").stat().st_ino for name in names}
    assert "(no result yet)" in (html / f"{names[3]}.html").read_text(encoding="utf-8")
    assert "page4.html#" in (html / f"{names[0]}.html").read_text(encoding="utf-8")

    # A record makes the pages that read it outdated, and no other; a list that is edited does not draw citations.
    record = records.Record("tiny", "quick", {}, metrics={"answer": 42.0})
    records.write(record, project / "results/quick/tiny.json")
    for name in names[:2]:
        edited = (project / f"{name}.md").read_text(encoding="utf-8") + "\nEdited.\n"
        (project / f"{name}.md").write_text(edited, encoding="utf-8")
    assert build(project).returncode == 0
    changed = [name for name in names if (html / f"{name}.html").stat().st_ino != places[name]]
    assert names[3] in changed
    assert names[5] not in changed
    assert "42" in (html / f"{names[3]}.html").read_text(encoding="utf-8")
    cited = (html / f"{names[0]}.html").read_text(encoding="utf-8")
    assert "Edited" in cited
    assert "page4.html#" in cited


SURROUNDINGS = """
```{code-cell} ipython3
import os, matplotlib
print("found", matplotlib.rcParams["lines.linewidth"], "planted" in globals(), os.environ["LANG"], os.getcwd()[:12])
```
"""


def test_a_chapter_sees_none_of_its_readers_settings(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    long = home / ("long" * 25)
    long.mkdir()
    startup = home / ".ipython/profile_default/startup/00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("planted = 1\nprint('planted')\n", encoding="utf-8")
    for folder in (project, home):
        (folder / "matplotlibrc").write_text("lines.linewidth: 17\n", encoding="utf-8")
    chapter = project / "book/part/chapter.md"
    chapter.write_text(CHAPTER + SURROUNDINGS, encoding="utf-8")
    settings = {"HOME": str(home), "MATPLOTLIBRC": str(home), "TMPDIR": str(long), "PYTHONIOENCODING": "ascii"}
    given = command(project)
    given["env"] |= settings | {"LC_ALL": "C", "JUPYTER_PATH": str(home), "PYTHONOPTIMIZE": "2"}
    done = subprocess.run(**given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    text = page(project)
    assert "found 1.5 False C.UTF-8 /tmp/kernel-" in text
    assert "answer 42" in text
    # What was kept under other settings, when they still reached a chapter, is not used again.
    module = project / "experiments/environment.py"
    module.write_text(module.read_text(encoding="utf-8") + "\nOTHER = 1\n", encoding="utf-8")
    assert "executing book/part/chapter.md" in build(project).stdout


def test_what_computes_a_verdict_is_part_of_every_page(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(project, monkeypatch)
    (project / "book/_static/more").mkdir()
    before = module.machinery()
    for name in ("experiments/claims.py", "experiments/records.py", "book/_ext/book_values.py", "_toc.yml"):
        path = project / name
        path.write_text(path.read_text(encoding="utf-8") + "\n# another\n", encoding="utf-8")
        assert module.machinery() != before, name
        before = module.machinery()
    (project / "experiments/run.py").write_text("", encoding="utf-8")
    assert module.machinery() == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DeadKernelError("Kernel died"), "Kernel died"),
        (CellTimeoutError("A cell timed out\nafter 300 s"), "A cell timed out"),
    ],
)
def test_a_kernel_that_dies_is_one_line_that_names_the_page(
    project: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    module = load(project, monkeypatch)

    async def execute(*_: object) -> None:
        raise error

    @contextlib.asynccontextmanager
    async def kernel() -> AsyncIterator[tuple[None, None]]:
        yield None, None

    monkeypatch.setattr(module, "execute", execute)
    monkeypatch.setattr(module, "kernel", kernel)
    page = Path("book/part/chapter.md")
    failures = asyncio.run(module.execute_all({page: None}, {page: "0" * 16}))
    assert failures == [f"book/part/chapter.md: {message}"]


@pytest.mark.parametrize(
    ("toc", "message"),
    [("format: jb-book\nchapters: [", "_toc.yml is not YAML"), ("format: jb-book\nchapters: []\n", "_toc.yml: ")],
)
def test_a_table_of_contents_that_is_none(project: Path, toc: str, message: str) -> None:
    (project / "_toc.yml").write_text(toc, encoding="utf-8")
    done = build(project)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith(f"error: {message}")


def test_a_page_that_is_missing_is_named(project: Path) -> None:
    (project / "_toc.yml").write_text(TOC + "- file: book/part/missing\n", encoding="utf-8")
    done = build(project)
    assert done.returncode == 1
    assert "book/part/missing.md" in done.stderr
    assert len(done.stderr.splitlines()) == 1
