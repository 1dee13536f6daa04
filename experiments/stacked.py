"""Many seeds of a small network at once: their weights are stacked into one parameter, so one step moves them all.

A small network leaves most of the machine idle; n of them as one batched product do not. Every rule that works
coordinate by coordinate then steps all networks with one call of one optimizer, and its noise and masks, which are
functions of the coordinate, differ from network to network. With `Rates` they also differ in the learning rate, so
that a whole grid is one training run.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from experiments import models
from experiments.data import Dataset
from experiments.training import CHECK_EVERY, History, autocast, deterministic, resident
from optimizers import Place, Stage


class StackedMLP(nn.Module):
    """`models.mlp(in_features, hidden, classes, seed=s)` for every s in `seeds`, n networks in all.

    Takes images (batch, …), which all networks share, or (n, batch, …), one batch for each; gives logits
    (n, batch, classes). Weights are (n, out, in), biases (n, 1, out).
    """

    def __init__(
        self, seeds: Sequence[int], in_features: int = 784, hidden: tuple[int, ...] = (64,), classes: int = 10
    ) -> None:
        super().__init__()
        nets = [models.mlp(in_features, hidden, classes, seed=seed) for seed in seeds]
        layers = [[module for module in net if isinstance(module, nn.Linear)] for net in nets]
        self.seeds = tuple(seeds)
        self.weights = nn.ParameterList(
            torch.stack([layer.weight.detach() for layer in row]) for row in zip(*layers, strict=True)
        )
        self.biases = nn.ParameterList(
            torch.stack([layer.bias.detach()[None] for layer in row]) for row in zip(*layers, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        first = True
        for weight, bias in zip(self.weights, self.biases, strict=True):
            n, out, _ = weight.shape
            if first and x.dim() == 2:  # shared images: all first layers are one wide layer
                h = F.linear(x, weight.flatten(0, 1), bias.flatten()).view(-1, n, out).transpose(0, 1)
            else:
                h = torch.baddbmm(bias, x if first else h.relu(), weight.transpose(1, 2))
            first = False
        return h


class Rates(Stage):
    """A learning rate of its own for every network of a stack: the update of network i is multiplied by `rates[i]`.

    It takes the place of a learning rate: the optimizer's is then 1, or what a schedule makes of that. Not for a
    rule that asks for its learning rate, such as AdaBound.
    """

    place = Place.STEP_SIZE
    state = ("rate",)

    def __init__(self, rates: Sequence[float]) -> None:
        super().__init__()
        self.rates = tuple(rates)

    def initial(self, name: str, param: Tensor) -> Tensor:
        rates = torch.tensor(self.rates, dtype=param.dtype, device=param.device)
        return rates.view(-1, *[1] * (param.dim() - 1)).expand_as(param).clone()

    @staticmethod
    def update(update: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        return rate * update, rate


def train_grid(
    make: Callable[..., Optimizer],
    rates: Sequence[float],
    seeds: Sequence[int],
    ds: Dataset,
    *,
    hidden: tuple[int, ...],
    device: str | torch.device = "cpu",
    **options: Any,
) -> dict[float, list[History]]:
    """By learning rate the histories of networks with these seeds, all trained as one stack.

    `make(params, lr=…, extensions=…)` makes the optimizer, `options` are those of `train`. Networks of a single
    seed see the same batches.
    """
    pairs = [(rate, seed) for rate in rates for seed in seeds]
    model = StackedMLP([seed for _, seed in pairs], ds.x_train[0].numel(), hidden, ds.classes).to(device)
    optimizer = make(model.parameters(), lr=1.0, extensions=[Rates([rate for rate, _ in pairs])])
    options = {"shared_batches": len(set(seeds)) == 1, **options}
    histories = iter(train(model, optimizer, ds, device=device, **options))
    return {rate: [next(histories) for _ in seeds] for rate in rates}


def train(
    model: StackedMLP,
    optimizer: Optimizer,
    ds: Dataset,
    *,
    epochs: int,
    batch_size: int = 128,
    shared_batches: bool = False,
    device: str | torch.device = "cpu",
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    precision: str = "float32",
    progress: Callable[[int, float], None] | None = None,
) -> list[History]:
    """Train every network of the stack as `training.train` would train it alone; one history per network.

    Each network visits the examples in the order of its own seed, or, where they share batches, in that of the
    first one's. The results are those of single runs to within rounding. `schedule` is stepped after every step;
    one that looks at the loss would need a learning rate per network. A network that diverges ends with its
    first non-finite loss and does not disturb the others.
    """
    device, n = torch.device(device), len(model.seeds)
    x, y, x_test, y_test = resident(ds, device, torch.contiguous_format)
    x, x_test = x.flatten(1), x_test.flatten(1)
    size = len(y)
    batches = math.ceil(size / batch_size)
    weight = torch.full((batches,), batch_size / size, dtype=torch.float64)
    weight[-1] = (size - (batches - 1) * batch_size) / size
    orders = [torch.Generator().manual_seed(seed) for seed in model.seeds[: 1 if shared_batches else n]]
    scheduler = schedule(optimizer) if schedule else None
    losses = torch.full((epochs * batches, n), math.nan, device=device)
    histories, began, step = [History() for _ in range(n)], time.perf_counter(), 0

    model.train()
    with deterministic(model.seeds[0], device, precision):
        for epoch in range(1, epochs + 1):
            order = torch.stack([torch.randperm(size, generator=generator) for generator in orders]).to(device)
            for indices in order.split(batch_size, dim=1):  # type: ignore[no-untyped-call]
                shape = (1, -1) if shared_batches else indices.shape
                images = x.index_select(0, indices.flatten())
                labels = y.index_select(0, indices.flatten()).view(shape).expand(n, -1)
                optimizer.zero_grad(set_to_none=True)
                with autocast(device, precision):
                    logits = model(images if shared_batches else images.view(*shape, -1))
                    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(n, -1)
                means = each.mean(1)
                means.sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                losses[step] = means.detach()
                step += 1
                if step % CHECK_EVERY == 0 and not losses[step - 1].isfinite().any():
                    break
            alive = losses[:step].isfinite().all(0).tolist()
            if not any(alive):
                break
            mean = losses[step - batches : step].cpu().double().T @ weight
            results = evaluate(model, x_test, y_test, precision)
            for history, living, loss, (accuracy, test_loss) in zip(
                histories, alive, mean.tolist(), results, strict=True
            ):
                if living:
                    history.epoch.append(
                        {"epoch": epoch, "train_loss": loss, "test_loss": test_loss, "test_accuracy": accuracy}
                    )
            if progress:
                progress(epoch, float(mean.nanmean()))
    seconds = time.perf_counter() - began
    for history, column in zip(histories, losses[:step].T.tolist(), strict=True):
        end = next((i for i, loss in enumerate(column) if not math.isfinite(loss)), None)
        history.diverged = end is not None
        history.train_loss = column if end is None else column[: end + 1]
        history.seconds = seconds / n
    return histories


def evaluate(
    model: StackedMLP, x: Tensor, y: Tensor, precision: str = "float32", batch: int = 1000
) -> list[tuple[float, float]]:
    """(accuracy, mean cross-entropy) of every network on flattened images (N, features)."""
    n = len(model.seeds)
    correct = torch.zeros(n, dtype=torch.int64, device=x.device)
    total = torch.zeros(n, dtype=torch.float64, device="cpu" if x.device.type == "mps" else x.device)
    with torch.inference_mode(), autocast(x.device, precision):
        for images, labels in zip(x.split(batch), y.split(batch), strict=True):  # type: ignore[no-untyped-call]
            logits = model(images)
            labels = labels.expand(n, -1)
            correct += (logits.argmax(2) == labels).sum(1)
            each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(n, -1)
            total += each.sum(1).to(total)
    return [(c / len(y), t / len(y)) for c, t in zip(correct.tolist(), total.tolist(), strict=True)]
