"""Every displayed equation of the Hogwild chapter, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches,
and a translation that does not agree with the package fails. Everything is float64. Expectations are exact: all
outcomes of the chance are enumerated, each one a run of the package.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.problems import Quadratic
from optimizers import SGD

from .equations import Chapter

CHAPTER = Chapter("averaging/hogwild")
equation = CHAPTER.equation
TERMS = torch.combinations(torch.arange(4))  # every pair of four weights
TARGETS = torch.tensor([[1, -1], [1, 1], [-1, 1], [-1, -1], [1, -1], [-1, 1]], dtype=torch.float64)


def term_loss(theta: Tensor, e: int) -> Tensor:
    return 0.5 * (theta[TERMS[e]] - TARGETS[e]).square().sum()


def minimum() -> Tensor:
    total = torch.zeros(4, dtype=torch.float64).index_add_(0, TERMS.flatten(), TARGETS.flatten())
    return total / 3  # each weight is in three of the six terms


def late_run(gradient, start: Tensor, lr: float, tau: int, steps: int) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """θ_0, …, θ_T of the package's SGD, with the gradient of step t at θ_{t−1−τ}; `gradient(theta, t)`."""
    theta = start.clone().requires_grad_()
    optimizer = SGD([theta], lr=lr)
    past = [start.clone()]
    for t in range(1, steps + 1):
        theta.grad = gradient(past[max(0, t - 1 - tau)], t)
        optimizer.step()
        past.append(theta.detach().clone())
    return past


@equation("eq-hogwild-sum", r"f(\theta) = \frac{1}{|E|} \sum_{e \in E} f_e(\theta_e) .")
@equation(
    "eq-hogwild-update",
    r"\theta_v \leftarrow \theta_v - \alpha\, \bigl[ \nabla f_e(\theta_e) \bigr]_v \qquad (v \in e).",
)
def test_a_step_moves_the_weights_of_its_term_and_the_terms_make_the_loss() -> None:
    start, lr = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64), 0.1
    total = torch.zeros(4, dtype=torch.float64)
    for e, places in enumerate(TERMS):
        theta = start[:, None].clone().requires_grad_()
        optimizer = SGD([theta], lr=lr).share_memory()
        slope = (start[places] - TARGETS[e])[:, None]
        theta.grad = torch.sparse_coo_tensor(places[None], slope, theta.shape, check_invariants=True)
        optimizer.step()
        others = [v for v in range(4) if v not in places.tolist()]
        assert torch.equal(theta.detach()[others, 0], start[others])
        torch.testing.assert_close(theta.detach()[places, 0], start[places] - lr * slope[:, 0])
        total += (start - theta.detach()[:, 0]) / lr / len(TERMS)
    whole = start.clone().requires_grad_()
    (sum(term_loss(whole, e) for e in range(6)) / len(TERMS)).backward()
    torch.testing.assert_close(total, whole.grad)


@equation(
    "eq-hogwild-statistics",
    r"\Omega = \max_e |e|, \quad \Delta = \frac{\max_v |\{e : v \in e\}|}{|E|}, \quad"
    r" \rho = \frac{\max_e |\{e' : e' \cap e \neq \emptyset\}|}{|E|} .",
)
def test_statistics() -> None:
    def statistics(terms: list[set[int]]) -> tuple[int, float, float]:
        popular = max(sum(v in e for e in terms) for v in set().union(*terms))
        meets = max(sum(bool(e & other) for other in terms) for e in terms)
        return max(map(len, terms)), popular / len(terms), meets / len(terms)

    assert statistics([set(e) for e in TERMS.tolist()]) == (2, 3 / 6, 5 / 6)
    assert statistics([{0}, {1}]) == (1, 0.5, 0.5)  # the chapter: each term with itself
    r = 5  # the third exercise
    omega, delta, rho = statistics([{i, r + j} for i in range(r) for j in range(r)])
    assert (omega, delta, rho) == (2, 1 / r, (2 * r - 1) / r**2)
    assert delta <= rho <= omega * delta


@equation("eq-hogwild-late", r"\theta_t = \theta_{t-1} - \alpha\, \nabla f_{e_t}(\theta_{t-1-\tau}) ,")
@equation("eq-hogwild-characteristic", r"z^{\tau+1} - z^\tau + \alpha h = 0 .")
@equation("eq-hogwild-limit", r"\alpha h < 2 \sin\frac{\pi}{4\tau + 2} .")
def test_delay_on_one_curvature() -> None:
    for tau in (0, 1, 2, 3, 4, 9, 64):
        limit = 2 * math.sin(math.pi / (4 * tau + 2))
        radius = {}
        for factor in (0.99, 1.0, 1.01):
            roots = np.roots(
                [1.0, -1.0, *[0.0] * (tau - 1), limit * factor][: tau + 2] if tau else [1, limit * factor - 1]
            )
            radius[factor] = abs(roots).max()
        assert radius[0.99] < 1 < radius[1.01]
        assert radius[1.0] == pytest.approx(1, abs=1e-9)
        assert limit == pytest.approx(2 / ((4 * tau + 2) / math.pi), rel=0.6 if tau == 0 else 0.05)
    # The package's steps follow the roots: on the bowl at α = 0.02, τ = 3 is stable and τ = 4 is not.
    bowl = Quadratic()
    for tau, stable in ((0, True), (3, True), (4, False)):
        path = late_run(lambda theta, t: bowl.gradient(theta), bowl.initial(), 0.02, tau, 400)
        roots = np.roots([1.0, -1.0, *[0.0] * (tau - 1), 0.4] if tau else [1, -0.6])
        steep = [abs(path[t][1].item()) for t in range(401)]
        assert (steep[400] < steep[0]) == stable == (abs(roots).max() < 1)
        if tau:
            amplitude = max(steep[390:]) / max(steep[290:301])
            assert amplitude == pytest.approx(abs(roots).max() ** 100, rel=0.15)
    # The chapter's two limits, and its last exercise
    assert 2 * math.sin(math.pi / 14) == pytest.approx(0.445, abs=5e-4)
    assert 2 * math.sin(math.pi / 18) == pytest.approx(0.347, abs=5e-4)
    assert 2 * math.sin(math.pi / 6) == pytest.approx(1)


def examples(n: int, active: int) -> list[Tensor]:
    """Every example of the model, all of them equally likely."""
    block, found = n // active, []
    for places in itertools.product(range(block), repeat=active):
        for signs in itertools.product((1.0, -1.0), repeat=active):
            a = torch.zeros(n, dtype=torch.float64)
            for b, (place, sign) in enumerate(zip(places, signs, strict=True)):
                a[b * block + place] = sign / active**0.5
            found.append(a)
    return found


@equation(
    "eq-hogwild-model",
    r"f_e(\theta) = \tfrac12 (x_e^\top \delta)^2, \qquad"
    r" \mathbb{E}\, x_e x_e^\top = \frac1n I, \qquad |x_e|^2 = 1 .",
)
@equation(
    "eq-hogwild-split",
    r"\delta_t = \delta_{t-1} - \frac\alpha n\, \delta_{t-1-\tau} - \alpha\, \xi_t, \qquad"
    r" \xi_t = \Bigl(x_t x_t^\top - \frac1n I\Bigr) \delta_{t-1-\tau} .",
)
@equation(
    "eq-hogwild-noise",
    r"\mathbb{E}\, |\xi_t|^2 = \Bigl(\frac1n - \frac1{n^2}\Bigr)\, \mathbb{E}\, |\delta_{t-1-\tau}|^2 ,",
)
def test_the_model() -> None:
    for n, active in ((4, 2), (6, 3), (4, 4), (3, 1)):
        drawn = examples(n, active)
        delta = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        squares = torch.zeros((), dtype=torch.float64)
        second = torch.zeros(n, n, dtype=torch.float64)
        for a in drawn:
            assert float(a @ a) == pytest.approx(1)
            second += torch.outer(a, a) / len(drawn)
            theta = delta.clone().requires_grad_()
            (0.5 * (a @ theta) ** 2).backward()
            xi = (torch.outer(a, a) - torch.eye(n, dtype=torch.float64) / n) @ delta
            torch.testing.assert_close(theta.grad, delta / n + xi)
            squares += xi @ xi / len(drawn)
        torch.testing.assert_close(second, torch.eye(n, dtype=torch.float64) / n)
        torch.testing.assert_close(squares, (1 / n - 1 / n**2) * (delta @ delta))


def responses(n: int, lr: float, tau: int, steps: int) -> tuple[list[float], list[float]]:
    """u_t and ū_t for t = 0, …, steps."""
    u, bar = [1.0], [1.0]
    for t in range(1, steps + 1):
        u.append(u[-1] - lr / n * (u[t - 1 - tau] if t - 1 - tau >= 0 else 0.0))
        bar.append(bar[-1] - lr / n * (bar[t - 1 - tau] if t - 1 - tau >= 0 else 1.0))
    return u, bar


@equation(
    "eq-hogwild-response",
    r"u_t = u_{t-1} - \frac\alpha n\, u_{t-1-\tau}, \qquad u_0 = 1, \quad u_t = 0 \ (t < 0); \qquad"
    r" \bar u_t \text{ likewise, with } \bar u_t = 1 \ (t \le 0) .",
)
@equation(
    "eq-hogwild-square",
    r"\mathbb{E}\, |\delta_t|^2 = \bar u_t^2\, |\delta_0|^2 + \alpha^2 \Bigl(\frac1n - \frac1{n^2}\Bigr)"
    r" \sum_{j=1}^{t} u_{t-j}^2\; \mathbb{E}\, |\delta_{j-1-\tau}|^2 .",
)
def test_expected_square_is_that_of_all_runs() -> None:
    steps = 5
    for n, active, lr, tau in ((2, 1, 1.0, 0), (2, 1, 0.7, 1), (2, 2, 1.0, 2), (2, 2, 0.5, 1)):
        start, drawn = torch.tensor([1.5, -0.5], dtype=torch.float64), examples(n, active)
        mean = np.zeros(steps + 1)
        for chosen in itertools.product(drawn, repeat=steps):
            path = late_run(lambda theta, t, c=chosen: c[t - 1] * (c[t - 1] @ theta), start, lr, tau, steps)
            mean += [float(theta @ theta) / len(drawn) ** steps for theta in path]
        u, bar = responses(n, lr, tau, steps)
        square = [float(start @ start)]
        for t in range(1, steps + 1):
            noise = sum(u[t - j] ** 2 * square[max(0, j - 1 - tau)] for j in range(1, t + 1))
            square.append(bar[t] ** 2 * square[0] + lr**2 * (1 / n - 1 / n**2) * noise)
        np.testing.assert_allclose(square, mean, rtol=1e-12)


@equation(
    "eq-hogwild-condition",
    r"\alpha^2 \Bigl(\frac1n - \frac1{n^2}\Bigr) \sum_{t=0}^{\infty} u_t^2 < 1 .",
)
@equation("eq-hogwild-one-limit", r"\tau < 0.6435\, n")
@equation(
    "eq-hogwild-delay-limit",
    r"\frac\alpha2 \cdot \frac{1 + \sin x}{\cos x} < 1, \qquad\text{that is}\qquad"
    r" \tau < \frac n\alpha \Bigl( 2\arctan\frac2\alpha - \frac\pi2 \Bigr) .",
)
def test_the_largest_delay() -> None:
    def load(n: int, lr: float, tau: int) -> float:
        u, _ = responses(n, lr, tau, 40 * n)
        return lr**2 * (1 / n - 1 / n**2) * sum(x * x for x in u)

    for n, lr in ((400, 1.0), (400, 0.5)):
        limit = n / lr * (2 * math.atan(2 / lr) - math.pi / 2)
        for tau in (0, round(limit / 3), round(limit)):
            x = lr * tau / n
            assert load(n, lr, tau) == pytest.approx(lr / 2 * (1 + math.sin(x)) / math.cos(x), rel=0.02)
        assert load(n, lr, round(0.97 * limit)) < 1 < load(n, lr, round(1.05 * limit))
    # Small n, and what the condition decides: the mean square falls on one side and grows on the other.
    for tau in (6, 14):
        u, bar = responses(16, 1.0, tau, 4000)
        squares, late, square = np.array(u) ** 2 * (1 / 16 - 1 / 256), [], [1.0]
        for t in range(1, 2001):
            late.append(square[max(0, t - 1 - tau)])
            square.append(bar[t] ** 2 + squares[:t][::-1] @ np.array(late))
        assert (square[-1] < 1e-3) == (load(16, 1.0, tau) < 1) == (tau == 6)
    assert 2 * math.atan(2) - math.pi / 2 == pytest.approx(0.6435, abs=5e-5)
    assert 10.29 < 16 * 0.6435 < 10.31


@equation(
    "eq-hogwild-variant",
    r"\mathbb{E}\, s = \alpha \nabla f(\theta), \qquad"
    r" \mathbb{E}\, |s|^2 = \alpha^2\, \mathbb{E}\bigl( |e|\, |\nabla f_e|^2 \bigr) \le \alpha^2\, \Omega M^2 ,",
)
@equation("eq-hogwild-serial", r"a_t \le (1 - 2c\alpha)\, a_{t-1} + \tfrac12 \alpha^2\, \Omega M^2 .")
def test_the_variant_of_the_proof() -> None:
    lr, theta0 = 0.05, torch.tensor([0.5, -1.0, 0.9, 0.1], dtype=torch.float64)
    mean, square, after = torch.zeros(4, dtype=torch.float64), 0.0, 0.0
    sizes = 0.0
    for e, side in itertools.product(range(6), range(2)):
        theta = theta0.clone().requires_grad_()
        term_loss(theta, e).backward()
        sizes += 2 * float(theta.grad.square().sum()) / 12  # type: ignore[union-attr]
        kept = torch.zeros(4, dtype=torch.float64)
        kept[TERMS[e, side]] = 2.0  # |e| times one coordinate
        optimizer = SGD([theta], lr=lr)
        theta.grad = theta.grad * kept  # type: ignore[operator]
        optimizer.step()
        step = theta0 - theta.detach()
        mean += step / 12
        square += float(step @ step) / 12
        after += 0.5 * float((theta.detach() - minimum()).square().sum()) / 12
    whole = theta0.clone().requires_grad_()
    (sum(term_loss(whole, e) for e in range(6)) / 6).backward()
    torch.testing.assert_close(mean, lr * whole.grad)  # type: ignore[operator]
    omega, m2, c = 2, 8.0, 3 / 6  # two slopes of at most 2; each weight is in three of six terms
    assert square == pytest.approx(lr**2 * sizes)
    assert square <= lr**2 * omega * m2
    before = 0.5 * float((theta0 - minimum()).square().sum())
    assert after <= (1 - 2 * c * lr) * before + 0.5 * lr**2 * omega * m2
    assert after == pytest.approx((1 - 2 * c * lr) * before + 0.5 * square)  # tight here but for the bound on |s|²


@equation(
    "eq-hogwild-lr",
    r"\alpha = \frac{\vartheta\, \epsilon\, c}"
    r"{2 L M^2 \Omega\, (1 + 6\rho\tau + 4\tau^2 \Omega \sqrt\Delta)}",
)
@equation(
    "eq-hogwild-steps",
    r"k \ge \frac{2 L M^2 \Omega\, (1 + 6\rho\tau + 6\tau^2 \Omega \sqrt\Delta)}"
    r"{c^2\, \vartheta\, \epsilon}\, \log\frac{L D_0}{\epsilon}",
)
@equation(
    "eq-hogwild-constants",
    r"\frac{c\,\alpha\,k}{\log(L D_0/\epsilon)} ="
    r" \frac{1 + 6\rho\tau + 6\tau^2 \Omega \sqrt\Delta}{1 + 6\rho\tau + 4\tau^2 \Omega \sqrt\Delta}"
    r" \in \bigl[1, \tfrac32\bigr] ,",
)
def test_the_proposition() -> None:
    big_l = c = 0.5
    omega, delta, rho, m2, share = 2, 3 / 6, 5 / 6, 8.0, 0.9
    d0 = float((torch.ones(4, dtype=torch.float64) - minimum()).square().sum())
    eps = 0.1 * d0 * big_l
    for tau in (0, 1, 5, 40):
        brackets = [1 + 6 * rho * tau + square * tau**2 * omega * delta**0.5 for square in (4, 6)]
        lr = share * eps * c / (2 * big_l * m2 * omega * brackets[0])
        k = 2 * big_l * m2 * omega * brackets[1] / (c**2 * share * eps) * math.log(big_l * d0 / eps)
        ratio = c * lr * k / math.log(big_l * d0 / eps)
        assert ratio == pytest.approx(brackets[1] / brackets[0])
        assert 1 <= ratio <= 1.5
        if tau == 0:  # the serial recursion comes to ε well within k steps, and not in a tenth of them
            path = [0.5 * d0]
            for _ in range(math.ceil(k)):
                path.append((1 - 2 * c * lr) * path[-1] + 0.5 * lr**2 * omega * m2)
            assert big_l * path[-1] < eps < big_l * path[len(path) // 10]


@equation("eq-hogwild-recursion", r"a_k = (1 - c_r\alpha)\,(a_{k-1} - \alpha B) + \alpha B ,")
@equation(
    "eq-hogwild-tuned",
    r"a_k = a_{k-1} - \frac{c_r}{4B}\, a_{k-1}^2 \;\approx\; \frac{4B}{c_r\,k} ,",
)
def test_the_tuned_step() -> None:
    c, b, a = 0.3, 2.0, 5.0

    def step(a: float, lr: float) -> float:
        return (1 - c * lr) * (a - lr * b) + lr * b

    lrs = np.linspace(0, a / b, 100_001)
    best = lrs[step(a, lrs).argmin()]  # type: ignore[arg-type]
    assert best == pytest.approx(a / (2 * b), abs=1e-4)
    assert step(a, a / (2 * b)) == pytest.approx(a - c / (4 * b) * a**2)
    for _ in range(100_000):
        a = step(a, a / (2 * b))
    assert a * 100_000 == pytest.approx(4 * b / c, rel=0.01)
    # The package's SGD on ½(θ − c_t)²: mean square (1 − α)² a + α², the recursion with c = 2, B = ½ for small α.
    lr, start = 0.01, 0.3
    theta = torch.tensor(
        [start**0.5, 0.0], dtype=torch.float64, requires_grad=True
    )  # the start, and a unit of noise
    optimizer = SGD([theta], lr=lr)
    theta.grad = theta.detach() - torch.tensor([0.0, 1.0], dtype=torch.float64)
    optimizer.step()
    square = float(theta.detach().square().sum())
    assert square == pytest.approx((1 - 2 * lr) * (start - lr / 2) + lr / 2, abs=lr**2)


@equation("eq-hogwild-epoch", r"m = \frac{\log(2/\beta)}{c_r\,\alpha}")
@equation(
    "eq-hogwild-total",
    r"k = \frac{2B}{c_r\,\epsilon} \cdot \frac{\log(2/\beta)}{1-\beta}"
    r" = \frac{4B}{c_r\,\epsilon} \cdot \frac{\log(2/\beta)}{2(1-\beta)} .",
)
@equation("eq-hogwild-real", r"\frac{2-\beta}{2} \cdot \frac{\log(2/\beta)}{2(1-\beta)} ,")
def test_backoff() -> None:
    c, b, beta, first = 0.5, 3.0, 0.37, 0.01
    a, k = 2 * first * b, 0
    for epoch in range(13):
        lr = first * beta**epoch
        m = math.log(2 / beta) / (c * lr)
        assert (1 - c * lr) ** m * (2 / beta - 1) <= 1
        a = (1 - c * lr) ** round(m) * (a - lr * b) + lr * b
        k += round(m)
        assert a <= 2 * lr * b
    eps = 2 * lr * b
    bound = 2 * b / (c * eps) * math.log(2 / beta) / (1 - beta)
    assert k == pytest.approx(bound, rel=1e-3)
    assert a == pytest.approx((2 - beta) * lr * b, rel=1e-3)
    assert a * k / (4 * b / c) == pytest.approx((2 - beta) / 2 * math.log(2 / beta) / (2 * (1 - beta)), rel=2e-3)
    betas = np.linspace(0.05, 0.999, 100_000)
    paper = np.log(2 / betas) / (2 * (1 - betas))
    assert betas[paper.argmin()] == pytest.approx(0.37, abs=5e-3)
    assert paper.min() == pytest.approx(1.34, abs=5e-3)
    assert (2 - 0.37) / 2 * math.log(2 / 0.37) / (2 * (1 - 0.37)) == pytest.approx(1.09, abs=5e-3)
    shortest = np.log(2 / betas - 1) / (2 * (1 - betas))
    assert (np.diff(shortest) < 0).all()
    assert shortest[-1] == pytest.approx(1, abs=2e-3)


@equation("eq-hogwild-power", r"\prod_{i=2}^{k} \Bigl(1 - \frac{\omega}{i}\Bigr) \sim k^{-\omega} ,")
@equation(
    "eq-hogwild-impatient",
    r"a_k \sim k^{-p}, \qquad p = \omega\, \frac{\log(2/\beta)}{\log(1/\beta)}"
    r" = \omega \Bigl( 1 + \frac{\log 2}{\log(1/\beta)} \Bigr) .",
)
def test_a_wrong_guess() -> None:
    omega, beta = 0.2, 0.37
    i = np.arange(2, 1_000_001)
    product = np.cumsum(np.log1p(-omega / i))
    slope = (product[-1] - product[999]) / math.log(i[-1] / i[999])
    assert slope == pytest.approx(-omega, abs=1e-3)
    p = omega * math.log(2 / beta) / math.log(1 / beta)
    assert p == pytest.approx(omega * (1 + math.log(2) / math.log(1 / beta)))
    assert p == pytest.approx(0.34, abs=5e-3)
    a, k, ends = 1.0, 0, []
    for epoch in range(14):  # true c = 1, B = 1; the guess is 1/ω
        lr = 0.1 * beta**epoch
        m = omega * math.log(2 / beta) / lr
        a = (1 - lr) ** m * (a - lr) + lr
        k += m
        ends.append((math.log(k), math.log(a)))
    (k1, a1), (k2, a2) = ends[9], ends[13]
    assert -(a2 - a1) / (k2 - k1) == pytest.approx(p, abs=5e-3)


def test_exercises() -> None:
    # One step late: both roots real up to αh = 1/4, where they meet at 1/2; beyond, |z|² = αh.
    np.testing.assert_allclose(np.roots([1, -1, 0.25]), 0.5, atol=1e-7)
    np.testing.assert_allclose(abs(np.roots([1, -1, 0.64])), 0.8)
    # The sum of squares: K(0) = (1 + sin x) / (2 cos x) = tan(π/4 + x/2) / 2
    for x in (0.0, 0.3, 1.0):
        n = 1000
        u, _ = responses(n, 1.0, round(x * n), 40 * n)
        k0 = (1 + math.sin(x)) / (2 * math.cos(x))
        assert sum(v * v for v in u) / n == pytest.approx(k0, rel=0.01)
        assert 2 * k0 == pytest.approx(math.tan(math.pi / 4 + x / 2))


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
