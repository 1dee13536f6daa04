"""A schedule for torch's `LambdaLR`: warm-up, stable, decay (Hu et al., 2024; Hägele et al., 2024)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from .engine import check, plain

# What is left of the learning rate when the part x of the decay is done: from 1 at x = 0 to 0 at x = 1.
_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "sqrt": lambda x: 1 - math.sqrt(x),
}


def wsd(
    steps: int,
    warmup: float = 0,
    decay: float = 0.2,
    shape: Literal["linear", "cosine", "sqrt"] = "linear",
) -> Callable[[int], float]:
    r"""Warm-up, stable, decay, for `torch.optim.lr_scheduler.LambdaLR`.

    .. math:: \eta_t = \frac{t + 1}{W}, \quad 1, \quad \text{then} \quad f\left( \frac{t - (T - D)}{D} \right),
        \qquad f(x) = 1 - x, \quad \tfrac12 (1 + \cos \pi x) \quad \text{or} \quad 1 - \sqrt x

    t counts the scheduler's steps from 0, T is `steps`, W `warmup` and D `decay`. The first step is made at 1 / W
    of the learning rate and the last one just above 0; after T steps nothing moves. What lies between does not
    depend on T: a run can go on from there to another end, from the same checkpoint with another `wsd`. Hägele et
    al. (2024) decay in the last 10 to 20 %, by 1 − √x rather than along a line.

    Args:
        steps: T, all steps of the run, in [1, ∞).
        warmup: W, in which the learning rate rises linearly: a whole number of steps, or as a float, in [0, 1], a
            share of all; 0 for none.
        decay: D, in which it falls to 0 at the end, in the same way.
        shape: f: ``"linear"``, ``"cosine"``, or ``"sqrt"`` for 1 − √x.

    Returns:
        The multiplier as a function of t.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range, or warm-up and decay are longer
            than the run.

    Example:
        ``LambdaLR(optimizer, wsd(10_000, warmup=500, decay=0.2, shape="sqrt"))``
    """
    check("steps", steps, "int [1, inf)")
    check("shape", shape, " | ".join(_SHAPES))
    steps = plain(steps, "int [1, inf)")
    rising, falling = _part("warmup", warmup, steps), _part("decay", decay, steps)
    if rising + falling > steps:
        raise ValueError(f"warmup and decay must fit into steps={steps}, got {rising} and {falling} steps")
    # It can be pickled, as a lambda cannot, and has no attributes, which LambdaLR would take from a checkpoint.
    return partial(_multiplier, steps, rising, falling, shape)


def _part(name: str, value: float, steps: int) -> int:
    """A number of steps, which as a float is given as a share of all, rounded down."""
    given: Any = plain(value, "int [0, inf)")
    if not isinstance(given, float):
        check(name, given, f"int [0, {steps}]")
        return int(given)
    if not 0 <= given <= 1:
        raise ValueError(f"{name} must be a whole number of steps, or a share of them in [0, 1], got {given!r}")
    return math.floor(given * steps * (1 + 1e-12))  # 0.29 × 100 is 28.999…


def _multiplier(steps: int, warmup: int, decay: int, shape: str, t: int) -> float:
    if t < warmup:
        return (t + 1) / warmup
    if decay == 0 or t < steps - decay:
        return 1.0
    return _SHAPES[shape](min((t - (steps - decay)) / decay, 1.0))
