"""Labels beside the ends of lines, in place of a legend."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]


def place(fig: Figure, ax: Axes) -> None:
    """Write each line's label beside its last point, moved up or down by as little as keeps the labels apart."""
    for text in list(ax.texts):
        if text.get_gid() == "direct-label":
            text.remove()
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    if not lines:
        return
    ax.get_xlim(), ax.get_ylim()  # only now are they computed from the data
    low, high = ax.get_window_extent().y0, ax.get_window_extent().y1
    ends = []
    for line in lines:
        points = ax.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
        finite = points[np.isfinite(points).all(axis=1)]
        ends.append(float(np.clip(finite[-1, 1], low, high)) if len(finite) else low)
    gap = 13 * fig.dpi / 72  # one line of text
    heights = spread(ends, gap, low, high)
    for line, height in zip(lines, heights, strict=True):
        ax.annotate(
            str(line.get_label()),
            xy=(1, (height - low) / (high - low)),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=to_hex(line.get_color()),
            fontsize=10,
            fontweight="bold",
            gid="direct-label",
            annotation_clip=False,
        )


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions moved as little as possible (least squares, order kept) until neighbors are `gap` apart.

    All stay within [low, high] where they fit; where they do not, they begin at `low`. Shape (n,) as `positions`.
    """
    order = np.argsort(positions, kind="stable")
    ranks = gap * np.arange(len(positions))
    # Less `gap` per rank, "gap apart" becomes "not decreasing".
    pooled = isotonic_regression(np.asarray(positions, dtype=float)[order] - ranks).x
    result = np.empty(len(positions))
    result[order] = np.clip(pooled, low, max(low, high - gap * (len(positions) - 1))) + ranks
    return [float(place) for place in result]
