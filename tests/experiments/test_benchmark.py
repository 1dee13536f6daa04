"""The benchmark's jobs: 18 runs, each a record; whatever is killed, what had ended is kept."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import optimizers
from experiments import benchmark, mixes, records
from experiments.__main__ import main
from experiments.benchmark import Job
from experiments.records import Record
from experiments.runs import Settings

from .conftest import REPOSITORY

QUICK = Settings("digits", num_epochs=1, num_train=256, num_val=50)


def jobs(text: str, settings: Settings = QUICK, seeds: tuple[int, ...] = (0, 1)) -> list[Job]:
    return benchmark.jobs(mixes.parse(text), settings, seeds)


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.json")}


def test_the_18_runs_and_the_seven_figures() -> None:
    assert list(benchmark.LABELS) == list(optimizers.recipes)
    assert len(benchmark.LABELS) == len(set(benchmark.LABELS.values())) == 18
    assert len(benchmark.FIGURES) == 7
    assert {name for names in benchmark.FIGURES.values() for name in names} == set(benchmark.LABELS)


def test_seeds_are_stacked_where_the_rule_allows_it() -> None:
    assert [job.seeds for job in jobs("adam")] == [(0, 1)]
    assert [job.seeds for job in jobs("adam+clip_norm(1)")] == [(0,), (1,)]
    assert [job.seeds for job in jobs("adam", dataclasses.replace(QUICK, lr_schedule=True))] == [(0,), (1,)]
    assert [job.seeds for job in jobs("adam", dataclasses.replace(QUICK, model="cnn"))] == [(0,), (1,)]
    rates = benchmark.jobs(mixes.parse("adam,sgd"), QUICK, (0,), [0.1, 0.2])
    assert [(job.mix.text, job.lr) for job in rates] == [("adam", 0.1), ("adam", 0.2), ("sgd", 0.1), ("sgd", 0.2)]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    todo = jobs("adam,sgd+lookahead")
    first = benchmark.run_all(todo[:1], tmp_path)
    before = stamps(tmp_path)
    both = benchmark.run_all(todo, tmp_path)
    assert before.items() <= stamps(tmp_path).items()
    assert len(stamps(tmp_path)) == 2
    assert (both[0].metrics, both[0].provenance) == (first[0].metrics, first[0].provenance)
    assert benchmark.run_all(todo[:1], tmp_path, fresh=True)[0].metrics == first[0].metrics
    assert stamps(tmp_path).items() != before.items()


def test_other_settings_and_other_code_and_damage_are_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = jobs("adam")
    benchmark.run_all([job], tmp_path)
    assert job.done(tmp_path)
    paths = {other.path(tmp_path) for other in [job, *jobs("adam", seeds=(0, 2)), *jobs("adam(eps=1e-7)")]}
    assert len(paths) == 3
    path = job.path(tmp_path)
    text = path.read_text()
    path.write_text(text.replace('"diverged": [', '"diverged": [1, ', 1))
    assert job.done(tmp_path) is None
    path.write_text(text[:100])
    assert job.done(tmp_path) is None
    path.write_text(text)
    assert job.done(tmp_path)
    monkeypatch.setattr(benchmark, "_hash", lambda imports: "0123")
    assert job.done(tmp_path) is None


def test_the_hash_of_a_run_follows_its_own_optimizer_only() -> None:
    adam, lookahead = (benchmark._hash(mixes.parse(text)[0].imports) for text in ("adam", "adam+lookahead"))
    assert adam != lookahead
    assert adam == benchmark._hash(mixes.parse("adam(lr=0.5)")[0].imports)


def test_runs_side_by_side_give_the_same_records(tmp_path: Path) -> None:
    todo = jobs("adam+gradient_noise, sgd(1e30)")
    alone = benchmark.run_all(todo, tmp_path / "one")
    together = benchmark.run_all(todo, tmp_path / "two", processes=2)
    for a, b in zip(alone, together, strict=True):
        assert (a.slug, a.parameters, a.metrics, a.curves) == (b.slug, b.parameters, b.metrics, b.curves)
    assert together[1].get("diverged") == [1, 1]
    assert together[1].get("train_loss") == [None, None]


def test_after_a_kill_only_the_run_in_flight_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments", "benchmark", "--dataset", "digits", "--num-epochs", "60"]
    command += ["--optimizers", "sgd,momentum,nesterov,adam", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "BOOK_ROOT": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not stamps(tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = stamps(tmp_path)
    assert kept, "nothing had ended before the kill"
    for path in tmp_path.rglob("*.json"):
        records.read(path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert kept.items() <= stamps(tmp_path).items(), "a run that had ended was run again"
    assert len(stamps(tmp_path)) == 4
    assert [line.split()[0] for line in done.stdout.splitlines()[2:6]] == ["sgd", "momentum", "nesterov", "adam"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizers", "radamm"], "there is no optimizer 'radamm'; did you mean 'radam'?"),
        (["--optimizers", "adam+lookahed"], "there is no extension 'lookahed'; did you mean 'lookahead'?"),
        (["--lr-shedule"], "there is no option '--lr-shedule'; did you mean '--lr-schedule'?"),
        (["--num-epoch=3"], "there is no option '--num-epoch=3'; did you mean '--num-epochs'?"),
        (["--num-epochs", "x"], "argument --num-epochs: invalid int value: 'x'"),
        (["--dataset", "cifar"], "there is no data set 'cifar'; there are digits, mnist, cifar10"),
        (["--dataset", "digits", "--num-train", "0"], "num-train must be 1 to 1437 for digits, not 0"),
        (["--dataset", "digits", "--seeds", "a"], "--seeds must be whole numbers such as 0,1,2, not 'a'"),
        (["--dataset", "digits", "--seeds=-1"], "--seeds must be from 0 to"),
        (["--dataset", "digits", "--seeds", "9" * 30], "--seeds must be from 0 to"),
        (["--dataset", "digits", "--lr=-1"], "lr must be a number from 0 on, got -1"),
        (["--dataset", "digits", "--lr", "nan"], "lr must be a number from 0 on, got nan"),
        (["--dataset", "digits", "--lr", "1e400"], "lr must be a number from 0 on, got inf"),
        (["--dataset", "digits", "--device", "meta"], "there is no device 'meta' here"),
        (["--dataset", "digits", "--threads", "1000000"], "threads must be at most"),
        (["--dataset", "digits", "--processes", "0"], "processes must be 1 or more, not 0"),
        (["--", "x"], "benchmark takes nothing after --"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_the_table_has_intervals_and_says_what_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dataset", "digits", "--num-epochs", "2", "--num-train", "128", "--out", str(tmp_path)]
    assert main(["benchmark", *options, "--optimizers", "adam,sgd(1e30)", "--seeds", "0,1"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    (path,) = [path for path in tmp_path.rglob("adam-*.json")]
    first, second = records.read(path).get("val_loss")
    assert f"{(first + second) / 2:.4f} ± " in lines[2]
    assert lines[3].startswith("sgd(1e+30)")
    assert lines[3].endswith("2 of 2 seeds diverged")
    assert err == "", "no bar where nobody watches"


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["benchmark", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for option in ("--dataset", "--num-epochs", "--num-train", "--num-val", "--lr-schedule", "--optimizers"):
        assert option in out


def record(**metrics: object) -> Record:
    made = Record("adam", "run", {})
    for key, value in metrics.items():
        made.metric(key, value)
    made.curve("loss", [1, 2], [[0.5, 0.25]], "epoch", "loss")
    return made


def test_merging_comparing_and_reaching_a_target() -> None:
    metrics, curves = benchmark.merge([record(a=[1.0], b=[2]), record(a=[None], b=[3])])
    assert metrics == {"a": [1.0, None], "b": [2, 3]}
    assert curves["loss"]["seeds"] == [[0.5, 0.25], [0.5, 0.25]]
    assert benchmark.log_ratio([1.0, None, 2.0], [1.0, 1.0, None]) == [0.0, None, None]
    curve = {"x": [0.5, 1.0, 1.5], "seeds": [[3.0, 2.0, 1.0], [3.0, 2.5, 2.1], [2.0, None, None]]}
    assert benchmark.steps_to(curve, 2.0, 10) == [10.0, None, 5.0]


def test_a_step_is_timed_per_network() -> None:
    settings = Settings("digits", num_epochs=2, num_train=256, num_val=10)  # 2 × 2 steps
    part = Record("adam", "run", {"seeds": [0, 1], "stacked": True, **dataclasses.asdict(settings)})
    part.provenance["training_seconds"] = 0.4
    assert benchmark.milliseconds(part) == pytest.approx(1000 * 0.4 / (4 * 2))


def test_options_reach_the_runs(tmp_path: Path) -> None:
    options = ["--dataset", "digits", "--num-epochs", "1", "--num-train", "64", "--num-val", "10", "--seeds", "2"]
    options += ["--batch-size", "32", "--lr", "0.02", "--optimizers", "adam", "--out", str(tmp_path)]
    assert main(["benchmark", *options]) == 0
    (path,) = tmp_path.rglob("*.json")
    record = records.read(path)
    wanted = {"batch_size": 32, "num_train": 64, "num_val": 10, "seeds": [2], "num_epochs": 1, "dataset": "digits"}
    assert record.parameters.items() >= wanted.items()
    assert record.parameters["options"]["lr"] == 0.02
