"""One training run of the benchmark, from its settings to what is measured; for the reference's two models."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from experiments import data, models, stacked, training
from experiments.data import Dataset
from experiments.errors import UserError
from experiments.training import History

MODELS = ("cnn", "mlp")
POINTS = 100  # of a training-loss curve: block means, which also smooth it


@dataclass(frozen=True)
class Settings:
    """How a run is made, whatever the optimizer. The defaults are the reference's.

    `num_val` validation images are the first of the test split, or with `fresh_val` the next ones, for runs whose
    learning rate was chosen on the first. `warmup` raises the learning rate linearly over so many steps.
    """

    dataset: str = "cifar10"
    model: str = ""  # cnn or mlp; by default the cnn for CIFAR-10 and the mlp for the others
    num_epochs: int = 30
    num_train: int = 50000
    num_val: int = 2048
    batch_size: int = 128
    lr_schedule: bool = False  # ReduceLROnPlateau(patience=5) on the epoch's mean training loss
    warmup: int = 0
    fresh_val: bool = False
    shared_batches: bool = False  # stacked networks see the same batches: cheaper, but their bands are narrower
    precision: str = "float32"
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.dataset not in data.SHAPES:
            raise UserError(f"there is no data set {self.dataset!r}; there are {', '.join(data.SHAPES)}")
        if not self.model:
            object.__setattr__(self, "model", "cnn" if self.dataset == "cifar10" else "mlp")
        if self.model not in MODELS:
            raise UserError(f"there is no model {self.model!r}; there are {', '.join(MODELS)}")
        if self.precision not in training.PRECISIONS:
            raise UserError(f"there is no precision {self.precision!r}; there are {', '.join(training.PRECISIONS)}")
        train, test, _ = data.SHAPES[self.dataset]
        most = {"num_train": train, "num_val": test // 2 if self.fresh_val else test}
        for name in ("num_epochs", "num_train", "num_val", "batch_size", "threads"):
            value = getattr(self, name)
            if not 1 <= value <= most.get(name, math.inf):
                limit = f" to {most[name]} for {self.dataset}" if name in most else " or more"
                raise UserError(f"{name.replace('_', '-')} must be 1{limit}, not {value}")
        if self.warmup and self.lr_schedule:
            raise UserError("warmup and lr_schedule are two schedules: choose one")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise UserError(f"there is no device {self.device!r}: write cpu, cuda, cuda:1, …") from error
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device {self.device!r} is asked for, but torch sees no CUDA device")

    def schedule(self) -> Callable[[Optimizer], LRScheduler] | None:
        """What makes the scheduler, if there is one."""
        if self.lr_schedule:
            return lambda optimizer: ReduceLROnPlateau(optimizer, patience=5)
        if self.warmup:
            return lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self.warmup))
        return None

    @property
    def steps(self) -> int:
        return self.num_epochs * math.ceil(self.num_train / self.batch_size)


def fastest_precision(device: str) -> str:
    """The precision in which the CNN trains fastest: bfloat16 on a GPU and on a CPU with instructions for it."""
    amx, avx512 = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if device.startswith("cuda") or amx or avx512 else "float32"


def dataset(settings: Settings) -> Dataset:
    """The part of the data set that a run with these settings sees."""
    return _part(settings.dataset, settings.num_train, settings.num_val, settings.fresh_val)


@functools.lru_cache(maxsize=4)
def _part(name: str, num_train: int, num_val: int, fresh_val: bool) -> Dataset:
    ds, first = data.load(name), num_val if fresh_val else 0
    return dataclasses.replace(
        ds,
        x_train=ds.x_train[:num_train],
        y_train=ds.y_train[:num_train],
        x_test=ds.x_test[first : first + num_val],
        y_test=ds.y_test[first : first + num_val],
    )


def network(settings: Settings, ds: Dataset, seed: int) -> nn.Sequential:
    """The untrained network of a run."""
    channels, height, width = ds.x_train.shape[1:]
    if settings.model == "cnn":
        return models.cnn(channels, height, ds.classes, seed=seed)
    return models.mlp(channels * height * width, classes=ds.classes, seed=seed)


def train(
    build: Callable[..., Optimizer],
    settings: Settings,
    seeds: Sequence[int],
    *,
    stack: bool,
    progress: Callable[[int, float], None] | None = None,
) -> list[History]:
    """One history per seed. `build(params, seed=…, fused=…)` makes the optimizer.

    With `stack` (MLPs only) all seeds are trained at once, and the first one seeds noise and masks, which differ
    between the networks all the same.
    """
    ds = dataset(settings)
    fused = True if settings.device == "cpu" else None  # one compiled step, which exists for CPUs
    channels, height, width = ds.x_train.shape[1:]
    common: Any = {
        "epochs": settings.num_epochs,
        "batch_size": settings.batch_size,
        "device": settings.device,
        "schedule": settings.schedule(),
        "precision": settings.precision,
    }
    if stack:
        stack_of = stacked.StackedMLP(seeds, channels * height * width, classes=ds.classes).to(settings.device)
        optimizer = build(stack_of.parameters(), seed=seeds[0], fused=fused)
        shared = settings.shared_batches
        return stacked.train(stack_of, optimizer, ds, shared_batches=shared, progress=progress, **common)
    histories = []
    for seed in seeds:
        model = network(settings, ds, seed).to(settings.device)
        if settings.model == "cnn":  # before the optimizer makes its state, which follows the layout
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = build(model.parameters(), seed=seed, fused=fused)
        histories.append(training.train(model, optimizer, ds, seed=seed, progress=progress or False, **common))
    return histories


def measure(histories: Sequence[History], settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics, curves) of some runs with the same settings, one value or line per seed.

    A run that diverged has None for its losses and accuracy, and a line that ends where it did. Losses are means of
    whole epochs, except for the curve `train_loss`, block means of the mini-batch losses.
    """
    ends = [None if history.diverged else history.epoch[-1] for history in histories]
    half = (settings.num_epochs + 1) // 2
    metrics: dict[str, Any] = {
        "train_loss": [end and end["train_loss"] for end in ends],
        "early_train_loss": [
            None if end is None else sum(float(e["train_loss"] or 0) for e in history.epoch[:half]) / half
            for end, history in zip(ends, histories, strict=True)
        ],
        "val_loss": [end and end["test_loss"] for end in ends],
        "val_accuracy": [end and end["test_accuracy"] for end in ends],
        "diverged": [int(history.diverged) for history in histories],
    }
    padded = [h.train_loss + [math.nan] * (settings.steps - len(h.train_loss)) for h in histories]
    blocks = [training.downsample(line, POINTS) for line in padded]
    epochs = list(range(1, settings.num_epochs + 1))
    per_step = settings.num_epochs / settings.steps
    curves: dict[str, Any] = {
        "train_loss": ([x * per_step for x in blocks[0][0]], [line for _, line in blocks], "training loss"),
        "val_loss": (epochs, [[e["test_loss"] for e in h.epoch] for h in histories], "validation loss"),
        "val_accuracy": (epochs, [[e["test_accuracy"] for e in h.epoch] for h in histories], "validation accuracy"),
    }
    # Five digits are more than a figure shows, and make the records a third as long.
    return metrics, {
        name: (_short(x), [_short(line) for line in seeds], label) for name, (x, seeds, label) in curves.items()
    }


def _short(line: Sequence[float | None]) -> list[float | None]:
    return [None if v is None else float(f"{v:.5g}") for v in line]
