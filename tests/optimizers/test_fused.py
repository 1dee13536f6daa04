"""The compiled step: the eager one's numbers, torch's books, no copies, no recompilation; no compiler."""

import concurrent.futures
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import optimizers
from optimizers import (
    SGD,
    Adam,
    Chain,
    ClipNorm,
    ClipValue,
    GradientDropout,
    GradientNoise,
    LearningRateDropout,
    Lookahead,
    Place,
    Stage,
)
from optimizers.engine import compiled as fused_step
from optimizers.engine.compiled import c_table, compiler
from optimizers.engine.compiled.c import c_source

SHAPES = ((7,), (40, 50), (), (3, 4, 5, 5), (1,))


def all_extensions() -> list[Stage]:
    return [
        GradientNoise(0.01, seed=5),
        GradientDropout(0.9, seed=6),
        LearningRateDropout(0.5, seed=7),
        Lookahead(5),
    ]


def parameters(dtype: torch.dtype = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    params[3].data = params[3].data.to(memory_format=torch.channels_last)
    return params


def run(optimizer: Chain, steps: int, after: Callable[[], Any] = lambda: None) -> list[Tensor]:
    """Steps with seeded gradients; returns the parameters at the end."""
    generator = torch.Generator().manual_seed(1)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()
        after()
    return [param.detach().clone() for param in params]


@pytest.fixture(autouse=True)
def warnings_are_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_step, "_warned", set())


@pytest.fixture
def compiled_sources(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that were written, traced and handed to the compiler since the test began."""
    written: list[str] = []

    def writing(*args: Any) -> str:
        written.append(c_source(*args))
        return written[-1]

    monkeypatch.setattr(c_table, "c_source", writing)
    return written


# ---------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("extensions", [list, all_extensions], ids=["plain", "extended"])
@pytest.mark.parametrize("name", optimizers.list())
def test_eager_and_compiled_agree(name: str, extensions: Callable[[], list[Stage]]) -> None:
    ends = []
    # The last digit may decide a sign: in float32 it does, in one of 2 × 10⁵ steps of Signum. Small singular values
    # of a momentum are enlarged up to 485 times by Muon. On its longer side a matrix leaves SOAP's basis open.
    dtype = torch.float64 if name in ("lion", "muon", "signum", "soap") else torch.float32
    options = {"max_precond_dim": 40} if name == "soap" else {}
    for fused in (False, True):
        params = parameters(dtype)
        flat = [param for param in params if param.dim() < 2]
        groups: list[Any] = [{"params": [param for param in params if param.dim() >= 2]}]
        groups += [{"params": flat, "direction": "adamw"}] if name == "muon" else [{"params": flat}]
        optimizer = optimizers.create(name, groups, extensions=extensions(), fused=fused, **options)
        ends.append(run(optimizer, 100))
        assert bool(optimizer.source()) is fused
    for eager, compiled in zip(*ends, strict=True):
        assert (eager - compiled).abs().max() <= 1e-6 * eager.abs().max()


# Every flag and word of every rule. Each is also run without its flags: the two must not share a program.
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("sgd", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("sgdw", {"momentum": 0.9, "decay": "lr"}),
    ("sgdw", {"momentum": 0.9, "nesterov": True}),
    ("rmsprop", {"momentum": 0.9}),
    ("rmsprop", {"momentum": 0.9, "nesterov": True}),
    ("rmsprop", {"centered": True}),
    ("adam", {"weight_decay": 0.1}),
    ("adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("adam", {"nesterov": True}),
    ("adam", {"amsgrad": True}),
    ("adamw", {"weight_decay": 0.1, "decay": "schedule"}),
    ("nadam", {"momentum_decay": None}),
    ("adamax", {"nesterov": True}),
    ("amsgrad", {"nesterov": True}),
    ("radam", {"nesterov": True, "threshold": 4.0}),
    ("radam", {"betas": (0.9, 0.6)}),
    ("adabound", {"gamma": 0.1, "nesterov": True}),
    ("adabound", {"gamma": 0.1, "amsbound": True}),
    ("aggmo", {"betas": (0.0, 0.5)}),
    ("lion", {"weight_decay": 0.1, "decay": "schedule"}),
    ("signum", {"momentum": 0.0}),
    ("signum", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("adopt", {"clip": False}),
    ("adopt", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("adabelief", {"nesterov": True, "weight_decay": 0.1}),
    ("ademamix", {"beta3_warmup": 20, "alpha_warmup": 10}),
    ("ademamix", {"betas": (0.0, 0.9, 0.99), "beta3_warmup": 20}),
    ("adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
]


def ends(
    name: str,
    options: dict[str, Any],
    extensions: Callable[[], list[Stage]] = list,
    second: dict[str, Any] | None = None,
) -> Iterator[Tensor]:
    """Where 30 steps in float64 under a schedule lead, eagerly and compiled; `second` is of the second group."""
    for fused in (False, True):
        params = parameters(torch.float64)
        groups = [{"params": params[:2]}, {"params": params[2:], **(second or {})}]
        optimizer = optimizers.create(name, groups, extensions=extensions(), fused=fused, **options)
        scheduler = OneCycleLR(optimizer, 0.01, 31, cycle_momentum=False)
        params = run(optimizer, 30, scheduler.step)
        assert bool(optimizer.source()) is fused
        yield torch.cat([param.flatten() for param in params])


@pytest.mark.parametrize(("name", "options"), FORMS, ids=str)
def test_every_form_of_a_rule_is_compiled_as_its_own(name: str, options: dict[str, Any]) -> None:
    flags = {key: value for key, value in options.items() if isinstance(value, bool | str)}
    rest = {key: value for key, value in options.items() if key not in flags}
    for given in (rest, options) if flags else (options,):
        eager, compiled = ends(name, given)
        torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-13)


@pytest.mark.parametrize("inner", ["reset", "average"])
@pytest.mark.parametrize(("name", "options"), [("sgd", {"momentum": 0.9}), ("adam", {}), ("aggmo", {})])
def test_lookaheads_inner_state_is_compiled(name: str, options: dict[str, Any], inner: Any) -> None:
    kept, _ = ends(name, options, lambda: [Lookahead(3, 0.5)])
    for own, second in ((inner, None), ("keep", {"lookahead_inner": inner})):
        eager, compiled = ends(name, options, lambda own=own: [Lookahead(3, 0.5, own)], second)
        torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-13)
        assert (kept - eager).abs().max() > 1e-4


def test_a_lazy_parameter_has_its_size_at_the_first_step() -> None:
    layer = nn.LazyLinear(300)
    optimizer = Adam(layer.parameters())
    assert "Execution: eager" in repr(optimizer)
    layer(torch.ones(2, 400)).sum().backward()
    optimizer.step()
    assert "Execution: compiled" in repr(optimizer)


def test_it_repeats_bit_for_bit_on_any_number_of_threads() -> None:
    ends = []
    before = torch.get_num_threads()
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        params = [nn.Parameter(torch.linspace(-1, 1, 100_003)), *parameters()]
        ends.append(run(optimizers.RAdamW(params, extensions=all_extensions(), fused=True), 7))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*ends, strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_masks_are_the_same_in_both(memory_format: torch.memory_format) -> None:
    moved = []
    for fused in (False, True):
        param = nn.Parameter(torch.zeros(16, 8, 5, 3).to(memory_format=memory_format))
        param.grad = torch.ones(16, 8, 5, 3)
        SGD([param], 1.0, extensions=[LearningRateDropout(0.3, seed=2**50 + 1)], fused=fused).step()
        assert set(param.detach().unique().tolist()) == {-1.0, 0.0}
        moved.append(param.detach())
    assert torch.equal(*moved)


def test_noise_is_the_same_in_both() -> None:
    noise = []
    for fused in (False, True):
        param = nn.Parameter(torch.zeros(64, 1000))
        param.grad = torch.zeros(64, 1000)
        SGD([param], 1.0, extensions=[GradientNoise(1.0, seed=3)], fused=fused).step()
        noise.append(param.detach())
    assert (noise[0] - noise[1]).abs().max() < 2e-6  # of numbers up to 4.5
    assert noise[1].std() == pytest.approx(1, abs=0.01)


def test_double_precision() -> None:
    ends = [run(optimizers.RAdamW(parameters(torch.float64), fused=fused), 20) for fused in (False, True)]
    assert all((eager - compiled).abs().max() <= 1e-14 for eager, compiled in zip(*ends, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    """As if the step were eager, in float32, on parameters and state that are rounded after it."""
    params, singles = parameters(dtype), [nn.Parameter(p.detach().float()) for p in parameters(dtype)]
    optimizer, single = Adam(params, 0.01, eps=1e-3, fused=True), Adam(singles, 0.01, eps=1e-3, fused=False)

    def round_off() -> None:
        for param in singles:
            for tensor in (param, single.state[param]["exp_avg"], single.state[param]["exp_avg_sq"]):
                tensor.data = tensor.data.to(dtype).float()

    for t in range(20):
        for i, (param, other) in enumerate(zip(params, singles, strict=True)):
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(100 * t + i)).to(dtype)
            other.grad = param.grad.float()
        optimizer.step()
        single.step()
        round_off()
    for param, other in zip(params, singles, strict=True):
        assert param.dtype == optimizer.state[param]["exp_avg"].dtype == dtype
        # A rounding in float32 may tip one in 16 bits: by one unit in the last place of then, at few coordinates.
        assert torch.allclose(param.float(), other, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 4)
        assert (param.float() == other).float().mean() > 0.98


def test_bfloat16_is_rounded_to_nearest() -> None:
    start = torch.linspace(-3, 3, 1001).to(torch.bfloat16)
    step = torch.linspace(0.001, 0.9, 1001).to(torch.bfloat16)
    param = nn.Parameter(start.clone())
    param.grad = step
    SGD([param], lr=0.37, fused=True).step()
    exact = start.double() - float(torch.tensor(0.37)) * step.double()
    assert torch.equal(param.detach(), exact.float().to(torch.bfloat16))


class Computing(Stage):
    """A direction that is any function at all of the gradient and the parameter."""

    place = Place.DIRECTION

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        Computing.function_now = function

    @staticmethod
    def update(grad: Tensor, param: Tensor) -> Tensor:
        return Computing.function_now(grad, param)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "arithmetic": lambda g, p: (2 - g) * p / (g + 3) - (-p) + torch.sub(g, p, alpha=3) + torch.add(g, p, alpha=0.5),
    "powers": lambda g, p: g**2 + g**3 + p.abs() ** 0.5 + p.abs() ** 1.7 + 1 / (1 + p**2) + (p**2 + 1) ** -1,
    "roots": lambda g, p: g.abs().sqrt() + (p**2 + 1).rsqrt() + (p**2 + 1).reciprocal(),
    "functions": lambda g, p: g.exp() + (p.abs() + 1).log() + g.sin() * p.cos() + p.tanh() + g.floor() + g.sign(),
    "comparisons": lambda g, p: (
        torch.where(g > p, g, p) + torch.where(g <= 0, 1.0, p) + (g >= p) * p - (g < 0.5) * g
    ),
    "logic": lambda g, p: (
        torch.where((g > 0) & (p > 0) | ~(g > p), g, p) + torch.where((g != p) ^ (g == g), 1.0, 2.0)
    ),
    "extremes": lambda g, p: (
        torch.maximum(g, p) * torch.minimum(g, p) + g.clamp(-1, 0.5) + p.clamp(min=0) - g.clamp(max=p)
    ),
    "integers": lambda g, p: (((p * 100).to(torch.int32) * 2146121005) >> 8 & 0xFFF) * 2.0**-12 + g.remainder(0.3),
    "bits": lambda g, p: ((g.view(torch.int32) + 0x7FFF) & -0x10000).view(torch.float32) * p,
    "constants": lambda g, p: torch.zeros_like(g) + torch.ones_like(p) + torch.full_like(g, 2.5) + g.clone(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_operation_is_torchs(name: str) -> None:
    ends = []
    special = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-40]
    for fused in (False, True):
        grid = torch.tensor([*special, *torch.linspace(-2, 2, 45).tolist()])
        param = nn.Parameter(grid.repeat(len(grid)))
        param.grad = grid.repeat_interleave(len(grid))
        optimizer = Chain([param], [Computing(FUNCTIONS[name])], lr=1.0, fused=fused)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
        ends.append(param.detach())
    if name == "integers":  # what is not finite has no place among them
        keep = torch.isfinite(ends[0]) & (param.grad.abs() <= 2)
        ends = [end[keep] for end in ends]
    assert torch.allclose(*ends, rtol=3e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["i", "k", "x1", "coordinate", "at"])
def test_no_name_hides_another(name: str) -> None:
    """A hyper-parameter of any name has its own value; where it cannot in C, the step is eager and says so."""

    class Scaled(Stage):
        place = Place.DIRECTION
        ranges = {name: "[0, inf)"}

        @staticmethod
        def update(grad: Tensor, **given: float) -> Tensor:
            return grad * given[name]

    Scaled.asks, Scaled.needs = {"update": (name,)}, frozenset({name})
    param = nn.Parameter(torch.ones(5))
    param.grad = torch.ones(5)
    optimizer = Chain([param], [Scaled(**{name: 0.25})], lr=1.0, fused=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizer.step()
    assert param.detach().tolist() == [0.75] * 5
    assert bool(optimizer.source()) is not bool(said)


# ---------------------------------------------------------------------- no copies, no recompilation


def test_nothing_is_laid_out_anew() -> None:
    params = parameters()
    optimizer = Adam(params, fused=True, extensions=[Lookahead()])
    run(optimizer, 1)
    tensors = [*params, *(tensor for state in optimizer.state.values() for tensor in state.values())]
    places = [tensor.data_ptr() for tensor in tensors]
    run(optimizer, 6)
    assert places == [tensor.data_ptr() for tensor in tensors]
    assert all(
        a is b for a, b in zip(tensors[5:], (t for s in optimizer.state.values() for t in s.values()), strict=True)
    )


def test_a_step_allocates_nothing() -> None:
    """Gradients in another order in memory than their parameter are the exception: these are copied."""
    allocated = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        param = nn.Parameter(torch.randn(64, 32, 3, 3).to(memory_format=memory_format))
        optimizer = optimizers.RAdamW([param], fused=True, extensions=all_extensions())
        param.grad = torch.randn(64, 32, 3, 3).to(memory_format=torch.channels_last)
        optimizer.step()
        with torch.profiler.profile(profile_memory=True) as profile:
            optimizer.step()
        allocated.append(sum(max(0, event.self_cpu_memory_usage) for event in profile.events()))
    assert allocated[0] == 0
    assert 0 < allocated[1] <= 1.1 * param.numel() * 4


def test_one_compilation_for_a_whole_training(compiled_sources: list[str]) -> None:
    """A thousand steps with a learning rate and betas that change, a loaded checkpoint, missing gradients."""
    params = parameters()
    optimizer = optimizers.RAdamW(params, fused=True, extensions=all_extensions())
    scheduler = OneCycleLR(optimizer, 0.01, 1000)
    run(optimizer, 500, scheduler.step)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad(set_to_none=True)
    params[0].grad = torch.ones(7)
    optimizer.step()
    run(optimizer, 499, scheduler.step)
    assert len(set(compiled_sources)) == 1
    # Another seed, another rate, other coefficients: still the same function.
    other = optimizers.RAdamW(
        parameters(), 0.5, (0.8, 0.9), weight_decay=0.3, fused=True,
        extensions=[GradientNoise(1, seed=9), GradientDropout(0.2), LearningRateDropout(0.1), Lookahead(3, 0.1)],
    )  # fmt: skip
    run(other, 2)
    assert len(set(compiled_sources)) == 1


def assert_same_after(change: Callable[[Chain, list[Any]], None], rule: Callable[..., Chain]) -> None:
    """Three steps, the change, three steps: eager and compiled come to the same."""
    ends = []
    for fused in (False, True):
        params = parameters()
        optimizer = rule(params, 0.1, fused=fused)
        run(optimizer, 3)
        change(optimizer, params)
        ends.append(run(optimizer, 3))
    for eager, compiled in zip(*ends, strict=True):
        assert (eager - compiled).abs().max() <= 1e-6


def test_replaced_tensors_are_noticed() -> None:
    """What torch users do between steps: move a parameter, edit, reset or delete state, swap a parameter."""

    def meddle(optimizer: Chain, params: list[Any]) -> None:
        params[1].data = params[1].data.clone() * 2
        optimizer.state[params[0]]["exp_avg"] = optimizer.state[params[0]]["exp_avg"] + 1
        optimizer.state[params[3]]["exp_avg_sq"].data = optimizer.state[params[3]]["exp_avg_sq"].data + 1
        del optimizer.state[params[2]]
        replaced = nn.Parameter(params[4].detach().clone())
        replaced.grad = params[4].grad
        optimizer.param_groups[0]["params"][4] = replaced

    assert_same_after(meddle, Adam)


def test_memory_of_another_form_is_noticed() -> None:
    """`.data` of another order in memory, of another size, and with gaps, as `model.to` and surgery leave it."""

    def other_forms(optimizer: Chain, params: list[Any]) -> None:
        params[3].data = params[3].data.contiguous()
        params[1].data = torch.ones(60, 70)
        params[0].data = params[0].data[:5]  # at the same place
        for param in (params[0], params[1]):
            del optimizer.state[param]
        params[4].data = torch.ones(3, 4)[:, :2]
        del optimizer.state[params[4]]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the one with gaps is stepped eagerly
        for rule in (SGD, Adam):
            assert_same_after(other_forms, rule)


def test_moved_state_is_noticed() -> None:
    """The loop that carries an optimizer to another device: each tensor's memory is replaced, the counts' too."""

    def move(optimizer: Chain, params: list[Any]) -> None:
        for state in optimizer.state.values():
            for tensor in state.values():
                tensor.data = tensor.data.clone()
                tensor.data.mul_(2)

    for rule in (SGD, Adam, optimizers.NAdam):
        assert_same_after(move, rule)


def test_parameters_of_different_ages() -> None:
    """Gradients that come and go: counts differ, and what depends on them, within one table."""
    ends = []
    for fused in (False, True):
        params = [nn.Parameter(torch.ones(50)) for _ in range(5)]
        optimizer = Adam(params, 0.1, fused=fused)
        for step in range(12):
            for i, param in enumerate(params):
                param.grad = torch.full((50,), 1.0 + step) if step % (i + 1) == 0 else None
            optimizer.step()
        assert [int(optimizer.state[param]["step"]) for param in params] == [12, 6, 4, 3, 3]
        ends.append([param.detach() for param in params])
    for eager, compiled in zip(*ends, strict=True):
        assert (eager - compiled).abs().max() <= 1e-6


@pytest.mark.parametrize("says", ["needs dense gradients", "exp_avg has the shape"])
def test_a_refusal_moves_no_group(says: str) -> None:
    """What is wrong in the second group is found before the first one moves."""
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = Adam([{"params": [param]} for param in params], 0.1, fused=True)
    for param in params:
        param.grad = torch.ones(3)
    if says == "needs dense gradients":
        params[1].grad = torch.ones(3).to_sparse()
    else:
        optimizer.state[params[1]]["exp_avg"] = torch.ones(4)
    with pytest.raises(RuntimeError, match=says):
        optimizer.step()
    assert all(torch.equal(param, torch.ones(3)) for param in params)
    assert all(state.get("step", 0) == 0 for state in optimizer.state.values())


def test_without_torchs_guards_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are private to torch, and may be gone one day."""
    monkeypatch.setitem(sys.modules, "torch._C._dynamo.guards", None)
    test_moved_state_is_noticed()
    test_replaced_tensors_are_noticed()
    test_memory_of_another_form_is_noticed()
    test_gradients_of_any_layout()


def test_state_of_another_dtype_is_stepped_as_it_is() -> None:
    param = nn.Parameter(torch.ones(100))
    optimizer = Adam([param], 0.1, fused=True)
    param.grad = torch.ones(100)
    optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[param][name].data = optimizer.state[param][name].data.to(torch.bfloat16)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype == torch.bfloat16
    assert (param - 0.8).abs().max() < 1e-3


@pytest.mark.parametrize("size", [3, 300])
def test_state_of_another_shape_is_an_error(size: int) -> None:
    """As after a checkpoint of a model with another head."""
    param, other = (nn.Parameter(torch.ones(n)) for n in (100, size))
    optimizer, saved = Adam([param], fused=True), Adam([other], fused=True)
    param.grad, other.grad = torch.ones(100), torch.ones(size)
    saved.step()
    optimizer.load_state_dict(saved.state_dict())
    with pytest.raises(RuntimeError, match=rf"exp_avg has the shape \({size},\), its parameter \(100,\)"):
        optimizer.step()
    assert torch.equal(param.detach(), torch.ones(100))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_complex_and_real_parameters_side_by_side(order: tuple[int, int], compiled_sources: list[str]) -> None:
    """Autograd leaves a gradient conjugated lazily: ∂/∂c̄ of Re((1 + 2i) c̄) is 1 + 2i."""
    both = (nn.Parameter(torch.ones(3, dtype=torch.complex64)), nn.Parameter(torch.zeros(5)))
    optimizer = SGD([both[i] for i in order], 1.0, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        ((both[0].conj() * (1 + 2j)).sum().real + both[1].sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert torch.equal(both[0].detach(), torch.full((3,), -2 - 6j))
    assert torch.equal(both[1].detach(), torch.full((5,), -3.0))
    assert len(compiled_sources) == 2, "a table each, laid out once"


def test_gradients_of_any_layout() -> None:
    ends = []
    for fused in (False, True):
        params = [nn.Parameter(torch.zeros(4, 6)) for _ in range(3)]
        params.append(nn.Parameter(torch.zeros(4, 6, dtype=torch.complex64)))
        values = torch.arange(24.0).view(4, 6)
        params[0].grad, params[1].grad = values.t().contiguous().t(), values[:1].expand(4, 6)
        params[2].grad = torch.complex(values, -values).conj().imag  # lazily negated
        params[3].grad = torch.complex(values, values + 1).conj()  # lazily conjugated
        SGD(params, 1.0, fused=fused).step()
        ends.append([param.detach() for param in params])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_autograd_is_told() -> None:
    param = nn.Parameter(torch.ones(3))
    loss = (param**2).sum()
    param.grad = torch.ones(3)
    SGD([param], 0.1, fused=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_clipping_sees_all_gradients() -> None:
    ends = []
    for fused in (False, True):
        optimizer = Adam(parameters(), 0.1, fused=fused, extensions=[ClipNorm(0.5), ClipValue(0.1)])
        ends.append(run(optimizer, 5))
    assert all((a - b).abs().max() <= 1e-6 for a, b in zip(*ends, strict=True))


# ---------------------------------------------------------------------- which execution


def test_none_compiles_where_it_pays() -> None:
    small, large = [nn.Parameter(torch.zeros(100))], [nn.Parameter(torch.zeros(fused_step.WORTH_IT))]
    assert "Execution: eager" in repr(Adam(small))
    assert "Execution: compiled" in repr(Adam(large))
    assert "Execution: compiled" in repr(Adam(small, fused=True))
    for unfused in ({"fused": False}, {"foreach": True}, {"foreach": False}, {"differentiable": True}):
        assert "Execution: eager" in repr(Adam(large, **unfused))
    optimizer = Adam(small)
    optimizer.add_param_group({"params": large})
    assert "Execution: compiled" in repr(optimizer)
    optimizer = Adam(large)
    large[0].grad = torch.ones_like(large[0])
    optimizer.step()
    assert "sqrtf" in optimizer.source()


@pytest.mark.parametrize("other", ["foreach", "differentiable"])
def test_contradictions_are_refused(other: str) -> None:
    with pytest.raises(ValueError, match=f"fused and {other} cannot both be True"):
        Adam(parameters(), fused=True, **{other: True})


def test_a_parameter_with_gaps_in_memory_is_stepped_eagerly() -> None:
    ends = []
    for fused in (False, True):
        strided, plain = torch.ones(4, 6)[:, ::2].requires_grad_(), nn.Parameter(torch.ones(3))
        strided.grad, plain.grad = torch.ones(4, 3), torch.ones(3)
        optimizer = Adam([strided, plain], 0.1, fused=fused)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
            optimizer.step()
        assert [str(w.message)[:10] for w in caught] == ["fused=True"] * fused
        ends.append([strided.detach(), plain.detach()])
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(*ends, strict=True))


class Looking(Stage):
    """A direction that looks at a value, which no trace can follow."""

    place = Place.DIRECTION

    @staticmethod
    def update(grad: Tensor) -> Tensor:
        return grad.clamp(-2, 2) if grad.abs().max() > 2 else grad


class Sorting(Stage):
    """A direction with an operation for which there is no C."""

    place = Place.DIRECTION

    @staticmethod
    def update(grad: Tensor) -> Tensor:
        return torch.special.bessel_j0(grad)


@pytest.mark.parametrize(
    ("stage", "reason"), [(Looking, "meta tensors"), (Sorting, "no C for torch's .*bessel_j0")]
)
def test_what_cannot_be_compiled_runs_eagerly_and_says_so(stage: type[Stage], reason: str) -> None:
    ends = []
    for fused in (False, True):
        param = nn.Parameter(torch.ones(3))
        param.grad = torch.tensor([1.0, 2.0, 3.0])
        optimizer = Chain([param], [stage()], lr=0.1, fused=fused)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
            optimizer.step()
        assert len(caught) == fused
        assert not fused or re.search(f"fused=True runs eagerly: .*{reason}", str(caught[0].message))
        ends.append(param.detach())
    assert torch.equal(*ends)


# ---------------------------------------------------------------------- the compiler

PROGRAM = """
import sys, warnings, torch
from optimizers import Adam
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for fused in (True, True, None):
        param = torch.nn.Parameter(torch.ones(100_000)); param.grad = torch.ones(100_000)
        optimizer = Adam([param], fused=fused); optimizer.step(); optimizer.step()
print(len(caught), bool(optimizer.source()), *(w.message for w in caught))
"""


def in_a_process(program: str = PROGRAM, cwd: Path | None = None, **environment: str) -> str:
    root = str(Path(optimizers.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": root, **environment},
        cwd=cwd, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def left_in(folder: Path) -> list[str]:
    """What is left there but torch's own folder, which is made when its compiler is imported."""
    return [path.name for path in folder.iterdir() if not path.name.startswith("torchinductor")]


def test_without_a_compiler_there_is_one_warning(tmp_path: Path) -> None:
    said = in_a_process(CC="", PATH=str(tmp_path), OPTIMIZERS_CACHE=str(tmp_path))
    assert said.startswith("1 False fused=True runs eagerly: there is no C compiler: install one")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent -m64", "CC=.*absent -m64 is not a program"),
        ("cc '", "CC=cc ' is not a program"),
        ("false", "does not compile"),
        ("cc -no-such-option", "does not compile"),
    ],
)
def test_a_wrong_compiler_is_named(name: str, says: str, tmp_path: Path) -> None:
    said = in_a_process(CC=name, OPTIMIZERS_CACHE=str(tmp_path))
    assert re.match(f"1 False fused=True runs eagerly: .*{says}", said)


def test_the_compiled_function_is_kept_and_a_damaged_one_made_anew(tmp_path: Path) -> None:
    assert in_a_process(OPTIMIZERS_CACHE=str(tmp_path)).startswith("0 True")
    (library,) = tmp_path.iterdir()
    made = library.stat().st_mtime_ns
    assert in_a_process(OPTIMIZERS_CACHE=str(tmp_path)).startswith("0 True")
    assert library.stat().st_mtime_ns == made
    library.write_bytes(b"half a libr")
    assert in_a_process(OPTIMIZERS_CACHE=str(tmp_path)).startswith("0 True")
    assert library.stat().st_size > 1000


def test_a_compiler_may_be_named_with_options(tmp_path: Path) -> None:
    assert in_a_process(CC="cc -g0", OPTIMIZERS_CACHE=str(tmp_path)).startswith("0 True")


def test_a_cache_that_cannot_be_written_is_not_needed(tmp_path: Path) -> None:
    """As of a container whose home is read-only; and nothing is left in the folder for temporary files."""
    (tmp_path / "file").touch()
    (temporary := tmp_path / "temporary").mkdir()
    cache = str(tmp_path / "file" / "cache")
    assert in_a_process(OPTIMIZERS_CACHE=cache, TMPDIR=str(temporary)).startswith("0 True")
    assert left_in(temporary) == []


def test_a_forked_child_and_its_parent_need_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (temporary := tmp_path / "temporary").mkdir()
    program = """
import os, sys, torch
from optimizers import SGD, Adam
def works(rule):
    param = torch.nn.Parameter(torch.ones(3)); param.grad = torch.ones(3)
    optimizer = rule([param], fused=True); optimizer.step()
    return bool(optimizer.source())
assert works(Adam)
child = os.fork()
if child == 0:
    sys.exit(not (works(Adam) and works(SGD)))
assert os.waitpid(child, 0)[1] == 0
assert works(Adam) and works(SGD)
"""
    cache = str(tmp_path / "file" / "cache")
    assert in_a_process(program, OPTIMIZERS_CACHE=cache, TMPDIR=str(temporary)) == ""
    assert left_in(temporary) == []


@pytest.mark.parametrize("name", [".", "cache", "~", "~/ä {b} c/$d", "../other", "{}"])
def test_a_cache_may_be_anywhere_and_stays_there(name: str, tmp_path: Path) -> None:
    """Also when the process goes to another folder between two steps, of two kernels."""
    (start := tmp_path / "a start").mkdir()
    (tmp_path / "elsewhere").mkdir()
    program = """
import os, warnings, torch
from optimizers import SGD, Adam
warnings.simplefilter("error")
os.chdir("a start")
for rule in (Adam, SGD):
    param = torch.nn.Parameter(torch.ones(3)); param.grad = torch.ones(3)
    optimizer = rule([param], fused=True); optimizer.step(); optimizer.step()
    assert optimizer.source()
    os.chdir("../elsewhere")
"""
    in_a_process(program, cwd=tmp_path, OPTIMIZERS_CACHE=name, HOME=str(tmp_path / "home"))
    expected = Path(name.replace("~", str(tmp_path / "home"))) if "~" in name else start / name
    assert len(list(expected.glob("*.so"))) == 2
    assert len(list(tmp_path.rglob("*.so"))) == 2


def test_a_cache_from_which_nothing_may_be_run_is_not_needed(tmp_path: Path) -> None:
    """A file system mounted noexec: a library can be written, but not loaded; it is left as it was."""
    assert in_a_process(OPTIMIZERS_CACHE=str(tmp_path)).startswith("0 True")
    (library,) = tmp_path.iterdir()
    made = library.stat().st_mtime_ns
    program = f"""
import ctypes
real = ctypes.CDLL
class CDLL(real):
    def __init__(self, name, *args, **options):
        if name and name.startswith({str(tmp_path)!r}):
            raise OSError(name + ": failed to map segment from shared object")
        super().__init__(name, *args, **options)
ctypes.CDLL = CDLL
{PROGRAM}"""
    assert in_a_process(program, OPTIMIZERS_CACHE=str(tmp_path)).startswith("0 True")
    assert list(tmp_path.iterdir()) == [library]
    assert library.stat().st_mtime_ns == made


def test_two_processes_at_once_share_a_cache(tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda _: in_a_process(OPTIMIZERS_CACHE=str(tmp_path)), range(2)))
    assert all(each.startswith("0 True") for each in said)
    assert len(list(tmp_path.iterdir())) == 1


def test_without_any_folder_it_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    """No home, and no temporary folder: a container with a read-only disk."""

    def nowhere(*args: Any, **options: Any) -> Any:
        raise FileNotFoundError("no usable temporary directory")

    for name in ("OPTIMIZERS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(compiler.tempfile, "mkdtemp", nowhere)
    compiler.load.cache_clear()
    compiler._absolute.cache_clear()
    optimizer = Adam([nn.Parameter(torch.ones(3))], fused=True)
    with pytest.warns(UserWarning, match="there is no place for compiled steps .*OPTIMIZERS_CACHE"):
        run(optimizer, 1)
    assert "Execution: eager" in repr(optimizer)
    compiler.load.cache_clear()


def test_the_source_shows_the_equations() -> None:
    optimizer = Adam(parameters(), fused=True)
    run(optimizer, 1)
    source = optimizer.source()
    for equation in ("m_t = β₁ m_{t−1} + (1 − β₁) g_t", "v̂_t = v_t / (1 − β₂ᵗ)", "d_t = m̂_t / (√v̂_t + ε)"):
        assert f"// {equation}\n" in source
    assert len(re.findall(r"_at\[i\]", source)) == 7  # four tensors read, three written: each once
