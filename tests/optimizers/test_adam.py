"""Adam and Adamax: equal to torch's, and exact predictions of Kingma and Ba (2015)."""

import math

import numpy as np
import pytest
import torch

import optimizers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.05},
        {"amsgrad": True, "maximize": True},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"amsgrad": True, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    ],
)
@pytest.mark.parametrize(
    "second",
    [
        {"lr": 0.05, "weight_decay": 0.1, "betas": (0.5, 0.9)},
        {"lr": 0.05, "amsgrad": True, "decoupled_weight_decay": True, "weight_decay": 0.2},
        {"lr": 0.05, "amsgrad": False, "decoupled_weight_decay": False, "weight_decay": 0.2},
    ],
)
def test_adam_equals_torch(same_as_torch, options, second):
    same_as_torch(optimizers.Adam, torch.optim.Adam, second, lr=0.02, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.05}, {"weight_decay": 0.1, "maximize": True}],
)
def test_adamax_equals_torch(same_as_torch, options):
    second = {"lr": 0.05, "weight_decay": 0.2, "betas": (0.5, 0.9), "eps": 1e-2}
    same_as_torch(optimizers.Adamax, torch.optim.Adamax, second, **options)


def nesterov_adam(theta, gradient, t, eta, memory, lr, betas=(0.9, 0.999), infinity=False):
    """Dozat's m̄ at the constant momentum β₁, as optax.nadam writes it."""
    beta1, beta2 = betas
    m = memory["m"] = beta1 * memory.get("m", 0.0) + (1 - beta1) * gradient
    if infinity:
        denominator = memory["u"] = np.maximum(beta2 * memory.get("u", 0.0), np.abs(gradient) + 1e-8)
    else:
        v = memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
        denominator = np.sqrt(v / (1 - beta2**t)) + 1e-8
    average = beta1 * m / (1 - beta1 ** (t + 1)) + (1 - beta1) * gradient / (1 - beta1**t)
    return theta - lr * eta * average / denominator


def test_nesterov(follows):
    groups = [{"lr": 0.05}, {"lr": 0.01, "betas": (0.6, 0.9)}]
    follows(lambda p: optimizers.Adam(p, nesterov=True), nesterov_adam, groups)
    follows(
        lambda p: optimizers.Adamax(p, nesterov=True),
        lambda *args, **group: nesterov_adam(*args, **group, infinity=True),
        groups,
    )


@pytest.mark.parametrize("gradient", [1e-3, -2.0, 1e5])
def test_the_first_step_is_the_learning_rate(descend, gradient):
    for make in (optimizers.Adam, optimizers.Adamax):
        (step,) = descend(lambda p, make=make: make(p, lr=0.1, eps=1e-12), [gradient])
        assert step == pytest.approx(-0.1 * math.copysign(1, gradient), rel=1e-8)


def test_a_sparse_gradient_almost_reaches_the_bound(descend):
    # 9999 zeros, then a gradient: α (1 − β₁) / √(1 − β₂) = 3.16228 α bounds the step.
    values = descend(lambda p: optimizers.Adam(p, lr=1.0, eps=1e-16), [0.0] * 9999 + [1.0])
    step = abs(values[-1] - values[-2])
    assert step == pytest.approx(3.16221, abs=1e-5)
    assert step < 0.1 / math.sqrt(0.001)


def quadratic(scale: float, eps: float) -> torch.Tensor:
    theta = torch.tensor([1.0, -0.5], dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.Adam([theta], lr=1e-2, eps=eps)
    for _ in range(100):
        theta.grad = scale * torch.tensor([1.0, 0.01], dtype=torch.float64) * theta.detach()
        optimizer.step()
    return theta.detach()


def test_the_scale_of_the_loss_matters_only_where_eps_does():
    # What counts is ε ÷ scale. Where both are small next to the gradients, the path moves by a multiple of them.
    assert (quadratic(1e6, 1e-16) - quadratic(1.0, 1e-16)).abs().max() <= 1e-12
    louder = (quadratic(1e6, 1e-8) - quadratic(1.0, 1e-8)).abs().max() / 1e-8
    quieter = (quadratic(1e-6, 1e-16) - quadratic(1.0, 1e-16)).abs().max() / 1e-10
    assert louder.item() == pytest.approx(quieter.item(), rel=1e-3)
    assert quadratic(1e-6, 1e-8).tolist() == pytest.approx(quadratic(1.0, 1e-2).tolist(), abs=1e-12)
    assert (quadratic(1e-6, 1e-8) - quadratic(1.0, 1e-8)).abs().max() > 0.1


def test_bias_corrections_cancel_on_a_constant_gradient(descend):
    values = descend(lambda p: optimizers.Adam(p, lr=0.01, eps=0.0), [3.0] * 100)
    assert values == pytest.approx(-0.01 * np.arange(1, 101), abs=1e-12)


def test_l2_and_decoupled_decay_are_not_given_both():
    with pytest.raises(ValueError, match="weight_decay belongs to both L2ByGroup and DecoupledWeightDecay"):
        optimizers.Adam([torch.zeros(1)], extensions=[optimizers.DecoupledWeightDecay(0.1)])
