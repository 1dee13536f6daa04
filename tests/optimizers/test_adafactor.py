"""Adafactor: equal to torch's and to the paper's algorithms, and what factors and relative steps do."""

import copy

import numpy as np
import pytest
import torch

import optimizers

from .matrices import apart, follow, gaussian, path

SHAPES = ((24, 8), (3, 30), (1, 5), (7,), ())


OPTIONS = [
    {},
    {"lr": 0.3, "weight_decay": 0.1, "eps": (1e-2, 0.5), "d": 2.0, "beta2_decay": -0.5},
    {"lr": 1.0, "maximize": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(options):
    for dtype, near in ((torch.float64, 1e-14), (torch.float32, 2e-6)):
        ours, _ = path(lambda p: optimizers.Adafactor(p, **options), SHAPES, dtype=dtype)
        theirs, _ = path(lambda p: torch.optim.Adafactor(p, **options), SHAPES, dtype=dtype)
        scale = max(param.abs().max().item() for param in theirs)
        assert apart(ours, theirs) < near * scale
        assert apart(ours, [gaussian(*shape, seed=i).to(dtype) for i, shape in enumerate(SHAPES)]) > 0.05


def test_each_continues_the_other_s_checkpoint():
    for first in (optimizers.Adafactor, torch.optim.Adafactor):
        params, optimizer = path(first, SHAPES, steps=10)
        state = copy.deepcopy(optimizer.state_dict())
        ends = []
        for second in (optimizers.Adafactor, torch.optim.Adafactor):

            def make(params, kind=second, state=state):
                optimizer = kind(params)
                optimizer.load_state_dict(copy.deepcopy(state))
                return optimizer

            ends.append(path(make, SHAPES, steps=10, begin=10, params=params)[0])
        assert apart(*ends) < 1e-13


def test_it_remembers_a_number_per_row_and_column():
    _, optimizer = path(optimizers.Adafactor, ((24, 8), (7,)), steps=2)
    shapes = [
        {name: tuple(value.shape) for name, value in s.items() if value.numel() > 1}
        for s in optimizer.state.values()
    ]
    assert shapes == [{"row_var": (24, 1), "col_var": (1, 8)}, {"variance": (7,)}]


def adafactor(
    theta, g, t, eta, memory, lr, eps=(1e-30, 1e-3), d=1.0, weight_decay=0.0, relative=True, scaled=True, beta1=0.0
):
    """Algorithms 4 (matrices) and 5 of Shazeer and Stern (2018), with sums where we have means; in NumPy."""
    lr, beta2 = lr * eta, 1 - t**-0.8
    squared = g**2 + eps[0]
    if g.ndim == 2:
        rows = memory["r"] = beta2 * memory.get("r", 0.0) + (1 - beta2) * squared.sum(1)
        columns = memory["c"] = beta2 * memory.get("c", 0.0) + (1 - beta2) * squared.sum(0)
        v = np.outer(rows, columns) / rows.sum()
    else:
        v = memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * squared
    u = g / np.sqrt(v)
    u = u / max(1.0, np.sqrt((u**2).mean()) / d)
    u = memory["m"] = beta1 * memory.get("m", 0.0) + (1 - beta1) * u
    rho = min(lr, 1 / np.sqrt(t)) if relative else lr
    alpha = max(eps[1], np.sqrt((theta**2).mean())) * rho if scaled else rho
    return theta - alpha * u - lr * weight_decay * theta


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, {}),
        ({"beta1": 0.9, "weight_decay": 0.2, "eps": (1e-2, 1e-3)}, {"momentum": 0.9}),
        ({"relative": False, "scaled": False, "d": np.inf}, {"relative_step": False, "scale_parameter": False}),
    ],
)
def test_with_the_floor_in_the_squares_it_is_the_paper_s(options, named):
    given = {name: value for name, value in options.items() if name in ("eps", "d", "weight_decay")} | named
    ours, _ = path(lambda p: optimizers.Adafactor(p, lr=0.05, floor="square", **given), SHAPES)
    for i, (param, shape) in enumerate(zip(ours, SHAPES, strict=True)):
        assert np.abs(param.numpy() - follow(adafactor, shape, i, lr=0.05, **options)).max() < 1e-12


def test_of_squares_of_rank_one_the_first_step_is_the_sign():
    rows, columns = gaussian(9, 1).abs() + 0.1, gaussian(1, 6, seed=1).abs() + 0.1
    signs = gaussian(9, 6, seed=2).sign()
    param = torch.ones(9, 6, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.Adafactor([param], lr=0.01)
    param.grad = signs * rows * columns
    optimizer.step()
    assert (param.detach() - 1 + 0.01 * signs).abs().max() < 1e-15


def test_the_factors_are_the_nearest_of_rank_one():
    """In the I-divergence Σ V log(V / F) − V + F; 2000 others of rank one are all farther."""
    squared = gaussian(6, 4).square()
    param = torch.ones(6, 4, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.Adafactor([param])
    param.grad = squared.sqrt()
    optimizer.step()
    state = optimizer.state[param]
    factored = state["row_var"] @ state["col_var"] / state["row_var"].mean()

    def divergence(f):
        return (squared * (squared / f).log() - squared + f).sum().item()

    least = divergence(factored)
    others = [
        divergence(factored * (0.3 * gaussian(6, 1, seed=s)).exp() * (0.3 * gaussian(1, 4, seed=s + 5000)).exp())
        for s in range(2000)
    ]
    assert min(others) > least
    assert divergence(factored * 1.001) > least


def test_torch_s_learning_rate_is_a_largest_step():
    """After 1 / lr² steps, all learning rates give the same relative step, 1/√t."""
    steps = {}
    for lr in (1.0, 0.1):
        param = torch.ones(50, 20, dtype=torch.float64, requires_grad=True)
        optimizer = optimizers.Adafactor([param], lr=lr)
        for t in range(1, 401):
            before = param.detach().clone()
            # gradients of one size: U has an RMS of about 1
            param.grad = gaussian(50, 20, seed=t).sign()
            optimizer.step()
            size = (param.detach() - before).square().mean().sqrt() / before.square().mean().sqrt()
            steps[lr, t] = size.item()
    assert [steps[1.0, t] for t in (1, 10, 100, 400)] == pytest.approx([1.0, 10**-0.5, 0.1, 0.05], rel=1e-6)
    assert [steps[0.1, t] for t in (1, 10, 100, 400)] == pytest.approx([0.1, 0.1, 0.1, 0.05], rel=1e-6)


def test_complex_numbers_are_refused():
    param = torch.ones(2, 3, dtype=torch.complex64, requires_grad=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="complex"):
        optimizers.Adafactor([param]).step()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"beta2_decay": 0.8}, ValueError, r"beta2_decay must lie in \(-inf, 0\]"),
        ({"eps": (-1e-3, 1e-3)}, ValueError, r"eps\[0\] must lie in"),
        ({"eps": (None, None)}, TypeError, r"eps\[1\] must be a number"),
        ({"eps": 1e-3}, TypeError, "eps must be two numbers"),
        ({"d": 0.5}, ValueError, r"d must lie in \[1, inf\]"),
        ({"floor": "root"}, ValueError, "floor must be one of"),
        ({"momentum": 1.0}, ValueError, "momentum must lie in"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        optimizers.Adafactor([torch.zeros(2, 2)], **options)
