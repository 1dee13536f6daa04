"""The rules of after 2019: what a step moves, that a mix trains as its rule, and whom they are measured beside."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import optimizers as ours
from benchmarks import candidates
from benchmarks.modern import BY_ARITHMETIC, BY_MEMORY, MODERN, _single_precision, _torch_muon, hidden, muon
from benchmarks.plan import AFTER_2019
from benchmarks.rules import RULES


def parameters(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes or ((40,), (6, 9), (7,))]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def streams_of(source: str) -> int:
    """The tensors that a compiled pass over memory reads, if what was read is used, and that it writes."""
    code = re.sub(r"//.*", "", source[: source.index("\n    }\n")])
    read = [name for name in re.findall(r"(\w+) = \w+_at\[i\];", code) if len(re.findall(rf"\b{name}\b", code)) > 1]
    return len(read) + len(set(re.findall(r"(\w+_at)\[i\] = ", code)))


@pytest.mark.parametrize("name", [name for name in BY_MEMORY if name != "adafactor"])  # which is no loop
def test_streams_are_what_the_compiled_passes_move(name: str) -> None:
    params = parameters((40,))
    optimizer = MODERN[name].ours(params, fused=True)
    optimizer.step()
    (table,) = [table for step in optimizer._fused.values() for table in step.tables]
    passes = table.source.split("for (int64_t i = begin")[1:]
    assert len(passes) == (2 if name in ("prodigy", "lamb", "cautious", "mars") else 1)
    # A copy of the gradient need not be made in front of the sum.
    assert sum(map(streams_of, passes)) == MODERN[name].streams + (name == "mars")


@pytest.mark.parametrize("name", BY_ARITHMETIC)
def test_streams_of_matrices_are_their_state_of_the_same_shape(name: str) -> None:
    (param,) = params = parameters((6, 9))
    optimizer = MODERN[name].ours(params, fused=False)
    for _ in range(2):
        optimizer.step()
    state = [tensor for tensor in optimizer.state[param].values() if tensor.shape == param.shape]
    assert MODERN[name].streams == 3 + 2 * len(state)


@pytest.mark.parametrize("mix", ["muon_average", "soap_average"])
def test_a_mix_trains_as_the_rule_that_it_is_held_against(mix: str) -> None:
    mixed, plain = parameters(), parameters()
    steps = [MODERN[mix].ours(mixed, fused=True).step, MODERN[mix].peers["ours_plain"](ours, plain).step]
    for _ in range(12):
        for step in steps:
            step()
    for p, q, start in zip(mixed, plain, parameters(), strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, start)


def test_torch_s_muon_computes_in_float32_if_it_is_to_and_only_then() -> None:
    """And with its AdamW for what is no matrix, it is the rule that it is held against."""
    distances = []
    for precise in (True, False):
        mine, theirs = parameters((24, 8), (8, 24), (5,)), parameters((24, 8), (8, 24), (5,))
        steps = [muon(mine, fused=False).step, _torch_muon(torch, theirs, precise).step]
        for _ in range(5):
            for step in steps:
                step()
        assert torch.ones(1).bfloat16().dtype == torch.bfloat16
        distances.append([(p - q).abs().max().item() for p, q in zip(mine[:2], theirs[:2], strict=True)])
    assert max(distances[0]) < 2e-5
    assert min(distances[1]) > 5e-5


def test_a_function_s_default_precision_becomes_single() -> None:
    def product(x: Tensor, eps: float = 1e-7, dtype: torch.dtype = torch.bfloat16) -> tuple[float, torch.dtype]:
        return eps, dtype

    _single_precision(product)
    assert product(torch.ones(1)) == (1e-7, torch.float32)


def test_muon_steps_hidden_matrices_and_adamw_the_rest() -> None:
    params = [torch.empty(shape, device="meta") for shape in ((50257, 768), (64, 3, 7, 7), (64,), (768, 2304))]
    matrices, rest = hidden(params)
    assert [p.shape for p in matrices] == [(64, 3, 7, 7), (768, 2304)]
    assert [p.shape for p in rest] == [(50257, 768), (64,)]


def test_the_plan_has_every_library_that_a_rule_names() -> None:
    named = {candidates.library_of(name) for rule in MODERN.values() for name in candidates.of(rule)}
    assert named == set(AFTER_2019.libraries)
    assert not set(MODERN) & set(RULES)
    assert all(any(name in AFTER_2019.rules_on(shapes) for shapes in AFTER_2019.shapes) for name in MODERN)


@pytest.mark.parametrize("name", [name for name in BY_MEMORY if name != "adafactor"])
def test_the_kernel_alone_moves_every_parameter(name: str) -> None:
    params = parameters()
    kernel = candidates.of(MODERN[name])["ours_kernel"](params)
    before = [p.detach().clone() for p in params]
    kernel()
    assert all(not torch.equal(p, old) for p, old in zip(params, before, strict=True))


def test_a_kernel_is_not_taken_for_the_step_around_it() -> None:
    """Between Muon's passes over memory is what takes it its time."""
    with pytest.raises(candidates.Skip, match="between its kernels are products of matrices"):
        candidates.of(MODERN["muon"])["ours_kernel"](parameters())


def test_an_optimizer_that_asks_for_training_mode_is_put_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    optimizer = SimpleNamespace(train=lambda: said.append("train"), step=lambda: said.append("step"))
    monkeypatch.setattr(candidates, "library", lambda name: None)
    step: Any = candidates._peer("schedulefree", lambda module, params: optimizer, parameters())
    assert said == ["train", "step"]
    step()
    assert said == ["train", "step", "step"]


def test_this_package_and_torch_are_libraries_that_are_there() -> None:
    assert candidates.library("ours") is ours
    assert candidates.library("torch") is torch
    assert candidates.versions(["ours", "torch"]) == {}
