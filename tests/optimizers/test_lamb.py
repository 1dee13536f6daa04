"""LAMB: equal to the paper's algorithm, and what a step as long as its layer asks for does (You et al. 2020)."""

import math

import numpy as np
import pytest
import torch

import optimizers
from optimizers import LAMB, Cautious, ClipNorm


def lamb(
    theta, gradient, t, eta, memory, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01,
    trust_clip=False, always_adapt=True,
):  # fmt: skip
    """Algorithm 2: u = m̂ / (√v̂ + ε) + λ θ; θ − η ‖θ‖/‖u‖ u."""
    m = memory["m"] = betas[0] * memory.get("m", 0.0) + (1 - betas[0]) * gradient
    v = memory["v"] = betas[1] * memory.get("v", 0.0) + (1 - betas[1]) * gradient**2
    u = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps) + weight_decay * theta
    norms = np.linalg.norm(theta), np.linalg.norm(u)
    ratio = norms[0] / norms[1] if min(norms) > 0 else 1.0
    if trust_clip:
        ratio = min(ratio, 1.0)
    if weight_decay == 0 and not always_adapt:
        ratio = 1.0
    return theta - lr * eta * ratio * u


GROUPS = [
    {"lr": 0.02},
    {"lr": 0.01, "betas": (0.6, 0.9), "eps": 1e-3, "weight_decay": 0.3},
    {"lr": 0.05, "trust_clip": True, "weight_decay": 0.0},
    {"lr": 0.05, "weight_decay": 0.0, "always_adapt": False},
    {"lr": 0.05, "weight_decay": 0.1, "always_adapt": False},
]


@pytest.mark.parametrize("fused", [False, True])
def test_equals_the_paper(follows, fused):
    follows(lambda p: LAMB(p, fused=fused), lamb, GROUPS)


def test_norms_are_of_the_whole_tensor(whole):
    whole(lambda p, **options: LAMB(p, **options), lamb, lr=0.1, weight_decay=0.1)


def test_it_is_sound(sound):
    sound(lambda p, **o: LAMB(p, lr=0.05, **o), {"lr": 0.02, "weight_decay": 0.2, "trust_clip": True})


def relative_steps(optimizer, theta, gradients):
    """‖θ_t − θ_{t−1}‖ / ‖θ_{t−1}‖ of each step."""
    steps = []
    for gradient in gradients:
        before = theta.detach().clone()
        theta.grad = gradient
        optimizer.step()
        steps.append(((theta.detach() - before).norm() / before.norm()).item())
    return steps


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 10.0])
def test_a_step_is_the_rates_share_of_the_norm_whatever_gradient_and_decay(weight_decay, fused):
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(30, 20, generator=random, dtype=torch.float64).requires_grad_()
    optimizer = LAMB([theta], lr=0.01, weight_decay=weight_decay, fused=fused)
    gradients = [
        scale * torch.randn(30, 20, generator=random, dtype=torch.float64) for scale in (1, 1e-4, 1e4, 1, 1)
    ]
    assert [step / 0.01 for step in relative_steps(optimizer, theta, gradients)] == pytest.approx([1] * 5, abs=1e-9)


@pytest.mark.parametrize(("lr", "found"), [(0.01, 1.00906), (0.1, 2.687)])
def test_on_noise_the_norm_grows_by_a_right_angle_a_step(lr, found):
    """√(1 + lr²) per step without decay: there is no equilibrium."""
    random = torch.Generator().manual_seed(0)
    size = 100_000  # in which two directions are at right angles to 0.3 %
    theta = torch.randn(size, generator=random, dtype=torch.float64).requires_grad_()
    start = theta.detach().norm()
    optimizer = LAMB([theta], lr=lr, betas=(0.0, 0.999), weight_decay=0.0)
    for _ in range(200):
        theta.grad = torch.randn(size, generator=random, dtype=torch.float64)
        optimizer.step()
    growth = (theta.detach().norm() / start).item()
    assert growth == pytest.approx((1 + lr**2) ** 100, rel=0.01)
    assert growth == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("fused", [False, True])
def test_what_starts_at_zero_is_nearly_frozen(fused):
    """One step of Adam's, then growth by 1 + lr at most: 232 steps for a factor of 10."""
    theta = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = LAMB([theta], lr=0.01, fused=fused, eps=0.0)
    norms = [0.0]
    for _ in range(233):
        theta.grad = torch.ones_like(theta)
        optimizer.step()
        norms.append(theta.detach().norm().item())
    assert np.diff(norms)[:4] == pytest.approx([0.0316, 3.16e-4, 3.19e-4, 3.23e-4], rel=2e-3)
    assert norms[1:] == pytest.approx([0.01 * math.sqrt(10) * 1.01**t for t in range(233)], rel=1e-12)
    assert norms[232] < 10 * norms[1] < norms[233]


@pytest.mark.parametrize("fused", [False, True])
def test_without_an_update_nothing_moves(fused):
    theta = torch.ones(3, requires_grad=True)
    optimizer = LAMB([theta], weight_decay=0.0, fused=fused)
    for lr, gradient in [(0.1, 0.0), (0.0, 1.0)]:
        optimizer.param_groups[0]["lr"] = lr
        theta.grad = torch.full((3,), gradient)
        optimizer.step()
        assert torch.equal(theta, torch.ones(3))


def test_a_factor_on_all_gradients_changes_nothing():
    ends = []
    for factor in (1.0, 2.0**-20, 2.0**20):
        theta = torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4).requires_grad_()
        optimizer = LAMB([theta], lr=0.1, eps=0.0)
        random = torch.Generator().manual_seed(0)
        for _ in range(5):
            theta.grad = factor * torch.randn(3, 4, generator=random, dtype=torch.float64)
            optimizer.step()
        ends.append(theta.detach())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_at_small_rates_a_clipped_ratio_leaves_adamw():
    def end(make):
        theta = torch.linspace(10, 20, 12, dtype=torch.float64).requires_grad_()
        optimizer = make([theta])
        random = torch.Generator().manual_seed(0)
        for _ in range(20):
            theta.grad = torch.randn(12, generator=random, dtype=torch.float64)
            optimizer.step()
        return theta.detach()

    clipped = end(lambda p: LAMB(p, lr=1e-3, eps=1e-8, weight_decay=0.01, trust_clip=True))
    adamw = end(lambda p: optimizers.AdamW(p, lr=1e-3, weight_decay=0.01))
    assert (clipped - adamw).abs().max() < 1e-14
    assert (clipped - end(lambda p: LAMB(p, lr=1e-3, weight_decay=0.01))).abs().max() > 0.1


@pytest.mark.parametrize("fused", [False, True])
def test_what_changes_the_update_does_so_before_the_ratio(fused):
    """Masked or not, a step is the learning rate long."""
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(30, 20, generator=random, dtype=torch.float64).requires_grad_()
    optimizer = LAMB([theta], lr=0.01, extensions=[Cautious("none"), ClipNorm(1.0)], fused=fused)
    gradients = [torch.randn(30, 20, generator=random, dtype=torch.float64) for _ in range(4)]
    assert relative_steps(optimizer, theta, gradients) == pytest.approx([0.01] * 4, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must lie in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, ValueError, r"weight_decay must lie in \[0, inf\), got -1.0"),
        ({"trust_clip": 1}, TypeError, "trust_clip must be True or False, got 1"),
        ({"extensions": [optimizers.DecoupledWeightDecay(0.1)]}, ValueError, "weight_decay belongs to both"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        LAMB([torch.zeros(1)], **options)
