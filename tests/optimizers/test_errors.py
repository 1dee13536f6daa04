"""A wrong call is one error that names the argument, its value and the range, before anything is touched."""

import copy
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import optimizers
from optimizers import (
    L2,
    SGD,
    SGDW,
    Adam,
    AdamW,
    Chain,
    ClipNorm,
    ClipValue,
    DecoupledWeightDecay,
    GradientDropout,
    GradientNoise,
    LearningRateDropout,
    Lookahead,
    Place,
    RAdam,
    Stage,
)
from optimizers.adam import AdamDirection
from optimizers.engine import check
from optimizers.momentum import Momentum


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]


def wrong_values(interval: str) -> Iterator[tuple[Any, type[Exception], str]]:
    """Values that a range does not have, with the error that they are and how it shows them."""
    if interval.endswith(" or None"):
        interval = interval.removesuffix(" or None")
    else:
        yield None, ValueError if " | " in interval else TypeError, "None"
    types: list[Any] = []
    values: list[Any] = []
    if interval == "bool":
        types = [1, "yes"]
    elif " | " in interval:
        values = ["other", 1, ["keep"]]
    elif interval.startswith(("pair ", "each ")):
        kind, _, entries = interval.partition(" ")
        types = [0.5, (), "ab"] + ([(0.5,), (0.5, 0.5, 0.5)] if kind == "pair" else [])
        for value, error, shown in wrong_values(entries):
            yield (0.5, value), error, shown
    else:
        types = ["1", True, 1j, [0.5], (0.5, 0.5)]
        yield torch.ones(2), ValueError, "tensor of 2 elements"
        whole, bounds = interval.startswith("int "), interval.removeprefix("int ")
        low, high = (float(end) for end in bounds[1:-1].split(","))
        if whole:
            types.append(1.5)
            values = [int(low) - 1] + ([int(high)] if high < math.inf else [])
        else:
            values = [math.nan, torch.tensor(math.nan), math.inf if ")" in bounds else -math.inf]
            values += [low] if "(" in bounds else [low - 1]
            values += [high] if ")" in bounds else [high + 1] if high < math.inf else []
    for value in types:
        yield value, TypeError, repr(value)
    for value in values:
        yield value, ValueError, repr(value)


EXTENSIONS = [
    GradientNoise(),
    GradientDropout(),
    LearningRateDropout(),
    Lookahead(),
    ClipNorm(1.0),
    ClipValue(1.0),
]


@pytest.mark.parametrize("name", optimizers.list())
def test_every_hyper_parameter_of_a_group_is_checked_before_the_group_is_added(name: str) -> None:
    params = parameters()
    momentum = {"momentum": 0.9} if name in ("sgd", "sgdw", "rmsprop") else {}
    route = {"direction": "adamw"} if name == "muon" else {}  # for vectors
    optimizer = optimizers.create(name, [{"params": params[:1], **route}], extensions=EXTENSIONS, **momentum)
    before = copy.deepcopy(optimizer.state_dict())
    ranges = {"lr": "[0, inf)", "maximize": "bool", "capturable": "bool", "differentiable": "bool"}
    for stage in optimizer._stages:
        ranges |= {stage.key(key): interval for key, interval in stage.ranges.items()}
    assert set(optimizer.defaults) - set(ranges) <= {"foreach", "fused"}
    for key, interval in ranges.items():
        for value, error, shown in wrong_values(interval):
            if (key, value) == ("adjust_lr_fn", None):  # by which torch's Muon means the first of its words
                continue
            group = {"params": params[1:], key: value}
            with pytest.raises(error) as caught:
                optimizer.add_param_group(group)
            message = str(caught.value)
            assert f"{key} of parameter group 1" in message, (key, value)
            assert shown in message, (key, value)
            assert set(group) == {"params", key}
            assert optimizer.state_dict() == before
    optimizer.add_param_group({"params": params[1:], **route})


@pytest.mark.parametrize("stage", [type(stage) for stage in EXTENSIONS])
def test_every_argument_of_an_extension_is_checked(stage: type[Stage]) -> None:
    needed = {"max_norm": 1.0} if stage is ClipNorm else {"value": 1.0} if stage is ClipValue else {}
    for key, interval in stage.ranges.items():
        for value, error, shown in wrong_values(interval):
            with pytest.raises(error, match=f"^{key}\\b") as caught:
                stage(**{**needed, key: value})
            assert shown in str(caught.value)


@pytest.mark.parametrize("name", optimizers.list())
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lr": -1.0}, ValueError, r"lr must lie in \[0, inf\), got -1.0"),
        ({"lr": math.nan}, ValueError, r"lr must lie in \[0, inf\), got nan"),
        ({"lr": math.inf}, ValueError, r"lr must lie in \[0, inf\), got inf"),
        ({"lr": "fast"}, TypeError, r"lr must be a number in \[0, inf\), got 'fast'"),
        ({"lr": (0.1, 0.2)}, TypeError, r"lr must be a number in \[0, inf\), got \(0.1, 0.2\)"),
        ({"lr": torch.ones(2)}, ValueError, "lr must be a number in .*, got a tensor of 2 elements"),
        ({"weight_decay": -0.1}, ValueError, r"weight_decay must lie in \[0, inf\), got -0.1"),
        ({"maximize": 1}, TypeError, "maximize must be True or False, got 1"),
        ({"foreach": 1}, TypeError, "foreach must be True or False, got 1"),
        ({"fused": "yes"}, TypeError, "fused must be True or False, got 'yes'"),
        ({"speed": 1}, TypeError, "speed"),
        ({"extensions": Lookahead()}, TypeError, r"extensions must be a list of stages, got Lookahead\("),
        ({"extensions": [Lookahead]}, TypeError, r"made of stages, such as GradientNoise\(\), got <class"),
        ({"extensions": ["lookahead"]}, TypeError, r"made of stages, such as GradientNoise\(\), got 'lookahead'"),
        ({"extensions": [Lookahead(), Lookahead(3)]}, ValueError, "each stage once, got Lookahead 2 times"),
        ({"extensions": [ClipNorm(1), GradientNoise(), ClipNorm(2)]}, ValueError, "once, got ClipNorm 2 times"),
    ],
)
def test_every_optimizer_refuses(name: str, options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        optimizers.create(name, parameters(), **options)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: SGD(p, extensions=[AdamDirection()]), "one direction, got Momentum and AdamDirection"),
        (lambda p: Adam(p, extensions=[AdamDirection()]), "one direction, got AdamDirection and AdamDirection"),
        (lambda p: Chain(p, [Momentum(), AdamDirection()], lr=1), "one direction, got Momentum and AdamDirection"),
        (lambda p: SGD(p, extensions=[L2(0.1)]), "once, got L2 2 times; a named optimizer has its own"),
        (lambda p: SGDW(p, extensions=[DecoupledWeightDecay()]), "once, got DecoupledWeightDecay 2 times"),
        (lambda p: AdamW(p, extensions=[L2(0.1)]), "weight_decay belongs to both L2 and DecoupledWeightDecay"),
        (lambda p: SGD(p, extensions=[DecoupledWeightDecay()]), "belongs to both L2 and DecoupledWeightDecay: use"),
        (lambda p: RAdam(p, extensions=[L2(0.1)]), "weight_decay belongs to both"),
        (
            lambda p: SGD(p, extensions=[Lookahead(inner="reset")]),
            r"inner='reset' needs a velocity, but Momentum\(",
        ),
        (lambda p: Chain(p, [Lookahead(inner="average")], lr=1), "a velocity, but a chain without a direction"),
    ],
)
def test_stages_that_do_not_fit_are_refused_by_name(make: Callable[[Any], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(parameters())


class Own(Stage):
    """A stage as a user might write it, which takes a name that is taken."""

    place = Place.GRADIENT
    update = staticmethod(lambda grad: grad)


@pytest.mark.parametrize(
    ("attributes", "match"),
    [
        ({"hyper": {"lr": 1}}, "lr belongs to every optimizer: Own cannot have it"),
        ({"hyper": {"params": 1}}, "params belongs to every optimizer: Own cannot have it"),
        ({"hyper": {"betas": (1, 1)}}, "betas belongs to both Own and AdamDirection: use one"),
        ({"state": ("exp_avg",)}, "exp_avg belongs to both Own and AdamDirection: use one"),
        ({"state": ("step",)}, "step belongs to every optimizer: Own cannot have it"),
        ({"scalars": {"slow_param": 0.0}}, "slow_param belongs to both Own and Lookahead: use one"),
    ],
)
def test_names_that_are_taken_are_refused(attributes: dict[str, Any], match: str) -> None:
    stage = Own()
    for name, value in attributes.items():
        setattr(stage, name, value)
    with pytest.raises(ValueError, match=match):
        Adam(parameters(), extensions=[stage, Lookahead()])


def test_a_seed_reaches_to_2_63() -> None:
    for stage in (GradientNoise, GradientDropout, LearningRateDropout):
        assert stage(seed=2**63 - 1).hyper["seed"] == 2**63 - 1
        for seed in (2**63, -1):
            with pytest.raises(ValueError, match=re.escape(f"seed must lie in [0, {2**63}), got {seed}")):
                stage(seed=seed)


def test_a_number_beyond_all_floats_is_out_of_range() -> None:
    with pytest.raises(ValueError, match=re.escape("lr must lie in [0, inf), got a number too large for a float")):
        Adam(parameters(), lr=10**400)


@pytest.mark.parametrize("fused", [False, True])
def test_a_learning_rate_in_a_tensor_of_one_element(fused: bool) -> None:
    """Of shape (1,) it would make a matrix of a number; a scheduler keeps it, and its first value, as it is."""
    ends = []
    for lr in (0.1, torch.tensor([0.1])):
        param = torch.nn.Parameter(torch.ones(()))
        optimizer = optimizers.AdamW([param], lr, fused=fused)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        for _ in range(3):
            param.grad = torch.ones(())
            optimizer.step()
            scheduler.step()
        ends.append(param.detach())
    assert ends[0].shape == ends[1].shape == ()
    torch.testing.assert_close(*ends)


def test_an_inner_state_of_a_group_needs_a_velocity() -> None:
    params = parameters()
    optimizer = optimizers.Adagrad(params[:1], extensions=[Lookahead()])
    with pytest.raises(
        ValueError, match=r"inner='reset' of parameter group 1 needs a velocity, but AdagradDirection"
    ):
        optimizer.add_param_group({"params": params[1:], "lookahead_inner": "reset"})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", optimizers.list())
def test_a_sparse_gradient_is_refused_before_anything_moves(name: str) -> None:
    params = parameters()
    route = {"direction": "adamw"} if name == "muon" else {}
    optimizer = optimizers.create(name, [{"params": params, **route}], weight_decay=0.1)
    params[0].grad, params[1].grad = torch.ones(2), torch.ones(1).to_sparse()
    with pytest.raises(
        RuntimeError, match=r"needs dense gradients, got a sparse one for a parameter of shape \(1,\)"
    ):
        optimizer.step()
    assert all(torch.equal(p.detach(), q.detach()) for p, q in zip(params, parameters(), strict=True))
    assert not optimizer.state


def test_what_torch_refuses_is_refused() -> None:
    param = parameters()[0]
    with pytest.raises(ValueError, match="empty parameter list"):
        Adam([])
    with pytest.raises(TypeError, match="iterable of Tensors"):
        Adam(param)
    with pytest.raises(ValueError, match="more than one parameter group"):
        Adam([{"params": [param]}, {"params": [param]}])
    with pytest.raises(ValueError, match="non-leaf"):
        Adam([param * 2])
    optimizer = Adam([param])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(Adam([{"params": [p]} for p in parameters()]).state_dict())


def test_a_range_that_is_left_open_is_open() -> None:
    for value, interval in [(0, "[0, 1)"), (1, "(0, 1]"), (math.inf, "(0, inf]"), (torch.tensor(0.5), "[0, 1)")]:
        check("x", value, interval)
    for value, interval in [(1, "[0, 1)"), (0, "(0, 1]"), (math.inf, "(0, inf)"), (torch.tensor(1.0), "[0, 1)")]:
        with pytest.raises(ValueError, match=re.escape(f"x must lie in {interval}, got")):
            check("x", value, interval)
