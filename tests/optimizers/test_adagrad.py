"""Adagrad: equal to torch's, and exact predictions of its rule."""

import numpy as np
import pytest
import torch

import optimizers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr_decay": 0.1, "weight_decay": 0.05},
        {"initial_accumulator_value": 0.5, "eps": 1e-3, "maximize": True},
        {"lr_decay": 0.01, "initial_accumulator_value": 0.1, "weight_decay": 0.05},
    ],
)
def test_equals_torch(same_as_torch, options):
    second = {"lr": 0.05, "weight_decay": 0.1, "lr_decay": 0.02, "eps": 1e-6}
    same_as_torch(optimizers.Adagrad, torch.optim.Adagrad, second, lr=0.2, **options)


def test_a_constant_gradient_moves_as_one_over_root_t(descend):
    values = descend(lambda p: optimizers.Adagrad(p, lr=0.1, eps=0.0), [7.0] * 50)
    assert values == pytest.approx(-0.1 * np.cumsum(1 / np.sqrt(np.arange(1, 51))), abs=1e-12)


def test_the_scale_of_the_loss_does_not_matter(descend):
    gradients = np.random.default_rng(0).standard_normal(50)
    values = [descend(lambda p: optimizers.Adagrad(p, eps=0.0), scale * gradients) for scale in (1.0, 1e6, 1e-6)]
    assert values[1] == pytest.approx(values[0], abs=1e-12)
    assert values[2] == pytest.approx(values[0], abs=1e-12)


def test_at_a_saddle_the_count_of_steps_does_not_depend_on_the_start(descend):
    # f = x² − y²: SGD's count doubles from y₀ = 1e-3 to 1e-6, Adagrad's stays, and is larger than SGD's.
    def steps(make, start):
        values = descend(make, lambda y, t: -2 * y, start, 1400)
        return next(t for t, y in enumerate(values, start=1) if abs(y) > 1)

    assert [steps(lambda p: optimizers.SGD(p, lr=0.01), y) for y in (1e-3, 1e-6)] == [349, 698]
    assert [steps(lambda p: optimizers.Adagrad(p, lr=0.01), y) for y in (1e-3, 1e-6)] == [1263, 1263]
