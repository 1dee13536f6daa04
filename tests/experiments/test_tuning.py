"""Tuning: the same budget for all, a grid that follows its optimum, ranks with honest intervals."""

import math
from pathlib import Path

import pytest

from experiments import benchmark, mixes, tuning
from experiments.runs import Settings


def search(optimum: float, start: int, budget: int) -> list[int]:
    """The powers that a search tries on the loss |power − optimum|."""
    tried = {k: abs(k - optimum) for k in (start - 1, start, start + 1)}
    while len(tried) < budget:
        power = tuning.next_power(tried)
        assert power not in tried
        tried[power] = abs(power - optimum)
    return sorted(tried)


@pytest.mark.parametrize("optimum", range(-5, 6))
@pytest.mark.parametrize("budget", [7, 8])
def test_the_grid_has_no_gap_and_closes_around_its_optimum(optimum: int, budget: int) -> None:
    grid = search(optimum, 0, budget)
    assert grid == list(range(grid[0], grid[0] + budget))
    assert optimum in grid
    if abs(optimum) <= budget - 3:
        assert grid[0] < optimum < grid[-1]
    if optimum == 0:
        assert abs(grid[0] + grid[-1]) <= 1


def test_an_optimum_at_the_end_is_told() -> None:
    assert tuning.best({-1: [3.0], 0: [1.0, 2.0], 1: [4.0]}) == (0, False)
    assert tuning.best({-1: [1.0], 0: [1.5], 1: [4.0]}) == (-1, True)
    assert tuning.best({-1: [math.inf], 0: [9.0], 1: [math.inf, 1.0]}) == (0, False)


def test_rates_are_half_decades() -> None:
    assert [tuning.rate(k) for k in (-6, -5, -1, 0, 1)] == [0.001, 0.00316, 0.316, 1.0, 3.16]


def test_every_optimizer_gets_the_same_number_of_rates(tmp_path: Path) -> None:
    settings = Settings("digits", num_epochs=1, num_train=128, num_val=40, shared_batches=True)
    chosen = mixes.parse("adam, sgd(momentum=0.5)")
    grids = tuning.tune(chosen, settings, (0, 1), tmp_path, budget=5)
    assert list(grids) == [mix.text for mix in chosen]
    assert all(len(grid) == 5 and all(len(losses) == 2 for losses in grid.values()) for grid in grids.values())
    assert len(list(tmp_path.rglob("*.json"))) == 10, "one record per optimizer and rate"
    power = next(iter(grids["adam"]))
    (job,) = benchmark.jobs(chosen[:1], settings, (0, 1), [tuning.rate(power)])
    record = job.done(tmp_path)
    assert record is not None
    assert record.get("val_loss") == grids["adam"][power]
    assert record.parameters["options"]["lr"] == tuning.rate(power)


def test_ranks_are_certain_where_the_seeds_agree_and_wide_where_they_do_not() -> None:
    losses = {"b": [2.0, 2.1, 2.2], "a": [1.0, 1.1, 1.2], "lost": [None, 0.1, 0.1]}
    assert tuning.ranks(losses)["a"] == (1.0, 1.0, 2.0), "without the seed that diverged, `lost` is the best"
    clear = tuning.ranks({"b": [2.0, 2.1, 2.2], "a": [1.0, 1.1, 1.2]})
    assert clear == {"b": (2.0, 2.0, 2.0), "a": (1.0, 1.0, 1.0)}
    mixed = tuning.ranks({"x": [1.0, 2.0, 3.0, 0.0], "y": [2.0, 1.0, 0.0, 3.2]})
    assert mixed["x"] == (1.0, 1.0, 2.0)
    assert mixed["y"] == (2.0, 1.0, 2.0)
    assert tuning.ranks({"x": [1.0], "y": [1.0]}) == {"x": (1.0, 1.0, 1.0), "y": (1.0, 1.0, 1.0)}


def test_a_profile_counts_the_targets_reached_so_far() -> None:
    curve = {"x": [1, 2, 3, 4], "seeds": [[4.0, 1.0, 2.0, 0.1], [3.0, None, None, None]]}
    assert tuning.profile(curve, [3.5, 1.5]) == [[0.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]]
