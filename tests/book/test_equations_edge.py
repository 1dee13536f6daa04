"""Every displayed equation of the chapter on the edge of stability, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with the package's steps fails. Everything is float64.
"""

import math
from itertools import pairwise
from typing import Any

import jupytext
import pytest
import torch
from torch import Tensor

from optimizers import SGD, Adam

from .conftest import ROOT
from .equations import Chapter

CHAPTER = Chapter("modern/edge")
equation = CHAPTER.equation
ALPHA, MU, BETA1 = 0.1, 0.9, 0.9


def descend(h: float, steps: int, alpha: float = ALPHA, **options: Any) -> list[float]:
    """θ_0, …, θ_steps on ½ h θ² from θ = 1 by the package's SGD."""
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([theta], lr=alpha, **options)
    path = [1.0]
    for _ in range(steps):
        theta.grad = h * theta.detach()
        optimizer.step()
        path.append(theta.item())
    return path


@equation(
    "eq-edge-stable",
    r"\theta_t = (1 - \alpha h)\,\theta_{t-1} , \qquad \text{which does not grow exactly if}"
    r" \quad h \le \frac{2}{\alpha} .",
)
def test_one_direction() -> None:
    for h in (0.3, 5.0, 19.0, 25.0):
        path = descend(h, 20)
        for before, after in pairwise(path):
            assert after == pytest.approx((1 - ALPHA * h) * before, rel=1e-12)
    assert abs(descend(2 / ALPHA - 1e-6, 500)[-1]) < 1 < abs(descend(2 / ALPHA + 1e-6, 500)[-1])


@equation(
    "eq-edge-descent",
    r"f(\theta - \alpha g) \le f(\theta) - \alpha\left(1 - \frac{\alpha S}{2}\right)\lVert g\rVert^2 ,"
    r" \qquad g = \nabla f(\theta) .",
)
def test_descent_lemma() -> None:
    def loss(theta: Tensor) -> Tensor:  # curvatures of at most 4 and 1
        return (4 * (theta[0].exp() + 1).log() * 4 + 1 - theta[1].cos()).sum()

    for start in ([2.0, 1.0], [-1.0, 0.3], [0.1, -2.0]):
        for alpha in (0.05, 0.3, 0.49):
            theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
            optimizer = SGD([theta], lr=alpha)
            before = loss(theta)
            before.backward()
            g = theta.grad
            assert g is not None
            optimizer.step()
            assert loss(theta) <= before - alpha * (1 - alpha * 4 / 2) * g.square().sum() + 1e-12
    # On a quadratic of one curvature it is an equality.
    h, path = 3.0, descend(3.0, 1)
    assert 0.5 * h * path[1] ** 2 == pytest.approx(0.5 * h - ALPHA * (1 - ALPHA * h / 2) * h**2, rel=1e-12)


@equation(
    "eq-edge-limits",
    r"\begin{aligned} h_{\text{GD}} &= \frac{2}{\alpha} , & h_{\text{momentum}} &= \frac{2 + 2\mu}{\alpha} , \\"
    r" h_{\text{Nesterov}} &= \frac{2 + 2\mu}{(1 + 2\mu)\,\alpha} ,"
    r" & h_{\text{average}} &= \frac{2 + 2\beta_1}{(1 - \beta_1)\,\alpha} . \end{aligned}",
)
@pytest.mark.parametrize("mu", [0.5, 0.9])
def test_four_limits(mu: float) -> None:
    limits = [
        ({}, 2 / ALPHA),
        ({"momentum": mu}, (2 + 2 * mu) / ALPHA),
        ({"momentum": mu, "nesterov": True}, (2 + 2 * mu) / ((1 + 2 * mu) * ALPHA)),
        ({"momentum": mu, "dampening": mu}, (2 + 2 * mu) / ((1 - mu) * ALPHA)),
    ]
    for options, limit in limits:
        inside, outside = (
            [abs(value) for value in descend(factor * limit, 3000, **options)] for factor in (0.995, 1.005)
        )
        assert max(inside[-100:]) < max(inside[:100])
        assert max(outside[-100:]) > 100 * max(outside[:100])


@equation(
    "eq-edge-preconditioned",
    r"\theta_t = \theta_{t-1} - \alpha\, D\, m_t \quad\Longleftrightarrow\quad"
    r" \varphi_t = \varphi_{t-1} - \alpha\, D^{1/2} m_t ,",
)
def test_preconditioner_of_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(5, dtype=torch.float64, generator=generator).requires_grad_()
    optimizer = Adam([theta], lr=ALPHA, betas=(BETA1, 0.99))
    for t in range(1, 20):
        before = theta.detach().clone()
        theta.grad = torch.randn(5, dtype=torch.float64, generator=generator)
        optimizer.step()
        d = optimizer.preconditioner(theta)
        m = optimizer.state[theta]["exp_avg"] / (1 - BETA1**t)
        torch.testing.assert_close(theta.detach(), before - ALPHA * d * m, rtol=1e-12, atol=1e-14)
        phi = before / d.sqrt() - ALPHA * d.sqrt() * m
        torch.testing.assert_close(theta.detach() / d.sqrt(), phi, rtol=1e-12, atol=1e-14)


GAMMA = 0.02


def ravine(x: Tensor, s: Tensor) -> Tensor:
    """½ S(y) x² + f_0(y) with S(y) = y and f_0(y) = −γ y."""
    return 0.5 * s * x**2 - GAMMA * s


def step(x: float, s: float) -> tuple[float, float]:
    """Both after one step of the package's SGD on the ravine."""
    params = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (x, s)]
    optimizer = SGD(params, lr=ALPHA)
    ravine(*params).sum().backward()
    optimizer.step()
    return params[0].item(), params[1].item()


@equation("eq-edge-ravine", r"f(x, y) = f_0(y) + \tfrac12\, S(y)\, x^2 .")
def test_ravine() -> None:
    x, s = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.7, 3.0))
    along, across = torch.autograd.grad(ravine(x, s), (x, s))
    assert along.item() == pytest.approx(3.0 * 0.7)  # S x
    assert across.item() == pytest.approx(-GAMMA + 0.5 * 0.7**2)  # ∇f_0 + ½ x² ∇S


@equation(
    "eq-edge-selfstab",
    r"S_t - S_{t-1} = -\alpha\,\langle\nabla f_0, \nabla S\rangle"
    r" - \frac{\alpha}{2}\, x_{t-1}^2\, \lVert\nabla S\rVert^2 ,",
)
def test_self_stabilization() -> None:
    for x, s in ((0.01, 18.0), (0.5, 21.0), (-1.0, 20.0)):
        after, sharpness = step(x, s)
        assert after == pytest.approx((1 - ALPHA * s) * x, rel=1e-12)
        assert sharpness - s == pytest.approx(ALPHA * GAMMA - ALPHA / 2 * x**2, rel=1e-9)
    # From below the edge: it rises past 2/α, and comes down again without anything having been lowered.
    x, s, seen = 0.05, 19.5, [19.5]
    for _ in range(1500):
        x, s = step(x, s)
        seen.append(s)
    top = max(range(len(seen)), key=seen.__getitem__)
    assert seen[top] > 2 / ALPHA
    assert min(seen[top:]) < 2 / ALPHA


@equation(
    "eq-edge-balance",
    r"S = \frac{2}{\alpha} , \qquad"
    r" x^2 = -\,\frac{2\,\langle\nabla f_0, \nabla S\rangle}{\lVert\nabla S\rVert^2} .",
)
def test_balance() -> None:
    x, s = math.sqrt(2 * GAMMA), 2 / ALPHA
    after, sharpness = step(x, s)
    assert after == pytest.approx(-x, rel=1e-12)
    assert sharpness == pytest.approx(s, rel=1e-12)


@equation("eq-edge-invariant", r"u_t^2 - v_t^2 = (1 - \alpha^2 r_{t-1}^2)\,(u_{t-1}^2 - v_{t-1}^2) .")
def test_two_numbers() -> None:
    u, v = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (4.0, 0.3))
    optimizer = SGD([u, v], lr=0.15)
    for _ in range(200):
        r = (u * v - 1).item()
        before = (u**2 - v**2).item()
        optimizer.zero_grad()
        (0.5 * (u * v - 1) ** 2).sum().backward()
        optimizer.step()
        assert (u**2 - v**2).item() == pytest.approx((1 - 0.15**2 * r**2) * before, rel=1e-10, abs=1e-10)
    assert (u**2 + v**2).item() < 2 / 0.15
    at = torch.tensor([u.item(), v.item()], dtype=torch.float64)
    hessian = torch.func.hessian(lambda w: 0.5 * (w[0] * w[1] - 1) ** 2)(at)
    assert torch.linalg.eigvalsh(hessian)[-1].item() == pytest.approx((u**2 + v**2).item(), rel=1e-9)


@equation(
    "eq-edge-cycle",
    r"a = \frac{\alpha\,(1 - \beta_1)}{2\,(1 + \beta_1)} , \qquad"
    r" \frac{h}{\sqrt{\hat v}} = \frac1a = \frac{2 + 2\beta_1}{(1 - \beta_1)\,\alpha} .",
)
@pytest.mark.parametrize("h", [0.01, 20.0])
@pytest.mark.parametrize("beta1", [0.5, 0.9])
def test_cycle_of_adam(h: float, beta1: float) -> None:
    a = ALPHA * (1 - beta1) / (2 * (1 + beta1))
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = Adam([theta], lr=ALPHA, betas=(beta1, 0.999), eps=0.0)
    theta.grad = torch.ones_like(theta)
    optimizer.step()
    with torch.no_grad():
        theta.fill_(a)
    state = optimizer.state[theta]
    state["step"].fill_(10**6)
    state["exp_avg"].fill_(-h * a * (1 - beta1) / (1 + beta1))
    state["exp_avg_sq"].fill_((h * a) ** 2)
    for t in range(1, 21):
        theta.grad = h * theta.detach()
        optimizer.step()
        assert theta.item() == pytest.approx((-1) ** t * a, rel=1e-9)
        edge = (2 + 2 * beta1) / ((1 - beta1) * ALPHA)
        assert h * optimizer.preconditioner(theta).item() == pytest.approx(edge, rel=1e-9)


def test_the_notebooks_probe_finds_the_largest_eigenvalue() -> None:
    """In modulus; with a preconditioner and without, of two runs at once, against all eigenvalues."""
    notebook = jupytext.read(ROOT / "notebooks" / "edge.py")
    cell = next(cell.source for cell in notebook.cells if "class Probe" in cell.source)
    names: dict[str, Any] = {"torch": torch}
    exec(cell.partition("def train(")[0].replace("def network(", "def _network("), names)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    params = [random(2, 3, 4), random(2, 1, 4), random(2, 4, 1), random(2, 1, 1)]
    x, y = random(2, 20, 3), random(2, 20, 1)
    sizes = [p[0].numel() for p in params]
    for preconditioner in (None, [random(*p.shape).exp() for p in params]):
        live = [p.clone().requires_grad_() for p in params]
        probe = names["Probe"](live)
        for _ in range(200):
            found = probe(live, x, y, preconditioner)
        for run in range(2):

            def loss(flat: Tensor, run: int = run) -> Tensor:
                parts = [v.view(p[:1].shape) for v, p in zip(flat.split(sizes), params, strict=True)]
                total: Tensor = names["loss_of"](parts, x[run : run + 1], y[run : run + 1]).sum()
                return total

            hessian = torch.func.hessian(loss)(torch.cat([p[run].flatten() for p in params]))
            if preconditioner:
                root = torch.cat([d[run].flatten() for d in preconditioner]).sqrt()
                hessian = root[:, None] * hessian * root
            every = torch.linalg.eigvalsh(hessian)
            largest = every[every.abs().argmax()].item()
            assert found[run].item() == pytest.approx(largest, rel=1e-6)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
