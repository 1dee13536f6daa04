"""Every displayed equation of the AdamW chapter, as it stands on the page, evaluated against the code.

Each test holds the equation's LaTeX beside its translation: a formula changed in the chapter no longer matches,
and a translation that does not agree with the package fails. Everything is float64.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiments.problems import Quadratic
from optimizers import SGD, SGDW, Adam, AdamW, Chain, Place, Stage
from optimizers.weight_decay import L2, DecoupledWeightDecay

from .equations import Chapter

CHAPTER = Chapter("regularization/adamw")
equation = CHAPTER.equation
ALPHA, DECAY, BETA1, BETA2, EPS = 0.02, 0.03, 0.8, 0.95, 1e-3


def gradients(steps: int = 12) -> Tensor:
    """g_1, …, g_steps of shape (steps, 3)."""
    return torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def start() -> Tensor:
    return torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def run(make: Callable[..., Chain], g: Tensor, theta: Tensor, eta: Callable[[int], float] | None = None) -> Tensor:
    """θ_0, …, θ_T on the gradients g, the learning rate multiplied by η_t; shape (T + 1, n)."""
    theta = theta.clone().requires_grad_()
    optimizer = make([theta])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: eta(t + 1)) if eta else None
    points = [theta.detach().clone()]
    for gradient in g:
        theta.grad = gradient.clone()
        optimizer.step()
        if scheduler:
            scheduler.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


def eta(t: int) -> float:
    """A schedule with η_1 = 1."""
    return 1 / (1 + 0.3 * (t - 1))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)


class Preconditioner(Stage):
    """d_t = M g_t with M = diag(s)^{-1}, one s per parameter group."""

    place = Place.DIRECTION
    ranges = {"s": "(0, inf)"}

    def __init__(self, s: float = 1.0) -> None:
        super().__init__(s=s)

    @staticmethod
    def update(grad: Tensor, s: float) -> Tensor:
        return grad / s


@equation("eq-adamw-penalty", r"g_t \leftarrow g_t + \lambda'\, \theta_{t-1} .")
def test_penalty() -> None:
    g, penalty = gradients(), 0.7
    for rule in (SGD, Adam):
        theta = start()
        with_penalty = run(lambda p, rule=rule: rule(p, lr=ALPHA, weight_decay=penalty), g, theta)
        changed = g + penalty * with_penalty[:-1]
        close(run(lambda p, rule=rule: rule(p, lr=ALPHA), changed, theta), with_penalty)


@equation(
    "eq-adamw-bowl",
    r"h_i \theta_i + \lambda'\theta_i = \Bigl(1 + \frac{\lambda'}{h_i}\Bigr)\, h_i \theta_i :",
)
def test_on_the_bowl_the_penalty_is_a_constant_factor() -> None:
    bowl, penalty = Quadratic(), 2.5
    theta, h = bowl.initial(), bowl.eigenvalues
    close(L2.update(bowl.gradient(theta), theta, penalty), (1 + penalty / h) * h * theta)
    theta = theta.requires_grad_()
    penalized = bowl.loss(theta) + penalty / 2 * (theta**2).sum()
    (grad,) = torch.autograd.grad(penalized, theta)
    close(grad, (1 + penalty / h) * h * theta.detach())


@equation(
    "eq-adamw-sgd",
    r"\theta_t = \theta_{t-1} - \alpha\,(g_t + \lambda'\theta_{t-1})"
    r" = (1 - \alpha\lambda')\,\theta_{t-1} - \alpha\, g_t .",
)
def test_for_sgd_the_penalty_is_decay() -> None:
    g, penalty = gradients(), 0.7
    theta = run(lambda p: SGD(p, lr=ALPHA, weight_decay=penalty), g, start())
    close(theta[1:], theta[:-1] - ALPHA * (g + penalty * theta[:-1]))
    close(theta[1:], (1 - ALPHA * penalty) * theta[:-1] - ALPHA * g)
    close(theta, run(lambda p: SGDW(p, lr=ALPHA, weight_decay=ALPHA * penalty), g, start()))


@equation(
    "eq-adamw-preconditioned",
    r"\theta_t = \theta_{t-1} - \alpha M_t\,(g_t + \lambda'\theta_{t-1})"
    r" = (I - \alpha\lambda' M_t)\,\theta_{t-1} - \alpha M_t\, g_t .",
)
def test_a_preconditioner_divides_the_penalty() -> None:
    g, penalty, s = gradients(), 0.7, 4.0
    theta = run(lambda p: Chain(p, [L2(penalty), Preconditioner(s)], lr=ALPHA), g, start())
    m = torch.eye(3, dtype=torch.float64) / s
    for t in range(1, len(theta)):
        old = theta[t - 1]
        close(theta[t], old - ALPHA * m @ (g[t - 1] + penalty * old))
        close(theta[t], (torch.eye(3, dtype=torch.float64) - ALPHA * penalty * m) @ old - ALPHA * m @ g[t - 1])


@equation("eq-adamw-shrink", r"\mathbb{E}[\theta_T] \approx e^{-\alpha\lambda' T / s}\, \theta_0 .")
def test_adams_penalty_shrinks_by_the_noise() -> None:
    # Each noise sequence with its mirror image: what is left of the noise in the mean is of second order.
    lr, penalty, steps = 1e-3, 0.1, 2000
    noise = torch.randn(steps, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for s in (4.0, 10.0, 30.0):
        g = s * torch.cat([noise, -noise], dim=1)
        theta = run(lambda p: Adam(p, lr=lr, weight_decay=penalty), g, torch.ones(600, dtype=torch.float64))
        lost, predicted = 1 - theta[-1].mean().item(), 1 - math.exp(-lr * penalty * steps / s)
        assert lost == pytest.approx(predicted, rel=0.05)


@equation(
    "eq-adamw",
    r"\theta_t = \theta_{t-1} - \eta_t \Bigl( \alpha\, \frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon}"
    r" + \lambda\, \theta_{t-1} \Bigr) ,",
)
def test_adamw() -> None:
    g = gradients()
    options = {"betas": (BETA1, BETA2), "eps": EPS}
    paper = run(lambda p: AdamW(p, lr=ALPHA, weight_decay=DECAY, decay="schedule", **options), g, start(), eta)
    torchs = run(lambda p: AdamW(p, lr=ALPHA, weight_decay=DECAY / ALPHA, **options), g, start(), eta)
    theta, m, v = start(), torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for t in range(1, len(paper)):
        m = BETA1 * m + (1 - BETA1) * g[t - 1]
        v = BETA2 * v + (1 - BETA2) * g[t - 1] ** 2
        m_hat, v_hat = m / (1 - BETA1**t), v / (1 - BETA2**t)
        theta = theta - eta(t) * (ALPHA * m_hat / (v_hat.sqrt() + EPS) + DECAY * theta)
        close(paper[t], theta)
        close(torchs[t], theta)  # the pitfalls: the paper's λ is torch's learning rate times its weight_decay


@equation("eq-adamw-free", r"\mathbb{E}[\theta_T] = (1 - \lambda)^T\, \theta_0")
def test_the_mean_decays_at_one_rate() -> None:
    # A sequence and its mirror image have the mean of the two exactly, as the direction is odd in the noise.
    noise = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for s in (0.1, 1.0, 10.0):
        g = s * torch.cat([noise, -noise], dim=1)
        theta = run(
            lambda p: AdamW(p, lr=ALPHA, weight_decay=DECAY, decay="schedule"),
            g,
            torch.full((8,), 2.0, dtype=torch.float64),
        )
        close((theta[-1][:4] + theta[-1][4:]) / 2, torch.full((4,), 2.0 * (1 - DECAY) ** 50, dtype=torch.float64))


@equation(
    "eq-adamw-sgdw",
    r"m_t = \beta_1 m_{t-1} + \eta_t \alpha\, g_t, \qquad"
    r" \theta_t = \theta_{t-1} - m_t - \eta_t \lambda\, \theta_{t-1} ,",
)
def test_sgdw() -> None:
    g = gradients()
    ours = run(lambda p: SGDW(p, lr=ALPHA, momentum=BETA1, weight_decay=DECAY), g, start(), eta)
    theta, m = start(), torch.zeros(3, dtype=torch.float64)
    for t in range(1, len(ours)):
        m = BETA1 * m + eta(t) * ALPHA * g[t - 1]
        theta = theta - m - eta(t) * DECAY * theta
        close(ours[t], theta)


@equation("eq-adamw-fixed", r"\frac{\lambda}{2\alpha}\, \bigl\lVert \theta \odot \sqrt{s} \bigr\rVert^2 ,")
def test_decay_as_a_penalty_for_a_fixed_preconditioner() -> None:
    bowl, s = Quadratic(), torch.tensor([0.5, 6.0], dtype=torch.float64)

    def descend(coefficient: float, decay: float) -> Tensor:
        thetas = [x.reshape(1).clone().requires_grad_() for x in bowl.initial()]
        groups = [{"params": [theta], "s": float(scale)} for theta, scale in zip(thetas, s, strict=True)]
        optimizer = Chain(groups, [Preconditioner(), DecoupledWeightDecay(decay, "schedule")], lr=ALPHA)
        for _ in range(20):
            optimizer.zero_grad()
            theta = torch.cat(thetas)
            (bowl.loss(theta) + coefficient * ((theta * s.sqrt()) ** 2).sum()).backward()
            optimizer.step()
        return torch.cat(thetas).detach()

    close(descend(DECAY / (2 * ALPHA), 0.0), descend(0.0, DECAY))
    printed = DECAY / ALPHA / (2 * ALPHA)  # λ'/(2α) with λ' = λ/α, which the chapter calls wrong
    assert (descend(printed, 0.0) - descend(0.0, DECAY)).abs().max() > 0.01


@equation(
    "eq-adamw-limit",
    r"\theta_t = \frac{\alpha}{\lambda}\,\bigl(1 - (1-\lambda)^t\bigr)"
    r" \;\longrightarrow\; \frac{\alpha}{\lambda} .",
)
def test_a_constant_gradient_stops_at_the_ratio() -> None:
    g = torch.full((400, 3), -1.0, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    theta = run(
        lambda p: AdamW(p, lr=ALPHA, eps=1e-30, weight_decay=DECAY, decay="schedule"),
        g,
        torch.zeros(3, dtype=torch.float64),
    )
    for t in range(len(theta)):
        expected = ALPHA / DECAY * (1 - (1 - DECAY) ** t)
        torch.testing.assert_close(theta[t], torch.full_like(theta[t], expected), rtol=1e-9, atol=1e-12)
    assert theta[-1].tolist() == pytest.approx([ALPHA / DECAY] * 3, rel=1e-4)


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
