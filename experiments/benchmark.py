"""The reference's benchmark: its 18 runs and seven figures, as jobs that write a record each and resume."""

import contextlib
import copy
import functools
import hashlib
import json
import math
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments import code_hash, data, packing, records, runs, training
from experiments.errors import RecordError
from experiments.mixes import Mix
from experiments.records import Record
from experiments.runs import Settings
from experiments.training import History

CODE = Path(__file__).resolve().parents[1]

# The reference's 18 runs under the names that its figures give them.
LABELS = {
    "sgd": "SGD",
    "momentum": "momentum",
    "nesterov": "Nesterov",
    "sgdw": "SGDW",
    "momentum_lr_dropout": "momentum + LRD",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "adam_l2": "Adam + L2",
    "adamw": "AdamW",
    "adam_lr_dropout": "Adam + LRD",
    "radam": "RAdam",
    "radamw": "RAdamW",
    "radam_lr_dropout": "RAdam + LRD",
    "nadam": "Nadam",
    "lookahead_momentum": "Lookahead(momentum)",
    "lookahead_adam": "Lookahead(Adam)",
    "gradient_noise_adam": "Adam + noise",
    "gradient_dropout_adam": "Adam + gradient dropout",
}
# Its seven figures: name -> the runs in it.
FIGURES = {
    "SGD and its family": ("sgd", "momentum", "nesterov", "sgdw", "momentum_lr_dropout"),
    "RMSprop and Adam": ("sgd", "momentum", "rmsprop", "adam"),
    "Weight decay": ("adam", "adam_l2", "adamw"),
    "Adam's family": ("adam", "nadam", "radam", "radamw"),
    "Learning rate dropout": ("adam", "adam_lr_dropout", "radam", "radam_lr_dropout"),
    "Gradient noise and gradient dropout": (
        "adam",
        "adam_lr_dropout",
        "gradient_noise_adam",
        "gradient_dropout_adam",
    ),
    "Lookahead": ("momentum", "lookahead_momentum", "adam", "lookahead_adam"),
}


@dataclass(frozen=True)
class Job:
    """A mix, its learning rate (None: its own), and the seeds that are trained at once; it writes one record."""

    mix: Mix
    settings: Settings
    seeds: tuple[int, ...]
    lr: float | None = None

    @property
    def stacked(self) -> bool:
        return self.settings.model == "mlp" and can_stack(self.mix, self.settings)

    @property
    def name(self) -> str:
        rate = "" if self.lr is None else f", lr {self.lr:.3g}"
        return f"{self.mix.text}{rate}, seed {', '.join(map(str, self.seeds))}"

    @functools.cached_property
    def parameters(self) -> dict[str, Any]:
        """Everything that the numbers depend on, besides code and data, as plain JSON values."""
        (group,) = self.build([torch.zeros(1, requires_grad=True)]).param_groups
        return {
            "optimizer": self.mix.text,
            # What the words of the mix mean today: a recipe may change.
            "options": {key: _json(value) for key, value in group.items() if key != "params"},
            "seeds": list(self.seeds),
            "stacked": self.stacked,
            **asdict(self.settings),
        }

    def build(self, params: Any, **options: Any) -> Any:
        rate: dict[str, Any] = {} if self.lr is None else {"lr": self.lr}
        return self.mix.build(params, **options, **rate)

    def path(self, folder: Path) -> Path:
        """Where its record is, or would be: the name holds a hash of all parameters."""
        text = json.dumps(self.parameters, sort_keys=True)
        words = re.sub(r"[^a-z0-9_.]+", "-", self.mix.text.lower()).strip("-")[:60]
        return folder / self.settings.dataset / f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"

    def done(self, folder: Path) -> Record | None:
        """Its record, if there is a whole one of today's code and data."""
        path = self.path(folder)
        try:
            record = records.read(path) if path.exists() else None
        except RecordError:  # damaged: as good as none
            return None
        if record is None or record.parameters != self.parameters:
            return None
        digest = {self.settings.dataset: data.DIGESTS[self.settings.dataset]}
        current = (record.provenance["code_hash"], record.provenance["data"]) == (_hash(self.mix.imports), digest)
        return record if current else None

    def run(self, folder: Path, progress: Callable[[int, float], None] | None = None) -> Record:
        """Train, measure, and write the record."""
        record = self.begin()
        histories = runs.train(self.build, self.settings, self.seeds, stack=self.stacked, progress=progress)
        return self.finish(record, histories, folder)

    def begin(self) -> Record:
        """Its record, before the training."""
        torch.set_num_threads(self.settings.threads)
        stage = copy.deepcopy(_provenance(self.settings.device, self.settings.threads, self.settings.precision))
        # A single run has settings, not a scale.
        record = Record(self.mix.text, "run", self.parameters, provenance=stage)
        record.provenance["code_hash"] = _hash(self.mix.imports)
        record.uses(runs.dataset(self.settings))
        return record

    def finish(self, record: Record, histories: Sequence[History], folder: Path) -> Record:
        """Measure what was trained, and write the record."""
        metrics, curves = runs.measure(histories, self.settings)
        for key, value in metrics.items():
            record.metric(key, value)
        for name, (x, lines, ylabel) in curves.items():
            record.curve(name, x, lines, "epoch", ylabel)
        record.provenance["training_seconds"] = round(sum(history.seconds for history in histories), 3)
        records.write(record, self.path(folder))
        return record


def can_stack(mix: Mix, settings: Settings) -> bool:
    """Whether MLPs may share one optimizer: not where they would need a learning rate or a norm each."""
    return mix.elementwise and not settings.lr_schedule


def jobs(
    chosen: Iterable[Mix], settings: Settings, seeds: Sequence[int], lrs: Sequence[float | None] = (None,)
) -> list[Job]:
    """One job per mix and learning rate, or one per seed where seeds cannot be stacked."""
    found = []
    for mix in chosen:
        together = settings.model == "mlp" and can_stack(mix, settings)
        groups = [tuple(seeds)] if together else [(seed,) for seed in seeds]
        found += [Job(mix, settings, group, lr) for lr in lrs for group in groups]
    return found


def run_all(
    todo: Sequence[Job], folder: Path, *, processes: int = 1, bar: Any = None, fresh: bool = False
) -> list[Record]:
    """The records of all jobs in their order; what is there already is read, unless `fresh`.

    `processes` jobs run side by side; on a GPU single networks are packed instead (see `packing`). `bar` (a tqdm of
    the epochs) moves while they do. Whatever is killed, and whenever, every job that had ended is kept.
    """
    paths = [job.path(folder) for job in todo]
    found = {path: None if fresh else job.done(folder) for path, job in zip(paths, todo, strict=True)}
    missing = {path: job for path, job in zip(paths, todo, strict=True) if found[path] is None}
    if bar is not None:
        bar.update(sum(job.settings.num_epochs for job in todo if job.path(folder) not in missing))
    found |= packing.run_all(list(missing.values()), folder, bar)
    missing = {path: job for path, job in missing.items() if found[path] is None}
    workers = min(processes, len(missing))
    if workers <= 1:
        for path, job in missing.items():
            found[path] = _run(job, folder, bar)
    else:
        with _no_main():
            futures = {_pool(processes).submit(_run, job, folder): path for path, job in missing.items()}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            if bar is not None:
                bar.update(missing[futures[future]].settings.num_epochs)
    done = [found[path] for path in paths]
    return [record for record in done if record is not None]


@functools.cache
def _pool(processes: int) -> ProcessPoolExecutor:
    """Interpreters that import torch once. Fresh ones: a fork would copy locks that a thread of ours may hold."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Keep new interpreters from importing `__main__`: a notebook run as a script would run again."""
    main = sys.modules["__main__"]
    kept: dict[str, Any] = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    vars(main).pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(kept)


def _run(job: Job, folder: Path, bar: Any = None) -> Record:
    def progress(epoch: int, loss: float) -> None:
        if os.environ.get("EXPERIMENT_PROGRESS"):  # a notebook's runner prints this file's last line
            training.report(job.name, epoch, job.settings.num_epochs, loss)
        if bar is not None:
            bar.set_description_str(job.name, refresh=False)
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update(1)

    before = bar.n if bar is not None else 0
    record = job.run(folder, progress)
    if bar is not None:  # a run that diverged ends early
        bar.update(before + job.settings.num_epochs - bar.n)
    return record


def merge(parts: Sequence[Record]) -> tuple[dict[str, list[Any]], dict[str, dict[str, Any]]]:
    """(metrics, curves) of one mix, from the records of its seeds, in order."""
    metrics = {key: [value for part in parts for value in part.get(key)] for key in parts[0].metrics}
    curves = {
        name: {**curve, "seeds": [line for part in parts for line in part.curves[name]["seeds"]]}
        for name, curve in parts[0].curves.items()
    }
    return metrics, curves


def by_mix(todo: Sequence[Job], found: Sequence[Record]) -> Iterator[tuple[str, float | None, list[Record]]]:
    """(text of the mix, learning rate, records) for every arm of a list of jobs, in order."""
    groups: dict[tuple[str, float | None], list[Record]] = {}
    for job, record in zip(todo, found, strict=True):
        groups.setdefault((job.mix.text, job.lr), []).append(record)
    for (text, lr), parts in groups.items():
        yield text, lr, parts


def milliseconds(part: Record) -> float:
    """The time of one step of one network in a run's record, validation included."""
    names = Settings.__dataclass_fields__
    steps = Settings(**{name: value for name, value in part.parameters.items() if name in names}).steps
    return 1000 * float(part.provenance["training_seconds"]) / (steps * len(part.parameters["seeds"]))


def log_ratio(a: Sequence[float | None], b: Sequence[float | None]) -> list[float | None]:
    """ln(a ÷ b) per seed: −0.1 is about ten percent less. None where either run diverged."""
    return [math.log(x / y) if x and y else None for x, y in zip(a, b, strict=True)]


def steps_to(curve: dict[str, Any], target: float, steps_per_epoch: float) -> list[float | None]:
    """The step around which the smoothed training loss first is at most `target`, per seed; None if it never is."""
    return [
        next(
            (x * steps_per_epoch for x, y in zip(curve["x"], line, strict=True) if y is not None and y <= target),
            None,
        )
        for line in curve["seeds"]
    ]


@functools.cache
def _provenance(device: str, threads: int, precision: str) -> dict[str, Any]:
    parameters = {"device": device}
    return records.new("benchmark", "quick", parameters, threads=threads, precision=precision).provenance


@functools.cache
def _hash(imports: str) -> str:
    return code_hash.of_source(f"from experiments import runs\n{imports}", CODE)


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
