"""Lion: equal to the paper's algorithm, and what a step of one size does (Chen et al. 2023)."""

import numpy as np
import pytest
import torch

import optimizers


def lion(theta, gradient, t, eta, memory, lr, betas=(0.9, 0.99), weight_decay=0.0, unit=None):
    """Algorithm 2: u = sign(β₁ m + (1 − β₁) g); θ − η (u + λ θ); m = β₂ m + (1 − β₂) g."""
    beta1, beta2 = betas
    m = memory.get("m", 0.0)
    memory["m"] = beta2 * m + (1 - beta2) * gradient
    direction = np.sign(beta1 * m + (1 - beta1) * gradient)
    return theta - lr * eta * direction - (unit or lr) * eta * weight_decay * theta


@pytest.mark.parametrize(("decay", "unit"), [("lr", None), ("schedule", 1.0)])
def test_equals_the_paper(follows, decay, unit):
    groups = [
        {"lr": 0.02},
        {"lr": 0.01, "betas": (0.95, 0.98), "weight_decay": 0.3},
        {"lr": 0.01, "betas": (0.0, 0.5)},
    ]
    follows(lambda p: optimizers.Lion(p, decay=decay), lambda *a, **group: lion(*a, **group, unit=unit), groups)


def test_with_equal_betas_it_is_signum(descend):
    gradients = np.random.default_rng(0).standard_normal(200)
    paths = [
        descend(lambda p: optimizers.Lion(p, lr=0.01, betas=(0.9, 0.9), weight_decay=0.1), gradients, 1.0),
        descend(
            lambda p: optimizers.Signum(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True), gradients, 1.0
        ),
    ]
    # (Their averages' last digits differ: one is kept, the other is made twice.)
    assert paths[0] == pytest.approx(paths[1], abs=1e-14)
    assert len(set(paths[0])) > 100


@pytest.mark.parametrize("fused", [False, True])
def test_a_coordinate_moves_by_the_learning_rate_or_not_at_all(fused):
    lr = 2.0**-7  # and so are the parameters' differences, without rounding
    theta = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.Lion([theta], lr=lr, fused=fused)
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        before = theta.detach().clone()
        theta.grad = torch.randn(1000, generator=random, dtype=torch.float64)
        theta.grad[:100] = 0.0  # an embedding of words that were not seen
        optimizer.step()
        moved = theta.detach() - before
        assert set(moved[100:].tolist()) == {-lr, lr}
        assert set(moved[:100].tolist()) == {0.0}


def test_weights_end_within_one_over_the_decay():
    # Gradients of mean ½ and deviation 1 push every weight to −1/λ = −10, from far outside.
    lr, decay = 0.01, 0.1
    random = torch.Generator().manual_seed(0)
    start = 30.0 * torch.randn(500, generator=random, dtype=torch.float64)
    theta = start.clone().requires_grad_()
    optimizer = optimizers.Lion([theta], lr=lr, weight_decay=decay)
    largest = {}
    for t in range(1, 8001):
        theta.grad = 0.5 + torch.randn(500, generator=random, dtype=torch.float64)
        optimizer.step()
        if t % 500 == 0:
            bound = 1 / decay + (start.abs() - 1 / decay).clamp(min=0.0) * (1 - lr * decay) ** t
            assert (theta.detach().abs() <= bound + 1e-9).all()
            largest[t] = theta.detach().abs().max().item()
    assert start.abs().max() > 80
    assert 20 < largest[1000] < start.abs().max() / 2
    assert 10 < largest[5000] < 11
    assert largest[8000] == pytest.approx(10, abs=0.05)


def cycle(values, lr):
    """The period in which the end of a path repeats itself, and how many steps of lr it goes to either side."""
    tail = np.array(values[-600:]) / lr
    period = next(p for p in range(1, 300) if np.abs(tail[p:] - tail[:-p]).max() < 1e-6)
    return period, np.abs(tail).max()


@pytest.mark.parametrize(
    ("make", "period", "amplitude"),
    [
        (lambda p: optimizers.Lion(p, lr=0.01), 4, 1.0),
        (lambda p: optimizers.Lion(p, lr=0.01, betas=(0.95, 0.98)), 4, 1.0),
        (lambda p: optimizers.Signum(p, lr=0.01), 8, 2.0),
        (lambda p: optimizers.Signum(p, lr=0.01, momentum=0.99), 28, 7.0),
        (lambda p: optimizers.Signum(p, lr=0.01, momentum=0.0), 2, 1.0),
    ],
)
def test_the_second_beta_keeps_the_cycle_around_a_minimum_short(descend, make, period, amplitude):
    """On x²/2 from x = 1, a hundred steps away: the same long average, damped by the gradient of now."""
    found = cycle(descend(make, lambda x, t: x, 1.0, 1500), 0.01)
    assert found == (period, pytest.approx(amplitude, abs=1e-6))


def test_it_stays_nearer_from_wherever_it_starts():
    """Period and amplitude depend on how the path meets the minimum; that Lion stays nearer does not."""
    start = 1.0 + 0.01 * torch.linspace(0, 1, 101, dtype=torch.float64)[:-1]

    def reach(make):
        theta = start.clone().requires_grad_()
        optimizer, largest = make([theta]), torch.zeros_like(start)
        for t in range(1500):
            theta.grad = theta.detach().clone()
            optimizer.step()
            if t >= 900:
                largest = torch.maximum(largest, theta.detach().abs() / 0.01)
        return largest

    near = reach(lambda p: optimizers.Lion(p, lr=0.01))
    far = reach(lambda p: optimizers.Signum(p, lr=0.01, momentum=0.99))
    assert near.max() < 1.5
    assert far.min() > 2.4
    assert far.max() > 9


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must lie in \[0, 1\), got 1.0"),
        ({"betas": (0.9, 0.99, 0.999)}, TypeError, "betas must be two numbers, got"),
        ({"decay": "cosine"}, ValueError, "decay must be one of"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        optimizers.Lion([torch.zeros(1)], **options)
