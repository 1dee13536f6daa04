"""NAdam and NAdamW: equal to torch's, the constant form, and the weights of Dozat (2016)."""

import math

import numpy as np
import pytest
import torch

import optimizers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.05, "momentum_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
        {"momentum_decay": 0.0},
    ],
)
@pytest.mark.parametrize(
    "second",
    [
        {"lr": 0.05, "weight_decay": 0.2, "betas": (0.5, 0.9), "momentum_decay": 1.0},
        {"lr": 0.05, "weight_decay": 0.2, "decoupled_weight_decay": True},
        {"lr": 0.05, "weight_decay": 0.2, "decoupled_weight_decay": False},
    ],
)
def test_equals_torch(same_as_torch, options, second):
    same_as_torch(optimizers.NAdam, torch.optim.NAdam, second, lr=0.02, **options)


def constant(theta, gradient, t, eta, memory, lr, betas=(0.9, 0.999), weight_decay=0.0):
    """Dozat's rule with μ_t = β₁ for every t: β₁ m / (1 − β₁ᵗ⁺¹) + (1 − β₁) g / (1 − β₁ᵗ)."""
    beta1, beta2 = betas
    m = memory["m"] = beta1 * memory.get("m", 0.0) + (1 - beta1) * gradient
    v = memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
    average = beta1 * m / (1 - beta1 ** (t + 1)) + (1 - beta1) * gradient / (1 - beta1**t)
    direction = average / (np.sqrt(v / (1 - beta2**t)) + 1e-8)
    return theta - lr * eta * (direction + weight_decay * theta)


def test_the_constant_form(follows):
    groups = [{"lr": 0.05}, {"lr": 0.01, "betas": (0.6, 0.9)}]
    follows(lambda p: optimizers.NAdam(p, momentum_decay=None), constant, groups)
    groups = [group | {"weight_decay": 0.3} for group in groups]
    follows(lambda p: optimizers.NAdamW(p, momentum_decay=None), constant, groups)


def test_the_constant_form_is_adam_with_nesterov(descend):
    gradients = np.random.default_rng(0).standard_normal(50)
    nadam = descend(lambda p: optimizers.NAdam(p, lr=0.01, momentum_decay=None), gradients)
    assert nadam == descend(lambda p: optimizers.Adam(p, lr=0.01, nesterov=True), gradients)


def test_nadamw_is_torchs_decoupled_nadam(same_as_torch):
    def theirs(params, **options):
        return torch.optim.NAdam(params, decoupled_weight_decay=True, **options)

    same_as_torch(optimizers.NAdamW, theirs, {"lr": 0.05, "weight_decay": 0.3}, lr=0.02, weight_decay=0.1)


def test_the_weights_of_a_constant_gradient(descend):
    # m̄_t / g is the step on a constant gradient: √v̂_t = |g|.
    values = descend(lambda p: optimizers.NAdam(p, lr=1.0, eps=0.0), [2.0] * 50)
    weights = dict(enumerate(-np.diff([0.0, *values]), start=1))
    expected = {1: 1.05645, 2: 0.784, 3: 0.732, 5: 0.746, 10: 0.843, 20: 0.945, 50: 0.998}
    assert {t: weights[t] for t in expected} == pytest.approx(expected, abs=6e-4)


def test_the_schedule_of_the_momentum():
    # μ_1, μ_250, … for β₁ = 0.9 and ψ = 1/250; mu_product holds their product.
    mu = {t: 0.9 * (1 - 0.5 * 0.96 ** (t / 250)) for t in range(1, 10_001)}
    expected = {1: 0.4501, 250: 0.468, 1000: 0.518, 2500: 0.601, 10_000: 0.812}
    assert {t: mu[t] for t in expected} == pytest.approx(expected, abs=5e-4)
    theta = torch.zeros(1, requires_grad=True)
    optimizer = optimizers.NAdam([theta])
    for _ in range(20):
        theta.grad = torch.ones(1)
        optimizer.step()
    product = optimizer.state[theta]["mu_product"]
    assert product.shape == ()
    assert product.dtype == torch.float32
    assert product.item() == pytest.approx(math.prod(mu[t] for t in range(1, 21)), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_product_keeps_its_precision_through_a_checkpoint(dtype):
    # torch casts it to the parameter's dtype on loading, and goes on with other steps.
    def run(resume):
        theta = torch.ones(3, dtype=dtype, requires_grad=True)
        optimizer = optimizers.NAdam([theta], lr=0.1)
        for t in range(12):
            if t == resume:
                state = optimizer.state_dict()
                optimizer = optimizers.NAdam([theta], lr=0.1)
                optimizer.load_state_dict(state)
            theta.grad = theta.detach() + t
            optimizer.step()
        return theta, optimizer.state[theta]["mu_product"]

    (theta, product), (resumed, other) = run(None), run(5)
    assert torch.equal(theta, resumed)
    assert torch.equal(product, other)
    assert other.dtype == torch.float32


def test_momentum_decay_is_checked():
    with pytest.raises(ValueError, match=r"momentum_decay must lie in \[0, inf\), got -1"):
        optimizers.NAdam([torch.zeros(1)], momentum_decay=-1)
