"""The figures of a report, drawn as the book draws its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import figures

HUES = [name for name in figures.PALETTE if name != "gray"] + ["gray"]
DASHES = ("-", "--", ":", "-.")


def style(place: int) -> tuple[str, str]:
    """(color, dashes) of the optimizer at this place: no two alike among the first forty."""
    return figures.PALETTE[HUES[place % len(HUES)]][0], DASHES[place // len(HUES) % len(DASHES)]


def sensitivity(rows: Sequence[Mapping[str, Any]]) -> str:
    """Validation loss over the learning rate, one line per optimizer, the range over the seeds as a band."""
    fig, ax = figures.figure(height=3.6)
    finite = []
    for place, row in enumerate(rows):
        rates = [point["lr"] for point in row["grid"]]
        losses = np.array([point["losses"] for point in row["grid"]], dtype=float).T
        losses = np.where(np.isnan(losses).any(axis=0), np.nan, losses)  # a rate that diverged is no point
        if np.isfinite(losses).any():
            color, dashes = style(place)
            line = figures.band(ax, rates, losses, row["name"], color=color, linestyle=dashes)
            line.set_marker("o")
            line.set_markersize(4)
            finite.append(np.nanmean(losses, axis=0))
    ax.set(xscale="log", xlabel="learning rate", ylabel="validation loss", title="Sensitivity to the learning rate")
    _clip(ax, finite, 30 * max((float(np.nanmin(line)) for line in finite), default=1.0))
    bests = ", ".join(f"{row['name']} at {row['lr']:g}" for row in rows if row["lr"] is not None)
    return figures.markup(fig, f"Validation loss over the learning rate, lowest for {bests}.")


def ranks(rows: Sequence[Mapping[str, Any]]) -> str:
    """The ranks with their bootstrap intervals, best first."""
    fig, ax = figures.figure(height=0.9 + 0.34 * len(rows))
    for place, row in enumerate(rows):
        y, color = len(rows) - 1 - place, style(place)[0]
        ax.plot([row["rank_low"], row["rank_high"]], [y, y], color=color, linewidth=5, alpha=0.35)
        ax.plot([row["rank"]], [y], "o", color=color)
    names = [row["name"] for row in reversed(rows)]
    ax.set(yticks=range(len(rows)), yticklabels=names, xlabel="rank by validation loss", title="Ranking")
    ax.set(xlim=(0.5, len(rows) + 0.5), xticks=range(1, len(rows) + 1, max(1, len(rows) // 10)))
    told = ", ".join(f"{r['name']} {r['rank']:.0f}, from {r['rank_low']:.0f} to {r['rank_high']:.0f}" for r in rows)
    return figures.markup(fig, f"Ranks with their bootstrap intervals: {told}.")


def curves(rows: Sequence[Mapping[str, Any]], against: str) -> str:
    """Training loss, against the "step" or the "time" in seconds that training took."""
    fig, ax = figures.figure(height=3.6)
    finite = []
    for place, row in enumerate(rows):
        whole = max(row["curves"], key=lambda curve: len(curve["x"]))
        x = np.array(whole["x"], dtype=float)
        if against == "time":  # all steps alike, at the median time of one
            x = x * row["ms"] / 1000
        lines = np.full((len(row["curves"]), len(x)), np.nan)
        for line, curve in zip(lines, row["curves"], strict=True):
            line[: len(curve["y"])] = np.array(curve["y"], dtype=float)
        if np.isfinite(lines).any():
            color, dashes = style(place)
            figures.band(ax, x, lines, row["name"], color=color, linestyle=dashes)
            finite.append(np.nanmean(np.where(np.isfinite(lines), lines, np.nan), axis=0))
    label = "step" if against == "step" else "seconds of training"
    ax.set(xlabel=label, ylabel="training loss", title=f"Training loss against the {against}")
    _clip(ax, finite, max((float(line[np.isfinite(line)][0]) for line in finite), default=1.0))
    ends = ", ".join(f"{r['name']} after {r['curves'][0]['seconds']:.3g} s" for r in rows)
    told = "each at its learning rate" if against == "step" else f"to the end: {ends}"
    return figures.markup(fig, f"Training loss against the {against}, {told}.")


def _clip(ax: Any, lines: Sequence[Any], ceiling: float) -> None:
    """A logarithmic axis for positive losses, without what is above the ceiling: a run that goes astray."""
    values = np.concatenate([line[np.isfinite(line)] for line in lines]) if lines else np.empty(0)
    if len(values) and values.min() > 0:
        low, high = values.min(), min(values.max(), ceiling)
        ax.set(yscale="log", ylim=(low / 1.15, high * 1.15))
        if high / low < 100:
            figures.plain_ticks(ax)
