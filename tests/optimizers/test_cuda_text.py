"""The CUDA text of every rule and mix, run on the CPU, against the eager step and the C kernel."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import Chain, Lookahead
from optimizers.engine import compiled
from optimizers.engine.compiled import c_table, cuda

from . import test_fused
from .cuda_host import Host
from .test_fused import FORMS, FUNCTIONS, all_extensions
from .test_mixes import EXTENSIONS, RULES, one_thread  # noqa: F401 (a fixture for all)

MATRICES = ("adafactor", "muon", "normuon", "shampoo", "soap")
# Where the last digit may decide a sign, or is enlarged.
IN_DOUBLE_ONLY = ("lion", "signum", "muon", "shampoo", "soap")
# Their product of momenta is kept in float32: the eager step goes on with that, a compiled one with what it kept.
ROUNDED = ("nadam", "nadamw")
DRAWS = ("noise", "lr-dropout", "gradient-dropout")
BY_PRECISION = ("stochastic-rounding", "kahan", "state-dtype")  # for 16 bits


@pytest.fixture(scope="session")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("cuda_text"))


@pytest.fixture
def host(shared_host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """With which steps with ``fused=True`` are made of CUDA text."""
    return use(shared_host, monkeypatch)


def use(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(c_table, "c_source", host.source)
    monkeypatch.setattr(c_table, "load", host.load)
    monkeypatch.setattr(compiled, "_warned", set())
    host.launches.clear()
    host.stepped.clear()
    return host


def parameters(dtype: torch.dtype, long: bool = True) -> list[Any]:
    """In and out of order in memory, one number, none at all, not on 16 bytes, and longer than a block."""
    generator = torch.Generator().manual_seed(0)
    shapes: tuple[tuple[int, ...], ...] = ((7,), (), (3, 4, 5, 5), (0, 3), (1,), (9, 12), (cuda.CHUNK + 77,))
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes[: 6 + long]]
    params[2].data = params[2].data.to(memory_format=torch.channels_last)
    off = torch.randn(1001, generator=generator).to(dtype)[1:]
    return [*params, nn.Parameter(off if long else off[:150].view(10, 15))]


Make = Callable[..., Chain]
Ends = dict[str, Tensor]


def run(make: Make, params: list[Any], steps: int = 12, **options: Any) -> Ends:
    """Where steps with seeded gradients lead: the parameters, then what is remembered of them, each as one."""
    generator = torch.Generator().manual_seed(1)
    optimizers.new_run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that it runs eagerly, or steps some so
        optimizer = make(params, **options)

        def closure() -> float:
            for param in params:
                noise = torch.randn(param.shape, generator=generator)
                param.grad = (noise + 0.1 * param.detach()).to(param.dtype)
            return 0.0

        for _ in range(steps):
            optimizer.step(closure)
    found: dict[str, list[Tensor]] = {"param": params}
    for state in optimizer.state.values():
        for name, tensor in state.items():
            found.setdefault(name, []).append(tensor)
    return {name: torch.cat([t.detach().flatten().double() for t in tensors]) for name, tensors in found.items()}


def apart(ends: Ends, others: Ends) -> float:
    """The largest relative difference of what two runs have led to."""
    assert ends.keys() == others.keys()
    assert all(end.isfinite().all() for end in ends.values())
    norms = {name: float(other.norm()) or 1.0 for name, other in others.items()}
    return max(float((ends[name] - others[name]).norm()) / norm for name, norm in norms.items())


def split(params: list[Any], **vectors: Any) -> list[Any]:
    """A group of matrices, and one with these options of what is none."""
    matrices, others = ([p for p in params if (p.dim() >= 2) is two] for two in (True, False))
    return [{"params": matrices}, {"params": others, **vectors}]


def options(name: str) -> dict[str, Any]:
    """Such that all that a rule does is done within a dozen steps of small matrices."""
    return {"soap": {"precondition_frequency": 2, "max_precond_dim": 12}}.get(name, {})


# ---------------------------------------------------------------------- the numbers


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in optimizers.list()
        for dtype in (torch.float64, torch.float32)[: 1 if name in IN_DOUBLE_ONLY else 2]
    ],
    ids=str,
)
def test_every_optimizer(name: str, dtype: torch.dtype, shared_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(params: Any, **given: Any) -> Chain:
        groups = split(params, direction="adamw") if name == "muon" else params
        return optimizers.create(name, groups, **options(name), **given)

    ends = []
    for execution in ("C" if name in ROUNDED else "eager", "CUDA"):
        if execution == "CUDA":
            use(shared_host, monkeypatch)
        params = parameters(dtype, long=name not in MATRICES)
        ends.append(run(make, params, fused=execution != "eager"))
    assert shared_host.launches
    assert apart(ends[1], ends[0]) <= (1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize(("name", "given"), FORMS, ids=str)
def test_every_form_of_a_rule(name: str, given: dict[str, Any], host: Host) -> None:
    eager, cuda_text = test_fused.ends(name, given)
    torch.testing.assert_close(cuda_text, eager, rtol=0, atol=1e-13)


@pytest.mark.parametrize("mix", [name for name in EXTENSIONS if name not in BY_PRECISION])
def test_every_extension(mix: str, host: Host) -> None:
    def make(params: Any, **given: Any) -> Chain:
        decay = 0.0 if mix in ("cautious-decay", "hyperball") else 0.1
        groups = split(params, hyperball=False) if mix == "hyperball" else params
        return optimizers.AdamW(groups, weight_decay=decay, extensions=[EXTENSIONS[mix]()], **given)

    ends = [run(make, parameters(torch.float64), fused=fused) for fused in (False, True)]
    assert host.launches
    assert apart(ends[1], ends[0]) <= (1e-6 if mix in DRAWS else 1e-12)


@pytest.mark.parametrize("rule", ["lamb", "prodigy", "adafactor", "muon", "normuon", "shampoo", "soap"])
def test_every_reach_in_a_mix(rule: str, host: Host) -> None:
    """Sums of a tensor and of all, and matrices, between the stages of a mix."""
    names = ["mars", "cautious", "average" if rule in ("lamb", "muon", "soap") else "schedule-free"]

    def make(params: Any, **given: Any) -> Chain:
        given |= {"lr": 1.0 if rule == "prodigy" else 0.01, "extensions": [EXTENSIONS[name]() for name in names]}
        groups = split(params, direction="adamw") if "muon" in rule else params
        return RULES[rule](groups, **({"max_precond_dim": 12} if rule == "soap" else {}), **given)

    long = rule not in MATRICES
    ends = [run(make, parameters(torch.float64, long), fused=fused) for fused in (False, True)]
    assert host.launches
    assert apart(ends[1], ends[0]) <= 1e-12


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_operation(name: str, host: Host) -> None:
    test_fused.test_every_operation_is_torchs(name)
    assert host.launches


@pytest.mark.parametrize("name", ["i", "k", "decay"])
def test_no_name_hides_another(name: str, host: Host) -> None:
    test_fused.test_no_name_hides_another(name)
    assert bool(host.launches) is (name == "decay")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mix", ["none", "all", *BY_PRECISION])
def test_16_bits_are_those_of_the_c_kernel(
    mix: str, dtype: torch.dtype, shared_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    extensions = {"none": list, "all": all_extensions}.get(mix) or (lambda: [EXTENSIONS[mix]()])

    def make(params: Any, **given: Any) -> Chain:
        return optimizers.LAMB(params, lr=0.01, eps=1e-3, extensions=extensions(), fused=True, **given)

    in_c = run(make, parameters(dtype))
    use(shared_host, monkeypatch)
    in_cuda = run(make, parameters(dtype))
    assert shared_host.launches
    if mix == "kahan":  # a compensation is what the parameter lacks: the rest of a number says nothing by itself
        for ends in (in_c, in_cuda):
            ends["compensation"] += ends["param"]
    assert apart(in_cuda, in_c) <= 1e-3


# ---------------------------------------------------------------------- the launches


def test_more_tensors_than_addresses_fit_a_launch(host: Host) -> None:
    def many() -> list[Any]:
        generator = torch.Generator().manual_seed(0)
        return [nn.Parameter(torch.randn(3 if i % 50 else 0, generator=generator)) for i in range(cuda.GRADS + 5)]

    ends = [run(optimizers.LAMB, many(), steps=3, fused=fused) for fused in (False, True)]
    assert [kernel for kernel, _ in host.launches[:4]] == ["prepare_all", "advance_all", "advance_all", "sum_all"]
    assert apart(ends[1], ends[0]) <= 1e-6


def test_numbers_may_be_on_the_device(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for by_address in (False, True):
        monkeypatch.setattr(host, "by_address", by_address)
        extensions = all_extensions()
        ends.append(run(optimizers.LAMB, parameters(torch.float32), extensions=extensions, lr=0.5, fused=True))
    assert apart(*ends) == 0


@pytest.mark.parametrize("elements", [2**31, 2**33])
def test_tensors_may_be_longer_than_32_bits_count(
    elements: int, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tensors of which there are only the last elements, just these are stepped: to where short ones lead."""
    ends = []
    for beyond in (0, elements):
        monkeypatch.setattr(host, "beyond", beyond)
        ends.append(run(optimizers.AdamW, parameters(torch.bfloat16), steps=3, fused=True))
    assert apart(*ends) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_scaler_divides_the_gradients_and_leaves_out_steps(
    dtype: torch.dtype, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GradScaler does in front of a step: by the reciprocal of the scale, rounded as gradients are."""
    scale = torch.tensor(3000.0)
    ends = []
    for inside in (False, True):
        param = nn.Parameter(torch.linspace(-1, 1, 1003).to(dtype)[2:])
        optimizer = optimizers.AdamW([param], 0.1, fused=True)
        for t in range(3):
            scaled = (torch.linspace(2, -3, 1001) * 3000 * t).to(dtype)
            param.grad = scaled.clone()
            if not inside:
                param.grad *= scale.double().reciprocal().float()
            for name, value in ("grad_scale", scale), ("found_inf", torch.tensor(float(t == 1))):
                monkeypatch.setattr(host, name, value if inside else None)
            before = param.detach().clone(), scaled
            if inside or t != 1:
                optimizer.step()
            if inside and t == 1:
                assert all(map(torch.equal, (param.detach(), param.grad), before))
        state = optimizer.state[param]
        assert state["step"] == 2
        ends.append([param.detach().clone(), param.grad, state["exp_avg_sq"]])
    assert all(map(torch.equal, *ends))


def test_a_gate_that_is_shut_is_not_passed(host: Host) -> None:
    run(optimizers.AdamW, parameters(torch.float32), extensions=[Lookahead(5)], fused=True)
    text = host.stepped[-1]
    gates = re.findall(r"if \(given\.(\w+)\) (slow_param_pack = read|write)", text)
    assert len(gates) == 2
    assert gates[0][0] == gates[1][0]


def test_moves_16_bytes_at_a_time(host: Host) -> None:
    """Of the widest tensor; a long rule, which does not wait for memory, moves one element."""
    packs = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for extensions in ((), all_extensions()):
            host.stepped.clear()
            run(optimizers.AdamW, parameters(dtype), steps=1, extensions=extensions, fused=True)
            packs[dtype, bool(extensions)] = set(re.findall(r"advance<(\d)>", host.stepped[-1]))
    long = {(dtype, True): {"1"} for dtype in (torch.float64, torch.float32, torch.bfloat16)}
    assert packs == long | {
        (torch.float64, False): {"2", "1"},
        (torch.float32, False): {"4", "1"},
        (torch.bfloat16, False): {"8", "1"},
    }


@pytest.mark.parametrize("signless", [True, False])
def test_no_undefined_behaviour(
    signless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of which the sanitizer finds some once whole numbers that wrap have a sign."""
    host = Host(tmp_path, "-fsanitize=undefined")
    use(host, monkeypatch)
    if not signless:
        monkeypatch.setattr(cuda._Kernel, "wraps", True)
    run(optimizers.LAMB, parameters(torch.float32), extensions=all_extensions(), fused=True)
    assert host.launches
    assert ("runtime error: signed integer overflow" in capfd.readouterr().err) is not signless
