"""Every displayed equation of the Lion chapter, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.Lion` or `optimizers.Signum` fails. Everything is float64.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from optimizers import Lion, Signum
from optimizers.lion import LionDirection

from .equations import Chapter

CHAPTER = Chapter("modern/lion")
equation = CHAPTER.equation
ALPHA, BETA1, BETA2, DECAY = 0.01, 0.8, 0.95, 0.3


def gradients(steps: int = 30) -> Tensor:
    """g_1, …, g_steps of shape (steps, 3)."""
    return torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run(
    make: Callable[[list[Tensor]], Lion | Signum], g: Tensor, start: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """The package's θ and its average; index 0 is the start."""
    theta = torch.full((g.shape[1],), start, dtype=torch.float64, requires_grad=True)
    optimizer = make([theta])
    points, averages = [theta.detach().clone()], [torch.zeros_like(theta)]
    for gradient in g:
        theta.grad = gradient.clone()
        optimizer.step()
        points.append(theta.detach().clone())
        (kept,) = (value for key, value in optimizer.state[theta].items() if key != "step")
        averages.append(kept.clone())
    return points, averages


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


@equation(
    "eq-lion-signum",
    r"m_t = \beta\, m_{t-1} + (1-\beta)\, g_t, \qquad"
    r" \theta_t = \theta_{t-1} - \alpha\, \operatorname{sign}(m_t) .",
)
def test_signum() -> None:
    g = gradients()
    theta, m = run(lambda p: Signum(p, lr=ALPHA, momentum=BETA2), g)
    for t in range(1, len(g) + 1):
        close(m[t], BETA2 * m[t - 1] + (1 - BETA2) * g[t - 1])
        close(theta[t], theta[t - 1] - ALPHA * m[t].sign())


def mixes(g: Tensor) -> list[Tensor]:
    """c_1, c_2, …: what the package takes the sign of."""
    _, m = run(lambda p: Lion(p, betas=(BETA1, BETA2)), g)
    found = []
    for t in range(1, len(g) + 1):
        c = BETA1 * m[t - 1] + (1 - BETA1) * g[t - 1]
        direction, _ = LionDirection.update(g[t - 1], m[t - 1], (BETA1, BETA2))
        assert torch.equal(direction, c.sign())
        found.append(c)
    return found


@equation(
    "eq-lion",
    r"\begin{aligned} c_t &= \beta_1 m_{t-1} + (1-\beta_1)\, g_t, \\"
    r" \theta_t &= \theta_{t-1} - \alpha_t \bigl(\operatorname{sign}(c_t) + \lambda\, \theta_{t-1}\bigr), \\"
    r" m_t &= \beta_2 m_{t-1} + (1-\beta_2)\, g_t . \end{aligned}",
)
def test_rule() -> None:
    g = gradients()
    theta, m = run(lambda p: Lion(p, lr=ALPHA, betas=(BETA1, BETA2), weight_decay=DECAY), g)
    for t, c in enumerate(mixes(g), 1):
        close(theta[t], theta[t - 1] - ALPHA * (c.sign() + DECAY * theta[t - 1]))
        close(m[t], BETA2 * m[t - 1] + (1 - BETA2) * g[t - 1])


@equation(
    "eq-lion-weights",
    r"c_t = (1-\beta_1)\, g_t + \beta_1 (1-\beta_2) \sum_{j=1}^{t-1} \beta_2^{\,j-1}\, g_{t-j} .",
)
def test_unrolled() -> None:
    g = gradients()
    for t, c in enumerate(mixes(g), 1):
        past = sum((BETA2 ** (j - 1) * g[t - j - 1] for j in range(1, t)), torch.zeros(3, dtype=torch.float64))
        close(c, (1 - BETA1) * g[t - 1] + BETA1 * (1 - BETA2) * past)


@equation(
    "eq-lion-lookahead",
    r"c_t = \frac{\beta_1}{\beta_2}\, m_t + \Bigl(1 - \frac{\beta_1}{\beta_2}\Bigr)\, g_t .",
)
def test_lookahead() -> None:
    g = gradients()
    _, m = run(lambda p: Lion(p, betas=(BETA1, BETA2)), g)
    for t, c in enumerate(mixes(g), 1):
        close(c, BETA1 / BETA2 * m[t] + (1 - BETA1 / BETA2) * g[t - 1])


@equation(
    "eq-lion-steepest",
    r"\operatorname*{arg\,min}_{\lVert \Delta \rVert_\infty \le \alpha} \; g^\top \Delta ="
    r" -\alpha\, \operatorname{sign}(g) .",
)
def test_steepest_descent() -> None:
    (g,) = gradients(1)
    corners = torch.cartesian_prod(*[torch.tensor([-ALPHA, 0.0, ALPHA], dtype=torch.float64)] * 3)
    best = corners[(corners @ g).argmin()]
    theta, _ = run(lambda p: Signum(p, lr=ALPHA, momentum=0.9), g[None])
    close(best, -ALPHA * g.sign())
    close(theta[1] - theta[0], best)


def half_cycle(n: int, beta1: float, beta2: float) -> tuple[list[float], list[float]] | None:
    """The package's θ and m over half a cycle, k = 0, …, n, after 200 of them; None where it is left."""
    theta = torch.tensor([ALPHA * n / 2], dtype=torch.float64, requires_grad=True)
    optimizer = Lion([theta], lr=ALPHA, betas=(beta1, beta2))
    theta.grad = torch.zeros(1, dtype=torch.float64)
    optimizer.step()  # makes the state, and moves nothing
    m = optimizer.state[theta]["exp_avg"]
    m.fill_(ALPHA * average(0, n, beta2))
    points, averages = [], []
    for step in range(201 * n):
        if step >= 200 * n:
            points.append(theta.item())
            averages.append(m.item())
        theta.grad = theta.detach().clone()
        optimizer.step()
    points.append(theta.item())
    averages.append(m.item())
    top = abs(points[0] - ALPHA * n / 2) < 1e-9 and abs(points[-1] + ALPHA * n / 2) < 1e-9
    return (points, averages) if top else None


def average(k: int, n: int, beta2: float) -> float:
    """m_k ÷ α on the cycle."""
    return n / 2 - k + 1 / (1 - beta2) * (1 - 2 * beta2**k / (1 + beta2**n))


@equation(
    "eq-lion-half",
    r"\theta_k = \alpha \Bigl(\frac n2 - k\Bigr), \qquad k = 0, \dots, n .",
)
@equation(
    "eq-lion-average",
    r"\frac{m_k}{\alpha} = \frac n2 - k + \frac{1}{1-\beta_2}"
    r" \left(1 - \frac{2\,\beta_2^{\,k}}{1+\beta_2^{\,n}}\right) .",
)
@pytest.mark.parametrize(
    ("n", "beta1", "beta2"), [(2, 0.9, 0.99), (2, 0.95, 0.98), (4, 0.9, 0.9), (14, 0.99, 0.99)]
)
def test_on_a_cycle(n: int, beta1: float, beta2: float) -> None:
    found = half_cycle(n, beta1, beta2)
    assert found is not None
    for k, (theta, m) in enumerate(zip(*found, strict=True)):
        assert theta == pytest.approx(ALPHA * (n / 2 - k), abs=1e-12)
        assert m == pytest.approx(ALPHA * average(k, n, beta2), abs=1e-12)
    assert found[1][-1] == pytest.approx(-found[1][0], abs=1e-12)


def holds(n: int, beta1: float, beta2: float) -> bool:
    left = 1 / (1 - beta2) * (1 - beta2**n) / (1 + beta2**n) - n / 2
    return left > (n / 2 - 1) * (beta2 / beta1 - 1)


@equation(
    "eq-lion-hold",
    r"\underbrace{\frac{1}{1-\beta_2}\cdot\frac{1-\beta_2^{\,n}}{1+\beta_2^{\,n}} - \frac n2}_{m_n/\alpha} \;>\;"
    r" \Bigl(\frac n2 - 1\Bigr) \Bigl(\frac{\beta_2}{\beta_1} - 1\Bigr) .",
)
@pytest.mark.parametrize(
    ("beta1", "beta2", "longest"),
    [(0.9, 0.99, 2), (0.95, 0.98, 2), (0.9, 0.9, 6), (0.98, 0.99, 2), (0.981, 0.99, 4)],
)
def test_which_cycles_there_are(beta1: float, beta2: float, longest: int) -> None:
    allowed = [n for n in range(2, 12, 2) if holds(n, beta1, beta2)]
    assert max(allowed) == longest
    assert [n for n in range(2, 12, 2) if half_cycle(n, beta1, beta2)] == allowed
    for n in range(2, 12, 2):
        assert average(n, n, beta2) == pytest.approx(
            1 / (1 - beta2) * (1 - beta2**n) / (1 + beta2**n) - n / 2, abs=1e-9
        )
        # The first step is safe: the exercise.
        assert average(n, n, beta2) < n / 2 * (1 / beta2 - 1) <= n / 2 * (1 - beta1) / beta1 + 1e-12


@equation("eq-lion-longest", r"n^2 < \frac{6}{1-\beta} .")
@pytest.mark.parametrize("beta", [0.9, 0.95, 0.98, 0.99, 0.999])
def test_longest_cycle(beta: float) -> None:
    for n in range(2, 200, 2):
        assert holds(n, beta, beta) == (n**2 < 6 / (1 - beta))
    n = 4  # the expansion that the text gives
    left = average(n, n, beta)
    assert left == pytest.approx(n / 4 * (1 - beta) * (1 - n**2 / 6 * (1 - beta)), abs=5 * (1 - beta) ** 2)


@equation(
    "eq-lion-box",
    r"|\theta_t| - \frac1\lambda \;\le\; (1-\alpha\lambda)^t \Bigl( |\theta_0| - \frac1\lambda \Bigr) .",
)
def test_box() -> None:
    ones = torch.ones(200, 3, dtype=torch.float64)
    for start in (20.0, -20.0, 0.1):
        for g in (gradients(200), ones, -ones):
            theta, _ = run(lambda p: Lion(p, lr=0.1, weight_decay=DECAY), g, start)
            for t, now in enumerate(theta):
                bound = (1 - 0.1 * DECAY) ** t * (abs(start) - 1 / DECAY)
                assert (now.abs() - 1 / DECAY <= bound + 1e-12).all()
    theta, _ = run(lambda p: Lion(p, lr=0.1, weight_decay=DECAY), -ones, 20.0)
    close(theta[-1] - 1 / DECAY, (1 - 0.1 * DECAY) ** 200 * (theta[0] - 1 / DECAY))  # and it is sharp


@equation(
    "eq-lion-kkt",
    r"\frac{\partial f}{\partial \theta_i} = 0 \quad\text{if } |\theta_i| < \frac1\lambda , \qquad"
    r" -\frac{\partial f}{\partial \theta_i}\, \theta_i \ge 0 \quad\text{if } |\theta_i| = \frac1\lambda .",
)
def test_where_it_rests() -> None:
    random = np.random.default_rng(0)
    root = random.standard_normal((6, 6))
    hessian, center = root @ root.T / 6 + 0.1 * np.eye(6), 1.5 * random.standard_normal(6)
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = Lion([theta], lr=0.01, weight_decay=1.0)
    for t in range(4000):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - t / 4000)
        theta.grad = torch.from_numpy(hessian @ (theta.detach().numpy() - center))
        optimizer.step()
    found = theta.detach().numpy()
    slope, inside = hessian @ (found - center), np.abs(found) < 1 - 1e-3
    assert 0 < inside.sum() < 6
    assert np.abs(slope[inside]).max() < 1e-3
    assert (-slope[~inside] * found[~inside] > 0).all()
    within = minimize(
        lambda x: 0.5 * (x - center) @ hessian @ (x - center),
        np.zeros(6),
        jac=lambda x: hessian @ (x - center),
        bounds=[(-1, 1)] * 6,
    ).x
    assert found == pytest.approx(within, abs=1e-3)


def test_a_parameter_that_is_not_seen_again_walks_on() -> None:
    """The average is halted by rounding before it is zero; see the chapter's pitfalls."""
    smallest = math.ulp(0.0)
    assert 0.99 * 40 * smallest == 40 * smallest
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = Lion([theta], lr=1.0)
    theta.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    optimizer.state[theta]["exp_avg"].fill_(40 * smallest)
    theta.grad = torch.zeros(1, dtype=torch.float64)
    for _ in range(50):
        optimizer.step()
    assert theta.item() == -51


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
