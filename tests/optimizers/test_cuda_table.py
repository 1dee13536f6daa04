"""Whole steps through the table of a GPU's tensors, on a GPU that the CPU plays, against eager steps."""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import SGD, Adam, AdamW, Chain, ClipNorm, GradientNoise, LearningRateDropout, Lookahead
from optimizers.engine import compiled, execution, settings
from optimizers.engine.compiled.cuda import CHUNK, GRADS, THREADS
from optimizers.engine.tensors import local

from .cuda_processor import OnCpu, play


@pytest.fixture(scope="session")
def processor(tmp_path_factory: pytest.TempPathFactory) -> OnCpu:
    return OnCpu(tmp_path_factory.mktemp("cuda_table"))


@pytest.fixture
def gpu(processor: OnCpu, monkeypatch: pytest.MonkeyPatch) -> OnCpu:
    monkeypatch.setattr(processor, "captures", False)
    return play(processor, monkeypatch)


@pytest.fixture(autouse=True)
def no_warning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def parameters(dtype: torch.dtype = torch.float64) -> list[Any]:
    """In and out of order in memory, a number, nothing, not on 16 bytes, longer than a block, complex."""
    generator = torch.Generator().manual_seed(0)
    shapes: tuple[tuple[int, ...], ...] = ((7,), (), (3, 4, 5, 5), (0, 3), (9, 12), (CHUNK + 77,))
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    params[2].data = params[2].data.to(memory_format=torch.channels_last)
    params.append(nn.Parameter(torch.randn(151, generator=generator).to(dtype)[1:].view(10, 15)))
    return params


def gradients(params: list[Any], t: int) -> None:
    generator = torch.Generator().manual_seed(100 + t)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)


def run(make: Callable[..., Chain], params: list[Any], steps: int = 6, **options: Any) -> list[Tensor]:
    """The parameters, and all that is remembered of them, after some steps."""
    optimizers.new_run()
    optimizer = make(params, **options)
    for t in range(steps):
        gradients(params, t)
        optimizer.step()
    if options["fused"]:
        assert "Execution: compiled\n" in repr(optimizer)
    states = [optimizer.state[param] for param in params]
    return [*params, *(state[name] for state in states for name in sorted(state))]


def close(make: Callable[..., Chain], dtype: torch.dtype = torch.float64, tolerance: float = 1e-12) -> None:
    ends = [run(make, parameters(dtype), fused=fused) for fused in (False, True)]
    for eager, ours in zip(*ends, strict=True):
        assert apart(ours, eager) <= tolerance


def apart(ours: Tensor, eager: Tensor) -> float:
    """How far one is from the other, relative to its length."""
    assert ours.shape == eager.shape
    ours, eager = ours.detach().double(), eager.detach().double()
    return float((ours - eager).norm() / eager.norm().clamp(min=1e-300))


def mix(params: Any, **options: Any) -> Chain:
    extensions = [GradientNoise(0.01), LearningRateDropout(0.5), Lookahead(2)]
    return optimizers.RAdamW(params, nesterov=True, extensions=extensions, **options)


def make(name: str) -> Callable[..., Chain]:
    return lambda params, **options: optimizers.create(name, params, **options)


# ---------------------------------------------------------------------- the numbers

REACHES = ["adam", "lamb", "prodigy", "schedulefree_adamw", "adafactor"]
RULES = {"mix": mix, **{name: make(name) for name in REACHES if name in optimizers.list()}}


@pytest.mark.parametrize("name", RULES)
def test_a_whole_step_is_the_eager_one(name: str, gpu: OnCpu) -> None:
    """Elementwise, with sums over a tensor, with sums over all of them, with scalars, with matrices."""
    close(RULES[name], tolerance=1e-8 if name == "mix" else 1e-12)
    assert {kernel for kernel, *_ in gpu.launches} >= {"prepare_all", "advance_all"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_less_precision(dtype: torch.dtype, gpu: OnCpu) -> None:
    close(RULES["adam"], dtype, {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype])


def test_matrices_between_passes(gpu: OnCpu) -> None:
    """Muon's and, which reads its count, SOAP's: on the matrices alone."""
    for name, options in (("muon", {}), ("soap", {"precondition_frequency": 2})):
        ends = []
        for fused in (False, True):
            params = [
                nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
                for s in ((6, 4), (3, 5))
            ]
            ends.append(run(make(name), params, 5, fused=fused, **options)[:2])
        for eager, ours in zip(*ends, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-9, atol=1e-9)


def test_complex_parameters_are_pairs_of_reals(gpu: OnCpu) -> None:
    ends = []
    for fused in (False, True):
        values = torch.randn(4, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
        params = [nn.Parameter(values.mT), nn.Parameter(values[0].real.clone())]
        ends.append(run(optimizers.LAMB, params, fused=fused))
    for eager, ours in zip(*ends, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-12, atol=1e-12)


def test_ages_that_differ_and_more_tensors_than_one_launch_takes(gpu: OnCpu) -> None:
    ends = []
    for fused in (False, True):
        params = [nn.Parameter(torch.full((2,), 1.0 + i, dtype=torch.float64)) for i in range(2 * GRADS + 5)]
        optimizer = Adam(params, 0.1, fused=fused)
        for t in range(4):
            gradients(params, t)
            for param in params[: t % 2 * 3]:
                param.grad = None
            optimizer.step()
        ends.append(torch.cat([*params, torch.stack([optimizer.state[param]["step"] for param in params])]))
    assert apart(ends[1], ends[0]) <= 1e-12
    threads = {kernel: size for kernel, _, size in gpu.launches}
    assert threads == {"prepare_all": 32, "advance_all": THREADS}
    blocks = [count for kernel, count, _ in gpu.launches[-4:] if kernel == "advance_all"]
    assert blocks == [GRADS, GRADS, 5 - 3]


def test_gradients_of_any_layout_and_dtype(gpu: OnCpu) -> None:
    """Another order in memory than the parameter's, negated lazily, in less precision than the parameter."""
    ends = []
    for fused in (False, True):
        params = [nn.Parameter(torch.ones(6, 4)) for _ in range(2)]
        optimizer = AdamW(params, 0.1, fused=fused)
        for t in range(3):
            grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(t))
            params[0].grad, params[1].grad = grad.mT, torch._neg_view(grad.view(6, 4))
            optimizer.step()
        ends.append(torch.stack(params))
    assert apart(ends[1], ends[0]) <= 1e-6


# ---------------------------------------------------------------------- torch's books


def test_checkpoints_go_from_one_execution_to_the_other(gpu: OnCpu) -> None:
    """Bit for bit within one; counts are 0-d tensors, whoever reads them."""
    for name in ("mix", "prodigy"):
        params = parameters()
        optimizers.new_run()
        optimizer = RULES[name](params, fused=True)
        for t in range(3):
            gradients(params, t)
            optimizer.step()
        ends = []
        for fused in (True, True, False):
            again = [nn.Parameter(param.detach().clone(memory_format=torch.preserve_format)) for param in params]
            optimizers.new_run()
            other = RULES[name](again, fused=fused)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for t in range(3, 6):
                gradients(again, t)
                other.step()
            assert {float(state["step"]) for state in other.state.values()} == {6.0}
            ends.append(torch.cat([param.detach().flatten() for param in again]))
        assert torch.equal(ends[0], ends[1])
        assert apart(ends[2], ends[0]) <= 1e-11


def test_replaced_tensors_are_noticed(gpu: OnCpu) -> None:
    ends = []
    for fused in (False, True):
        params = parameters()
        optimizer = Adam(params, 0.1, fused=fused)
        for t in range(6):
            if t == 3:
                params[0].data = params[0].data.clone() * 2
                optimizer.state[params[4]]["exp_avg"] = optimizer.state[params[4]]["exp_avg"] + 1
                optimizer.state[params[2]]["step"] = torch.tensor(7.0)
                del optimizer.state[params[1]]
            gradients(params, t)
            optimizer.step()
        ends.append(torch.cat([param.detach().flatten() for param in params]))
    assert apart(ends[1], ends[0]) <= 1e-12


def test_tables_are_made_once(gpu: OnCpu) -> None:
    """Also those with numbers that all parameters have in common: a capture needs one step in front of it."""
    for name in ("mix", "lamb", "prodigy"):
        params = parameters()
        optimizer = RULES[name]([{"params": params[:3]}, {"params": params[3:]}], fused=True)
        seen = []
        for t in range(4):
            gradients(params, t)
            optimizer.step()
            seen.append([table for step in optimizer._fused.values() for table in step.tables])
        assert seen[0] == seen[1] == seen[2] == seen[3]
        assert len(seen[0]) == 2


# ---------------------------------------------------------------------- numbers on the device


class Waits(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails where a tensor's value is asked for: on a GPU, that waits for all that was launched."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default), func
        return func(*args, **(kwargs or {}))


@pytest.fixture
def away(gpu: OnCpu, monkeypatch: pytest.MonkeyPatch) -> OnCpu:
    """Numbers in tensors are taken for a GPU's, which the CPU cannot read without waiting."""
    monkeypatch.setattr(compiled, "_value", lambda value: value if isinstance(value, Tensor) else float(value))
    monkeypatch.setattr(execution, "plain", lambda value: value)
    monkeypatch.setattr(execution, "_largest", lambda counts: counts[0])
    monkeypatch.setattr(settings, "_may_change", lambda value: False)
    return gpu


WAITING: dict[str, Callable[..., Chain]] = {
    "clip": lambda params, **options: SGD(params, extensions=[ClipNorm(0.5)], **options),
    "decay by the schedule": lambda params, **options: AdamW(params, decay="schedule", **options),
    "lamb": RULES["lamb"],
    "prodigy": RULES["prodigy"],
    "muon": lambda params, **options: optimizers.Muon([p for p in params if p.dim() == 2], **options),
}


@pytest.mark.parametrize("precision", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WAITING)
def test_a_step_waits_for_nothing(name: str, precision: torch.dtype, away: OnCpu) -> None:
    """With a learning rate in a tensor that is halved in place, and norms and sums that are known on the device."""
    ends = []
    for tensor in (False, True):
        params = parameters()
        rate = torch.tensor(0.25, dtype=precision) if tensor else 0.25
        optimizer = WAITING[name](params, lr=rate, fused=tensor, capturable=tensor)
        for t in range(4):
            gradients(params, t)
            with Waits() if tensor and t else contextlib.nullcontext():
                optimizer.step()
            if tensor:
                rate.mul_(0.5)
            else:
                optimizer.param_groups[0]["lr"] *= 0.5
        ends.append(torch.cat([param.detach().flatten() for param in params]))
    assert "Execution: compiled\n" in repr(optimizer)
    assert apart(ends[1], ends[0]) <= 1e-12


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["mix", "lamb", "prodigy"])
def test_shards_keep_their_table(name: str, mesh: Any, gpu: OnCpu) -> None:
    """A step of parameters that are spread over processes makes no table anew, unless their memory is replaced."""
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    ends = []
    for sharded in (False, True):
        plain = [nn.Parameter(torch.linspace(-1, 1, n, dtype=torch.float64).view(-1, 4)) for n in (12, 40)]
        params = (
            [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in plain] if sharded else plain
        )
        optimizers.new_run()
        optimizer = RULES[name](params, fused=True)
        tables = []
        for t in range(6):
            gradients(plain, t)
            for param, like in zip(params, plain, strict=True) if sharded else ():
                param.grad = distribute_tensor(like.grad, mesh, [Shard(0)])
            if sharded and t == 4:
                params[0]._local_tensor = params[0].to_local().detach().clone()  # as FSDP does
            optimizer.step()
            tables.append(list(optimizer._fused[0].tables))
        assert tables[1:4] == tables[:1] * 3
        assert (tables[4] != tables[3]) is sharded
        ends.append(torch.cat([local(param.detach()).flatten() for param in params]))
        assert isinstance(params[0], DTensor) is sharded
    assert torch.equal(*ends)


# ---------------------------------------------------------------------- graphs


def test_no_table_is_made_during_a_capture(gpu: OnCpu) -> None:
    """It copies to the device, of which a graph would know nothing: nothing moves, and it says what to do."""
    params = parameters()
    optimizer = AdamW(params, fused=True, capturable=True)
    gradients(params, 0)
    before = [param.detach().clone() for param in params]
    gpu.captures = True
    with pytest.raises(RuntimeError, match="make a step before the capture"):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    gpu.captures = False
    optimizer.step()
    gpu.captures = True
    optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}
    params[0].grad = None
    with pytest.raises(RuntimeError, match="with gradients for all of them"):
        optimizer.step()


def test_a_capture_needs_capturable(gpu: OnCpu) -> None:
    params = parameters()
    optimizer = AdamW(params, fused=True)
    gradients(params, 0)
    optimizer.step()
    gpu.captures = True
    with pytest.raises(RuntimeError, match="capturable=True"):
        optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


def test_a_rule_that_reads_its_count_is_not_captured(gpu: OnCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """SOAP decides by it what a step does; Muon does not."""
    param = nn.Parameter(torch.ones(4, 3))
    for make, refuses in ((optimizers.SOAP, True), (optimizers.Muon, False)):
        optimizer = make([param], fused=True, capturable=True)
        gpu.captures = False
        gradients([param], 0)
        optimizer.step()
        gpu.captures = True
        monkeypatch.setattr("optimizers.soap.read", _refuse)
        with pytest.raises(RuntimeError, match="reads its count") if refuses else contextlib.nullcontext():
            optimizer.step()


def _refuse(step: Any) -> Any:
    """As on a GPU: what is there is not read."""
    if isinstance(step, Tensor):
        raise RuntimeError("a rule reads its count at every step")
    return step


def test_what_a_graph_refers_to_outlives_its_table(gpu: OnCpu) -> None:
    params = parameters()
    optimizer = AdamW(params, fused=True, capturable=True)
    for t, captures in enumerate((False, True, False)):
        gpu.captures = captures
        gradients(params, t)
        optimizer.step()
    (table,) = optimizer._fused[0].tables
    params[0].data = params[0].data.clone()
    gradients(params, 3)
    optimizer.step()
    assert optimizer._fused[0].tables != [table]
    assert optimizer._fused[0]._captured == [table]


# ---------------------------------------------------------------------- GradScaler


@pytest.mark.parametrize("capturable", [False, True])
def test_the_kernel_reads_a_scale_and_an_overflow(capturable: bool, gpu: OnCpu) -> None:
    """From the second step on without asking: gradients are divided, and an overflow moves and counts nothing."""
    params, plain = parameters(), parameters()
    optimizer = AdamW(params, 0.1, fused=True, capturable=capturable)
    other = AdamW(plain, 0.1, fused=True)
    for t in range(5):
        gradients(params, t)
        gradients(plain, t)
        for param in params:
            param.grad *= 8
        overflow = t in (2, 3)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(float(overflow))
        with Waits() if t else contextlib.nullcontext():
            optimizer.step()
        assert optimizer._step_supports_amp_scaling
        del optimizer.grad_scale, optimizer.found_inf
        if not overflow:
            other.step()
            assert all(torch.equal(p.grad, q.grad) for p, q in zip(params, plain, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(params, plain, strict=True))
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}


@pytest.mark.parametrize("name", ["clip", "lamb"])
def test_what_looks_at_gradients_has_them_unscaled(name: str, gpu: OnCpu) -> None:
    params, plain = parameters(), parameters()
    optimizer, other = WAITING[name](params, lr=0.1, fused=True), WAITING[name](plain, lr=0.1, fused=True)
    for t in range(3):
        gradients(params, t)
        gradients(plain, t)
        for param in params:
            param.grad *= 8
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(float(t == 1))
        optimizer.step()
        if t != 1:
            other.step()
    assert all(torch.equal(p, q) for p, q in zip(params, plain, strict=True))


def test_a_gradient_that_two_parameters_share_is_divided_once(gpu: OnCpu) -> None:
    params = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizer = SGD(params, 1.0, fused=True)
    for _ in range(3):
        params[0].grad = params[1].grad = torch.full((3,), 8.0)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        optimizer.step()
    assert [param.tolist() for param in params] == [[-3.0] * 3] * 2


def test_a_parameter_that_is_new_beside_kernels_that_scale(gpu: OnCpu) -> None:
    """It is stepped eagerly, so that all is unscaled in front of the step, once."""
    ends = []
    for scale in (1.0, 8.0):
        params = [nn.Parameter(torch.ones(5)), torch.ones(4, 6)[:, ::2].requires_grad_()]
        optimizer = Adam(params, 0.1, fused=True)
        for t in range(3):
            params[0].grad = torch.full((5,), scale * (1 + t))
            params[1].grad = torch.full((4, 3), scale) if t else None
            if scale != 1:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that one is stepped eagerly
                optimizer.step()
        assert [float(optimizer.state[param]["step"]) for param in params] == [3, 2]
        ends.append(torch.cat([param.detach().flatten() for param in params]))
    assert torch.equal(*ends)


# ---------------------------------------------------------------------- elsewhere


def test_another_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `fused=True` a warning, and in any case a line of `repr`."""
    from optimizers.engine import compiled as package

    monkeypatch.setattr(package, "_warned", set())
    monkeypatch.delitem(package.TABLES, "cpu")
    for fused in (True, None):
        param = nn.Parameter(torch.ones(70_000))
        param.grad = torch.ones(70_000)
        optimizer = Adam([param], fused=fused)
        assert "Execution: eager (there are no kernels for cpu)" in repr(optimizer)
        with pytest.warns(UserWarning, match="there are no kernels for cpu") if fused else contextlib.nullcontext():
            optimizer.step()
        assert "Execution: eager (there are no kernels for cpu)" in repr(optimizer)
        assert optimizer.source() == ""
    assert repr(Adam([param], fused=False)).endswith("Execution: eager\n)")
