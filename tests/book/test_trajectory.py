"""The figure that can be moved obeys the same rules as the optimizers, and the keyboard."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import optimizers
from experiments import figures, problems

from .conftest import ROOT

NAMES = ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam"]
SETTINGS = [
    {"lr": 0.08, "scale": 1.0, "beta1": 0.9, "beta2": 0.999},
    {"lr": 0.013, "scale": 0.02, "beta1": 0.5, "beta2": 0.95},
    {"lr": 0.001, "scale": 30.0, "beta1": 0.0, "beta2": 0.9},
]


def reference(
    name: str, params: list[torch.Tensor], lr: float, beta1: float, beta2: float
) -> torch.optim.Optimizer:
    match name:
        case "sgd":
            return optimizers.SGD(params, lr=lr)
        case "momentum":
            return optimizers.SGD(params, lr=lr, momentum=beta1)
        case "nesterov":
            # torch refuses Nesterov without momentum; it is plain SGD then.
            return optimizers.SGD(params, lr=lr, momentum=beta1, nesterov=beta1 > 0)
        case "adagrad":
            return torch.optim.Adagrad(params, lr=lr)
        case "rmsprop":
            return torch.optim.RMSprop(params, lr=lr, alpha=beta2)
        case _:
            return optimizers.Adam(params, lr=lr, betas=(beta1, beta2))


def path(name: str, scale: float, **hyper: float) -> torch.Tensor:
    """100 steps of the package's (or torch's) own optimizer on the book's quadratic, shape (101, 2)."""
    bowl = problems.Quadratic()
    theta = bowl.initial().requires_grad_()
    optimizer = reference(name, [theta], **hyper)
    points = [theta.detach().clone()]
    for _ in range(100):
        theta.grad = scale * bowl.gradient(theta.detach())
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


@pytest.fixture
def element(browser: Any, addresses: dict[str, str]) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(f"{addresses['file']}/book/intro.html")
    page.evaluate(
        """(names) => {
          const made = document.createElement('optimizer-trajectory');
          made.id = 'mine';
          made.setAttribute('optimizers', names);
          document.querySelector('article').prepend(made);
        }""",
        ",".join(NAMES),
    )
    yield page.locator("#mine")
    context.close()


@pytest.mark.parametrize("setting", SETTINGS)
def test_paths_are_the_optimizers(element: Any, setting: dict[str, float]) -> None:
    drawn = element.evaluate("(e, values) => { e.set(values); return e.paths; }", setting)
    assert sorted(drawn) == sorted(NAMES)
    for name in NAMES:
        expected = path(name, **setting)
        got = torch.tensor(drawn[name], dtype=torch.float64)
        # A diverging path may leave float64 before the last step.
        assert len(got) == 101 or not torch.isfinite(expected[len(got)]).all(), name
        torch.testing.assert_close(
            got, expected[: len(got)], rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_bias_correction_can_be_switched_off(element: Any) -> None:
    """Without it the first step is (1 − β₁)/√(1 − β₂) α long, in each coordinate."""
    values = {"lr": 0.01, "correction": False, "scale": 1}
    points = element.evaluate("(e, values) => { e.set(values); return e.paths.adam; }", values)
    first = [abs(a - b) / 0.01 for a, b in zip(points[1], points[0], strict=True)]
    assert first == pytest.approx([0.1 / 0.001**0.5] * 2, rel=1e-6)


def test_keyboard_and_words(element: Any) -> None:
    before = element.evaluate("e => JSON.stringify(e.paths.sgd)")
    slider = element.get_by_label("Learning rate α")
    slider.focus()
    slider.press("ArrowRight")
    assert element.evaluate("e => JSON.stringify(e.paths.sgd)") != before
    assert "Adam" in element.locator("[role=status]").inner_text()
    slider.press("End")  # learning rate 1: plain SGD leaves the bowl
    assert "SGD diverges" in element.locator("[role=status]").inner_text()
    element.get_by_role("button").press("Enter")
    assert element.evaluate("e => JSON.stringify(e.paths.sgd)") == before
    for label in ("Learning rate α", "Multiply the loss by", "β₁", "β₂", "Bias correction"):
        assert element.get_by_label(label).count() == 1, label


def test_colors_follow_the_theme(element: Any) -> None:
    color = "e => getComputedStyle(e.querySelector('[data-optimizer=adam] .ot-name')).color"
    shown = []
    for theme in ("light", "dark"):
        element.evaluate("(e, theme) => { document.documentElement.dataset.theme = theme; }", theme)
        shown.append(element.evaluate(color))
    pairs = dict(figures.PALETTE.values())
    light = figures.color("Adam")
    assert shown == [f"rgb({', '.join(str(b) for b in bytes.fromhex(c[1:]))})" for c in (light, pairs[light])]


def test_names_and_colors_are_those_of_the_figures() -> None:
    source = (ROOT / "book/_static/trajectory.js").read_text(encoding="utf-8")
    looks = re.findall(r'(\w+): \["(\w+)", "(#\w+)", "(#\w+)"\]', source)
    assert [key for key, *_ in looks] == NAMES
    pairs = dict(figures.PALETTE.values())
    for _, label, light, dark in looks:
        assert (light, dark) == (figures.color(label), pairs[figures.color(label)]), label
