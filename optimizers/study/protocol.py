"""What is run: the same number of runs for every optimizer, and the best rates again with fresh seeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..mixes import Mix
from . import grid
from .errors import StudyError

Result = Mapping[str, Any]  # see `training.run`


class Run(NamedTuple):
    """One training run of an optimizer: its learning rate, as a power of √10, and its seed."""

    power: int
    seed: int


@dataclass(frozen=True)
class Protocol:
    """How many runs every optimizer gets.

    `budget` learning rates are tried with `seeds` seeds each; the best, by the mean validation loss, is run again
    with `fresh_seeds` others, and judged by these alone: what is chosen among several is flattered by the seeds
    that it was chosen with.

    Raises:
        StudyError: a number is out of its range.
    """

    budget: int = 7
    seeds: int = 3
    fresh_seeds: int = 5

    def __post_init__(self) -> None:
        for name, least in ("budget", grid.SMALLEST), ("seeds", 1), ("fresh_seeds", 1):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= 1000:
                name = name.replace("_", "-")
                raise StudyError(f"{name} must be a whole number from {least} to 1000, not {value!r}")

    @property
    def tuning(self) -> range:
        """The seeds that learning rates are chosen with."""
        return range(1000, 1000 + self.seeds)

    @property
    def fresh(self) -> range:
        """The seeds that optimizers are judged by."""
        return range(self.fresh_seeds)

    @property
    def runs(self) -> int:
        """Of each optimizer."""
        return self.budget * self.seeds + self.fresh_seeds

    def tried(self, mix: Mix, results: Mapping[Run, Result]) -> dict[int, list[float]]:
        """The learning rates that the search has come to and that are known whole: power -> loss per seed."""
        losses = {run: loss(result) for run, result in results.items()}
        known = {
            power: [losses[Run(power, seed)] for seed in self.tuning]
            for power in {run.power for run in losses}
            if all(Run(power, seed) in losses for seed in self.tuning)
        }
        wanted = grid.wanted(grid.start(mix), {p: grid.score(found) for p, found in known.items()}, self.budget)
        return {power: known[power] for power in wanted if power in known}

    def missing(self, mix: Mix, results: Mapping[Run, Result]) -> list[Run]:
        """The runs that can be done next, in order; none where all are done."""
        tried = self.tried(mix, results)
        scores = {power: grid.score(losses) for power, losses in tried.items()}
        wanted = grid.wanted(grid.start(mix), scores, self.budget)
        if len(tried) < self.budget:
            runs = [Run(power, seed) for power in wanted if power not in tried for seed in self.tuning]
        else:
            runs = [Run(grid.best(tried)[0], seed) for seed in self.fresh]
        return [run for run in runs if run not in results]


def loss(result: Result) -> float:
    """What a run is judged by: the validation loss after the last step, infinite if it diverged."""
    return math.inf if result["loss"] is None else float(result["loss"])
