"""Whole steps through the table of a GPU's tensors, on a GPU that the CPU plays, against eager steps."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import SGD, Adam, AdamW, Chain, ClipNorm, GradientNoise, LearningRateDropout, Lookahead
from optimizers.engine.compiled.cuda import CHUNK, GRADS, THREADS

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


def close(make: Callable[..., Chain], dtype: torch.dtype = torch.float64, steps: int = 6, **options: Any) -> None:
    ends = [run(make, parameters(dtype), steps, fused=fused, **options) for fused in (False, True)]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
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
    close(RULES[name])
    assert {kernel for kernel, *_ in gpu.launches} >= {"prepare_all", "advance_all"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_less_precision(dtype: torch.dtype, gpu: OnCpu) -> None:
    close(RULES["adam"], dtype)


def test_matrices_between_passes(gpu: OnCpu) -> None:
    """Muon's and, which reads its count, SOAP's: on the matrices alone."""
    for name, options in (("muon", {}), ("soap", {"precondition_frequency": 2})):
        ends = []
        for fused in (False, True):
            params = [nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(3), dtype=torch.float64)) for s in ((6, 4), (3, 5))]
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
