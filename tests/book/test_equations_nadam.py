"""Every displayed equation of the Nadam chapter, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.NAdam` fails. Everything is float64.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from optimizers import SGD, Adam, NAdam
from optimizers.adam import nesterov_average
from optimizers.nadam import scheduled_momentum

from .equations import Chapter

Array = npt.NDArray[np.float64]
CHAPTER = Chapter("adaptive/nadam")
equation = CHAPTER.equation
ALPHA, BETA1, BETA2, EPS, PSI = 0.01, 0.8, 0.95, 1e-3, 0.5
GRADIENTS = np.random.default_rng(0).standard_normal((15, 3))
# The package keeps the product of the μ in single precision, as torch does.
SINGLE = 1e-6


def path(make: Callable[[list[torch.Tensor]], torch.optim.Optimizer], gradients: Array = GRADIENTS) -> Array:
    """θ after every step on the gradients, from 0: shape (steps, n)."""
    theta = torch.zeros(gradients.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = make([theta])
    points = []
    for g in gradients:
        theta.grad = torch.from_numpy(g.copy())
        optimizer.step()
        points.append(theta.detach().numpy().copy())
    return np.array(points)


def averages(gradients: Array = GRADIENTS) -> tuple[Array, Array]:
    """m_t and √v̂_t for t = 1, 2, …"""
    m = v = np.zeros(gradients.shape[1])
    ms, roots = [], []
    for t, g in enumerate(gradients, 1):
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g**2
        ms.append(m)
        roots.append(np.sqrt(v / (1 - BETA2**t)))
    return np.array(ms), np.array(roots)


def momenta(t: int) -> tuple[float, float]:
    """μ_t and Π_t."""
    mus = [BETA1 * (1 - 0.5 * 0.96 ** (i * PSI)) for i in range(1, t + 1)]
    return mus[-1], math.prod(mus)


@equation(
    "eq-nadam-nag",
    r"b_t = \mu_t b_{t-1} + g_t, \qquad \theta_t = \theta_{t-1} - \alpha\, b_t .",
)
@equation(
    "eq-nadam-shift",
    r"y_t = y_{t-1} - \alpha\,\bigl(g_t + \mu_{t+1}\, b_t\bigr) .",
)
def test_nesterov_momentum_and_its_shifted_form() -> None:
    # On a quadratic, with a momentum that changes: the look-ahead point of the one is the parameter of the other.
    curvature = np.array([1.0, 20.0])
    mu = [0.0] + [0.9 - 0.4 / t for t in range(1, 40)]
    theta, b = np.array([-4.0, 1.5]), np.zeros(2)
    shifted, other = theta.copy(), np.zeros(2)
    for t in range(1, 38):
        ahead = theta - ALPHA * mu[t] * b
        np.testing.assert_allclose(ahead, shifted, rtol=1e-10)
        g = curvature * ahead
        b = mu[t] * b + g
        theta = theta - ALPHA * b
        other = mu[t] * other + curvature * shifted
        shifted = shifted - ALPHA * (curvature * shifted + mu[t + 1] * other)
    # and with a constant momentum the shifted form is the package's
    steps = path(lambda p: SGD(p, lr=ALPHA, momentum=0.9, nesterov=True))
    b, expected = np.zeros(3), np.zeros(3)
    for g, theta in zip(GRADIENTS, steps, strict=True):
        b = 0.9 * b + g
        expected = expected - ALPHA * (g + 0.9 * b)
        np.testing.assert_allclose(theta, expected, rtol=1e-12)


@equation(
    "eq-nadam-split",
    r"\hat m_t = \frac{\beta_1\, m_{t-1}}{1-\beta_1^{\,t}} + \frac{(1-\beta_1)\, g_t}{1-\beta_1^{\,t}} ,",
)
def test_adams_numerator() -> None:
    steps = np.diff(path(lambda p: Adam(p, lr=1.0, betas=(BETA1, BETA2), eps=0.0)), axis=0, prepend=0.0)
    ms, roots = averages()
    for t in range(2, len(GRADIENTS) + 1):
        m_hat = BETA1 * ms[t - 2] / (1 - BETA1**t) + (1 - BETA1) * GRADIENTS[t - 1] / (1 - BETA1**t)
        np.testing.assert_allclose(-steps[t - 1] * roots[t - 1], m_hat, rtol=1e-10)


@equation(
    "eq-nadam-constant",
    r"\bar m_t = \frac{\beta_1\, m_t}{1-\beta_1^{\,t+1}} + \frac{(1-\beta_1)\, g_t}{1-\beta_1^{\,t}} .",
)
def test_constant_momentum() -> None:
    makers = (
        lambda p: NAdam(p, lr=1.0, betas=(BETA1, BETA2), eps=0.0, momentum_decay=None),
        lambda p: Adam(p, lr=1.0, betas=(BETA1, BETA2), eps=0.0, nesterov=True),
    )
    ms, roots = averages()
    for make in makers:
        steps = np.diff(path(make), axis=0, prepend=0.0)
        for t, g in enumerate(GRADIENTS, 1):
            m_bar = BETA1 * ms[t - 1] / (1 - BETA1 ** (t + 1)) + (1 - BETA1) * g / (1 - BETA1**t)
            np.testing.assert_allclose(-steps[t - 1] * roots[t - 1], m_bar, rtol=1e-10)
    # uncorrected, it is the average that one more gradient of the same kind would give
    m, g = torch.from_numpy(ms[4]), torch.from_numpy(GRADIENTS[4])
    again = BETA1 * m + (1 - BETA1) * g
    torch.testing.assert_close(nesterov_average(g, m, BETA1, BETA1), again)


@equation(
    "eq-nadam-mu",
    r"\mu_t = \beta_1 \bigl(1 - \tfrac12 \cdot 0.96^{\,t\psi}\bigr), \qquad \Pi_t = \mu_1 \mu_2 \cdots \mu_t ,",
)
def test_schedule() -> None:
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = NAdam([theta], betas=(BETA1, BETA2), momentum_decay=PSI)
    for t in range(1, 20):
        theta.grad = torch.ones_like(theta)
        optimizer.step()
        mu, product = momenta(t)
        assert scheduled_momentum(BETA1, t, PSI) == pytest.approx(mu, rel=1e-12)
        assert optimizer.state[theta]["mu_product"].item() == pytest.approx(product, rel=SINGLE)


@equation(
    "eq-nadam-mbar",
    r"m_t = \beta_1 m_{t-1} + (1-\beta_1)\, g_t, \qquad \bar m_t = \frac{\mu_{t+1}\, m_t}{1-\Pi_{t+1}}"
    r" + \frac{(1-\mu_t)\, g_t}{1-\Pi_t} ,",
)
@equation("eq-nadam", r"\theta_t = \theta_{t-1} - \alpha\, \frac{\bar m_t}{\sqrt{\hat v_t} + \varepsilon} .")
def test_rule() -> None:
    steps = path(lambda p: NAdam(p, lr=ALPHA, betas=(BETA1, BETA2), eps=EPS, momentum_decay=PSI))
    ms, roots = averages()
    expected = np.zeros(3)
    for t, g in enumerate(GRADIENTS, 1):
        (mu, product), (mu_next, product_next) = momenta(t), momenta(t + 1)
        m_bar = mu_next * ms[t - 1] / (1 - product_next) + (1 - mu) * g / (1 - product)
        expected = expected - ALPHA * m_bar / (roots[t - 1] + EPS)
        np.testing.assert_allclose(steps[t - 1], expected, rtol=SINGLE)


@equation(
    "eq-nadam-weight",
    r"\frac{\bar m_t}{g} = \frac{\mu_{t+1}\,(1-\beta_1^{\,t})}{1-\Pi_{t+1}} + \frac{1-\mu_t}{1-\Pi_t} ,",
)
def test_weight_on_a_constant_gradient() -> None:
    constant = np.full((12, 1), -3.0)
    lengths = np.diff(
        path(lambda p: NAdam(p, lr=1.0, betas=(BETA1, BETA2), eps=0.0, momentum_decay=PSI), constant),
        axis=0,
        prepend=0.0,
    )
    for t in range(1, 13):
        (mu, product), (mu_next, product_next) = momenta(t), momenta(t + 1)
        weight = mu_next * (1 - BETA1**t) / (1 - product_next) + (1 - mu) / (1 - product)
        assert abs(lengths[t - 1].item()) == pytest.approx(weight, rel=SINGLE)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
