"""The models: sizes, initialization, and the global random state left alone."""

import math

import pytest
import torch
from torch import nn

from experiments import models
from experiments.problems import Quadratic

FACTORIES = [models.logistic, models.mlp, models.cnn]


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (models.logistic(784, 10, seed=0), 7850),
        (models.mlp(seed=0), 50_890),
        (models.mlp(64, (32, 16), 10, seed=0), 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10),
        (models.cnn(seed=0), 808_458),
    ],
)
def test_parameter_counts(model: nn.Module, parameters: int) -> None:
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_shapes_of_the_outputs() -> None:
    assert models.mlp(seed=0)(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert models.logistic(64, 7, seed=0)(torch.zeros(3, 1, 8, 8)).shape == (3, 7)
    assert models.cnn(1, 8, 5, seed=0)(torch.zeros(3, 1, 8, 8)).shape == (3, 5)


def test_weights_are_xavier_normal_and_biases_zero() -> None:
    model = models.mlp(784, (500,), 10, seed=0)
    first, last = (layer for layer in model if isinstance(layer, nn.Linear))
    for layer in (first, last):
        expected = math.sqrt(2 / (layer.in_features + layer.out_features))
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.03)
        assert float(layer.weight.detach().mean()) == pytest.approx(0, abs=0.05 * expected)
        assert not layer.bias.any()
    convolution = models.cnn(seed=0)[2]
    assert float(convolution.weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.03)


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_seed_decides_and_the_global_state_is_untouched(factory: type[nn.Module]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = factory(seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = factory(seed=7), factory(seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_the_running_quadratic() -> None:
    bowl = Quadratic()
    theta = bowl.initial().requires_grad_()
    assert theta.dtype == torch.float64
    loss = bowl.loss(theta)
    assert loss.item() == 0.5 * (1 * 4.0**2 + 20 * 1.5**2)
    (gradient,) = torch.autograd.grad(loss, theta)
    assert torch.equal(gradient, bowl.gradient(theta.detach()))
    assert torch.equal(bowl.gradient(bowl.initial()), torch.tensor([-4.0, 30.0], dtype=torch.float64))
    assert bowl.loss(torch.zeros(5, 3, 2, dtype=torch.float64)).shape == (5, 3)
    with pytest.raises(ValueError, match="3 curvatures but a start of 2 coordinates"):
        Quadratic(curvatures=(1.0, 2.0, 3.0))
