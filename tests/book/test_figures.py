"""Figures: the theme's colors, a title, labels that do not touch, the same file every time."""

import contextlib
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import figures
from optimizers.study import figures as drawing


def example(label: str = "Adam") -> str:
    fig, ax = figures.figure(height=2)
    x = np.arange(1, 20)
    for factor, name in ((1.0, label), (1.01, "SGD"), (3.0, "RMSprop")):
        figures.band(ax, x, factor / x + np.array([[0.0], [0.1]]), name)
    ax.set(xlabel="step", ylabel="loss", title="θ₁")
    return figures.markup(fig, alt="Three curves fall & flatten.")


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colors "#rrggbb"."""

    def luminance(color: str) -> float:
        parts = [value / 255 for value in bytes.fromhex(color[1:])]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("hue", figures.PALETTE)
def test_colors_are_readable_on_both_pages(hue: str) -> None:
    light, dark = figures.PALETTE[hue]
    assert contrast(light, "#ffffff") >= 4.5
    assert min(contrast(dark, page) for page in ("#121212", "#14181e", "#1b2129")) >= 4.5


def test_ink_is_the_pages_own() -> None:
    svg = example()
    drawn = set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r"light-dark\([^)]*\)", "", svg)))
    assert drawn == set(), "colors that do not follow the theme"
    assert svg.count("currentColor") > 10
    assert "light-dark(#0068a9, #56b4f5)" in svg
    assert not re.search(r"fill:\s*(white|#ffffff)", svg)


def test_it_says_what_it_shows_and_its_text_is_text() -> None:
    svg = example()
    assert 'role="img"' in svg
    assert re.search(r'<title id="f\w+">Three curves fall &amp; flatten.</title>', svg)
    for word in ("step", "loss", "Adam", "RMSprop", "θ₁"):
        assert re.search(rf"<text[^>]*>{word}</text>", svg), word
    fig, _ = figures.figure()
    with pytest.raises(ValueError, match="alt text"):
        figures.markup(fig, alt=" ")


def test_the_same_figure_is_the_same_file_and_two_share_no_id() -> None:
    assert example() == example()
    ids = [re.findall(r'\bid="([^"]+)"', example(label)) for label in ("Adam", "AdamW")]
    assert all(ids)
    assert not set(ids[0]) & set(ids[1])
    assert all(len(group) == len(set(group)) for group in ids)
    svg = example()
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    assert used <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_to_remember_ticks_changes_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw() -> tuple[Figure, str]:
        fig, axes = figures.figure(1, 2, sharey=True)
        for ax, scale in zip(axes, ("log", "linear"), strict=True):
            figures.band(ax, [1, 10, 1000], [[1e-4, 2, 30], [1e-3, 4, 90]], "a long label")
            ax.set(xscale="log", yscale=scale, xlabel="steps", ylabel="loss", title=scale)
        return fig, figures.markup(fig, "Two panels.")

    fig, remembered = draw()
    assert not any("_update_ticks" in vars(axis) for ax in fig.axes for axis in (ax.xaxis, ax.yaxis))
    monkeypatch.setattr(drawing, "_remembering", lambda axes: contextlib.nullcontext())
    assert draw()[1] == remembered


def test_one_optimizer_one_color() -> None:
    assert figures.color("Adam") == figures.color("adam") == figures.color("Adam (no correction)")
    assert figures.color("Nesterov") == figures.color("NAG")
    names = ("SGD", "Momentum", "Nesterov", "Adagrad", "RMSprop", "Adam", "AdamW")
    assert len({figures.color(name) for name in names}) == len(names)
    assert figures.style("something else") == figures.style("something else")
    assert len({figures.style(name) for name in figures.STYLES}) == len(figures.STYLES)


def test_band_is_mean_and_range() -> None:
    _, ax = figures.figure()
    line = figures.band(ax, [1, 2, 3], [[1.0, 2.0, None], [3.0, 6.0, None]], "Adam")
    np.testing.assert_allclose(line.get_xydata(), [[1, 2], [2, 4]])
    (area,) = ax.collections
    assert area.get_datalim(ax.transData).bounds == pytest.approx((1, 1, 1, 5))
    with pytest.raises(ValueError, match="does not fit"):
        figures.band(ax, [1, 2], [[1.0, 2.0, 3.0]], "Adam")


def test_labels_do_not_touch() -> None:
    heights = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>(?:Adam|SGD|RMSprop)<', example())]
    assert len(heights) == 3
    assert min(np.diff(sorted(heights))) >= 11


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([10.0, 50.0, 90.0], [10.0, 50.0, 90.0]),  # far enough apart
        ([50.0, 50.0], [45.0, 55.0]),  # each gives way by half
        ([50.0, 52.0, 54.0], [42.0, 52.0, 62.0]),
        ([0.0, 0.0], [0.0, 10.0]),  # the floor holds
        ([100.0, 100.0, 20.0], [90.0, 100.0, 20.0]),  # the ceiling, too; order of arrival does not matter
        ([5.0] * 13, [10.0 * i for i in range(13)]),  # too many for the room
    ],
)
def test_spread(wanted: list[float], expected: list[float]) -> None:
    assert figures.spread(wanted, 10, 0, 100) == pytest.approx(expected)


def test_powers_of_ten_are_plain_text() -> None:
    fig, axes = figures.figure(1, 2, height=2)
    for ax, high in zip(axes, (1e3, 0.5), strict=True):
        ax.plot([1, 2], [2e-3 if high > 1 else 0.2, high])
        ax.set(yscale="log")
    svg = figures.markup(fig, alt="Two lines rise.")
    labels = set(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    assert {"10⁻²", "10¹"} <= labels, "powers, many decades apart"
    assert "3×10⁻¹" in labels, "and where an axis has less than one"
    assert "mathdefault" not in svg
