"""Adadelta: equal to torch's, and exact predictions of Zeiler (2012)."""

import numpy as np
import pytest
import torch

import optimizers


@pytest.mark.parametrize(
    "options",
    [{}, {"rho": 0.95, "weight_decay": 0.05}, {"lr": 0.5, "eps": 1e-3, "maximize": True}],
)
def test_equals_torch(same_as_torch, options):
    second = {"lr": 2.0, "weight_decay": 0.1, "rho": 0.8, "eps": 1e-4}
    same_as_torch(optimizers.Adadelta, torch.optim.Adadelta, second, **options)


@pytest.mark.parametrize("gradient", [1.0, 1e3, -1e6])
def test_the_first_step_is_set_by_eps(descend, gradient):
    (step,) = descend(lambda p: optimizers.Adadelta(p, rho=0.95, eps=1e-6), [gradient])
    assert step == pytest.approx(-np.sign(gradient) * np.sqrt(1e-6 / 0.05), rel=1e-4)
    assert abs(step) == pytest.approx(0.004472, abs=1e-6)


@pytest.mark.parametrize(("eps", "steps"), [(1e-2, 4), (1e-4, 42), (1e-6, 316), (1e-8, 1810)])
def test_eps_sets_the_speed(descend, eps, steps):
    values = descend(lambda p: optimizers.Adadelta(p, rho=0.95, eps=eps), lambda x, t: x, 1.0, 1850)
    assert next(t for t, x in enumerate(values, start=1) if abs(x) < 0.1) == steps
