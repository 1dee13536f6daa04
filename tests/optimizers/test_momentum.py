"""SGD: equal to torch's, and the exact predictions of Sutskever, Martens, Dahl and Hinton (2013)."""

import itertools

import numpy as np
import pytest
import torch

import optimizers

SECOND = {"lr": 0.02, "weight_decay": 0.1}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.05, "maximize": True},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05},
        {"momentum": 0.9, "dampening": 1.0, "maximize": True},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
    ],
)
def test_equals_torch(same_as_torch, options):
    same_as_torch(optimizers.SGD, torch.optim.SGD, SECOND, lr=0.05, **options)


def test_nesterov_is_classical_momentum_with_a_momentum_of_its_own_per_curvature(descend):
    # Theorem 2.1: on a quadratic, NAG with μ makes the steps of classical momentum with μ (1 − α λ).
    # torch's iterates are Sutskever's look-ahead points y_t = θ_t + μ v_t: θ is recovered from them.
    lr, mu, curvature, steps = 0.3, 0.9, 0.7, 300
    points = descend(
        lambda p: optimizers.SGD(p, lr=lr, momentum=mu, nesterov=True),
        lambda theta, t: curvature * theta,
        start=1.0,
        steps=steps,
    )
    theta, velocity = 1.0, 0.0
    for t in range(steps):
        velocity = mu * (1 - lr * curvature) * velocity - lr * curvature * theta
        theta = theta + velocity
        assert points[t] == pytest.approx(theta + mu * velocity, abs=1e-12)


def test_classical_momentum_is_the_papers_at_a_constant_learning_rate(descend):
    lr, mu = 0.1, 0.95
    gradients = np.random.default_rng(0).standard_normal(100)
    values = descend(lambda p: optimizers.SGD(p, lr=lr, momentum=mu), gradients)
    theta, velocity = 0.0, 0.0
    for value, gradient in zip(values, gradients, strict=True):
        velocity = mu * velocity - lr * gradient
        theta = theta + velocity
        assert value == pytest.approx(theta, abs=1e-12)


def test_the_velocity_oscillates_at_radius_root_mu(descend):
    # For (1 − √μ)² < α λ < (1 + √μ)² both eigenvalues have modulus √μ, whatever the curvature: the energy
    # x_t² − (1 + μ − α λ) x_t x_{t−1} + μ x_{t−1}² falls by exactly μ per step.
    mu, curvature = 0.81, 1.0
    for lr in (0.02, 0.5, 3.5):
        x = descend(lambda p, lr=lr: optimizers.SGD(p, lr=lr, momentum=mu), lambda x, t: curvature * x, 1.0, 60)
        energy = [b * b - (1 + mu - lr * curvature) * a * b + mu * a * a for a, b in itertools.pairwise(x)]
        for t, (before, after) in enumerate(itertools.pairwise(energy)):
            assert after == pytest.approx(mu * before, rel=1e-9), (lr, t)


@pytest.mark.parametrize("wrong", [{"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.5}])
def test_nesterov_needs_momentum_and_no_dampening(wrong):
    with pytest.raises(ValueError, match="nesterov needs momentum above 0 and dampening 0"):
        optimizers.SGD([torch.zeros(1)], nesterov=True, **wrong)
