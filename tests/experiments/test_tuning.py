"""Tuning on jobs of records: the same budget for all, by the search of `optimizers.study`."""

from pathlib import Path

from experiments import benchmark, mixes, tuning
from experiments.runs import Settings


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


def test_a_profile_counts_the_targets_reached_so_far() -> None:
    curve = {"x": [1, 2, 3, 4], "seeds": [[4.0, 1.0, 2.0, 0.1], [3.0, None, None, None]]}
    assert tuning.profile(curve, [3.5, 1.5]) == [[0.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]]
