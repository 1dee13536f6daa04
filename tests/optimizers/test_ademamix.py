"""AdEMAMix: equal to the paper's algorithm and schedules; what its slow average does (Pagliardini et al. 2025)."""

import math

import numpy as np
import pytest
import torch

import optimizers
from optimizers.ademamix import half_life, slow_beta


def ademamix(
    theta, gradient, t, eta, memory, lr, betas=(0.9, 0.999, 0.9999), alpha=5.0, eps=1e-8, weight_decay=0.0,
    beta3_warmup=None, alpha_warmup=None, unit=None,
):  # fmt: skip
    """Algorithm 1, with the schedules of section 3: only the slow average is not corrected."""
    beta1, beta2, beta3 = betas
    if alpha_warmup is not None:
        alpha = min(t * alpha / alpha_warmup, alpha)
    if beta3_warmup is not None:
        x = t / beta3_warmup
        a, b = math.log(beta1), math.log(beta3)
        beta3 = min(math.exp(a * b / ((1 - x) * b + x * a)), beta3)
    m1 = memory["m1"] = beta1 * memory.get("m1", 0.0) + (1 - beta1) * gradient
    m2 = memory["m2"] = beta3 * memory.get("m2", 0.0) + (1 - beta3) * gradient
    v = memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
    direction = (m1 / (1 - beta1**t) + alpha * m2) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return theta - lr * eta * direction - (unit or lr) * eta * weight_decay * theta


GROUPS = [
    {"lr": 0.02},
    {"lr": 0.01, "betas": (0.6, 0.9, 0.99), "alpha": 8.0, "weight_decay": 0.3},
    {"lr": 0.01, "betas": (0.9, 0.99, 0.999), "beta3_warmup": 30, "alpha_warmup": 20},
    {"lr": 0.01, "betas": (0.5, 0.99, 0.999), "beta3_warmup": 100, "eps": 0.1},
    {"lr": 0.01, "betas": (0.0, 0.9, 0.99)},
]


@pytest.mark.parametrize(("decay", "unit"), [("lr", None), ("schedule", 1.0)])
def test_equals_the_paper(follows, decay, unit):
    follows(
        lambda p: optimizers.AdEMAMix(p, decay=decay),
        lambda *args, **group: ademamix(*args, **group, unit=unit),
        GROUPS,
    )


def test_without_its_slow_average_it_is_adamw(descend):
    gradients = np.random.default_rng(0).standard_normal(50)
    paths = [
        descend(lambda p: optimizers.AdEMAMix(p, alpha=0.0, weight_decay=0.1), gradients, 1.0),
        descend(lambda p: optimizers.AdamW(p, weight_decay=0.1), gradients, 1.0),
    ]
    assert paths[0] == pytest.approx(paths[1], abs=1e-15)


def test_in_the_long_run_it_steps_as_adamw_with_a_larger_rate():
    """Under a constant gradient the step is lr (1 + α (1 − β₃ᵗ)): the control is AdamW at 1 + α times the rate."""
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.AdEMAMix([theta], lr=1.0, alpha=5.0, eps=0.0, fused=True)
    theta.grad = torch.ones(1, dtype=torch.float64)
    expected = {1: 1.0005, 10: 1.005, 100: 1.05, 1000: 1.476, 6931: 3.500, 10_000: 4.161, 50_000: 5.966}
    found = {}
    for t in (*range(1, 10_001), 50_000):
        if t == 50_000:  # its state 40,000 steps on
            optimizer.state[theta]["step"].fill_(t - 1)
            for name, beta in (("exp_avg", 0.9), ("exp_avg_slow", 0.9999), ("exp_avg_sq", 0.999)):
                optimizer.state[theta][name].fill_(1 - beta ** (t - 1))
        before = theta.item() if t in expected else 0.0
        optimizer.step()
        if t in expected:
            found[t] = before - theta.item()
    assert found == pytest.approx(expected, abs=1e-3)
    assert found == pytest.approx({t: 1 + 5 * (1 - 0.9999**t) for t in expected}, abs=1e-9)


def test_the_half_life_of_the_slow_average_grows_linearly():
    betas = [slow_beta(t, 0.9, 0.9999, 1000) for t in (250, 500, 750, 1000, 2000)]
    assert betas == pytest.approx([0.999601, 0.9998, 0.999867, 0.9999, 0.9999], abs=5e-7)
    assert [half_life(beta) for beta in betas[:4]] == pytest.approx([1738, 3469, 5200, 6931], abs=1)
    assert np.diff([half_life(slow_beta(t, 0.9, 0.9999, 1000)) for t in range(1, 1001)]) == pytest.approx(
        6.925, abs=1e-3
    )
    assert slow_beta(1, 0.9, 0.9999, None) == 0.9999
    assert 0 < slow_beta(1, 0.0, 0.9999, 1000) < slow_beta(999, 0.0, 0.9999, 1000) < 0.9999


def test_a_slow_average_has_hardly_begun_after_a_thousand_steps(descend):
    shares = [1 - 0.9999**steps for steps in (100, 1000, 10_000)]
    assert shares == pytest.approx([0.010, 0.095, 0.63], abs=3e-3)
    # A single gradient's impulse on what is remembered: (1 − β₃) β₃ᵏ.
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.AdEMAMix([theta])
    for t in range(4):
        theta.grad = torch.full((1,), float(t == 0), dtype=torch.float64)
        optimizer.step()
        assert optimizer.state[theta]["exp_avg_slow"].item() == pytest.approx(1e-4 * 0.9999**t)


@pytest.mark.parametrize("fused", [False, True])
def test_a_first_beta_of_zero_keeps_no_fast_average(fused):
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    groups = [{"params": params[0]}, {"params": params[1], "betas": (0.0, 0.999, 0.9999)}]
    optimizer = optimizers.AdEMAMix(groups, fused=fused)
    for param in params:
        param.grad = torch.ones(2)
    optimizer.step()
    assert list(optimizer.state[params[0]]) == ["step", "exp_avg", "exp_avg_slow", "exp_avg_sq"]
    assert list(optimizer.state[params[1]]) == ["step", "exp_avg_slow", "exp_avg_sq"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"betas": (0.9, 0.999)}, TypeError, r"betas must be three numbers, got \(0.9, 0.999\)"),
        ({"betas": (0.9, 0.999, 0.9999, 0.5)}, TypeError, "betas must be three numbers"),
        ({"betas": 0.9}, TypeError, "betas must be one or more numbers, got 0.9"),
        ({"betas": (0.9, 0.999, 1.0)}, ValueError, r"betas\[2\] must lie in \[0, 1\), got 1.0"),
        ({"alpha": -1.0}, ValueError, r"alpha must lie in \[0, inf\), got -1.0"),
        ({"alpha_warmup": 0}, ValueError, r"alpha_warmup must lie in \[1, inf\), got 0"),
        ({"beta3_warmup": 10.5}, TypeError, r"beta3_warmup must be a whole number in \[1, inf\), got 10.5"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        optimizers.AdEMAMix([torch.zeros(1)], **options)


def test_a_wrong_number_of_betas_of_a_group_is_named():
    with pytest.raises(TypeError, match=r"betas of parameter group 1 must be three numbers, got \(0.9, 0.99\)"):
        optimizers.AdEMAMix([{"params": torch.zeros(1)}, {"params": torch.zeros(1), "betas": (0.9, 0.99)}])
