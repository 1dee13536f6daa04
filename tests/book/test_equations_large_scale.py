"""Every displayed equation of the chapter on stochastic gradients at large scale, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.SGD` fails. Expectations are exact: over all examples of a small
data set, over all signs of the noise, or by following each step's noise through the (linear) rule on its own.
"""

import math
from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest
import sympy
import torch
from scipy.linalg import solve_discrete_lyapunov  # type: ignore[import-untyped]
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from optimizers import SGD

from .equations import Chapter

CHAPTER = Chapter("foundations/large_scale")
equation = CHAPTER.equation

# Least squares on six examples: f(θ) = mean of ½ (xᵢᵀθ − yᵢ)².
_GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(6, 3, dtype=torch.float64, generator=_GENERATOR)
Y = torch.randn(6, dtype=torch.float64, generator=_GENERATOR)
H = X.T @ X / 6
LOW, HIGH = (float(x) for x in torch.linalg.eigvalsh(H)[[0, -1]])
BEST = torch.linalg.solve(H, X.T @ Y / 6)
POINTS = BEST + 2 * torch.randn(50, 3, dtype=torch.float64, generator=_GENERATOR)
# (a + b)² ≤ 2a² + 2b² with a the residual at the minimum, and zᵀHz ≤ ‖Hz‖² / ℓ.
M = 2 * float((X.square().sum(1) * (X @ BEST - Y).square()).mean())
M_G = 2 * float(X.square().sum(1).max()) / LOW


def f(theta: Tensor) -> Tensor:
    return 0.5 * (theta @ X.T - Y).square().mean(-1)


def gradient(theta: Tensor) -> Tensor:
    return (theta @ X.T - Y) @ X / 6


def of_examples(theta: Tensor) -> Tensor:
    """The gradients of the single examples, (…, 6, 3)."""
    return (theta @ X.T - Y)[..., None] * X


def step(theta: Tensor, grad: Tensor, alpha: float) -> Tensor:
    """One step of the package."""
    param = theta.clone().requires_grad_()
    param.grad = grad
    SGD([param], lr=alpha).step()
    return param.detach()


def gaps(alpha: float, steps: int, start: Tensor) -> list[float]:
    """E[f(θ_t)] − f* for t = 0, …, steps: the mean over all sequences of examples."""
    theta = start[None]
    result = [float(f(theta).mean() - f(BEST))]
    for _ in range(steps):
        theta = step(theta[:, None].expand(-1, 6, -1).reshape(-1, 3), of_examples(theta).reshape(-1, 3), alpha)
        result.append(float(f(theta).mean() - f(BEST)))
    return result


def impulses(rate: Callable[[int], float], h: float, steps: int, start: float) -> Tensor:
    """What is left of the start and of each step's unit noise, after every step: (steps + 1, steps + 1).

    The rule is linear: coordinate 0 has the start and no noise, coordinate j begins at 0 and has a noise of 1 in
    step j. With independent noise the mean square of θ_t is the sum of the squares of row t.
    """
    theta = torch.zeros(steps + 1, dtype=torch.float64)
    theta[0] = start
    theta.requires_grad_()
    optimizer = SGD([theta], lr=1.0)
    schedule = LambdaLR(optimizer, lambda k: rate(k + 1))
    rows = [theta.detach().clone()]
    for t in range(1, steps + 1):
        theta.grad = h * theta.detach()
        theta.grad[t] += 1.0
        optimizer.step()
        schedule.step()
        rows.append(theta.detach().clone())
    return torch.stack(rows)


def mean_squares(
    rate: Callable[[int], float],
    h: float,
    steps: int,
    start: float,
    variance: Callable[[int], float] = lambda t: 1.0,
) -> list[float]:
    """E[θ_t²], t = 0, …, steps, by the recursion of the chapter."""
    s = [start**2]
    for t in range(1, steps + 1):
        s.append((1 - rate(t) * h) ** 2 * s[-1] + rate(t) ** 2 * variance(t))
    return s


def all_signs(alpha: float, h: float, deviations: list[float], start: float) -> list[float]:
    """E[θ_t²] by the package, over all sequences of signs of the noise, whose deviation is `deviations[t − 1]`."""
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=len(deviations))), dtype=torch.float64)
    theta = torch.full((len(signs),), start, dtype=torch.float64)
    result = [start**2]
    for t, deviation in enumerate(deviations):
        theta = step(theta, h * theta + deviation * signs[:, t], alpha)
        result.append(float(theta.square().mean()))
    return result


@equation(
    "eq-large-scale-sgd",
    r"\theta_t = \theta_{t-1} - \alpha_t\, g_t, \qquad"
    r" \mathbb{E}[\,g_t \mid \theta_{t-1}] = \nabla f(\theta_{t-1}) .",
)
def test_step() -> None:
    for theta in POINTS:
        g = of_examples(theta)
        torch.testing.assert_close(g.mean(0), gradient(theta))
        stepped = torch.stack([step(theta, single, 0.3) for single in g])
        torch.testing.assert_close(stepped, theta - 0.3 * g)


@equation(
    "eq-large-scale-smooth",
    r"f(\theta + \Delta) \le f(\theta) + \nabla f(\theta)^\top \Delta + \tfrac{L}{2} \lVert \Delta \rVert^2 .",
)
def test_parabola_above() -> None:
    steepest = torch.linalg.eigh(H).eigenvectors[:, -1]
    for theta, other in pairwise(POINTS):
        for delta, tight in ((other, False), (steepest, True)):
            above = f(theta) + gradient(theta) @ delta + HIGH / 2 * delta.square().sum()
            assert f(theta + delta) <= above + 1e-12
            assert not tight or f(theta + delta) == pytest.approx(float(above))


@equation(
    "eq-large-scale-moments",
    r"\mathbb{E}\bigl[\lVert g_t\rVert^2 \bigm| \theta_{t-1}\bigr] \le"
    r" M + M_G\, \lVert \nabla f(\theta_{t-1})\rVert^2 .",
)
def test_second_moment() -> None:
    assert M_G >= 1
    for theta in POINTS:
        square = gradient(theta).square().sum()
        assert of_examples(theta).square().sum(-1).mean() <= M + M_G * square
        # Noise that does not depend on θ: M is its total variance, M_G is 1, and both sides are equal.
        noisy = torch.stack([gradient(theta) + sign * torch.tensor([1.0, 2.0, 0.0]) for sign in (-1, 1)])
        assert noisy.square().sum(-1).mean() == pytest.approx(float(5 + square))


@equation(
    "eq-large-scale-decrease",
    r"\mathbb{E}[f(\theta_t)] - f(\theta_{t-1}) \le -\alpha \bigl(1 - \tfrac12 \alpha L M_G\bigr)"
    r" \lVert \nabla f(\theta_{t-1})\rVert^2 + \tfrac12 \alpha^2 L M .",
)
def test_expected_decrease() -> None:
    for alpha in (0.01, 1 / (HIGH * M_G), 1 / HIGH):
        for theta in POINTS:
            change = f(step(theta.expand(6, 3), of_examples(theta), alpha)).mean() - f(theta)
            square = gradient(theta).square().sum()
            assert change <= -alpha * (1 - alpha * HIGH * M_G / 2) * square + alpha**2 * HIGH * M / 2
    # Tight where all is isotropic: f = ½‖θ‖², noise ±1 in each of two coordinates.
    theta, alpha = torch.tensor([2.0, -1.0], dtype=torch.float64), 0.3
    noise = torch.tensor(list(product((-1.0, 1.0), repeat=2)), dtype=torch.float64)
    after = 0.5 * step(theta.expand(4, 2), theta + noise, alpha).square().sum(1).mean()
    assert after - 2.5 == pytest.approx(-alpha * (1 - alpha / 2) * 5 + alpha**2 * 2 / 2)


@equation("eq-large-scale-condition", r"\alpha \le \frac{1}{L\, M_G} ,")
def test_condition() -> None:
    alpha, high, m_g = sympy.symbols("alpha L M_G", positive=True)
    assert sympy.solve(1 - alpha * high * m_g / 2 - sympy.Rational(1, 2), alpha) == [1 / (high * m_g)]


@equation(
    "eq-large-scale-polyak",
    r"\lVert \nabla f(\theta) \rVert^2 \ge 2\,\ell\, \bigl(f(\theta) - f^*\bigr) .",
)
def test_small_gradients_are_near_the_bottom() -> None:
    flattest = torch.linalg.eigh(H).eigenvectors[:, 0]
    for theta in POINTS:
        assert gradient(theta).square().sum() >= 2 * LOW * (f(theta) - f(BEST))
    theta = BEST + flattest
    assert float(gradient(theta).square().sum()) == pytest.approx(float(2 * LOW * (f(theta) - f(BEST))))


@equation(
    "eq-large-scale-contraction",
    r"\delta_t \le (1 - \alpha\ell)\, \delta_{t-1} + \tfrac12 \alpha^2 L M .",
)
@equation(
    "eq-large-scale-fixed",
    r"\delta_t \le \frac{\alpha L M}{2\ell}"
    r" + (1-\alpha\ell)^t \left( \delta_0 - \frac{\alpha L M}{2\ell} \right) .",
)
def test_fixed_step() -> None:
    for alpha in (0.2 / (HIGH * M_G), 1 / (HIGH * M_G)):
        for start in (POINTS[0], BEST):
            path = gaps(alpha, 5, start)
            floor = alpha * HIGH * M / (2 * LOW)
            bound = path[0]
            for t, (before, after) in enumerate(pairwise(path), 1):
                assert after <= (1 - alpha * LOW) * before + alpha**2 * HIGH * M / 2
                bound = (1 - alpha * LOW) * bound + alpha**2 * HIGH * M / 2
                closed = floor + (1 - alpha * LOW) ** t * (path[0] - floor)
                assert closed == pytest.approx(bound)
                assert after <= closed


@equation(
    "eq-large-scale-variance",
    r"\mathbb{E}[\theta_t^2] = (1-\alpha h)^2\, \mathbb{E}[\theta_{t-1}^2] + \alpha^2 \sigma^2 .",
)
def test_variance_along_one_direction() -> None:
    alpha, h, sigma = 0.1, 3.0, 1.7
    expected = mean_squares(lambda t: alpha, h, 10, -4.0, lambda t: sigma**2)
    assert all_signs(alpha, h, [sigma] * 10, -4.0) == pytest.approx(expected)
    assert impulses(lambda t: alpha, h, 10, -4.0).square().sum(1).tolist() == pytest.approx(
        mean_squares(lambda t: alpha, h, 10, -4.0)
    )


@equation(
    "eq-large-scale-floor",
    r"\tfrac12 h\, \mathbb{E}[\theta^2] = \frac{\alpha\,\sigma^2}{2\,(2 - \alpha h)} .",
)
def test_floor() -> None:
    for alpha, h in ((0.2, 1.0), (0.05, 20.0), (0.09, 20.0)):
        settled = float(impulses(lambda t, a=alpha: a, h, 400, 0.0)[-1].square().sum())  # type: ignore[misc]
        assert 0.5 * h * settled == pytest.approx(alpha / (2 * (2 - alpha * h)), rel=1e-9)
    stated = [(a / (2 * (2 - a)), a / 2) for a in (0.2, 0.1, 0.05, 0.025)]
    assert [round(exact, 4) for exact, _ in stated] == [0.0556, 0.0263, 0.0128, 0.0063]
    assert [bound for _, bound in stated] == [0.1, 0.05, 0.025, 0.0125]


@equation("eq-large-scale-trace", r"\delta_\infty \approx \frac{\alpha}{4} \operatorname{tr} C .")
def test_floor_in_many_directions() -> None:
    residual = of_examples(BEST)
    c = (residual.T @ residual / 6).numpy()  # does not commute with H
    assert np.abs(c @ H.numpy() - H.numpy() @ c).max() > 0.1
    for alpha in (1e-2, 1e-3):
        a = np.eye(3) - alpha * H.numpy()
        s = solve_discrete_lyapunov(a, alpha**2 * c)
        floor = 0.5 * np.trace(H.numpy() @ s)
        assert floor == pytest.approx(alpha / 4 * np.trace(c), rel=2 * alpha * HIGH)
        assert np.abs(H.numpy() @ s + s @ H.numpy() - alpha * c).max() < 2 * alpha**2 * HIGH * np.abs(c).max()
        assert alpha * HIGH * np.trace(c) / (2 * LOW) / floor == pytest.approx(2 * HIGH / LOW, rel=2 * alpha * HIGH)
    # The same covariance by the package: what each step's noise has become, summed up.
    alpha = 1 / HIGH
    columns, total = alpha * torch.linalg.cholesky(torch.from_numpy(c)), torch.zeros(3, 3, dtype=torch.float64)
    while columns.abs().max() > 1e-9:
        total += columns @ columns.T
        columns = step(columns, H @ columns, alpha)
    s = solve_discrete_lyapunov(np.eye(3) - alpha * H.numpy(), alpha**2 * c)
    np.testing.assert_allclose(total.numpy(), s, rtol=1e-6, atol=1e-9)


@equation(
    "eq-large-scale-schedule",
    r"\alpha_t = \frac{\beta}{\gamma + t}, \qquad \beta > \frac1\ell, \qquad \alpha_1 \le \frac{1}{L\, M_G} .",
)
@equation(
    "eq-large-scale-diminishing",
    r"\delta_t \le \frac{\nu}{\gamma + t + 1}, \qquad \nu = \max\left\{ \frac{\beta^2 L M}{2\,(\beta\ell - 1)},"
    r"\ (\gamma+1)\, \delta_0 \right\} .",
)
def test_diminishing_steps() -> None:
    # Curvatures, start, β, γ: the notebook's ½θ², and the bowl of the first figure.
    for curvatures, start, beta, gamma in (((1.0,), (1.0,), 2.0, 4), ((1.0, 20.0), (-4.0, 1.5), 2.0, 39)):
        low, high, m = min(curvatures), max(curvatures), len(curvatures)

        def rate(t: int, beta: float = beta, gamma: int = gamma) -> float:
            return beta / (gamma + t)

        assert beta > 1 / low
        assert rate(1) <= 1 / high
        rows = [impulses(rate, h, 1500, x).square().sum(1) for h, x in zip(curvatures, start, strict=True)]
        delta = sum(0.5 * h * row for h, row in zip(curvatures, rows, strict=True))
        assert isinstance(delta, Tensor)
        nu = max(beta**2 * high * m / (2 * (beta * low - 1)), (gamma + 1) * float(delta[0]))
        t = torch.arange(1501)
        assert (delta <= nu / (gamma + t + 1) * (1 + 1e-12)).all()
        if m == 1:
            assert nu == 2.5


@equation(
    "eq-large-scale-induction",
    r"\begin{aligned} \delta_t &\le \left(1 - \frac{\beta\ell}{u}\right)\frac{\nu}{u} + \frac{\beta^2 L M}{2u^2} \\"
    r" &= \frac{u-1}{u^2}\,\nu - \frac{1}{u^2}\left[ (\beta\ell - 1)\,\nu - \frac{\beta^2 L M}{2} \right]"
    r" \le \frac{\nu}{u+1} . \end{aligned}",
)
def test_induction() -> None:
    beta, low, high, m, u, nu = sympy.symbols("beta l L M u nu", positive=True)
    first = (1 - beta * low / u) * nu / u + beta**2 * high * m / (2 * u**2)
    bracket = (beta * low - 1) * nu - beta**2 * high * m / 2
    assert sympy.simplify(first - ((u - 1) / u**2 * nu - bracket / u**2)) == 0
    # 0 ≤ bracket by the choice of ν, and what remains is below ν / (u + 1) by ν / (u² (u + 1)).
    assert sympy.simplify(bracket.subs(nu, beta**2 * high * m / (2 * (beta * low - 1)))) == 0
    assert sympy.simplify(nu / (u + 1) - (u - 1) / u**2 * nu - nu / (u**2 * (u + 1))) == 0


@equation(
    "eq-large-scale-limit",
    r"t\, \delta_t \to \frac{h\,\beta^2 \sigma^2}{2\,(2\beta h - 1)} \qquad\text{if } \beta h > \tfrac12 .",
)
@equation("eq-large-scale-slow", r"\delta_t \sim t^{-2\beta h} \qquad\text{if } \beta h < \tfrac12 .")
def test_limits_of_diminishing_steps() -> None:
    steps, variance = 100_000, 1.3**2
    for beta, h in ((2.0, 1.0), (1.0, 1.0), (0.5, 3.0), (0.2, 20.0)):
        s = mean_squares(lambda t, b=beta: b / (40 + t), h, steps, 0.0, lambda t: variance)  # type: ignore[misc]
        limit = h * beta**2 * variance / (2 * (2 * beta * h - 1))
        assert steps * 0.5 * h * s[-1] == pytest.approx(limit, rel=3e-3)
    for beta, h in ((0.2, 1.0), (0.3, 1.0), (0.1, 2.0)):
        s = mean_squares(lambda t, b=beta: b / (4 + t), h, steps, 1.0)  # type: ignore[misc]
        slope = math.log(s[-1] / s[steps // 2]) / math.log(2)
        assert slope == pytest.approx(-2 * beta * h, abs=0.02)
    assert round(10 ** (1 / 0.4)) == 316
    best = sympy.Symbol("beta", positive=True)
    assert sympy.solve(sympy.diff(best**2 / (2 * (2 * best - 1)), best), best) == [1]  # h = σ = 1: β = 1 / h


@equation(
    "eq-large-scale-cost",
    r"n\,\kappa\,\ln\frac{\delta_0}{\varepsilon} \qquad\text{and}\qquad \frac{\nu}{\varepsilon} .",
)
def test_cost_of_accuracy() -> None:
    theta, delta_0 = POINTS[0], float(f(POINTS[0]) - f(BEST))
    reached, steps = {}, 0
    while len(reached) < 3:
        gap = float(f(theta) - f(BEST))
        for eps in (1e-1, 1e-3, 1e-6):
            if gap <= eps:
                reached.setdefault(eps, steps)
        theta, steps = step(theta, gradient(theta), 1 / HIGH), steps + 1
    for eps, count in reached.items():
        assert 6 * count <= 6 * max(0.0, HIGH / LOW * math.log(delta_0 / eps)) + 6
    delta = 0.5 * impulses(lambda t: 2 / (4 + t), 1.0, 2000, 1.0).square().sum(1)  # ν = 2.5
    for eps in (0.1, 0.01, 0.002):
        assert float(delta[math.ceil(2.5 / eps)]) <= eps


@equation(
    "eq-large-scale-batches",
    r"\mathbb{E}[\theta_t^2] = (1-\alpha h)^2\, \mathbb{E}[\theta_{t-1}^2] + \frac{\alpha^2\sigma^2}{n_t} .",
)
def test_growing_batches() -> None:
    alpha, h, sigma, tau = 0.2, 1.5, 1.1, 1.4
    n = [math.ceil(tau ** (t - 1)) for t in range(1, 11)]
    assert n[:5] == [1, 2, 2, 3, 4]
    expected = mean_squares(lambda t: alpha, h, 10, 2.0, lambda t: sigma**2 / n[t - 1])
    assert all_signs(alpha, h, [sigma / math.sqrt(size) for size in n], 2.0) == pytest.approx(expected)


@equation(
    "eq-large-scale-work",
    r"N\, \delta_t \to \frac{\sigma^2}{2h} \cdot \frac{(\alpha h)^2\, \tau}"
    r"{(\tau - 1)\bigl(1 - (1-\alpha h)^2\,\tau\bigr)} ,",
)
def test_work_of_growing_batches() -> None:
    def second(alpha: float, h: float, tau: float) -> float:
        return (alpha * h) ** 2 * tau / ((tau - 1) * (1 - (1 - alpha * h) ** 2 * tau))

    sigma = 1.3
    for alpha, h, tau in ((0.2, 1.0, 1.1), (0.2, 1.0, 1.25), (0.1, 3.0, 1.5), (0.2, 1.0, 1.4)):
        steps = round(30 / math.log(tau))
        n = [math.ceil(tau**t) for t in range(steps)]
        s = mean_squares(lambda t, a=alpha: a, h, steps, 1.0, lambda t, n=n: sigma**2 / n[t - 1])  # type: ignore[misc]
        limit = sigma**2 / (2 * h) * second(alpha, h, tau)
        assert sum(n) * 0.5 * h * s[-1] == pytest.approx(limit, rel=0.01)
        assert s[-1] / s[-2] == pytest.approx(1 / tau, rel=1e-3)
    assert second(0.2, 1.0, 1.25) == pytest.approx(1)
    assert second(0.1, 3.0, 1 / 0.7) == pytest.approx(1)
    assert all(second(0.2, 1.0, tau) >= 1 - 1e-12 for tau in np.linspace(1.01, 1.56, 100))
    assert second(0.2, 1.0, 1.5624) > 1000 > 0 > second(0.2, 1.0, 1.5626)  # the limit of τ: 1 / 0.8² = 1.5625


@equation(
    "eq-large-scale-average",
    r"\bar\theta_T = \frac1T \sum_{t=1}^{T} \theta_{t-1} = \frac{\theta_0 - \theta_T}{\alpha h T}"
    r" - \frac{\sigma}{hT} \sum_{t=1}^{T} \xi_t .",
)
def test_average_of_the_iterates() -> None:
    alpha, h, sigma, steps = 0.1, 3.0, 0.7, 60
    xi = torch.randn(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta = [torch.tensor([2.0], dtype=torch.float64)]
    for noise in xi:
        theta.append(step(theta[-1], h * theta[-1] + sigma * noise, alpha))
    mean = sum(float(x) for x in theta[:-1]) / steps
    stated = float(theta[0] - theta[-1]) / (alpha * h * steps) - sigma / (h * steps) * float(xi.sum())
    assert mean == pytest.approx(stated, rel=1e-12)


@equation(
    "eq-large-scale-average-limit",
    r"T\; \tfrac12 h\, \mathbb{E}\bigl[\bar\theta_T^2\bigr] \to \frac{\sigma^2}{2h} .",
)
def test_limit_of_the_average() -> None:
    for alpha, h in ((0.3, 1.0), (0.1, 3.0)):
        off = []
        for steps in (1000, 3000):
            mean = impulses(lambda t, a=alpha: a, h, steps, 0.0)[:-1].mean(0)  # type: ignore[misc]
            off.append(steps * 0.5 * h * float(mean.square().sum()) * 2 * h - 1)  # σ = 1
        assert abs(off[1]) < 0.01
        assert off[1] / off[0] == pytest.approx(1 / 3, rel=0.05)  # goes to zero like 1 / T


def test_table_of_implementations() -> None:
    noise = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def run(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> tuple[list[float], dict[str, Tensor], Tensor]:
        theta = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
        optimizer = make([theta])
        model = torch.nn.Module()
        model.register_parameter("theta", torch.nn.Parameter(theta.detach().clone()))
        averaged = torch.optim.swa_utils.AveragedModel(model)
        schedule = LambdaLR(optimizer, lambda k: 2.0 / (4 + 1 + k)) if isinstance(optimizer, SGD) else None
        path = [theta.item()]
        for x in noise:
            theta.grad = theta.detach() + x
            optimizer.step()
            if schedule:
                schedule.step()
            model.theta.data.copy_(theta.detach())
            averaged.update_parameters(model)
            path.append(theta.item())
        return path, optimizer.state[theta], averaged.module.theta.detach()

    ours, _, mean = run(lambda params: SGD(params, lr=1.0))
    by_hand = [2.0]
    for t, x in enumerate(noise.tolist(), 1):
        by_hand.append(by_hand[-1] - 2.0 / (4 + t) * (by_hand[-1] + x))
    assert ours == pytest.approx(by_hand, rel=1e-12)
    assert mean.item() == pytest.approx(np.mean(ours[1:]))
    plain, _, _ = run(lambda params: torch.optim.SGD(params, lr=0.1))
    averaging, state, _ = run(lambda params: torch.optim.ASGD(params, lr=0.1, lambd=0, alpha=0, t0=0))
    assert averaging == pytest.approx(plain, rel=1e-5)  # ASGD keeps its step in float32
    assert state["ax"].item() == pytest.approx(np.mean(plain[2:]), rel=1e-5)
    _, state, _ = run(lambda params: torch.optim.ASGD(params, lr=0.1))
    assert abs(state["ax"].item() - np.mean(plain[2:])) > 0.01


def test_numbers_of_the_exercises() -> None:
    assert round(4**2 / 0.05**2) == 6400
    assert round(0.95**100, 3) == 0.006
    assert round(math.sqrt(0.05 / 1.95), 2) == 0.16
    assert round(0.16**2 / 0.05**2) == 10
    # Halve α whenever the gap is twice its floor: with the excess falling from 3F to F in each phase, ln 3 / (αℓ).
    alpha, total, gap, when = 1.0, 0.0, 1.0, []
    for _ in range(12):
        alpha, gap = alpha / 2, gap / 2
        total += math.log(3) / alpha
        when.append((total, gap))
    assert math.log(when[-1][1] / when[-2][1]) / math.log(when[-1][0] / when[-2][0]) == pytest.approx(-1, abs=0.01)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
