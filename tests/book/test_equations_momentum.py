"""Every displayed equation of the chapter on momentum, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with `optimizers.SGD` fails. Everything is float64.
"""

import cmath
import math
import re
from collections.abc import Callable
from itertools import pairwise

import jupytext
import numpy as np
import pytest
import sympy
import torch
from torch import Tensor

from optimizers import SGD

from .conftest import ROOT
from .equations import Chapter

CHAPTER = Chapter("foundations/momentum")
equation = CHAPTER.equation
ALPHA, MU = 0.05, 0.8


def gradients(steps: int = 12) -> Tensor:
    """g_1, …, g_steps of shape (steps, 3)."""
    return torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run(
    gradient: Callable[[Tensor, int], Tensor],
    start: Tensor,
    steps: int,
    alpha: float = ALPHA,
    mu: float = MU,
    nesterov: bool = False,
) -> tuple[Tensor, Tensor]:
    """The package's θ and b, each of shape (steps + 1, n); index 0 is the start."""
    theta = start.clone().requires_grad_()
    optimizer = SGD([theta], lr=alpha, momentum=mu, nesterov=nesterov)
    points, buffers = [start.clone()], [torch.zeros_like(start)]
    for t in range(steps):
        theta.grad = gradient(theta.detach(), t)
        optimizer.step()
        points.append(theta.detach().clone())
        buffers.append(optimizer.state[theta]["momentum_buffer"].clone())
    return torch.stack(points), torch.stack(buffers)


def along(curvature: float, steps: int = 40, **options: float) -> tuple[Tensor, Tensor]:
    """θ and b on ½ h θ² from θ = 1; each of shape (steps + 1,)."""
    theta, b = run(lambda theta, t: curvature * theta, torch.ones(1, dtype=torch.float64), steps, **options)  # type: ignore[arg-type]
    return theta[:, 0], b[:, 0]


def radius(h: float, mu: float, nesterov: bool = False) -> float:
    """Largest |z| of the package's step at αh = `h`, from five consecutive positions of one run.

    Every sequence obeys x_{t+1} = p x_t − q x_{t−1}; p and q are solved for, and z² − p z + q = 0.
    """
    x, _ = along(h, steps=5, alpha=1.0, mu=mu, nesterov=nesterov)
    system = np.array([[x[2], -x[1]], [x[3], -x[2]]])
    p, q = np.linalg.solve(system, np.array([x[3], x[4]]))
    root = cmath.sqrt(p * p / 4 - q)
    return max(abs(p / 2 + root), abs(p / 2 - root))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


@equation(
    "eq-momentum",
    r"b_t = \mu\, b_{t-1} + g_t, \qquad \theta_t = \theta_{t-1} - \alpha\, b_t, \qquad b_0 = 0 .",
)
def test_velocity() -> None:
    g = gradients()
    theta, b = run(lambda _, t: g[t], torch.ones(3, dtype=torch.float64), len(g))
    for t in range(1, len(g) + 1):
        close(b[t], MU * b[t - 1] + g[t - 1])
        close(theta[t], theta[t - 1] - ALPHA * b[t])


@equation(
    "eq-momentum-paper",
    r"v_t = \mu\, v_{t-1} - \alpha\, g_t, \qquad \theta_t = \theta_{t-1} + v_t .",
)
def test_the_papers_velocity() -> None:
    g, theta, v = gradients(), torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    package, b = run(lambda _, t: g[t], theta, len(g))
    for t in range(1, len(g) + 1):
        v = MU * v - ALPHA * g[t - 1]
        theta = theta + v
        close(package[t], theta)
        close(v, -ALPHA * b[t])


@equation("eq-momentum-unrolled", r"b_t = \sum_{i=1}^{t} \mu^{\,t-i} g_i .")
def test_unrolled() -> None:
    g = gradients()
    _, b = run(lambda _, t: g[t], torch.ones(3, dtype=torch.float64), len(g))
    for t in range(1, len(g) + 1):
        close(b[t], torch.stack([MU ** (t - i) * g[i - 1] for i in range(1, t + 1)]).sum(0))


@equation("eq-momentum-terminal", r"b_t = \frac{1-\mu^{\,t}}{1-\mu}\, g ,")
def test_on_a_slope() -> None:
    g = torch.tensor([1.5, -2.0, 0.1], dtype=torch.float64)
    _, b = run(lambda _, t: g, torch.ones(3, dtype=torch.float64), 30)
    for t in range(31):
        close(b[t], (1 - MU**t) / (1 - MU) * g)


@equation(
    "eq-momentum-matrix",
    r"\begin{pmatrix} \theta_t \\ b_t \end{pmatrix} ="
    r" \begin{pmatrix} 1-\alpha h & -\alpha\mu \\ h & \mu \end{pmatrix}"
    r" \begin{pmatrix} \theta_{t-1} \\ b_{t-1} \end{pmatrix} ,",
)
def test_matrix() -> None:
    curvature = 3.0
    matrix = torch.tensor([[1 - ALPHA * curvature, -ALPHA * MU], [curvature, MU]], dtype=torch.float64)
    state = torch.stack(along(curvature), 1)
    for before, after in pairwise(state):
        close(after, matrix @ before)


@equation("eq-momentum-characteristic", r"z^2 - (1 + \mu - \alpha h)\, z + \mu = 0 .")
def test_characteristic_polynomial() -> None:
    alpha, h, mu, z = sympy.symbols("alpha h mu z")
    matrix = sympy.Matrix([[1 - alpha * h, -alpha * mu], [h, mu]])
    stated = z**2 - (1 + mu - alpha * h) * z + mu
    assert sympy.expand(matrix.charpoly(z).as_expr() - stated) == 0
    x, _ = along(3.0)  # and so every three positions of the package obey it
    for t in range(2, len(x)):
        close(x[t], (1 + MU - 3.0 * ALPHA) * x[t - 1] - MU * x[t - 2])


@equation(
    "eq-momentum-radius",
    r"(1-\sqrt\mu)^2 < \alpha h < (1+\sqrt\mu)^2 \quad\Longrightarrow\quad |z| = \sqrt\mu .",
)
def test_radius() -> None:
    low, high = (1 - math.sqrt(MU)) ** 2, (1 + math.sqrt(MU)) ** 2
    for h in np.linspace(low + 0.01, high - 0.01, 9):
        assert radius(h, MU) == pytest.approx(math.sqrt(MU), rel=1e-9)
    for h in (0.5 * low, high + 0.03):
        assert radius(h, MU) > math.sqrt(MU) + 1e-3
    assert radius(2 * (1 + MU) - 1e-6, MU) < 1 < radius(2 * (1 + MU) + 1e-6, MU)


@equation(
    "eq-momentum-best",
    r"\sqrt\mu = \frac{\sqrt\kappa - 1}{\sqrt\kappa + 1} , \qquad \sqrt\alpha = \frac{2}{\sqrt L + \sqrt\ell} .",
)
def test_best_pair() -> None:
    flat, steep = 1.0, 20.0
    root = math.sqrt(steep / flat)
    mu, alpha = ((root - 1) / (root + 1)) ** 2, (2 / (math.sqrt(steep) + math.sqrt(flat))) ** 2
    assert (1 - math.sqrt(mu)) ** 2 == pytest.approx(alpha * flat, rel=1e-12)
    assert (1 + math.sqrt(mu)) ** 2 == pytest.approx(alpha * steep, rel=1e-12)

    def worst(alpha: float, mu: float) -> float:
        return max(radius(alpha * flat, mu), radius(alpha * steep, mu))

    best = worst(alpha, mu)
    assert best == pytest.approx(math.sqrt(mu), abs=1e-6)  # a double root: its last digits are lost
    for other_alpha, other_mu in [(0.95, 1), (1.05, 1), (1, 0.95), (1, 1.05), (0.95, 0.95), (1.05, 1.05)]:
        assert worst(alpha * other_alpha, mu * other_mu) > best + 1e-3


@equation(
    "eq-momentum-double",
    r"\theta_t = \bigl(1 + (1 - z)\, t\bigr)\, z^t\, \theta_0 , \qquad z = \pm\sqrt\mu .",
)
@pytest.mark.parametrize("sign", [1, -1])
def test_double_root_at_the_best_pair(sign: int) -> None:
    z = sign * math.sqrt(MU)
    x, _ = along((1 - z) ** 2, alpha=1.0)  # αh at one end of the range, the other with the minus
    t = torch.arange(len(x), dtype=torch.float64)
    close(x, (1 + (1 - z) * t) * z**t)


def nesterov(curvature: float, steps: int = 40) -> tuple[list[float], list[float]]:
    """The paper's θ_t and v_t by its equations (3) and (4), on ½ h θ² from θ = 1."""
    theta, v = [1.0], [0.0]
    for _ in range(steps):
        v.append(MU * v[-1] - ALPHA * curvature * (theta[-1] + MU * v[-1]))
        theta.append(theta[-1] + v[-1])
    return theta, v


@equation(
    "eq-momentum-nesterov",
    r"v_t = \mu\, v_{t-1} - \alpha\, \nabla f(\theta_{t-1} + \mu\, v_{t-1}),"
    r" \qquad \theta_t = \theta_{t-1} + v_t .",
)
def test_nesterov() -> None:
    theta, v = (torch.tensor(x, dtype=torch.float64) for x in nesterov(3.0))
    package, b = along(3.0, nesterov=True)
    close(package, theta + MU * v)  # the package is at the look-ahead point …
    close(package + ALPHA * MU * b, theta)  # … and the paper's parameter can be had from it


@equation(
    "eq-momentum-effective",
    r"v_t = \mu\,(1 - \alpha h)\, v_{t-1} - \alpha h\, \theta_{t-1} .",
)
def test_effective_momentum() -> None:
    for curvature in (0.01, 1.0, 19.0):
        theta, b = along(curvature, nesterov=True)
        classical, _ = along(curvature, mu=MU * (1 - ALPHA * curvature))
        close(theta + ALPHA * MU * b, classical)
        _, v = nesterov(curvature)
        for t in range(1, len(v)):
            expected = MU * (1 - ALPHA * curvature) * v[t - 1] - ALPHA * curvature * classical[t - 1].item()
            assert v[t] == pytest.approx(expected, abs=1e-14)


@equation(
    "eq-momentum-nesterov-radius",
    r"|z| = \sqrt{\mu\,(1 - \alpha h)} \qquad\text{where the roots are complex and } \alpha h < 1 .",
)
def test_nesterov_radius() -> None:
    for h in (0.05, 0.2, 0.5, 0.9):
        own = MU * (1 - h)
        assert (1 - math.sqrt(own)) ** 2 < h  # complex
        assert radius(h, MU, nesterov=True) == pytest.approx(math.sqrt(own), rel=1e-9)
    # What the paper gives as the coefficient is Nesterov's at α = 1/L; again the root is a double one.
    for root in (3.0, 10.0):
        mu = (root - 1) / (root + 1)
        for h in np.geomspace(1 / root**2, 0.9, 7):
            assert radius(h, mu, nesterov=True) <= 1 - 1 / root + 1e-6
        assert radius(1 / root**2, mu, nesterov=True) == pytest.approx(1 - 1 / root, abs=1e-6)


@equation("eq-momentum-limit", r"\alpha h < \frac{2\,(1+\mu)}{1+2\mu} ,")
def test_nesterov_limit() -> None:
    for mu in (0.3, 0.9, 0.99):
        limit = 2 * (1 + mu) / (1 + 2 * mu)
        assert radius(limit - 1e-6, mu, nesterov=True) < 1 < radius(limit + 1e-6, mu, nesterov=True)


@equation("eq-momentum-lookahead", r"y_t = y_{t-1} - \alpha\,(g_t + \mu\, b_t) .")
def test_lookahead_point() -> None:
    g = gradients()
    y, b = run(lambda _, t: g[t], torch.ones(3, dtype=torch.float64), len(g), nesterov=True)
    for t in range(1, len(g) + 1):
        close(y[t], y[t - 1] - ALPHA * (g[t - 1] + MU * b[t]))


@equation(
    "eq-momentum-schedule",
    r"\mu_t = \min\bigl(1 - 2^{-1-\log_2(\lfloor t/250\rfloor + 1)},\ \mu_{\max}\bigr) ,",
)
def test_schedule_of_the_notebook() -> None:
    notebook = jupytext.read(ROOT / "notebooks" / "momentum.py")
    cell = next(cell.source for cell in notebook.cells if "def momentum(run, t)" in cell.source)
    body = re.search(r"^def momentum\(run, t\):\n(?:    .*\n)+", cell, re.M)
    assert body is not None
    names: dict[str, object] = {"SETTINGS": {"period": 250}, "UPDATES": 750_000, "FINISH": 1000}
    exec(body[0], names)

    class Run:
        mu, schedule, finish = 0.999, True, True

    momentum = names["momentum"]
    assert callable(momentum)
    for t in (0, 249, 250, 1000, 12_345, 130_000):
        stated = min(1 - 2 ** (-1 - math.log2(t // 250 + 1)), 0.999)
        assert momentum(Run, t) == pytest.approx(stated, rel=1e-12)
    assert momentum(Run, 748_999) == 0.999
    assert momentum(Run, 749_000) == 0.9


def test_the_order_of_the_momenta_turns_after_a_thousand_steps() -> None:
    curvatures = torch.logspace(-4, 0, 30, dtype=torch.float64)
    losses = []
    for mu in (0.9, 0.99, 0.999):
        x, _ = run(lambda theta, t: curvatures * theta, torch.ones_like(curvatures), 1500, alpha=1.0, mu=mu)
        losses.append(0.5 * (curvatures * x.square()).sum(1))
    classical, longer, longest = losses
    for t in (200, 500, 800, 1000):
        assert classical[t] < longer[t] < longest[t]
    assert longer[1500] < classical[1500] < longest[1500]


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
