"""Which implementation equals which, with the libraries themselves: `python -m benchmarks.equality`.

The rows of `book/equality.yaml` say which rule of ours is to equal, or to differ from, which of another library.
The tests run the other side by its formula; this command runs the library's own code, on the same problem, and
writes down the distance and the versions.
"""

import argparse
import math
import os
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import optimizers
from experiments import records
from experiments.errors import UserError

from . import candidates

# What two libraries read at their import: who computes for Keras, and where tinygrad needs no compiler.
os.environ |= {"KERAS_BACKEND": "torch", "DEV": "PYTHON"}

SLUG, SCALE = "equality", "standard"
TABLES = records.ROOT / "book" / "equality.yaml"
STEPS = 50
LR = 0.05  # unless a row says otherwise

Array = NDArray[np.float64]
Shape = tuple[int, ...]  # of the parameter, six numbers in all
Stepper = Callable[[Array, float], Array]  # (gradient, learning rate) -> the parameter after the step

# ---------------------------------------------------------------- the problem


def multiplier(t: int) -> float:
    """The schedule η_t, from 1: it goes down and up."""
    return (1 + 0.5 * math.sin(t)) / (1 + 0.05 * t)


def gradient(theta: Array, t: int) -> Array:
    """Of a quadratic, with noise; a large one at the first step, as AMSGrad and a bias correction need to tell."""
    noise = np.random.default_rng(t).standard_normal(6)
    return 2.0 * theta + noise * (5.0 if t == 1 else 1.0)


def start() -> Array:
    return np.random.default_rng(0).standard_normal(6) + 2.0


def path(build: Callable[[], Stepper], lr: float, scheduled: bool) -> Array:
    """The parameter after every step: (STEPS, 6), float64."""
    step, theta, points = build(), start(), []
    for t in range(1, STEPS + 1):
        theta = step(gradient(theta, t), lr * (multiplier(t - 1) if scheduled else 1.0))
        points.append(theta)
    return np.stack(points)


def distance(a: Array, b: Array) -> float:
    """The largest difference of a coordinate after any step; infinite where one is not finite."""
    return float(np.abs(a - b).max()) if np.isfinite(a).all() and np.isfinite(b).all() else math.inf


# ---------------------------------------------------------------- whoever makes a step


def with_torch(
    make: Callable[[list[torch.Tensor], float], Optimizer], lr: float, scheduled: bool, shape: Shape
) -> Stepper:
    """An optimizer of torch's kind, under torch's own scheduler."""
    theta = torch.tensor(start().reshape(shape), requires_grad=True)
    optimizer = make([theta], lr)
    getattr(optimizer, "train", bool)()  # Schedule-Free's optimizers ask for it
    scheduler = LambdaLR(optimizer, multiplier if scheduled else lambda t: 1.0)

    def step(grad: Array, rate: float) -> Array:
        theta.grad = torch.tensor(grad.reshape(shape))
        optimizer.step()
        scheduler.step()
        return theta.detach().numpy().flatten()

    return step


def ours(expression: str, lr: float, scheduled: bool, shape: Shape) -> Stepper:
    """A class of this package, or of torch, as a row writes it, without parameters and learning rate."""
    make, settings = evaluated(expression)
    return with_torch(lambda params, lr: make(params, lr=lr, **settings), lr, scheduled, shape)


def evaluated(expression: str, **names: Any) -> tuple[Any, dict[str, Any]]:
    """`Name(a=1)` as the thing named and its keyword arguments."""
    match = re.fullmatch(r"([\w.]+)\((.*)\)", expression, re.S)
    if match is None:
        raise UserError(f"{TABLES.name}: {expression!r} is not a call")
    scope = {"torch": torch, "dict": dict, **vars(optimizers), **names}
    return eval(match[1], scope), eval(f"dict({match[2]})", scope)


def theirs(call: str, lr: float, scheduled: bool, shape: Shape) -> Stepper:
    """Another library's optimizer, as a row writes it: a call in which `params` and `lr` are to be filled in."""
    name = library_of(call)
    drive = {"optax": _optax, "keras": _keras, "tinygrad": _tinygrad}.get(name)
    module = candidates.library(name)

    def make(params: Any, lr: Any) -> Any:
        return eval(call, {"torch": torch, name: module, "params": params, "lr": lr})

    return drive(module, make, lr, scheduled, shape) if drive else with_torch(make, lr, scheduled, shape)


def library_of(call: str) -> str:
    """The key of `candidates.LIBRARIES` with which a call begins."""
    return call.partition(".")[0]


def _optax(optax: Any, make: Callable[..., Any], lr: float, scheduled: bool, shape: Shape) -> Stepper:
    import jax

    jax.config.update("jax_enable_x64", True)
    # Its optimizers take the learning rate as a function of the count, from 0.
    rates = jax.numpy.asarray([lr * multiplier(t) for t in range(STEPS)])
    rule = make(None, (lambda count: rates[count]) if scheduled else lr)
    theta = jax.numpy.asarray(start().reshape(shape))
    state = rule.init(theta)
    if isinstance(state, optax.LookaheadState):  # which has two sets of parameters
        theta = optax.LookaheadParams.init_synced(theta)

    def step(grad: Array, rate: float) -> Array:
        nonlocal theta, state
        updates, state = rule.update(jax.numpy.asarray(grad.reshape(shape)), state, theta)
        theta = optax.apply_updates(theta, updates)
        return np.asarray(getattr(theta, "fast", theta)).flatten()

    return step


def _keras(keras: Any, make: Callable[..., Any], lr: float, scheduled: bool, shape: Shape) -> Stepper:
    keras.config.set_floatx("float64")
    theta = keras.Variable(start(), dtype="float64")
    optimizer = make(None, lr)
    optimizer.build([theta])

    def step(grad: Array, rate: float) -> Array:
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(grad)])
        return np.array(keras.ops.convert_to_numpy(theta))

    return step


def _tinygrad(nn: Any, make: Callable[..., Any], lr: float, scheduled: bool, shape: Shape) -> Stepper:
    import tinygrad

    tensor = partial(tinygrad.Tensor, dtype=tinygrad.dtypes.float64)
    theta = tensor(start()).realize()
    optimizer = make([theta], lr)

    def step(grad: Array, rate: float) -> Array:
        optimizer.lr.assign(tensor([rate]).cast(optimizer.lr.dtype)).realize()
        theta.grad = tensor(grad)
        with tinygrad.Context(TRAINING=1):
            optimizer.step()
        return np.array(theta.numpy())

    return step


# ---------------------------------------------------------------- the record


def comparisons() -> list[dict[str, Any]]:
    """The rows of the tables, one after the other."""
    tables = yaml.safe_load(TABLES.read_text(encoding="utf-8"))["comparisons"]
    return [row for group in tables.values() for row in group]


def measured(row: dict[str, Any], other: Callable[[float, bool, Shape], Stepper]) -> float:
    """The distance between our side of a row and `other`, made for the row's learning rate, schedule and shape."""
    given = row.get("lr", LR), row.get("schedule", True), tuple(row.get("shape", (6,)))
    rate = given[:2]
    return distance(path(partial(ours, row["ours"], *given), *rate), path(partial(other, *given), *rate))


def holds(row: dict[str, Any], far: float) -> bool:
    """Whether a distance is what the row says."""
    return far <= float(row["equals"]) if "equals" in row else far > float(row["apart"])


def key(row: dict[str, Any], call: str) -> str:
    """The metric under which a row's distance from a library's own code is kept."""
    rate = "" if row.get("schedule", True) else " constant rate"
    rate += " matrix" if "shape" in row else ""
    words = re.sub(r"\W+", "_", f"{row['ours']} {call.partition('.')[2]}{rate}").strip("_")
    return f"{library_of(call)}.{words}"


def run(out: Path | None = None) -> Path:
    """Run every library of the tables and write the record; returns its path.

    Raises:
        UserError: a library is not installed.
    """
    rows = [(row, call) for row in comparisons() for call in row.get("libraries", ())]
    names = list(dict.fromkeys(library_of(call) for _, call in rows))
    absent = {}
    for name in names:
        try:
            candidates.library(name)
        except candidates.Skip as error:
            absent[name] = str(error)
    if absent:
        raise UserError(f"{'; '.join(absent.values())} (all of them: pip install -e '.[peers]')")
    record = records.new(SLUG, SCALE, {"steps": STEPS, "libraries": names}, precision="float64")
    record.provenance["packages"] |= candidates.versions(names)
    for row, call in rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated there, which nobody can mend here
            far = measured(row, partial(theirs, call))
        record.metric(key(row, call), float(f"{far:.3g}"))
        print(f"{'as it says' if holds(row, far) else 'OTHERWISE ':10} {far:8.2g}  {row['ours']}  |  {call}")
    return records.write(record, out or records.local_path(SLUG, SCALE))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equality", description=__doc__)
    parser.add_argument("--out", type=Path, help="the record's file (default: below _build/)")
    try:
        print(run(parser.parse_args(arguments).out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
