"""Every displayed equation of the first chapter, and every row of its table, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with the package fails. Everything is float64.
"""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import optimizers
from experiments.problems import Quadratic
from optimizers import SGD, Adagrad, Adam, RMSprop
from optimizers.adabound import rate_bounds
from optimizers.radam import rectification, sma_length

from .conftest import ROOT
from .equations import Chapter

CHAPTER = Chapter("foundations/overview")
equation = CHAPTER.equation
ALPHA, EPS = 0.05, 1e-3
BOWL = Quadratic()
Make = Callable[[list[Tensor]], torch.optim.Optimizer]


def follow(make: Make, gradient: Callable[[Tensor, int], Tensor], start: Tensor, steps: int) -> Tensor:
    """The package's θ_0, …, θ_T, shape (steps + 1, *start)."""
    theta = start.clone().requires_grad_()
    optimizer = make([theta])
    points = [start.clone()]
    for t in range(1, steps + 1):
        theta.grad = gradient(theta.detach(), t)
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


def descend(alpha: float, steps: int, problem: Quadratic = BOWL) -> Tensor:
    return follow(lambda p: SGD(p, lr=alpha), lambda x, _: problem.gradient(x), problem.initial(), steps)


def gradients(steps: int = 15) -> Tensor:
    """g_1, …, g_T of shape (steps, 3)."""
    return torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


@equation(
    "eq-overview-model",
    r"\Delta = \operatorname*{arg\,min}_\Delta"
    r" \left\{ g^\top \Delta + \frac{1}{2\alpha} \lVert \Delta \rVert^2 \right\} = -\alpha\, g .",
)
def test_local_model() -> None:
    g = np.array([-4.0, 30.0])
    found = minimize(lambda d: g @ d + d @ d / (2 * ALPHA), np.zeros(2), tol=1e-12).x
    assert found == pytest.approx(-ALPHA * g, rel=1e-6)
    path = descend(ALPHA, 1)
    close(path[1] - path[0], torch.from_numpy(-ALPHA * g))


@equation("eq-overview-gd", r"\theta_t = \theta_{t-1} - \alpha\, g_t , \qquad g_t = \nabla f(\theta_{t-1}) .")
def test_gradient_descent() -> None:
    path = descend(ALPHA, 20)
    close(path[1:], path[:-1] - ALPHA * BOWL.gradient(path[:-1]))


@equation(
    "eq-overview-descent",
    r"f(\theta_t) \le f(\theta_{t-1}) - \alpha\left(1 - \tfrac12 \alpha L\right) \lVert g_t \rVert^2 .",
)
def test_descent() -> None:
    """On Σ (1 − cos θ_i) + ½ Σ θ_i², which is not a quadratic: its curvature is cos θ + 1, at most 2."""
    largest = 2.0

    def f(theta: Tensor) -> Tensor:
        return (1 - theta.cos() + 0.5 * theta**2).sum(-1)

    start = torch.linspace(-7, 7, 41, dtype=torch.float64)[:, None]
    g = start.sin() + start
    for alpha in (0.1, 0.5, 0.99, 1.5):
        bound = f(start) - alpha * (1 - alpha * largest / 2) * (g**2).sum(-1)
        assert (f(start - alpha * g) <= bound + 1e-12).all()
    # With less than the true largest curvature it is no bound.
    assert (f(start - 0.99 * g) > f(start) - 0.99 * (1 - 0.99 * 1.5 / 2) * (g**2).sum(-1)).any()
    # It is sharp: on a quadratic of curvature L both sides are equal.
    path = descend(0.07, 5, Quadratic((20.0,), (1.5,)))
    g, problem = 20 * path[:-1], Quadratic((20.0,), (1.5,))
    close(problem.loss(path[1:]), problem.loss(path[:-1]) - 0.07 * (1 - 0.07 * 20 / 2) * (g**2).sum(-1))


@equation("eq-overview-contraction", r"\theta_{t,i} = (1 - \alpha h_i)^t\, \theta_{0,i} .")
def test_contraction() -> None:
    path, h = descend(ALPHA, 30), BOWL.eigenvalues
    for t in range(31):
        close(path[t], (1 - ALPHA * h) ** t * BOWL.initial())


@equation("eq-overview-limit", r"0 < \alpha < \frac{2}{L} .")
def test_limit() -> None:
    for alpha, falls in ((1e-3, True), (0.0999, True), (0.1001, False), (-1e-3, False)):
        steps = 20_000  # without the package, which refuses a negative rate
        end = (1 - alpha * BOWL.eigenvalues) ** steps * BOWL.initial()
        assert (BOWL.loss(end) < 1e-12).item() == falls
    assert descend(0.0999, 2000)[-1].abs().max() < 1 < descend(0.1001, 2000)[-1].abs().max()


@equation(
    "eq-overview-rate",
    r"\max_i\, \lvert 1 - \alpha h_i \rvert = \max(1 - \alpha\ell,\ \alpha L - 1) .",
)
def test_rate() -> None:
    h = torch.tensor([1.0, 3.0, 11.0, 20.0], dtype=torch.float64)
    for alpha in np.linspace(0.001, 0.2, 50):
        assert (1 - alpha * h).abs().max().item() == pytest.approx(max(1 - alpha, alpha * 20 - 1), rel=1e-12)


@equation(
    "eq-overview-best",
    r"\alpha = \frac{2}{L + \ell} , \qquad \max_i\, \lvert 1 - \alpha h_i \rvert = \frac{\kappa - 1}{\kappa + 1} .",
)
def test_best_learning_rate() -> None:
    for low, high in ((1.0, 20.0), (0.3, 500.0)):
        problem, kappa = Quadratic((low, high), (1.0, 1.0)), high / low
        best = 2 / (low + high)
        worst = (descend(best, 1, problem)[1]).abs().max().item()
        assert worst == pytest.approx((kappa - 1) / (kappa + 1), rel=1e-12)
        for other in (0.98 * best, 1.02 * best):
            assert descend(other, 1, problem)[1].abs().max().item() > worst
    # "A factor of e costs about κ/2 steps"
    assert -1 / math.log((500 - 1) / (500 + 1)) == pytest.approx(500 / 2, rel=1e-4)


def rotation(degrees: float) -> Tensor:
    a = math.radians(degrees)
    return torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)


@equation("eq-overview-rotation", r"\phi_t = Q^\top \theta_t .")
def test_descent_does_not_know_the_axes() -> None:
    q = rotation(30)

    def paths(make: Make) -> tuple[Tensor, Tensor]:
        straight = follow(make, lambda x, _: BOWL.gradient(x), BOWL.initial(), 30)
        turned = follow(make, lambda x, _: q.T @ BOWL.gradient(q @ x), q.T @ BOWL.initial(), 30)
        return turned, straight @ q

    close(*paths(lambda p: SGD(p, lr=ALPHA)))
    close(*paths(lambda p: SGD(p, lr=ALPHA, momentum=0.9)))
    for rule in (Adagrad, RMSprop, Adam):
        turned, expected = paths(lambda p, rule=rule: rule(p, lr=ALPHA))  # type: ignore[misc]
        assert (turned - expected).abs().max() > 0.01


# Least squares on four examples, whose gradients at a point are few enough to enumerate.
X = torch.tensor([[1.0, 0.5], [-2.0, 1.0], [0.3, -1.0], [1.5, 2.0]], dtype=torch.float64)
LABELS = torch.tensor([1.0, -1.0, 2.0, 0.5], dtype=torch.float64)
POINT = torch.tensor([0.7, -0.4], dtype=torch.float64)
EACH = (X @ POINT - LABELS)[:, None] * X  # ∇f⁽ⁱ⁾, shape (4, 2)


def batch_gradients(size: int) -> Tensor:
    """g_t of every batch of `size` examples drawn independently, by autograd; all are equally likely."""
    found = []
    for batch in itertools.product(range(4), repeat=size):
        theta = POINT.clone().requires_grad_()
        loss = 0.5 * (X[list(batch)] @ theta - LABELS[list(batch)]).square().mean()
        found.append(torch.autograd.grad(loss, theta)[0])
    return torch.stack(found)


@equation("eq-overview-batch", r"g_t = \frac1B \sum_{k=1}^{B} \nabla f^{(i_k)}(\theta_{t-1}) .")
def test_mini_batch() -> None:
    expected = [EACH[list(batch)].sum(0) / 3 for batch in itertools.product(range(4), repeat=3)]
    close(batch_gradients(3), torch.stack(expected))


@equation(
    "eq-overview-noise",
    r"\mathbb{E}[g_t] = \nabla f(\theta_{t-1}) , \qquad"
    r" \operatorname{Cov}[g_t] = \frac1B\, \operatorname{Cov}\bigl[\nabla f^{(i)}(\theta_{t-1})\bigr] ,",
)
def test_noise() -> None:
    for size in (1, 2, 5):
        g = batch_gradients(size)
        close(g.mean(0), EACH.mean(0))
        close(torch.cov(g.T, correction=0), torch.cov(EACH.T, correction=0) / size)


@equation(
    "eq-overview-family",
    r"\Delta_t = \operatorname*{arg\,min}_\Delta \left\{ m_t^\top \Delta +"
    r" \frac{1}{2\alpha} \sum_i s_{t,i}\, \Delta_i^2 \right\} , \qquad"
    r" \theta_{t,i} = \theta_{t-1,i} - \alpha\, \frac{m_{t,i}}{s_{t,i}} .",
)
def test_family() -> None:
    m, s = np.array([-4.0, 30.0]), np.array([4.0, 30.0])
    found = minimize(lambda d: m @ d + (s * d * d).sum() / (2 * ALPHA), np.zeros(2), tol=1e-12).x
    assert found == pytest.approx(-ALPHA * m / s, rel=1e-6)
    # That the package's rules are of this form is tested row by row below; here Adagrad's first step.
    path = follow(lambda p: Adagrad(p, lr=ALPHA, eps=0), lambda x, _: BOWL.gradient(x), BOWL.initial(), 1)
    close(path[1] - path[0], torch.from_numpy(-ALPHA * m / s))


@equation("eq-overview-metric", r"1 - \alpha\, \frac{h_i}{s_i} ,")
def test_metric() -> None:
    """Adagrad whose sum hardly grows is descent in a constant metric s."""
    s = torch.tensor([7.0, 300.0], dtype=torch.float64)
    theta = torch.tensor([1e-5, -1e-5], dtype=torch.float64, requires_grad=True)
    optimizer = Adagrad([theta], lr=1.0, eps=1e-30)
    theta.grad = torch.zeros(2, dtype=torch.float64)
    optimizer.step()
    optimizer.state[theta]["sum"].copy_(s**2)
    before = theta.detach().clone()
    theta.grad = BOWL.gradient(before)
    optimizer.step()
    torch.testing.assert_close(theta.detach() / before, 1 - BOWL.eigenvalues / s, rtol=1e-9, atol=0)


# ------------------------------------------------------------------ the table

MU, BETA1, BETA2 = 0.9, 0.8, 0.95
DAMPING = (0.0, 0.9, 0.99)


def average(values: Tensor, decay: float) -> Tensor:
    """The exponential moving averages of values of shape (steps, …), from zero."""
    found, now = [], torch.zeros_like(values[0])
    for value in values:
        now = decay * now + (1 - decay) * value
        found.append(now)
    return torch.stack(found)


def sums(values: Tensor, decay: float) -> Tensor:
    return average(values, decay) / (1 - decay)


def corrected(values: Tensor, decay: float) -> Tensor:
    t = torch.arange(1, len(values) + 1, dtype=values.dtype)[:, None]
    return average(values, decay) / (1 - decay**t)


def adadelta_metric(g: Tensor) -> Tensor:
    v, w, found = average(g**2, BETA2), torch.zeros(3, dtype=g.dtype), []
    for t in range(len(g)):
        found.append((v[t] + EPS).sqrt() / (w + EPS).sqrt())
        w = BETA2 * w + (1 - BETA2) * (g[t] / found[-1]) ** 2
    return torch.stack(found)


def adamax_metric(g: Tensor) -> Tensor:
    found = [g[0].abs()]
    for row in g[1:]:
        found.append(torch.maximum(BETA2 * found[-1], row.abs()))
    return torch.stack(found)


def nadam_moment(g: Tensor) -> Tensor:
    m, t = average(g, BETA1), torch.arange(1, len(g) + 1, dtype=g.dtype)[:, None]
    return BETA1 * m / (1 - BETA1 ** (t + 1)) + (1 - BETA1) * g / (1 - BETA1**t)


def radam_metric(g: Tensor) -> Tensor:
    """From where there is an r_t on; before, RAdam's metric is 1."""
    v, found = average(g**2, BETA2), []
    for t in range(1, len(g) + 1):
        rho, rho_inf = sma_length(BETA2, t)
        if rho > 4:
            # torch's ε is added before the correction of v, so the row holds with ε = 0
            found.append((v[t - 1] / (1 - BETA2**t)).sqrt() / rectification(rho, rho_inf, True))
        else:
            found.append(torch.ones(3, dtype=g.dtype))
    return torch.stack(found)


def adabound_metric(g: Tensor) -> Tensor:
    v, found = average(g**2, BETA2), []
    for t in range(1, len(g) + 1):
        rate = ALPHA * math.sqrt(1 - BETA2**t) / (1 - BETA1**t) / (v[t - 1].sqrt() + EPS)
        found.append(ALPHA / rate.clamp(*rate_bounds(0.1, 0.3, t)))
    return torch.stack(found)


def ones(g: Tensor) -> Tensor:
    return torch.ones_like(g)


BETAS: dict[str, Any] = {"betas": (BETA1, BETA2), "eps": EPS}
HERE = r"$\theta_{t-1}$"
# The page's cells, and their meaning: optimizer, m_t and s_t as functions of all gradients.
ROWS: dict[str, tuple[tuple[str, str, str], str, dict[str, Any], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "gradient descent, SGD": (("$g_t$", "$1$", HERE), "SGD", {}, lambda g: g, ones),
    "Momentum": (
        (r"$b_t = \mu\, b_{t-1} + g_t$", "$1$", HERE),
        *("SGD", {"momentum": MU}, lambda g: sums(g, MU), ones),
    ),
    "AggMo": (
        (r"mean of several $b_t^{(i)} = \beta^{(i)} b_{t-1}^{(i)} + g_t$", "$1$", HERE),
        *("AggMo", {"betas": DAMPING}, lambda g: torch.stack([sums(g, b) for b in DAMPING]).mean(0), ones),
    ),
    "Adagrad": (
        ("$g_t$", r"$\sqrt{g_1^2 + \dots + g_t^2} + \varepsilon$", HERE),
        *("Adagrad", {"eps": EPS}, lambda g: g, lambda g: (g**2).cumsum(0).sqrt() + EPS),
    ),
    "RMSprop": (
        ("$g_t$", r"$\sqrt{v_t} + \varepsilon$", HERE),
        *("RMSprop", {"alpha": BETA2, "eps": EPS}, lambda g: g, lambda g: average(g**2, BETA2).sqrt() + EPS),
    ),
    "Adadelta": (
        ("$g_t$", r"$\sqrt{v_t + \varepsilon} \,/\, \sqrt{w_{t-1} + \varepsilon}$", HERE),
        *("Adadelta", {"rho": BETA2, "eps": EPS}, lambda g: g, adadelta_metric),
    ),
    "Adam": (
        (r"$\hat m_t$", r"$\sqrt{\hat v_t} + \varepsilon$", HERE),
        *("Adam", BETAS, lambda g: corrected(g, BETA1), lambda g: corrected(g**2, BETA2).sqrt() + EPS),
    ),
    "Adamax": (
        (r"$\hat m_t$", r"$u_t = \max(\beta_2\, u_{t-1},\ \lvert g_t\rvert)$", HERE),
        *("Adamax", {**BETAS, "eps": 0.0}, lambda g: corrected(g, BETA1), adamax_metric),
    ),
    "AMSGrad": (
        ("$m_t$", r"$\sqrt{\hat v_t^{\max}} + \varepsilon$", HERE),
        *("AMSGrad", BETAS, lambda g: average(g, BETA1)),
        lambda g: average(g**2, BETA2).cummax(0).values.sqrt() + EPS,
    ),
    "Nadam": (
        (r"$\bar m_t$", r"$\sqrt{\hat v_t} + \varepsilon$", HERE + r", the look-ahead is in $\bar m_t$"),
        *("NAdam", {**BETAS, "momentum_decay": None}, nadam_moment),
        lambda g: corrected(g**2, BETA2).sqrt() + EPS,
    ),
    "RAdam": (
        (r"$\hat m_t$", r"$(\sqrt{\hat v_t} + \varepsilon) / r_t$", HERE),
        *("RAdam", {**BETAS, "eps": 0.0, "threshold": 4.0}, lambda g: corrected(g, BETA1), radam_metric),
    ),
    "AdaBound": (
        ("$m_t$", r"$\alpha / \eta_t$, with Adam's rate kept between two bounds", HERE),
        *("AdaBound", {**BETAS, "final_lr": 0.1, "gamma": 0.3}, lambda g: average(g, BETA1), adabound_metric),
    ),
}
NESTEROV = (r"$b_t = \mu\, b_{t-1} + g_t$", "$1$", r"$\theta_{t-1} - \alpha\mu\, b_{t-1}$")


def table() -> dict[str, tuple[str, ...]]:
    """The rows of the page: method -> its three cells."""
    text = (ROOT / "book/foundations/overview.md").read_text(encoding="utf-8")
    lines = text.split("| method | first moment", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines]
    return {re.sub(r"\{doc\}`(.*?) <.*>`", r"\1", row[0].strip()): tuple(row[1:]) for row in cells}


def test_the_table_says_what_is_tested() -> None:
    assert table() == {name: row[0] for name, row in ROWS.items()} | {"Nesterov's momentum": NESTEROV}


@pytest.mark.parametrize("name", ROWS)
def test_row_of_the_table(name: str) -> None:
    _, rule, options, moment, metric = ROWS[name]
    g = gradients()
    make = getattr(optimizers, rule)
    path = follow(
        lambda p: make(p, lr=ALPHA, **options), lambda _, t: g[t - 1], torch.ones(3, dtype=g.dtype), len(g)
    )
    torch.testing.assert_close(path[1:], path[:-1] - ALPHA * moment(g) / metric(g), rtol=1e-11, atol=1e-13)


def test_nesterovs_row_of_the_table() -> None:
    """The gradient is taken at the look-ahead point, which is what the package calls the parameter."""
    theta, b, ahead = BOWL.initial(), torch.zeros(2, dtype=torch.float64), [BOWL.initial()]
    for _ in range(20):
        b = MU * b + BOWL.gradient(theta - ALPHA * MU * b)
        theta = theta - ALPHA * b
        ahead.append(theta - ALPHA * MU * b)
    package = follow(
        lambda p: SGD(p, lr=ALPHA, momentum=MU, nesterov=True), lambda x, _: BOWL.gradient(x), BOWL.initial(), 20
    )
    close(package, torch.stack(ahead))


# ------------------------------------------------------------------ rare features and the saddle


@equation(
    "eq-overview-sparse",
    r"s_{t,j} \approx \tfrac12\sqrt{t\,p_j} , \qquad\text{hence}\qquad"
    r" \frac{h_j}{s_{t,j}} \approx \frac12 \sqrt{\frac{p_j}{t}} .",
)
def test_rare_features() -> None:
    """The package's sum over 20,000 single examples at θ = 0, and the curvature by autograd."""
    p = torch.tensor([1.0, 0.3, 0.05], dtype=torch.float64)
    generator, t = torch.Generator().manual_seed(0), 20_000
    x = (torch.rand(t, 3, generator=generator, dtype=torch.float64) < p).double()
    y = (torch.rand(t, generator=generator, dtype=torch.float64) < 0.4).double()

    def loss(theta: Tensor) -> Tensor:
        z = x @ theta
        return (torch.nn.functional.softplus(z) - y * z).mean()

    zero = torch.zeros(3, dtype=torch.float64)
    h = torch.autograd.functional.hessian(loss, zero).diagonal()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(h, p / 4, rtol=0.05, atol=0)
    theta = zero.clone().requires_grad_()
    optimizer = Adagrad([theta], lr=0.0)
    for row, label in zip(x, y, strict=True):
        theta.grad = (0.5 - label) * row
        optimizer.step()
    s = optimizer.state[theta]["sum"].sqrt()
    torch.testing.assert_close(s, 0.5 * (t * p).sqrt(), rtol=0.05, atol=0)
    torch.testing.assert_close(h / s, 0.5 * (p / t).sqrt(), rtol=0.05, atol=0)


def saddle(make: Make, y0: float, steps: int) -> Tensor:
    start = torch.tensor([1.0, y0], dtype=torch.float64)
    signs = torch.tensor([2.0, -2.0], dtype=torch.float64)
    return follow(make, lambda x, _: signs * x, start, steps)


def leaves(make: Make, y0: float, steps: int) -> int:
    outside = saddle(make, y0, steps)[:, 1].abs() > 1
    assert outside.any()
    return int(outside.int().argmax())


@equation("eq-overview-saddle", r"x_t = (1 - 2\alpha)^t\, x_0 , \qquad y_t = (1 + 2\alpha)^t\, y_0 ,")
def test_saddle() -> None:
    path, t = saddle(lambda p: SGD(p, lr=0.01), 1e-3, 100), torch.arange(101, dtype=torch.float64)
    close(path[:, 0], 0.98**t)
    close(path[:, 1], 1.02**t * 1e-3)


@equation(
    "eq-overview-escape",
    r"T_{\mathrm{SGD}} = \frac{\ln(1/\lvert y_0\rvert)}{\ln(1 + 2\alpha)}"
    r" \approx \frac{1}{2\alpha}\,\ln\frac{1}{\lvert y_0\rvert} .",
)
def test_escape() -> None:
    for alpha, y0, steps in ((0.01, 1e-3, 349), (0.01, -1e-6, 698), (0.1, 1e-9, 114)):
        formula = math.log(1 / abs(y0)) / math.log(1 + 2 * alpha)
        assert leaves(lambda p, alpha=alpha: SGD(p, lr=alpha), y0, 800) == math.ceil(formula) == steps  # type: ignore[misc]
        assert formula == pytest.approx(math.log(1 / abs(y0)) / (2 * alpha), rel=1.1 * alpha)


def test_escape_of_momentum() -> None:
    """The larger root of z² − (1 + μ + 2α) z + μ, 1.107, is the factor per step, and makes the extra steps."""
    z = max(np.roots([1, -(1 + 0.9 + 0.02), 0.9]).real)
    assert z == pytest.approx(1.107, abs=5e-4)
    y = saddle(lambda p: SGD(p, lr=0.01, momentum=0.9), 1e-6, 130)[:, 1]
    assert (y[-1] / y[-2]).item() == pytest.approx(z, rel=1e-9)


@equation(
    "eq-overview-scale",
    r"\frac{m_t(c\,g_1, \dots, c\,g_t)}{s_t(c\,g_1, \dots, c\,g_t)} ="
    r" \frac{m_t(g_1, \dots, g_t)}{s_t(g_1, \dots, g_t)} .",
)
def test_scale() -> None:
    g, start = gradients(), torch.ones(3, dtype=torch.float64)
    for rule in (Adagrad, RMSprop, Adam):
        one, other = (
            follow(lambda p, rule=rule: rule(p, lr=ALPHA, eps=0.0), lambda _, t, c=c: c * g[t - 1], start, len(g))  # type: ignore[misc]
            for c in (1.0, 1e-6)
        )
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    path = follow(lambda p: SGD(p, lr=ALPHA, momentum=0.9), lambda _, t: 1e-6 * g[t - 1], start, len(g))
    assert (path[-1] - start).abs().max() < 1e-4


def test_first_steps_and_speeds_on_the_saddle() -> None:
    alpha = 0.01
    for rule, first in ((Adagrad, alpha), (Adam, alpha), (RMSprop, alpha / math.sqrt(0.1))):
        options = {"alpha": 0.9} if rule is RMSprop else {}
        for y0 in (1e-4, 1e-9):
            make = lambda p, rule=rule, options=options: rule(p, lr=alpha, eps=0.0, **options)  # type: ignore[misc]  # noqa: E731
            y = saddle(make, y0, 1)[:, 1]
            assert (y[1] - y[0]).item() == pytest.approx(first, rel=1e-9)
        if rule is not Adagrad:  # "about 1/α of them"
            assert 0.65 / alpha < leaves(make, 1e-9, 150) < 1 / alpha


@equation(
    "eq-overview-adagrad",
    r"y_t \approx \alpha\sqrt{8\,t} , \qquad T_{\mathrm{Adagrad}} \approx \frac{1}{8\,\alpha^2} .",
)
def test_adagrad_on_the_saddle() -> None:
    for alpha, tolerance in ((0.02, 0.04), (0.01, 0.015), (0.005, 0.004)):
        make = lambda p, alpha=alpha: Adagrad(p, lr=alpha)  # type: ignore[misc]  # noqa: E731
        steps = leaves(make, 1e-6, 6000)
        assert steps == pytest.approx(1 / (8 * alpha**2), rel=tolerance)
    y = saddle(lambda p: Adagrad(p, lr=0.005), 1e-6, 5000)[:, 1]
    assert (y[5000] / (0.005 * math.sqrt(8 * 5000))).item() == pytest.approx(1, abs=2e-3)


# ------------------------------------------------------------------ numbers of the exercises


def test_the_swing_on_a_convex_function() -> None:
    for alpha in (0.03, 0.4):
        path = follow(
            lambda p, alpha=alpha: SGD(p, lr=alpha),  # type: ignore[misc]
            lambda x, _: 1.5 * x.sign() * x.abs().sqrt(),
            torch.ones(1, dtype=torch.float64),
            1000,
        )
        assert path[-1].item() == pytest.approx(-path[-2].item(), rel=1e-9)
        assert path[-1].abs().item() == pytest.approx(9 / 16 * alpha**2, rel=1e-9)


def test_a_louder_loss() -> None:
    loud = Quadratic((1e3, 20e3), BOWL.start)
    assert descend(0.99e-4, 2000, loud)[-1].abs().max() < 1 < descend(1.01e-4, 2000, loud)[-1].abs().max()
    paths = [
        follow(lambda p: Adagrad(p, lr=0.1), lambda x, _, q=q: q.gradient(x), q.initial(), 50) for q in (BOWL, loud)
    ]
    torch.testing.assert_close(*paths, rtol=1e-9, atol=1e-9)


def test_epsilon_inside_and_outside_the_root() -> None:
    g, alpha, eps, y0 = 2e-9, 0.01, 1e-8, 1e-9
    inside = alpha * g / math.sqrt(g * g + eps)
    assert inside == pytest.approx(2e-7, rel=1e-6)
    assert (y0 + inside) / y0 == pytest.approx(201, rel=1e-6)
    y = saddle(lambda p: Adagrad(p, lr=alpha, eps=eps), y0, 1)[:, 1]
    assert (y[1] - y[0]).item() == pytest.approx(alpha / 6, rel=1e-9)


def test_nadam_of_the_survey() -> None:
    """§4.8 corrects the first term by 1 − β₁ᵗ where the package has 1 − β₁ᵗ⁺¹."""
    g = gradients()
    t = torch.arange(1, len(g) + 1, dtype=g.dtype)[:, None]
    survey = BETA1 * corrected(g, BETA1) + (1 - BETA1) * g / (1 - BETA1**t)
    apart = (survey - nadam_moment(g)).abs().amax(1)
    assert apart[0] > 0.1
    late = average(g, BETA1) * BETA1 * (1 / (1 - BETA1**t) - 1 / (1 - BETA1 ** (t + 1)))
    close(survey - nadam_moment(g), late)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
