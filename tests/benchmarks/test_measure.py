"""The stopwatch, without looking at the time it shows."""

import gc
from collections.abc import Callable, Sequence

import pytest
from torch import Tensor

from benchmarks import measure
from benchmarks.candidates import Build, Skip, Step
from benchmarks.measure import AXPY, COPY, IN_PLACE, SCALE, TRIAD, Setting, session
from experiments.errors import UserError

CPU = Setting("cpu", 1)
MACHINE = {*IN_PLACE, COPY}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One call per measurement, and only these: what was called, in order."""
    monkeypatch.setattr(measure, "BLOCK", 0.0)
    return []


def caller(name: str, calls: list[str]) -> Build:
    def build(params: Sequence[Tensor]) -> Step:
        return lambda: calls.append(name)

    return build


def after_warm_up(calls: list[str], period: int = 1) -> list[str]:
    return calls[2 * (measure.WARM_UP + period) :]


def test_every_round_measures_every_candidate_in_an_order_of_its_own(calls: list[str]) -> None:
    builds = {name: caller(name, calls) for name in ("a", "b")}
    seconds = session(builds, [(3,)], CPU, streams=7, rounds=20)
    assert set(seconds) == {"a", "b"} | MACHINE
    assert {len(times) for times in seconds.values()} == {20}
    rounds = [tuple(after_warm_up(calls)[i : i + 2]) for i in range(0, 40, 2)]
    assert set(rounds) == {("a", "b"), ("b", "a")}
    again: list[str] = []
    session({name: caller(name, again) for name in ("a", "b")}, [(3,)], CPU, streams=7, rounds=20)
    assert again == calls


def test_a_measurement_covers_whole_periods(calls: list[str]) -> None:
    session({name: caller(name, calls) for name in ("a", "b")}, [(3,)], CPU, streams=7.4, period=5, rounds=4)
    measured = after_warm_up(calls, 5)
    assert len(measured) == 2 * 4 * 5
    assert all(len(set(measured[i : i + 5])) == 1 for i in range(0, len(measured), 5))


def test_short_steps_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(measure, "BLOCK", 1e-3)
    session({"a": caller("a", calls)}, [(3,)], CPU, streams=7, rounds=1)
    assert len(calls) > measure.WARM_UP + 50  # an append takes less than 20 microseconds


def test_one_that_cannot_run_is_left_out_with_its_reason(calls: list[str]) -> None:
    def absent(params: Sequence[Tensor]) -> Step:
        raise Skip("not here")

    said: list[str] = []
    seconds = session({"a": absent, "b": caller("b", calls)}, [(3,)], CPU, streams=7, rounds=2, say=said.append)
    assert set(seconds) == {"b"} | MACHINE
    assert said == ["  without a: not here"]


@pytest.fixture
def storages() -> tuple[list[list[int]], Build]:
    found: list[list[int]] = []

    def build(params: Sequence[Tensor]) -> Step:
        assert all(p.grad is not None and p.requires_grad and p.is_leaf for p in params)
        found.append([p.data_ptr() for p in params])
        return lambda: None

    return found, build


@pytest.mark.parametrize(("free", "shared"), [(1e12, False), (1300.0, True)])
def test_parameters_are_shared_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
    calls: list[str],
    storages: tuple[list[list[int]], Callable[..., Step]],
    free: float,
    shared: bool,
) -> None:
    found, build = storages
    monkeypatch.setattr(measure, "available", lambda device: free)
    session({"a": build, "b": build}, [(5,), (2, 1)], CPU, streams=7, rounds=1)
    assert (found[0] == found[1]) is shared


def test_too_little_memory_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, storages: tuple[list[list[int]], Callable[..., Step]]
) -> None:
    monkeypatch.setattr(measure, "available", lambda device: 100.0)
    with pytest.raises(UserError, match="--libraries"):
        session({"a": storages[1]}, [(50,)], CPU, streams=7, rounds=1)


@pytest.mark.parametrize("share", [False, True])
def test_the_machines_rows_move_the_bytes_of_the_step(share: bool) -> None:
    steps = measure._bandwidth(600, 7.0, measure.torch.device("cpu"), share)
    for name, streams in ((SCALE, 2), (AXPY, 3), (TRIAD, 4), (COPY, 2)):
        result = steps[name]()
        assert isinstance(result, Tensor)
        assert result.numel() * streams == 600 * 7


def test_the_garbage_collector_is_as_it_was() -> None:
    def fails() -> None:
        assert not gc.isenabled()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), measure._without_garbage_collection():
        fails()
    assert gc.isenabled()


def test_no_rounds_is_an_error() -> None:
    with pytest.raises(UserError, match="rounds must be at least 1, got 0"):
        session({}, [(3,)], CPU, streams=7, rounds=0)
