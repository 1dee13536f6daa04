"""Learning rates chosen with the same budget for every optimizer, and what the ranking is worth after it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import benchmark
from experiments.mixes import Mix
from experiments.runs import Settings

# Where the search begins, as a power of √10, by the size of a rule's steps; it goes wherever the optimum is.
PLAIN, HEAVY, ADAPTIVE = -1, -5, -5
START = {"sgd": PLAIN, "momentum": HEAVY, "nesterov": HEAVY, "sgdw": HEAVY}


def start(mix: Mix) -> int:
    """The first learning rate to try: 10 to half this power."""
    name = mix.base[0]
    return START.get(name, HEAVY if "momentum" in name else ADAPTIVE)


def rate(power: int) -> float:
    """The learning rate √10 to the power: 0.001, 0.00316…, 0.01, …"""
    return float(f"{10 ** (power / 2):.3g}")


def next_power(tried: Mapping[int, float]) -> int:
    """Which power of √10 to try next, so that the grid stays without gaps and closes around its best.

    Where the best is at an end of the grid, the one beyond it; else the one beyond the end that is nearer to it.
    """
    low, high = min(tried), max(tried)
    best = min(tried, key=lambda power: (tried[power], power))
    return low - 1 if best - low < high - best else high + 1


def tune(
    chosen: Sequence[Mix],
    settings: Settings,
    seeds: Sequence[int],
    folder: Path,
    *,
    budget: int = 7,
    processes: int = 1,
) -> dict[str, dict[int, list[float]]]:
    """For every mix, by its text: power of √10 -> the validation loss at the end, per seed.

    Every mix has the same number of learning rates, `budget` ≥ 3, on a grid that moves to where its optimum is. A
    run that diverged counts as infinite.
    """
    tried: dict[str, dict[int, list[float]]] = {mix.text: {} for mix in chosen}
    for count in range(3, budget + 1):
        powers = {}
        for mix in chosen:
            middle, known = start(mix), {k: score(v) for k, v in tried[mix.text].items()}
            powers[mix.text] = [next_power(known)] if known else [middle - 1, middle, middle + 1]
        todo = [
            job
            for mix in chosen
            for power in powers[mix.text]
            for job in benchmark.jobs([mix], settings, seeds, [rate(power)])
        ]
        found = benchmark.run_all(todo, folder, processes=processes)
        by_rate = {(text, lr): parts for text, lr, parts in benchmark.by_mix(todo, found)}
        for mix in chosen:
            for power in powers[mix.text]:
                losses = benchmark.merge(by_rate[mix.text, rate(power)])[0]["val_loss"]
                tried[mix.text][power] = [math.inf if loss is None else loss for loss in losses]
        assert all(len(grid) == count for grid in tried.values())
    return {text: dict(sorted(grid.items())) for text, grid in tried.items()}


def score(losses: Sequence[float]) -> float:
    """What a learning rate is judged by: the mean over the tuning seeds."""
    return sum(losses) / len(losses)


def best(grid: Mapping[int, Sequence[float]]) -> tuple[int, bool]:
    """The best power of a grid, and whether it lies at an end: then the budget was too small."""
    power = min(grid, key=lambda k: (score(grid[k]), k))
    return power, power in (min(grid), max(grid))


def ranks(
    losses: Mapping[str, Sequence[float | None]], samples: int = 2000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Rank by mean loss (1 is best), with a 95 % bootstrap interval: name -> (rank, low, high).

    The seeds are drawn with replacement, the same for all names, as many as there are; a run that diverged counts
    as infinitely bad. Names with equal means share the better rank.
    """
    table = np.array([[math.inf if v is None else v for v in values] for values in losses.values()], dtype=float)
    n = table.shape[1]
    draws = np.random.default_rng(seed).integers(0, n, size=(samples, n))
    means = table[:, draws].mean(axis=2)  # names × samples
    drawn = 1 + (means[None] < means[:, None]).sum(axis=1)
    observed = 1 + (table.mean(1)[None] < table.mean(1)[:, None]).sum(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=1)
    return {name: (float(observed[i]), float(low[i]), float(high[i])) for i, name in enumerate(losses)}


def profile(curve: Mapping[str, Any], targets: Sequence[float]) -> list[list[float]]:
    """Per seed, and at every x of a training-loss curve: the share of the targets that have been reached."""
    shares = []
    for line in curve["seeds"]:
        lowest = np.minimum.accumulate([math.inf if y is None else y for y in line])
        shares.append([float(v) for v in (lowest[None] <= np.array(targets)[:, None]).mean(axis=0)])
    return shares
