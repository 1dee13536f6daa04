"""AMSGrad: equal to the paper's equations, and the counter-examples of Reddi, Kale and Kumar (2018)."""

import math

import numpy as np
import pytest
import torch

import optimizers


def amsgrad(theta, gradient, t, eta, memory, lr, betas=(0.9, 0.999), weight_decay=0.0, nesterov=False):
    """Algorithm 2: no bias correction; ε = 1e-8 is ours."""
    beta1, beta2 = betas
    gradient = gradient + weight_decay * theta
    m = memory["m"] = beta1 * memory.get("m", 0.0) + (1 - beta1) * gradient
    v = memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
    largest = memory["max"] = np.maximum(memory.get("max", 0.0), v)
    average = beta1 * m + (1 - beta1) * gradient if nesterov else m
    return theta - lr * eta * average / (np.sqrt(largest) + 1e-8)


GROUPS = [{"lr": 0.02}, {"lr": 0.01, "betas": (0.6, 0.9), "weight_decay": 0.3}]


def test_equals_the_paper(follows):
    follows(optimizers.AMSGrad, amsgrad, GROUPS)


def test_nesterov(follows):
    follows(
        lambda p: optimizers.AMSGrad(p, nesterov=True),
        lambda *args, **group: amsgrad(*args, **group, nesterov=True),
        GROUPS,
    )


def test_decoupled_decay(follows):
    def oracle(theta, gradient, t, eta, memory, lr, weight_decay):
        return amsgrad(theta, gradient, t, eta, memory, lr) - lr * eta * weight_decay * theta

    def make(groups):
        return optimizers.AMSGrad(groups, decoupled_weight_decay=True)

    follows(make, oracle, [{"lr": 0.02, "weight_decay": 0.3}])


def test_torchs_definition_lets_the_step_grow_the_papers_does_not(descend):
    # A gradient of 1, then 1e-3 for ever (β₁ = 0): step / gradient.
    gradients = [1.0] + [1e-3] * 2999

    def gains(make):
        steps = -np.diff([0.0, *descend(make, gradients)]) / gradients
        return [steps[t - 1] for t in (1, 2, 10, 100, 1000, 3000)]

    torchs = gains(lambda p: optimizers.Adam(p, lr=1.0, betas=(0.0, 0.999), eps=0.0, amsgrad=True))
    assert torchs == pytest.approx([1.00, 1.41, 3.16, 9.76, 25.1, 30.8], rel=5e-3)
    papers = gains(lambda p: optimizers.AMSGrad(p, lr=1.0, betas=(0.0, 0.999), eps=0.0))
    assert papers == pytest.approx([1 / math.sqrt(0.001)] * 6, rel=1e-9)


def counter_example(make, steps=6000):
    """Theorem 1: f_t(x) = 3 x if t mod 3 = 1, else −x, on [−1, 1]. The last x and the average regret against −1."""
    x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimizer = make([x])
    regret = 0.0
    for t in range(1, steps + 1):
        gradient = 3.0 if t % 3 == 1 else -1.0
        regret += gradient * (x.item() + 1)
        x.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = 0.5 / math.sqrt(t)
        optimizer.step()
        with torch.no_grad():
            x.clamp_(-1, 1)
    return x.item(), regret / steps


def test_adam_converges_to_the_worst_point_and_amsgrad_does_not():
    # The paper's Adam has no bias correction either, which is RMSprop here as β₁ = 0.
    x, regret = counter_example(lambda p: optimizers.RMSprop(p, alpha=0.1, eps=0.0))
    assert x > 0.999
    assert regret == pytest.approx(2 / 3, abs=0.01)
    x, regret = counter_example(lambda p: optimizers.AMSGrad(p, betas=(0.0, 0.1), eps=0.0))
    assert x < -0.99
    assert regret < 0.02  # O(1 / √T): 0.005 after 30,000 steps
