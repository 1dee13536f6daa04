"""ADOPT: equal to the authors' code, and what they claim of any β₂ (Taniguchi et al. 2024)."""

import copy
import math

import numpy as np
import pytest
import torch

import optimizers


def adopt(
    theta, gradient, t, eta, memory, lr, betas=(0.9, 0.9999), eps=1e-6, clip=True, weight_decay=0.0, decoupled=0.0
):
    """Algorithm 2, or 1 without the clip; the first gradient only makes v."""
    gradient = gradient + weight_decay * theta
    if t == 1:
        memory["v"] = gradient**2
        return theta
    beta1, beta2 = betas
    ratio = gradient / np.maximum(np.sqrt(memory["v"]), eps)
    if clip:
        limit = (t - 1) ** 0.25
        ratio = np.clip(ratio, -limit, limit)
    m = memory["m"] = beta1 * memory.get("m", 0.0) + (1 - beta1) * ratio
    memory["v"] = beta2 * memory["v"] + (1 - beta2) * gradient**2
    return theta - lr * eta * (m + decoupled * theta)


GROUPS = [
    {"lr": 0.02},
    {"lr": 0.01, "betas": (0.6, 0.9), "weight_decay": 0.3},
    {"lr": 0.01, "betas": (0.0, 0.5), "eps": 0.5},
]


@pytest.mark.parametrize("clip", [True, False])
def test_equals_the_paper(follows, clip):
    follows(lambda p: optimizers.ADOPT(p, clip=clip), lambda *a, **group: adopt(*a, **group, clip=clip), GROUPS)


def test_decoupled_decay(follows):
    follows(
        lambda p: optimizers.ADOPT(p, decoupled_weight_decay=True),
        lambda *args, weight_decay, **group: adopt(*args, **group, decoupled=weight_decay),
        [{"lr": 0.02, "weight_decay": 0.3}, {"lr": 0.01, "weight_decay": 0.1, "betas": (0.6, 0.9)}],
    )


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_the_first_step_moves_nothing(fused, decoupled):
    theta = torch.linspace(-1, 1, 50).requires_grad_()
    start = theta.detach().clone()
    optimizer = optimizers.ADOPT([theta], 0.1, weight_decay=0.5, decoupled_weight_decay=decoupled, fused=fused)
    theta.grad = torch.linspace(-1e38, 1e38, 50) if decoupled else torch.zeros(50)  # 10³⁸ / ε is infinite
    optimizer.step()
    assert torch.equal(theta.detach(), start)
    assert torch.equal(optimizer.state[theta]["exp_avg"], torch.zeros(50))
    theta.grad = torch.ones(50)
    optimizer.step()
    assert not torch.equal(theta.detach(), start)
    assert torch.isfinite(theta).all()


def test_the_steps_under_a_constant_gradient_grow_as_their_average_fills(descend):
    values = descend(lambda p: optimizers.ADOPT(p, lr=1.0), [3.0] * 40)
    steps = -np.diff([0.0, *values])
    assert steps[:4] == pytest.approx([0.0, 0.1, 0.19, 0.271])
    assert steps == pytest.approx([1 - 0.9**k for k in range(40)])


def test_a_first_gradient_near_zero_needs_the_clip(descend):
    for clip, second in ((True, 0.1), (False, 1e5)):
        values = descend(lambda p, clip=clip: optimizers.ADOPT(p, lr=1.0, clip=clip), [1e-9, 1.0])
        assert values == pytest.approx([0.0, -second])


def test_it_converges_where_adam_does_not():
    """Reddi et al., Theorem 1: f_t(x) = 3 x if t mod 3 = 1, else −x, on [−1, 1], whose minimum is at −1."""
    x = [torch.tensor(1.0, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    adam = optimizers.Adam(x[:1], betas=(0.0, 0.1), eps=0.0, fused=True)
    groups = [{"params": x[1]}, {"params": x[2], "clip": False}]
    adopt = optimizers.ADOPT(groups, betas=(0.0, 0.1), fused=True)
    last = []
    for param in x:
        param.grad = torch.zeros_like(param)
    for t in range(1, 3001):
        for param in x:
            param.grad.fill_(3.0 if t % 3 == 1 else -1.0)
        for optimizer in (adam, adopt):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / math.sqrt(t)
            optimizer.step()
        with torch.no_grad():
            for param in x:
                param.clamp_(-1, 1)
        if t > 2400:
            last.append([param.item() for param in x])
    # (Short of ±1 by about lr / √T; after 20,000 steps 0.9997, −0.9996 and −0.9996.)
    assert np.mean(last, axis=0) == pytest.approx([0.9991, -0.999, -0.999], abs=3e-4)


@pytest.mark.parametrize(
    ("beta2", "adam", "adopt", "burn_in"),
    [(0.1, -0.707, 0.085, 20), (0.5, -0.498, 0.065, 50), (0.9, -0.113, 0.036, 100), (0.99, 0.018, 0.032, 600)],
)
def test_a_denominator_that_knows_the_gradient_turns_the_mean_around(beta2, adam, adopt, burn_in):
    """Gradients of 10 with probability 0.1, else −1: their mean is 0.1, and a step should be down on average."""
    random = torch.Generator().manual_seed(0)
    thetas = [torch.zeros(2000, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    both = (
        optimizers.RMSprop(thetas[:1], lr=1.0, alpha=beta2, eps=0.0, fused=True),
        optimizers.ADOPT(thetas[1:], lr=1.0, betas=(0.0, beta2), clip=False, fused=True),
    )
    starts = []
    for t in range(burn_in + 600):
        if t == burn_in:
            starts = [theta.detach().clone() for theta in thetas]
        gradient = torch.where(torch.rand(2000, generator=random) < 0.1, 10.0, -1.0).double()
        for theta, optimizer in zip(thetas, both, strict=True):
            theta.grad = gradient
            optimizer.step()
    means = [((a - b.detach()).mean() / 600).item() for a, b in zip(starts, thetas, strict=True)]
    # Of 1.2 × 10⁶ draws of deviation 1 to 3 the mean is known to a few thousandths.
    assert means == pytest.approx([adam, adopt], abs=0.008)


def test_the_clip_survives_copies_and_checkpoints():
    """The authors' is a function kept beside the groups, which neither a copy nor a checkpoint has."""
    theta = torch.zeros(3, requires_grad=True)
    optimizer = optimizers.ADOPT([theta], clip=False)
    theta.grad = torch.full((3,), 1e-9)
    optimizer.step()
    for twin in (copy.deepcopy(optimizer), optimizers.ADOPT([torch.zeros(3, requires_grad=True)])):
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        (param,) = twin.param_groups[0]["params"]
        param.grad = torch.ones(3)
        twin.step()
        assert param.detach().tolist() == pytest.approx([-100.0] * 3)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must lie in \[0, 1\), got 1.0"),
        ({"eps": -1e-6}, ValueError, r"eps must lie in \[0, inf\), got -1e-06"),
        ({"clip": 0.25}, TypeError, "clip must be True or False, got 0.25"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        optimizers.ADOPT([torch.zeros(1)], **options)
