"""How much faster this project trains than a plain loop: `python -m benchmarks.training_speed [cnn] [mlp]`.

The plain loop is the reference's: a DataLoader that turns one image after the other into a normalized tensor, the
default layout, torch's own Adam, and a look at the loss after every step. All candidates run in turn, several
rounds in one process, and only ratios within a round are compared: shared machines drift.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from experiments import data, models, stacked, training
from experiments.data import Dataset
from experiments.errors import UserError
from experiments.verdicts import align
from optimizers import Adam

BATCH = 128
STACK = 16
Candidate = Callable[[], float]  # trains once and returns samples per second, per network where several are stacked


class Images(TorchDataset[tuple[torch.Tensor, int]]):
    """A data set as torchvision has it: arrays, and a transform applied to one image at a time."""

    def __init__(self, ds: Dataset) -> None:
        transforms = data.import_torchvision().transforms
        channels = ds.x_train.shape[1]
        half = (0.5,) * channels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])
        self.images, self.labels = ds.x_train.permute(0, 2, 3, 1).numpy(), ds.y_train.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def plain(make: Callable[[], nn.Module], ds: Dataset, device: str) -> Candidate:
    loader = DataLoader(Images(ds), batch_size=BATCH)

    def run() -> float:
        model = make().to(device)
        optimizer, losses, began = torch.optim.Adam(model.parameters(), lr=1e-3), [], time.perf_counter()
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        return len(ds.y_train) / (time.perf_counter() - began)

    return run


def ours(make: Callable[[], nn.Module], ds: Dataset, device: str, precision: str) -> Candidate:
    def run() -> float:
        model = make().to(device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = Adam(model.parameters(), lr=1e-3, fused=fused(device))
        history = training.train(
            model,
            optimizer,
            ds,
            epochs=1,
            seed=0,
            device=device,
            precision=precision,
            evaluate=False,
            progress=False,
        )
        return len(ds.y_train) / history.seconds

    return run


def stack(ds: Dataset, device: str, precision: str, shared: bool) -> Candidate:
    few = dataclasses.replace(ds, x_test=ds.x_test[:1], y_test=ds.y_test[:1])

    def run() -> float:
        model = stacked.StackedMLP(range(STACK), ds.x_train[0].numel(), classes=ds.classes).to(device)
        optimizer = Adam(model.parameters(), lr=1e-3, fused=fused(device))
        histories = stacked.train(
            model, optimizer, few, epochs=1, device=device, precision=precision, shared_batches=shared
        )
        return len(ds.y_train) / histories[0].seconds  # already a network's share

    return run


def fused(device: str) -> bool | None:
    return True if device == "cpu" else None


def candidates(name: str, device: str, samples: int | None) -> dict[str, Candidate]:
    ds = data.load("cifar10" if name == "cnn" else "mnist")
    n = samples or (768 if name == "cnn" else 12800)
    ds = dataclasses.replace(ds, x_train=ds.x_train[:n], y_train=ds.y_train[:n])
    if name == "cnn":
        return {
            "plain loop": plain(lambda: models.cnn(seed=0), ds, device),
            "ours, float32": ours(lambda: models.cnn(seed=0), ds, device, "float32"),
            "ours, bfloat16": ours(lambda: models.cnn(seed=0), ds, device, "bfloat16"),
        }
    return {
        "plain loop": plain(lambda: models.mlp(seed=0), ds, device),
        "ours": ours(lambda: models.mlp(seed=0), ds, device, "float32"),
        f"{STACK} stacked, own batches": stack(ds, device, "float32", False),
        f"{STACK} stacked, shared batches": stack(ds, device, "float32", True),
        f"{STACK} stacked, shared, bfloat16": stack(ds, device, "bfloat16", True),
    }


def compare(runs: dict[str, Candidate], rounds: int) -> str:
    """A table: samples per second of each candidate, and the median and range of its ratio to the first."""
    for run in runs.values():  # compilers, caches, the allocator
        run()
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            speeds[name].append(run())
    first = next(iter(speeds.values()))
    rows: list[tuple[str, ...]] = [("", "samples/s", "× plain loop", "range over rounds")]
    for name, values in speeds.items():
        ratios = [value / base for value, base in zip(values, first, strict=True)]
        rows.append(
            (
                name,
                f"{statistics.median(values):.0f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
            )
        )
    return "\n".join(align(rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="cnn, mlp or (default) both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, help="training images per round")
    options = parser.parse_args()
    for name in options.models:
        if name not in ("cnn", "mlp"):
            parser.error(f"there is no model {name!r}; there are cnn and mlp")
    torch.set_num_threads(options.threads)
    for name in options.models or ["cnn", "mlp"]:
        try:
            found = candidates(name, options.device, options.samples)
        except UserError as error:
            parser.exit(2, f"error: {error}\n")
        print(f"{name}, batch {BATCH}, {options.device}, {options.threads} threads, {options.rounds} rounds")
        print(compare(found, options.rounds), flush=True)
        print()


if __name__ == "__main__":
    main()
