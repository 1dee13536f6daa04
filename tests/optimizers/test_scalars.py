"""Every rule reads the same with `step` and `lr` as numbers, as tensors (`capturable`), and under autograd."""

import inspect

import pytest
import torch

import optimizers

NAMED = [
    cls
    for cls in (getattr(optimizers, name) for name in optimizers.__all__)
    if inspect.isclass(cls) and issubclass(cls, optimizers.Chain) and cls is not optimizers.Chain
]
CASES = [(cls, {}) for cls in NAMED] + [
    (optimizers.Adam, {"amsgrad": True, "nesterov": True, "weight_decay": 0.1}),
    (optimizers.AdamW, {"decay": "schedule", "nesterov": True}),
    (optimizers.NAdam, {"momentum_decay": None, "decoupled_weight_decay": True, "weight_decay": 0.1}),
    (optimizers.RAdam, {"threshold": 4, "nesterov": True}),
    (optimizers.RAdam, {"betas": (0.9, 0.6)}),
    (optimizers.AMSGrad, {"nesterov": True}),
    (optimizers.AdaBound, {"nesterov": True, "gamma": 0.1}),
    (optimizers.SGDW, {"momentum": 0.9, "nesterov": True}),
    (optimizers.SGD, {"momentum": 0.9, "dampening": 0.1}),
    (optimizers.RMSprop, {"momentum": 0.9, "centered": True, "nesterov": True, "lr": 1e-3}),
]
each_case = pytest.mark.parametrize(("cls", "options"), CASES, ids=lambda v: getattr(v, "__name__", None))


def run(cls, options, steps=10, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(4, 3, generator=random, dtype=dtype).requires_grad_()
    optimizer = cls([theta], **options)
    for _ in range(steps):
        theta.grad = theta.detach() + torch.randn(theta.shape, generator=random, dtype=dtype)
        optimizer.step()
    return theta.detach(), optimizer


@each_case
def test_capturable_with_lr_in_a_tensor(cls, options):
    expected, optimizer = run(cls, options)
    lr = torch.tensor(optimizer.defaults["lr"], dtype=torch.float64)
    theta, captured = run(cls, {**options, "lr": lr, "capturable": True})
    # 1 − β₂ᵗ in float32, as torch keeps `step`, is known to 6e-8 / 1e-3
    torch.testing.assert_close(theta, expected, rtol=1e-4, atol=1e-6)
    (state,) = captured.state.values()
    assert state["step"].item() == 10
    assert theta.dtype == torch.float64


@each_case
def test_differentiable_makes_the_same_steps(cls, options):
    expected, _ = run(cls, options)
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(4, 3, generator=random, dtype=torch.float64).requires_grad_()
    param = theta.clone()
    optimizer = cls([param], differentiable=True, **options)
    for _ in range(10):
        param.grad = param.detach() + torch.randn(param.shape, generator=random, dtype=torch.float64)
        optimizer.step()
    torch.testing.assert_close(param.detach(), expected, rtol=0, atol=1e-14)
    param.sum().backward()
    assert torch.isfinite(theta.grad).all()
    assert (theta.grad != 0).any()


@pytest.mark.parametrize("cls", NAMED)
def test_lr_zero_moves_nothing(cls):
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(5, generator=random, dtype=torch.float64).requires_grad_()
    start = theta.detach().clone()
    optimizer = cls([theta], lr=0.0)
    for _ in range(3):
        theta.grad = torch.randn(5, generator=random, dtype=torch.float64)
        optimizer.step()
    assert torch.equal(theta.detach(), start)


@pytest.mark.parametrize("cls", NAMED)
def test_every_optimizer_documents_its_arguments_and_its_source(cls):
    text = inspect.getdoc(cls) or ""
    assert ".. math::" in text
    assert "Raises:" in text
    assert any(year in text for year in ("2011", "2012", "2013", "2015", "2016", "2018", "2019", "2020"))
    for name in inspect.signature(cls).parameters:
        assert f"{name}:" in text or f"{name}," in text, name
