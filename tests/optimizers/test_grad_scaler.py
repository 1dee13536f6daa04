"""`torch.amp.GradScaler`'s contract: gradients are unscaled once, and an overflow moves and counts nothing."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import SGD, Adam, ClipNorm, GradientNoise, Lookahead, new_run

BOTH = pytest.mark.parametrize("fused", [False, True], ids=["eager", "compiled"])


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def parameters(dtype: torch.dtype = torch.float32) -> list[Any]:
    return [nn.Parameter(torch.linspace(-1, 1, n).to(dtype)) for n in (5, 12)]


def gradients(params: list[Any], t: int, scale: float = 1.0) -> None:
    for i, param in enumerate(params):
        grad = torch.linspace(-2, 1 + t, param.numel()) * (i + 1) * scale
        param.grad = grad.to(param.dtype)


def extended() -> list[Any]:
    return [ClipNorm(0.5), GradientNoise(0.01), Lookahead(2)]


@BOTH
@pytest.mark.parametrize("unscaled_before", [False, True])
@pytest.mark.parametrize("mix", [list, extended], ids=["plain", "extended"])
def test_scaled_training_is_training(mix: Any, unscaled_before: bool, fused: bool) -> None:
    """Six steps, one of which overflows: parameters, counts and the gradients that remain are those without."""
    params, plain = parameters(), parameters()
    optimizer = Adam(params, 0.1, extensions=mix(), fused=fused)
    new_run()  # the other one draws the same
    other = Adam(plain, 0.1, extensions=mix(), fused=fused)
    assert optimizer._step_supports_amp_scaling is fused
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    for t in range(6):
        gradients(params, t, scaler.scale(torch.ones(())).item())
        gradients(plain, t)
        if t == 3:
            params[1].grad[2] = math.inf
        if unscaled_before:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if t != 3:
            other.step()
            assert all(torch.equal(p.grad, q.grad) for p, q in zip(params, plain, strict=True))
    assert scaler.get_scale() == 2.0**12 * 2 / 2 * 2  # it grew, fell back and grew
    assert all(torch.equal(p, q) for p, q in zip(params, plain, strict=True))
    assert [float(s["step"]) for s in optimizer.state.values()] == [5, 5]
    assert not hasattr(optimizer, "grad_scale")


@BOTH
def test_the_attributes_alone(fused: bool) -> None:
    """As any loop may set them: `found_inf` leaves everything as it is, `grad_scale` divides."""
    params, plain = parameters(), parameters()
    optimizer, other = (SGD(p, 0.1, momentum=0.9, fused=fused) for p in (params, plain))
    for t, found in enumerate((0.0, 1.0, 0.0, 2.0)):
        gradients(params, t, 8.0)
        gradients(plain, t)
        before = [param.detach().clone() for param in params]
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(found)
        optimizer.step()
        if found:
            assert all(torch.equal(p.detach(), q) for p, q in zip(params, before, strict=True))
            assert float(params[0].grad[0]) == -16.0
        else:
            other.step()
            assert all(torch.equal(p, q) for p, q in zip(params, plain, strict=True))
    assert {float(s["step"]) for s in optimizer.state.values()} == {2}
    optimizer.found_inf = torch.ones(())
    assert optimizer.step(lambda: 3.0) == 3.0
    del optimizer.grad_scale, optimizer.found_inf
    gradients(params, 0)
    optimizer.step()
    assert {float(s["step"]) for s in optimizer.state.values()} == {3}


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_it_is_torchs_fused_step(name: str) -> None:
    ends = []
    for library in (torch.optim, optimizers):
        params = parameters()
        optimizer = getattr(library, name)(params, lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for t in range(4):
            gradients(params, t, scaler.scale(torch.ones(())).item() * (math.nan if t == 2 else 1))
            scaler.step(optimizer)
            scaler.update()
        ends.append(torch.cat([param.detach() for param in params]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


@BOTH
def test_half_precision_keeps_what_the_scale_has_kept(fused: bool) -> None:
    """2⁻²⁷ is 0 in float16, and 2⁻¹⁷ is not: unscaled in half precision, Adam's first step would vanish."""
    param = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    optimizer = Adam([param], 0.5, eps=2.0**-27, fused=fused)
    for t in range(2):
        param.grad = torch.full((3,), 2.0**-17, dtype=torch.float16)
        optimizer.grad_scale = torch.tensor(1024.0)
        optimizer.step()
        if t == 0:
            assert param.tolist() == [-0.25] * 3
    assert float(optimizer.state[param]["step"]) == 2


@BOTH
def test_a_shared_and_a_sparse_gradient_are_unscaled_once(fused: bool) -> None:
    params = [nn.Parameter(torch.zeros(3, 2)) for _ in range(3)]
    params[0].grad = params[1].grad = torch.full((3, 2), 8.0)
    params[2].grad = torch.sparse_coo_tensor([[1, 1]], torch.full((2, 2), 4.0), (3, 2), check_invariants=True)
    optimizer = SGD(params, 1.0, fused=fused)
    optimizer.grad_scale = torch.tensor(8.0)
    optimizer.step()
    assert torch.equal(params[0].detach(), -torch.ones(3, 2))
    assert torch.equal(params[1].detach(), -torch.ones(3, 2))
    assert params[2].tolist() == [[0, 0], [-1, -1], [0, 0]]


def test_a_differentiable_step_leaves_the_scaled_gradient() -> None:
    scaled = torch.tensor([8.0], requires_grad=True)
    param: Tensor = torch.zeros(1)
    param.grad = scaled * 2
    optimizer = SGD([param], 1.0, differentiable=True)
    optimizer.grad_scale = torch.tensor(8.0)
    optimizer.step()
    assert param.tolist() == [-2.0]
    param.sum().backward()
    assert scaled.grad.tolist() == [-0.25]
    assert param.grad.tolist() == [16.0]


def test_a_captured_step_leaves_the_scale_to_the_scaler() -> None:
    """Whether there was an overflow would have to be asked, for which a graph cannot wait."""
    assert not Adam(parameters(), fused=True, capturable=True)._step_supports_amp_scaling
    some = Adam([{"params": [param], "fused": i > 0} for i, param in enumerate(parameters())])
    assert not some._step_supports_amp_scaling
