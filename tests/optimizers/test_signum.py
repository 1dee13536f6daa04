"""Signum and signSGD: equal to the algorithms of Bernstein, Wang, Azizzadenesheli and Anandkumar (2018)."""

import numpy as np
import pytest
import torch

import optimizers


def signum(theta, gradient, t, eta, memory, lr, momentum=0.9, weight_decay=0.0, decoupled=0.0):
    """Algorithm 2: m = β m + (1 − β) g; x − δ sign(m); with β = 0, Algorithm 1."""
    gradient = gradient + weight_decay * theta
    m = memory["m"] = momentum * memory.get("m", 0.0) + (1 - momentum) * gradient
    return theta - lr * eta * (np.sign(m) + decoupled * theta)


def test_equals_the_paper(follows):
    groups = [{"lr": 0.02}, {"lr": 0.01, "momentum": 0.99, "weight_decay": 0.3}, {"lr": 0.01, "momentum": 0.5}]
    follows(optimizers.Signum, signum, groups)


def test_without_momentum_it_is_sign_sgd(follows):
    follows(
        lambda p: optimizers.Signum(p, momentum=0.0),
        lambda *args, **group: signum(*args, **group, momentum=0.0),
        [{"lr": 0.02}, {"lr": 0.01, "weight_decay": 0.3}],
    )


def test_decoupled_decay(follows):
    follows(
        lambda p: optimizers.Signum(p, decoupled_weight_decay=True),
        lambda *args, weight_decay, **group: signum(*args, **group, decoupled=weight_decay),
        [{"lr": 0.02, "weight_decay": 0.3}, {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.5}],
    )


def test_without_momentum_nothing_is_remembered():
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = optimizers.Signum([{"params": params[0]}, {"params": params[1], "momentum": 0.0}])
    for param in params:
        param.grad = torch.tensor([2.0, 0.0])
    optimizer.step()
    assert list(optimizer.state[params[0]]) == ["step", "momentum_buffer"]
    assert list(optimizer.state[params[1]]) == ["step"]
    assert all(torch.equal(param, torch.tensor([1 - 1e-3, 1.0])) for param in params)


def test_the_size_of_a_gradient_is_nothing(descend):
    gradients = np.random.default_rng(0).standard_normal(100)
    one, thousand = (descend(lambda p: optimizers.Signum(p), list(c * gradients)) for c in (1.0, 1024.0))
    assert one == thousand


def test_in_single_precision_a_rounding_may_turn_a_sign_but_nothing_else():
    """Eager and compiled averages agree to their last digits; the steps, wherever the average is not so near 0."""
    averages, steps = [], []
    for fused in (False, True):
        random = torch.Generator().manual_seed(0)
        theta = torch.zeros(5000, requires_grad=True)
        optimizer = optimizers.Signum([theta], lr=2.0**-7, fused=fused)
        for _ in range(100):
            before = theta.detach().clone()
            theta.grad = torch.randn(5000, generator=random)
            optimizer.step()
        averages.append(optimizer.state[theta]["momentum_buffer"])
        steps.append(theta.detach() - before)
    torch.testing.assert_close(*averages, rtol=0, atol=1e-6)
    assert torch.equal(*(step[averages[0].abs() > 1e-6] for step in steps))


@pytest.mark.parametrize("momentum", [1.0, -0.1])
def test_a_wrong_momentum_is_refused(momentum):
    with pytest.raises(ValueError, match=rf"momentum must lie in \[0, 1\), got {momentum}"):
        optimizers.Signum([torch.zeros(1)], momentum=momentum)
