"""What can be read of a direction: by what it multiplies the gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import SOAP, Adam, ClipNorm, Lion, Muon, Shampoo

DIAGONAL: dict[str, dict[str, Any]] = {
    "adam": {"betas": (0.0, 0.99)},
    "adamw": {"betas": (0.0, 0.99), "weight_decay": 0.0},
    "nadam": {"betas": (0.0, 0.99), "momentum_decay": None},
    "amsgrad": {"betas": (0.0, 0.99)},
    "adabelief": {"betas": (0.1, 0.99), "eps": 1e-8},
    "ademamix": {"betas": (0.0, 0.99, 0.9), "alpha": 0.0, "weight_decay": 0.0},
    "rmsprop": {"centered": True},
    "adagrad": {},
}


def stepped(make: Any, shape: tuple[int, ...] = (3, 2), steps: int = 4) -> tuple[Any, nn.Parameter, Tensor]:
    """An optimizer after some steps, its parameter, and by how much the last one moved it."""
    random = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64))
    optimizer = make([param])
    before = param.detach().clone()
    for _ in range(steps):
        before = param.detach().clone()
        param.grad = torch.randn(shape, generator=random, dtype=torch.float64)
        optimizer.step()
    return optimizer, param, before - param.detach()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", DIAGONAL)
def test_times_the_gradient_it_is_the_step(name: str, fused: bool) -> None:
    optimizer, param, step = stepped(
        lambda params: optimizers.create(name, params, lr=0.1, fused=fused, **DIAGONAL[name])
    )
    assert param.grad is not None
    average = optimizer.state[param]["exp_avg"] / (1 - 0.1**4) if name == "adabelief" else param.grad
    scale = optimizer.preconditioner(param)
    assert scale.shape == param.shape
    assert torch.allclose(0.1 * scale * average, step, rtol=1e-10, atol=0)


def test_of_matrices_it_is_the_factors() -> None:
    optimizer, param, step = stepped(lambda params: Shampoo(params, lr=0.1))
    assert param.grad is not None
    left, right = optimizer.preconditioner(param)
    assert torch.allclose(0.1 * left @ param.grad @ right, step, rtol=1e-10, atol=1e-14)
    optimizer, param, step = stepped(lambda params: SOAP(params, lr=0.1, betas=(0.0, 0.9), weight_decay=0.0))
    left, scale, right = optimizer.preconditioner(param)
    assert param.grad is not None
    inside = left.mT @ param.grad @ right
    assert torch.allclose(0.1 * left @ (scale * inside) @ right.mT, step, rtol=1e-10, atol=1e-14)


def test_of_a_complex_parameter_each_part_has_its_own() -> None:
    param = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
    optimizer = Adam([param], lr=0.1)
    param.grad = torch.tensor([0.5 + 2j, 0.25 - 4j])
    optimizer.step()
    expected = 1 / torch.view_as_real(param.grad).abs()
    assert torch.allclose(optimizer.preconditioner(param), expected, rtol=1e-5)


def test_where_there_is_none_an_error_says_so() -> None:
    optimizer, param, _ = stepped(lambda params: Lion(params, lr=0.1))
    with pytest.raises(ValueError, match="Lion multiplies the gradient by nothing"):
        optimizer.preconditioner(param)
    with pytest.raises(ValueError, match=r"a parameter of shape \(2,\) has made no step with this Lion"):
        optimizer.preconditioner(torch.ones(2))


def test_clipping_before_muon_warns() -> None:
    param = nn.Parameter(torch.ones(2, 2))
    with pytest.warns(UserWarning, match="ClipNorm before MuonDirection: its step does not depend"):
        Muon([param], extensions=[ClipNorm(1.0)])
