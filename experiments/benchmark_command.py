"""`python -m experiments benchmark …`: the reference's command line, on this project's code."""

import math
import multiprocessing
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from experiments import benchmark, data, mixes, records
from experiments.errors import UserError
from experiments.intervals import interval
from experiments.records import Record
from experiments.run import check_device
from experiments.runs import Settings
from experiments.verdicts import align


def table(arms: Sequence[tuple[str, list[Record]]]) -> str:
    """One line per optimizer: final losses and accuracy with their 95 % intervals, and the time of a step."""
    rows: list[tuple[str, ...]] = [("optimizer", "training loss", "validation loss", "accuracy", "ms per step", "")]
    for text, parts in arms:
        metrics, _ = benchmark.merge(parts)
        failed = sum(metrics["diverged"])
        note = f"{failed} of {len(metrics['diverged'])} seeds diverged" if failed else ""
        cells = [_interval(metrics[key]) for key in ("train_loss", "val_loss", "val_accuracy")]
        rows.append((text, *cells, f"{statistics.median(map(benchmark.milliseconds, parts)):.2f}", note))
    return "\n".join(align(rows))


def run(
    *,
    optimizers: str,
    seeds: str,
    lr: float | None,
    processes: int,
    out: str | None,
    fresh: bool,
    num_train: int | None,
    num_val: int | None,
    **settings: Any,
) -> str:
    """Run what is missing and return the table; the arguments are the command's options."""
    if settings["dataset"] in data.SHAPES:
        train, test, _ = data.SHAPES[settings["dataset"]]
        num_train = num_train if num_train is not None else train
        num_val = num_val if num_val is not None else min(2048, test)
    chosen = mixes.parse(", ".join(benchmark.LABELS) if optimizers == "all" else optimizers)
    numbers = _seeds(seeds)
    if lr is not None and not 0 <= lr < math.inf:
        raise UserError(f"lr must be a number from 0 on, got {lr}")
    if processes < 1:
        raise UserError(f"processes must be 1 or more, not {processes}")
    most = 16 * (os.cpu_count() or 1)  # some more than there are cores do no harm, thousands bring torch down
    if settings["threads"] > most:
        raise UserError(f"threads must be at most {most} on this machine, not {settings['threads']}")
    check_device(settings["device"])
    common = Settings(num_train=num_train or 0, num_val=num_val or 0, **settings)  # 0 is an error with a line
    folder = Path(out) if out else records.ROOT / "_build" / "runs"
    todo = benchmark.jobs(chosen, common, numbers, [lr])
    with tqdm(
        total=sum(job.settings.num_epochs for job in todo),
        unit="epoch",
        dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        try:
            found = benchmark.run_all(todo, folder, processes=processes, bar=bar, fresh=fresh)
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():  # else they would go on with what is waiting
                worker.terminate()
            raise
    arms = [(text, parts) for text, _, parts in benchmark.by_mix(todo, found)]
    where = os.path.relpath(folder / common.dataset)
    return f"{table(arms)}\n\nmean and 95 % interval over {_count(numbers)}; records in {where}"


def _seeds(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError as error:
        raise UserError(f"--seeds must be whole numbers such as 0,1,2, not {text!r}") from error
    if not all(0 <= number < 2**63 for number in numbers):
        raise UserError(f"--seeds must be from 0 to 2⁶³ − 1, got {text!r}")
    return numbers


def _count(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"


def _interval(values: list[float | None]) -> str:
    mean, low, _ = interval(values)
    if mean is None or low is None:
        return "—"
    return f"{mean:.4f}" + (f" ± {mean - low:.4f}" if len(values) > 1 else "")
