"""The search for a learning rate: no gap, the same number for all, closed around its best; and what is run next."""

import math

import pytest

from optimizers import mixes
from optimizers.study import Protocol, StudyError, grid
from optimizers.study.protocol import Run


def search(optimum: float, start: int, budget: int) -> list[int]:
    """The powers that a search tries on the loss |power − optimum|."""
    known: dict[int, float] = {}
    while missing := [power for power in grid.wanted(start, known, budget) if power not in known]:
        known |= {power: abs(power - optimum) for power in missing}
    return sorted(known)


@pytest.mark.parametrize("optimum", range(-5, 6))
@pytest.mark.parametrize("budget", [7, 8])
def test_the_grid_has_no_gap_and_closes_around_its_optimum(optimum: int, budget: int) -> None:
    found = search(optimum, 0, budget)
    assert found == list(range(found[0], found[0] + budget))
    assert optimum in found
    if abs(optimum) <= budget - 3:
        assert found[0] < optimum < found[-1]
    if optimum == 0:
        assert abs(found[0] + found[-1]) <= 1


def test_what_is_known_beside_the_search_does_not_lead_it_astray() -> None:
    known = {power: abs(power - 1.0) for power in range(-3, 10)}
    assert grid.wanted(0, known, 5) == search(1, 0, 5) == [-1, 0, 1, 2, 3]


def test_an_optimum_at_the_end_is_told() -> None:
    assert grid.best({-1: [3.0], 0: [1.0, 2.0], 1: [4.0]}) == (0, False)
    assert grid.best({-1: [1.0], 0: [1.5], 1: [4.0]}) == (-1, True)
    assert grid.best({-1: [math.inf], 0: [9.0], 1: [math.inf, 1.0]}) == (0, False)


def test_rates_are_half_decades() -> None:
    assert [grid.rate(k) for k in (-6, -5, -1, 0, 1)] == [0.001, 0.00316, 0.316, 1.0, 3.16]
    assert all(grid.power(grid.rate(k)) == k for k in range(-20, 5))


@pytest.mark.parametrize(
    ("text", "power"),
    [("sgd", -1), ("adamw", -5), ("adamw(lr=0.1)", -2), ("lion", -8), ("muon", -3), ("muon(lr=0.001)", -6)],
)
def test_a_search_begins_near_the_optimizers_own_rate(text: str, power: int) -> None:
    assert grid.start(mixes.parse(text)[0]) == power


def test_every_optimizer_gets_the_same_number_of_runs_and_the_best_rate_fresh_seeds() -> None:
    protocol, (mix,) = Protocol(budget=5, seeds=2, fresh_seeds=3), mixes.parse("adamw")
    results: dict[Run, dict[str, float | None]] = {}
    while missing := protocol.missing(mix, results):
        results[missing[-1]] = {"loss": None if missing[-1].power > -4 else abs(missing[-1].power + 4.4)}
    assert len(results) == protocol.runs == 13
    assert {one.seed for one in results if one.seed < 1000} == {0, 1, 2}
    assert {one.power for one in results if one.seed < 1000} == {-4}
    assert set(protocol.tuning).isdisjoint(protocol.fresh)
    more = Protocol(budget=5, seeds=2, fresh_seeds=6)
    assert more.missing(mix, results) == [Run(-4, 3), Run(-4, 4), Run(-4, 5)], "more seeds go on from there"


@pytest.mark.parametrize(("name", "value"), [("budget", 2), ("seeds", 0), ("fresh_seeds", 1001), ("seeds", 1.5)])
def test_a_protocol_out_of_range_is_one_line(name: str, value: float) -> None:
    with pytest.raises(StudyError, match=f"{name.replace('_', '-')} must be a whole number from"):
        Protocol(**{name: value})  # type: ignore[arg-type]
