"""Every displayed equation of the Lookahead chapter, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches,
and a translation that does not agree with the package fails. Everything is float64.
"""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from optimizers import SGD, Adam, Chain, Lookahead

from .equations import Chapter

CHAPTER = Chapter("averaging/lookahead")
equation = CHAPTER.equation
SETTINGS = [(0.1, 5, 0.5), (0.5, 5, 0.5), (0.1, 20, 0.5), (0.1, 5, 0.8), (1.5, 5, 0.5), (1.9, 4, 0.3)]  # αh, k, α_φ


def close(actual: Tensor | float, expected: Tensor | float) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=1e-11,
        atol=1e-14,
    )


def run(make: Callable[[list[Tensor]], Chain], theta: Tensor, targets: Tensor, h: Tensor | float = 1.0) -> Tensor:
    """θ_0, …, θ_T on f_t = (h/2)(θ − c_t)² with the targets c_t, shape (T, n); shape (T + 1, n)."""
    theta = theta.clone().requires_grad_()
    optimizer = make([theta])
    points = [theta.detach().clone()]
    for target in targets:
        theta.grad = h * (theta.detach() - target)
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


def noise(steps: int, n: int = 3) -> Tensor:
    return torch.randn(steps, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sgd(lr: float, k: int | None = None, slow: float = 1.0) -> Callable[[list[Tensor]], Chain]:
    return lambda p: SGD(p, lr=lr, extensions=[Lookahead(k, slow)] if k else [])


def moments(lr: float, k: int, slow: float, rounds: int, noisy: bool = True) -> tuple[Tensor, Tensor]:
    """The mean's factor and the variance of φ after every round, exactly, from the package itself.

    SGD and Lookahead are linear in the start and in every target, so running the package on unit vectors gives
    the coefficients: coordinate 0 starts at 1 without noise, coordinate j sees the target 1 at step j and no other.
    """
    steps = rounds * k
    start = torch.zeros(steps + 1, dtype=torch.float64)
    start[0] = 1.0
    targets = torch.zeros(steps, steps + 1, dtype=torch.float64)
    targets[:, 1:] = torch.eye(steps, dtype=torch.float64)
    slow_weights = run(sgd(lr, k, slow), start, targets)[::k]
    return slow_weights[:, 0], slow_weights[:, 1:].square().sum(1)


@equation(
    "eq-lookahead-inner",
    r"\theta_{\tau,0} = \phi_{\tau-1}, \qquad \theta_{\tau,i} = A(\theta_{\tau,i-1}) \quad (i = 1, \dots, k) .",
)
@equation("eq-lookahead", r"\phi_\tau = \phi_{\tau-1} + \alpha_\phi\,(\theta_{\tau,k} - \phi_{\tau-1}) .")
@equation(
    "eq-lookahead-ema",
    r"\phi_\tau = \alpha_\phi \sum_{j=1}^{\tau} (1-\alpha_\phi)^{\tau-j}\, \theta_{j,k}"
    r" + (1-\alpha_\phi)^\tau\, \phi_0 ,",
)
def test_the_rule() -> None:
    k, slow, lr, rounds = 4, 0.3, 0.2, 5
    start, c = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), noise(k * rounds)
    ours = run(sgd(lr, k, slow), start, c)
    phi, ends = start, []
    for tau in range(1, rounds + 1):
        fast = phi
        for i in range(1, k + 1):
            target = c[(tau - 1) * k + i - 1]
            fast = fast - lr * (fast - target)
            if i < k:
                close(ours[(tau - 1) * k + i], fast)
        ends.append(fast)
        phi = phi + slow * (fast - phi)
        close(ours[tau * k], phi)
        average = slow * sum((1 - slow) ** (tau - j) * ends[j - 1] for j in range(1, tau + 1))
        close(phi, average + (1 - slow) ** tau * start)


def test_around_any_optimizer() -> None:
    # The chapter: "any optimizer"; and with a slow step size of 1 "only A is left".
    start, c = torch.ones(3, dtype=torch.float64), noise(12)
    plain = run(lambda p: Adam(p, lr=0.1), start, c)
    one = run(lambda p: Adam(p, lr=0.1, extensions=[Lookahead(5, 1.0)]), start, c)
    half = run(lambda p: Adam(p, lr=0.1, extensions=[Lookahead(5, 0.5)]), start, c)
    assert torch.equal(plain, one)
    close(half[:5], plain[:5])
    close(half[5], 0.5 * (start + plain[5]))


@equation("eq-lookahead-factor", r"r = 1 - \alpha_\phi + \alpha_\phi\, q^k .")
def test_factor_of_a_round() -> None:
    for lr, k, slow in SETTINGS:
        mean, _ = moments(lr, k, slow, 3)
        r = 1 - slow + slow * (1 - lr) ** k
        close(mean, r ** torch.arange(4, dtype=torch.float64))


@equation("eq-lookahead-stability", r"\alpha\, h < 1 + 3^{1/5} \approx 2.246")
def test_stability() -> None:
    limit, zeros = 1 + 3 ** (1 / 5), torch.zeros(2000, 1, dtype=torch.float64)
    assert limit == pytest.approx(2.246, abs=5e-4)
    start = torch.ones(1, dtype=torch.float64)
    assert run(sgd(0.995 * limit, 5, 0.5), start, zeros)[-1].abs() < 1e-3
    assert run(sgd(1.005 * limit, 5, 0.5), start, zeros)[-1].abs() > 1e3
    assert run(sgd(2.01, 4, 0.5), start, zeros)[-1].abs() > 1e3  # "for even k nothing is gained"


@equation("eq-lookahead-sgd", r"V = \frac{\alpha^2 h^2 \sigma^2}{1 - q^2} .")
def test_variance_of_sgd() -> None:
    for lr in (0.1, 0.5, 1.5):
        _, variance = moments(lr, 1, 1.0, 200)
        close(variance[-1], lr**2 / (1 - (1 - lr) ** 2))
    # h and σ: coefficients of θ on unit noise, scaled
    h, sigma, lr, steps = 4.0, 0.3, 0.05, 200
    impulses = torch.eye(steps, dtype=torch.float64) * sigma
    theta = run(sgd(lr), torch.zeros(steps, dtype=torch.float64), impulses, h)[-1]
    close(theta.square().sum(), lr**2 * h**2 * sigma**2 / (1 - (1 - lr * h) ** 2))


@equation(
    "eq-lookahead-round",
    r"\operatorname{Var}\theta_{\tau,k} = q^{2k}\, V_\phi + (1 - q^{2k})\, V, \qquad"
    r" \operatorname{Cov}(\phi_{\tau-1}, \theta_{\tau,k}) = q^k\, V_\phi ,",
)
def test_one_round() -> None:
    lr, k, v_phi = 0.3, 5, 0.7
    q, v = 1 - lr, lr**2 / (1 - (1 - lr) ** 2)
    start = torch.zeros(k + 1, dtype=torch.float64)
    start[0] = v_phi**0.5  # coordinate 0 carries φ, the others one target each
    impulses = torch.zeros(k, k + 1, dtype=torch.float64)
    impulses[:, 1:] = torch.eye(k, dtype=torch.float64)
    end = run(sgd(lr), start, impulses)[-1]
    close(end.square().sum(), q ** (2 * k) * v_phi + (1 - q ** (2 * k)) * v)
    close((start * end).sum(), q**k * v_phi)


@equation(
    "eq-lookahead-mix",
    r"V_\phi \leftarrow (1-\alpha_\phi)^2\, V_\phi + 2\alpha_\phi(1-\alpha_\phi)\, q^k\, V_\phi"
    r" + \alpha_\phi^2 \bigl( q^{2k}\, V_\phi + (1 - q^{2k})\, V \bigr) .",
)
@equation(
    "eq-lookahead-ratio",
    r"\frac{V_\phi}{V} = \frac{\alpha_\phi^2\,(1-q^{2k})}"
    r"{\alpha_\phi^2\,(1-q^{2k}) + 2\alpha_\phi(1-\alpha_\phi)(1-q^k)}"
    r" = \frac{\alpha_\phi\,(1+q^k)}{2 - \alpha_\phi\,(1-q^k)} ,",
)
def test_variance_of_the_slow_weights() -> None:
    for lr, k, a in SETTINGS:
        q, v = 1 - lr, lr**2 / (1 - (1 - lr) ** 2)
        _, variance = moments(lr, k, a, 12)
        for old, new in pairwise(variance):
            mixed = (1 - a) ** 2 * old + 2 * a * (1 - a) * q**k * old
            close(new, mixed + a**2 * (q ** (2 * k) * old + (1 - q ** (2 * k)) * v))
        paper = a**2 * (1 - q ** (2 * k)) / (a**2 * (1 - q ** (2 * k)) + 2 * a * (1 - a) * (1 - q**k))
        close(a * (1 + q**k) / (2 - a * (1 - q**k)), paper)
        _, settled = moments(lr, k, a, 100 if k < 10 else 40)
        assert float(settled[-1] / v) == pytest.approx(paper, rel=1e-6)


@equation(
    "eq-lookahead-small", r"r \approx 1 - k\,\alpha_\phi\alpha\, h, \qquad \frac{V_\phi}{V} \approx \alpha_\phi ."
)
def test_to_first_order_a_smaller_learning_rate() -> None:
    k, a = 5, 0.5
    errors = []
    for lr in (1e-2, 1e-3):
        q = 1 - lr
        mean, _ = moments(lr, k, a, 1)
        ratio = a * (1 + q**k) / (2 - a * (1 - q**k))
        errors.append((abs(float(mean[1]) - (1 - k * a * lr)), abs(ratio - a)))
    assert errors[1][0] < errors[0][0] / 80  # of second order in α
    assert errors[1][1] < errors[0][1] / 8  # of first order


@equation(
    "eq-lookahead-best",
    r"\alpha_\phi^* = \frac{(\phi - \theta^*)^\top H\, (\phi - \theta_k)}"
    r"{(\phi - \theta_k)^\top H\, (\phi - \theta_k)} .",
)
def test_best_slow_step() -> None:
    h = torch.tensor([1.0, 20.0], dtype=torch.float64)
    target, start = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([-4.0, 1.5], dtype=torch.float64)
    for lr in (0.03, 0.085):
        targets = target.expand(5, 2)
        end = run(sgd(lr), start, targets, h)[-1]
        best = float((start - target) @ (h * (start - end)) / ((start - end) @ (h * (start - end))))
        assert best > 0

        def loss(slow: float, start: Tensor = start, end: Tensor = end) -> float:
            point = start + slow * (end - start)
            return float(0.5 * (h * (point - target) ** 2).sum())

        assert loss(best) < min(loss(best - 0.01), loss(best + 0.01))
        if best < 1:
            phi = run(sgd(lr, 5, best), start, targets, h)[-1]
            assert float(0.5 * (h * (phi - target) ** 2).sum()) == pytest.approx(loss(best), rel=1e-10)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
