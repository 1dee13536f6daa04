"""AdaBelief: equal to the paper's algorithm, and what its two ε do (Zhuang et al. 2020)."""

import math

import numpy as np
import pytest
import torch

import optimizers


def adabelief(
    theta, gradient, t, eta, memory, lr, betas=(0.9, 0.999), eps=1e-16, weight_decay=0.0, l2=0.0, nesterov=False
):
    """Algorithm 2, in which ε is added to s at every step, and to its root; the decay is decoupled, × lr."""
    beta1, beta2 = betas
    gradient = gradient + l2 * theta
    m = memory["m"] = beta1 * memory.get("m", 0.0) + (1 - beta1) * gradient
    s = memory["s"] = beta2 * memory.get("s", 0.0) + (1 - beta2) * (gradient - m) ** 2 + eps
    average = m / (1 - beta1**t)
    if nesterov:
        average = beta1 * m / (1 - beta1 ** (t + 1)) + (1 - beta1) * gradient / (1 - beta1**t)
    return theta - lr * eta * (average / (np.sqrt(s / (1 - beta2**t)) + eps) + weight_decay * theta)


GROUPS = [
    {"lr": 0.02, "weight_decay": 0.1},
    {"lr": 0.01, "betas": (0.6, 0.9), "weight_decay": 0.3},
    {"lr": 0.01, "eps": 1e-8},
    {"lr": 0.01, "eps": 0.1},
]


@pytest.mark.parametrize("nesterov", [False, True])
def test_equals_the_paper(follows, nesterov):
    follows(
        lambda p: optimizers.AdaBelief(p, nesterov=nesterov),
        lambda *args, **group: adabelief(*args, **group, nesterov=nesterov),
        GROUPS,
    )


def test_the_coupled_penalty(follows):
    follows(
        lambda p: optimizers.AdaBelief(p, decoupled_weight_decay=False),
        lambda *args, weight_decay=0.0, **group: adabelief(*args, **group, l2=weight_decay),
        GROUPS,
    )


@pytest.mark.parametrize("eps", [1e-8, 1e-16])
def test_the_inner_epsilon_is_a_floor_of_its_root_over_one_minus_beta2(descend, eps):
    """Far below it, a step is m̂ over the floor, whatever t is: a step of momentum."""
    floor = math.sqrt(eps / (1 - 0.999)) + eps
    assert floor == pytest.approx(3.16e-3 if eps == 1e-8 else 3.16e-7, rel=1e-3)
    gradient = 1e-6 * floor
    for scale in (1.0, 10.0):
        values = descend(lambda p: optimizers.AdaBelief(p, lr=1.0, eps=eps), [scale * gradient] * 300)
        assert -np.diff([0.0, *values]) == pytest.approx(scale * 1e-6, rel=1e-9)


def test_the_steps_grow_where_gradients_agree(descend):
    """With ε = 0 and a constant gradient: (g − m_t)² = (β₁ᵗ g)²; Adam's step is 1 at every t."""
    values = descend(lambda p: optimizers.AdaBelief(p, lr=1.0, eps=0.0), [3.0] * 50)
    belief = [
        math.sqrt((1 - 0.999**t) / (0.001 * sum(0.999 ** (t - i) * 0.81**i for i in range(1, t + 1))))
        for t in range(1, 51)
    ]
    assert -np.diff([0.0, *values]) == pytest.approx(belief)
    assert belief[0] == pytest.approx(1 / 0.9)
    assert belief[-1] > 3


def test_opposite_gradients_are_stepped_as_adam_would(descend):
    """Gradients of ±1 in turn have an average near 0: (g − m)² is near g²."""
    gradients = [(-1.0) ** t for t in range(2000)]
    belief, adam = (
        np.diff(descend(lambda p, make=make: make(p, lr=1.0), gradients))[-100:]
        for make in (optimizers.AdaBelief, optimizers.Adam)
    )
    assert np.abs(belief / adam - 1).max() < 0.1


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"betas": (1.0, 0.999)}, ValueError, r"betas\[0\] must lie in \[0, 1\), got 1.0"),
        ({"eps": -1.0}, ValueError, r"eps must lie in \[0, inf\), got -1.0"),
        ({"nesterov": 1}, TypeError, "nesterov must be True or False, got 1"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        optimizers.AdaBelief([torch.zeros(1)], **options)
