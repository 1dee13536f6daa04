"""Jobs of the benchmark on one GPU, packed side by side: each writes the record that it would write alone."""

import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experiments import packed, training
from experiments.packed import Step, Task, Work
from experiments.records import Record

if TYPE_CHECKING:  # which imports this module
    from experiments.benchmark import Job

WIDTH = {"cnn": 6, "mlp": 16}  # runs at a time, where nobody has measured what fills the card


def run(
    todo: Sequence["Job"],
    folder: Path,
    *,
    width: int | None = None,
    room: Callable[[int], bool] = lambda running: True,
    capture: bool = True,
) -> Generator[tuple["Job", Record | Exception] | None, None, None]:
    """Run jobs of one device, model and precision; yield each, with its record or what went wrong, as it ends.

    Before a job begins, `room` is asked, and told how many run. After every round of turns None is yielded: whoever
    stops there loses the jobs that run, and nothing that has ended.
    """
    if not todo:
        return
    first = todo[0].settings
    width = width or WIDTH[first.model]
    waiting = iter(todo)
    begun: dict[Task, tuple[Job, Record, Step]] = {}
    jobs: dict[Task, Job] = {}

    def more(running: int) -> Task | None:
        job = next(waiting, None) if room(running) else None
        if job is None:
            return None

        def task() -> Work:
            record = job.begin()
            options: Any = {"flat": job.mix.elementwise, "capture": capture, "progress": told}
            step, work = packed.work(job.build, job.settings, job.seeds[0], **options)
            begun[task] = job, record, step
            return work

        def told(epoch: int, loss: float) -> None:
            if os.environ.get("EXPERIMENT_PROGRESS"):  # a notebook's runner prints this file's last line
                training.report(job.name, epoch, job.settings.num_epochs, loss)

        jobs[task] = job
        return task

    for ended in packed.side_by_side(more, width, torch.device(first.device), first.precision):
        if ended is None:
            yield None
            continue
        task, history = ended
        if isinstance(history, Exception):
            yield jobs[task], history
            continue
        job, record, step = begun.pop(task)
        # How it was run; the card was shared by that many.
        history.seconds /= width
        graphs = {"graphs": bool(step.capture and not step.failure), "failure": step.failure or None}
        record.provenance["packed"] = {"side_by_side": width, "flat": job.mix.elementwise, **graphs}
        yield job, job.finish(record, [history], folder)


def run_all(todo: Sequence["Job"], folder: Path, bar: Any = None) -> dict[Path, Record]:
    """The records of those jobs that are single networks on a GPU, by path; raises what went wrong in the first."""
    alike: dict[tuple[str, str, str], list[Job]] = {}
    for job in todo:
        if job.settings.device.startswith("cuda") and not job.stacked:
            alike.setdefault((job.settings.device, job.settings.model, job.settings.precision), []).append(job)
    found = {}
    for group in alike.values():
        for ended in run(group, folder):
            if ended is None:
                continue
            job, record = ended
            if isinstance(record, Exception):
                raise record
            found[job.path(folder)] = record
            if bar is not None:
                bar.update(job.settings.num_epochs)
    return found
