"""Figures of the book and of a study's report: inline SVG that follows the theme, seeds as bands.

Text and axes are drawn in `currentColor` and curves in `light-dark(…)`, so one picture is right on a white page,
on a dark one, and in print. Labels are plain text: write θ₁ and 10⁻³, not TeX.
"""

import contextlib
import functools
import hashlib
import html
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Tick
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator

from .labels import place

# Ink stands for currentColor while matplotlib draws: an ordinary black would not be written out at all.
INK = "#010203"
WIDTH = 6.6  # inches; one point becomes about one pixel on a phone and one and a half on a desk
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"

# Hues of Okabe and Ito's palette, which color-blind readers can tell apart, darkened for the white page and
# lightened for the dark one (#14181e): each has a contrast of at least 4.5 with its page, so labels wear it too.
PALETTE: dict[str, tuple[str, str]] = {
    "gray": ("#5f6670", "#aeb6c1"),
    "orange": ("#9a5b00", "#f0a83c"),
    "vermilion": ("#bb4400", "#ff8d52"),
    "green": ("#00775a", "#2fc89c"),
    "pink": ("#a33f7c", "#eb9fcb"),
    "blue": ("#0068a9", "#56b4f5"),
    "violet": ("#6743b8", "#b6a0ff"),
    "teal": ("#0a7585", "#45c4d6"),
    "crimson": ("#b3204a", "#ff8ba3"),
    "olive": ("#6c6a00", "#c6c441"),
}
# Relatives share a hue, or neighboring hues, and differ in the dashes.
STYLES: dict[str, tuple[str, str]] = {
    "sgd": ("gray", "-"),
    "momentum": ("orange", "-"),
    "nesterov": ("vermilion", "-"),
    "aggmo": ("violet", "--"),
    "sgdw": ("gray", "--"),
    "adagrad": ("green", "-"),
    "rmsprop": ("pink", "-"),
    "adadelta": ("olive", "-"),
    "adam": ("blue", "-"),
    "adamw": ("violet", "-"),
    "amsgrad": ("teal", "-"),
    "nadam": ("crimson", "-"),
    "radam": ("teal", "--"),
    "adabound": ("crimson", "--"),
    "amsbound": ("crimson", ":"),
    "adamax": ("blue", "--"),
    "lookahead": ("olive", "--"),
}
ALIASES = {"sgdmomentum": "momentum", "heavyball": "momentum", "nag": "nesterov", "sgdnesterov": "nesterov"}

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

RC: Any = {
    "figure.constrained_layout.w_pad": 0.1,
    "svg.fonttype": "none",  # text stays text: it can be searched, zoomed and read aloud
    "svg.hashsalt": "optimization-for-deep-learning",  # the same figure is the same file
    "font.size": 11,
    "font.family": "DejaVu Sans",  # for measuring only; the page's own font is drawn
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 10,
}


def style(label: str) -> tuple[str, str]:
    """(color, dashes) of an optimizer in the whole book; `Adam`, `adam` and `Adam (no correction)` are one.

    What stands in the brackets, and any word after a comma, does not count. An unknown name gets a hue of its own
    that depends on nothing but the name.
    """
    key = re.sub(r"[^a-z0-9]", "", re.split(r"[(,]", label.lower())[0])
    key = ALIASES.get(key, key)
    if key in STYLES:
        hue, dashes = STYLES[key]
    else:
        number = hashlib.sha256(key.encode()).digest()[0]
        hue, dashes = list(PALETTE)[number % len(PALETTE)], "-."
    return PALETTE[hue][0], dashes


def color(label: str) -> str:
    """The color of an optimizer on the white page, "#rrggbb"; `show` pairs it with the one for the dark page."""
    return style(label)[0]


def figure(nrows: int = 1, ncols: int = 1, *, height: float = 3.0, **options: Any) -> tuple[Figure, Any]:
    """A figure of the book's width and `height` inches with its axes, in the book's style.

    Returns what `matplotlib.pyplot.subplots` does, for a figure that pyplot does not know and so cannot leak.
    `options` go to `Figure.subplots` (sharex, sharey, width_ratios, …).
    """
    matplotlib.rcParams.update(RC)  # and it stays: titles and labels are written after this returns
    fig = Figure(figsize=(WIDTH, height), dpi=72, layout="constrained")  # 72: what SVG is written in
    FigureCanvasSVG(fig)
    return fig, fig.subplots(nrows, ncols, **options)


def band(
    ax: Axes,
    x: npt.ArrayLike,
    seeds: npt.ArrayLike,
    label: str,
    *,
    color: str | None = None,
    linestyle: str | None = None,
) -> Line2D:
    """The mean over the seeds as a line, their whole range as a band, and the label at the line's end.

    `x` has shape (points,), `seeds` (seeds, points) or (points,). A seed that is nan or None at a point does not
    count there. Returns the line. Raises ValueError if the shapes do not fit.
    """
    places = np.asarray(x, dtype=float)
    values = np.atleast_2d(np.asarray(seeds, dtype=float))
    if places.ndim != 1 or values.ndim != 2 or values.shape[1] != len(places):
        raise ValueError(f"band {label!r}: x of shape {places.shape} does not fit seeds of shape {values.shape}")
    seen = np.isfinite(values).any(axis=0)
    places, masked = places[seen], np.ma.masked_invalid(values[:, seen])
    own_color, own_dashes = style(label)
    chosen = color or own_color
    (line,) = ax.plot(places, masked.mean(axis=0), linestyle or own_dashes, color=chosen, label=label)
    if len(values) > 1:
        ax.fill_between(places, masked.min(axis=0), masked.max(axis=0), color=chosen, alpha=0.18, linewidth=0)
    direct_labels(ax)
    return line


def plain_ticks(ax: Axes, subs: Sequence[float] = (1, 2, 5)) -> None:
    """Label a logarithmic y axis of few decades with plain numbers: `subs` times the powers of ten."""
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()


class Powers(LogFormatterSciNotation):
    """Powers of ten as plain text, 10⁻³ and 2×10⁻³: TeX takes a parser for each, and no reader finds it."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        label = super().__call__(x, pos)
        found = re.fullmatch(r"\$\\mathdefault\{(.*?)10\^\{(-?\d+)\}\}\$", label)
        return f"{found[1]}10{found[2].translate(SUPERSCRIPTS)}".replace(r"\times", "×") if found else label


def direct_labels(ax: Axes) -> None:
    """Name every labeled line of `ax` at its right end instead of in a legend; `show` finds the free places."""
    ax._direct_labels = True  # type: ignore[attr-defined]


def markup(fig: Figure, alt: str) -> str:
    """The figure as HTML: one <svg role="img"> with its title, in a box that scrolls where the page is narrow."""
    if not alt.strip():
        raise ValueError("a figure needs an alt text: say in words what it shows")
    axes = [axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)]
    with matplotlib.rc_context(RC), _remembering(axes):
        for axis in axes:
            if type(axis.get_major_formatter()) is LogFormatterSciNotation:
                axis.set_major_formatter(Powers())
            if type(axis.get_minor_formatter()) is LogFormatterSciNotation:
                axis.set_minor_formatter(Powers())
        labeled = [ax for ax in fig.axes if getattr(ax, "_direct_labels", False)]
        for ax in labeled:
            place(fig, ax)  # for the layout to leave them room
        _lay_out(fig)
        for ax in labeled:
            place(fig, ax)  # where the lines end now
        file = io.StringIO()
        FigureCanvasSVG(fig).print_svg(file)  # type: ignore[no-untyped-call]
    svg = _tidy(file.getvalue())
    tag = hashlib.sha256(svg.encode()).hexdigest()[:8]  # ids must differ between the figures of one page
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f{tag}-", svg)
    title = f'<title id="f{tag}">{html.escape(alt)}</title>'
    points = float(fig.get_figwidth()) * 72
    opening = f'<svg role="img" aria-labelledby="f{tag}" style="min-width:{points:.0f}px" '
    svg = re.sub(r"<svg ([^>]*)>", lambda found: f"{opening}{found[1]}>{title}", svg, count=1)
    return f'<div class="book-figure" role="group" aria-label="Figure" tabindex="0">{svg}</div>'


@contextlib.contextmanager
def _remembering(axes: Sequence[Any]) -> Iterator[None]:
    """Let matplotlib look for ticks and fonts once: to lay out and draw a figure it does so a dozen times."""

    def remember(find: Callable[[], list[Tick]], axis: Any) -> list[Tick]:
        place = (*axis.get_view_interval(), *axis.axes.bbox.bounds)
        if place not in ticks[axis]:
            ticks[axis] = {place: find()}  # this place alone: for another one the same ticks are moved
        return ticks[axis][place]

    ticks: dict[Any, dict[tuple[float, ...], list[Tick]]] = {axis: {} for axis in axes}
    fonts: Any = fontManager
    fonts._find_fonts_by_props = functools.cache(fonts._find_fonts_by_props)
    for axis in axes:
        axis._update_ticks = functools.partial(remember, axis._update_ticks, axis)
    try:
        yield
    finally:
        del fonts._find_fonts_by_props
        for axis in axes:
            del axis._update_ticks


def _lay_out(fig: Figure) -> None:
    """Let the layout find its places once and for all: `savefig` would look for them, and draw, again and again."""
    engine = fig.get_layout_engine()
    if engine is not None:
        engine.execute(fig)
        fig.set_layout_engine("none")


def _tidy(svg: str) -> str:
    """Keep what a page needs of matplotlib's file: no header, no metadata, no unused ids; the theme's colors."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)  # the viewBox keeps the proportions
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", FONT, svg)
    svg = svg.replace(INK, "currentColor")
    for light, dark in PALETTE.values():
        svg = svg.replace(light, f"light-dark({light}, {dark})")
    return re.sub(r"\n\s*", "\n", svg)
