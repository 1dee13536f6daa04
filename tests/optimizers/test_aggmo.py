"""AggMo: equal to the paper's equations, and the exact predictions of Lucas, Sun, Zemel and Grosse (2019)."""

import numpy as np
import pytest
import torch

import optimizers


def aggmo(theta, gradient, t, eta, memory, lr, betas=(0.0, 0.9, 0.99), weight_decay=0.0):
    """Equation 2: θ_t = θ_{t−1} + (γ_t / K) Σ v_t⁽ⁱ⁾ with v_t⁽ⁱ⁾ = β⁽ⁱ⁾ v_{t−1}⁽ⁱ⁾ − ∇f."""
    gradient = gradient + weight_decay * theta
    total = 0.0
    for i, beta in enumerate(betas):
        memory[i] = beta * memory.get(i, 0.0) - gradient
        total = total + memory[i]
    return theta + eta * lr / len(betas) * total


def test_equals_the_paper(follows):
    groups = [
        {"lr": 0.02},
        {"lr": 0.01, "weight_decay": 0.3},
        {"lr": 0.01, "betas": (0.0, 0.9, 0.99, 0.999)},
        {"lr": 0.01, "betas": (0.5, 0.5)},
    ]
    follows(optimizers.AggMo, aggmo, groups)


def test_decoupled_decay(follows):
    def oracle(theta, gradient, t, eta, memory, lr, weight_decay):
        return aggmo(theta, gradient, t, eta, memory, lr) - eta * lr * weight_decay * theta

    def make(groups):
        return optimizers.AggMo(groups, decoupled_weight_decay=True)

    follows(make, oracle, [{"lr": 0.02, "weight_decay": 0.3}, {"lr": 0.01, "weight_decay": 0.1}])


def test_one_velocity_is_classical_momentum(descend):
    gradients = np.random.default_rng(0).standard_normal(50)
    aggregated = descend(lambda p: optimizers.AggMo(p, lr=0.1, betas=(0.9,)), gradients)
    classical = descend(lambda p: optimizers.SGD(p, lr=0.1, momentum=0.9), gradients)
    assert aggregated == pytest.approx(classical, abs=1e-14)


def test_on_a_slope_the_speed_is_the_mean_of_the_gains(descend):
    values = descend(lambda p: optimizers.AggMo(p, lr=1.0), [1.0] * 3000)
    assert values[-2] - values[-1] == pytest.approx((1 + 10 + 100) / 3, rel=1e-9)


def converged(make, kappa, steps):
    """Steps until f stays below 1e-6 of its start, on eigenvalues 1, κ^−½ and 1/κ from (1, 1, 1); the lowest x₁."""
    curvature = torch.tensor([1.0, kappa**-0.5, 1 / kappa], dtype=torch.float64)
    theta = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = make([theta])
    f, lowest = [], 0.0
    for _ in range(steps):
        theta.grad = curvature * theta.detach()
        optimizer.step()
        f.append((curvature * theta.detach() ** 2).sum().item() / curvature.sum().item())
        lowest = min(lowest, theta[0].item())
    return 1 + max((t for t, value in enumerate(f, start=1) if value >= 1e-6), default=0), lowest


@pytest.mark.parametrize(
    ("kappa", "lr", "classical", "aggregated"),
    [(100, 1.0, 1383, 199), (1000, 0.33, 1377, 487), (1000, 0.1, 1372, 642)],
)
def test_the_fast_velocities_damp_the_slow(kappa, lr, classical, aggregated):
    steps, lowest = converged(lambda p: optimizers.AggMo(p, lr=lr), kappa, 1000)
    assert steps == aggregated
    slow, lower = converged(lambda p: optimizers.SGD(p, lr=lr, momentum=0.99), kappa, 1500)
    assert slow == classical
    assert lower < lowest


def test_one_buffer_per_velocity_whatever_the_group():
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = optimizers.AggMo([{"params": params[0]}, {"params": params[1], "betas": (0.5, 0.5)}])
    for param in params:
        param.grad = torch.ones(2)
    optimizer.step()
    assert list(optimizer.state[params[0]]) == ["step", *(f"momentum_buffer_{i}" for i in range(3))]
    assert list(optimizer.state[params[1]]) == ["step", *(f"momentum_buffer_{i}" for i in range(2))]


@pytest.mark.parametrize(
    ("betas", "error"),
    [(0.9, TypeError), ((), TypeError), ((0.0, 1.0), ValueError), ((0.0, "x"), TypeError)],
)
def test_wrong_betas_are_refused(betas, error):
    with pytest.raises(error, match="betas"):
        optimizers.AggMo([torch.zeros(1)], betas=betas)
