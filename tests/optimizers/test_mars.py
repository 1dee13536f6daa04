"""MARS: equal to the paper's correction before any direction (Yuan et al. 2024)."""

import math

import numpy as np
import pytest
import torch

import optimizers
from optimizers import MARS, SGD, AdamW, Chain, GradientNoise, Lion, RMSprop, Signum


def mars(gradient, t, memory, beta, gamma=0.025, max_norm=1.0):
    """c = g_t + γ β/(1 − β) (g_t − g_{t−1}), and c_1 = g_1; c / max(1, ‖c‖)."""
    c = gradient + gamma * beta / (1 - beta) * (gradient - memory.get("last", gradient))
    memory["last"] = gradient
    return c / max(1.0, np.linalg.norm(c) / max_norm)


def mars_adamw(
    theta, gradient, t, eta, memory, lr, betas=(0.95, 0.99), eps=1e-8, weight_decay=0.1, mars_beta=0.95,
    mars_gamma=0.025, mars_max_norm=1.0,
):  # fmt: skip
    c = mars(gradient, t, memory, mars_beta, mars_gamma, mars_max_norm)
    m = memory["m"] = betas[0] * memory.get("m", 0.0) + (1 - betas[0]) * c
    v = memory["v"] = betas[1] * memory.get("v", 0.0) + (1 - betas[1]) * c**2
    direction = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return theta - lr * eta * (direction + weight_decay * theta)


def make(params, **options):
    given = {"lr": 0.01, "betas": (0.95, 0.99), "weight_decay": 0.1, "extensions": [MARS()], **options}
    return AdamW(params, **given)


GROUPS = [
    {"lr": 0.02},
    {"lr": 0.01, "betas": (0.9, 0.999), "mars_beta": 0.9, "mars_gamma": 0.2},
    {"lr": 0.01, "mars_max_norm": 0.1},
    {"lr": 0.01, "mars_max_norm": math.inf},
    {"lr": 0.01, "mars_gamma": 0.0},
]


@pytest.mark.parametrize("fused", [False, True])
def test_equals_the_paper(follows, fused):
    follows(lambda p: make(p, fused=fused), mars_adamw, GROUPS)


def test_the_norm_is_of_the_whole_tensor(whole):
    whole(make, mars_adamw, lr=0.1, mars_max_norm=30.0)


def test_it_is_sound(sound):
    sound(make, {"lr": 0.02, "mars_gamma": 0.1, "mars_max_norm": 3.0})


def shown(optimizer, theta, gradients):
    """What SGD with rate 1 and no momentum is shown: how far each step goes."""
    steps = []
    for gradient in gradients:
        before = theta.detach().clone()
        theta.grad = gradient
        optimizer.step()
        steps.append(before - theta.detach())
    return steps


@pytest.mark.parametrize("fused", [False, True])
def test_what_the_direction_is_shown(fused):
    random = torch.Generator().manual_seed(0)
    gradients = [scale * torch.randn(4, generator=random, dtype=torch.float64) for scale in (0.1, 0.1, 0.2, 5.0)]
    theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    first, second, third, clipped = shown(
        SGD([theta], lr=1.0, extensions=[MARS(gamma=0.5, beta=0.8)], fused=fused), theta, gradients
    )
    assert torch.equal(first, gradients[0])  # nothing to compare with
    assert torch.allclose(second, 3 * gradients[1] - 2 * gradients[0], rtol=0, atol=1e-15)
    assert torch.allclose(third, 3 * gradients[2] - 2 * gradients[1], rtol=0, atol=1e-15)
    assert clipped.norm().item() == pytest.approx(1, abs=1e-12)
    whole = 3 * gradients[3] - 2 * gradients[2]
    assert torch.allclose(clipped, whole / whole.norm(), rtol=0, atol=1e-14)


def test_the_last_gradient_is_a_copy():
    """With zero_grad(set_to_none=False) the next gradient comes into the same memory."""
    ends = []
    for differentiable in (False, True):
        theta = torch.zeros(3, dtype=torch.float64)
        optimizer = SGD([theta], lr=1.0, extensions=[MARS(beta=0.9)], fused=False, differentiable=differentiable)
        theta.grad = torch.zeros(3, dtype=torch.float64)
        for t in range(3):
            theta.grad.fill_(0.1 * (t + 1))
            optimizer.step()
        ends.append(theta.detach())
    expected = 0.1 + (0.2 + 0.225 * 0.1) + (0.3 + 0.225 * 0.1)
    assert torch.allclose(ends[0], torch.full((3,), -expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("direction", "beta"),
    [
        (lambda p, e: AdamW(p, betas=(0.95, 0.99), extensions=e), 0.95),
        (lambda p, e: Lion(p, extensions=e), 0.9),
        (lambda p, e: Signum(p, momentum=0.8, extensions=e), 0.8),
        (lambda p, e: SGD(p, momentum=0.7, extensions=e), 0.7),
    ],
)
def test_beta_is_the_directions(direction, beta):
    params = [torch.zeros(1)]
    assert direction(params, [MARS()]).defaults["mars_beta"] == beta
    assert direction(params, [MARS(beta=0.5)]).defaults["mars_beta"] == 0.5
    stage = MARS()
    direction(params, [stage])
    assert stage.hyper["beta"] is None  # it may join another


@pytest.mark.parametrize(
    "make",
    [
        lambda e: Chain([torch.zeros(1)], [], lr=0.1, extensions=e),
        lambda e: optimizers.Adagrad([torch.zeros(1)], extensions=e),
    ],
)
def test_without_an_average_beta_must_be_given(make):
    with pytest.raises(ValueError, match=r"MARS takes its beta from the direction, but with .*: give it"):
        make([MARS()])
    make([MARS(beta=0.9)])


def test_off_it_leaves_every_step_as_it_is():
    def end(extensions):
        theta = torch.ones(5, requires_grad=True)
        optimizer = RMSprop([theta], momentum=0.9, extensions=extensions)
        for t in range(3):
            theta.grad = torch.linspace(-9, 9 + t, 5)
            optimizer.step()
        return theta.detach()

    assert torch.equal(end([]), end([MARS(gamma=0.0, max_norm=math.inf)]))
    assert not torch.equal(end([]), end([MARS(gamma=0.0)]))


def test_it_sees_the_noise_and_not_the_penalty():
    """Between clipping and noise in front, and L2 decay behind."""
    theta = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
    optimizer = SGD(
        [theta], lr=1.0, weight_decay=0.5, extensions=[MARS(beta=0.5, max_norm=math.inf), GradientNoise(1.0)]
    )
    theta.grad = torch.zeros(3, dtype=torch.float64)
    optimizer.step()
    noise = optimizer.state[theta]["last_grad"]
    assert noise.abs().min() > 0
    assert torch.allclose(theta.detach(), 2.0 - noise - 1.0, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"gamma": -1.0}, ValueError, r"gamma must lie in \[0, inf\), got -1.0"),
        ({"beta": 1.0}, ValueError, r"beta must lie in \[0, 1\), got 1.0"),
        ({"max_norm": 0.0}, ValueError, r"max_norm must lie in \(0, inf\], got 0.0"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        MARS(**options)
