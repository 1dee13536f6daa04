"""Stages that reach further than a coordinate: sums over a tensor or over all, and whole matrices."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import Chain, DecoupledWeightDecay, GradientNoise, Lookahead, Place, Stage
from optimizers.adam import AdamDirection
from optimizers.engine import Partition
from optimizers.momentum import Momentum

LONG = (1024, 512)  # longer than a slice and than a thread's share
SHAPES = (LONG, (5,), (), (4, 3, 2))


class Unit(Stage):
    """The update, as long as the learning rate: u / ‖u‖."""

    place = Place.STEP_SIZE
    reach = "tensor"

    @staticmethod
    def terms(update: Tensor) -> dict[str, Tensor]:
        return {"square": update * update}

    @staticmethod
    def update(update: Tensor, lr: float, square: float) -> Tensor:
        return update * (lr / square**0.5)


class Centred(Stage):
    """The gradient less the mean over all parameters' coordinates, whose average over the steps it remembers."""

    place = Place.GRADIENT
    reach = "optimizer"
    scalars = {"mean": 0.0}

    @staticmethod
    def terms(grad: Tensor) -> dict[str, Tensor]:
        return {"total": grad, "count": torch.ones_like(grad)}

    def settle(
        self, scalars: Mapping[str, Any], sums: Mapping[str, Any], step: Any, lr: Any, hyper: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"mean": 0.5 * scalars["mean"] + 0.5 * sums["total"] / sums["count"]}

    @staticmethod
    def update(grad: Tensor, mean: float) -> Tensor:
        return grad - mean


class Polar(Stage):
    """Momentum's polar factor, with a count of the rows' norms as its memory."""

    place = Place.DIRECTION
    reach = "matrix"
    state = ("momentum_buffer",)
    velocity = ("momentum_buffer",)
    matrices = ("rows",)

    @staticmethod
    def update(grad: Tensor, momentum_buffer: Tensor) -> tuple[Tensor, Tensor]:
        momentum_buffer = 0.9 * momentum_buffer + grad
        return momentum_buffer, momentum_buffer

    def initial(self, name: str, param: Tensor) -> Tensor:
        if name == "rows":
            return torch.zeros(param.shape[:1], dtype=torch.promote_types(param.dtype, torch.float32))
        return super().initial(name, param)

    @staticmethod
    def matrix(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() < 2:
            return 2 * x, rows + x.abs()
        left, _, right = torch.linalg.svd(x, full_matrices=False)
        return left @ right, rows + x.norm(dim=1)


def parameters(shapes: Any = SHAPES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random).to(dtype)) for shape in shapes]


def gradients(params: list[nn.Parameter], step: int) -> None:
    random = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=random).to(param.dtype)


def run(make: Callable[[list[nn.Parameter]], Chain], steps: int = 3, **options: Any) -> tuple[list[Any], Chain]:
    params = parameters(**options)
    optimizers.new_run()
    optimizer = make(params)
    for step in range(steps):
        gradients(params, step)
        optimizer.step()
    return params, optimizer


def distance(a: list[Any], b: list[Any]) -> float:
    return max(float((x.detach() - y.detach()).abs().max()) for x, y in zip(a, b, strict=True))


MIXES: dict[str, Callable[[], list[Stage]]] = {
    "unit": lambda: [Unit()],
    "centred": lambda: [Centred()],
    "polar": lambda: [Polar()],
    "adam, unit": lambda: [AdamDirection(), DecoupledWeightDecay(0.1), Unit(), Lookahead(2)],
    "noise before sums": lambda: [GradientNoise(0.1), Centred(), Momentum(0.9), Unit()],
    "all": lambda: [Centred(), Polar(), DecoupledWeightDecay(0.1), Unit(), Lookahead(2, inner="average")],
}


@pytest.mark.parametrize("mix", MIXES)
def test_compiled_is_eager(mix: str, recwarn: pytest.WarningsRecorder) -> None:
    eager, _ = run(lambda params: Chain(params, MIXES[mix](), lr=0.1, fused=False))
    compiled, optimizer = run(lambda params: Chain(params, MIXES[mix](), lr=0.1, fused=True))
    assert "Execution: compiled\n" in repr(optimizer)
    assert not [warning for warning in recwarn if "eagerly" in str(warning.message)]
    assert distance(eager, compiled) < 2e-6


# ---------------------------------------------------------------------- sums


@pytest.mark.parametrize("fused", [False, True])
def test_a_sum_is_of_the_whole_tensor(fused: bool) -> None:
    start = parameters()
    params, _ = run(lambda params: Chain(params, [Unit()], lr=0.1, fused=fused), steps=1)
    for before, after in zip(start, params, strict=True):
        assert float((after - before).detach().double().norm()) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_sums_of_the_optimizer_are_of_all_groups(fused: bool) -> None:
    params, oracle = parameters(), [param.detach().double() for param in parameters()]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.05}]
    optimizer = Chain(groups, [Centred()], lr=0.1, fused=fused)
    mean = 0.0
    for step in range(3):
        gradients(params, step)
        optimizer.step()
        grads = [param.grad.double() for param in params]  # type: ignore[union-attr]
        every = torch.cat([grad.flatten() for grad in grads])
        mean = 0.5 * mean + 0.5 * float(every.mean())
        oracle = [p - lr * (g - mean) for p, g, lr in zip(oracle, grads, (0.1, 0.05, 0.05, 0.05), strict=True)]
    assert distance(params, oracle) < 1e-6
    assert [float(optimizer.state[param]["mean"]) for param in params] == [pytest.approx(mean, rel=1e-6)] * 4


def test_compiled_sums_do_not_depend_on_the_number_of_threads() -> None:
    threads, ends = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            ends.append(run(lambda params: Chain(params, [Centred(), Unit()], lr=0.1, fused=True))[0])
    finally:
        torch.set_num_threads(threads)
    assert distance(ends[0], ends[1]) == distance(ends[0], ends[2]) == 0


def test_sums_are_in_double_precision() -> None:
    """2²⁵ ones after a large number: in float32 none of them would count."""

    class Sum(Stage):
        place = Place.GRADIENT
        reach = "tensor"

        @staticmethod
        def terms(grad: Tensor) -> dict[str, Tensor]:
            return {"total": grad}

        @staticmethod
        def update(grad: Tensor, total: float) -> Tensor:
            return 0 * grad + total / 2**27

    for fused in (False, True):
        param = nn.Parameter(torch.zeros(4097, 64))
        param.grad = torch.ones_like(param)
        param.grad[0, 0] = 2.0**27
        Chain([param], [Sum()], lr=1.0, fused=fused).step()
        assert float(param[0, 0]) == pytest.approx(-(2**27 + 4097 * 64 - 1) / 2**27, rel=1e-7)


@pytest.mark.parametrize("fused", [False, True])
def test_who_comes_later_shares_the_optimizers_numbers(fused: bool) -> None:
    """A parameter without a gradient at first, and one that rests meanwhile, have the others' mean."""
    params = parameters([(3, 2), (4,)])
    optimizer = Chain(params, [Centred()], lr=0.1, fused=fused)
    mean = 0.0
    for step, absent in enumerate((1, 1, None, 0, 0, None)):
        gradients(params, step)
        if absent is not None:
            params[absent].grad = None
        present = torch.cat([p.grad.double().flatten() for p in params if p.grad is not None])
        mean = 0.5 * mean + 0.5 * float(present.mean())
        optimizer.step()
        known = [float(optimizer.state[p]["mean"]) for p in params if p in optimizer.state]
        assert known == [pytest.approx(mean, rel=1e-6)] * len(known)
    assert len(known) == 2


def test_nothing_moves_when_a_sum_fails() -> None:
    class Fails(Unit):
        @staticmethod
        def update(update: Tensor, square: float) -> Tensor:
            if square > 1e6:
                raise FloatingPointError("too long")
            return update

    params = parameters([(2, 3), (400, 400)])
    start = copy.deepcopy(params)
    optimizer = Chain(params, [Momentum(0.9), Fails()], lr=1.0, fused=False)
    gradients(params, 0)
    assert params[1].grad is not None
    params[1].grad *= 100
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert distance(params[1:], start[1:]) == 0


# ---------------------------------------------------------------------- matrices


@pytest.mark.parametrize("fused", [False, True])
def test_a_matrix_is_whole_and_filters_are_its_rows(fused: bool) -> None:
    params, optimizer = run(lambda params: Chain(params, [Polar()], lr=0.1, fused=fused), steps=1)
    for before, after in zip(parameters(), params, strict=True):
        step = (before - after).detach() / 0.1
        if step.dim() < 2:
            assert torch.allclose(step, 2 * after.grad, atol=1e-4)
        else:
            wide = step.flatten(1)
            gram = wide.T @ wide if wide.shape[0] > wide.shape[1] else wide @ wide.T
            assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-4)
    assert [tuple(optimizer.state[param]["rows"].shape) for param in params] == [(1024,), (5,), (), (4,)]


@pytest.mark.parametrize("fused", [False, True])
def test_matrices_of_16_bit_parameters_are_of_32(fused: bool) -> None:
    params, optimizer = run(
        lambda params: Chain(params, [Polar()], lr=0.1, fused=fused), shapes=[(6, 4)], dtype=torch.bfloat16
    )
    rows = optimizer.state[params[0]]["rows"]
    assert rows.dtype == torch.float32
    assert not torch.equal(rows, rows.bfloat16().float())
    saved = copy.deepcopy(optimizer.state_dict())
    again = Chain(parameters([(6, 4)], torch.bfloat16), [Polar()], lr=0.1, fused=fused)
    again.load_state_dict(saved)
    assert torch.equal(next(iter(again.state.values()))["rows"], rows)  # torch would have rounded it


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("mix", ["polar", "centred", "all"])
def test_a_run_resumes_exactly(mix: str, fused: bool) -> None:
    def make(params: list[nn.Parameter]) -> Chain:
        return Chain(params, MIXES[mix](), lr=0.1, fused=fused)

    shapes = [(6, 4), (5,)]
    whole, _ = run(make, steps=4, shapes=shapes)
    params, optimizer = run(make, steps=2, shapes=shapes)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed = [nn.Parameter(param.detach().clone()) for param in params]
    other = make(resumed)
    other.load_state_dict(saved)
    copied, its = copy.deepcopy((optimizer, params))
    for goes_on, members in ((other, resumed), (copied, its)):
        for step in (2, 3):
            gradients(members, step)
            goes_on.step()
        assert distance(members, whole) == 0


def test_autograd_follows_sums_and_matrices() -> None:
    start = parameters([(3, 2)], torch.float64)[0].detach()
    stages: Callable[[], list[Stage]] = lambda: [Centred(), Polar(), Unit()]  # noqa: E731

    def end(scale: Tensor, differentiable: bool) -> Tensor:
        leaf = start.clone().requires_grad_()
        optimizer = Chain([leaf], stages(), lr=0.1, differentiable=differentiable, fused=False)
        param = optimizer.param_groups[0]["params"][0] = leaf.clone()
        for step in range(2):
            grad = torch.randn(3, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            param.grad = scale * grad + start * grad.abs()
            optimizer.step()
        return (param * torch.arange(6).view(3, 2)).sum()

    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(end(scale, True), scale)
    with torch.no_grad():
        # (The mean is kept in single precision, of which a smaller difference would see the steps.)
        finite = (end(scale + 1e-3, False) - end(scale - 1e-3, False)) / 2e-3
    assert float(slope) == pytest.approx(float(finite), rel=1e-3)


def test_what_cannot_be_is_refused_before_anything_moves() -> None:
    plain, matrix = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    optimizer = Chain([plain, matrix], [Polar()], lr=0.1)
    plain.grad, matrix.grad = torch.ones(2), torch.ones_like(matrix)
    with pytest.raises(RuntimeError, match=r"Polar cannot step a parameter of shape \(2, 2\): .*complex"):
        optimizer.step()
    assert torch.equal(plain, torch.ones(2))
    rows = nn.Embedding(4, 2, sparse=True)
    rows(torch.tensor([1])).sum().backward()  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="Unit needs dense gradients"):
        Chain(rows.parameters(), [Unit()], lr=0.1).step()
    with pytest.raises(ValueError, match=r"share_memory\(\) needs stages that are elementwise, Unit\(\) is not"):
        Chain([plain], [Unit()], lr=0.1).share_memory()


# ---------------------------------------------------------------------- several directions


def partition(params: Any, **options: Any) -> Chain:
    return Chain(params, [Partition(fast=AdamDirection((0.5, 0.9)), slow=Momentum(0.9))], lr=0.1, **options)


@pytest.mark.parametrize("fused", [False, True])
def test_each_group_has_its_direction(fused: bool) -> None:
    params, alone = parameters([(5,), (4,)]), parameters([(5,), (4,)])
    both = partition([{"params": params[:1]}, {"params": params[1:], "direction": "slow", "lr": 0.2}], fused=fused)
    one = Chain(alone[:1], [AdamDirection((0.5, 0.9))], lr=0.1, fused=fused)
    other = Chain(alone[1:], [Momentum(0.9)], lr=0.2, fused=fused)
    scheduler = torch.optim.lr_scheduler.LambdaLR(both, lambda t: 1 / (1 + t))
    for step in range(4):
        gradients(params, step)
        gradients(alone, step)
        for optimizer in (both, one, other):
            optimizer.step()
        scheduler.step()
        one.param_groups[0]["lr"], other.param_groups[0]["lr"] = 0.1 / (2 + step), 0.2 / (2 + step)
    assert distance(params, alone) == 0
    assert set(both.state[params[1]]) == {"step", "momentum_buffer"}
    again = partition([{"params": params[:1]}, {"params": params[1:]}])
    again.load_state_dict(both.state_dict())
    assert [group["direction"] for group in again.param_groups] == ["fast", "slow"]


def test_a_group_has_the_defaults_of_its_direction() -> None:
    one, other = parameters([(5,), (4,)])
    first, second = AdamDirection(eps=1e-3), AdamDirection((0.5, 0.6), eps=1e-5)
    optimizer = Chain([one], [Partition(one=first, other=second)], lr=0.1)
    optimizer.add_param_group({"params": [other], "direction": "other"})
    assert [group["eps"] for group in optimizer.param_groups] == [1e-3, 1e-5]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.999), (0.5, 0.6)]


def test_wrong_directions_are_refused() -> None:
    params = parameters([(5,)])
    with pytest.raises(
        ValueError, match=r"direction of parameter group 0 must be one of \['fast', 'slow'\], got 'x'"
    ):
        partition([{"params": params, "direction": "x"}])
    with pytest.raises(ValueError, match="one direction, got AdamDirection and Momentum: a Partition"):
        Chain(params, [AdamDirection(), Momentum(0.9)], lr=0.1)
    with pytest.raises(TypeError, match=r"made of directions, got noise=GradientNoise"):
        Partition(noise=GradientNoise())
    optimizer = partition(params)
    optimizer.param_groups[0]["direction"] = "neither"
    gradients(params, 0)
    with pytest.raises(ValueError, match="direction of parameter group 0"):
        optimizer.step()


# ---------------------------------------------------------------------- what goes wrong elsewhere

WHOLE_MATRICES = {
    "normuon": (lambda p, **o: optimizers.Muon(p, row_beta=0.9, **o), "row_exp_avg_sq"),
    "adafactor": (optimizers.Adafactor, "row_var"),
    "adafactor's momentum": (lambda p, **o: optimizers.Adafactor(p, momentum=0.9, **o), "momentum_buffer"),
    "shampoo": (optimizers.Shampoo, "left"),
    "shampoo's powers": (optimizers.Shampoo, "right_root"),
    "soap": (optimizers.SOAP, "left_gram"),
    "soap's adam": (optimizers.SOAP, "exp_avg"),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("wrong", [torch.ones(7, 7), torch.ones(1, 1), "no tensor"], ids=["large", "one", "none"])
@pytest.mark.parametrize("case", WHOLE_MATRICES)
def test_matrices_of_another_checkpoint_are_refused_before_anything_moves(
    case: str, wrong: Any, fused: bool
) -> None:
    """Also one that arithmetic would take: of one row and column."""
    make, name = WHOLE_MATRICES[case]
    params = [nn.Parameter(torch.arange(12.0).reshape(4, 3).cos() * (1 + i)) for i in range(2)]
    optimizer = make(params, fused=fused)
    for param in params:
        param.grad = param.detach().sin()
    optimizer.step()
    checkpoint = copy.deepcopy(optimizer.state_dict())
    checkpoint["state"][1][name] = wrong
    optimizer.load_state_dict(checkpoint)
    before = [param.detach().clone() for param in params]
    with pytest.raises(RuntimeError, match=rf"cannot step a parameter of shape \(4, 3\): its {name} "):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    assert optimizer.state[params[0]]["step"] == 1


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "make",
    [
        optimizers.Muon,
        lambda p, **o: optimizers.Muon(p, method="exact", **o),
        optimizers.Shampoo,
        optimizers.SOAP,
        lambda p, **o: optimizers.SOAP(p, first_step=True, **o),
        optimizers.Adafactor,
    ],
)
def test_a_gradient_that_is_no_number_spoils_its_own_parameter(make: Any, value: float, fused: bool) -> None:
    """As by elementwise rules, which never fail for it; a decomposition would, between two parameters."""
    params = [nn.Parameter(torch.arange(12.0).reshape(4, 3).cos() * (1 + i)) for i in range(3)]
    optimizer = make(params, fused=fused)
    for _ in range(2):
        for param in params:
            param.grad = torch.arange(12.0).reshape(4, 3).sin()
        params[1].grad[0, 0] = value
        optimizer.step()
    assert params[1].isnan().all()
    assert params[0].isfinite().all()
    assert params[2].isfinite().all()


@pytest.mark.parametrize("make", [optimizers.SOAP, lambda p, **o: optimizers.Shampoo(p, every=5, **o)])
@pytest.mark.parametrize("fused", [False, True])
def test_a_rule_of_matrices_goes_on_from_a_checkpoint_that_has_none(make: Any, fused: bool) -> None:
    param = nn.Parameter(torch.arange(12.0).reshape(4, 3).cos())
    before = optimizers.SGD([param], lr=0.1)
    for optimizer in (before, make([param], fused=fused)):
        if optimizer is not before:
            optimizer.load_state_dict(before.state_dict())
        for _ in range(2):
            param.grad = torch.arange(12.0).reshape(4, 3).sin()
            optimizer.step()
    assert optimizer.state[param]["step"] == 4
    assert param.isfinite().all()
    roots = [state for name, state in optimizer.state[param].items() if name.endswith(("root", "basis"))]
    assert [tuple(root.shape) for root in roots] == [(4, 4), (3, 3)]


@pytest.mark.parametrize("fused", [False, True])
def test_sums_of_16_bit_numbers_do_not_overflow(fused: bool) -> None:
    """400² is beyond float16: the norm of 12 such gradients is 400 √12, and MARS makes it 1."""
    param = nn.Parameter(torch.zeros(4, 3, dtype=torch.float16))
    param.grad = torch.full_like(param, 400)
    optimizers.SGD([param], lr=1.0, extensions=[optimizers.MARS(beta=0.9)], fused=fused).step()
    assert torch.allclose(param.detach().float(), torch.tensor(-(12**-0.5)), rtol=1e-3)


class Normalized(Stage):
    """The gradient, divided by the norm over all parameters: sums, of which nothing is remembered."""

    place = Place.GRADIENT
    reach = "optimizer"

    @staticmethod
    def terms(grad: Tensor) -> dict[str, Tensor]:
        return {"norm_sq": grad**2}

    @staticmethod
    def update(grad: Tensor, norm_sq: float) -> Tensor:
        return grad / norm_sq**0.5


@pytest.mark.parametrize("fused", [False, True])
def test_who_remembers_nothing_of_all_parameters_asks_nothing_of_their_state(fused: bool) -> None:
    params = [nn.Parameter(torch.full((3,), 2.0)), nn.Parameter(torch.full((3,), 2.0))]
    optimizer = Chain(params, [Normalized()], lr=1.0, fused=fused)
    optimizer.state[params[1]]  # begun by somebody who only looked: there is no count in it
    params[0].grad = torch.tensor([3.0, 0.0, 4.0])
    optimizer.step()
    assert torch.allclose(params[0], torch.tensor([1.4, 2.0, 1.2]))
    params[1].grad = torch.tensor([0.0, 12.0, 0.0])
    optimizer.step()
    assert torch.allclose(params[1], torch.tensor([2.0, 2 - 12 / 13, 2.0]))
