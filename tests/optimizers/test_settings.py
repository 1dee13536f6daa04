"""Hyper-parameters of whatever make, given at once, set later or loaded, mean one thing or are one error."""

import copy
import io
import math
import pickle
from collections import UserList, deque
from collections.abc import Callable, MutableSequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import optimizers
from optimizers import Adam, AdamW, Chain, ClipNorm, GradientNoise, LearningRateDropout, Lookahead

both = pytest.mark.parametrize("fused", [False, True], ids=["eager", "compiled"])


class ListConfig(MutableSequence[Any]):
    """As OmegaConf's: a sequence that is no list, and cannot be hashed."""

    def __init__(self, items: list[Any]) -> None:
        self.items = list(items)

    def __getitem__(self, i: Any) -> Any:
        return self.items[i]

    def __setitem__(self, i: Any, value: Any) -> None:
        self.items[i] = value

    def __delitem__(self, i: Any) -> None:
        del self.items[i]

    def __len__(self) -> int:
        return len(self.items)

    def insert(self, i: int, value: Any) -> None:
        self.items.insert(i, value)

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self.items == other


class Array:
    """As JAX's: no sequence, no number and not hashable, but it can be made into either."""

    def __init__(self, value: Any) -> None:
        self.value = np.asarray(value)
        self.size = self.value.size

    def item(self) -> Any:
        return self.value.item()

    def tolist(self) -> Any:
        return self.value.tolist()

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Any:
        return self.value == other


SEQUENCES: dict[str, Callable[[list[float]], Any]] = {
    "list": list,
    "ListConfig": ListConfig,
    "UserList": UserList,
    "deque": deque,
    "numpy": np.array,
    "numpy scalars": lambda items: [np.float64(item) for item in items],
    "tensor": lambda items: torch.tensor(items, dtype=torch.float64),
    "jax": Array,
    "jax scalars": lambda items: tuple(map(Array, items)),
}
# (name, value as users have it, value as it is kept)
SCALARS = [
    ("lr", np.float64(0.25), 0.25),
    ("lr", np.float32(0.25), 0.25),
    ("lr", np.int64(1), 1),
    ("lr", np.array(0.25), 0.25),
    ("lr", np.array([0.25]), 0.25),
    ("lr", Array(0.25), 0.25),
    ("lr", Fraction(1, 4), 0.25),
    ("weight_decay", np.float16(0.5), 0.5),
    ("weight_decay", np.longdouble(0.5), 0.5),
    ("weight_decay", np.uint8(0), 0),
    ("amsgrad", np.bool_(True), True),
    ("amsgrad", np.array(True), True),
    ("amsgrad", torch.tensor(True), True),
    ("maximize", np.bool_(True), True),
    ("lookahead_k", np.int64(5), 5),
    ("lookahead_k", np.float64(math.inf), math.inf),
    ("lookahead_k", torch.tensor(5), 5),
    ("lookahead_inner", np.str_("reset"), "reset"),
    ("gradient_noise_seed", np.uint64(2**63 - 1), 2**63 - 1),
    ("lr_dropout_keep", np.float32(0.5), 0.5),
    ("clip_norm_max_norm", np.float32(math.inf), math.inf),
]
WRONG = [
    ("betas", {0.5: 0, 0.75: 0}, TypeError),
    ("betas", {0.5, 0.75}, TypeError),
    ("betas", iter([0.5, 0.75]), TypeError),
    ("betas", "ab", TypeError),
    ("betas", b"\0\0", TypeError),
    ("betas", np.array(0.5), TypeError),
    ("betas", np.zeros((2, 2)), TypeError),
    ("betas", ListConfig([0.5]), TypeError),
    ("betas", torch.zeros(3), TypeError),
    ("betas", torch.zeros(2, requires_grad=True), TypeError),
    ("betas", range(2), ValueError),
    ("betas", [0.5, np.float32(1.0)], ValueError),
    ("betas", ListConfig([0.5, "0.9"]), TypeError),
    ("betas", [True, 0.5], TypeError),
    ("lr", np.bool_(True), TypeError),
    ("lr", np.zeros(2), ValueError),
    ("lr", np.complex64(1), TypeError),
    ("lr", np.float32("nan"), ValueError),
    ("lr", -1.0, ValueError),
    ("lr", torch.tensor(-1.0), ValueError),
    ("weight_decay", Array([0.1, 0.2]), ValueError),
    ("weight_decay", np.float64(-1), ValueError),
    ("weight_decay", [0.1], TypeError),
    ("eps", None, TypeError),
    ("amsgrad", np.int64(1), TypeError),
    ("amsgrad", np.array([True, False]), TypeError),
    ("maximize", 1, TypeError),
    ("fused", "yes", TypeError),
    ("lookahead_k", np.float64(5), TypeError),
    ("lookahead_k", np.bool_(True), TypeError),
    ("lookahead_k", 0, ValueError),
    ("lookahead_inner", np.array(["keep", "reset"]), ValueError),
    ("gradient_noise_seed", -1, ValueError),
]


def make(fused: bool, /, **options: Any) -> tuple[Chain, nn.Parameter]:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.tensor([1.0, -2.0, 3.0])
    extensions = [Lookahead(2), GradientNoise(0.1), LearningRateDropout(0.5), ClipNorm(100.0)]
    optimizers.new_run()
    return Adam([{"params": [param], **options}], fused=fused, extensions=extensions), param


def given(name: str, value: Any, fused: bool) -> tuple[Chain, nn.Parameter]:
    return make(fused, **{name: value})


def later(name: str, value: Any, fused: bool) -> tuple[Chain, nn.Parameter]:
    optimizer, param = make(fused)
    optimizer.param_groups[0][name] = value
    return optimizer, param


def loaded(name: str, value: Any, fused: bool) -> tuple[Chain, nn.Parameter]:
    optimizer, param = make(fused)
    saved = optimizer.state_dict()
    saved["param_groups"][0][name] = value
    optimizer.load_state_dict(saved)
    return optimizer, param


each_way = pytest.mark.parametrize("way", [given, later, loaded])


def kept_as(optimizer: Chain, name: str, value: Any) -> bool:
    """Whether a group has exactly this value, of this type, in the checkpoint, too, which needs no pickle."""
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    groups = torch.load(file, weights_only=True)["param_groups"], optimizer.param_groups
    return all(type(group[name]) is type(value) and group[name] == value for (group,) in groups)


@both
@each_way
@pytest.mark.parametrize("kind", SEQUENCES)
def test_a_sequence_is_a_tuple_of_numbers(way: Any, kind: str, fused: bool) -> None:
    expected, param = given("betas", (0.5, 0.75), fused)
    optimizer, other = way("betas", SEQUENCES[kind]([0.5, 0.75]), fused)
    for each in (expected, optimizer):
        each.step()
    assert torch.equal(param, other)
    assert kept_as(optimizer, "betas", (0.5, 0.75))
    assert all(type(beta) is float for beta in optimizer.param_groups[0]["betas"])


@both
@each_way
@pytest.mark.parametrize(("name", "value", "plain"), SCALARS, ids=lambda v: str(v) if isinstance(v, str) else "")
def test_a_number_is_a_number(way: Any, name: str, value: Any, plain: Any, fused: bool) -> None:
    expected, param = given(name, plain, fused)
    optimizer, other = way(name, value, fused)
    for each in (expected, optimizer):
        each.step()
    assert torch.equal(param, other)
    assert kept_as(optimizer, name, plain)


@both
@each_way
@pytest.mark.parametrize(("name", "value", "error"), WRONG, ids=lambda v: str(v) if isinstance(v, str) else "")
def test_what_is_wrong_is_named_before_anything_moves(
    way: Any, name: str, value: Any, error: type[Exception], fused: bool
) -> None:
    with pytest.raises(error, match=rf"^{name}(\[\d\])? of parameter group 0(\[\d\])? must ") as caught:
        way(name, value, fused)[0].step()
    if way is later:
        optimizer, param = make(fused)
        before = optimizer.param_groups[0][name]
        first = param.detach().clone()
        optimizer.step()
        assert not torch.equal(param, first)
        moved, state = param.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
        optimizer.param_groups[0][name] = value
        for _ in range(2):
            with pytest.raises(error) as again:
                optimizer.step()
            # A generator cannot be read twice, but it is named by its address as it was.
            assert str(again.value).split(", got")[0] == str(caught.value).split(", got")[0]
        assert torch.equal(param, moved)
        assert all(torch.equal(tensor, state[0][key]) for key, tensor in optimizer.state[param].items())
        optimizer.param_groups[0][name] = before
        optimizer.step()
        assert optimizer.state[param]["step"] == 2


@both
def test_two_values_that_contradict_each_other_later(fused: bool) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = optimizers.SGD([param], momentum=0.9, nesterov=True, fused=fused)
    param.grad = torch.ones(3)
    optimizer.param_groups[0]["momentum"] = 0.0
    with pytest.raises(ValueError, match="nesterov of parameter group 0 needs momentum above 0"):
        optimizer.step()
    optimizer.param_groups[0] |= {"momentum": 0.9, "fused": True, "foreach": True}
    with pytest.raises(ValueError, match="fused of parameter group 0 and foreach of parameter group 0 cannot both"):
        optimizer.step()
    assert torch.equal(param.detach(), torch.ones(3))


@both
def test_a_checkpoint_that_is_refused_changes_nothing(fused: bool) -> None:
    optimizer, _ = make(fused)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    wrong = copy.deepcopy(before)
    wrong["param_groups"][0]["eps"] = -1.0
    wrong["state"][0]["step"] = torch.tensor(5.0)
    with pytest.raises(ValueError, match="eps of parameter group 0"):
        optimizer.load_state_dict(wrong)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(value, before["state"][0][key]) for key, value in after["state"][0].items())


@both
def test_a_group_that_is_in_order_is_not_looked_at_again(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, _ = make(fused)
    optimizer.step()
    looked: list[Any] = []
    monkeypatch.setattr("optimizers.engine.settings.check", lambda name, *_: looked.append(name))
    monkeypatch.setattr("optimizers.engine.stage.check", lambda name, *_: looked.append(name))
    optimizer.step()
    assert looked == []
    optimizer.param_groups[0]["lr"] = 0.5  # as a scheduler does
    optimizer.step()
    assert looked == ["lr of parameter group 0"]


@both
def test_a_learning_rate_written_into_is_looked_at(fused: bool) -> None:
    lr = torch.tensor(0.1)
    optimizer, param = make(fused, lr=lr)
    optimizer.step()
    moved = param.detach().clone()
    lr.fill_(-1.0)
    with pytest.raises(ValueError, match=r"lr of parameter group 0 must lie in \[0, inf\), got tensor\(-1\.\)"):
        optimizer.step()
    assert torch.equal(param, moved)


@both
def test_a_scheduler_may_end_a_rounding_below_zero(fused: bool) -> None:
    optimizer, _ = make(fused, lr=0.1)
    scheduler = lr_scheduler.LinearLR(optimizer, 1 / 3, 0.0, 7)
    lowest = 0.0
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        lowest = min(lowest, optimizer.param_groups[0]["lr"])
    assert -1e-16 < lowest < 0


def test_numbers_of_a_learned_hyper_parameter_stay_tensors() -> None:
    """Autograd follows betas given as two tensors, and a learning rate of any shape stays the user's own."""
    betas = tuple(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.5, 0.75))
    lr, decay = torch.tensor([0.1], requires_grad=True), torch.tensor([0.1])
    param = nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = AdamW([param], lr, betas, weight_decay=decay, differentiable=True)
    (group,) = optimizer.param_groups
    assert group["lr"] is lr
    assert all(map(lambda a, b: a is b, group["betas"], betas))
    # Of shape (1,) it would make a vector of the parameter.
    assert group["weight_decay"].shape == ()


@pytest.mark.parametrize("make", [optimizers.AdamW, optimizers.AdaBound, optimizers.SGDW])
def test_a_learned_learning_rate_is_copied_saved_and_loaded(make: Any) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = make([param], lr=torch.tensor(0.1, requires_grad=True))
    for how in (
        lambda o: o.load_state_dict(o.state_dict()) or o,
        copy.deepcopy,
        lambda o: pickle.loads(pickle.dumps(o)),
    ):
        param.grad = torch.ones(3)
        optimizer.step()
        again = how(optimizer)
        (group,) = again.param_groups
        assert group["lr"].requires_grad
        assert group["lr"].is_leaf
        assert group["lr"].item() == pytest.approx(0.1)
        assert not group.get("base_lr", torch.tensor(0.1)).requires_grad
        group["params"][0].grad = torch.ones(3)
        again.step()
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("make", [optimizers.AdamW, optimizers.AdaBound, optimizers.SGDW])
def test_a_learned_learning_rate_has_the_derivative_of_the_step(make: Any) -> None:
    """The base that a schedule is a multiple of is a constant: of lr / base, lr alone is learned."""

    def end(lr: torch.Tensor) -> torch.Tensor:
        start = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        options = {"decay": "schedule"} if make is optimizers.AdamW else {}
        optimizer = make([start], lr=lr, differentiable=True, **options)
        optimizer.param_groups[0] |= {"params": [start.clone()], "base_lr": 0.1}
        param = optimizer.param_groups[0]["params"][0]
        for _ in range(2):
            param.grad = 2 * param
            optimizer.step()
        return param.sum()

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(end(lr), lr)
    with torch.no_grad():
        slope = (end(lr + 1e-6) - end(lr - 1e-6)) / 2e-6
    assert derivative.item() == pytest.approx(slope.item(), rel=1e-6)


def test_clipping_nothing_is_nothing() -> None:
    for options in ({"fused": False}, {"fused": True}, {"differentiable": True}):
        param = nn.Parameter(torch.ones(3))
        optimizer = optimizers.SGD([param], lr=0.1, extensions=[ClipNorm(1.0)], **options)
        optimizer.step()
        assert torch.equal(param.detach(), torch.ones(3))
        assert not optimizer.state


def test_the_decay_of_weight_decay_groups_may_be_of_numpy() -> None:
    groups = optimizers.weight_decay_groups(nn.Linear(2, 2), np.float32(0.5))
    assert [group["weight_decay"] for group in AdamW(groups).param_groups] == [0.5, 0.0]
