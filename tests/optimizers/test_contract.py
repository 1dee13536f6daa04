"""One suite for every named optimizer in mixes of four extensions: what torch expects of an optimizer.

Each runs eagerly without extensions, with each of them and with all, some in every mix, and compiled without and
with all of them: with ALL_MIXES=1 in the environment everything in every mix, which takes half an hour.
"""

import copy
import inspect
import io
import math
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import lr_scheduler

import optimizers
from optimizers import Chain, GradientDropout, GradientNoise, LearningRateDropout, Lookahead, Place, Stage

# Every extension at a setting at which it does something within a few steps, and at its neutral one.
EXTENSIONS: dict[str, tuple[Callable[[], Stage], Callable[[], Stage]]] = {
    "noise": (lambda: GradientNoise(1.0, seed=2**40 + 1), lambda: GradientNoise(0.0)),
    "gradient-dropout": (lambda: GradientDropout(0.7, seed=3), lambda: GradientDropout(1.0)),
    "lr-dropout": (lambda: LearningRateDropout(0.6, seed=3), lambda: LearningRateDropout(1.0)),
    "lookahead": (lambda: Lookahead(2, 0.5), lambda: Lookahead(None)),
}
SUBSETS = [mix for n in range(len(EXTENSIONS) + 1) for mix in combinations(EXTENSIONS, n)]
# In every mix: one with two averages, one whose velocity Lookahead knows, one that includes the learning rate, one
# with numbers per parameter, one with several velocities, and one with sums over the tensor.
THOROUGH = ("adam", "sgd", "adadelta", "nadam", "aggmo", "lamb")
EVERYTHING = bool(os.environ.get("ALL_MIXES"))


def mixes(name: str, fused: bool) -> list[tuple[str, ...]]:
    if EVERYTHING or (name in THOROUGH and not fused):
        return SUBSETS
    return [mix for mix in SUBSETS if len(mix) in ((0, len(EXTENSIONS)) if fused else (0, 1, len(EXTENSIONS)))]


CASES = {
    "+".join((name, *mix)) + (" fused" if fused else ""): (name, mix, fused)
    for name in optimizers.list()
    for fused in (False, True)
    for mix in mixes(name, fused)
}
SHAPES = ((2, 3), ())


class Case:
    """A named optimizer in a mix of extensions, its momentum and weight decay switched on where it has them."""

    def __init__(self, name: str, mix: tuple[str, ...], fused: bool) -> None:
        self.name, self.mix, self.fused = name, mix, fused
        wanted = {"lr": 1.0 if self.name == "adadelta" else 0.05, "weight_decay": 0.02, "momentum": 0.8}
        self.other_lr = 0.05 if self.name == "prodigy" else 0.02  # of a second group; Prodigy has one rate for all
        known = inspect.signature(type(optimizers.create(self.name, parameters()))).parameters
        self.options = {name: value for name, value in wanted.items() if name in known}

    def make(self, params: Any, **options: Any) -> Chain:
        extensions = [EXTENSIONS[name][0]() for name in self.mix]
        fused = self.fused and not options.get("differentiable")
        given = {"extensions": extensions, "fused": fused, **self.options, **options}
        optimizers.new_run()  # whatever it is compared with draws the same
        return optimizers.create(self.name, routed(self.name, params), **given)

    def only(self, *mix: str) -> "Case":
        """The same optimizer, in the same execution, with these extensions."""
        return cached_case(self.name, mix, self.fused)

    @cached_property
    def end(self) -> list[Tensor]:
        """Where four plain steps lead: what most tests compare with."""
        return self.end_and_memory[0]

    @cached_property
    def end_and_memory(self) -> tuple[list[Tensor], list[Any]]:
        """The same, and what the direction then remembers."""
        params = parameters()
        optimizer = self.make(params)
        end = run(optimizer, params)
        names = [name for stage in optimizer._stages if stage.place is Place.DIRECTION for name in stage.state]
        return end, [{name: state.get(name) for name in names} for state in optimizer.state.values()]


def routed(name: str, params: Any) -> Any:
    """The parameters in groups that the optimizer takes: Muon has vectors and numbers stepped by AdamW."""
    params = list(params)
    if name != "muon":
        return params
    groups = params if params and isinstance(params[0], dict) else [{"params": params}]
    tensors = [group["params"] if isinstance(group["params"], list) else [group["params"]] for group in groups]
    flat = [(p[1] if isinstance(p, tuple) else p).dim() < 2 for members in tensors for p in members]
    if not any(flat):
        return params
    split = [
        {**group, "params": [p for p in members if ((p[1] if isinstance(p, tuple) else p).dim() < 2) == vector]}
        | ({"direction": "adamw"} if vector else {})
        for group, members in zip(groups, tensors, strict=True)
        for vector in (False, True)
    ]
    return [group for group in split if group["params"]]


cached_case = cache(Case)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return cached_case(*CASES[request.param])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parameters(shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Parameters of fixed values, all different and of both signs, exact in every dtype."""
    return [
        nn.Parameter(((torch.arange(math.prod(s)) * 37 + 11 * i) % 23 / 8 - 1.25).reshape(s).to(dtype))
        for i, s in enumerate(shapes)
    ]


def gradient(t: int, i: int, like: Tensor) -> Tensor:
    """A gradient of step t, different at every step and coordinate, exact in every dtype."""
    values = (torch.arange(like.numel()) * 13 + 29 * t + 7 * i) % 31 / 16 - 0.9375
    return values.reshape(like.shape).to(like.dtype)


def run(optimizer: Chain, params: Sequence[Tensor], steps: Sequence[int] = range(4), sign: int = 1) -> list[Tensor]:
    """Take these steps; returns the parameters at the end."""
    for t in steps:
        for i, param in enumerate(params):
            param.grad = sign * gradient(t, i, param)
        optimizer.step()
    return values(params)


def values(params: Sequence[Tensor]) -> list[Tensor]:
    return [param.detach().clone() for param in params]


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit: structures of tensors, numbers and anything else."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def close(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float) -> bool:
    return all((x.double() - y.double()).abs().max() <= tolerance for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------- resume, copy, pickle


def resume(folder: Path) -> None:
    """In a process of its own: take up every case where its checkpoint is, and write where two more steps lead."""
    torch.set_num_threads(1)
    ends = {}
    for label, saved in torch.load(folder / "start.pt", weights_only=True).items():
        params = [nn.Parameter(p) for p in saved["params"]]
        optimizer = Case(*CASES[label]).make(params)
        optimizer.load_state_dict(saved["optimizer"])
        ends[label] = {"params": run(optimizer, params, [3, 4]), "optimizer": optimizer.state_dict()}
    torch.save(ends, folder / "end.pt")


def test_a_fresh_process_resumes_bit_for_bit(tmp_path: Path) -> None:
    starts, expected = {}, {}
    for label in CASES:
        params = parameters()
        optimizer = cached_case(*CASES[label]).make(params)
        run(optimizer, params, range(3))
        starts[label] = copy.deepcopy({"params": values(params), "optimizer": optimizer.state_dict()})
        expected[label] = {"params": run(optimizer, params, [3, 4]), "optimizer": optimizer.state_dict()}
    torch.save(starts, tmp_path / "start.pt")
    root = Path(optimizers.__file__).parent.parent
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    ends = torch.load(tmp_path / "end.pt", weights_only=True)
    assert [label for label in CASES if not same(ends[label], expected[label])] == []


def test_copies_go_on_alone(case: Case) -> None:
    params = parameters()
    optimizer = case.make(params)
    run(optimizer, params, range(3))
    both = optimizer, params
    before = copy.deepcopy(optimizer.state_dict())
    for twin, twins in copy.deepcopy(both), pickle.loads(pickle.dumps(both)):
        assert same(twin.state_dict(), before)
        assert same(run(twin, twins, [3]), case.end)
    assert same(optimizer.state_dict(), before)
    assert same(run(optimizer, params, [3]), case.end)


def test_a_loaded_checkpoint_is_not_written_into(case: Case) -> None:
    """torch shares the tensors of a checkpoint of the right dtype; our own `step` is a copy, as in torch."""
    params, again = parameters(), parameters()
    optimizer, other = case.make(params), case.make(again)
    run(optimizer, params, range(2))
    checkpoint = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(checkpoint)
    run(other, again, range(1))
    assert {state["step"].item() for state in checkpoint["state"].values()} == {2}


def test_a_checkpoint_without_extensions_is_continued_with_them(case: Case) -> None:
    params = parameters()
    optimizer = case.make(params, extensions=())
    run(optimizer, params, range(3))
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    extended = case.make(params)
    extended.load_state_dict(torch.load(file, weights_only=True))
    assert same(extended.state_dict()["param_groups"], case.make(parameters()).state_dict()["param_groups"])
    before = values(params)
    run(extended, params, [3])
    assert {state["step"].item() for state in extended.state.values()} == {4}
    if case.mix == ("lookahead",):
        # The slow weights began where the parameters were, and the fourth step is a sync.
        fast, slow = case.only().end, [state["slow_param"] for state in extended.state.values()]
        assert close(slow, [(a + b) / 2 for a, b in zip(before, fast, strict=True)], 1e-6)
        assert same(values(params), slow)


# ---------------------------------------------------------------------- schedulers

MAKE_SCHEDULER: dict[str, Callable[[Chain, bool], Any]] = {
    "chained": lambda o, _: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 1), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "constant": lambda o, _: lr_scheduler.ConstantLR(o, 0.5, 1),
    "cosine": lambda o, _: lr_scheduler.CosineAnnealingLR(o, 3),
    "cosine-restarts": lambda o, _: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "cyclic": lambda o, momentum: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=momentum),
    "exponential": lambda o, _: lr_scheduler.ExponentialLR(o, 0.7),
    "lambda": lambda o, _: lr_scheduler.LambdaLR(o, lambda t: t / 2),
    "linear": lambda o, _: lr_scheduler.LinearLR(o, 0.25, 1.0, 3),
    "milestones": lambda o, _: lr_scheduler.MultiStepLR(o, [1]),
    "multiplicative": lambda o, _: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "one-cycle": lambda o, momentum: lr_scheduler.OneCycleLR(o, 0.1, 5, cycle_momentum=momentum),
    "plateau": lambda o, _: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "polynomial": lambda o, _: lr_scheduler.PolynomialLR(o, 3),
    "sequential": lambda o, _: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 1), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "step": lambda o, _: lr_scheduler.StepLR(o, 1),
    "swa": lambda o, _: torch.optim.swa_utils.SWALR(o, 0.01, 2),
}


def test_every_scheduler_reaches_the_step(case: Case) -> None:
    """A scheduler does what writing its numbers into the groups by hand does, momentum and betas included."""
    for name, make in MAKE_SCHEDULER.items():
        params, by_hand = parameters([(3,)]), parameters([(3,)])
        optimizer, other = case.make(params), case.make(by_hand)
        scheduler = make(optimizer, "momentum" in optimizer.defaults or "betas" in optimizer.defaults)
        rates = []
        for t in range(3):
            group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
            rates.append(group["lr"])
            other.param_groups[0].update(group)
            before = values(params)
            run(optimizer, params, [t])
            run(other, by_hand, [t])
            # A learning rate of 0 moves nothing; whatever its velocity, SGDW's step still has earlier rates in it.
            assert rates[-1] != 0 or t > 0 or same(values(params), before)
            scheduler.step(*([1.0] if name == "plateau" else []))
        assert len(set(rates)) > 1, name
        assert same(values(params), values(by_hand)), name


def test_a_scheduler_is_resumed(case: Case) -> None:
    params = parameters()
    optimizer = case.make(params)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, 5, cycle_momentum=False)
    for t in range(2):
        run(optimizer, params, [t])
        scheduler.step()
    saved = copy.deepcopy((values(params), optimizer.state_dict(), scheduler.state_dict()))
    again = [nn.Parameter(p) for p in saved[0]]
    other = case.make(again)
    its = lr_scheduler.OneCycleLR(other, 0.1, 5, cycle_momentum=False)
    other.load_state_dict(saved[1])
    its.load_state_dict(saved[2])
    for t in range(2, 4):
        assert same(run(optimizer, params, [t]), run(other, again, [t]))
        scheduler.step()
        its.step()


# ---------------------------------------------------------------------- groups


def test_a_group_overrides_what_it_names(case: Case) -> None:
    """A group with its own values steps as all would, had these values been given to all."""
    options = {name: value / 2 for name, value in case.options.items()}
    params, others = parameters(), parameters()
    if case.name == "prodigy":  # which has one estimate for all groups
        with pytest.raises(ValueError, match="Prodigy has one learning rate for all that it moves"):
            run(case.make([{"params": params[:1], **options}, {"params": params[1:]}]), params)
        return
    end = run(case.make([{"params": params[:1], **options}, {"params": params[1:]}]), params)
    assert same(end[:1], run(case.make(others, **options), others)[:1])
    assert not same(end[:1], case.end[:1])
    assert same(end[1:], case.end[1:])


def test_a_group_overrides_extensions(case: Case) -> None:
    """A group that switches all extensions off steps as without them."""
    off: dict[str, Any] = {}
    for name in case.mix:
        stage = EXTENSIONS[name][1]()
        off |= {stage.key(key): value for key, value in stage.hyper.items()}
    params = parameters()
    end = run(case.make([{"params": params[:1], **off}, {"params": params[1:]}]), params)
    assert same(end[:1], case.only().end[:1])
    assert same(end[1:], case.end[1:])


def test_groups_do_not_change_the_noise(case: Case) -> None:
    """The same parameters in the same order, in one group or in several, take the same steps."""
    params = parameters()
    assert same(run(case.make([{"params": [p]} for p in params]), params), case.end)


def test_a_group_may_come_later(case: Case) -> None:
    """A group added in mid-training steps as one that was there but had no gradients."""
    params, early = parameters(), parameters()
    optimizer = case.make(params[:1])
    other = case.make([{"params": early[:1]}, {"params": early[1:], "lr": case.other_lr}])
    run(optimizer, params[:1], range(2))
    run(other, early[:1], range(2))
    for group in routed(case.name, [{"params": params[1:], "lr": case.other_lr}]):
        optimizer.add_param_group(group)
    assert same(run(optimizer, params, [2, 3]), run(other, early, [2, 3]))


def test_names_of_parameters_are_kept(case: Case) -> None:
    params = parameters()
    named = case.make([(f"p{i}", p) for i, p in enumerate(params)])
    groups = named.state_dict()["param_groups"]
    assert [name for group in groups for name in group["param_names"]] == ["p0", "p1"]
    end, turned = run(named, params), parameters()
    draws = any("index" in stage.needs for stage in named._stages)
    assert same(end, case.end) is not draws
    # What is drawn depends on the name alone, not on the place.
    assert same(run(case.make([(f"p{i}", turned[i]) for i in (1, 0)]), turned), end)


def test_tied_parameters_step_once(case: Case) -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False))
    model[0].weight = model[1].weight = parameters()[0]
    optimizer = case.make(model.parameters())
    end = run(optimizer, list(model.parameters()))
    assert same(end, case.end[:1])
    assert model[0].weight is model[1].weight
    assert [state["step"].item() for state in optimizer.state.values()] == [4]


# ---------------------------------------------------------------------- gradients


def test_a_closure_is_called_once_with_gradients_on(case: Case) -> None:
    params, plain = parameters(), parameters()
    optimizer, calls = case.make(params), []

    def closure() -> Any:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        calls.append(loss.item())
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert [loss] == calls == [sum((p.detach() ** 2).sum().item() for p in plain)]
    for param in plain:
        param.grad = 2 * param.detach()
    assert case.make(plain).step() is None
    assert same(values(params), values(plain))


def test_maximize_is_minimizing_the_negative(case: Case) -> None:
    params = parameters()
    assert same(run(case.make(params, maximize=True), params, sign=-1), case.end)


def test_a_parameter_without_gradient_is_left_alone(case: Case) -> None:
    params = parameters()
    optimizer = case.make(params)
    optimizer.step()
    assert optimizer.state_dict()["state"] == {}
    params[0].grad = gradient(0, 0, params[0])
    optimizer.step()
    assert [id(p) for p in optimizer.state] == [id(params[0])]
    assert same(values(params[1:]), values(parameters()[1:]))
    params[0].grad = None
    before = values(params), copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    assert same((values(params), optimizer.state_dict()), before)


def test_gradients_are_left_alone(case: Case) -> None:
    params = parameters()
    optimizer = case.make(params, maximize=True)
    for t in range(2):
        grads = [gradient(t, i, p) for i, p in enumerate(params)]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            assert param.grad is grad
            assert torch.equal(grad, gradient(t, i, param))


def test_the_global_generators_are_untouched(case: Case) -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    params = parameters()
    optimizer = case.make(params)
    run(optimizer, params, range(2))
    pickle.loads(pickle.dumps(optimizer)).state_dict()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), str(np.random.get_state()))


def test_a_neutral_extension_changes_nothing_and_any_other_something(case: Case) -> None:
    for alone in case.mix:
        params, plain = parameters(), parameters()
        extensions = [EXTENSIONS[name][name == alone]() for name in case.mix]
        without = case.only(*(name for name in case.mix if name != alone))
        optimizer, other = case.make(params, extensions=extensions), without.make(plain)
        assert same(run(optimizer, params), run(other, plain)), alone
        assert same(optimizer.state_dict()["state"], other.state_dict()["state"]), alone
        # (A sign may be what it was: then the average is not.)
        assert not same(case.end_and_memory, without.end_and_memory), alone


# ---------------------------------------------------------------------- kinds of tensors


def test_complex_is_two_reals(case: Case) -> None:
    pairs = parameters([(3, 2, 2), (2,)])
    params = [nn.Parameter(torch.view_as_complex(p.detach().clone())) for p in pairs]
    optimizer, other = case.make(params), case.make(pairs)
    for t in range(3):
        for i, (param, pair) in enumerate(zip(params, pairs, strict=True)):
            pair.grad = gradient(t, i, pair)
            param.grad = torch.view_as_complex(gradient(t, i, pair))
        if any(stage.reach == "matrix" for stage in optimizer._stages):  # of pairs of reals, it is another one
            with pytest.raises(RuntimeError, match="complex"):
                optimizer.step()
            return
        optimizer.step()
        other.step()
    assert same([torch.view_as_real(p) for p in values(params)], values(pairs))


def test_precisions_agree(case: Case) -> None:
    """The same steps, masks and noise in float64, float32 and bfloat16, to the rounding of each."""
    ends = {torch.float32: case.end}
    for dtype in (torch.float64, torch.bfloat16):
        params = parameters(dtype=dtype)
        optimizer = case.make(params)
        ends[dtype] = run(optimizer, params)
        assert [p.dtype for p in params] == [dtype] * len(params)
        # Of whole matrices, nothing is computed in less than float32, nor remembered.
        matrices = {name for stage in optimizer._stages for name in stage.matrices}
        states = [{n: t for n, t in optimizer.state[p].items() if n not in matrices} for p in params]
        kept = {optimizer.state[p][name].dtype for p in params for name in matrices if name in optimizer.state[p]}
        assert kept <= {torch.promote_types(dtype, torch.float32)}
        # Numbers, such as the step, are float32 whatever the parameter is; but the index, which is whole.
        tensors = {name: tensor.dtype for name, tensor in states[0].items() if tensor.dim()}
        remembered = {*tensors, *(name for stage in optimizer._stages for name in stage.state)}
        numbers = {name: tensor.dtype for name, tensor in states[1].items() if name not in remembered}
        assert numbers.pop("index", torch.int64) == torch.int64
        assert set(tensors.values()) <= {dtype}
        assert set(numbers.values()) == {torch.float32}
    assert close(ends[torch.float32], ends[torch.float64], 1e-5)
    assert close(ends[torch.bfloat16], ends[torch.float64], 0.1)


def test_scalars_and_empty_tensors(case: Case) -> None:
    params, alone = parameters([(), (0,), (2, 0), (1,)]), parameters([(), (), (1, 1), (1,)])
    optimizer = case.make(params)
    end = run(optimizer, params, range(2))
    assert [p.shape for p in end] == [(), (0,), (2, 0), (1,)]
    assert optimizer.state[params[1]]["step"] == 2
    other = run(case.make(alone), alone, range(2))
    assert same([end[0], end[3]], [other[0], other[3]])


def test_memory_layout_and_slices_do_not_matter(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (8, 2, 2, 2)  # a square matrix of filters: of an oblong one, SOAP's first basis is open on one side
    params, turned, sliced = (parameters([shape]) for _ in range(3))
    turned[0].data = turned[0].data.to(memory_format=torch.channels_last)
    expected = run(case.make(params), params, range(2))
    # Compiled noise: logarithms and cosines of vectors and of what is left over differ in the last place.
    tolerance = 1e-6 if case.fused and "noise" in case.mix else 0
    assert close(run(case.make(turned), turned, range(2)), expected, tolerance)
    assert turned[0].is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr("optimizers.engine.eager.SLICE", 8)
    assert same(run(case.make(sliced), sliced, range(2)), expected)


def test_lr_may_be_a_tensor(case: Case) -> None:
    params = parameters()
    lr = torch.tensor(case.options["lr"])
    assert close(run(case.make(params, lr=lr), params), case.end, 2e-6)
    assert lr == torch.tensor(case.options["lr"])


def test_capturable_keeps_step_a_tensor(case: Case) -> None:
    params = parameters()
    assert close(run(case.make(params, capturable=True), params), case.end, 2e-5)


def test_the_step_is_differentiable(case: Case) -> None:
    """The derivative of where two steps lead, by autograd, is what finite differences give."""
    start = parameters([(3,)], torch.float64)[0].detach()

    def stepped(scale: Tensor, differentiable: bool) -> Tensor:
        theta = start.clone().requires_grad_()
        optimizer = case.make([theta], differentiable=differentiable, fused=False)
        param = optimizer.param_groups[0]["params"][0] = theta.clone()
        for t in range(2):
            param.grad = scale * gradient(t, 0, start)
            optimizer.step()
        return param.sum()

    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    end = stepped(scale, True)
    (derivative,) = torch.autograd.grad(end, scale)
    with torch.no_grad():
        assert torch.allclose(end, stepped(scale, False), rtol=0, atol=1e-12)
        slope = (stepped(scale + 1e-6, False) - stepped(scale - 1e-6, False)) / 2e-6
    assert torch.allclose(derivative, slope, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------- torch's machinery


def test_hooks_fire_once(case: Case) -> None:
    params = parameters()
    optimizer, fired = case.make(params), []
    optimizer.register_step_pre_hook(lambda *_: fired.append("before"))
    optimizer.register_step_post_hook(lambda *_: fired.append("after"))
    optimizer.register_state_dict_pre_hook(lambda *_: fired.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda *_: fired.append("after saving"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: fired.append("before loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: fired.append("after loading"))
    run(optimizer, params, [0])
    optimizer.load_state_dict(optimizer.state_dict())
    assert fired == ["before", "after", "before saving", "after saving", "before loading", "after loading"]
    copy.deepcopy(optimizer).step()
    case.make(parameters()).step()
    run(optimizer, params, [1])
    assert fired[6:] == ["before", "after"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameters())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoint_round_trip(case: Case, tmp_path: Path) -> None:
    """Both forms of the optimizer's state, nested and flattened, through files, into fresh optimizers."""
    forms = {"nested": StateDictOptions(), "flattened": StateDictOptions(flatten_optimizer_state_dict=True)}

    def fresh() -> tuple[Model, Chain]:
        model = Model()
        params = list(model.parameters())
        return model, case.make([{"params": params[:1]}, {"params": params[1:], "lr": case.other_lr}])

    model, optimizer = fresh()
    params = list(model.parameters())
    run(optimizer, params, range(3))
    saved = {form: get_state_dict(model, optimizer, options=options) for form, options in forms.items()}
    dcp.save({form: {"model": w, "optimizer": s} for form, (w, s) in saved.items()}, checkpoint_id=tmp_path)
    twins = {form: fresh() for form in forms}
    # This makes the state by a step with gradient 0 and lr 0, which must not move a thing.
    loaded = {form: get_state_dict(*twins[form], options=options) for form, options in forms.items()}
    assert all(same(values(list(twin.parameters())), values(parameters())) for twin, _ in twins.values())
    loaded = {form: {"model": w, "optimizer": s} for form, (w, s) in loaded.items()}
    dcp.load(loaded, checkpoint_id=tmp_path)
    end = run(optimizer, params, [3, 4])
    for form, (twin, its) in twins.items():
        state = {"model_state_dict": loaded[form]["model"], "optim_state_dict": loaded[form]["optimizer"]}
        set_state_dict(twin, its, **state, options=forms[form])
        assert same(run(its, list(twin.parameters()), [3, 4]), end), form
        assert same(its.state_dict(), optimizer.state_dict()), form


def test_grad_scaler_leaves_out_a_step_that_overflowed(case: Case) -> None:
    params = parameters()
    optimizer = case.make(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    for t in (0, 1, -1, 2, 3):
        for i, param in enumerate(params):
            param.grad = scaler.scale(gradient(t, i, param))
        if t == -1:
            params[1].grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0
    assert same(values(params), case.end)
    assert {state["step"].item() for state in optimizer.state.values()} == {4}


if __name__ == "__main__":
    resume(Path(sys.argv[1]))
