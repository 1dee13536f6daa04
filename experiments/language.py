"""The training loop of language models: windows of a text, each predicted symbol by symbol."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from experiments.models import GPT
from experiments.text import Text
from experiments.training import CHECK_EVERY, PRECISIONS, autocast, deterministic, report

WINDOWS = 640  # that a model is tested on
TEST_BATCH = 64


@dataclass
class Course:
    """What happened in one run.

    `train_loss` has the mini-batch's loss before each step; `test_loss` the mean over the test windows, by the
    number of steps after which they were looked at. Both are in nats per symbol. A run that diverged ends with its
    first loss that is not finite. `seconds` is wall time.
    """

    train_loss: list[float] = field(default_factory=list)
    test_loss: dict[int, float] = field(default_factory=dict)
    diverged: bool = False
    seconds: float = 0.0


def train(
    model: GPT,
    optimizer: Optimizer,
    text: Text,
    *,
    steps: int,
    batch_size: int = 16,
    seed: int,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = 1.0,
    test_at: Collection[int] = (),
    device: str | torch.device = "cpu",
    precision: str = "float32",
    closure: bool = False,
    progress: bool | Callable[[int, float], None] = True,
) -> Course:
    """Minimize the cross-entropy of `model` (already on `device`) on windows of `text`, in place.

    Every step sees `batch_size` windows of the model's context, drawn with replacement from `seed`. `schedule` is
    the multiplier of the learning rates at each step, from 0, as `LambdaLR` takes it. Gradients whose norm, over
    all parameters, is above `clip` are scaled down to it. The model is tested after the steps named in `test_at`
    and after the last, at the optimizer's own point of evaluation where it has one. `closure` hands the optimizer
    what it needs to take the gradient elsewhere (SAM). `progress` is called with the step and its loss; True prints
    them. The same arguments give the same course bit for bit at the same thread count, and the global random state
    is left as it was.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Invalid {precision=}: choose one of {', '.join(PRECISIONS)}")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"Invalid {steps=}, {batch_size=}: both must be at least 1")
    if outside := [step for step in test_at if not 1 <= step <= steps]:
        raise ValueError(f"Invalid test_at: {outside[0]} is not one of {steps} steps")
    device = torch.device(device)
    rows = text.train.to(device).long()
    random = torch.Generator().manual_seed(seed)
    scheduler = LambdaLR(optimizer, schedule) if schedule else None
    losses = torch.empty(steps, device=device)  # read only now and then: reading waits for the device
    course, began = Course(), time.perf_counter()

    def gradient(windows: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            loss = _loss(model, windows)
        loss.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        return loss.detach()

    model.train()
    with deterministic(seed, device, precision):
        for step in range(1, steps + 1):
            batch = windows(rows, model.context, batch_size, random)
            if closure:
                with torch.enable_grad():
                    losses[step - 1] = optimizer.step(lambda batch=batch: gradient(batch))  # type: ignore[arg-type, misc]
            else:
                losses[step - 1] = gradient(batch)
                optimizer.step()
            if scheduler is not None:
                scheduler.step()
            if step % CHECK_EVERY == 0 or step == steps or step in test_at:
                finite = losses[:step].isfinite()
                if not finite.all():
                    course.diverged, step = True, int(finite.logical_not().nonzero()[0]) + 1
                    course.train_loss = losses[:step].tolist()
                    break
                if step == steps or step in test_at:
                    with _at_its_point(optimizer):
                        course.test_loss[step] = evaluate(model, text, precision)
                _tell(progress, type(optimizer).__name__, step, steps, float(losses[step - 1]))
        else:
            course.train_loss = losses.tolist()
    course.seconds = time.perf_counter() - began
    return course


def windows(rows: Tensor, context: int, count: int, random: torch.Generator) -> Tensor:
    """So many windows of `context` + 1 symbols, each within a row, of shape (count, context + 1)."""
    if rows.shape[1] <= context:
        raise ValueError(f"a row of {rows.shape[1]} symbols has no window of {context} + 1")
    row = torch.randint(len(rows), (count,), generator=random)
    first = torch.randint(rows.shape[1] - context, (count,), generator=random)
    places = (row * rows.shape[1] + first)[:, None] + torch.arange(context + 1)
    return rows.flatten()[places.to(rows.device)]


def evaluate(model: GPT, text: Text, precision: str = "float32") -> float:
    """The mean loss on fixed windows of the test set, in nats per symbol, of those whose context is long enough.

    What a source's next symbol depends on is seen by then: the loss can be held against the text's `entropy`.
    """
    device = next(model.parameters()).device
    chosen = windows(text.test.to(device).long(), model.context, WINDOWS, torch.Generator().manual_seed(0))
    training, total = model.training, 0.0
    model.eval()
    with torch.inference_mode(), autocast(device, precision):
        for batch in chosen.split(TEST_BATCH):  # type: ignore[no-untyped-call]
            total += float(_loss(model, batch, text.order)) * len(batch)
    model.train(training)
    return total / len(chosen)


def _loss(model: GPT, windows: Tensor, order: int = 1) -> Tensor:
    """The mean cross-entropy of the symbols before which the model has seen `order`."""
    logits, next_symbols = model(windows[:, :-1]), windows[:, 1:]
    skipped = max(order - 1, 0)
    return F.cross_entropy(logits[:, skipped:].flatten(0, 1), next_symbols[:, skipped:].flatten())


@contextlib.contextmanager
def _at_its_point(optimizer: Optimizer) -> Iterator[None]:
    averaged: Any = getattr(optimizer, "averaged", contextlib.nullcontext)
    with averaged():
        yield


def _tell(progress: bool | Callable[[int, float], None], name: str, step: int, steps: int, loss: float) -> None:
    if callable(progress):
        progress(step, loss)
    elif progress:
        report(name, step, steps, loss, unit="step")
