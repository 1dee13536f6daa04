"""Every displayed equation of the chapter on RMSprop, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.RMSprop` fails.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sympy
import torch
from scipy import integrate
from scipy.special import zeta

from optimizers import RMSprop

from .equations import Chapter

CHAPTER = Chapter("adaptive/rmsprop")
equation = CHAPTER.equation
Array = npt.NDArray[np.float64]
ALPHA, BETA2 = 0.3, 0.9
CYCLE = [1.0] * 9 + [-9.0]  # the lecture's gradients, in units of 0.1


def run(
    gradients: Sequence[float] | Array, beta2: float = BETA2, alpha: float = ALPHA, **options: Any
) -> tuple[Array, dict[str, Array]]:
    """θ_0, …, θ_T of shape (steps + 1, n) from 0 under given gradients, and the package's state at the end."""
    g = np.asarray(gradients, dtype=float).reshape(len(gradients), -1)
    theta = torch.zeros(g.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = RMSprop([theta], lr=alpha, alpha=beta2, **{"eps": 0.0, **options})
    path = [np.zeros(g.shape[1])]
    for gradient in g:
        theta.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        path.append(theta.detach().numpy().copy())
    state = {name: np.asarray(value) for name, value in optimizer.state[theta].items()}
    return np.array(path), state


def sequence(steps: int = 40, n: int = 3) -> Array:
    """Gradients of very different sizes, none of them zero."""
    generator = np.random.default_rng(0)
    return np.asarray(generator.standard_normal((steps, n)) * 10.0 ** generator.integers(-2, 3, (steps, n)))


@equation(
    "eq-rmsprop-sign",
    r"\theta_t = \theta_{t-1} - \alpha\, \operatorname{sign}(g_t)"
    r" = \theta_{t-1} - \alpha\, \frac{g_t}{\sqrt{g_t^2}} .",
)
def test_sign() -> None:
    g = sequence()
    path, _ = run(g, beta2=0.0)  # what the notebook takes for it
    np.testing.assert_allclose(np.diff(path, axis=0), -ALPHA * np.sign(g), rtol=1e-12)
    np.testing.assert_allclose(np.sign(g), g / np.sqrt(g**2), rtol=1e-12)


@equation(
    "eq-rmsprop",
    r"v_t = \beta_2\, v_{t-1} + (1-\beta_2)\, g_t^2, \qquad"
    r" \theta_t = \theta_{t-1} - \alpha\, \frac{g_t}{\sqrt{v_t}}, \qquad v_0 = 0 .",
)
def test_rule() -> None:
    g = sequence()
    path, state = run(g)
    v = theta = np.zeros(3)
    for t, gradient in enumerate(g, 1):
        v = BETA2 * v + (1 - BETA2) * gradient**2
        theta = theta - ALPHA * gradient / np.sqrt(v)
        np.testing.assert_allclose(path[t], theta, rtol=1e-12)
    np.testing.assert_allclose(state["square_avg"], v, rtol=1e-12)


@equation(
    "eq-rmsprop-ends",
    r"\beta_2 = 0:\ \ \Delta_t = -\alpha\,\operatorname{sign}(g_t), \qquad\qquad"
    r" \beta_2 \to 1,\ t \to \infty:\ \ \Delta_t = -\frac{\alpha}{\sigma}\, g_t ,",
)
def test_both_ends() -> None:
    g = 2.5 * np.random.default_rng(0).standard_normal((3000, 1))
    path, _ = run(g, beta2=0.0)
    np.testing.assert_allclose(np.diff(path, axis=0), -ALPHA * np.sign(g), rtol=1e-12)
    path, _ = run(g, beta2=0.9995)
    late = np.diff(path, axis=0)[-500:]
    bias = math.sqrt(1 - 0.9995**3000)  # three windows only: what v lacks
    np.testing.assert_allclose(late * bias, -ALPHA / 2.5 * g[-500:], rtol=0.06)


def periodic(beta2: float) -> tuple[float, list[float]]:
    """The package's v after the gradient −9 and after each of the nine of 1, once it repeats."""
    rounds = 5 + math.ceil(4 / (1 - beta2))
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = RMSprop([theta], alpha=beta2, eps=0.0)
    values: list[float] = []
    for gradient in CYCLE * rounds:
        theta.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        values.append(optimizer.state[theta]["square_avg"].item())
    return values[-11], values[-10:-1]


def cycle(beta2: float) -> tuple[float, list[float]]:
    v = (beta2 * (1 - beta2**9) + 81 * (1 - beta2)) / (1 - beta2**10)
    return v, [beta2**k * v + 1 - beta2**k for k in range(1, 10)]


def drift(beta2: float) -> float:
    v, others = cycle(beta2)
    return -(sum(1 / math.sqrt(x) for x in others) - 9 / math.sqrt(v))


@equation(
    "eq-rmsprop-cycle",
    r"V_k = \beta_2^{\,k}\, V + 1 - \beta_2^{\,k}, \qquad"
    r" V = \frac{\beta_2\,(1-\beta_2^{\,9}) + 81\,(1-\beta_2)}{1-\beta_2^{\,10}} .",
)
@pytest.mark.parametrize("beta2", [0.5, 0.9, 0.95])
def test_cycle(beta2: float) -> None:
    v, others = periodic(beta2)
    assert cycle(beta2)[0] == pytest.approx(v, rel=1e-9)
    assert cycle(beta2)[1] == pytest.approx(others, rel=1e-9)


@equation(
    "eq-rmsprop-drift",
    r"-\alpha\left( \sum_{k=1}^{9} \frac{1}{\sqrt{V_k}} - \frac{9}{\sqrt V} \right) ,",
)
@pytest.mark.parametrize(("beta2", "known"), [(0.5, -4.27), (0.9, -0.680), (0.95, -0.335)])
def test_drift(beta2: float, known: float) -> None:
    path, _ = run(CYCLE * (5 + math.ceil(4 / (1 - beta2))), beta2=beta2)
    assert path[-1, 0] - path[-11, 0] == pytest.approx(ALPHA * drift(beta2), rel=1e-9)
    assert drift(beta2) == pytest.approx(known, rel=2e-3)


@equation(
    "eq-rmsprop-first-order",
    r"-\alpha\,\frac{8\cdot 45}{54}\,(1-\beta_2) = -\frac{20}{3}\,\alpha\,(1-\beta_2) .",
)
def test_first_order() -> None:
    e = sympy.symbols("e", positive=True)
    beta2 = 1 - e
    v = (beta2 * (1 - beta2**9) + 81 * e) / (1 - beta2**10)
    assert sympy.limit((sympy.cancel(v) - 9) / e, e, 0) == 36
    lowered = sympy.cancel(beta2 * v + 1 - beta2 - v)
    assert sympy.limit(lowered / e, e, 0) == -8
    assert sympy.Rational(8 * 45, 54) == sympy.Rational(20, 3)
    for small in (1e-3, 1e-4):
        assert drift(1 - small) == pytest.approx(-20 / 3 * small, rel=20 * small)


@equation(
    "eq-rmsprop-skew",
    r"\mathbb{E}[\Delta_t] \approx \frac{\alpha\,(1-\beta_2)}{2} \cdot \frac{\mathbb{E}[g_t^3]}{\sigma^3} .",
)
@pytest.mark.parametrize("kind", ["lecture", "gamma"])
def test_skewness(kind: str) -> None:
    generator = np.random.default_rng(0)
    shape, beta2, filling = (1500, 4000), 0.98, 200
    if kind == "lecture":
        g = generator.choice(CYCLE, shape)
        skewness = -72 / 27
        assert np.mean(np.power(CYCLE, 3)) / np.mean(np.square(CYCLE)) ** 1.5 == pytest.approx(skewness)
    else:
        g = 5 * (generator.gamma(4.0, size=shape) - 4.0)
        skewness = 2 / math.sqrt(4.0)
    path, _ = run(g, beta2=beta2)
    moved = path[-1] - path[filling]
    noise = -ALPHA * g[filling:].sum(0) / g.std()  # its mean is zero: subtracted, as it hides the drift
    measured = (moved - noise).mean() / (shape[0] - filling)
    assert measured == pytest.approx(ALPHA * (1 - beta2) / 2 * skewness, rel=0.15)


@equation(
    "eq-rmsprop-start",
    r"|\Delta_t| = \frac{\alpha}{\sqrt{1-\beta_2^{\,t}}}, \qquad |\Delta_1| = \frac{\alpha}{\sqrt{1-\beta_2}} .",
)
@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999])
def test_start(beta2: float) -> None:
    path, _ = run([-4.0] * 50, beta2=beta2)
    steps = np.abs(np.diff(path[:, 0]))
    for t in (1, 2, 10, 50):
        assert steps[t - 1] == pytest.approx(ALPHA / math.sqrt(1 - beta2**t), rel=1e-10)
    assert steps[0] / ALPHA == pytest.approx({0.9: 3.2, 0.99: 10, 0.999: 32}[beta2], rel=0.02)


@equation(
    "eq-rmsprop-integral",
    r"\int_0^\infty \left( \frac{1}{\sqrt{1-e^{-s}}} - 1 \right) ds = \int_0^1 \frac{2\,dw}{1+w} = 2\ln 2 ,",
)
@equation(
    "eq-rmsprop-excess",
    r"\sum_{t=1}^{\infty} \left( \frac{1}{\sqrt{1-\beta_2^{\,t}}} - 1 \right) \approx \frac{2\ln 2}{1-\beta_2} .",
)
def test_excess() -> None:
    integral = integrate.quad(lambda s: 1 / math.sqrt(-math.expm1(-s)) - 1, 0, 50)[0]
    assert integral == pytest.approx(2 * math.log(2), rel=1e-6)
    w = sympy.symbols("w")
    assert sympy.simplify(sympy.integrate(2 / (1 + w), (w, 0, 1)) - 2 * sympy.log(2)) == 0
    # The substitution: (1/w − 1) ds with s = −ln(1 − w²)
    assert sympy.simplify((1 / w - 1) * sympy.diff(-sympy.log(1 - w**2), w) - 2 / (1 + w)) == 0
    assert float(zeta(0.5)) == pytest.approx(-1.46, abs=1e-3)
    for beta2 in (0.9, 0.99):
        path, _ = run([1.0] * math.ceil(20 / (1 - beta2)), beta2=beta2, alpha=1.0)
        excess = -path[-1, 0] - (len(path) - 1)
        delta = -math.log(beta2)
        law = 2 * math.log(2) / delta + float(zeta(0.5)) / math.sqrt(delta) + 0.5
        assert excess == pytest.approx(law, abs=0.06 * math.sqrt(delta))  # the next term is ζ(−½)/4 √δ
        if beta2 == 0.9:
            assert (round(law, 2), round(excess, 2)) == (9.16, 9.14)
    # At 0.99, in tens of mini-batches of drift: "nearly two thousand".
    assert 1800 < (2 * math.log(2) / 0.01 - 1.46 / math.sqrt(0.01)) / -drift(0.99) < 2000


@equation(
    "eq-rmsprop-momentum",
    r"b_t = \mu\, b_{t-1} + \frac{g_t}{\sqrt{v_t}}, \qquad \theta_t = \theta_{t-1} - \alpha\, b_t .",
)
def test_momentum() -> None:
    g = sequence()
    path, state = run(g, momentum=0.7)
    v = b = theta = np.zeros(3)
    for t, gradient in enumerate(g, 1):
        v = BETA2 * v + (1 - BETA2) * gradient**2
        b = 0.7 * b + gradient / np.sqrt(v)
        theta = theta - ALPHA * b
        np.testing.assert_allclose(path[t], theta, rtol=1e-11)
    np.testing.assert_allclose(state["momentum_buffer"], b, rtol=1e-11)


@equation(
    "eq-rmsprop-centered",
    r"d_t = \frac{g_t}{\sqrt{v_t - m_t^2} + \varepsilon} .",
)
def test_centered() -> None:
    g, eps = sequence(), 1e-3
    path, _ = run(g, centered=True, eps=eps)
    v = m = np.zeros(3)
    for t, gradient in enumerate(g, 1):
        v = BETA2 * v + (1 - BETA2) * gradient**2
        m = BETA2 * m + (1 - BETA2) * gradient
        np.testing.assert_allclose(path[t - 1] - path[t], ALPHA * gradient / (np.sqrt(v - m**2) + eps), rtol=1e-8)
    # On a slope what is under the root vanishes, and the steps grow until ε stops them.
    path, _ = run([2.0] * 300, centered=True, eps=eps)
    steps = np.abs(np.diff(path[:, 0]))
    for t in (1, 5, 30):
        variance = BETA2**t * (1 - BETA2**t) * 4.0
        assert steps[t - 1] == pytest.approx(ALPHA * 2.0 / (math.sqrt(variance) + eps), rel=1e-6)
    assert steps[-1] == pytest.approx(ALPHA * 2.0 / eps, rel=1e-3)


def test_dividing_by_yesterdays_average() -> None:
    # The first exercise's solution, and the last one's.
    for small in (1e-3, 1e-4):
        v, others = cycle(1 - small)
        moved = -(sum(1 / math.sqrt(x) for x in [v, *others[:-1]]) - 9 / math.sqrt(others[-1]))
        assert moved == pytest.approx(20 / 3 * small, rel=20 * small)
    assert next(n for n in range(100) if 0.001 * (1.2**n - 1) / 0.2 >= 1) == 30


def test_where_it_settles() -> None:
    # The second exercise's solution, on the lecture's gradients drawn with replacement.
    generator = np.random.default_rng(1)
    beta2, h, alpha = 0.95, 3.0, 2e-3
    theta = torch.zeros(3000, dtype=torch.float64, requires_grad=True)
    optimizer = RMSprop([theta], lr=alpha, alpha=beta2, eps=0.0)
    means = []
    for t in range(6000):
        theta.grad = h * theta.detach() + torch.from_numpy(generator.choice(CYCLE, 3000))
        optimizer.step()
        if t >= 4000:
            means.append(theta.detach().mean().item())
    assert np.mean(means) == pytest.approx((1 - beta2) * -72 / (2 * 9 * h), rel=0.1)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
