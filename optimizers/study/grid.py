"""Learning rates on a grid of half decades that moves to where its best is: the same number for every optimizer.

A rate is written as its power of √10: −6 is 0.001, −5 is 0.00316. What to try next depends on nothing but what was
found so far, so that whoever goes on with a search, anywhere, tries the same.
"""

import math
from collections.abc import Mapping, Sequence

import torch

import optimizers

from ..mixes import Mix
from ..muon import Muon

# Where the search of the reference's runs begins, by the size of their steps; all of them have 0.001 for their own.
PLAIN, HEAVY, ADAPTIVE = -1, -5, -5
START = {"sgd": PLAIN, "momentum": HEAVY, "nesterov": HEAVY, "sgdw": HEAVY}
SMALLEST = 3  # the fewest rates that can close around a best one


def start(mix: Mix) -> int:
    """The middle of the first three rates to try: near the one that the mix says, else near its optimizer's own."""
    name, positional, named = mix.base
    if name in optimizers.recipes and not positional and "lr" not in dict(named):
        return START.get(name, HEAVY if "momentum" in name else ADAPTIVE)
    probe = mix.build([torch.zeros(1, requires_grad=True)])
    if isinstance(probe, Muon) and not positional and "lr" not in dict(named):
        return power(0.02)  # as in muon_groups
    lr = float(probe.param_groups[0]["lr"])
    return power(lr) if lr > 0 else ADAPTIVE


def rate(power: int) -> float:
    """The learning rate √10 to the power: 0.001, 0.00316…, 0.01, …"""
    return float(f"{10 ** (power / 2):.3g}")


def power(rate: float) -> int:
    """The power whose rate is nearest."""
    return round(2 * math.log10(rate))


def next_power(tried: Mapping[int, float]) -> int:
    """Which power of √10 to try next, so that the grid stays without gaps and closes around its best.

    Where the best is at an end of the grid, the one beyond it; else the one beyond the end that is nearer to it.
    """
    low, high = min(tried), max(tried)
    best = min(tried, key=lambda power: (tried[power], power))
    return low - 1 if best - low < high - best else high + 1


def wanted(first: int, known: Mapping[int, float], budget: int) -> list[int]:
    """The powers that a search has come to, in order: all of its `budget` where all of them are known.

    Args:
        first: the middle of the three that it begins with.
        known: scores by power, the smallest is best; more than the search has asked for do not matter.
        budget: the number of rates, at least 3.
    """
    grid = {first - 1, first, first + 1}
    while len(grid) < budget and all(power in known for power in grid):
        grid.add(next_power({power: known[power] for power in grid}))
    return sorted(grid)


def score(losses: Sequence[float]) -> float:
    """What a learning rate is judged by: the mean over the tuning seeds."""
    return sum(losses) / len(losses)


def best(grid: Mapping[int, Sequence[float]]) -> tuple[int, bool]:
    """The best power of a grid, and whether it lies at an end: then the budget was too small."""
    power = min(grid, key=lambda k: (score(grid[k]), k))
    return power, power in (min(grid), max(grid))
