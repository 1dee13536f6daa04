"""Every displayed equation of the chapter on LAMB and Adafactor, as on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.LAMB` and `optimizers.Adafactor` fails.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from optimizers import LAMB, Adafactor, Adam

from .equations import Chapter

CHAPTER = Chapter("modern/lamb")
equation = CHAPTER.equation
ALPHA, BETA1, BETA2, EPS, LAMBDA = 0.03, 0.8, 0.95, 1e-3, 0.2


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rms(x: Tensor) -> float:
    return float(x.norm() / x.numel() ** 0.5)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)


def path(optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The only parameter before and after each step."""
    (theta,) = optimizer.param_groups[0]["params"]
    for g in gradients:
        before = theta.detach().clone()
        theta.grad = g.clone()
        optimizer.step()
        yield before, theta.detach().clone()


def lamb(start: Tensor, **options: float) -> LAMB:
    given = {"lr": ALPHA, "eps": EPS, "weight_decay": LAMBDA, **options}
    return LAMB([start.clone().requires_grad_()], betas=(BETA1, BETA2), **given)  # type: ignore[arg-type]


@equation(
    "eq-lamb-adam",
    r"\frac{\lVert \theta_1 - \theta_0 \rVert}{\lVert \theta_0 \rVert}"
    r" = \frac{\alpha}{\operatorname{RMS}(\theta_0)} .",
)
def test_adam_s_first_relative_step() -> None:
    for size in (0.02, 0.1, 1.0):
        start = size * gaussian(30, 20)
        optimizer = Adam([start.clone().requires_grad_()], lr=ALPHA, eps=0.0)
        ((before, after),) = path(optimizer, [gaussian(30, 20, seed=1)])
        assert float((after - before).norm() / before.norm()) == pytest.approx(ALPHA / rms(start), rel=1e-12)


@equation("eq-lamb-u", r"u_t = \frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon} + \lambda\, \theta_{t-1} .")
@equation(
    "eq-lamb",
    r"\theta_t = \theta_{t-1} - \alpha_t\, \frac{\lVert \theta_{t-1} \rVert}{\lVert u_t \rVert}\, u_t ,",
)
@equation(
    "eq-lamb-relative",
    r"\frac{\lVert \theta_t - \theta_{t-1} \rVert}{\lVert \theta_{t-1} \rVert} = \alpha_t .",
)
@equation(
    "eq-lamb-norm",
    r"\lVert \theta_t \rVert^2 = \lVert \theta_{t-1} \rVert^2 \left(1 - 2\,\alpha_t\, c_t + \alpha_t^2\right) .",
)
def test_lamb() -> None:
    optimizer = lamb(gaussian(5, 4))
    m = v = torch.zeros(5, 4, dtype=torch.float64)
    gradients = [10.0 ** (t % 3) * gaussian(5, 4, seed=t) for t in range(1, 20)]
    group = optimizer.param_groups[0]
    steps = path(optimizer, gradients)
    for t, g in enumerate(gradients, 1):
        alpha = group["lr"] = ALPHA / t
        before, after = next(steps)
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g**2
        u = m / (1 - BETA1**t) / ((v / (1 - BETA2**t)).sqrt() + EPS) + LAMBDA * before
        close(after, before - alpha * before.norm() / u.norm() * u)
        assert float((after - before).norm() / before.norm()) == pytest.approx(alpha, rel=1e-10)
        cosine = float((before * u).sum() / (before.norm() * u.norm()))
        expected = float(before.norm()) ** 2 * (1 - 2 * alpha * cosine + alpha**2)
        assert float(after.norm()) ** 2 == pytest.approx(expected, rel=1e-10)


@equation(
    "eq-lamb-trust",
    r"\Delta_t = \operatorname*{arg\,min}_{\lVert \Delta \rVert \,\le\, \alpha_t \lVert \theta_{t-1} \rVert}"
    r" \langle u_t, \Delta \rangle = -\,\alpha_t\, \frac{\lVert \theta_{t-1} \rVert}{\lVert u_t \rVert}\, u_t ,",
)
def test_no_step_in_the_bound_goes_farther() -> None:
    start, g = gaussian(6), gaussian(6, seed=1)
    ((before, after),) = path(lamb(start, eps=0.0, weight_decay=0.0), [g])
    delta, u, bound = after - before, g.sign(), ALPHA * before.norm()
    close(delta, -bound / u.norm() * u)
    for seed in range(500):
        other = gaussian(6, seed=seed + 2)
        other = delta + 0.1 * bound * other
        other = other * min(1.0, float(bound / other.norm()))
        assert float((u * other).sum()) > float((u * delta).sum())


@equation(
    "eq-lamb-rest",
    r"\operatorname{RMS}(\theta) = \frac{\alpha}{2\lambda}\, \frac{1}{\sqrt{1 - \alpha^2/4}} .",
)
def test_the_size_at_rest() -> None:
    """A direction of entries ±1 at right angles to θ: at rest a step leaves the size as it is."""
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    alpha = 0.3
    rest = alpha / (2 * LAMBDA) / math.sqrt(1 - alpha**2 / 4)
    ends = []
    for factor in (0.9, 1.0, 1.1):
        start = factor * rest * torch.ones(4, dtype=torch.float64)
        optimizer = lamb(start, lr=alpha, eps=0.0)
        ((before, after),) = path(optimizer, [signs])
        ends.append(rms(after) / rms(before))
    assert ends[1] == pytest.approx(1.0, rel=1e-12)
    assert ends[0] > 1 > ends[2]


@equation(
    "eq-lamb-zero",
    r"\lVert \theta_1 \rVert = \alpha \sqrt N , \qquad"
    r" \lVert \theta_t \rVert \le (1 + \alpha)^{t-1}\, \alpha \sqrt N .",
)
def test_from_zero() -> None:
    always_the_same = [torch.ones(7, dtype=torch.float64)] * 30
    changing = [gaussian(7, seed=t) for t in range(30)]
    for gradients in (always_the_same, changing):
        optimizer = lamb(torch.zeros(7, dtype=torch.float64), eps=0.0, weight_decay=0.0)
        for t, (_, after) in enumerate(path(optimizer, gradients), 1):
            bound = (1 + ALPHA) ** (t - 1) * ALPHA * math.sqrt(7)
            assert float(after.norm()) <= bound * (1 + 1e-12)
            if gradients is always_the_same or t == 1:
                assert float(after.norm()) == pytest.approx(bound, rel=1e-12)
    assert float(after.norm()) < 0.9 * bound


def adafactor(start: Tensor, **options: object) -> Adafactor:
    return Adafactor([start.clone().requires_grad_()], floor="square", **options)  # type: ignore[arg-type]


@equation(
    "eq-lamb-sums",
    r"R_{t,i} = \beta_{2,t} R_{t-1,i} + (1 - \beta_{2,t}) \sum_j g_{t,ij}^2 , \qquad"
    r" C_{t,j} = \beta_{2,t} C_{t-1,j} + (1 - \beta_{2,t}) \sum_i g_{t,ij}^2 .",
)
@equation("eq-lamb-beta", r"\beta_{2,t} = 1 - t^{-0.8} ,")
@equation("eq-lamb-factored", r"F_{ij} = \frac{R_i\, C_j}{\sum_i R_i} .")
@equation(
    "eq-lamb-clip",
    r"\hat U_t = \frac{U_t}{\max\bigl(1,\ \operatorname{RMS}(U_t)/d\bigr)}"
    r" \quad\Longrightarrow\quad \operatorname{RMS}(\hat U_t) \le d .",
)
@equation(
    "eq-lamb-adafactor",
    r"\theta_t = \theta_{t-1} - \max\bigl(\varepsilon_2,\ \operatorname{RMS}(\theta_{t-1})\bigr)\,"
    r" \rho_t\, \hat U_t , \qquad \rho_t = \min\Bigl(\alpha,\ \frac{1}{\sqrt t}\Bigr) ,",
)
@pytest.mark.parametrize("d", [1.0, 1.5])
@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_adafactor(d: float, size: float) -> None:
    eps2, alpha = 1e-3, 0.3
    optimizer = adafactor(size * gaussian(5, 4), lr=alpha, d=d, eps=(0.0, eps2))
    # They grow: the clip is at work.
    gradients = [2.0**t * gaussian(5, 4, seed=t) for t in range(1, 20)]
    rows, columns, clipped = torch.zeros(5), torch.zeros(4), 0
    full = torch.zeros(5, 4, dtype=torch.float64)
    for t, (g, (before, after)) in enumerate(zip(gradients, path(optimizer, gradients), strict=True), 1):
        beta2 = 1 - t**-0.8
        rows = beta2 * rows + (1 - beta2) * (g**2).sum(1)
        columns = beta2 * columns + (1 - beta2) * (g**2).sum(0)
        full = beta2 * full + (1 - beta2) * g**2
        close(full.sum(1), rows)  # an average of sums is the sum of averages
        u = g / (torch.outer(rows, columns) / rows.sum()).sqrt()
        clipped += rms(u) > d
        u = u / max(1.0, rms(u) / d)
        assert rms(u) <= d * (1 + 1e-12)
        close(after, before - max(eps2, rms(before)) * min(alpha, t**-0.5) * u)
    assert clipped > 3
    assert min(alpha, t**-0.5) < alpha  # both sides of the minimum were met


@equation(
    "eq-lamb-divergence",
    r"D(V, F) = \sum_{ij} \left( V_{ij} \ln\frac{V_{ij}}{F_{ij}} - V_{ij} + F_{ij} \right) ,",
)
def test_the_nearest_of_rank_one() -> None:
    """A minimizer that knows only the divergence comes to the product of Adafactor's own averages."""
    squared = gaussian(5, 4) ** 2
    optimizer = adafactor(torch.ones(5, 4, dtype=torch.float64))
    list(path(optimizer, [squared.sqrt()]))
    (state,) = optimizer.state.values()
    factored = state["row_var"] @ state["col_var"] / state["row_var"].mean()

    def divergence(logarithms: Tensor) -> Tensor:
        f = torch.outer(logarithms[:5].exp(), logarithms[5:].exp())
        return (squared * (squared / f).log() - squared + f).sum()

    found = minimize(
        lambda x: divergence(torch.from_numpy(x)).item(),
        torch.zeros(9).numpy(),
        jac=lambda x: torch.func.grad(divergence)(torch.from_numpy(x)).numpy(),
        method="BFGS",
        options={"gtol": 1e-10},
    )
    nearest = torch.from_numpy(found.x)
    torch.testing.assert_close(torch.outer(nearest[:5].exp(), nearest[5:].exp()), factored, rtol=1e-6, atol=1e-9)
    assert float(divergence(nearest)) > 0.1  # these squares are not of rank one


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
