"""Learning rates chosen with the same budget for every optimizer, by the search of `optimizers.study`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import benchmark
from experiments.mixes import Mix
from experiments.runs import Settings
from optimizers.study.analysis import ranks
from optimizers.study.grid import best, rate, score, start, wanted

__all__ = ["best", "profile", "ranks", "rate", "tune"]


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

    def missing(mix: Mix) -> list[int]:
        known = {power: score(losses) for power, losses in tried[mix.text].items()}
        return [power for power in wanted(start(mix), known, budget) if power not in known]

    while powers := {mix.text: left for mix in chosen if (left := missing(mix))}:
        asked = [mix for mix in chosen if mix.text in powers]
        todo = [
            job
            for mix in asked
            for power in powers[mix.text]
            for job in benchmark.jobs([mix], settings, seeds, [rate(power)])
        ]
        found = benchmark.run_all(todo, folder, processes=processes)
        by_rate = {(text, lr): parts for text, lr, parts in benchmark.by_mix(todo, found)}
        for mix in asked:
            for power in powers[mix.text]:
                losses = benchmark.merge(by_rate[mix.text, rate(power)])[0]["val_loss"]
                tried[mix.text][power] = [math.inf if loss is None else loss for loss in losses]
    return {text: dict(sorted(grid.items())) for text, grid in tried.items()}


def profile(curve: Mapping[str, Any], targets: Sequence[float]) -> list[list[float]]:
    """Per seed, and at every x of a training-loss curve: the share of the targets that have been reached."""
    shares = []
    for line in curve["seeds"]:
        lowest = np.minimum.accumulate([math.inf if y is None else y for y in line])
        shares.append([float(v) for v in (lowest[None] <= np.array(targets)[:, None]).mean(axis=0)])
    return shares
