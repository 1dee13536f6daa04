"""Run one notebook: check its parameters, execute it, and give its record a final name only when all is well.

A run happens in a folder of its own under `_build/work/`. The record and the executed notebook are renamed into
place at the very end, the record last: whatever is killed, and whenever, no half result carries a final name.
"""

import contextlib
import fcntl
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import records, script
from experiments.errors import RecordError, UserError
from experiments.records import SCALES

if TYPE_CHECKING:  # what executes notebooks is imported where that is done: a machine with a GPU may lack it
    import nbformat

RELAY_EVERY = 10  # seconds between two lines of progress


def slugs() -> list[str]:
    """The notebooks there are, sorted."""
    return sorted(path.stem for path in (records.ROOT / "notebooks").glob("*.py"))


def check_words(scale: str, *chosen: str) -> None:
    """UserError naming the valid words for a scale or a slug that does not exist."""
    if scale not in SCALES:
        raise UserError(f"there is no scale {scale!r}; there are {', '.join(SCALES)}")
    for slug in chosen:
        if slug not in slugs():
            there = ", ".join(slugs()) or "none"
            raise UserError(f"there is no notebook {slug!r}; there are {there} in notebooks/")


def check_device(device: Any) -> None:
    """UserError for a device that torch does not know, or that is not there."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"there is no device {device!r} here: write cpu, or cuda or cuda:1 on a machine with GPUs"
        ) from error


def check_seeds(seeds: Any) -> None:
    """UserError for what is not a list of seeds."""
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    ):
        raise UserError(f"seeds must be a list of whole numbers from 0 on, such as [0, 1, 2], not {seeds!r}")


def defaults(slug: str) -> dict[str, Any]:
    """The parameters of a notebook with the values in the file, which must be literals."""
    return _defaults(_load(slug), slug)


def is_current(slug: str, scale: str, device: str | None = None) -> bool:
    """Whether this machine has a whole record of today's code (and, where one is asked for, of that device)."""
    try:
        record = records.local(slug, scale)
    except RecordError:  # damaged or edited: as good as none
        return False
    return (
        record is not None
        and record.is_of(records.code_today(slug, scale))
        and device in (None, record.provenance["device"])
    )


def run(slug: str, scale: str, parameters: Mapping[str, Any] | None = None) -> Path:
    """Execute a notebook; returns the record's path, with the executed notebook beside it.

    A run with parameters of its own (other than `device`) is a trial: it lands in `_build/trials/`, where neither
    the book nor `publish` looks. Raises UserError for an unknown parameter, a failing cell, or a missing record.
    """
    check_words(scale, slug)
    parameters = dict(parameters or {})
    notebook = _load(slug)
    known = _defaults(notebook, slug)
    for name in parameters:
        if name in ("scale", "out") or name not in known:
            valid = ", ".join(key for key in known if key not in ("scale", "out"))
            raise UserError(f"notebooks/{slug}.py has no parameter {name!r} to set; it has {valid}")
    if "device" in parameters:
        check_device(parameters["device"])
    if "seeds" in parameters:
        check_seeds(parameters["seeds"])
    trial = bool(set(parameters) - {"device"})
    changed = {name: value for name, value in {**parameters, "scale": scale}.items() if known[name] != value}
    folder = records.ROOT / "_build" / ("trials" if trial else "results") / scale
    final = folder / f"{slug}.json"
    with _workplace(f"{folder.parent.name}-{scale}-{slug}") as work:
        executed = _execute(notebook, work, slug, scale, changed)
        record = records.read(work / known["out"]) if (work / known["out"]).exists() else None
        if record is None or (record.slug, record.scale) != (slug, scale):
            raise UserError(f"notebooks/{slug}.py wrote no record of {slug} at scale {scale} to {known['out']!r}")
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(executed, final.with_suffix(".ipynb"))
        os.replace(work / known["out"], final)
    return final


def tidy(notebook: "nbformat.NotebookNode") -> "nbformat.NotebookNode":
    """Take out, in place, what differs between two equal runs: random cell ids and papermill's times."""
    for key in ("papermill", "language_info"):
        notebook.metadata.pop(key, None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    return notebook


def read_notebook(path: Path) -> "nbformat.NotebookNode":
    """The notebook in a file, in the current format; UserError where it is damaged."""
    import nbformat

    try:
        notebook: nbformat.NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise UserError(f"{path} is not a whole notebook: delete it and run the experiment again") from error
    return notebook


def write_notebook(notebook: "nbformat.NotebookNode", path: Path) -> None:
    """Write a notebook whole or not at all."""
    import nbformat

    records.write_text(path, nbformat.writes(notebook) + "\n")  # type: ignore[no-untyped-call]


def _source(slug: str) -> Path:
    return records.ROOT / "notebooks" / f"{slug}.py"


def _load(slug: str) -> "nbformat.NotebookNode":
    import jupytext

    try:
        return tidy(jupytext.read(_source(slug)))
    except UnicodeDecodeError as error:
        raise UserError(f"notebooks/{slug}.py is not a text file in UTF-8 ({error})") from error


def _defaults(notebook: "nbformat.NotebookNode", slug: str) -> dict[str, Any]:
    cells = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise UserError(f"notebooks/{slug}.py has {len(cells)} cells with the tag `parameters`; it needs one")
    return script.literals(cells[0], slug)


@contextlib.contextmanager
def _workplace(name: str) -> Iterator[Path]:
    """A fresh folder that no other run uses. What a killed run left there goes; a living one is a UserError."""
    place = records.ROOT / "_build" / "work" / name
    with lock(place.with_suffix(".lock"), f"{name} is already running"):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def lock(path: Path, message: str) -> Iterator[int]:
    """Hold a lock that the system takes back however this process ends; UserError(message) if another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(message) from error
        yield file.fileno()


def _execute(
    notebook: "nbformat.NotebookNode", work: Path, slug: str, scale: str, parameters: dict[str, Any]
) -> Path:
    """Execute in `work`, the kernel's folder, and return the executed notebook's path."""
    import papermill
    from nbclient.exceptions import CellExecutionError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    from experiments.kernels import Kernel

    source, executed, progress = work / "source.ipynb", work / f"{slug}.ipynb", work / "progress.log"
    write_notebook(notebook, source)
    threads = parameters.get("threads", _defaults(notebook, slug).get("threads", 1))
    config = {
        # Killed after the last cell: the polite way interrupts a kernel first, and it may say so on the screen.
        "NotebookClient": {"kernel_manager_class": Kernel, "shutdown_kernel": "immediate"},
        "Kernel": {"settings": {"EXPERIMENT_PROGRESS": str(progress), "OMP_NUM_THREADS": str(threads)}},
    }
    verbatim = [str(path).replace("{", "{{").replace("}", "}}") for path in (source, executed)]  # else it fills in
    try:
        with _relay(progress, f"{slug} ({scale})"):
            papermill.execute_notebook(
                *verbatim,
                parameters=parameters,
                cwd=work,
                kernel_name="python3",
                progress_bar=False,
                start_timeout=300,  # many that start at once, on a machine that has much to do
                config=Config(config),
            )
    except (PapermillExecutionError, CellExecutionError, RuntimeError) as error:
        # RuntimeError: the kernel died, or did not start.
        kept = records.ROOT / "_build" / "failed" / scale / executed.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(executed if executed.exists() else source, kept)
        reason = str(error) if isinstance(error, RuntimeError) else f"{error.ename}: {error.evalue}"
        lines = reason.strip().splitlines() or ["no reason given"]
        raise UserError(f"{slug} failed at scale {scale}: {lines[0]} (as far as it got: {kept})") from error
    write_notebook(tidy(read_notebook(executed)), executed)
    return executed


@contextlib.contextmanager
def _relay(progress: Path, name: str) -> Iterator[None]:
    """While the notebook runs, print the newest line of its progress file now and then."""
    done, began = threading.Event(), time.monotonic()

    def watch() -> None:
        shown = ""
        while not done.wait(RELAY_EVERY):
            lines = progress.read_text(encoding="utf-8").splitlines() if progress.exists() else []
            if lines and lines[-1] != shown:
                shown = lines[-1]
                elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - began))
                print(f"{elapsed}  {name}: epoch {len(lines)} in all; {shown}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
