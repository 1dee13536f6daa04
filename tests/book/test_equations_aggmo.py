"""Every displayed equation of the AggMo chapter, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.AggMo` fails. Everything is float64.
"""

import inspect
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor

from optimizers import SGD, AggMo

from .equations import Chapter

CHAPTER = Chapter("foundations/aggmo")
equation = CHAPTER.equation
ALPHA, BETAS = 0.05, (0.0, 0.7, 0.95)


def gradients(steps: int = 12) -> Tensor:
    """g_1, …, g_steps of shape (steps, 3)."""
    return torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run(
    gradient: Callable[[Tensor, int], Tensor],
    start: Tensor,
    steps: int,
    alpha: float = ALPHA,
    betas: Sequence[float] = BETAS,
) -> tuple[Tensor, Tensor]:
    """The package's θ, of shape (steps + 1, n), and v, of shape (steps + 1, K, n); index 0 is the start."""
    theta = start.clone().requires_grad_()
    optimizer = AggMo([theta], lr=alpha, betas=betas)
    points, velocities = [start.clone()], [torch.zeros(len(betas), *start.shape, dtype=torch.float64)]
    for t in range(steps):
        theta.grad = gradient(theta.detach(), t)
        optimizer.step()
        points.append(theta.detach().clone())
        state = optimizer.state[theta]
        velocities.append(torch.stack([state[f"momentum_buffer_{i}"] for i in range(len(betas))]))
    return torch.stack(points), torch.stack(velocities)


def on_random_gradients() -> tuple[Tensor, Tensor, Tensor]:
    g = gradients()
    return g, *run(lambda _, t: g[t], torch.ones(3, dtype=torch.float64), len(g))


def roots(h: float, betas: Sequence[float]) -> np.ndarray:
    """The eigenvalues of the package's step on (θ, v⁽¹⁾, …, v⁽ᴷ⁾) at αh = `h`, less that of a velocity with β = 0.

    The matrix is read off by loading each unit vector into an optimizer and taking one step.
    """
    size, columns = 1 + len(betas), []
    for unit in torch.eye(size, dtype=torch.float64):
        theta = unit[:1].clone().requires_grad_()
        optimizer = AggMo([theta], lr=1.0, betas=betas)
        theta.grad = torch.zeros(1, dtype=torch.float64)
        optimizer.step()  # makes the state
        with torch.no_grad():
            theta.copy_(unit[:1])
        for i in range(len(betas)):
            optimizer.state[theta][f"momentum_buffer_{i}"].copy_(unit[1 + i : 2 + i])
        theta.grad = h * theta.detach()
        optimizer.step()
        state = optimizer.state[theta]
        columns.append([theta.item(), *(state[f"momentum_buffer_{i}"].item() for i in range(len(betas)))])
    values = np.linalg.eigvals(np.array(columns).T)
    return np.array(sorted(values, key=abs)[sum(beta == 0 for beta in betas) :])


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


@equation(
    "eq-aggmo",
    r"v_t^{(i)} = \beta^{(i)} v_{t-1}^{(i)} + g_t,"
    r" \qquad \theta_t = \theta_{t-1} - \frac{\alpha}{K} \sum_{i=1}^{K} v_t^{(i)}, \qquad v_0^{(i)} = 0 .",
)
def test_rule() -> None:
    g, theta, v = on_random_gradients()
    for t in range(1, len(g) + 1):
        for i, beta in enumerate(BETAS):
            close(v[t, i], beta * v[t - 1, i] + g[t - 1])
        close(theta[t], theta[t - 1] - ALPHA / len(BETAS) * v[t].sum(0))


@equation(
    "eq-aggmo-kernel",
    r"\theta_t = \theta_{t-1} - \alpha \sum_{j=0}^{t-1}"
    r" \Bigl( \frac1K \sum_{i=1}^{K} \bigl(\beta^{(i)}\bigr)^{j} \Bigr)\, g_{t-j} ,",
)
def test_unrolled() -> None:
    g, theta, _ = on_random_gradients()
    for t in range(1, len(g) + 1):
        step = torch.stack([sum(beta**j for beta in BETAS) / len(BETAS) * g[t - j - 1] for j in range(t)]).sum(0)
        close(theta[t], theta[t - 1] - ALPHA * step)


@equation(
    "eq-aggmo-speed",
    r"\theta_{t-1} - \theta_t \;\to\; \frac{\alpha}{K} \sum_{i=1}^{K} \frac{1}{1-\beta^{(i)}}\; g .",
)
def test_speed_on_a_slope() -> None:
    g = torch.tensor([1.5, -2.0, 0.1], dtype=torch.float64)
    theta, _ = run(lambda *_: g, torch.ones(3, dtype=torch.float64), 700)
    expected = ALPHA / len(BETAS) * sum(1 / (1 - beta) for beta in BETAS) * g
    torch.testing.assert_close(theta[-2] - theta[-1], expected, rtol=1e-10, atol=0)


@equation("eq-aggmo-betas", r"\beta^{(i)} = 1 - a^{\,i-1}, \qquad i = 1, \dots, K ,")
def test_default_coefficients() -> None:
    default = inspect.signature(AggMo).parameters["betas"].default
    assert default == pytest.approx([1 - 0.1 ** (i - 1) for i in (1, 2, 3)], abs=1e-15)
    assert sum(1 / (1 - beta) for beta in default) / 3 == pytest.approx(37)


@equation("eq-aggmo-characteristic", r"z - 1 = -\frac{\alpha h}{K} \sum_{i=1}^{K} \frac{z}{z - \beta^{(i)}} .")
def test_characteristic_equation() -> None:
    for betas in (BETAS, (0.9,), (0.0, 0.9, 0.99, 0.999)):
        for h in (0.01, 0.3, 1.7):
            for z in roots(h, betas):
                assert z - 1 == pytest.approx(-h / len(betas) * sum(z / (z - beta) for beta in betas), abs=1e-9)


@equation("eq-aggmo-two", r"|z|^2 = \beta\,\Bigl(1 - \frac{\alpha h}{2}\Bigr) .")
def test_two_velocities() -> None:
    z, h, beta = sympy.symbols("z h beta")
    stated = z**2 - (1 + beta - h) * z + beta - h * beta / 2  # the equation in the sentence above
    assert sympy.simplify((z - 1 + h / 2 * (1 + z / (z - beta))) * (z - beta) - stated) == 0
    for step in (0.05, 0.4, 1.2):
        pair = roots(step, (0.0, 0.9))
        assert abs(pair.imag).min() > 0  # the formula is for complex roots
        assert abs(pair) ** 2 == pytest.approx([0.9 * (1 - step / 2)] * 2, rel=1e-9)


@equation("eq-aggmo-limit", r"\alpha h < \frac{2K}{\sum_{i=1}^{K} 1/(1+\beta^{(i)})} .")
def test_limit() -> None:
    for betas in ((0.9,), (0.0, 0.9), (0.0, 0.9, 0.99), (0.0, 0.9, 0.99, 0.999)):
        limit = 2 * len(betas) / sum(1 / (1 + beta) for beta in betas)
        for h in np.linspace(0.01, limit - 1e-3, 8):
            assert abs(roots(h, betas)).max() < 1
        assert abs(roots(limit + 1e-3, betas)).max() > 1


def general(g: Tensor, betas: Sequence[float], rates: Sequence[float]) -> tuple[Tensor, Tensor]:
    """θ by the paper's equation (4), and v of the last coefficient, from θ = 1."""
    theta, v = torch.ones(3, dtype=torch.float64), torch.zeros(len(betas), 3, dtype=torch.float64)
    points, last = [theta], [v[-1]]
    for gradient in g:
        v = torch.tensor(betas, dtype=torch.float64)[:, None] * v + gradient
        theta = theta - (torch.tensor(rates, dtype=torch.float64)[:, None] * v).sum(0) / len(betas)
        points.append(theta)
        last.append(v[-1])
    return torch.stack(points), torch.stack(last)


@equation(
    "eq-aggmo-general",
    r"\theta_t = \theta_{t-1} - \frac1K \sum_{i=1}^{K} \gamma^{(i)}\, v_t^{(i)} .",
)
def test_equal_rates_are_aggmo() -> None:
    g, theta, _ = on_random_gradients()
    close(general(g, BETAS, (ALPHA,) * 3)[0], theta)


@equation("eq-aggmo-nesterov", r"\theta_t = \theta_{t-1} - \alpha\,(g_t + \mu\, b_t) ,")
def test_nesterov_is_a_member() -> None:
    g, mu = gradients(), 0.9
    theta, b = general(g, (0.0, mu), (2 * ALPHA, 2 * mu * ALPHA))
    for t in range(1, len(g) + 1):
        close(theta[t], theta[t - 1] - ALPHA * (g[t - 1] + mu * b[t]))
    package = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([package], lr=ALPHA, momentum=mu, nesterov=True)
    for t, gradient in enumerate(g, start=1):
        package.grad = gradient.clone()
        optimizer.step()
        close(package.detach(), theta[t])
    assert not math.isclose(theta[-1, 0].item(), 1.0)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
