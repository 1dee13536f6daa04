"""Hogwild: processes that share parameters and state, lose nothing of each other's work, and end together."""

import copy
import math
import os
import signal
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import (
    SGD,
    Adam,
    Chain,
    ClipNorm,
    GradientDropout,
    GradientNoise,
    LearningRateDropout,
    Lookahead,
    Place,
    Stage,
    run_hogwild,
)

STARTS = [[[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5], [1.0, 1.0]], [1.0, -2.0], 0.5]


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in STARTS]


def gradients(t: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(t)
    return [torch.randn(torch.tensor(start).shape, generator=generator, dtype=torch.float64) for start in STARTS]


def sparse(grad: Tensor, rows: list[int]) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), grad[rows], grad.shape, check_invariants=True)


# Of the others' tensors, processes would change what one of them has just summed.
FAR = ("adafactor", "lamb", "muon", "prodigy", "shampoo", "soap")
ELEMENTWISE = [name for name in optimizers.list() if name not in FAR]


@pytest.mark.parametrize("name", FAR)
def test_what_reaches_further_than_a_coordinate_is_not_shared(name: str) -> None:
    with pytest.raises(ValueError, match=r"share_memory\(\) needs stages that are elementwise, .* is not"):
        optimizers.create(name, parameters()).share_memory()


# ---------------------------------------------------------------------- one process: the same steps


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_alone_it_steps_as_ever(name: str) -> None:
    """In shared memory one process makes the steps of an optimizer that is not shared, extensions included."""
    extensions = [GradientNoise(0.1), GradientDropout(0.8), LearningRateDropout(0.6), Lookahead(2), ClipNorm(1.0)]
    ours, plain = parameters(), parameters()
    optimizer = optimizers.create(name, ours, extensions=extensions).share_memory()
    other = optimizers.create(name, plain, extensions=extensions)
    for t in range(5):
        for p, q, grad in zip(ours, plain, gradients(t), strict=True):
            p.grad, q.grad = grad, grad
        optimizer.step()
        other.step()
    assert all(torch.allclose(p, q, rtol=0, atol=1e-14) for p, q in zip(ours, plain, strict=True))
    for p, q in zip(ours, plain, strict=True):
        assert p.is_shared()
        assert optimizer.state[p].keys() == other.state[q].keys()
        for key, tensor in optimizer.state[p].items():
            assert tensor.is_shared(), key
            assert torch.allclose(tensor, other.state[q][key], rtol=0, atol=1e-14), key


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_sparse_rows_step_as_a_smaller_parameter_would(name: str) -> None:
    """Rows 1 and 3 step as they would alone; rows 0 and 2 stay bit for bit, and so does their state."""
    rows = [3, 1]
    ours, alone = parameters()[0], nn.Parameter(parameters()[0].detach()[rows])
    options = {"momentum": 0.9} if name in ("sgd", "sgdw", "rmsprop") else {}
    optimizer = optimizers.create(name, [ours], weight_decay=0.1, **options).share_memory()
    other = optimizers.create(name, [alone], weight_decay=0.1, **options)
    before = copy.deepcopy(optimizer.state[ours])
    for t in range(4):
        ours.grad = sparse(gradients(t)[0], rows)
        alone.grad = gradients(t)[0][rows]
        optimizer.step()
        other.step()
    assert torch.allclose(ours[rows], alone, rtol=0, atol=1e-14)
    assert torch.equal(ours[[0, 2]], parameters()[0][[0, 2]])
    for key, tensor in optimizer.state[ours].items():
        if tensor.dim():
            assert torch.allclose(tensor[rows], other.state[alone][key], rtol=0, atol=1e-14), key
            assert torch.equal(tensor[[0, 2]], before[key][[0, 2]]), key


def test_sparse_rows_get_the_noise_of_their_places() -> None:
    extensions = [GradientNoise(1.0), GradientDropout(0.6), LearningRateDropout(0.6)]
    ours, dense = parameters()[0], parameters()[0]
    optimizer, other = (
        SGD([ours], lr=0.1, extensions=extensions).share_memory(),
        SGD([dense], lr=0.1, extensions=extensions),
    )
    for t in range(3):
        ours.grad, dense.grad = sparse(gradients(t)[0], [2, 0, 1, 3]), gradients(t)[0]
        optimizer.step()
        other.step()
    assert torch.allclose(ours, dense, rtol=0, atol=1e-14)


def test_a_row_given_twice_counts_twice_and_the_norm_is_of_the_sum() -> None:
    param = nn.Parameter(torch.zeros(3, 1))
    optimizer = SGD([param], lr=1.0, extensions=[ClipNorm(1.0)]).share_memory()
    param.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, 1, 2]]), torch.tensor([[1.5], [1.5], [4.0]]), (3, 1), check_invariants=True
    )
    optimizer.step()
    assert torch.allclose(param, -torch.tensor([[0.0], [0.6], [0.8]]), atol=1e-6)


def test_complex_scalar_and_empty_parameters() -> None:
    start = [torch.tensor([[1 + 2j], [3 - 1j]]), torch.tensor(1.0), torch.zeros(0), torch.zeros(0, 3)]
    ours, plain = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    optimizer, other = Adam(ours).share_memory(), Adam(plain)
    for p, q in zip(ours, plain, strict=True):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    ours[0].grad = ours[0].grad.to_sparse(1)
    ours[3].grad = ours[3].grad.to_sparse(1)
    optimizer.step()
    other.step()
    assert all(torch.allclose(p, q) for p, q in zip(ours, plain, strict=True))


def test_what_it_refuses() -> None:
    param = nn.Parameter(torch.zeros(2, 2))
    param.grad = sparse(torch.ones(2, 2), [0])
    with pytest.raises(RuntimeError, match=r"dense gradients.*share_memory"):
        Adam([param]).step()
    shared = SGD([param]).share_memory()
    param.grad = torch.ones(2, 2).to_sparse(2)
    with pytest.raises(RuntimeError, match="dense gradients"):
        shared.step()
    assert torch.equal(param, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="on the CPU"):
        SGD([nn.Parameter(torch.zeros(1, device="meta"))]).share_memory()
    with pytest.raises(ValueError, match="differentiable=False"):
        SGD([param], differentiable=True).share_memory()
    for processes in (0, -1, 1.5, "2"):
        with pytest.raises(ValueError, match=r"processes must be a whole number in \[1, inf\)"):
            run_hogwild(print, processes=processes)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- several processes


def every_coordinate_its_own(
    rank: int, params: list[nn.Parameter], optimizer: SGD, processes: int, steps: int
) -> None:
    """Each process has dense gradients that are zero but for its own coordinates: the others' must survive."""
    dense, rows = params
    for _ in range(steps):
        dense.grad = torch.zeros_like(dense)
        dense.grad[rank::processes] = 1.0
        rows.grad = sparse(torch.ones_like(rows), [2 * rank, 2 * rank + 1])
        optimizer.step()


def test_no_process_overwrites_what_it_does_not_change() -> None:
    """Were a zero step written, as `param.copy_` would, whole steps of the other process would be lost."""
    processes, steps = 2, 200
    params = [
        nn.Parameter(torch.zeros(64, dtype=torch.float64)),
        nn.Parameter(torch.zeros(4, 8, dtype=torch.float64)),
    ]
    optimizer = SGD(params, lr=1.0).share_memory()
    run_hogwild(every_coordinate_its_own, params, optimizer, processes, steps, processes=processes, timeout=240)
    assert torch.equal(params[0], torch.full_like(params[0], -steps))
    assert torch.equal(params[1], torch.full_like(params[1], -steps))
    assert all(steps <= state["step"] <= processes * steps for state in optimizer.state.values())


def logistic(seed: int, examples: int = 2000, features: int = 200, active: int = 4) -> tuple[Tensor, Tensor]:
    """Sparse logistic regression: each example has four features; the labels follow a hidden weight vector."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(features, (examples, active), generator=generator)
    hidden = torch.randn(features, generator=generator)
    y = (torch.rand(examples, generator=generator) < torch.sigmoid(2 * hidden[x].sum(1))).float()
    return x, y


def train(
    rank: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    processes: int,
    epochs: int,
) -> None:
    x, y = data
    order = torch.Generator().manual_seed(rank)
    for _ in range(epochs):
        mine = torch.randperm(len(x), generator=order)[rank::processes]
        for batch in mine.split(20):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(x[batch]).squeeze(1), y[batch]).backward()
            optimizer.step()


def loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return nn.functional.binary_cross_entropy_with_logits(model(data[0]).squeeze(1), data[1]).item()


@pytest.mark.parametrize(
    ("make", "start_method"), [(lambda p: SGD(p, lr=1.0), "fork"), (lambda p: Adam(p, lr=0.02), "spawn")]
)
def test_two_processes_train_as_well_as_one(make: Any, start_method: str) -> None:
    """After the same number of updates, the loss of two processes is within 2 % of that of one."""
    data, losses = logistic(0), []
    for processes in (1, 2):
        model = nn.EmbeddingBag(200, 1, mode="sum", sparse=True)
        nn.init.zeros_(model.weight)
        model.share_memory()
        optimizer = make(model.parameters()).share_memory()
        assert loss(model, data) == pytest.approx(math.log(2))
        if processes == 1:
            train(0, model, optimizer, data, 1, 3)
        else:
            run_hogwild(train, model, optimizer, data, 2, 3, processes=2, start_method=start_method, timeout=240)
        losses.append(loss(model, data))
    assert losses[0] < 0.42
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def misbehave(rank: int, how: str, param: Tensor) -> None:
    param[rank] = 1
    if rank == 1:
        if how == "raise":
            raise ArithmeticError("the loss is not a number")
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        (
            "raise",
            RuntimeError,
            r"(?s)worker 1 of 2 raised an error.*in misbehave.*ArithmeticError: the loss is not",
        ),
        ("die", RuntimeError, "worker 1 of 2 died: .*SIGKILL"),
        ("hang", TimeoutError, "2 workers were not done after 2 seconds"),
    ],
)
def test_a_failing_worker_is_one_clear_error_and_nothing_hangs(
    how: str, error: type[Exception], match: str
) -> None:
    started, param = time.monotonic(), torch.zeros(2).share_memory_()
    with pytest.raises(error, match=match):
        run_hogwild(misbehave, how, param, start_method="fork", timeout=2 if how == "hang" else 240)
    assert time.monotonic() - started < 120
    assert param[1] == 1


def test_a_copy_of_a_shared_optimizer_has_memory_of_its_own() -> None:
    params = parameters()
    optimizer = Adam(params).share_memory()
    twin, twins = copy.deepcopy((optimizer, params))
    for p, grad in zip(params, gradients(0), strict=True):
        p.grad = grad
    optimizer.step()
    assert all(torch.equal(p.detach(), q) for p, q in zip(twins, parameters(), strict=True))
    assert all(state["step"] == 0 for state in twin.state.values())


class Interrupted(Stage):
    """While a step is computed, another process takes one of its own: all numbers of `other` fall by 1."""

    place = Place.DIRECTION
    other: Tensor

    @staticmethod
    def update(grad: Tensor, param: Tensor) -> Tensor:
        if torch.equal(param, Interrupted.other[: len(param)]):  # not while the stage is tried on other tensors
            with torch.no_grad():
                Interrupted.other.sub_(1.0)
        return grad


@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_step_of_another_process_in_between_is_not_lost(is_sparse: bool) -> None:
    param = nn.Parameter(torch.tensor([[5.0], [3.0]], dtype=torch.float64))
    optimizer = Chain([param], [Interrupted()], lr=1.0).share_memory()
    Interrupted.other, grad = param, torch.tensor([[10.0], [0.0]], dtype=torch.float64)
    param.grad = sparse(grad, [0]) if is_sparse else grad
    optimizer.step()
    assert param.tolist() == [[5 - 10 - 1], [3 - 1]]
