"""Every displayed equation of the SAM chapter, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.SAM` or `ASAM`, or with autograd, fails.
"""

import math

import pytest
import torch
from torch import Tensor

from optimizers import ASAM, SAM, SGD

from .equations import Chapter

CHAPTER = Chapter("modern/sam")
equation = CHAPTER.equation
ALPHA, RHO = 0.01, 0.05
POINTS = [(4.0, 0.3), (2.0, 0.51), (1.0, 0.9), (0.4, 3.0)]


def valley(theta: Tensor) -> Tensor:
    return (theta.prod() - 1).square() / 2


def smooth(theta: Tensor) -> Tensor:
    """A function of three variables with nothing special about it."""
    return (theta.sin() * torch.tensor([1.0, -2.0, 0.5], dtype=theta.dtype)).sum() + (theta.sum() ** 2).cosh().log()


def gradient(function, theta: Tensor) -> Tensor:
    theta = theta.detach().requires_grad_()
    (grad,) = torch.autograd.grad(function(theta), theta)
    return grad


def step(function, start, extensions=(), alpha: float = ALPHA) -> tuple[Tensor, list[Tensor]]:
    """Where the package comes to in one step, and the points at which it took a gradient."""
    theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([theta], lr=alpha, extensions=list(extensions))
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = function(theta)
        loss.backward()
        seen.append(theta.detach().clone())
        return loss

    optimizer.step(closure)
    return theta.detach(), seen


@equation("eq-sam-gradient", r"\nabla f = r\,(v,\ u), \qquad r = uv - 1 ,")
@pytest.mark.parametrize(("u", "v"), POINTS)
def test_gradient(u: float, v: float) -> None:
    r = u * v - 1
    expected = torch.tensor([r * v, r * u], dtype=torch.float64)
    torch.testing.assert_close(gradient(valley, torch.tensor([u, v], dtype=torch.float64)), expected)


@equation(
    "eq-sam-kept",
    r"u_t^2 - v_t^2 = \bigl(1 - \alpha^2 r_{t-1}^2\bigr)\,\bigl(u_{t-1}^2 - v_{t-1}^2\bigr) .",
)
@pytest.mark.parametrize(("u", "v"), POINTS)
def test_gradient_descent_keeps_the_difference(u: float, v: float) -> None:
    (u_t, v_t), _ = step(valley, (u, v))
    r = u * v - 1
    assert (u_t**2 - v_t**2).item() == pytest.approx((1 - ALPHA**2 * r**2) * (u**2 - v**2), rel=1e-12)


@equation("eq-sam-sharpness", r"h = u^2 + v^2 = \sqrt{(u^2 - v^2)^2 + 4} .")
@pytest.mark.parametrize("u", [0.3, 1.0, 4.0])
def test_sharpness(u: float) -> None:
    v = 1 / u
    hessian = torch.autograd.functional.hessian(valley, torch.tensor([u, v], dtype=torch.float64))
    flat, h = torch.linalg.eigvalsh(hessian).tolist()
    assert flat == pytest.approx(0, abs=1e-12)
    assert h == pytest.approx(u**2 + v**2, rel=1e-12)
    assert h == pytest.approx(math.sqrt((u**2 - v**2) ** 2 + 4), rel=1e-12)


@equation("eq-sam-goal", r"\min_\theta\ \max_{\lVert e\rVert \le \rho} f(\theta + e) .")
def test_the_goal_prefers_the_flat_end() -> None:
    """Over the minima of the valley the largest loss nearby is least at (1, 1)."""
    angles = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)
    ball = RHO * torch.stack([angles.cos(), angles.sin()], 1)

    def worst(u: float) -> float:
        near = torch.tensor([u, 1 / u], dtype=torch.float64) + ball
        return ((near.prod(1) - 1) ** 2 / 2).max().item()

    line = [worst(2 ** (k / 8)) for k in range(-16, 17)]
    assert line.index(min(line)) == 16
    assert line[0] == pytest.approx(line[-1], rel=1e-3) == pytest.approx(8 * RHO**2, rel=0.1)


@equation(
    "eq-sam-linear",
    r"\max_{\lVert e\rVert \le \rho} \bigl(f + e^\top \nabla f\bigr) = f + \rho\,\lVert \nabla f\rVert"
    r" \qquad\text{at}\qquad e = \rho\,\frac{\nabla f}{\lVert \nabla f\rVert} .",
)
def test_the_climb_gains_most() -> None:
    theta = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    g, f = gradient(smooth, theta), smooth(theta)
    _, (here, there) = step(smooth, theta.tolist(), [SAM(RHO)])
    e = there - here
    torch.testing.assert_close(e, RHO * g / g.norm(), rtol=1e-9, atol=0)
    assert (f + e @ g).item() == pytest.approx((f + RHO * g.norm()).item(), rel=1e-10)
    others = torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert ((RHO * others / others.norm(dim=1, keepdim=True)) @ g).max() <= e @ g


@equation(
    "eq-sam",
    r"e_t = \rho\,\frac{\nabla f_t(\theta_{t-1})}{\lVert \nabla f_t(\theta_{t-1})\rVert} , \qquad"
    r" \theta_t = \theta_{t-1} - \alpha_t\, \nabla f_t(\theta_{t-1} + e_t) .",
)
def test_rule() -> None:
    theta = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    for t in range(1, 20):
        before, alpha = theta, 0.1 / t
        theta, seen = step(smooth, before.tolist(), [SAM(0.3)], alpha)
        g = gradient(smooth, before)
        e = 0.3 * g / g.norm()
        assert len(seen) == 2
        torch.testing.assert_close(theta, before - alpha * gradient(smooth, before + e), rtol=1e-9, atol=1e-12)


@equation(
    "eq-sam-penalty",
    r"\nabla f(\theta + e) = \nabla f + \rho\,\frac{H\,\nabla f}{\lVert\nabla f\rVert} + O(\rho^2)"
    r" = \nabla\bigl(f + \rho\,\lVert\nabla f\rVert\bigr) + O(\rho^2) .",
)
def test_penalty() -> None:
    theta = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    g, hessian = gradient(smooth, theta), torch.autograd.functional.hessian(smooth, theta)

    def penalized(point: Tensor, rho: float) -> Tensor:
        (grad,) = torch.autograd.grad(smooth(point), point, create_graph=True)
        return smooth(point) + rho * grad.norm()

    left = []
    for rho in (1e-3, 5e-4):
        by_hessian = g + rho * hessian @ g / g.norm()
        torch.testing.assert_close(gradient(lambda point, rho=rho: penalized(point, rho), theta), by_hessian)
        _, (_, there) = step(smooth, theta.tolist(), [SAM(rho)])
        left.append((gradient(smooth, there) - by_hessian).norm().item())
    assert left[0] / left[1] == pytest.approx(4, rel=0.01)


@equation(
    "eq-sam-parabola",
    r"\theta_t = (1 - \alpha h)\,\theta_{t-1} - \alpha h\rho \operatorname{sign}(\theta_{t-1}) .",
)
@equation("eq-sam-cycle", r"\lvert\theta\rvert \to \frac{\alpha h\,\rho}{2 - \alpha h} .")
@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.6])
def test_parabola(alpha: float) -> None:
    h, theta = 3.0, torch.tensor(0.3, dtype=torch.float64)
    for _ in range(200):
        before = theta.item()
        theta, _ = step(lambda x: h * x.square() / 2, before, [SAM(RHO)], alpha)
        expected = (1 - alpha * h) * before - alpha * h * RHO * math.copysign(1, before)
        assert theta.item() == pytest.approx(expected, abs=1e-11)
    assert theta.item() == pytest.approx(-before, abs=1e-11)
    assert abs(theta.item()) == pytest.approx(alpha * h * RHO / (2 - alpha * h), abs=1e-11)


@equation(
    "eq-sam-exact",
    r"D_t = D_{t-1}\Bigl(1 - \frac{2\alpha\rho\,\lvert r'\rvert}{\sqrt h}"
    r" - \alpha^2 r'^2\bigl(1 - \tfrac{\rho^2}{h}\bigr)\Bigr) .",
)
@pytest.mark.parametrize(("u", "v"), POINTS)
def test_one_step_in_the_valley(u: float, v: float) -> None:
    (u_t, v_t), (_, there) = step(valley, (u, v), [SAM(RHO)])
    h, sigma, r_there = u**2 + v**2, math.copysign(1, u * v - 1), there.prod().item() - 1
    e = torch.tensor([v, u], dtype=torch.float64) * RHO * sigma / math.sqrt(h)
    torch.testing.assert_close(there - torch.tensor([u, v], dtype=torch.float64), e, rtol=1e-9, atol=1e-12)
    factor = 1 - 2 * ALPHA * RHO * abs(r_there) / math.sqrt(h) - ALPHA**2 * r_there**2 * (1 - RHO**2 / h)
    assert abs(r_there) > abs(u * v - 1)
    assert (u_t**2 - v_t**2).item() == pytest.approx((u**2 - v**2) * factor, rel=1e-12)


@equation(
    "eq-sam-drift",
    r"\frac{D_{t-1} - D_t}{D_{t-1}} \approx 2\alpha\rho^2 \Bigl(\frac{2}{2 - \alpha h}\Bigr)^2 .",
)
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_drift(alpha: float) -> None:
    """From a point in the valley, when the cycle has settled, over 200 steps; ρ is small."""
    rho = 0.002
    theta = torch.tensor([2.0, 0.5], dtype=torch.float64) + 1e-5
    theta = theta.requires_grad_()
    optimizer = SGD([theta], lr=alpha, extensions=[SAM(rho)])

    def closure():
        optimizer.zero_grad()
        loss = valley(theta)
        loss.backward()
        return loss

    def difference() -> tuple[float, float]:
        u, v = theta.tolist()
        return u**2 - v**2, u**2 + v**2

    for _ in range(2000 if alpha < 0.01 else 200):
        optimizer.step(closure)
    start, h = difference()
    for _ in range(200):
        optimizer.step(closure)
    measured = math.log(start / difference()[0]) / 200
    assert measured == pytest.approx(2 * alpha * rho**2 * (2 / (2 - alpha * h)) ** 2, rel=0.01)


@equation(
    "eq-sam-asam",
    r"e_t = \rho\,\frac{\theta_{t-1}^2\, g_t}{\lVert \theta_{t-1}\, g_t\rVert} , \qquad\text{on the valley}\qquad"
    r" (u, v) + e = \Bigl(1 + \tfrac{\rho}{\sqrt2}\operatorname{sign}(r)\Bigr)\,(u, v) .",
)
@pytest.mark.parametrize(("u", "v"), POINTS)
def test_asam(u: float, v: float) -> None:
    start = torch.tensor([u, v], dtype=torch.float64)
    g = gradient(valley, start)
    _, (_, there) = step(valley, (u, v), [ASAM(RHO)])
    torch.testing.assert_close(there - start, RHO * start**2 * g / (start * g).norm(), rtol=1e-9, atol=1e-12)
    sigma = math.copysign(1, u * v - 1)
    torch.testing.assert_close(there, (1 + RHO * sigma / math.sqrt(2)) * start, rtol=1e-9, atol=1e-12)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
