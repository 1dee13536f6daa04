"""Noise is noise: what is trained together draws independently, and what is trained again draws the same."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import SGD, Adam, Chain, GradientDropout, GradientNoise, LearningRateDropout
from optimizers.engine.random import normal

SIZE = 200
both = pytest.mark.parametrize("fused", [False, True], ids=["eager", "compiled"])


def parameters(count: int = 4) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(SIZE)) for _ in range(count)]


def make(params: Any, fused: bool = False) -> Chain:
    """A step moves a parameter by nothing but its noise."""
    return SGD(params, lr=1.0, extensions=[GradientNoise(1.0, 0.0)], fused=fused)


def train(some: Sequence[Chain], steps: int = 3) -> list[Tensor]:
    """The sums of all noise that each parameter was given."""
    params = [param for optimizer in some for group in optimizer.param_groups for param in group["params"]]
    for _ in range(steps):
        for param in params:
            param.grad = torch.zeros(SIZE)
        for optimizer in some:
            optimizer.step()
    return [param.detach().clone() for param in params]


def noise(indices: Sequence[int], steps: int = 3) -> list[Tensor]:
    at = torch.arange(SIZE)
    return [-sum(normal(0, i, t, at) for t in range(1, steps + 1)) for i in indices]  # type: ignore[misc]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=0, atol=1e-5) for x, y in zip(a, b, strict=True))


def independent(drawn: Sequence[Tensor]) -> bool:
    """No two are alike: of correlations of 200 normal numbers, the deviation is 0.07."""
    table = torch.corrcoef(torch.stack(list(drawn)))
    return bool((table - torch.eye(len(drawn))).abs().max() < 0.4)


# What makes optimizers for the same four parameters: what users do.
CONTAINERS: dict[str, Callable[[list[Any], bool], list[Chain]]] = {
    "one": lambda params, fused: [make(params, fused)],
    "one with groups": lambda params, fused: [make([{"params": params[:1]}, {"params": params[1:]}], fused)],
    "one per parameter": lambda params, fused: [make([param], fused) for param in params],
    "one per part of a model": lambda params, fused: [make(params[:3], fused), make(params[3:], fused)],
    "one extension for all": lambda params, fused: [
        SGD([param], lr=1.0, extensions=extensions, fused=fused)
        for extensions in [[GradientNoise(1.0, 0.0)]]
        for param in params
    ],
}


@both
@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_optimizers_of_one_run_draw_what_one_would(container: Any, fused: bool) -> None:
    """… and so independently; so does a second run in the process, whether or not the first is still there."""
    kept = []
    for collect in (False, True):
        some = container(parameters(), fused)
        drawn = train(some)
        assert same(drawn, noise(range(4)))
        assert independent(drawn)
        kept.append(None if collect else some)


@both
def test_a_run_does_not_depend_on_garbage(fused: bool) -> None:
    """Optimizer-in-backward keeps its optimizers in cycles, which are collected at some time or other."""
    ends = []
    enabled = gc.isenabled()
    for collects in (True, False):
        gc.disable()
        try:
            for _ in range(2):
                params = parameters(2)
                some = {param: make([param], fused) for param in params}
                for param in params:
                    param.register_post_accumulate_grad_hook(lambda p, some=some: some[p].step())
                for _ in range(3):
                    (sum(param.sum() for param in params) * 0).backward()
                ends.append([param.detach() for param in params])
                del params, some, param
                if collects:
                    gc.collect()
        finally:
            if enabled:
                gc.enable()
    assert all(same(end, noise(range(2))) for end in ends)


def test_masks_are_independent_too() -> None:
    for stage, mean in ((GradientDropout, 0.5), (LearningRateDropout, 0.5)):
        optimizers.new_run()
        params = parameters()
        for param in params:
            optimizer = SGD([param], lr=1.0, extensions=[stage(0.5)])
            param.grad = torch.ones(SIZE)
            param.optimizer = optimizer  # type: ignore[attr-defined]
        for param in params:
            param.optimizer.step()  # type: ignore[attr-defined]
        masks = [-param.detach() for param in params]
        assert independent(masks)
        assert all(abs(mask.mean() - mean) < 0.2 for mask in masks)


def test_names_decide_where_there_are_some() -> None:
    """In whatever order and however wrapped; names that clash, as of two models, are told apart."""
    names = ["a.weight", "a.bias", "b.weight", "b.bias"]
    drawn = train([make(list(zip(names, parameters(), strict=True)))])
    assert independent([*drawn, *noise(range(4))])
    wrapped = [
        "_orig_mod.b.bias",
        "module.b.weight",
        "module._orig_mod.a.bias",
        "a._checkpoint_wrapped_module.weight",
    ]
    backwards = train([make([named]) for named in zip(wrapped, parameters(), strict=True)])
    assert all(map(torch.equal, backwards, reversed(drawn)))
    part = train([make([{"params": [("b.weight", parameters(1)[0])]}])])
    assert torch.equal(part[0], drawn[2])
    two = train([make(list(zip(names, parameters(), strict=True))) for _ in range(2)])
    assert all(map(torch.equal, two[:4], drawn))
    assert independent(two)


def test_an_optimizer_made_anew_for_the_same_parameters_draws_the_same() -> None:
    params = parameters()
    for _ in range(3):
        optimizer = make(params)
    assert same(train([optimizer]), noise(range(4)))


def test_optimizers_that_draw_nothing_are_not_counted() -> None:
    Adam(parameters())
    optimizer = make(parameters())
    assert "index" not in str(Adam(parameters()).state_dict())
    assert same(train([optimizer]), noise(range(4)))


def test_a_run_may_be_begun_by_hand() -> None:
    """Two runs made together, to be compared with common random numbers."""
    some = []
    for _ in range(2):
        optimizers.new_run()
        some.append(make(parameters()))
    assert same(train(some), [*noise(range(4)), *noise(range(4))])


def test_threads_do_not_disturb_each_other() -> None:
    ends: dict[int, list[Tensor]] = {}
    barrier = threading.Barrier(2, timeout=60)

    def work(rank: int) -> None:
        some = []
        for param in parameters():
            barrier.wait()
            some.append(make([param]))
        ends[rank] = train(some)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(ends[rank], noise(range(4))) for rank in range(2))


@both
def test_groups_that_come_later_go_on_counting(fused: bool) -> None:
    params = parameters(6)
    some = [make(params[:2], fused), make(params[2:4], fused)]
    some[0].add_param_group({"params": params[4:5]})
    train(some)
    some[1].add_param_group({"params": params[5:]})
    before = [param.detach().clone() for param in params[4:]]
    train(some, 1)
    (fifth, sixth) = (param.detach() - start for param, start in zip(params[4:], before, strict=True))
    at = torch.arange(SIZE)
    assert torch.allclose(fifth, -normal(0, 4, 4, at), atol=1e-5)
    assert torch.allclose(sixth, -normal(0, 5, 1, at), atol=1e-5)


# ---------------------------------------------------------------------- resume, copy, pickle


def resume(folder: Path) -> None:
    """In a process of its own, where other things are made first and in another order: go on for two steps."""
    make(parameters())
    saved = torch.load(folder / "start.pt", weights_only=True)
    some = []
    for start, state in reversed(saved):
        some.append(make([start], fused=True))
        some[-1].load_state_dict(state)
    torch.save(train(some, 2)[::-1], folder / "end.pt")


def test_a_fresh_process_draws_on(tmp_path: Path) -> None:
    some = CONTAINERS["one per parameter"](parameters(), True)
    starts = train(some)
    saved = [(start, optimizer.state_dict()) for start, optimizer in zip(starts, some, strict=True)]
    torch.save(saved, tmp_path / "start.pt")
    root = Path(optimizers.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ends = torch.load(tmp_path / "end.pt", weights_only=True)
    assert all(map(torch.equal, ends, train(some, 2)))


@both
def test_copies_draw_on(fused: bool) -> None:
    some = CONTAINERS["one per parameter"](parameters(), fused)
    for steps in (0, 2):  # before there is any state, and after
        train(some, steps)
        twins = copy.deepcopy(some), pickle.loads(pickle.dumps(some))
        ends = [train(twin, 1) for twin in twins]
        # A group that comes later is not one of those that are there.
        for twin in twins:
            (late,) = parameters(1)
            twin[-1].add_param_group({"params": [late]})
            late.grad = torch.zeros(SIZE)
            twin[-1].step()
            assert same([late.detach()], noise([4], 1))
        expected = train(some, 1)
        assert all(torch.equal(a, b) for end in ends for a, b in zip(end, expected, strict=True))


def test_the_index_travels_whatever_the_precision_and_the_defaults() -> None:
    """Loading casts a state's tensors to the parameter's dtype, in which most numbers have no place."""
    named = ("layers.7.weight", nn.Parameter(torch.zeros(SIZE, dtype=torch.bfloat16)))
    optimizer = make([named])
    optimizer.step()
    named[1].grad = torch.zeros(SIZE, dtype=torch.bfloat16)
    optimizer.step()
    (index,) = (state["index"] for state in optimizer.state.values())
    assert index >= 2**31
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    with torch.device("meta"):
        other = make([nn.Parameter(torch.zeros(SIZE, dtype=torch.bfloat16, device="cpu"))])
        other.load_state_dict(torch.load(file, weights_only=True))
    (loaded,) = (state["index"] for state in other.state.values())
    assert loaded.dtype == torch.int64
    assert loaded.device.type == "cpu"
    assert torch.equal(loaded, index)
    assert loaded is not index


def test_a_checkpoint_of_before_has_positions() -> None:
    optimizer, other = make(parameters()), make(parameters())
    train([optimizer], 1)
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        del state["index"]
    optimizers.new_run()
    other = make(parameters())
    other.load_state_dict(saved)
    optimizer.load_state_dict(saved)
    again = train([other], 1)
    at = torch.arange(SIZE)
    assert same(again, [-normal(0, i, 2, at) for i in range(4)])


if __name__ == "__main__":
    resume(Path(sys.argv[1]))
