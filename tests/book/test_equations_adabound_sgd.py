"""Every displayed equation of the chapter on AdaBound's proof, as it stands on the page, evaluated.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with the package's bounds and steps, or with exact fractions, fails.
"""

import math
import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import sympy
import torch

from optimizers import SGD, AdaBound, Adam, Chain, Place, Stage
from optimizers.adabound import AdaBoundStep, rate_bounds

from .conftest import ROOT
from .equations import Chapter

CHAPTER = Chapter("adaptive/adabound_sgd")
equation = CHAPTER.equation
C, ALPHA, BETA2 = 10.0, 0.1, 0.5
D, G = 2.0, C  # the width of the interval [−1, 1], and the largest gradient
GRADIENTS = np.random.default_rng(3).standard_normal((40, 3))


class Run:
    """The paper's rule on the stochastic problem, by the package's step: for every t, x_t, g_t, η_t and v_t."""

    def __init__(self, gamma, steps=400, sequences=50, seed=0):
        random = np.random.default_rng(seed)
        self.g = torch.from_numpy(np.where(random.random((steps, sequences)) < 2 / (C + 1), C, -1.0))
        x = v = torch.zeros(sequences, dtype=torch.float64)
        self.x, self.eta, self.v = [x], [], []
        for t, g in enumerate(self.g, 1):
            lr = ALPHA / math.sqrt(1 - BETA2**t)  # takes the package's bias correction out
            step, _, v, _ = AdaBoundStep.update(g, x, v, None, t, lr, 1.0, (0.0, BETA2), 1.0, gamma, 0.0, False)
            self.eta.append(step / g)
            self.v.append(v)
            x = (x - step / math.sqrt(t)).clamp(-1, 1)
            self.x.append(x)
        self.losses = torch.stack([g * (x + 1) for g, x in zip(self.g, self.x[:-1], strict=True)])
        self.regret = self.losses.cumsum(0)


@equation(
    "eq-adabound-sgd-rule",
    r"\begin{gathered} x_{t+1} = \Pi\Bigl(x_t - \frac{\eta_t}{\sqrt t}\, g_t\Bigr), \qquad \eta_l(t) \le"
    r" \eta_t \le \eta_u(t), \\ \eta_l(t) = \frac{\gamma t}{\gamma t+1}, \qquad \eta_u(t) ="
    r" \frac{\gamma t+1}{\gamma t} . \end{gathered}",
)
@pytest.mark.parametrize("gamma", [1e-3, 0.1, 4.0])
def test_rule(gamma) -> None:
    run = Run(gamma)
    for t, (x, g, eta, after) in enumerate(zip(run.x, run.g, run.eta, run.x[1:], strict=False), 1):
        low, high = gamma * t / (gamma * t + 1), (gamma * t + 1) / (gamma * t)
        assert rate_bounds(1.0, gamma, t) == pytest.approx((low, high), rel=1e-9)
        assert (eta >= low * (1 - 1e-9)).all()
        assert (eta <= high * (1 + 1e-9)).all()
        assert torch.allclose(after, (x - eta / math.sqrt(t) * g).clamp(-1, 1), atol=1e-12)


def brackets(run):
    root = [math.sqrt(t) / eta for t, eta in enumerate(run.eta, 1)]
    return torch.stack([root[0], *(after - before for before, after in pairwise(root))])


@equation(
    "eq-adabound-sgd-regret",
    r"R_T \le \frac12\sum_{t=1}^{T} \Bigl(\frac{\sqrt t}{\eta_t} - \frac{\sqrt{t-1}}{\eta_{t-1}}\Bigr)(x_t -"
    r" x^*)^2 + \frac12\sum_{t=1}^{T}\frac{\eta_t}{\sqrt t}\, g_t^2 .",
)
@pytest.mark.parametrize("gamma", [1e-3, 0.1, 4.0])
def test_regret(gamma) -> None:
    run = Run(gamma)
    squares = (torch.stack(run.x[:-1]) + 1) ** 2
    steps = torch.stack([eta / math.sqrt(t) for t, eta in enumerate(run.eta, 1)])
    bound = 0.5 * (brackets(run) * squares).cumsum(0) + 0.5 * (steps * run.g**2).cumsum(0)
    assert (run.regret <= bound + 1e-9).all()
    assert gamma > 1 or bool((brackets(run) < 0).any())  # where γ is small some brackets are negative


def condition(gamma: Fraction, t: int) -> bool:
    """η_l(t−1)/η_u(t) ≥ √(1 − 1/t), squared, in exact fractions from the package's bounds."""
    ratio = rate_bounds(Fraction(1), gamma, t - 1)[0] / rate_bounds(Fraction(1), gamma, t)[1]
    return ratio**2 >= 1 - Fraction(1, t)


@equation("eq-adabound-sgd-condition", r"\frac{\eta_l(t-1)}{\eta_u(t)} \ge \sqrt{1 - \frac1t} .")
def test_condition() -> None:
    # It is what makes the bracket's least value positive: √t/η_u(t) ≥ √(t−1)/η_l(t−1).
    for gamma in (1e-3, 1.0, 3.5, 3.9, 4.0, 10.0):
        for t in (2, 3, 10, 1000, 10**6):
            low, high = rate_bounds(1.0, gamma, t - 1)[0], rate_bounds(1.0, gamma, t)[1]
            difference = math.sqrt(t) / high - math.sqrt(t - 1) / low
            if abs(difference) > 1e-9:
                assert condition(Fraction(gamma), t) == (difference > 0)
    assert not any(condition(Fraction(1, 1000), t) for t in range(2, 3000))


@equation(
    "eq-adabound-sgd-ratio",
    r"\begin{gathered} \frac{\eta_l(t-1)}{\eta_u(t)} ="
    r" \frac{\gamma(t-1)}{\gamma(t-1)+1}\cdot\frac{\gamma t}{\gamma t+1} = 1 - \frac{2}{\gamma t} +"
    r" O\Bigl(\frac1{t^2}\Bigr), \\ \sqrt{1 - \frac1t} = 1 - \frac{1}{2t} + O\Bigl(\frac1{t^2}\Bigr) ."
    r" \end{gathered}",
)
def test_ratio() -> None:
    t, gamma, s = sympy.symbols("t gamma s", positive=True)
    product = gamma * (t - 1) / (gamma * (t - 1) + 1) * gamma * t / (gamma * t + 1)
    ratio = rate_bounds(1, gamma, t - 1)[0] / rate_bounds(1, gamma, t)[1]
    assert sympy.simplify(ratio - product) == 0
    assert sympy.simplify(sympy.diff(product.subs(t, 1 / s), s).simplify().limit(s, 0) + 2 / gamma) == 0
    assert sympy.series(sympy.sqrt(1 - s), s, 0, 2).removeO() == 1 - s / 2
    low, high = rate_bounds(1.0, 4.0, 1)
    assert high / low < 1.6  # "within a factor 1.6 of each other after the first step"


@equation(
    "eq-adabound-sgd-polynomial",
    r"\gamma^2\, t\, c_t \ge \gamma\,(2t-1) + 1, \qquad c_t = \sqrt{t(t-1)} - (t-1) ,",
)
def test_polynomial() -> None:
    for gamma in (0.5, 2.0, 3.5, 3.95, 4.0, 7.0, 100.0):
        for t in (2, 3, 7, 50, 1000, 30_000):
            c = math.sqrt(t * (t - 1)) - (t - 1)
            assert 0.41 < c < 0.5
            assert (gamma**2 * t * c >= gamma * (2 * t - 1) + 1) == condition(Fraction(gamma), t)
    # the exercise: γ ≥ 4 for all t, and for no γ < 4
    assert all(condition(Fraction(4), t) for t in range(2, 20_000))
    t = sympy.symbols("t", positive=True)
    assert sympy.expand(256 * t**3 * (t - 1) - (16 * t**2 - 8 * t - 3) ** 2) == 32 * t**2 - 48 * t - 9
    assert all(32 * k**2 - 48 * k - 9 > 0 for k in range(2, 10))
    for gamma in (1.0, 3.0, 3.9, 3.99):
        late = math.ceil((gamma - 1) / (gamma * (2 - gamma / 2))) + 1
        assert not condition(Fraction(gamma), max(late, 2))


@equation(
    "eq-adabound-sgd-gamma",
    r"\gamma = \frac1K \min\Bigl(\frac{\alpha}{C-\alpha},\ \frac{\sqrt{1-\beta_2}}{\alpha}\Bigr) .",
)
@equation(
    "eq-adabound-sgd-range",
    r"\frac{\alpha}{C} \le \frac{\alpha}{\sqrt{v_t}} \le \frac{\alpha}{\sqrt{1-\beta_2}} .",
)
@equation(
    "eq-adabound-sgd-open",
    r"\eta_l(t) \le \eta_l(K) \le \frac{\alpha}{C}, \qquad \eta_u(t) \ge \eta_u(K) \ge 1 +"
    r" \frac{\alpha}{\sqrt{1-\beta_2}}, \qquad t \le K .",
)
@pytest.mark.parametrize("alpha", [0.1, 2.0])
def test_counter_example(alpha) -> None:
    K = 300
    gamma = min(alpha / (C - alpha), math.sqrt(1 - BETA2) / alpha) / K
    if alpha == 0.1:
        assert gamma * K == pytest.approx(1.0101e-2, rel=1e-4)
    run = Run(1e-200)  # Adam
    for t, v in enumerate(run.v[:K], 1):
        rate = alpha / v.sqrt()
        assert (rate >= alpha / C * (1 - 1e-12)).all()
        assert (rate <= alpha / math.sqrt(1 - BETA2) * (1 + 1e-12)).all()
        (low, high), (last_low, last_high) = rate_bounds(1.0, gamma, t), rate_bounds(1.0, gamma, K)
        assert low <= last_low * (1 + 1e-12) <= alpha / C * (1 + 1e-9)
        assert high >= last_high * (1 - 1e-12) >= (1 + alpha / math.sqrt(1 - BETA2)) * (1 - 1e-9)
    if alpha == ALPHA:
        same = Run(gamma)
        assert all(torch.equal(a, b) for a, b in zip(same.x[: K + 1], run.x[: K + 1], strict=True))


@equation(
    "eq-adabound-sgd-m",
    r"\frac{t}{\eta_l(t)} - \frac{t-1}{\eta_u(t-1)} \le M \qquad \text{for all } t .",
)
@equation(
    "eq-adabound-sgd-sharp",
    r"\frac{t}{\eta_l(t)} - \frac{t-1}{\eta_u(t-1)} = 1 + \frac1\gamma + \frac{t-1}{\gamma(t-1)+1} < 1 +"
    r" \frac2\gamma .",
)
@pytest.mark.parametrize("gamma", [Fraction(1, 1000), Fraction(1, 3), Fraction(4), Fraction(100)])
def test_sharp(gamma) -> None:
    for t in (1, 2, 3, 50, 10**6, 10**9):
        before = (t - 1) / rate_bounds(Fraction(1), gamma, t - 1)[1] if t > 1 else 0
        value = t / rate_bounds(Fraction(1), gamma, t)[0] - before
        assert value == 1 + 1 / gamma + Fraction(t - 1) / (gamma * (t - 1) + 1)
        assert value < 1 + 2 / gamma < 3 + 2 / gamma
    assert value > (1 + 2 / gamma) * Fraction(999, 1000)  # "the least that will do"


@equation(
    "eq-adabound-sgd-bracket",
    r"\frac{\sqrt t}{\eta_t} - \frac{\sqrt{t-1}}{\eta_{t-1}} \le"
    r" \frac{1}{\sqrt t}\Bigl(\frac{t}{\eta_l(t)} - \frac{t-1}{\eta_u(t-1)}\Bigr) \le \frac{M}{\sqrt t} .",
)
@pytest.mark.parametrize("gamma", [1e-3, 0.1, 4.0])
def test_bracket(gamma) -> None:
    for t, bracket in enumerate(brackets(Run(gamma)), 1):
        before = (t - 1) / rate_bounds(1.0, gamma, t - 1)[1] if t > 1 else 0.0
        middle = (t / rate_bounds(1.0, gamma, t)[0] - before) / math.sqrt(t)
        assert (bracket <= middle * (1 + 1e-12)).all()
        assert middle <= (1 + 2 / gamma) / math.sqrt(t)


@equation(
    "eq-adabound-sgd-bound",
    r"R_T \le \Bigl[\Bigl(1 + \frac2\gamma\Bigr) D^2 + \Bigl(1 + \frac1\gamma\Bigr) G^2\Bigr]\sqrt T .",
)
@equation(
    "eq-adabound-sgd-corollary",
    r"R_T \le \frac{5\sqrt T}{1-\beta_1}\Bigl(1 + \frac1\gamma\Bigr)\bigl(d D^2 + G^2\bigr) .",
)
@pytest.mark.parametrize("gamma", [1e-3, 0.1, 4.0, 1e6])
def test_bounds(gamma) -> None:
    run = Run(gamma)
    t = torch.arange(1, len(run.regret) + 1, dtype=torch.float64)[:, None]
    factor = (1 + 2 / gamma) * D**2 + (1 + 1 / gamma) * G**2
    assert (run.regret <= factor * t.sqrt()).all()
    assert 5 * (1 + 1 / gamma) * (D**2 + G**2) >= factor  # with d = 1 and β₁ = 0 the report's is the weaker one
    # the sums of the derivation
    assert (1 / t.sqrt()).cumsum(0).lt(2 * t.sqrt()).all()
    assert rate_bounds(1.0, gamma, 1)[1] == pytest.approx(1 + 1 / gamma, rel=1e-9)
    # the exercise: the best α*
    a, b = 1 + 2 / gamma, 1 + 1 / gamma
    star = D / G * math.sqrt((gamma + 2) / (gamma + 1))
    best = a * D**2 / star + b * star * G**2
    assert best == pytest.approx(2 * D * G * math.sqrt(a * b))
    assert all(best <= a * D**2 / (k * star) + b * k * star * G**2 for k in (0.9, 1.1))


def chapters_stage() -> type[Stage]:
    """The class CSGD as the page defines it."""
    text = (ROOT / "book/adaptive/adabound_sgd.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"^class CSGD\(Stage\):\n(?:(?:    .*)?\n)+", text, re.MULTILINE)
    scope = {"Stage": Stage, "Place": Place}
    exec(source, scope)
    return scope["CSGD"]  # type: ignore[return-value]


def steps(make, mu=0.8):
    """(step, m_t, b_t) for every gradient."""
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = make([theta])
    m = b = np.zeros(3)
    for g in GRADIENTS:
        with torch.no_grad():
            theta.zero_()
        theta.grad = torch.from_numpy(g.copy())
        optimizer.step()
        m, b = mu * m + (1 - mu) * g, mu * b + g
        yield theta.detach().numpy().copy(), m, b


@equation(
    "eq-adabound-sgd-csgd",
    r"m_t = \mu\, m_{t-1} + (1-\mu)\, g_t, \qquad \theta_t = \theta_{t-1} - \frac{\alpha}{1-\mu^{\,t}}\, m_t .",
)
@equation(
    "eq-adabound-sgd-schedule",
    r"\theta_t = \theta_{t-1} - \alpha_t\, b_t, \qquad \alpha_t = \alpha\,\frac{1-\mu}{1-\mu^{\,t}} .",
)
def test_csgd() -> None:
    stage = chapters_stage()
    alpha, mu, eps = 0.3, 0.8, 1e9
    csgd = steps(lambda p: Chain(p, [stage(mu)], lr=alpha))
    adam = steps(lambda p: Adam(p, lr=alpha * eps, betas=(mu, 0.9), eps=eps))
    limit = steps(lambda p: AdaBound(p, betas=(mu, 0.9), final_lr=alpha, gamma=1e13))
    tenth = steps(lambda p: SGD(p, lr=alpha * (1 - mu), momentum=mu))
    dampened = steps(lambda p: SGD(p, lr=alpha, momentum=mu, dampening=mu))
    for t, (one, two, three, four, five) in enumerate(zip(csgd, adam, limit, tenth, dampened, strict=True), 1):
        step, m, b = one
        np.testing.assert_allclose(step, -alpha / (1 - mu**t) * m, rtol=1e-12)
        np.testing.assert_allclose(step, -alpha * (1 - mu) / (1 - mu**t) * b, rtol=1e-12)
        # the table of the implementations
        np.testing.assert_allclose(two[0], step, rtol=1e-7)
        np.testing.assert_allclose(three[0], step * (1 - mu**t), rtol=1e-10)
        np.testing.assert_allclose(four[0], step * (1 - mu**t), rtol=1e-10)
        if t == 1:
            np.testing.assert_allclose(five[0], -alpha * GRADIENTS[0], rtol=1e-12)
        else:
            assert np.abs(five[0] - step).max() > 1e-6
    assert [math.ceil(math.log(1 / 11) / math.log(mu)) for mu in (0.9, 0.99)] == [23, 239]  # an exercise


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
