"""RAdam and RAdamW: equal to torch's, and the exact predictions of Liu et al. (2020)."""

import math

import numpy as np
import pytest
import torch

import optimizers
from optimizers.radam import rectification, sma_length


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.05},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
        {"betas": (0.9, 0.5)},
        {"betas": (0.9, 0.6)},
    ],
)
@pytest.mark.parametrize(
    "second",
    [
        {"lr": 0.05, "weight_decay": 0.2, "betas": (0.5, 0.9)},
        {"lr": 0.05, "weight_decay": 0.2, "decoupled_weight_decay": True},
        {"lr": 0.05, "weight_decay": 0.2, "decoupled_weight_decay": False, "betas": (0.9, 0.0)},
    ],
)
def test_equals_torch(same_as_torch, options, second):
    same_as_torch(optimizers.RAdam, torch.optim.RAdam, second, lr=0.02, **options)


def radam(
    theta,
    gradient,
    t,
    eta,
    memory,
    lr,
    betas=(0.9, 0.999),
    threshold=5,
    weight_decay=0.0,
    nesterov=False,
    unit=None,
):
    """Algorithm 2 of the paper; `threshold` is 4 there. The decay is decoupled, × lr, or × schedule with `unit`."""
    beta1, beta2 = betas
    m = memory["m"] = beta1 * memory.get("m", 0.0) + (1 - beta1) * gradient
    v = memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
    direction = m / (1 - beta1**t)
    if nesterov:
        direction = beta1 * m / (1 - beta1 ** (t + 1)) + (1 - beta1) * gradient / (1 - beta1**t)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    if rho > threshold:
        r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        direction = r * direction * math.sqrt(1 - beta2**t) / (np.sqrt(v) + 1e-8)
    return theta - lr * eta * direction - (unit or lr) * eta * weight_decay * theta


def test_the_papers_threshold(follows):
    groups = [{"lr": 0.02}, {"lr": 0.01, "betas": (0.6, 0.9)}, {"lr": 0.01, "threshold": 5}]
    # The group's own value goes to the oracle; the default, to both.
    follows(
        lambda p: optimizers.RAdam(p, threshold=4),
        lambda *args, **group: radam(*args, **{"threshold": 4, **group}),
        groups,
    )


def test_nesterov(follows):
    follows(
        lambda p: optimizers.RAdam(p, nesterov=True),
        lambda *args, **group: radam(*args, **group, nesterov=True),
        [{"lr": 0.02}, {"lr": 0.01, "betas": (0.6, 0.9)}],
    )


@pytest.mark.parametrize(("decay", "unit"), [("lr", None), ("schedule", 1.0)])
def test_radamw(follows, decay, unit):
    follows(
        lambda p: optimizers.RAdamW(p, decay=decay),
        lambda *args, **group: radam(*args, **{"weight_decay": 0.01, **group}, unit=unit),
        [{"lr": 0.02, "weight_decay": 0.1}, {"lr": 0.01, "betas": (0.6, 0.9)}],
    )


def test_radamw_is_torchs_decoupled_radam(same_as_torch):
    def theirs(params, **options):
        return torch.optim.RAdam(params, decoupled_weight_decay=True, **options)

    same_as_torch(optimizers.RAdamW, theirs, {"lr": 0.05, "weight_decay": 0.3}, lr=0.02, weight_decay=0.1)


def test_the_length_of_the_average():
    lengths = [sma_length(0.999, t)[0] for t in range(1, 9)]
    assert lengths == pytest.approx([1, 1.9995, 2.9987, 3.9975, 4.996, 5.994, 6.992, 7.990], abs=6e-4)


@pytest.mark.parametrize("beta2", [0.9, 0.98, 0.99, 0.999])
@pytest.mark.parametrize(("threshold", "first"), [(4, 5), (5, 6)])
def test_the_first_rectified_step(beta2, threshold, first):
    assert next(t for t in range(1, 100) if sma_length(beta2, t)[0] > threshold) == first


def test_the_rectification_is_a_warm_up():
    r = {t: rectification(*sma_length(0.999, t), True) for t in range(6, 3000)}
    expected = {10: 0.049, 100: 0.215, 500: 0.476, 1000: 0.645, 2000: 0.828}
    assert {t: r[t] for t in expected} == pytest.approx(expected, abs=6e-4)
    gap = {t: abs(r[t] - (1 - math.exp(-0.001 * t))) for t in r}
    assert max(gap, key=gap.__getitem__) == 167
    assert gap[167] == pytest.approx(0.126, abs=1e-3)


def test_the_steps_before_are_in_the_unit_of_the_gradient(descend):
    # Scale-free from the sixth step on, momentum's steps before: × 10⁴ with the loss × 10⁴.
    small, large = (descend(lambda p: optimizers.RAdam(p, lr=1e-3, eps=0.0), [g] * 8) for g in (1.0, 1e4))
    steps = np.diff([0.0, *large]) / np.diff([0.0, *small])
    assert steps == pytest.approx([1e4] * 5 + [1.0] * 3)


def test_a_threshold_below_four_is_refused():
    with pytest.raises(ValueError, match=r"threshold must lie in \[4, inf\), got 3"):
        optimizers.RAdam([torch.zeros(1)], threshold=3)
