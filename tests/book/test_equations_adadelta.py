"""Every displayed equation of the chapter on Adagrad and ADADELTA, as it stands on the page, against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.Adagrad` or `optimizers.Adadelta` fails.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import sympy
import torch

from optimizers import Adadelta, Adagrad, RMSprop

from .equations import Chapter

CHAPTER = Chapter("adaptive/adadelta")
equation = CHAPTER.equation
Array = npt.NDArray[np.float64]
ALPHA, RHO, EPS = 0.3, 0.95, 1e-6


def run(
    make: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
    gradient: Callable[[Array, int], Array],
    start: Array,
    steps: int,
) -> tuple[Array, dict[str, Array]]:
    """θ_0, …, θ_T of shape (steps + 1, n), and the optimizer's state at the end."""
    theta = torch.from_numpy(start.copy()).requires_grad_()
    optimizer = make([theta])
    path = [start]
    for t in range(1, steps + 1):
        theta.grad = torch.from_numpy(gradient(path[-1], t))
        optimizer.step()
        path.append(theta.detach().numpy().copy())
    state = {name: np.asarray(value) for name, value in optimizer.state[theta].items()}
    return np.array(path), state


def adadelta(rho: float = RHO, eps: float = EPS) -> Callable[[list[torch.Tensor]], torch.optim.Optimizer]:
    return lambda params: Adadelta(params, rho=rho, eps=eps)


def adagrad(alpha: float = ALPHA) -> Callable[[list[torch.Tensor]], torch.optim.Optimizer]:
    return lambda params: Adagrad(params, lr=alpha, eps=0.0)


def sequence(steps: int = 40, n: int = 3) -> Array:
    """Gradients of very different sizes, none of them zero."""
    generator = np.random.default_rng(0)
    return np.asarray(generator.standard_normal((steps, n)) * 10.0 ** generator.integers(-2, 3, (steps, n)))


@equation(
    "eq-adadelta-square",
    r"(\theta_t - \theta^*)^2 = (\theta_{t-1} - \theta^*)^2 - 2\,\alpha_t\, g_t\,(\theta_{t-1} - \theta^*) +"
    r" \alpha_t^2\, g_t^2 .",
)
def test_one_step() -> None:
    theta, star, alpha, g = sympy.symbols("theta star alpha g")
    expanded = (theta - star) ** 2 - 2 * alpha * g * (theta - star) + alpha**2 * g**2
    assert sympy.expand((theta - alpha * g - star) ** 2 - expanded) == 0


def regret(path: Array, g: Array, star: Array) -> Array:
    return np.asarray((g * (path[:-1] - star)).sum(0))


@equation(
    "eq-adadelta-regret",
    r"\sum_{t=1}^{T} g_t\,(\theta_{t-1} - \theta^*) \;\le\;"
    r" \frac{D^2}{2\,\alpha_T} + \frac12 \sum_{t=1}^{T} \alpha_t\, g_t^2 .",
)
@equation(
    "eq-adadelta-hindsight",
    r"\sum_{t=1}^{T} g_t\,(\theta_{t-1} - \theta^*) \;\le\;"
    r" \Bigl(\frac{D^2}{2\alpha} + \alpha\Bigr) \sqrt{G_T} ,",
)
def test_regret_of_adagrad() -> None:
    # Adversarial gradients among them: always away from θ*.
    for seed in range(20):
        generator = np.random.default_rng(seed)
        star = generator.standard_normal(2)
        sizes = np.abs(generator.standard_normal((60, 2)))
        away = seed % 2

        def gradient(
            theta: Array, t: int, star: Array = star, sizes: Array = sizes, away: int = away, seed: int = seed
        ) -> Array:
            sign = np.sign(theta - star) if away else np.random.default_rng(100 * seed + t).choice([-1.0, 1.0], 2)
            return np.asarray(sizes[t - 1] * sign)

        path, _ = run(adagrad(), gradient, np.zeros(2), 60)
        g = np.array([gradient(path[t - 1], t) for t in range(1, 61)])
        big_g = np.cumsum(g**2, 0)
        d = np.abs(path - star).max(0)
        alphas = ALPHA / np.sqrt(big_g)
        first = d**2 / (2 * alphas[-1]) + 0.5 * (alphas * g**2).sum(0)
        second = (d**2 / (2 * ALPHA) + ALPHA) * np.sqrt(big_g[-1])
        value = regret(path, g, star)
        assert (value <= first * (1 + 1e-12)).all()
        assert (first <= second * (1 + 1e-12)).all()
        if away:
            assert (value > 0.05 * first).all()  # a bound that is never nearly used would prove little
    # the best α of the last bound, and what it costs
    d, alpha = sympy.symbols("D alpha", positive=True)
    bound = d**2 / (2 * alpha) + alpha
    assert sympy.solve(sympy.diff(bound, alpha), alpha) == [sympy.sqrt(2) * d / 2]
    assert sympy.simplify(bound.subs(alpha, d / sympy.sqrt(2)) - sympy.sqrt(2) * d) == 0


@equation(
    "eq-adadelta-constant",
    r"\alpha = \frac{D}{\sqrt{G_T}}, \qquad G_T = \sum_{t=1}^{T} g_t^2, \qquad"
    r" \text{where the bound is } D \sqrt{G_T} .",
)
def test_best_constant_rate() -> None:
    d, alpha, total = sympy.symbols("D alpha G", positive=True)
    bound = d**2 / (2 * alpha) + alpha * total / 2
    (best,) = sympy.solve(sympy.diff(bound, alpha), alpha)
    assert sympy.simplify(best - d / sympy.sqrt(total)) == 0
    assert sympy.simplify(bound.subs(alpha, best) - d * sympy.sqrt(total)) == 0


@equation(
    "eq-adadelta-adagrad",
    r"G_t = G_{t-1} + g_t^2, \qquad \theta_t = \theta_{t-1} - \alpha\, \frac{g_t}{\sqrt{G_t}} .",
)
def test_adagrad() -> None:
    g = sequence()
    path, state = run(adagrad(), lambda _, t: g[t - 1], np.ones(3), len(g))
    total, theta = np.zeros(3), np.ones(3)
    for t, gradient in enumerate(g, 1):
        total = total + gradient**2
        theta = theta - ALPHA * gradient / np.sqrt(total)
        np.testing.assert_allclose(path[t], theta, rtol=1e-12)
    np.testing.assert_allclose(state["sum"], total, rtol=1e-12)


@equation("eq-adadelta-sum", r"\sum_{t=1}^{T} \frac{g_t^2}{\sqrt{G_t}} \le 2\sqrt{G_T} ,")
def test_sum_of_quotients() -> None:
    g = sequence(2000)
    total = np.cumsum(g**2, 0)
    left = np.cumsum(g**2 / np.sqrt(total), 0)
    assert (left <= 2 * np.sqrt(total)).all()
    slope = np.arange(1, 10_001)  # and two is the best constant: for equal gradients it is approached
    assert (1 / np.sqrt(slope)).sum() > 1.98 * math.sqrt(10_000)


@equation("eq-adadelta-fall", r"|\Delta_t| = \frac{\alpha}{\sqrt{c^2 + t - 1}}, \qquad t \ge 2 ,")
def test_adagrad_falls() -> None:
    for c, g in ((1.0, 3.0), (100.0, -0.2)):
        path, _ = run(adagrad(), lambda _, t, c=c, g=g: np.array([c * g if t == 1 else g]), np.zeros(1), 300)  # type: ignore[misc]
        steps = np.abs(np.diff(path[:, 0]))
        for t in (2, 3, 50, 300):
            assert steps[t - 1] == pytest.approx(ALPHA / math.sqrt(c**2 + t - 1), rel=1e-10)
    assert 1 / math.sqrt(100**2 + 30_000) == pytest.approx(0.5 / 100, rel=1e-12)  # halved 30,000 steps later


@equation(
    "eq-adadelta-window",
    r"v_t = \rho\, v_{t-1} + (1-\rho)\, g_t^2, \qquad"
    r" \theta_t = \theta_{t-1} - \alpha\, \frac{g_t}{\sqrt{v_t + \varepsilon}} .",
)
def test_window() -> None:
    # The package's RMSprop, but for the place of ε; and the v of its Adadelta.
    g = sequence()
    path, _ = run(lambda p: RMSprop(p, lr=ALPHA, alpha=RHO, eps=0.0), lambda _, t: g[t - 1], np.ones(3), len(g))
    _, state = run(adadelta(), lambda _, t: g[t - 1], np.ones(3), len(g))
    v, theta = np.zeros(3), np.ones(3)
    for t, gradient in enumerate(g, 1):
        v = RHO * v + (1 - RHO) * gradient**2
        theta = theta - ALPHA * gradient / np.sqrt(v + 1e-30)
        np.testing.assert_allclose(path[t], theta, rtol=1e-10)
    np.testing.assert_allclose(state["square_avg"], v, rtol=1e-12)


@equation(
    "eq-adadelta-newton",
    r"\Delta_t = -\frac{g_t}{h}, \qquad\text{hence}\qquad \frac1h = -\frac{\Delta_t}{g_t} ,",
)
def test_newton() -> None:
    theta, shift, h = sympy.symbols("theta shift h", nonzero=True)
    g = sympy.diff(h / 2 * (theta - shift) ** 2, theta)
    delta = -g / h
    assert sympy.simplify(theta + delta - shift) == 0  # at the minimum in one step
    assert sympy.simplify(1 / h + delta / g) == 0


@equation(
    "eq-adadelta",
    r"\Delta_t = -\frac{\sqrt{u_{t-1} + \varepsilon}}{\sqrt{v_t + \varepsilon}}\; g_t, \qquad"
    r" u_t = \rho\, u_{t-1} + (1-\rho)\, \Delta_t^2, \qquad \theta_t = \theta_{t-1} + \Delta_t ,",
)
def test_adadelta() -> None:
    g = sequence()
    for rho, eps in ((0.95, 1e-6), (0.7, 1e-2)):
        path, state = run(adadelta(rho, eps), lambda _, t: g[t - 1], np.ones(3), len(g))
        u, v, theta = np.zeros(3), np.zeros(3), np.ones(3)
        for t, gradient in enumerate(g, 1):
            v = rho * v + (1 - rho) * gradient**2
            delta = -np.sqrt(u + eps) / np.sqrt(v + eps) * gradient
            u = rho * u + (1 - rho) * delta**2
            theta = theta + delta
            np.testing.assert_allclose(path[t], theta, rtol=1e-12)
        np.testing.assert_allclose(state["acc_delta"], u, rtol=1e-12)


@equation(
    "eq-adadelta-first",
    r"|\Delta_1| = \sqrt{\frac{\varepsilon}{v_1 + \varepsilon}}\;|g_1| \approx"
    r" \sqrt{\frac{\varepsilon}{1-\rho}} .",
)
def test_first_step() -> None:
    g = np.array([1e-4, 0.1, -3.0, 1e5])
    path, _ = run(adadelta(), lambda _, t: g, np.zeros(4), 1)
    v = (1 - RHO) * g**2
    np.testing.assert_allclose(np.abs(path[1]), np.sqrt(EPS / (v + EPS)) * np.abs(g), rtol=1e-12)
    np.testing.assert_allclose(np.abs(path[1, 1:]), math.sqrt(EPS / (1 - RHO)), rtol=1.1e-3)
    assert math.sqrt(EPS / (1 - RHO)) == pytest.approx(0.0045, abs=5e-5)


@equation(
    "eq-adadelta-slope",
    r"\Delta_{t+1}^2 = \Delta_t^2 + \frac{(1-\rho)\,\varepsilon}{1-\rho^{t+1}} .",
)
@pytest.mark.parametrize("rho", [0.5, 0.9, 0.99])
def test_slope(rho: float) -> None:
    path, _ = run(adadelta(rho), lambda _, t: np.array([1e6]), np.zeros(1), 400)  # g² ≫ ε
    squares = np.diff(path[:, 0]) ** 2
    for t in range(1, 400):
        assert squares[t] - squares[t - 1] == pytest.approx((1 - rho) * EPS / (1 - rho ** (t + 1)), rel=1e-6)


def test_distance_on_a_slope() -> None:
    # The way after t steps, and what a hundredth of ε costs: both as the text has them.
    path, _ = run(adadelta(), lambda _, t: np.array([1e6]), np.zeros(1), 6000)
    far = np.abs(path[:, 0])
    off = [(1.5 * far[t]) ** (2 / 3) * ((1 - RHO) * EPS) ** (-1 / 3) / t - 1 for t in (1500, 6000)]
    assert 0 < off[1] < 0.07  # it starts faster than its law, which counts less and less
    assert off[1] < off[0] / 2
    assert math.cbrt(100) == pytest.approx(4.6, abs=0.05)


@equation(
    "eq-adadelta-units",
    r"\frac{\sqrt{u_{t-1}/c^2 + \varepsilon_u/c^2}}{\sqrt{c^2 v_t + c^2 \varepsilon_v}}\; c\, g_t ="
    r" \frac1c\cdot\frac{\sqrt{u_{t-1} + \varepsilon_u}}{\sqrt{v_t + \varepsilon_v}}\; g_t ,",
)
def test_units() -> None:
    c, u, v, eps_u, eps_v = sympy.symbols("c u v eps_u eps_v", positive=True)
    g = sympy.symbols("g", real=True)
    left = sympy.sqrt(u / c**2 + eps_u / c**2) / sympy.sqrt(c**2 * v + c**2 * eps_v) * c * g
    right = sympy.sqrt(u + eps_u) / sympy.sqrt(v + eps_v) * g / c
    assert sympy.simplify(left - right) == 0
    # With one ε the package's path does depend on the unit; without the need of ε in u it would not.
    x, _ = run(adadelta(), lambda x, t: x**3, np.ones(1), 500)
    z, _ = run(adadelta(), lambda z, t: 100 * (100 * z) ** 3, np.ones(1) / 100, 500)
    assert np.abs(100 * z - x).max() == pytest.approx(0.745, abs=5e-3)


def settle(h: float, steps: int, eps: float = EPS, rho: float = RHO) -> tuple[Array, dict[str, Array]]:
    path, state = run(adadelta(rho, eps), lambda theta, t: h * theta, np.ones(1), steps)
    return path[:, 0], state


@equation("eq-adadelta-end", r"\Delta_t \to -\sqrt{\frac{\varepsilon}{\varepsilon}}\; g_t = -g_t .")
def test_the_end() -> None:
    for h in (0.5, 1.9):
        theta, state = settle(h, 2000)
        assert abs(theta[-1]) < 1e-20
        rate = math.sqrt((state["acc_delta"][0] + EPS) / (state["square_avg"][0] + EPS))
        assert rate == pytest.approx(1, rel=1e-9)
        late = np.flatnonzero(np.abs(theta) > 1e-100)[-1]  # before it rounds to zero
        assert theta[late] / theta[late - 1] == pytest.approx(1 - h, rel=1e-6)


@equation(
    "eq-adadelta-jump",
    r"(4q + 2a)\,(h^2 Q + \varepsilon) = (4Q - 2a + \varepsilon)\, h^2 q .",
)
def test_jump() -> None:
    # Both averages as the text has them, for a square that grows by a per step and a sign that alternates.
    a, h, rho, start = 1e-4, 3.0, 0.9, 50.0
    q = start + a * np.arange(600)
    theta = np.sqrt(q) * (-1.0) ** np.arange(600)
    delta = np.diff(theta)  # delta[i] leads from theta[i] to theta[i + 1]
    v = u = 0.0
    for i in range(599):
        v = rho * v + (1 - rho) * (h * theta[i]) ** 2
        old = u
        u = rho * u + (1 - rho) * delta[i] ** 2
    lagged = q[598] - a * rho / (1 - rho)
    assert delta[598] ** 2 - 4 * q[598] == pytest.approx(2 * a, rel=1e-3)
    assert v - h**2 * q[598] == pytest.approx(h**2 * (lagged - q[598]), rel=1e-6)
    assert old - 4 * q[598] == pytest.approx(4 * (lagged - q[598]) - 2 * a, rel=1e-3)
    # The squared rule, and its solution for large q.
    eps, s_a, s_h, s_q = sympy.symbols("epsilon a h q", positive=True)
    difference = (4 * s_q + 2 * s_a) * (s_h**2 * s_q + eps) - (4 * s_q - 2 * s_a + eps) * s_h**2 * s_q
    leading = sympy.limit(difference / s_q, s_q, sympy.oo)
    (solution,) = sympy.solve(leading, s_a)
    assert sympy.simplify(solution - eps * (sympy.Rational(1, 4) - 1 / s_h**2)) == 0


@equation(
    "eq-adadelta-bounce",
    r"a = \varepsilon\,\Bigl(\frac14 - \frac1{h^2}\Bigr), \qquad"
    r" |\theta_t| \approx \sqrt{\varepsilon\,\Bigl(\frac14 - \frac1{h^2}\Bigr)\, t} .",
)
@pytest.mark.parametrize(("h", "rho"), [(2.5, 0.9), (20.0, 0.95), (20.0, 0.7)])
def test_it_leaves(h: float, rho: float) -> None:
    theta, _ = settle(h, 4000, eps=1e-2, rho=rho)
    growth = 1e-2 * (1 / 4 - 1 / h**2)
    assert (theta[-1] ** 2 - theta[2000] ** 2) / 2000 == pytest.approx(growth, rel=0.02)
    assert abs(theta[-1]) == pytest.approx(math.sqrt(growth * 4000), rel=0.04)
    assert theta[-1] * theta[-2] < 0


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
