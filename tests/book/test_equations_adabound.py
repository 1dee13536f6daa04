"""Every displayed equation of the AdaBound chapter, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.AdaBound` fails. Everything is float64.
"""

import math

import numpy as np
import pytest
import torch

from experiments.problems import Quadratic
from optimizers import SGD, AdaBound, Adam, RAdam
from optimizers.adabound import AdaBoundStep, rate_bounds

from .equations import Chapter

CHAPTER = Chapter("adaptive/adabound")
equation = CHAPTER.equation
ALPHA, BETA1, BETA2, EPS, STAR, GAMMA = 0.01, 0.8, 0.95, 1e-3, 0.05, 0.02
GRADIENTS = np.random.default_rng(0).standard_normal((60, 5)) * 10.0 ** np.arange(-3, 2)


def steps(make, gradients):
    """The step θ_t − θ_{t−1} of every gradient."""
    theta = torch.zeros(gradients.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = make([theta])
    for g in gradients:
        with torch.no_grad():
            theta.zero_()  # so that no step is lost in the rounding of θ
        theta.grad = torch.from_numpy(g.copy())
        optimizer.step()
        yield theta.detach().numpy().copy()


def averages(gradients):
    """t, m_t and v_t."""
    m = v = np.zeros(gradients.shape[1])
    for t, g in enumerate(gradients, 1):
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g**2
        yield t, m, v


def adam_rate(t, v, eps=EPS):
    return ALPHA * math.sqrt(1 - BETA2**t) / ((1 - BETA1**t) * (np.sqrt(v) + eps))


def bounds(t, star=STAR, gamma=GAMMA):
    return star * (1 - 1 / (gamma * t + 1)), star * (1 + 1 / (gamma * t))


@equation(
    "eq-adabound-rate",
    r"\theta_t = \theta_{t-1} - a_t\, m_t, \qquad a_t ="
    r" \frac{\alpha\sqrt{1-\beta_2^{\,t}}}{(1-\beta_1^{\,t})\,(\sqrt{v_t} + \varepsilon)} .",
)
def test_adams_rate() -> None:
    # Without ε it is Adam; with it, AdaBound's where no bound is in the way.
    adam = steps(lambda p: Adam(p, ALPHA, (BETA1, BETA2), eps=0.0), GRADIENTS)
    wide = steps(lambda p: AdaBound(p, ALPHA, (BETA1, BETA2), gamma=1e-12, eps=EPS), GRADIENTS)
    for (t, m, v), one, other in zip(averages(GRADIENTS), adam, wide, strict=True):
        np.testing.assert_allclose(one, -adam_rate(t, v, 0.0) * m, rtol=1e-10)
        np.testing.assert_allclose(other, -adam_rate(t, v) * m, rtol=1e-10)


@pytest.fixture(scope="module")
def converged() -> tuple[torch.Tensor, torch.Tensor]:
    """RAdam on the bowl for 10,000 steps: the loss, and the rate of the steep coordinate."""
    bowl = Quadratic()
    theta = bowl.initial().requires_grad_()
    optimizer = RAdam([theta], lr=0.1)
    losses, squares = [], []
    for _ in range(10_000):
        theta.grad = bowl.gradient(theta.detach())
        optimizer.step()
        losses.append(bowl.loss(theta.detach()))
        squares.append(optimizer.state[theta]["exp_avg_sq"][1].clone())
    t = torch.arange(1, 10_001, dtype=torch.float64)
    rate = 0.1 * (1 - 0.999**t).sqrt() / (1 - 0.9**t) / torch.stack(squares).sqrt()
    return torch.stack(losses), rate


@equation("eq-adabound-growth", r"a_{t+k} = \beta_2^{-k/2}\, a_t .")
def test_growth(converged) -> None:
    _, rate = converged
    for k in (1, 100, 1386):
        # the correction √(1 − β₂ᵗ) still rises by a thousandth after step 6,000
        assert rate[5999 + k] / rate[5999] == pytest.approx(0.999 ** (-k / 2), rel=2e-3)
    assert 2 * math.log(2) / 0.001 == pytest.approx(1386, abs=1)
    assert math.pow(0.999, -1386 / 2) == pytest.approx(2, rel=1e-3)


@equation("eq-adabound-stable", r"a < \frac{2\,(1+\beta_1)}{(1-\beta_1)\,h} .")
@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_stability(beta1) -> None:
    h = 20.0
    limit = 2 * (1 + beta1) / ((1 - beta1) * h)
    if beta1 == 0.9:
        assert limit == pytest.approx(1.9)
    for factor, grows in ((0.98, False), (1.02, True)):
        # at γ = 10¹² AdaBound's rate is α*, whatever the gradients
        x = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = AdaBound([x], betas=(beta1, 0.999), final_lr=factor * limit, gamma=1e12)
        for _ in range(3000):
            x.grad = h * x.detach()
            optimizer.step()
        assert bool(x.abs() > 1) is grows


@equation("eq-adabound-return", r"f \approx \frac{\alpha^2}{2\,h\,a^2\,(1-\beta_2)} .")
def test_return(converged) -> None:
    loss, rate = converged
    predicted = 0.1**2 / (2 * 20 * 1.9**2 * (1 - 0.999))
    assert predicted == pytest.approx(0.07, abs=0.001)
    lowest = int(loss.argmin())
    assert loss[lowest] < 1e-300
    assert rate[lowest] < 1.9 < rate.max()
    assert predicted / 3 < loss[lowest:].max() < predicted * 3  # an order of magnitude is what it promises
    early = int((loss < 0.07).nonzero()[0])
    assert 155 < early < 165  # "160 steps after the start"


@equation(
    "eq-adabound-clip",
    r"\eta_t = \min\bigl(\max(a_t,\ \eta_l(t)),\ \eta_u(t)\bigr), \qquad \theta_t = \theta_{t-1} - \eta_t\, m_t .",
)
@equation(
    "eq-adabound-bounds",
    r"\eta_l(t) = \alpha^*\Bigl(1 - \frac{1}{\gamma t + 1}\Bigr), \qquad \eta_u(t) = \alpha^*\Bigl(1 +"
    r" \frac{1}{\gamma t}\Bigr) .",
)
def test_rule() -> None:
    made = steps(lambda p: AdaBound(p, ALPHA, (BETA1, BETA2), STAR, GAMMA, EPS), GRADIENTS)
    held = np.zeros(3, dtype=bool)
    for (t, m, v), step in zip(averages(GRADIENTS), made, strict=True):
        low, high = bounds(t)
        assert rate_bounds(STAR, GAMMA, t) == pytest.approx((low, high), rel=1e-12)
        a = adam_rate(t, v)
        np.testing.assert_allclose(step, -np.minimum(np.maximum(a, low), high) * m, rtol=1e-10)
        held |= [(a < low).any(), ((low < a) & (a < high)).any(), (a > high).any()]
    assert held.all()  # all three cases have occurred


@equation("eq-adabound-ratio", r"\frac{\eta_u(t)}{\eta_l(t)} = \Bigl(1 + \frac{1}{\gamma t}\Bigr)^{2} .")
def test_ratio() -> None:
    for t in (1, 10, 1200, 2414):
        low, high = rate_bounds(0.1, 1e-3, t)
        assert high / low == pytest.approx((1 + 1 / (1e-3 * t)) ** 2, rel=1e-9)
        assert low * high == pytest.approx(0.1**2, rel=1e-9)
    assert high / low == pytest.approx(2, rel=1e-3)
    assert 1 / (math.sqrt(2) - 1) == pytest.approx(2.414, abs=1e-3)


@equation("eq-adabound-deviation", r"\Bigl|\frac{\eta_t}{\alpha^*} - 1\Bigr| \le \frac{1}{\gamma t} .")
def test_deviation() -> None:
    made = steps(lambda p: AdaBound(p, ALPHA, (0.0, BETA2), STAR, GAMMA), GRADIENTS)
    for t, (g, step) in enumerate(zip(GRADIENTS, made, strict=True), 1):
        assert (np.abs(-step / g / STAR - 1) <= (1 + 1e-9) / (GAMMA * t)).all()


@equation(
    "eq-adabound-limit",
    r"\theta_t = \theta_{t-1} - \alpha^*\, m_t = \theta_{t-1} - \alpha^*(1-\beta_1)\, b_t .",
)
def test_limit() -> None:
    bounded = steps(lambda p: AdaBound(p, ALPHA, (BETA1, BETA2), STAR, 1e13), GRADIENTS)
    undamped = steps(lambda p: SGD(p, STAR * (1 - BETA1), momentum=BETA1), GRADIENTS)
    for (_, m, _), one, other in zip(averages(GRADIENTS), bounded, undamped, strict=True):
        np.testing.assert_allclose(one, -STAR * m, rtol=1e-10)
        np.testing.assert_allclose(other, -STAR * m, rtol=1e-10)


@equation(
    "eq-adabound-problem",
    r"f_t(x) = \begin{cases} C\,x & \text{with probability } \frac{2}{C+1}, \\ -x & \text{else,} \end{cases}"
    r" \qquad \mathbb{E}[f_t(x)] = x ,",
)
@equation(
    "eq-adabound-drift",
    r"\mathbb{E}[\eta_t\, g_t] \ge \alpha^*\Bigl(\mathbb{E}[g_t] - \frac{\mathbb{E}|g_t|}{\gamma t}\Bigr) ="
    r" \alpha^*\Bigl(1 - \frac{3C-1}{(C+1)\,\gamma t}\Bigr) ,",
)
@pytest.mark.parametrize("C", [2.0, 10.0, 50.0])
def test_drift(C) -> None:
    p = 2 / (C + 1)
    assert p * C + (1 - p) * -1 == pytest.approx(1)
    size = p * C + (1 - p)
    assert size == pytest.approx((3 * C - 1) / (C + 1))
    assert size < 3
    # E[η g] by the package, over the law of v after 60 random gradients
    random, gamma = np.random.default_rng(1), 0.1
    g = torch.from_numpy(np.where(random.random((60, 20_000)) < p, C, -1.0))
    v = torch.zeros(20_000, dtype=torch.float64)
    for t, row in enumerate(g, 1):
        step, _, v, _ = AdaBoundStep.update(row, v, v, None, t, 0.1, 1.0, (0.0, 0.5), 1.0, gamma, 0.0, False)
        if t in (20, 30, 60):
            bound = row.mean() - row.abs().mean() / (gamma * t)
            assert step.mean() >= bound
            assert bound.item() == pytest.approx(1 - size / (gamma * t), abs=0.3)
    assert 1 - size / (gamma * 3 / gamma) > 0  # from t = 3/γ on


@equation(
    "eq-adabound-paper",
    r"\theta_t = \theta_{t-1} - \frac{1}{\sqrt t}\, \min\Bigl(\max\Bigl(\frac{\alpha}{\sqrt{v_t}},"
    r"\ \eta_l(t)\Bigr),\ \eta_u(t)\Bigr)\, m_t ,",
)
def test_the_papers_rule() -> None:
    # What differs from the package: the division by √t, and that α is not corrected.
    m = v = torch.zeros(5, dtype=torch.float64)
    for (t, mean, square), g in zip(averages(GRADIENTS), GRADIENTS, strict=True):
        low, high = bounds(t)
        expected = np.minimum(np.maximum(ALPHA / np.sqrt(square), low), high) * mean / math.sqrt(t)
        lr = ALPHA * (1 - BETA1**t) / math.sqrt(1 - BETA2**t)
        step, m, v, _ = AdaBoundStep.update(
            torch.from_numpy(g), m, v, None, t, lr, 1.0, (BETA1, BETA2), STAR, GAMMA, 0.0, False
        )
        np.testing.assert_allclose(step.numpy() / math.sqrt(t), expected, rtol=1e-10)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
