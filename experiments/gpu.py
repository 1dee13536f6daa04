"""`python -m experiments gpu`: what only a GPU can run, in order of value, within the minutes that there are.

First a smoke test of everything that runs on a device (`smoke`), then how fast the compiled step is on it
(`kernels_on_gpu`), then the benchmark's 18 optimizers × 3 seeds on
CIFAR-10 and on MNIST, packed so that the card is full (`packed`), then the chapters at scale `paper`, the shortest
first. Each record is written as it is done, below FOLDER as below `_build/`, and packed with all others into one
archive. What is there is not run again, so the same command takes up what is missing. A failure is one line, and
the rest goes on. It needs torch, torchvision and NumPy alone, and the data sets in `DATA_DIR`.

    python -m experiments gpu --minutes 11 --out FOLDER       # tar xf FOLDER/gpu.tar -C _build, where publish looks
"""

import contextlib
import gc
import json
import math
import os
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from experiments import (
    benchmark,
    chapters,
    code_hash,
    environment,
    kernels_on_gpu,
    mixes,
    packed,
    packing,
    records,
    run,
    smoke,
)
from experiments.errors import UserError
from experiments.records import Record
from experiments.runs import Settings

STAGES = ("smoke", "kernels", "cifar10", "mnist", "chapters")  # in order of value
SEEDS = (0, 1, 2)
GRACE = 5  # seconds that the end takes
WIDTHS = {"cnn": (2, 4, 8), "mlp": (8, 16, 24)}  # of which the smallest that is nearly the fastest is taken


@dataclass
class Session:
    """One call: where it writes, how long it may, and what came of everything."""

    out: Path
    device: str
    scale: str
    deadline: float
    dry: bool
    capture: bool
    results: list[tuple[str, str, str]] = field(default_factory=list)  # stage; done, failed, …; what
    seconds: Counter[str] = field(default_factory=Counter)

    @property
    def left(self) -> float:
        """Seconds until everything must have ended."""
        return self.deadline - time.monotonic() - GRACE

    @property
    def folder(self) -> Path:
        return self.out / "results" / self.scale

    def tell(self, stage: str, outcome: str, what: str, more: str = "") -> None:
        """Note and print what came of something, and bring the archive up to date where something was written."""
        self.results.append((stage, outcome, what))
        self.say(f"{stage}: {what}, {outcome}" + (f": {more}" if more else ""))
        if outcome == "done":
            self.pack()

    def say(self, text: str) -> None:
        print(f"{max(0.0, self.left):4.0f} s left  {text}", flush=True)

    def pack(self) -> None:
        """All that was written, as one file, whole at any time."""
        descriptor, temporary = tempfile.mkstemp(dir=self.out, prefix=".gpu-", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            for name in ("smoke.json", "kernels.json", "summary.txt", f"results/{self.scale}", "failed"):
                if (self.out / name).exists():
                    archive.add(self.out / name, name)
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.out / "gpu.tar")


def gpu(
    *, minutes: float, out: str | None, device: str, only: Sequence[str], dry_run: bool, eager: bool = False
) -> str:
    """Do what the minutes allow and return the table of what was done; UserError where something failed.

    A dry run takes the same way at toy size on the CPU, but for graphs and streams.
    """
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes must be a number above 0, not {minutes}")
    if unknown := [word for word in only if word not in (*STAGES, *run.slugs())]:
        raise UserError(
            f"there is nothing called {unknown[0]!r} to run; there are {', '.join((*STAGES, *run.slugs()))}"
        )
    device = "cpu" if dry_run else device
    run.check_device(device)
    folder = Path(out).resolve() if out else records.ROOT / "_build"
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * minutes
    session = Session(folder, device, "quick" if dry_run else "paper", deadline, dry_run, capture=not eager)
    slugs = [slug for slug in run.slugs() if not only or "chapters" in only or slug in only]
    steps: dict[str, Callable[[], None]] = {
        "smoke": lambda: _smoke(session),
        "kernels": lambda: _kernels(session),
        "cifar10": lambda: _benchmark(session, "cifar10"),
        "mnist": lambda: _benchmark(session, "mnist"),
        "chapters": lambda: chapters.all_of(session, slugs),
    }
    for stage, step in steps.items():
        if not only or stage in only or (stage == "chapters" and slugs):
            began = time.monotonic()
            step()
            session.seconds[stage] = round(time.monotonic() - began)
    text = _summary(session)
    records.write_text(folder / "summary.txt", text + "\n")
    session.pack()
    if failed := [what for _, outcome, what in session.results if outcome == "failed"]:
        print(text)
        raise UserError(f"{len(failed)} failed: {', '.join(failed)}")
    return text


def _summary(session: Session) -> str:
    outcomes = list(dict.fromkeys(["done", "failed", *(outcome for _, outcome, _ in session.results)]))
    rows = [("", *outcomes, "seconds")]
    for stage, seconds in session.seconds.items():
        counts = Counter(outcome for name, outcome, _ in session.results if name == stage)
        rows.append((stage, *(str(counts[outcome]) for outcome in outcomes), str(seconds)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*table, f"records in {session.out}, all of them in {session.out / 'gpu.tar'}"])


def _smoke(session: Session) -> None:
    """Every check that has not passed with this code on this device."""
    path, stamp = session.out / "smoke.json", _stamp(session, "smoke")
    found = {check["name"]: check for check in _known(path, stamp, "checks")}
    missing = [name for name in smoke.names() if not found.get(name, {}).get("ok")]
    checks = smoke.run(session.device, missing)
    with contextlib.closing(checks):
        for check in checks:
            found[check["name"]] = check
            content = {"of": stamp, "checks": list(found.values())}
            records.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            if not check["ok"]:
                session.tell("smoke", "failed", check["name"], check["error"])
            if session.left <= 0:
                break
    passed = [name for name, check in found.items() if check["ok"]]
    session.tell("smoke", "done", f"{len(passed)} of {len(smoke.names())} checks passed")


def _stamp(session: Session, module: str) -> dict[str, str]:
    """What the results of a module depend on."""
    named = torch.cuda.get_device_name(session.device) if session.device.startswith("cuda") else session.device
    code = code_hash.of_source(f"from experiments import {module}", environment.CODE)
    return {"device": named, "torch": torch.__version__, "code_hash": code}


def _known(path: Path, stamp: dict[str, str], name: str) -> list[dict[str, Any]]:
    """The results that a file has, if they are of this code on this device."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return list(known[name]) if known["of"] == stamp else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _kernels(session: Session) -> None:
    """The speed of the compiled step, unless it is known, with this code on this device."""
    path, stamp = session.out / "kernels.json", _stamp(session, "kernels_on_gpu")
    if _known(path, stamp, "rows"):
        session.tell("kernels", "up to date", "the compiled step")
        return
    found: list[dict[str, Any]] = []

    def keep(name: str) -> None:
        content = {"of": stamp, name: found}
        records.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    with contextlib.closing(kernels_on_gpu.rows(torch.device(session.device), session.dry)) as rows:
        while session.left > 0 and (row := next(rows, None)):
            found.append(row)
            session.say(f"kernels: {kernels_on_gpu.said(row)}")
            keep("some")
        if session.left <= 0:
            session.tell("kernels", "out of time", "what was not measured")
            return
    keep("rows")
    failed = [kernels_on_gpu.said(row) for row in found if "error" in row]
    for text in failed:
        session.tell("kernels", "failed", text)
    session.tell("kernels", "done", f"{len(found) - len(failed)} of {len(found)} rows measured")


def _settings(session: Session, dataset: str) -> Settings:
    """Those of the notebook `benchmark` at scale paper, whose records these are; at toy size in a dry run."""
    model = "cnn" if dataset == "cifar10" else "mlp"
    common: Any = {"model": model, "lr_schedule": True, "device": session.device}
    common["precision"] = "bfloat16" if dataset == "cifar10" else "float32"
    if session.dry:
        return Settings("digits", num_epochs=2, num_train=72, num_val=40, batch_size=32, **common)
    return Settings(dataset, num_epochs=30, num_train=50000, num_val=2048, **common)


def _benchmark(session: Session, stage: str) -> None:
    """The 18 optimizers with every seed: all with the first, then all with the next."""
    settings, folder = _settings(session, stage), session.folder / "benchmark"
    chosen = mixes.parse(", ".join(benchmark.LABELS))
    seeds = SEEDS[:1] if session.dry else SEEDS
    todo = [job for seed in seeds for job in benchmark.jobs(chosen, settings, [seed])]
    try:
        missing = [job for job in todo if job.done(folder) is None]
        if len(missing) < len(todo):
            session.tell(stage, "up to date", f"{len(todo) - len(missing)} runs")
        if missing and session.left > 0:
            _train(session, stage, missing, folder)
        elif missing:
            session.tell(stage, "out of time", f"{len(missing)} runs")
    except Exception as error:  # no data, or a device that has had enough
        session.tell(stage, "failed", "all that was left", _reason(error))
    finally:
        gc.collect()
        if session.device.startswith("cuda"):
            torch.cuda.empty_cache()


def _train(session: Session, stage: str, missing: list[benchmark.Job], folder: Path) -> None:
    width, rate = _fullest(session, stage, missing[0])
    seconds = missing[0].settings.steps * width / rate  # of a run, when `width` share the card

    def room(running: int) -> bool:
        return session.left > seconds * (running + 1) / width

    ended: set[str] = set()
    rounds = packing.run(missing, folder, width=width, room=room, capture=session.capture)
    with contextlib.closing(rounds):
        for result in rounds:
            if result:
                job, record = result
                ended.add(job.name)
                if isinstance(record, Record):
                    seconds = record.provenance["training_seconds"] * width
                    session.tell(stage, "done", job.name, _outcome(record, seconds))
                else:
                    session.tell(stage, "failed", job.name, _reason(record))
            elif session.left <= 0:
                break
    if unfinished := [job.name for job in missing if job.name not in ended]:
        session.tell(stage, "out of time", f"{len(unfinished)} runs from {unfinished[0]} on")


def _fullest(session: Session, stage: str, job: benchmark.Job) -> tuple[int, float]:
    """How many runs side by side fill the card, and how many steps a second that gives."""
    torch.set_num_threads(job.settings.threads)
    widths = (1, 2) if session.dry else WIDTHS[job.settings.model]
    rates = {width: packed.throughput(job.build, job.settings, width, capture=session.capture) for width in widths}
    width = next(width for width, rate in rates.items() if rate > 0.97 * max(rates.values()))
    measured = ", ".join(f"{rate:.0f} steps/s with {width}" for width, rate in rates.items())
    session.say(f"{stage}: {measured} side by side")
    return width, rates[width]


def _outcome(record: Record, seconds: float) -> str:
    (accuracy,) = record.get("val_accuracy")
    kind = "graphs" if record.provenance["packed"]["graphs"] else "eager"
    return f"accuracy {'—' if accuracy is None else f'{accuracy:.4f}'}, {seconds:.0f} s, {kind}"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
