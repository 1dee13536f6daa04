"""Build the book: execute the chapters whose code or results changed, then run `jupyter-book build -W`.

    python book/build.py

What a chapter prints depends on its cells, on the project's code that they import, and on the records and claims
that they read: that is the key under which an executed chapter is kept in `_build/executed/`. The site is built
in `_build/site/` and takes its place as `_build/html/` by renaming, when it is whole.
"""

import ast
import asyncio
import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from jupyter_client.asynchronous.client import AsyncKernelClient
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from sphinx_external_toc.parsing import MalformedError, parse_toc_yaml

ROOT = Path(os.environ.get("BOOK_ROOT") or Path(__file__).resolve().parents[1])
BUILD = ROOT / "_build"
EXECUTED, SOURCE, SITE, HTML = BUILD / "executed", BUILD / "source", BUILD / "site", BUILD / "html"
# What pages include or link to with relative paths; the source tree has them at the same places as the repository.
LINKED = ("optimizers", "notebooks", "experiments", "results", "book/_ext", "book/_static", "book/claims")
# Of a kernel. One thread: the same digits everywhere.
SETTINGS = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
NO_RESULT = {"text/html": '<p class="no-result">(no result yet)</p>', "text/plain": "(no result yet)"}
sys.path.insert(0, str(ROOT))

from experiments import code_hash, console, environment, kernels, records, warm  # noqa: E402
from experiments.errors import UserError  # noqa: E402

# By name: a kernel says no more of an error.
USER_ERRORS = {"UserError", *(kind.__name__ for kind in UserError.__subclasses__())}


def main() -> int:
    """Build, and return the exit status. An interrupted or failed build leaves the old site in place."""
    began = time.monotonic()
    try:
        with only_build():
            pages = table_of_contents()
            asyncio.run(build(pages))
            publish_site()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a folder that may not be written to, a full disk
        where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: {where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"the book: {HTML / 'index.html'} ({len(pages)} pages, {time.monotonic() - began:.1f} s)")
    return 0


@contextlib.contextmanager
def only_build() -> Iterator[None]:
    """Wait until no other build runs: two at once would write the same files."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "book.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another build in this folder", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def table_of_contents() -> list[Path]:
    """The pages named in _toc.yml, as paths of Markdown files relative to the root."""
    for name in ("_config.yml", "book/equality.yaml", "_toc.yml"):
        try:
            if (ROOT / name).exists():
                yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    try:
        pages = [Path(name).with_suffix(".md") for name in parse_toc_yaml(ROOT / "_toc.yml")]
    except MalformedError as error:
        raise UserError(f"_toc.yml: {' '.join(str(error).split())}") from error
    missing = [str(page) for page in pages if not (ROOT / page).is_file()]
    if missing:
        raise UserError(f"_toc.yml names {', '.join(missing)}, which does not exist: write it or take it out")
    return pages


async def build(pages: list[Path]) -> None:
    """Execute what changed and build the site in `_build/site`; Sphinx starts while chapters are executed."""
    with sphinx() as process:
        chapters = {page: read_chapter(page) for page in pages if "{code-cell}" in (ROOT / page).read_text("utf-8")}
        keys = {page: key_of(page, notebook) for page, notebook in chapters.items()}
        stale = [page for page, key in keys.items() if not cached(page, key).exists()]
        failures = await execute_all({page: chapters[page] for page in stale}, keys)
        if failures:
            raise UserError("\n".join(failures))
        for page, notebook in chapters.items():
            fill(notebook, nbformat.read(cached(page, keys[page]), as_version=4))
        stage(pages, chapters)
        build_site(process)


def fill(notebook: NotebookNode, kept: NotebookNode) -> None:
    """Give a chapter the outputs that are kept. They answer for its code cells; the prose between is today's."""
    cells = [[cell for cell in book.cells if cell.cell_type == "code"] for book in (notebook, kept)]
    for cell, done in zip(*cells, strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
        if not cell.outputs and "figure" in cell.metadata.get("mystnb", {}):
            # A figure whose record is missing: its number and caption stay, or links to it would lead nowhere.
            cell.outputs = [nbformat.v4.new_output("display_data", NO_RESULT)]
    notebook.metadata["book"] = kept.metadata["book"]


def read_chapter(page: Path) -> NotebookNode:
    """A MyST notebook as a notebook without outputs; its cells have the same ids each time."""
    notebook = jupytext.read(ROOT / page, fmt="md:myst")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    return notebook


def key_of(page: Path, notebook: NotebookNode) -> str:
    """Hash of everything that the outputs depend on."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    source = "\n".join(cells)
    try:
        names = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
        # In other surroundings, other outputs: a kernel's are part of the code.
        code = code_hash.of_source(f"{source}\nfrom experiments import kernels", ROOT)
    except SyntaxError as error:
        raise UserError(
            f"{page}: its cells are not plain Python: {error.msg}: {error.text or ''}".strip()
        ) from error
    files = [path for pattern in ("results/*/*.json", "book/claims/*.yaml") for path in ROOT.glob(pattern)]
    whole = hashlib.sha256(f"{sys.version}\0{code}".encode())
    for package in ("torch", "numpy", "matplotlib"):
        whole.update(importlib.metadata.version(package).encode())
    for text in cells:  # one cell or two: the same code, other outputs
        whole.update(f"\0{text}".encode())
    for path in sorted(files):
        if path.stem == page.stem or path.stem in names:  # its own records and those that a cell names
            whole.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def cached(page: Path, key: str) -> Path:
    return EXECUTED / f"{page.with_suffix('').as_posix().replace('/', '-')}-{key}.ipynb"


async def execute_all(chapters: dict[Path, NotebookNode], keys: dict[Path, str]) -> list[str]:
    """Execute the chapters, one after the other in as many kernels as there are cores; a message per failure.

    They are forked from one process that imports torch and matplotlib, which takes longer than most chapters.
    """
    EXECUTED.mkdir(parents=True, exist_ok=True)
    waiting, failures = list(chapters), []

    async def work() -> None:
        async with kernel() as (manager, client):
            while waiting:
                page = waiting.pop(0)
                try:
                    await execute(page, chapters[page], cached(page, keys[page]), manager, client)
                except CellExecutionError as error:
                    if error.ename in USER_ERRORS:
                        failures.append(f"{page}: {error.evalue}")
                    else:
                        text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()
                        failures.append(f"{page}: a cell failed\n{text}")
                except (CellTimeoutError, DeadKernelError) as error:
                    failures.append(f"{page}: {str(error).strip().splitlines()[0]}")
                    return  # this kernel is of no more use

    workers = min(len(chapters), os.cpu_count() or 1)
    with contextlib.ExitStack() as stack:
        if workers > 1:  # alone, a kernel imports no more than a server
            stack.callback(os.environ.pop, warm.SERVER, None)
            os.environ |= stack.enter_context(warm.server(environment.child(**SETTINGS), warm.KERNEL))
        await asyncio.gather(*(work() for _ in range(workers)))
    return failures


@contextlib.asynccontextmanager
async def kernel() -> AsyncIterator[tuple[kernels.Kernel, AsyncKernelClient]]:
    """A kernel, and a client of it that is ready."""
    # Not in the repository, whose folder may hold a matplotlibrc.
    manager = kernels.Kernel(settings=SETTINGS)
    await manager.start_kernel(cwd=manager.folder)
    client = manager.client()
    client.start_channels()
    client.allow_stdin = False
    try:
        try:
            await client.wait_for_ready(timeout=300)
        except RuntimeError as error:
            raise UserError(f"a kernel did not start: {error}") from error
        yield manager, client
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


async def execute(
    page: Path, notebook: NotebookNode, target: Path, manager: kernels.Kernel, client: AsyncKernelClient
) -> None:
    """Execute one chapter in a kernel that may have executed others, and keep it whole or not at all."""
    print(f"executing {page}", flush=True)
    began = time.monotonic()
    notebook_client = NotebookClient(notebook, km=manager, timeout=300, record_timing=False)
    notebook_client.kc = client
    try:
        await notebook_client.async_execute()
    finally:
        client.execute("%reset -f", silent=True)  # the next chapter finds no names
    notebook.metadata["book"] = {"seconds": round(time.monotonic() - began, 1)}
    for old in EXECUTED.glob(f"{target.name.rpartition('-')[0]}-{'[0-9a-f]' * 16}.ipynb"):
        old.unlink()
    records.write_text(target, nbformat.writes(notebook))


def stage(pages: list[Path], executed: dict[Path, NotebookNode]) -> None:
    """The source tree for Sphinx: executed chapters and plain pages, and links to what they include.

    A file that would not change is not touched, so Sphinx reads again only what did.
    """
    wanted = {Path("_config.yml"), Path("_toc.yml"), Path("book/references.bib")} | set(pages)
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in wanted - set(executed)}
    texts |= {page.with_suffix(".ipynb"): nbformat.writes(notebook) for page, notebook in executed.items()}
    links = {Path(name) for name in LINKED if (ROOT / name).exists()}
    for folder, folders, files in os.walk(SOURCE, topdown=False, followlinks=False):
        for name in folders + files:
            path = Path(folder, name)
            if path.relative_to(SOURCE) in texts or (path.is_symlink() and path.relative_to(SOURCE) in links):
                continue
            if path.is_symlink() or not path.is_dir():
                path.unlink()  # of a link, never of what it leads to
            elif not any(path.iterdir()):
                path.rmdir()
    for relative, text in texts.items():
        path = SOURCE / relative
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            records.write_text(path, text)
    for relative in links:
        path = SOURCE / relative
        if not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.relpath(ROOT / relative, path.parent))


# jupyter-book, ready and waiting for a line. Three things took more than half of its time: pybtex searched all
# packages for every name in every reference, the garbage collector went through the trees of all pages again and
# again, and the interpreter took them apart at its end. Pages are read and written in twice as many processes as
# there are cores, for some are long; in one, where no system ends them with this one. Three extensions keep nothing
# of a page that would have to be merged, and do not say so.
JUPYTER_BOOK = """
import functools, gc, importlib, os, sys
import jupyter_book.sphinx, optimizers, pybtex.plugin, sphinx.application, sphinx_proof.domain, yaml
from experiments import warm
from jupyter_book.cli.main import main
own = yaml.safe_load(open("_config.yml", encoding="utf-8"))["sphinx"]
known = {*sphinx.application.builtin_extensions, *own["config"]["extensions"]} - set(own["local_extensions"])
for name in (*known, "myst_nb.sphinx_ext", "experiments.claims"):
    importlib.import_module(name)
pybtex.plugin._load_entry_point = functools.cache(pybtex.plugin._load_entry_point)
jobs = 2 * (os.cpu_count() or 1) if sys.platform == "linux" else 1
build_sphinx = jupyter_book.sphinx.build_sphinx
jupyter_book.sphinx.build_sphinx = functools.partial(build_sphinx, jobs=jobs)
for name in ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex"):
    module, safe = importlib.import_module(name), {"parallel_read_safe": True, "parallel_write_safe": True}
    module.setup = lambda app, setup=module.setup: setup(app) or safe
sphinx_proof.domain.ProofDomain.merge_domaindata = lambda *_: None
os.register_at_fork(after_in_child=warm.end_with_parent)
gc.set_threshold(1_000_000)
status = 1
try:
    if sys.stdin.readline():
        main()
except SystemExit as end:
    status = end.code
except BaseException:
    sys.excepthook(*sys.exc_info())
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""


@contextlib.contextmanager
def sphinx() -> Iterator[subprocess.Popen[str]]:
    """jupyter-book in a process that imports all it needs while chapters are executed, and waits for a line."""
    arguments = ["build", str(SOURCE), "--path-output", str(SITE), "-W", "--keep-going", "-q"]
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        [sys.executable, "-c", JUPYTER_BOOK, *arguments],
        cwd=ROOT,
        env=environment.child(PYTHONWARNINGS="ignore"),
        encoding="utf-8",
        errors="replace",
        **pipes,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def build_site(process: "subprocess.Popen[str]") -> None:
    """The site in `_build/site`, from scratch where the last build did not finish or its machinery changed."""
    stamp, now = SITE / "whole", machinery()
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != now:
        shutil.rmtree(SITE, ignore_errors=True)
    SITE.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    output = "".join(process.communicate("go\n"))
    if process.returncode:
        raise UserError(f"jupyter-book found fault with the book:\n{complaints(output)}")
    stamp.write_text(now, encoding="utf-8")


def complaints(output: str) -> str:
    """Warnings and errors as Sphinx gives them, with the paths of the repository; if none, what it said last."""
    text = re.sub(r"\x1b\[[\d;]*m", "", output).replace(f"{SOURCE}/", "")
    found = [line for line in text.splitlines() if re.search(r"WARNING|ERROR|CRITICAL", line)]
    said = re.split(r"Output Path:.*\n", text.partition("Traceback (most recent call last)")[0])[-1].strip()
    return "\n".join(found) or said or text


def machinery() -> str:
    """Hash of what changes every page: configuration, table of contents, packages, and what computes verdicts."""
    whole = hashlib.sha256(sys.version.encode())
    shared = [
        ROOT / "_config.yml",
        ROOT / "_toc.yml",
        *(ROOT / "book/_ext").glob("*.py"),
        *(path for path in (ROOT / "book/_static").rglob("*") if path.is_file()),
        *(ROOT / "experiments" / f"{name}.py" for name in ("claims", "code_hash", "records")),
    ]
    for path in sorted(shared):
        whole.update(path.read_bytes())
    for name in ("sphinx", "jupyter-book", "myst-nb", "sphinx-book-theme"):
        whole.update(importlib.metadata.version(name).encode())
    return whole.hexdigest()


def publish_site() -> None:
    """Copy the finished site beside its place, then rename: a reader never sees half of it."""
    new, old = BUILD / "html.new", BUILD / "html.old"
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)

    def copy(file: str, target: str) -> None:
        # Nothing writes to what is published, so what did not change can be shared with the last site.
        last = HTML / Path(target).relative_to(new)
        if last.is_file() and unchanged(os.stat(file), last.stat()):
            os.link(last, target)
        else:
            shutil.copy2(file, target)

    shutil.copytree(SITE / "_build" / "html", new, copy_function=copy)
    if HTML.exists():
        HTML.rename(old)
    new.rename(HTML)
    shutil.rmtree(old, ignore_errors=True)


def unchanged(a: os.stat_result, b: os.stat_result) -> bool:
    return (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)


if __name__ == "__main__":
    console.prepare()
    environment.adopt()
    sys.exit(main())
