"""Where a chain is evaluated: `averaged`, `eval` and `train`, whatever happens to the optimizer meanwhile."""

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import (
    ASAM,
    SAM,
    SGD,
    AdamW,
    Average,
    Chain,
    ClipNorm,
    GradientNoise,
    LearningRateDropout,
    Lookahead,
    Place,
    ScheduleFree,
    Stage,
)
from optimizers.engine.stage import has_point

POINTS: dict[str, Callable[[], Stage]] = {
    "lookahead": lambda: Lookahead(2),
    "schedule-free": lambda: ScheduleFree(0.8, warmup_steps=2),
    "ema": lambda: Average(0.7),
    "debiased": lambda: Average(0.7, debias=True),
    "polyak": lambda: Average(None),
}
NEW = {name: make for name, make in POINTS.items() if name != "lookahead"}
NEW |= {"sam": lambda: SAM(0.1), "asam": lambda: ASAM(0.5)}
OTHERS: dict[str, Callable[[], Stage]] = {
    "noise": lambda: GradientNoise(0.1),
    "lr-dropout": lambda: LearningRateDropout(0.6),
    "clip": lambda: ClipNorm(0.5),
}
MIXES = [(name,) for name in (*POINTS, "sam", "asam")]
MIXES += [(point, "sam", *OTHERS) for point in POINTS] + [("ema", "asam", *OTHERS)]
RULES: dict[str, Callable[..., Chain]] = {
    "adamw": lambda p, **options: AdamW(p, lr=0.05, weight_decay=0.1, **options),
    "sgd": lambda p, **options: SGD(p, lr=0.05, momentum=0.8, **options),
}
CASES = [(rule, mix, fused) for rule in RULES for mix in MIXES for fused in (False, True)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}+{'+'.join(case[1])}{' fused' if case[2] else ''}")
def case(request: pytest.FixtureRequest) -> Iterator[Callable[..., Chain]]:
    rule, mix, fused = request.param

    def make(params: Any, **options: Any) -> Chain:
        optimizers.new_run()
        stages = [(NEW | POINTS | OTHERS)[name]() for name in mix]
        return RULES[rule](params, extensions=stages, **{"fused": fused, **options})

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is asked to compile does
        yield make


def parameters(dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = ((2, 3), (), (5,))) -> Any:
    return [
        nn.Parameter(((torch.arange(math.prod(s)) * 37 + 11 * i) % 23 / 8 - 1.25).reshape(s).to(dtype))
        for i, s in enumerate(shapes)
    ]


def run(optimizer: Chain, params: Sequence[Tensor], steps: Sequence[int] = range(4), sign: int = 1) -> list[Tensor]:
    """Steps on a noisy loss with curvature; returns where they lead."""
    for t in steps:

        def closure(t: int = t) -> Tensor:
            loss = torch.zeros(())
            for i, param in enumerate(params):
                x = torch.view_as_real(param) if param.is_complex() else param
                at = ((torch.arange(x.numel()) * 13 + 29 * t + 7 * i) % 31 / 16 - 0.9375).reshape(x.shape)
                loss = loss + ((x - at).square().sum() + x.sin().sum()).float()
            grads = torch.autograd.grad(sign * loss, params)
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            return loss

        optimizer.step(closure)
    return values(params)


def values(params: Sequence[Tensor]) -> list[Tensor]:
    return [param.detach().clone() for param in params]


def equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Bit for bit."""
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float) -> bool:
    return all((x - y).abs().max() <= tolerance for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------- the contract


def test_it_resumes_bit_for_bit_from_either_mode(case: Callable[..., Chain]) -> None:
    params = parameters()
    optimizer = case(params)
    run(optimizer, params)
    start, train_point = pickle.dumps((optimizer, params)), values(params)
    expected = run(optimizer, params, [4, 5, 6])
    for evaluating in (False, True):
        optimizer, params = pickle.loads(start)
        if evaluating:
            optimizer.eval()
        file = io.BytesIO()
        torch.save({"params": values(params), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again = [nn.Parameter(param.clone()) for param in saved["params"]]
        other = case(again)
        other.load_state_dict(saved["optimizer"])
        both = optimizer, params
        for twin, twins in ((other, again), copy.deepcopy(both), pickle.loads(pickle.dumps(both)), both):
            assert equal(twins, saved["params"])
            if evaluating and any(map(has_point, optimizer._stages)):
                with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) first"):
                    run(twin, twins, [4])
                assert equal(twins, saved["params"])
            twin.train()
            assert equal(twins, train_point)
            assert all("train_point" not in state for state in twin.state.values())
            assert equal(run(twin, twins, [4, 5, 6]), expected)


def test_eager_and_compiled_lead_to_the_same(case: Callable[..., Chain]) -> None:
    ends = []
    for options in ({}, {"fused": False}, {"fused": False, "foreach": True}):
        params = parameters(torch.float64)
        optimizer = case(params, **options)
        end = run(optimizer, params, range(7))
        optimizer.eval()
        ends.append(end + values(params))
    assert close(ends[0], ends[1], 1e-6)  # numbers of the state are kept in float32
    assert equal(ends[1], ends[2])


def test_maximize(case: Callable[..., Chain]) -> None:
    ends = []
    for maximize in (False, True):
        params = parameters()
        ends.append(run(case(params, maximize=maximize), params, sign=-1 if maximize else 1))
    assert close(*ends, 1e-6)


def test_a_complex_parameter_is_two_real_ones(case: Callable[..., Chain]) -> None:
    real = parameters(torch.float64, ((3, 2),))
    complex_ = [nn.Parameter(torch.view_as_complex(real[0].detach().clone()))]
    ends = []
    for params in (real, complex_):
        optimizer = case(params)
        end = run(optimizer, params)
        optimizer.eval()
        ends.append([torch.view_as_real(x) if x.is_complex() else x for x in end + values(params)])
    assert close(*ends, 1e-12)


def test_bfloat16(case: Callable[..., Chain]) -> None:
    params = parameters(torch.bfloat16)
    optimizer = case(params)
    before = run(optimizer, params)
    with optimizer.averaged():
        assert all(param.isfinite().all() for param in params)
    assert equal(params, before)


def test_two_groups_at_once_do_what_each_does_alone() -> None:
    for make in POINTS.values():
        for fused in (False, True):
            together, alone = parameters(), parameters()
            both = AdamW(
                [{"params": together[:1]}, {"params": together[1:], "lr": 0.3}],
                lr=0.1,
                extensions=[make()],
                fused=fused,
            )
            run(both, together)
            with both.averaged():
                point = values(together)
            optimizers_ = [
                AdamW(alone[:1], lr=0.1, extensions=[make()], fused=fused),
                AdamW(alone[1:], lr=0.3, extensions=[make()], fused=fused),
            ]
            for t in range(4):
                for i, param in enumerate(alone):
                    at = ((torch.arange(param.numel()) * 13 + 29 * t + 7 * i) % 31 / 16 - 0.9375).view(param.shape)
                    param.grad = 2 * (param.detach() - at) + param.detach().cos()
                for optimizer in optimizers_:
                    optimizer.step()
            assert close(together, alone, 1e-6)
            for optimizer in optimizers_:
                optimizer.eval()
            assert close(point, alone, 1e-6)


# ---------------------------------------------------------------------- averaged, eval, train


@pytest.mark.parametrize("name", POINTS)
def test_the_points_come_and_go(name: str) -> None:
    params = parameters()
    alone = nn.Parameter(torch.ones(2))  # it never has a gradient
    optimizer = AdamW([*params, alone], lr=0.1, extensions=[POINTS[name]()])
    with optimizer.averaged():  # of nothing, yet
        assert equal(params, parameters())
    train_point = run(optimizer, params, range(5))
    places = [param.data_ptr() for param in params]
    with suppress(ZeroDivisionError), optimizer.averaged():
        point = values(params)
        assert not any(torch.equal(x, y) for x, y in zip(point, train_point, strict=True))
        with optimizer.averaged():
            assert equal(params, point)
        assert equal(params, point)
        raise ZeroDivisionError
    assert equal(params, train_point)
    optimizer.train()
    assert equal(params, train_point)
    optimizer.eval()
    optimizer.eval()
    with optimizer.averaged():
        assert equal(params, point)
    assert equal(params, point)
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) first"):
        optimizer.step()
    optimizer.train()
    optimizer.train()
    assert equal(params, train_point)
    assert places == [param.data_ptr() for param in params]
    assert torch.equal(alone, torch.ones(2))
    optimizer.step()


def test_a_chain_without_a_point_has_one_mode() -> None:
    params, other = parameters(), parameters()
    optimizer = AdamW(params, lr=0.1)
    optimizer.eval()
    with optimizer.averaged():
        end = run(optimizer, params)
    optimizer.train()
    assert equal(end, run(AdamW(other, lr=0.1), other))


def test_a_group_without_the_stage_stays_as_it_is() -> None:
    params = parameters()
    groups = [{"params": params[:1]}, {"params": params[1:], "average_decay": 0.0}]
    optimizer = SGD(groups, lr=0.1, extensions=[Average(None)])
    before = run(optimizer, params)
    with optimizer.averaged():
        assert not torch.equal(params[0], before[0])
        assert equal(params[1:], before[1:])


def test_parameters_that_are_views_of_one_memory() -> None:
    """The second is a part of the first: both go back to where they were."""
    memory = torch.linspace(-1, 1, 6)
    params = [memory.requires_grad_(), memory.detach()[2:4].requires_grad_()]
    optimizer = SGD(params, lr=0.1, extensions=[Average(0.5)])
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    before = memory.detach().clone()
    with optimizer.averaged():
        assert not torch.equal(memory, before)
    assert torch.equal(memory, before)


class Failing(Stage):
    place = Place.PARAMETERS
    state = ("mine",)

    @staticmethod
    def update(fast: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
        return fast, mine

    def point(self, param: Tensor, state: Any, hyper: Any) -> Tensor | None:
        if param.dim() == 1:
            raise MemoryError("there is none left")
        return param + 1 if param.dim() else None


def test_a_point_that_fails_leaves_all_as_it_was() -> None:
    params = parameters()
    optimizer = SGD(params, lr=0.1, extensions=[Failing()])
    before = run(optimizer, params)
    with pytest.raises(MemoryError, match="none left"):
        optimizer.eval()
    assert equal(params, before)
    run(optimizer, params)


def test_a_stage_may_have_no_point_for_a_parameter() -> None:
    params = parameters(shapes=((2, 3), ()))
    optimizer = SGD(params, lr=0.1, extensions=[Failing()])
    before = run(optimizer, params)
    optimizer.eval()
    assert equal(params, [before[0] + 1, before[1]])
    optimizer.train()
    assert equal(params, before)


def test_a_checkpoint_of_the_other_mode_replaces_the_mode() -> None:
    params = parameters()
    optimizer = SGD(params, lr=0.1, extensions=[Average(0.5)])
    run(optimizer, params)
    start, checkpoint = values(params), copy.deepcopy(optimizer.state_dict())
    expected = run(optimizer, params)
    optimizer.eval()
    optimizer.load_state_dict(checkpoint)
    with torch.no_grad():
        for param, value in zip(params, start, strict=True):
            param.copy_(value)
    assert equal(run(optimizer, params), expected)


@pytest.mark.parametrize("fused", [False, True])
def test_an_average_does_not_change_the_training(fused: bool) -> None:
    ends = []
    for extensions in ([], [Average(0.9)]):
        params = parameters()
        ends.append(run(AdamW(params, lr=0.1, extensions=extensions, fused=fused), params))
    assert equal(*ends)


@pytest.mark.parametrize("extensions", [("schedule-free", "sam"), ("ema", "sam"), ("lookahead",)], ids="+".join)
def test_around_a_rule_of_whole_matrices_and_another_for_the_rest(extensions: tuple[str, ...]) -> None:
    ends = []
    for fused in (False, True):
        params = parameters(torch.float64)
        groups = [{"params": params[:1]}, {"params": params[1:], "direction": "adamw"}]
        stages = [(NEW | POINTS)[name]() for name in extensions]
        optimizer = optimizers.Muon(groups, lr=0.02, precision="float64", extensions=stages, fused=fused)
        before = run(optimizer, params, range(5))
        with optimizer.averaged():
            assert not any(torch.equal(x, y) for x, y in zip(params, before, strict=True))
            ends.append(before + values(params))
        assert equal(params, before)
    assert close(*ends, 1e-6)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("one", "other"), list(combinations(["lookahead", "schedule-free", "ema"], 2)))
def test_two_points_are_refused(one: str, other: str) -> None:
    stages = [POINTS[one](), POINTS[other]()]
    names = sorted(type(stage).__name__ for stage in stages)
    for chain in (stages, stages[::-1]):
        with pytest.raises(ValueError, match=f"{names[0]}.*{names[1]}|{names[1]}.*{names[0]}"):
            AdamW(parameters(), extensions=chain)


def test_the_name_of_the_kept_point_is_taken() -> None:
    class Own(Stage):
        place = Place.UPDATE
        state = ("train_point",)

        @staticmethod
        def update(x: Tensor, train_point: Tensor) -> tuple[Tensor, Tensor]:
            return x, train_point

    with pytest.raises(ValueError, match="train_point belongs to every optimizer: Own cannot have it"):
        SGD(parameters(), extensions=[Own()])


def test_the_count_is_given_the_learning_rate() -> None:
    class Sum(Stage):
        place = Place.UPDATE
        scalars = {"rates": 0.0}

        def count(self, scalars: Any, step: Any, hyper: Any, lr: Any) -> dict[str, Any]:
            return {"rates": scalars["rates"] + lr}

        @staticmethod
        def update(x: Tensor, rates: float) -> Tensor:
            return rates * x

    for fused in (False, True):
        params = parameters()
        optimizer = SGD(params, lr=1.0, extensions=[Sum()], fused=fused)
        for lr in (1.0, 0.5, 0.25):
            optimizer.param_groups[0]["lr"] = lr
            run(optimizer, params, [0])
        assert {state["rates"].item() for state in optimizer.state.values()} == {1.75}
