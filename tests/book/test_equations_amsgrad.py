"""Every displayed equation of the AMSGrad chapter, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.AMSGrad` fails. Everything is float64.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from optimizers import AMSGrad, RMSprop

from .equations import Chapter

Array = npt.NDArray[np.float64]
CHAPTER = Chapter("adaptive/amsgrad")
equation = CHAPTER.equation
ALPHA, BETA1, BETA2, EPS = 0.01, 0.8, 0.95, 1e-3
C = 3.0


def loss(t: int, x: Array | float) -> Array | float:
    """f_t(x) of the counter-example."""
    return C * x if t % 3 == 1 else -x


def gradient(t: int) -> float:
    return C if t % 3 == 1 else -1.0


class Run:
    """The package's path on the counter-example, with α/√t and clipping: x_1, …, x_T and the divisors s_t."""

    def __init__(self, make: Callable[[list[torch.Tensor]], torch.optim.Optimizer], state: str, steps: int = 600):
        theta = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
        optimizer = make([theta])
        self.x, self.s, self.v = [], [], []
        for t in range(1, steps + 1):
            self.x.append(theta.item())
            theta.grad = torch.tensor([gradient(t)], dtype=torch.float64)
            optimizer.param_groups[0]["lr"] = 0.5 / math.sqrt(t)
            optimizer.step()
            with torch.no_grad():
                theta.clamp_(-1, 1)
            self.s.append(math.sqrt(optimizer.state[theta][state].item()))
        self.g = np.array([gradient(t) for t in range(1, steps + 1)])
        self.alpha = 0.5 / np.sqrt(np.arange(1, steps + 1))
        self.steps = steps
        self.regret = np.cumsum(self.g * (np.array(self.x) + 1))


def amsgrad(beta2: float = 0.1, steps: int = 600) -> Run:
    return Run(lambda p: AMSGrad(p, betas=(0.0, beta2), eps=0.0), "max_exp_avg_sq", steps)


def adam(beta2: float = 0.1, steps: int = 600) -> Run:
    """The paper's Adam with β₁ = 0, which is RMSprop here."""
    return Run(lambda p: RMSprop(p, alpha=beta2, eps=0.0), "square_avg", steps)


@equation(
    "eq-amsgrad-problem",
    r"f_t(x) = \begin{cases} C\,x & \text{if } t \bmod 3 = 1, \\ -x & \text{else.} \end{cases}",
)
def test_problem() -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    for t in range(1, 7):
        (slope,) = torch.autograd.grad((C * x if t % 3 == 1 else -x).sum(), x)
        assert (slope == gradient(t)).all()
    grid = np.linspace(-1, 1, 201)
    assert grid[np.argmin(sum(loss(t, grid) for t in range(1, 4)))] == -1


@equation(
    "eq-amsgrad-regret",
    r"R_T = \sum_{t=1}^{T} f_t(x_t) - \min_{x \in [-1,1]} \sum_{t=1}^{T} f_t(x) ,",
)
def test_regret() -> None:
    run, grid = amsgrad(), np.linspace(-1, 1, 201)
    for steps in (3, 60, 600):
        best = min(sum(loss(t, grid) for t in range(1, steps + 1)))
        mine = sum(loss(t, run.x[t - 1]) for t in range(1, steps + 1))
        assert mine - best == pytest.approx(run.regret[steps - 1], rel=1e-12)


def periodic_v(beta2: float, j: int, n: int = 3) -> float:
    return 1 + (C**2 - 1) * (1 - beta2) * beta2**j / (1 - beta2**n)


@equation(
    "eq-amsgrad-periodic",
    r"v^{(j)} = 1 + (C^2 - 1)\,\frac{(1-\beta_2)\,\beta_2^{\,j}}{1-\beta_2^{\,n}}, \qquad j = 0, \dots, n-1 .",
)
@pytest.mark.parametrize("beta2", [0.1, 0.5, 0.9])
def test_periodic_average(beta2: float) -> None:
    run = adam(beta2)
    for j in range(3):  # the package's √v in the last period
        assert run.s[run.steps - 3 + j] ** 2 == pytest.approx(periodic_v(beta2, j), rel=1e-12)


@equation(
    "eq-amsgrad-drift",
    r"D = \frac{C}{\sqrt{v^{(0)}}} - \sum_{j=1}^{n-1} \frac{1}{\sqrt{v^{(j)}}} .",
)
@pytest.mark.parametrize(("beta2", "end"), [(0.1, 1), (0.46, 1), (0.48, -1), (0.9, -1)])
def test_drift(beta2: float, end: int) -> None:
    drift = C / math.sqrt(periodic_v(beta2, 0)) - sum(1 / math.sqrt(periodic_v(beta2, j)) for j in (1, 2))
    assert drift * end < 0
    if beta2 == 0.1:
        assert drift == pytest.approx(-0.68, abs=0.005)
    run = adam(beta2, 3000)  # near the boundary the drift is slow: its direction is what counts
    assert (run.x[2997] - run.x[297]) * end > 0 or run.x[2997] * end == pytest.approx(1, abs=0.05)


@equation(
    "eq-amsgrad-expand",
    r"(x_{t+1} - x^*)^2 \le (x_t - x^*)^2 - \frac{2\alpha_t}{s_t}\, g_t\,(x_t - x^*)"
    r" + \frac{\alpha_t^2}{s_t^2}\, g_t^2 .",
)
def test_one_step() -> None:
    for run in (adam(), amsgrad()):
        x, s = np.array(run.x), np.array(run.s)
        right = (x + 1) ** 2 - 2 * run.alpha / s * run.g * (x + 1) + (run.alpha / s * run.g) ** 2
        left = (x[1:] + 1) ** 2
        assert (left <= right[:-1] + 1e-12).all()
        free = np.abs(x[1:]) < 1  # where nothing was clipped it is an equation
        assert free.any()
        np.testing.assert_allclose(left[free], right[:-1][free], rtol=1e-9, atol=1e-12)


def telescoped(run: Run) -> Array:
    """The right side of the sum, for every T."""
    x, s = np.array(run.x), np.array(run.s)
    weight = s / run.alpha
    gamma = np.diff(weight)
    sums = np.concatenate([[0.0], np.cumsum(gamma * (x[1:] + 1) ** 2)])
    return weight[0] / 2 * (x[0] + 1) ** 2 + sums / 2 + np.cumsum(run.alpha / s * run.g**2) / 2


@equation(
    "eq-amsgrad-telescope",
    r"R_T \le \frac{s_1}{2\alpha_1}(x_1 - x^*)^2 + \frac12 \sum_{t=2}^{T}"
    r" \underbrace{\Bigl(\frac{s_t}{\alpha_t} - \frac{s_{t-1}}{\alpha_{t-1}}\Bigr)}_{\Gamma_t} (x_t - x^*)^2"
    r" + \frac12 \sum_{t=1}^{T} \frac{\alpha_t}{s_t}\, g_t^2 .",
)
def test_sum() -> None:
    for run, negative in ((adam(), True), (amsgrad(), False)):
        assert (run.regret <= telescoped(run) + 1e-9).all()
        gamma = np.diff(np.array(run.s) / run.alpha)
        assert (gamma < 0).any() == negative


@equation(
    "eq-amsgrad-bound",
    r"R_T \le \Bigl(\frac{2}{\alpha} + \frac{\alpha}{\sqrt{1-\beta_2}}\Bigr)\, G \sqrt T .",
)
def test_bound() -> None:
    for beta2 in (0.1, 0.9, 0.999):
        run = amsgrad(beta2)
        bound = (2 / 0.5 + 0.5 / math.sqrt(1 - beta2)) * C * np.sqrt(np.arange(1, run.steps + 1))
        assert (telescoped(run) <= bound).all()
        assert (run.regret <= bound).all()
    failing = adam(0.1, 3000)
    assert failing.regret[-1] > (4 + 0.5 / math.sqrt(0.9)) * C * math.sqrt(3000)


@equation(
    "eq-amsgrad-moments",
    r"m_t = \beta_1 m_{t-1} + (1-\beta_1)\, g_t, \qquad v_t = \beta_2 v_{t-1} + (1-\beta_2)\, g_t^2 ,",
)
@equation(
    "eq-amsgrad-max",
    r"\hat v_t^{\max} = \max\bigl(\hat v_{t-1}^{\max},\, v_t\bigr), \qquad \hat v_0^{\max} = 0 ,",
)
@equation(
    "eq-amsgrad",
    r"\theta_t = \theta_{t-1} - \alpha_t\, \frac{m_t}{\sqrt{\hat v_t^{\max}} + \varepsilon} .",
)
def test_rule() -> None:
    generator = np.random.default_rng(0)
    gradients = generator.standard_normal((30, 3)) * 10 ** generator.standard_normal((30, 3))
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = AMSGrad([theta], lr=ALPHA, betas=(BETA1, BETA2), eps=EPS)
    m = v = largest = expected = np.zeros(3)
    fell = False
    for t, g in enumerate(gradients, 1):
        alpha = optimizer.param_groups[0]["lr"] = ALPHA / math.sqrt(t)
        theta.grad = torch.from_numpy(g.copy())
        optimizer.step()
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g**2
        fell |= bool((v < largest).any())
        largest = np.maximum(largest, v)
        expected = expected - alpha * m / (np.sqrt(largest) + EPS)
        np.testing.assert_allclose(theta.detach().numpy(), expected, rtol=1e-12)
        state = optimizer.state[theta]
        for name, value in (("exp_avg", m), ("exp_avg_sq", v), ("max_exp_avg_sq", largest)):
            np.testing.assert_allclose(state[name].numpy(), value, rtol=1e-12)
    assert fell  # else the maximum was never put to the test


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
