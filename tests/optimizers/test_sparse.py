"""Sparse gradients, as of `nn.Embedding(sparse=True)`: torch's steps where torch takes them, else a refusal."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import SGD, Adagrad, Adam, ClipNorm, ClipValue, GradientNoise, LearningRateDropout, Lookahead

BOTH = pytest.mark.parametrize("fused", [False, True], ids=["eager", "compiled"])
ROWS = ([1, 3, 1], [0], [3, 4, 0, 0], [2])  # of a table of six; one is never seen, some are twice in a batch


def model() -> nn.ModuleDict:
    """A table with a sparse gradient, and a layer with a dense one."""
    generator = torch.Generator().manual_seed(0)
    layers = nn.ModuleDict({"table": nn.Embedding(6, 3, sparse=True), "layer": nn.Linear(3, 2)}).double()
    for param in layers.parameters():
        param.data = torch.randn(param.shape, generator=generator, dtype=torch.float64)
    return layers


def train(make: Callable[..., Any], dense: bool = False, **options: Any) -> tuple[list[Tensor], Any]:
    """Four steps; returns the parameters at the end, and the optimizer."""
    layers = model()
    layers["table"].sparse = not dense
    optimizer = make(layers.parameters(), **options)
    for rows in ROWS:
        optimizer.zero_grad()
        layers["layer"](layers["table"](torch.tensor(rows))).square().mean().backward()
        assert layers["table"].weight.grad.is_sparse is not dense
        optimizer.step()
    return [param.detach() for param in layers.parameters()], optimizer


@BOTH
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "maximize": True}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        ("SGD", {"lr": torch.tensor(0.1)}),
        ("Adagrad", {"lr": 0.1}),
        ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5}),
        ("Adagrad", {"lr": 0.1, "eps": 0.0}),
        ("Adagrad", {"lr": 0.1, "maximize": True}),
    ],
    ids=str,
)
def test_the_steps_are_torchs(name: str, options: dict[str, Any], fused: bool) -> None:
    expected, theirs = train(getattr(torch.optim, name), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is faster for such a parameter: fused=True has nothing to say
        found, optimizer = train(getattr(optimizers, name), fused=fused, **options)
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-13, atol=1e-14)
    assert bool(optimizer.source()) is fused, "the rest of the group is compiled"
    for key, state in theirs.state_dict()["state"].items():
        ours = optimizer.state_dict()["state"][key]
        for name, tensor in state.items():
            torch.testing.assert_close(ours[name], tensor.to_dense(), rtol=1e-13, atol=1e-14, check_dtype=False)


@BOTH
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_goes_on_from_torchs_checkpoint(momentum: float, fused: bool) -> None:
    """Which has a sparse velocity."""
    table = nn.Parameter(torch.ones(4, 2))
    theirs = torch.optim.SGD([table], 0.1, momentum=momentum)
    ours_table = nn.Parameter(torch.ones(4, 2))
    ours = SGD([ours_table], 0.1, momentum=momentum, fused=fused)
    for t in range(4):
        grad = torch.sparse_coo_tensor([[t % 4, 1]], torch.ones(2, 2), (4, 2), check_invariants=True)
        if t == 2:
            ours_table.data.copy_(table.detach())
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        for optimizer, param in ((theirs, table), (ours, ours_table)):
            param.grad = grad.clone()
            optimizer.step()
    torch.testing.assert_close(ours_table, table)


def test_rows_without_a_gradient_are_not_touched() -> None:
    """Not even where a coordinate would become NaN by a gradient of 0: Adagrad's 0 / (√0 + 0)."""
    param = nn.Parameter(torch.ones(4, 2))
    param.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (4, 2), check_invariants=True)
    optimizer = Adagrad([param], 0.5, eps=0.0)
    optimizer.step()
    assert param.tolist() == [[1, 1], [0.5, 0.5], [1, 1], [1, 1]]
    assert optimizer.state[param]["sum"].tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]


@BOTH
@pytest.mark.parametrize("rule", [SGD, Adagrad])
def test_extensions_that_take_rows_do_as_with_a_dense_gradient(rule: Any, fused: bool) -> None:
    def extensions() -> list[Any]:
        return [ClipNorm(0.3), ClipValue(0.2), LearningRateDropout(0.6, seed=3)]

    for extra in ([], [Lookahead(2)]):
        (expected, _), (found, _) = (
            train(rule, dense, lr=0.1, fused=fused, extensions=extensions() + extra) for dense in (True, False)
        )
        for ours, other in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("sparse_dim", [1, 2, 3])
def test_entries_of_any_dimension(sparse_dim: int) -> None:
    grad = torch.arange(24.0).view(2, 3, 4) % 5 - 2
    grad[grad == 0] = 0.0
    ends = []
    for make in (torch.optim.SGD, SGD):
        param = nn.Parameter(torch.ones(2, 3, 4))
        param.grad = grad.to_sparse(sparse_dim)
        make([param], 0.1).step()
        ends.append(param.detach())
    torch.testing.assert_close(*ends)


def test_complex_tables() -> None:
    ends = []
    for make in (torch.optim.SGD, SGD):
        for view in (torch.clone, torch.conj):
            param = nn.Parameter(view(torch.full((3, 2), 1 + 2j)))
            values = torch.tensor([[1 - 1j, 2j]])
            param.grad = torch.sparse_coo_tensor([[1]], values, (3, 2), check_invariants=True)
            make([param], 0.1).step()
            ends.append(param.detach().resolve_conj())
    assert torch.equal(ends[0], ends[2])
    assert torch.allclose(ends[3], torch.full((3, 2), 1 - 2j) - 0.1 * param.grad.to_dense())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_differentiable_step_takes_the_zeros_too(momentum: float) -> None:
    values = torch.tensor([[1.0, 2.0]], requires_grad=True)
    param = torch.ones(3, 2)
    param.grad = torch.sparse_coo_tensor([[1]], values, (3, 2), check_invariants=True)
    SGD([param], 0.1, momentum=momentum, differentiable=True).step()
    assert torch.allclose(param, torch.tensor([[1.0, 1.0], [0.9, 0.8], [1.0, 1.0]]))
    param.sum().backward()
    assert torch.allclose(values.grad, torch.full((1, 2), -0.1))


def test_a_gradient_may_become_sparse_and_dense_again() -> None:
    ends = []
    for dense in (True, False):
        params = [nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(3))]
        optimizer = Adagrad(params, 0.1, fused=True)
        for t in range(6):
            grad = torch.zeros(4, 2)
            grad[t % 4] = 1.0 + t
            params[0].grad = grad if dense or t % 3 == 0 else grad.to_sparse(1)
            params[1].grad = torch.ones(3)
            optimizer.step()
        ends.append(params[0].detach())
    torch.testing.assert_close(*ends)


@BOTH
@pytest.mark.parametrize(
    ("make", "by"),
    [
        (lambda p, **o: Adam(p, **o), "AdamDirection"),
        (lambda p, **o: optimizers.RMSprop(p, **o), "RMSpropDirection"),
        (lambda p, **o: SGD(p, weight_decay=0.1, **o), "L2"),
        (lambda p, **o: Adagrad(p, weight_decay=0.1, **o), "L2ByGroup"),
        (lambda p, **o: Adagrad(p, weight_decay=0.1, decoupled_weight_decay=True, **o), "DecoupledByGroup"),
        (lambda p, **o: SGD(p, extensions=[GradientNoise()], **o), "GradientNoise"),
        (lambda p, **o: optimizers.AggMo(p, **o), "Aggregated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_elsewhere_it_is_refused_by_name(make: Any, by: str, fused: bool) -> None:
    dense, table = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 2))
    dense.grad, table.grad = torch.ones(3), torch.eye(4)[:, :2].to_sparse(1)
    optimizer = make([{"params": [dense]}, {"params": [table]}], fused=fused)
    with pytest.raises(RuntimeError, match=rf"{by}\w* needs dense gradients, got a sparse one .* shape \(4, 2\)"):
        optimizer.step()
    assert torch.equal(dense.detach(), torch.ones(3))
    assert not optimizer.state
