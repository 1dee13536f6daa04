"""The training loop that every notebook shares: the whole set in memory, seeded, deterministic, and quick."""

import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from experiments.data import Dataset

# cuBLAS repeats its results bit for bit only with a fixed workspace, and reads this once, at its first use.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

PRECISIONS = ("float32", "tf32", "bfloat16")
CHECK_EVERY = 50  # steps between two looks at whether the loss is still finite: looking waits for the GPU
EVALUATION_BATCH = 1000


@dataclass
class History:
    """What happened in one training run.

    `steps` counts from 1; `train_loss` is the mini-batch loss before that step, one float per step. `epoch` has one
    dict per finished epoch: epoch (from 1), train_loss (mean over the epoch's examples), test_loss, test_accuracy
    (both None where evaluation is off). A diverged run ends with its first non-finite loss. `seconds` is wall time.
    """

    train_loss: list[float] = field(default_factory=list)
    epoch: list[dict[str, float | None]] = field(default_factory=list)
    diverged: bool = False
    seconds: float = 0.0

    @property
    def steps(self) -> list[int]:
        return list(range(1, len(self.train_loss) + 1))


def train(
    model: nn.Module,
    optimizer: Optimizer,
    ds: Dataset,
    *,
    epochs: int,
    batch_size: int = 128,
    seed: int,
    device: str | torch.device = "cpu",
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    loss_scale: float = 1.0,
    precision: str = "float32",
    evaluate: bool = True,
    max_train: int | None = None,
    max_test: int | None = None,
    progress: bool | Callable[[int, float], None] = True,
) -> History:
    """Minimize the cross-entropy of `model` (already on `device`) on `ds`, in place.

    Every epoch visits the first `max_train` examples once, in an order drawn from `seed`; the last batch may be
    smaller. `schedule` makes a scheduler that is stepped after every optimizer step; a ReduceLROnPlateau is stepped
    after every epoch, with the epoch's mean training loss. `loss_scale` multiplies the loss that is differentiated,
    not the loss that is recorded. `progress` is called with every epoch and its training loss; True prints them.
    The same arguments give the same history bit for bit at the same thread count, and the global random state is
    left as it was.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Invalid {precision=}: choose one of {', '.join(PRECISIONS)}")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"Invalid {epochs=}, {batch_size=}: both must be at least 1")
    device = torch.device(device)
    model.to(memory_format=layout(model))  # type: ignore[call-overload]

    def advance(x: Tensor, y: Tensor, indices: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            loss = F.cross_entropy(model(x.index_select(0, indices)), y.index_select(0, indices))
        (loss if loss_scale == 1.0 else loss * loss_scale).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    def tell(epoch: int, loss: float) -> None:
        if callable(progress):
            progress(epoch, loss)
        elif progress:
            report(type(optimizer).__name__, epoch, epochs, loss)

    work = by_steps(
        model,
        advance,
        ds,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        device=device,
        scheduler=schedule(optimizer) if schedule else None,
        precision=precision,
        evaluate=evaluate,
        max_train=max_train,
        max_test=max_test,
        progress=tell,
    )
    with deterministic(seed, device, precision):
        while True:
            try:
                next(work)
            except StopIteration as end:
                history: History = end.value
                return history


def by_steps(
    model: nn.Module,
    advance: Callable[[Tensor, Tensor, Tensor], Tensor],
    ds: Dataset,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    scheduler: LRScheduler | None,
    precision: str,
    evaluate: bool = True,
    max_train: int | None = None,
    max_test: int | None = None,
    progress: Callable[[int, float], None],
) -> Generator[None, None, History]:
    """The loop of `train`, which whoever runs it may leave for others between steps; its value is the history.

    `advance(x, y, indices)` makes one step on those of the images x and labels y and returns its loss. The loop
    pauses before it waits for the device, which then has up to `CHECK_EVERY` steps to do. It changes no global
    state: the caller is inside `deterministic`.
    """
    x, y, x_test, y_test = resident(ds, device, layout(model))
    x, y, x_test, y_test = x[:max_train], y[:max_train], x_test[:max_test], y_test[:max_test]

    n = len(y)
    batches = math.ceil(n / batch_size)
    weight = torch.full((batches,), batch_size / n, dtype=torch.float64)  # of each batch in the epoch's mean
    weight[-1] = (n - (batches - 1) * batch_size) / n
    order = torch.Generator().manual_seed(seed)
    by_epoch = isinstance(scheduler, ReduceLROnPlateau)
    losses = torch.empty(epochs * batches, device=device)  # read only now and then: reading waits for the device
    history, began = History(), time.perf_counter()
    step = checked = 0

    model.train()
    for epoch in range(1, epochs + 1):
        for indices in torch.randperm(n, generator=order).to(device).split(batch_size):  # type: ignore[no-untyped-call]
            losses[step] = advance(x, y, indices)
            if scheduler is not None and not by_epoch:
                scheduler.step()
            step += 1
            if step % CHECK_EVERY == 0 or step % batches == 0:
                yield
                finite = losses[checked:step].isfinite()
                if not finite.all():
                    step = checked + int(finite.logical_not().nonzero()[0]) + 1
                    history.diverged = True
                    break
                checked = step
        if history.diverged:
            break
        mean = float(losses[step - batches : step].cpu().double() @ weight)
        loss_accuracy = accuracy_and_loss(model, x_test, y_test, precision) if evaluate else (None, None)
        history.epoch.append(
            {
                "epoch": epoch,
                "train_loss": mean,
                "test_loss": loss_accuracy[1],
                "test_accuracy": loss_accuracy[0],
            }
        )
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(mean)
        progress(epoch, mean)
    history.train_loss = losses[:step].tolist()
    history.seconds = time.perf_counter() - began
    return history


def layout(model: nn.Module) -> torch.memory_format:
    """The one in which images and weights are fastest for a model."""
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return torch.channels_last if convolves else torch.contiguous_format


def accuracy_and_loss(model: nn.Module, x: Tensor, y: Tensor, precision: str = "float32") -> tuple[float, float]:
    """Share of examples classified rightly, and mean cross-entropy, in eval mode; the mode is put back."""
    training = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=x.device)
    total = torch.zeros((), dtype=torch.float64, device="cpu" if x.device.type == "mps" else x.device)
    with torch.inference_mode(), autocast(x.device, precision):
        for images, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):  # type: ignore[no-untyped-call]
            logits = model(images)
            correct += (logits.argmax(1) == labels).sum()
            total += F.cross_entropy(logits, labels, reduction="sum").to(total)
    model.train(training)
    return float(correct) / len(y), float(total) / len(y)


def downsample(values: Sequence[float], points: int = 200) -> tuple[list[float], list[float]]:
    """Block means: (x, y), each of at most `points` numbers, where x is the mean step (from 1) of each block.

    The blocks are equal to within one step, so runs of one length share their x.
    """
    if points < 1:
        raise ValueError(f"Invalid {points=}: must be at least 1")
    steps = np.arange(1, len(values) + 1, dtype=float)
    blocks = min(points, len(values))
    if blocks == 0:
        return [], []
    return tuple(  # type: ignore[return-value]
        [float(block.mean()) for block in np.array_split(a, blocks)] for a in (steps, np.asarray(values, float))
    )


@functools.lru_cache(maxsize=1)
def resident(
    ds: Dataset, device: torch.device, layout: torch.memory_format
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The whole set, normalized, on the device; kept for the next run, which is usually on the same set."""
    x, x_test = (ds.images(split, device).contiguous(memory_format=layout) for split in ("train", "test"))
    return x, ds.labels("train", device), x_test, ds.labels("test", device)


@contextlib.contextmanager
def deterministic(seed: int, device: torch.device, precision: str) -> Iterator[None]:
    """Seed what a model may draw while it trains (dropout), and fix the algorithms; put all back at the end."""
    tf32, warn = precision == "tf32", torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    before, matmul = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32),
    ):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        debugging.fill_uninitialized_memory = False  # a debugging aid, at a price
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn)
            debugging.fill_uninitialized_memory = fill
            torch.backends.cuda.matmul.allow_tf32 = matmul


def autocast(device: torch.device, precision: str) -> Any:
    enabled = precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else contextlib.nullcontext()


def report(name: str, now: int, all_of_them: int, loss: float, unit: str = "epoch") -> None:
    """Print one line: to the runner's file where there is one, as it must not enter a notebook's outputs."""
    line = f"{name}: {unit} {now} of {all_of_them}, training loss {loss:.4f}"
    if path := os.environ.get("EXPERIMENT_PROGRESS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    elif sys.stderr.isatty():
        end = "\n" if now == all_of_them else ""
        print(f"\r\033[K{line}", end=end, file=sys.stderr, flush=True)
