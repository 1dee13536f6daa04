"""Every displayed equation of the chapter on convex-like learning, evaluated against independent computations.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches,
and a translation that does not agree with the code fails. Everything is float64. The Jacobian, which the chapter
prints, is the notebook's own function, taken from its file.
"""

import ast
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import least_squares  # type: ignore[import-untyped]
from torch import Tensor

from optimizers import SGD

from .conftest import ROOT
from .equations import Chapter

CHAPTER = Chapter("why/convex_like")
equation = CHAPTER.equation


def notebook() -> SimpleNamespace:
    """`forward`, `jacobian` and `gradient` of the notebook, without running its experiments."""
    tree = ast.parse((ROOT / "notebooks/convex_like.py").read_text(encoding="utf-8"))
    names = {"forward", "jacobian", "gradient", "levenberg"}
    body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert {node.name for node in body} == names  # type: ignore[attr-defined]
    place = {"torch": torch, "INPUTS": 5, "EXAMPLES": 4}
    exec(compile(ast.Module(body, []), "notebooks/convex_like.py", "exec"), place)
    return SimpleNamespace(**{name: place[name] for name in names})


NOTEBOOK = notebook()


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def close(actual: Tensor | float, expected: Tensor | float, rtol: float = 1e-10, atol: float = 1e-13) -> None:
    actual, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (actual, expected))
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=rtol, atol=atol)


def network(examples: int = 4, width: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """θ of shape (7 width + 1,), X of shape (n, 5), y of shape (n,)."""
    g = torch.Generator().manual_seed(seed)
    theta = torch.randn(7 * width + 1, generator=g, dtype=torch.float64)
    x = torch.randn(examples, 5, generator=g, dtype=torch.float64)
    return theta, x, torch.randn(examples, generator=g, dtype=torch.float64)


def outputs(theta: Tensor, x: Tensor) -> Tensor:
    """The network neuron by neuron, apart from the notebook's code: z = Σ v tanh(w·x + b) + a."""
    width = (len(theta) - 1) // 7
    w, b, v, a = theta[: 5 * width], theta[5 * width : 6 * width], theta[6 * width : 7 * width], theta[-1]
    return sum(v[k] * torch.tanh(x @ w[5 * k : 5 * k + 5] + b[k]) for k in range(width)) + a


def autograd_jacobian(theta: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda t: outputs(t, x), theta)


def flow(slope: Callable[[Tensor], Tensor], theta: Tensor, until: float, steps: int) -> list[Tensor]:
    """dθ/dt = slope(θ) by the classical Runge–Kutta method: θ at steps + 1 equal distances."""
    path, dt = [theta], until / steps
    for _ in range(steps):
        a = slope(theta)
        b = slope(theta + dt / 2 * a)
        c = slope(theta + dt / 2 * b)
        theta = theta + dt / 6 * (a + 2 * b + 2 * c + slope(theta + dt * c))
        path.append(theta)
    return path


def trapezoid(values: list[float], dt: float) -> float:
    return dt * (sum(values) - (values[0] + values[-1]) / 2)


@equation(
    "eq-convex-loss",
    r"f(\theta) = \ell(z(\theta)), \qquad \ell(z) = \tfrac12 \lVert z - y \rVert^2 .",
)
@equation(
    "eq-convex-chain",
    r"\nabla f(\theta) = J^\top\, \nabla\ell(z), \qquad J_{ij} = \frac{\partial z_i}{\partial \theta_j} .",
)
def test_the_notebooks_jacobian_and_gradient() -> None:
    theta, x, y = network()
    close(NOTEBOOK.forward(theta, x)[0], outputs(theta, x))
    close(NOTEBOOK.jacobian(theta, x), autograd_jacobian(theta, x))
    loss, grad = NOTEBOOK.gradient(theta, x, y)
    close(loss, 0.5 * (outputs(theta, x) - y).square().sum())
    t = theta.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(0.5 * (outputs(t, x) - y).square().sum(), t)
    close(grad, by_autograd)
    close(NOTEBOOK.jacobian(theta, x).T @ (outputs(theta, x) - y), by_autograd)
    close(torch.func.jacrev(lambda t: outputs(t, x))(theta), NOTEBOOK.jacobian(theta, x))  # the page's table
    # and the package's step is this gradient times α
    t.grad = grad
    SGD([t], lr=0.5).step()
    close(t.detach(), theta - 0.5 * NOTEBOOK.jacobian(theta, x).T @ (outputs(theta, x) - y))


@equation(
    "eq-convex-stationary",
    r"\operatorname{rank} J = n, \quad \nabla f(\theta) = 0 \qquad\Longrightarrow\qquad \nabla\ell(z) = 0 .",
)
def test_full_rank_takes_all_residuals_to_the_gradient() -> None:
    theta, x, _ = network(examples=4, width=3)
    J = NOTEBOOK.jacobian(theta, x)
    assert torch.linalg.matrix_rank(J) == 4
    # Jᵀu = 0 has the solution 0 alone: u can be had back from Jᵀu.
    u = torch.tensor([1.0, -2.0, 0.5, 3.0])
    close(torch.linalg.lstsq(J.T, (J.T @ u)[:, None]).solution[:, 0], u)
    # With fewer weights than examples (8 < 12) there is a residual without any gradient.
    theta, x, _ = network(examples=12, width=1)
    J = NOTEBOOK.jacobian(theta, x)
    u = torch.linalg.svd(J)[0][:, -1]
    assert NOTEBOOK.gradient(theta, x, outputs(theta, x) - u)[1].norm() < 1e-13 < 1 == round(float(u.norm()), 9)


def test_a_split_neuron_is_a_stationary_point_that_lacks_rank() -> None:
    """The construction of the second experiment, exactly: labels chosen so that one neuron is stationary."""
    small, x, _ = network(examples=12, width=1)
    u = torch.linalg.svd(NOTEBOOK.jacobian(small, x))[0][:, -1]
    y = outputs(small, x) - u
    shares = torch.tensor([0.2, 0.5, 0.3])
    large = torch.cat([small[:5].repeat(3), small[5:6].repeat(3), small[6] * shares, small[7:]])
    loss, grad = NOTEBOOK.gradient(large, x, y)
    assert len(large) == 22 > 12
    assert grad.norm() < 1e-13
    close(loss, 0.5)
    assert torch.linalg.matrix_rank(NOTEBOOK.jacobian(large, x)) == 8 < 12


@equation(
    "eq-convex-polyak",
    r"s_{\min}^2 \;\le\; \frac{\lVert \nabla f(\theta)\rVert^2}{2 f(\theta)} \;\le\; s_{\max}^2 .",
)
def test_polyak() -> None:
    for seed in range(20):
        theta, x, y = network(seed=seed)
        loss, grad = NOTEBOOK.gradient(theta, x, y)
        s = torch.linalg.svdvals(NOTEBOOK.jacobian(theta, x))
        assert s[-1] ** 2 <= grad.square().sum() / (2 * loss) <= s[0] ** 2
    # Both ends are met, by a residual along a singular vector.
    left, s, _ = torch.linalg.svd(NOTEBOOK.jacobian(theta, x), full_matrices=False)
    for k in (0, -1):
        loss, grad = NOTEBOOK.gradient(theta, x, outputs(theta, x) - left[:, k])
        close(grad.square().sum() / (2 * loss), s[k] ** 2)


@equation("eq-convex-kernel", r"\dot z = -J J^\top\, \nabla\ell(z) ,")
@equation(
    "eq-convex-rate",
    r"f(\theta(t)) \;\le\; f(\theta(0))\, \exp\Bigl(-2 \int_0^t s_{\min}^2\, d\tau\Bigr) .",
)
def test_flow() -> None:
    theta, x, y = network(width=6, seed=3)
    path = flow(lambda t: -NOTEBOOK.gradient(t, x, y)[1], theta, until=1.0, steps=400)
    J = NOTEBOOK.jacobian(theta, x)
    dt = 1e-5
    after = flow(lambda t: -NOTEBOOK.gradient(t, x, y)[1], theta, until=dt, steps=1)[-1]
    before = flow(lambda t: NOTEBOOK.gradient(t, x, y)[1], theta, until=dt, steps=1)[-1]
    speed = (outputs(after, x) - outputs(before, x)) / (2 * dt)
    close(speed, -J @ J.T @ (outputs(theta, x) - y), rtol=1e-5)
    rates = [float(torch.linalg.svdvals(NOTEBOOK.jacobian(t, x))[-1]) ** 2 for t in path]
    start = NOTEBOOK.gradient(theta, x, y)[0]
    for k in (100, 200, 400):
        bound = start * math.exp(-2 * trapezoid(rates[: k + 1], 1 / 400))
        assert NOTEBOOK.gradient(path[k], x, y)[0] <= bound < 0.999 * start


@equation(
    "eq-convex-step",
    r"f(\theta_t) \;\le\; (1 - \alpha\, s_{\min}^2)\, f(\theta_{t-1}) \qquad\text{for } \alpha \le \frac1\beta ,",
)
def test_step() -> None:
    theta, x, y = network(width=6, seed=1)
    hessian = torch.func.hessian(lambda t: 0.5 * (outputs(t, x) - y).square().sum())
    for _ in range(12):
        loss, grad = NOTEBOOK.gradient(theta, x, y)
        curvature = float(torch.linalg.eigvalsh(hessian(theta)).abs().max())
        lr = 0.5 / curvature
        between = [hessian(theta - share * lr * grad) for share in torch.linspace(0, 1, 5)]
        beta = max(float(torch.linalg.eigvalsh(h)[-1]) for h in between)
        assert lr <= 1 / beta
        s = torch.linalg.svdvals(NOTEBOOK.jacobian(theta, x))[-1]
        theta = theta - lr * grad
        after = NOTEBOOK.gradient(theta, x, y)[0]
        assert after <= loss - lr * (1 - lr * beta / 2) * grad.square().sum() + 1e-13
        assert after <= (1 - lr * s**2) * loss


def silu(theta: Tensor) -> tuple[Tensor, Tensor]:
    gate = 1 / (1 + torch.exp(-theta))
    return theta * gate, gate * (1 + theta * (1 - gate))


@equation(
    "eq-convex-silu",
    r"z = \theta\,\varsigma(\theta), \qquad J = z'(\theta) = \varsigma(\theta)\,\bigl(1 + \theta\,(1 -"
    r" \varsigma(\theta))\bigr) .",
)
def test_neuron() -> None:
    theta = torch.linspace(-8, 3, 100).requires_grad_()
    z = torch.nn.functional.silu(theta)
    (slope,) = torch.autograd.grad(z.sum(), theta)
    close(silu(theta)[0], z)
    close(silu(theta)[1], slope)
    # rank is lost at one point, and the solution is its mirror image (the second exercise)
    low, high = torch.tensor(-2.0), torch.tensor(-1.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if silu(middle)[1] > 0 else (middle, high)
    close(high, -1.278, atol=1e-3)
    close(silu(-high)[0], 1.0)
    far = torch.linspace(-30, float(low) - 1e-6, 1000)
    assert (silu(far)[1] < 0).all()
    assert (silu(far)[0] < 0).all()
    # to the left of it every step of the package goes left, at any learning rate, and the loss stays above ½
    for lr in (0.1, 1.0, 10.0):
        weight = torch.tensor([-1.6], requires_grad=True)
        optimizer, last = SGD([weight], lr=lr), -1.6
        for _ in range(300):
            optimizer.zero_grad()
            loss = 0.5 * (torch.nn.functional.silu(weight) - 1) ** 2
            loss.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            assert loss > 0.5
            assert weight.item() < last
            last = weight.item()


@equation(
    "eq-convex-finite",
    r"\int_0^\infty z'(\theta(t))^2\, dt = \int_{\theta(0)}^{-\infty} \frac{z'}{1-z}\, d\theta ="
    r" \ln\bigl(1 - z(\theta(0))\bigr) .",
)
def test_the_neurons_integral_is_finite() -> None:
    start, dt = torch.tensor(-1.6), 0.05
    path = torch.stack(flow(lambda t: (1 - silu(t)[0]) * silu(t)[1], start, until=200.0, steps=4_000))
    z, slope = silu(path)
    until = trapezoid((slope**2).tolist(), dt)
    # up to a time: ln(1 − z(0)) − ln(1 − z(t)), of which the last term fades
    close(until, ((1 - z[0]) / (1 - z[-1])).log(), rtol=1e-4)
    assert 0 < (1 - z[-1]).log() < 0.1 * until
    # for one output the rate is an equality
    close((1 - z[-1]) ** 2 / 2, (1 - z[0]) ** 2 / 2 * math.exp(-2 * until), rtol=1e-4)
    below = torch.linspace(-60, -1.6, 20_001)
    z, slope = silu(below)
    close(trapezoid((-slope / (1 - z)).tolist(), float(below[1] - below[0])), (1 - silu(start)[0]).log(), rtol=1e-6)


@equation(
    "eq-convex-close",
    r"s_{\min} \;\le\; \lVert J^\top u \rVert = \frac{\lVert J_1 - J_2 \rVert}{\sqrt2} .",
)
def test_twins() -> None:
    theta, x, _ = network(width=20)
    smallest = []
    for distance in (1e-1, 1e-2, 1e-3):
        x[1] = x[0] + distance * torch.tensor([0.6, 0.0, 0.8, 0.0, 0.0])
        J = NOTEBOOK.jacobian(theta, x)
        u = torch.tensor([1.0, -1.0, 0.0, 0.0]) / math.sqrt(2)
        close((J.T @ u).norm(), (J[0] - J[1]).norm() / math.sqrt(2))
        smallest.append(float(torch.linalg.svdvals(J)[-1]))
        assert 0 < smallest[-1] <= (J.T @ u).norm()
    assert smallest[1] / smallest[2] == pytest.approx(
        10, rel=0.1
    )  # s_min goes with the distance, the rate with its square


def coefficients(theta: Tensor) -> Tensor:
    """A model whose function is a finite Fourier sum: 11 coefficients that depend on 7 weights, not linearly."""
    angles = torch.outer(torch.arange(1.0, 12.0), torch.linspace(0.3, 1.7, 7))
    return torch.tanh(torch.sin(angles) @ theta) + 0.1 * (torch.cos(angles) @ theta.square())


def basis(x: Tensor) -> Tensor:
    """1, cos kx and sin kx for k up to 5, shape (n, 11)."""
    waves = torch.outer(x, torch.arange(1.0, 6.0))
    return torch.cat([torch.ones(len(x), 1), torch.cos(waves), torch.sin(waves)], dim=1)


@equation(
    "eq-convex-canonical",
    r"z_i = \sum_k c_k(\theta)\, \varphi_k(x_i), \qquad \nabla_\theta f = D\, \nabla_c Q, \qquad"
    r" D_{jk} = \frac{\partial c_k}{\partial\theta_j} ,",
)
@equation("eq-convex-factor", r"J^\top = D\, \Phi^\top .")
def test_the_canonical_space() -> None:
    x, y = torch.linspace(-2, 2.5, 6), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    theta = torch.linspace(-0.5, 0.7, 7).requires_grad_()
    phi = basis(x)
    D = torch.autograd.functional.jacobian(coefficients, theta).T
    J = torch.autograd.functional.jacobian(lambda t: phi @ coefficients(t), theta)
    close(J.T, D @ phi.T)
    c = coefficients(theta).detach().requires_grad_()
    (by_c,) = torch.autograd.grad(0.5 * (phi @ c - y).square().sum(), c)
    (by_theta,) = torch.autograd.grad(0.5 * (phi @ coefficients(theta) - y).square().sum(), theta)
    close(D @ by_c, by_theta)
    # Q is convex: its Hessian is ΦᵀΦ. And with 7 weights for 11 coefficients, D u = 0 has solutions (exercise 4).
    hessian = torch.func.hessian(lambda c: 0.5 * (phi @ c - y).square().sum())(c.detach())
    assert torch.linalg.eigvalsh(hessian)[0] > -1e-12
    assert D.shape == (7, 11)
    u = torch.linalg.svd(D)[2][-1]
    assert (D @ u).norm() < 1e-12
    assert torch.linalg.matrix_rank(J) == 6  # and J is of full rank nevertheless


@equation("eq-convex-linear", r"z_t - y = (I - \alpha J J^\top)^t\, (z_0 - y) .")
def test_linearization() -> None:
    theta, x, y = network(width=6, seed=2)
    J, z = NOTEBOOK.jacobian(theta, x), outputs(theta, x)
    lr = float(torch.linalg.svdvals(J)[0]) ** -2
    moved = theta.clone().requires_grad_()
    optimizer = SGD([moved], lr=lr)
    for _ in range(30):
        residual = z + J @ (moved.detach() - theta) - y
        moved.grad = J.T @ residual
        optimizer.step()
    expected = torch.linalg.matrix_power(torch.eye(4) - lr * J @ J.T, 30) @ (z - y)
    close(z + J @ (moved.detach() - theta) - y, expected)
    # its curvatures are the squares of the singular values, and d − n zeros
    hessian = torch.func.hessian(lambda t: 0.5 * (z + J @ (t - theta) - y).square().sum())(theta)
    values = torch.linalg.eigvalsh(hessian).flip(0)
    close(values[:4], torch.linalg.svdvals(J) ** 2)
    close(values[4:], 0.0, atol=1e-11)


@equation(
    "eq-convex-lm",
    r"\theta_t = \theta_{t-1} - J^\top (JJ^\top + \delta I)^{-1} (z - y)",
)
def test_levenberg_and_marquardt() -> None:
    theta, x, y = network(width=6, seed=4)
    J, residual = NOTEBOOK.jacobian(theta, x), outputs(theta, x) - y
    damping = 0.01
    step = J.T @ torch.linalg.solve(J @ J.T + damping * torch.eye(4), residual)
    # the same as the form with a d × d matrix, which textbooks have
    close(step, torch.linalg.solve(J.T @ J + damping * torch.eye(len(theta)), J.T @ residual), rtol=1e-8)
    first = NOTEBOOK.levenberg(theta[None], x[None], y[None], most=1)[0][0]
    close(first, theta - step)  # the notebook starts with this damping, and here it accepts the step
    # with little damping the residual goes at once, to first order, whatever the singular values
    tiny = J.T @ torch.linalg.solve(J @ J.T + 1e-12 * torch.eye(4), residual)
    close(J @ tiny, residual, rtol=1e-6)
    final, history = NOTEBOOK.levenberg(theta[None], x[None], y[None])
    assert history[0] > 1e-2 > 1e-20 > NOTEBOOK.gradient(final, x[None], y[None])[0]


def test_scipys_method_refuses_more_weights_than_examples() -> None:
    with pytest.raises(ValueError, match="less than the number of variables"):
        least_squares(lambda theta: theta[:1] ** 2 - 1, [0.5, 0.5], method="lm")


def test_two_weights_in_a_row() -> None:
    """The first exercise: full rank at every moment, and the loss goes to ½."""
    a = flow(lambda a: -(1 + a * a) * a, torch.tensor(1.0), until=20.0, steps=1000)
    assert all(0 < after < before for before, after in pairwise(a))
    theta = torch.tensor([0.7, -0.7], requires_grad=True)
    (grad,) = torch.autograd.grad(0.5 * (theta[0] * theta[1] - 1) ** 2, theta)
    close(-grad, torch.tensor([-1.0, 1.0]) * (1 + 0.49) * 0.7)
    assert 0.5 * (-a[-1] * a[-1] - 1) ** 2 == pytest.approx(0.5, abs=1e-6)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
