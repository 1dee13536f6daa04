"""The chapters of one call of `gpu`: notebooks as scripts, the shortest first, each in a process of its own.

Several run side by side: alone, each waits for Python more than for the device.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments import environment, run
from experiments.errors import RecordError

if TYPE_CHECKING:  # which imports this module
    from experiments.gpu import Session

# Seconds of a chapter on a GPU, roughly: its standard run on a CPU, times how many more steps it makes. (A step of
# a small network takes a GPU about as long: it waits for Python.)
COSTS = {
    **{"overview": 70, "adadelta": 180, "convex_like": 250, "curriculum": 400, "large_scale": 600, "nadam": 700},
    **{"adamw": 800, "rmsprop": 900, "amsgrad": 1000, "marginal_value": 1100, "lookahead": 1200, "benchmark": 1500},
    **{"adabound": 1900, "gradient_noise": 1900, "adabound_sgd": 2000, "momentum": 2400, "adam": 3600},
    **{"lion": 4000},
    **{"aggmo": 4000, "radam": 5000, "lr_dropout": 7000, "large_lr": 20000},
}
UNKNOWN = 600  # of a chapter that is not in the table
FOR_PROCESSORS = ("hogwild",)  # nothing in it is for a GPU


def all_of(session: "Session", slugs: Sequence[str]) -> None:
    """Run the notebooks that have no record of today's code, and tell the session what came of each."""
    order = sorted(slugs, key=lambda slug: COSTS.get(slug, UNKNOWN))
    before = os.environ.get("BOOK_BUILD")
    os.environ["BOOK_BUILD"] = str(session.out)  # where records are looked for, and written
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        waiting = []
        for slug in order:
            if slug in FOR_PROCESSORS and not session.dry:
                session.tell("chapters", "skipped", slug, "nothing in it is for a GPU")
            elif run.is_current(slug, session.scale, session.device):
                session.tell("chapters", "up to date", slug)
            else:
                waiting.append(slug)
        most = max(1, (os.cpu_count() or 1) // 3)
        while (waiting or running) and session.left > 0:
            for slug in [slug for slug, (process, _) in running.items() if process.poll() is not None]:
                _ended(session, slug, *running.pop(slug))
            while waiting and len(running) < most:
                slug = waiting.pop(0)
                cost = 0 if session.dry else COSTS.get(slug, UNKNOWN)
                if cost > session.left:
                    session.tell("chapters", "out of time", slug, f"about {cost} s")
                else:
                    running[slug] = _start(session, slug), time.monotonic()
            time.sleep(0.05)
    finally:
        os.environ.pop("BOOK_BUILD")
        if before is not None:
            os.environ["BOOK_BUILD"] = before
        for process, _ in running.values():  # with whatever it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for slug in [*running, *waiting]:
        session.tell("chapters", "out of time", slug)


def _start(session: "Session", slug: str) -> "subprocess.Popen[bytes]":
    log = session.out / "failed" / f"{slug}.log"
    log.parent.mkdir(exist_ok=True)
    work = session.out / "work" / slug
    work.mkdir(parents=True, exist_ok=True)
    out = session.folder / f"{slug}.json"
    given = json.dumps({"scale": session.scale, "device": session.device, "out": str(out)})
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.script", slug, given],
            cwd=work,
            env=environment.child(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _ended(session: "Session", slug: str, process: "subprocess.Popen[bytes]", began: float) -> None:
    log = session.out / "failed" / f"{slug}.log"
    try:
        current = process.returncode == 0 and run.is_current(slug, session.scale, session.device)
    except RecordError:
        current = False
    if current:
        log.unlink()
        session.tell("chapters", "done", slug, f"{time.monotonic() - began:.0f} s")
        return
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = lines[-1] if process.returncode and lines else f"exit status {process.returncode}, and no record"
    session.tell("chapters", "failed", slug, reason)
