"""The book's figures: those of `optimizers.study.figures`, displayed in a page.

One color per optimizer in the whole book, text and axes in the page's own: see there.
"""

from matplotlib.figure import Figure

from optimizers.study.figures import (
    ALIASES,
    INK,
    PALETTE,
    STYLES,
    WIDTH,
    Powers,
    band,
    color,
    direct_labels,
    figure,
    markup,
    plain_ticks,
    style,
)
from optimizers.study.labels import spread

__all__ = [
    "ALIASES",
    "INK",
    "PALETTE",
    "STYLES",
    "WIDTH",
    "Powers",
    "band",
    "color",
    "direct_labels",
    "figure",
    "markup",
    "plain_ticks",
    "show",
    "spread",
    "style",
]


def show(fig: Figure, *, alt: str) -> None:
    """Display `fig` as inline SVG. `alt` says in words what the figure shows; it is required."""
    from IPython.display import display

    display({"text/html": markup(fig, alt), "text/plain": alt}, raw=True)  # type: ignore[no-untyped-call]
