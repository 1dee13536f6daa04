"""Every rule reads the same with `step` and `lr` as numbers, as tensors (`capturable`), and under autograd."""

import contextlib
import copy
import inspect
from collections.abc import Iterator

import pytest
import torch

import optimizers
from optimizers import ClipNorm, GradientDropout, GradientNoise, LearningRateDropout, Lookahead

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
    (optimizers.ADOPT, {"clip": False, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (optimizers.AdEMAMix, {"betas": (0.9, 0.999, 0.99), "beta3_warmup": 7, "alpha_warmup": 5}),
    (optimizers.AdaBelief, {"nesterov": True}),
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


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONTEXTS = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),
}
EXECUTIONS = {"eager": {"fused": False}, "compiled": {"fused": True}, "capturable": {"capturable": True}}


@each_case
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_defaults_of_torch_change_nothing(cls, options, execution, context):
    """Neither the default dtype nor a device context reaches what the optimizer makes for itself."""
    mix = [GradientNoise(0.1), GradientDropout(0.8), LearningRateDropout(0.6), Lookahead(2), ClipNorm(0.5)]

    def make(start):
        param = start.clone().requires_grad_()
        optimizers.new_run()
        optimizer = cls([param], extensions=mix, **options, **EXECUTIONS[execution])
        return param, optimizer

    def advance(param, optimizer, steps):
        for gradient in gradients[steps]:
            param.grad = gradient.clone()
            optimizer.step()

    random = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=random)
    gradients = torch.randn(6, 4, 3, generator=random)
    param, optimizer = make(start)
    advance(param, optimizer, slice(6))
    with CONTEXTS[context]():
        first, its = make(start)
        advance(first, its, slice(3))
        saved = copy.deepcopy(its.state_dict())
        for state in saved["state"].values():  # as of older releases, and torch's SGD
            state["step"] = int(state["step"])
        again, other = make(first.detach())
        other.load_state_dict(saved)
        advance(again, other, slice(3, 6))
    assert torch.equal(again.detach(), param.detach())
    for name, value in other.state[again].items():
        assert torch.equal(value, optimizer.state[param][name]), name
        assert value.dtype == optimizer.state[param][name].dtype, name
        assert value.device.type == "cpu", name
    assert other.state[again]["step"].dtype == torch.float32


def test_the_step_counts_on_from_a_checkpoint_without_one():
    """torch's SGD keeps none: in bfloat16, it would stand still at 256."""
    param, other = (torch.ones(4).requires_grad_() for _ in range(2))
    old = torch.optim.SGD([param], lr=1e-3, momentum=0.9)
    param.grad = torch.ones(4)
    old.step()
    for fused in (False, True):
        with default_dtype(torch.bfloat16):
            optimizer = optimizers.SGD([other], lr=1e-3, momentum=0.9, fused=fused)
            optimizer.load_state_dict(copy.deepcopy(old.state_dict()))
            for _ in range(300):
                other.grad = torch.full_like(other, 0.1)
                optimizer.step()
        assert optimizer.state[other]["step"].item() == 301


def test_the_numbers_of_the_state_carry_their_derivatives():
    """NAdam's product of momenta depends on a learned beta1: autograd, and finite differences of plain steps."""

    def end(beta1, differentiable):
        theta = torch.tensor([1.0, -2.0], dtype=torch.float64)
        param = theta.clone().requires_grad_() if not differentiable else theta.clone()
        optimizer = optimizers.NAdam(
            [theta.clone().requires_grad_()],
            lr=0.1,
            betas=(beta1, 0.99),
            momentum_decay=0.5,
            differentiable=differentiable,
            fused=False,
        )
        optimizer.param_groups[0]["params"][0] = param
        for t in range(4):
            param.grad = torch.tensor([0.5, -1.0], dtype=torch.float64) * (t + 1)
            optimizer.step()
        return param.sum(), optimizer.state[param]["mu_product"]

    beta1 = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    total, product = end(beta1, True)
    assert product.dtype == torch.float32
    (derivative,) = torch.autograd.grad(product, beta1, retain_graph=True)
    # Π_4 = β₁⁴ ∏ (1 − ½ · 0.96^{t ψ})
    assert derivative.item() == pytest.approx(4 * product.item() / 0.9, rel=1e-6)
    (derivative,) = torch.autograd.grad(total, beta1)
    # (The product is remembered in float32, hence the width.)
    ends = [end(0.9 + side * 1e-2, False)[0].item() for side in (1, -1)]
    assert derivative.item() == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=2e-3)


@pytest.mark.parametrize("cls", NAMED)
def test_lr_zero_moves_nothing(cls):
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(5, 2, generator=random, dtype=torch.float64).requires_grad_()
    start = theta.detach().clone()
    optimizer = cls([theta], lr=0.0)
    for _ in range(3):
        theta.grad = torch.randn(5, 2, generator=random, dtype=torch.float64)
        optimizer.step()
    assert torch.equal(theta.detach(), start)


@pytest.mark.parametrize("cls", NAMED)
def test_every_optimizer_documents_its_arguments_and_its_source(cls):
    text = inspect.getdoc(cls) or ""
    assert ".. math::" in text
    assert "Raises:" in text
    assert any(str(year) in text for year in range(2011, 2026))
    for name in inspect.signature(cls).parameters:
        assert f"{name}:" in text or f"{name}," in text, name
