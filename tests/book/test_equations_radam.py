"""Every displayed equation of the RAdam chapter, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.RAdam`, or with a numerical integral, fails.
"""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import beta as beta_function
from scipy.special import gamma

from optimizers import Adam, RAdam
from optimizers.radam import rectification, sma_length

from .equations import Chapter

CHAPTER = Chapter("adaptive/radam")
equation = CHAPTER.equation
ALPHA, BETA1, BETA2 = 0.01, 0.8, 0.95
SIGMA = 1.7


def moment(power: float, rho: float) -> float:
    """E[l^power] for l = √(ρ/X)/σ with X of χ² with ρ degrees of freedom, by numerical integration."""

    def integrand(x: float) -> float:
        return (math.sqrt(rho / x) / SIGMA) ** power * stats.chi2.pdf(x, rho)

    return float(integrate.quad(integrand, 0, rho)[0] + integrate.quad(integrand, rho, np.inf)[0])


@equation("eq-radam-l", r"l_t = \frac{1}{\sqrt{\hat v_t}} = \sqrt{\frac{1-\beta_2^{\,t}}{v_t}} .")
def test_adaptive_learning_rate() -> None:
    # With β₁ = 0 Adam's step over the gradient is the learning rate of the coordinate.
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = Adam([theta], lr=1.0, betas=(0.0, BETA2), eps=0.0)
    v = 0.0
    for t, g in enumerate((0.3, -2.0, 0.7, 5.0), 1):
        before = theta.item()
        theta.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        v = BETA2 * v + (1 - BETA2) * g**2
        assert (before - theta.item()) / g == pytest.approx(math.sqrt((1 - BETA2**t) / v), rel=1e-12)


def mean_age(beta2: float, t: int) -> float:
    weights = [(1 - beta2) * beta2**j / (1 - beta2**t) for j in range(t)]
    assert sum(weights) == pytest.approx(1)
    return sum(j * w for j, w in enumerate(weights))


@equation(
    "eq-radam-age",
    r"\sum_{j=0}^{t-1} j\, w_j = \frac{\beta_2}{1-\beta_2} - \frac{t\,\beta_2^{\,t}}{1-\beta_2^{\,t}} .",
)
@equation(
    "eq-radam-rho",
    r"\rho_t = \rho_\infty - \frac{2\,t\,\beta_2^{\,t}}{1-\beta_2^{\,t}},"
    r" \qquad \rho_\infty = \frac{2}{1-\beta_2} - 1 .",
)
@pytest.mark.parametrize("beta2", [0.5, 0.9, 0.999])
def test_length(beta2: float) -> None:
    for t in (1, 2, 5, 30, 400):
        age = beta2 / (1 - beta2) - t * beta2**t / (1 - beta2**t)
        assert age == pytest.approx(mean_age(beta2, t), abs=1e-9)
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        assert (rho - 1) / 2 == pytest.approx(age, abs=1e-9)
        assert sma_length(beta2, t) == pytest.approx((rho, rho_inf), rel=1e-12)


@equation(
    "eq-radam-moments",
    r"\mathbb{E}[l^2] = \frac{1}{\sigma^2}\,\frac{\rho}{\rho-2}, \qquad \mathbb{E}[l] ="
    r" \frac{1}{\sigma}\sqrt{\frac{\rho}{2}}\;"
    r"\frac{\Gamma\bigl(\frac{\rho-1}{2}\bigr)}{\Gamma\bigl(\frac{\rho}{2}\bigr)},",
)
@pytest.mark.parametrize("rho", [3.5, 5.0, 12.0, 60.0])
def test_moments(rho: float) -> None:
    assert rho / (rho - 2) / SIGMA**2 == pytest.approx(moment(2, rho), rel=1e-6)
    first = math.sqrt(rho / 2) * gamma((rho - 1) / 2) / gamma(rho / 2) / SIGMA
    assert first == pytest.approx(moment(1, rho), rel=1e-6)


def closed_form(rho: float) -> float:
    return float(rho / (rho - 2) - rho / 2 * (gamma((rho - 1) / 2) / gamma(rho / 2)) ** 2) / SIGMA**2


@equation(
    "eq-radam-variance",
    r"\operatorname{Var}[l] = \frac{1}{\sigma^2}\left[\frac{\rho}{\rho-2} -"
    r" \frac{\rho}{2}\left(\frac{\Gamma\bigl(\frac{\rho-1}{2}\bigr)}{\Gamma\bigl(\frac{\rho}{2}\bigr)}"
    r"\right)^{\!2}\,\right],"
    r" \qquad \rho > 2 .",
)
def test_variance() -> None:
    rhos = [2.1, 3.5, 5.0, 12.0, 60.0]
    for rho in rhos[1:]:
        assert closed_form(rho) == pytest.approx(moment(2, rho) - moment(1, rho) ** 2, rel=1e-5)
        # the paper's form of it, with a Beta function
        beta_form = (
            rho / (rho - 2) - rho * 2 ** (2 * rho - 5) / math.pi * beta_function((rho - 1) / 2, (rho - 1) / 2) ** 2
        )
        assert closed_form(rho) == pytest.approx(beta_form / SIGMA**2, rel=1e-8)
    values = [closed_form(rho) for rho in rhos]
    assert values == sorted(values, reverse=True)


@equation(
    "eq-radam-first-order",
    r"\operatorname{Var}[l] \approx \frac{\rho}{2\,(\rho-2)(\rho-4)\,\sigma^2}, \qquad \rho > 4 .",
)
def test_first_order() -> None:
    for rho in (4.5, 9.0, 40.0):
        square = rho**2 / ((rho - 2) * (rho - 4)) - (rho / (rho - 2)) ** 2  # Var[l²] σ⁴, by s = 2
        assert 2 * rho**2 / ((rho - 2) ** 2 * (rho - 4)) == pytest.approx(square, rel=1e-12)
        approximation = rho / (2 * (rho - 2) * (rho - 4))
        assert approximation == pytest.approx(square / (4 * rho / (rho - 2)), rel=1e-12)
        assert approximation > closed_form(rho) * SIGMA**2
    assert closed_form(150.0) == pytest.approx(150 / (2 * 148 * 146 * SIGMA**2), rel=0.03)


@equation(
    "eq-radam-r",
    r"r_t = \sqrt{\frac{(\rho_t-4)(\rho_t-2)\,\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\,\rho_t}} .",
)
def test_rectification() -> None:
    for t in (5, 6, 40, 3000):
        rho, rho_inf = sma_length(0.999, t)
        first_order = [x / (2 * (x - 2) * (x - 4)) for x in (rho, rho_inf)]
        r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        assert float(rectification(rho, rho_inf, True)) == pytest.approx(r, rel=1e-12)
        assert r**2 * first_order[0] == pytest.approx(first_order[1], rel=1e-9)


@equation(
    "eq-radam",
    r"\theta_t = \theta_{t-1} - \alpha_t \begin{cases} r_t\, \hat m_t\, l_t & \text{if } \rho_t > 4, \\"
    r" \hat m_t & \text{else.} \end{cases}",
)
def test_rule() -> None:
    gradients = np.random.default_rng(0).standard_normal((25, 3))
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = RAdam([theta], lr=ALPHA, betas=(BETA1, BETA2), eps=0.0, threshold=4.0)
    m = v = expected = np.zeros(3)
    kinds = []
    for t, g in enumerate(gradients, 1):
        alpha = optimizer.param_groups[0]["lr"] = ALPHA / t
        theta.grad = torch.from_numpy(g.copy())
        optimizer.step()
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g**2
        m_hat, rate = m / (1 - BETA1**t), np.sqrt((1 - BETA2**t) / v)
        rho_inf = 2 / (1 - BETA2) - 1
        rho = rho_inf - 2 * t * BETA2**t / (1 - BETA2**t)
        kinds.append(rho > 4)
        if rho > 4:
            r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            expected = expected - alpha * r * m_hat * rate
        else:
            expected = expected - alpha * m_hat
        np.testing.assert_allclose(theta.detach().numpy(), expected, rtol=1e-10)
    assert kinds.index(True) == 4  # the fifth step is the first adaptive one


@equation(
    "eq-radam-length",
    r"\frac{\mathbb{E}[\hat m_t^2]}{\sigma^2} ="
    r" \frac{1-\beta_1}{1+\beta_1}\cdot\frac{1+\beta_1^{\,t}}{1-\beta_1^{\,t}} ,",
)
def test_length_of_the_numerator() -> None:
    # Independent gradients: the mean square of m̂_t is the sum of its squared weights, read off the package's m.
    for t in (1, 2, 7, 60):
        weights = []
        for place in range(t):
            theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
            optimizer = Adam([theta], betas=(BETA1, BETA2))
            for i in range(t):
                theta.grad = torch.tensor([float(i == place)], dtype=torch.float64)
                optimizer.step()
            weights.append(optimizer.state[theta]["exp_avg"].item() / (1 - BETA1**t))
        expected = (1 - BETA1) / (1 + BETA1) * (1 + BETA1**t) / (1 - BETA1**t)
        assert sum(w**2 for w in weights) == pytest.approx(expected, rel=1e-12)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
