"""Every displayed equation of the gradient-noise chapter, evaluated against the code or an independent computation.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches, and
a translation that does not agree with the package fails.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments import models
from experiments.problems import Quadratic
from optimizers import SGD, Adam, GradientNoise
from optimizers.engine.random import _mix, normal, uniform

from .equations import Chapter

CHAPTER = Chapter("regularization/gradient_noise")
equation = CHAPTER.equation
ALPHA, ETA, GAMMA = 0.1, 0.3, 0.55


def noise_alone(rule: type, eta: float, steps: int, coordinates: int, **options: float) -> Tensor:
    """θ_1, …, θ_T from 0 where the gradient is 0, float64, shape (T, coordinates)."""
    theta = torch.zeros(coordinates, dtype=torch.float64, requires_grad=True)
    optimizer = rule([theta], lr=ALPHA, extensions=[GradientNoise(eta, GAMMA)], **options)
    points = []
    for _ in range(steps):
        theta.grad = torch.zeros_like(theta)
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


def near(actual: Tensor | float, expected: Tensor | float, coordinates: int) -> bool:
    """A sample variance within five of its standard deviations, √(2/N), of the true one."""
    return abs(float(actual) / float(expected) - 1) < 5 * math.sqrt(2 / coordinates)


@equation(
    "eq-gradient-noise-two",
    r"f(w_1, w_2) = \tfrac12\,(1 - w_1 w_2)^2, \qquad"
    r" \nabla f = -(1 - w_1 w_2) \begin{pmatrix} w_2 \\ w_1 \end{pmatrix} .",
)
def test_two_weights() -> None:
    w = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(0.5 * (1 - w[0] * w[1]) ** 2, w)
    torch.testing.assert_close(gradient, -(1 - w[0] * w[1]) * w.flip(0))
    # At the origin it vanishes, and the loss falls in two directions: both signs of the diagonal.
    hessian = torch.autograd.functional.hessian(
        lambda v: 0.5 * (1 - v[0] * v[1]) ** 2, torch.zeros(2, dtype=torch.float64)
    )
    assert torch.linalg.eigvalsh(hessian).tolist() == pytest.approx([-1, 1])


@equation(
    "eq-gradient-noise",
    r"g_t \leftarrow g_t + \mathcal N(0, \sigma_t^2 I), \qquad \sigma_t^2 = \frac{\eta}{t^{\,\gamma}} .",
)
def test_rule() -> None:
    count = 200_000
    path = noise_alone(SGD, ETA, 20, count)
    steps = -torch.diff(path, dim=0, prepend=torch.zeros(1, count, dtype=torch.float64)) / ALPHA
    for t in (1, 2, 20):
        assert near(steps[t - 1].var(), ETA / t**GAMMA, count)
        # It is √(η / t^γ) times the generator's own numbers, to float32: normal, and independent from step to step.
        drawn = math.sqrt(ETA / t**GAMMA) * normal(0, 0, float(t), torch.arange(count))
        torch.testing.assert_close(steps[t - 1], drawn.double(), rtol=1e-5, atol=1e-6)
    assert abs(torch.corrcoef(steps[:2])[0, 1]) < 5 / math.sqrt(count)


@equation(
    "eq-gradient-noise-escape",
    r"\operatorname{Var}[y_T] = \alpha^2 \sum_{t=1}^{T} (1+\alpha)^{2(T-t)}\, \sigma_t^2 .",
)
def test_escape() -> None:
    count, steps, eta = 100_000, 12, 1e-6
    w = torch.zeros(count, 2, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([w], lr=ALPHA, extensions=[GradientNoise(eta, GAMMA)])
    for _ in range(steps):
        here = w.detach()
        w.grad = -(1 - here.prod(1, keepdim=True)) * here.flip(1)
        optimizer.step()
    along, across = w.detach().sum(1) / math.sqrt(2), (w.detach()[:, 0] - w.detach()[:, 1]) / math.sqrt(2)

    def grown(factor: float) -> float:
        return ALPHA**2 * sum(factor ** (2 * (steps - t)) * eta / t**GAMMA for t in range(1, steps + 1))

    assert near(along.var(), grown(1 + ALPHA), count)
    assert near(across.var(), grown(1 - ALPHA), count)
    # The sentence that follows: a hundredth of the noise costs this many steps.
    assert math.log(100) / (2 * math.log(1 + 0.1)) == pytest.approx(24, abs=0.5)


@equation(
    "eq-gradient-noise-backprop",
    r"\begin{gathered} \delta_{L+1} = p - y, \qquad"
    r" \delta_l = \bigl(W_{l+1}^\top\, \delta_{l+1}\bigr) \odot \mathbf 1[z_l > 0], \\"
    r" \frac{\partial f}{\partial W_l} = \delta_l\, h_{l-1}^\top, \qquad"
    r" \frac{\partial f}{\partial b_l} = \delta_l . \end{gathered}",
)
@equation(
    "eq-gradient-noise-stuck",
    r"\begin{gathered} \frac{\partial f}{\partial W_1} = \dots = \frac{\partial f}{\partial W_{L+1}} = 0, \\"
    r" \frac{\partial f}{\partial b_1} = \dots = \frac{\partial f}{\partial b_L} = 0, \qquad"
    r" \frac{\partial f}{\partial b_{L+1}} = p - y . \end{gathered}",
)
@pytest.mark.parametrize("zero", [False, True])
def test_backpropagation(zero: bool) -> None:
    model = models.mlp(6, (5, 4, 3), 3, seed=0).double()
    linear = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
    image = torch.linspace(-1, 1, 6, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0 if zero else 1)
        linear[-1].bias.copy_(torch.tensor([0.3, -0.2, 0.1]))  # wherever the last bias has moved
    torch.nn.functional.cross_entropy(model(image[None]), torch.tensor([1])).backward()

    with torch.no_grad():
        h, z = [image], []
        for layer in linear:
            z.append(layer.weight @ h[-1] + layer.bias)
            h.append(z[-1].clamp(min=0))
        p, y = z[-1].softmax(0), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        delta = p - y
        for i in reversed(range(len(linear))):
            torch.testing.assert_close(linear[i].weight.grad, torch.outer(delta, h[i]))
            torch.testing.assert_close(linear[i].bias.grad, delta)
            if zero:
                assert linear[i].weight.grad.abs().max() == 0
                assert i == len(linear) - 1 or linear[i].bias.grad.abs().max() == 0
            if i:
                delta = (linear[i].weight.T @ delta) * (z[i - 1] > 0)
        if zero:
            torch.testing.assert_close(linear[-1].bias.grad, p - y)
            assert (p - y).abs().min() > 0.1


@equation(
    "eq-gradient-noise-gain",
    r"\mathbb{E}\,\lVert h_l \rVert^2 = \frac{n s^2}{2}\, \lVert h_{l-1} \rVert^2 ,",
)
def test_gain_of_a_layer() -> None:
    n, s, draws = 50, 0.13, 4000
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(n, dtype=torch.float64, generator=generator)
    weights = s * torch.randn(draws, n, n, dtype=torch.float64, generator=generator)
    after = (weights @ before).clamp(min=0).square().sum(1) / before.square().sum()
    # Per unit: a half of χ²₁, whose square has the mean 3/2, so the variance 5/4, times s⁴.
    bound = 5 * math.sqrt(n * s**4 * 5 / 4 / draws)
    assert abs(after.mean().item() - n * s**2 / 2) < bound
    backward = (torch.rand(draws, n, generator=generator) < 0.5) * (weights.transpose(1, 2) @ before)
    assert abs((backward.square().sum(1) / before.square().sum()).mean().item() - n * s**2 / 2) < bound
    assert math.sqrt(2 / 50) == pytest.approx(0.2)  # the paper's network
    simple = 50 * 0.1**2 / 2
    assert simple == pytest.approx(1 / 4)  # its simple initialization


@equation(
    "eq-gradient-noise-walk",
    r"\operatorname{Var}[\theta_T] = \alpha^2 \sum_{t=1}^{T} \sigma_t^2 \approx"
    r" \frac{\alpha^2\, \eta}{1-\gamma}\; T^{\,1-\gamma} .",
)
@equation(
    "eq-gradient-noise-time",
    r"T^* = \left( \frac{2\,(1-\gamma)}{n\, \alpha^2\, \eta} \right)^{1/(1-\gamma)}",
)
def test_walk() -> None:
    count = 20_000
    path = noise_alone(SGD, ETA, 300, count)
    for t in (1, 30, 300):
        exact = ALPHA**2 * sum(ETA / s**GAMMA for s in range(1, t + 1))
        assert near(path[t - 1].var(), exact, count)
    # The sum and its approximation, at the length of the paper's runs.
    for steps in (4_000, 100_000):
        total = 0.03 * (np.arange(1, steps + 1) ** -GAMMA).sum()
        assert 0.03 * steps ** (1 - GAMMA) / (1 - GAMMA) == pytest.approx(total, rel=0.025)
    assert 0.1 * math.sqrt(0.03 * (np.arange(1, 4001) ** -GAMMA).sum()) == pytest.approx(0.165, abs=5e-4)
    n, eta = 50, 0.01
    time = (2 * (1 - GAMMA) / (n * ALPHA**2 * eta)) ** (1 / (1 - GAMMA))
    assert ALPHA**2 * eta / (1 - GAMMA) * time ** (1 - GAMMA) == pytest.approx(2 / n)
    # The numbers of the first exercise.
    assert time == pytest.approx(103_000, rel=0.01)
    share, slower = (2 / 3) ** (2 / (1 - GAMMA)), 100 ** (1 / (1 - GAMMA))
    assert share == pytest.approx(0.165, abs=5e-4)
    assert slower == pytest.approx(28_000, rel=0.01)


@equation(
    "eq-gradient-noise-bowl",
    r"\frac{h}{2}\, V_t \approx \frac{\alpha\, \sigma_t^2}{2\,(2 - \alpha h)} .",
)
def test_bowl() -> None:
    count, alpha, horizon = 20_000, 0.05, 600
    bowl = Quadratic(start=(0.0, 0.0))
    theta = torch.zeros(count, 2, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([theta], lr=alpha, extensions=[GradientNoise(ETA, GAMMA)])
    h = bowl.eigenvalues
    variance = torch.zeros(2, dtype=torch.float64)
    for t in range(1, horizon + 1):
        theta.grad = bowl.gradient(theta.detach())
        optimizer.step()
        variance = (1 - alpha * h) ** 2 * variance + alpha**2 * ETA / t**GAMMA
    for i in (0, 1):
        assert near(theta.detach()[:, i].var(), variance[i], count)  # the recursion above the equation
    floor = alpha * ETA / horizon**GAMMA / (2 * (2 - alpha * h))
    torch.testing.assert_close(h / 2 * variance, floor, rtol=0.02, atol=0)


@equation(
    "eq-gradient-noise-adam",
    r"D_t(g_1, \dots, g_t) = D_t\bigl(n_1,\ 2^{-\gamma/2}\, n_2,\ \dots,\ t^{-\gamma/2}\, n_t\bigr)",
)
def test_adam_divides_the_noise_away() -> None:
    quiet, loud = (noise_alone(Adam, eta, 400, 2_000, eps=0.0) for eta in (0.01, 1.0))
    torch.testing.assert_close(quiet, loud, rtol=1e-5, atol=1e-5)  # the noise is drawn in float32
    theta = torch.zeros(2_000, dtype=torch.float64, requires_grad=True)
    optimizer = Adam([theta], lr=ALPHA, eps=0.0)
    for t in range(1, 401):
        theta.grad = t ** (-GAMMA / 2) * normal(0, 0, float(t), torch.arange(2_000)).double()
        optimizer.step()
    torch.testing.assert_close(theta.detach(), loud[-1], rtol=1e-5, atol=1e-5)
    # About α√T, and less rather than more; SGD is far behind.
    assert 0.7 < loud[-1].std().item() / (ALPHA * math.sqrt(400)) < 1
    assert noise_alone(SGD, 0.01, 400, 2_000)[-1].std() < 0.1 * loud[-1].std()


def rounds(x: int) -> int:
    a, b = 0x7FEB352D, 0x846CA68B
    x = x ^ x >> 16
    x = a * x % 2**32
    x = x ^ x >> 15
    x = b * x % 2**32
    return x ^ x >> 16


@equation(
    "eq-gradient-noise-hash",
    r"\begin{gathered} x \leftarrow x \oplus (x \gg 16), \quad x \leftarrow a\,x, \quad"
    r" x \leftarrow x \oplus (x \gg 15), \\ x \leftarrow b\,x, \quad x \leftarrow x \oplus (x \gg 16)"
    r" \end{gathered}",
)
def test_hash() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (2_000,), generator=generator).to(torch.int32)
    assert [y % 2**32 for y in _mix(x).tolist()] == [rounds(y % 2**32) for y in x.tolist()]
    # One bit changed changes each bit of the result in about half of all cases.
    for bit in range(32):
        changed = _mix(x) ^ _mix(x ^ torch.tensor(2**bit - (2**32 if bit == 31 else 0), dtype=torch.int32))
        share = ((changed[:, None] >> torch.arange(32)) & 1).double().mean(0)
        assert (share - 0.5).abs().max() < 0.08
    # Each step can be undone: odd multipliers have an inverse modulo 2³².
    assert all(pow(factor, -1, 2**32) * factor % 2**32 == 1 for factor in (0x7FEB352D, 0x846CA68B))


@equation("eq-gradient-noise-normal", r"\sqrt{-2 \ln(1-u)}\; \cos(2\pi v) .")
def test_box_muller() -> None:
    coordinate = torch.arange(5_000)
    u, v = (uniform(3, 1, 7, coordinate, stream).double() for stream in (0, 1))
    expected = torch.sqrt(-2 * torch.log(1 - u)) * torch.cos(2 * math.pi * v)
    torch.testing.assert_close(normal(3, 1, 7, coordinate, 0).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
