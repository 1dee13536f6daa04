"""What a study found: the ranking with its uncertainty, what is undecided, and how many seeds would decide it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from .grid import best, rate
from .memory import MIB
from .protocol import Result, loss

CONFIDENCE = 0.95
MANY = 1000  # seeds: who would need more are as good as equal
LEAK = 64 * MIB  # that a process grows by in most runs


@dataclass
class Arm:
    """An optimizer at one learning rate, with all that was measured of it.

    `runs` are those that it is judged by, of the same seeds for all, and `grid` the search: power of √10 -> loss
    per seed; it is empty where nothing was searched.
    """

    name: str
    runs: Sequence[Result]
    grid: Mapping[int, Sequence[float]] = field(default_factory=dict)
    code: Sequence[str] = ()
    failed: str = ""  # why it has no runs


def summarize(arms: Sequence[Arm]) -> dict[str, Any]:
    """The study as plain JSON values: ``optimizers``, best first, ``comparisons`` with the best, and ``warnings``.

    Optimizers that failed come last, with nothing but their reason.
    """
    judged = {arm.name: arm for arm in arms if arm.runs}
    losses = {name: [loss(run) for run in arm.runs] for name, arm in judged.items()}
    places = ranks(losses) if losses else {}
    order = sorted(judged, key=lambda name: (places[name][0], places[name][2]))
    optimizers = [_measured(judged[name], places[name]) for name in order]
    failed = [{"name": arm.name, "failed": arm.failed} for arm in arms if not arm.runs]
    return {
        "optimizers": optimizers + failed,
        "comparisons": [compare(name, order[0], losses[name], losses[order[0]]) for name in order[1:]],
        "warnings": _warnings(arms, optimizers),
    }


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


def compare(name: str, best: str, losses: Sequence[float], lowest: Sequence[float]) -> dict[str, Any]:
    """How much more an optimizer's loss is than that of the best, seed by seed, and whether that is decided.

    ``difference``, ``low`` and ``high`` are the mean and its 95 % interval (Student's t of the paired differences),
    None where a run diverged or there is one seed; ``decided`` says whether 0 is outside. ``seeds`` is the number
    that would decide it, were the mean and the spread to stay: None where it is decided, or more than `MANY`.
    """
    found: dict[str, Any] = {"name": name, "best": best, "difference": None, "low": None, "high": None}
    if any(map(math.isinf, losses)) or any(map(math.isinf, lowest)):
        more = sum(map(math.isinf, losses)) > sum(map(math.isinf, lowest))
        return {**found, "decided": more and sum(map(math.isinf, losses)) == len(losses), "seeds": None}
    differences = [a - b for a, b in zip(losses, lowest, strict=True)]
    mean, low, high = interval(differences)
    found |= {"difference": mean, "low": low, "high": high}
    decided = low is not None and high is not None and (low > 0 or high < 0)
    spread = statistics.stdev(differences) if len(differences) > 1 else None
    enough = None if decided or spread is None or not mean else seeds(mean, spread)
    return {**found, "decided": decided, "seeds": enough}


def interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95 % interval by Student's t; None for its ends where there is one value."""
    mean = statistics.fmean(values)
    if len(values) < 2 or len(set(values)) == 1:
        return mean, *((None, None) if len(values) < 2 else (mean, mean))
    found = stats.ttest_1samp(values, 0).confidence_interval(CONFIDENCE)
    return mean, float(found.low), float(found.high)


def seeds(difference: float, spread: float) -> int | None:
    """The fewest seeds for which the interval of a difference would not reach 0; None if more than `MANY`."""
    n = np.arange(2, MANY + 1)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * spread / np.sqrt(n)
    enough = n[half < abs(difference)]
    return int(enough[0]) if len(enough) else None


def _measured(arm: Arm, place: tuple[float, float, float]) -> dict[str, Any]:
    lost = sum(run["loss"] is None for run in arm.runs)
    finite = [loss(run) for run in arm.runs if run["loss"] is not None]
    metrics = [run["metric"] for run in arm.runs if run["metric"] is not None]
    power, at_edge = best(arm.grid) if arm.grid else (None, False)
    first = arm.runs[0]
    return {
        "name": arm.name,
        "rank": place[0],
        "rank_low": place[1],
        "rank_high": place[2],
        "lr": None if power is None else rate(power),
        "at_edge": at_edge,
        "losses": [run["loss"] for run in arm.runs],
        "loss": interval(finite)[0] if finite and not lost else None,
        "low": interval(finite)[1] if finite and not lost else None,
        "high": interval(finite)[2] if finite and not lost else None,
        "metric": statistics.fmean(metrics) if metrics and not lost else None,
        "diverged": lost,
        "grid": [
            {"lr": rate(k), "losses": [v if math.isfinite(v) else None for v in arm.grid[k]]}
            for k in sorted(arm.grid)
        ],
        "ms": statistics.median(run["ms"] for run in arm.runs),
        "params": first["params"],
        "state": first["state"],
        "peak": first["peak"],
        "curves": [{**run["curve"], "seconds": run["seconds"]} for run in arm.runs],
        "validation": [run["validation"] for run in arm.runs],
        "code": list(arm.code),
    }


def _warnings(arms: Sequence[Arm], optimizers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must not overlook, one sentence each."""
    found = [f"{arm.name} has no result: {arm.failed}." for arm in arms if not arm.runs and arm.failed]
    for row in optimizers:
        if row["grid"] and all(None in point["losses"] for point in row["grid"]):
            found.append(f"{row['name']} diverged at every learning rate that was tried.")
        elif row["at_edge"]:
            found.append(
                f"{row['name']} is best at the end of its learning rates, {row['lr']:g}: its optimum may lie "
                "beyond, and a larger budget finds it."
            )
        if row["diverged"]:
            found.append(f"{row['name']} diverged with {row['diverged']} of {len(row['losses'])} fresh seeds.")
    runs = [run for arm in arms for run in arm.runs]
    grown = statistics.median(run["grown"] for run in runs) if runs else 0
    if grown > LEAK:
        found.append(f"The problem seems to leak memory: a run leaves {grown / MIB:,.0f} MiB more than it found.")
    machines = sorted({run["machine"] for run in runs})
    if len(machines) > 1:
        found.append(f"Times are of {len(machines)} machines and do not compare: {'; '.join(machines)}.")
    return found
