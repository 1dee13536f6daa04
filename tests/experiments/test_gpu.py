"""The command for a GPU, dry on the CPU: it needs little, stops in time, loses nothing and resumes."""

import json
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import benchmark, chapters, data, gpu, mixes, packing, records, runs, script, smoke
from experiments.__main__ import main
from experiments.errors import UserError
from experiments.runs import Settings

from .conftest import REPOSITORY

Notebook = Callable[..., Path]
# What a machine with a GPU may lack: everything but torch, torchvision and NumPy.
MISSING = (
    *("IPython", "ipykernel", "jupytext", "matplotlib", "nbclient", "nbformat", "papermill", "scipy", "sklearn"),
    *("snakemake", "tqdm", "traitlets", "yaml"),
)
REFUSE = f"""
import importlib.machinery, importlib.metadata, sys

class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {MISSING} else super().find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
version = importlib.metadata.version

def installed(name):
    if name == "scikit-learn":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

importlib.metadata.version = installed
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that has next to nothing, but the digits in its DATA_DIR."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(REFUSE)
    ds = data.load("digits")
    arrays = {f"x_{split}": x.squeeze(1).numpy() for split, x in (("train", ds.x_train), ("test", ds.x_test))}
    arrays |= {f"y_{split}": y.numpy() for split, y in (("train", ds.y_train), ("test", ds.y_test))}
    data.write_archive(tmp_path / "data" / "digits.npz", arrays)
    return {"PYTHONPATH": f"{tmp_path / 'site'}:{REPOSITORY}", "DATA_DIR": str(tmp_path / "data")}


def outputs(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_needs_torch_and_numpy_alone_and_resumes(
    notebook: Notebook, command: Callable[..., Any], bare: dict[str, str], tmp_path: Path
) -> None:
    notebook("tiny")
    notebook("broken", "raise RuntimeError('a reason\\nin two lines')")
    out = tmp_path / "out"
    arguments = ("gpu", "--minutes", "9", "--dry-run", "--out", str(out))
    done = command(*arguments, **bare)
    lines = done.stdout.splitlines()
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: 1 failed: broken\n", "the one that fails does not stop the rest"
    assert sum(" s left  cifar10: " in line and ", done: accuracy" in line for line in lines) == 18
    assert sum(" s left  mnist: " in line and ", done: accuracy" in line for line in lines) == 18
    assert any(line.endswith("chapters: broken, failed: in two lines") for line in lines), done.stdout
    assert (out / "summary.txt").read_text() in done.stdout

    checks = json.loads((out / "smoke.json").read_text())["checks"]
    assert [check["name"] for check in checks] == smoke.names()
    assert all(check["ok"] for check in checks)
    rows = json.loads((out / "kernels.json").read_text())["rows"]
    assert rows[0]["gb_per_s"] > 0
    assert {"ours", "torch fused", "torch foreach"} <= {row.get("kind") for row in rows}
    found = sorted((out / "results/quick/benchmark/digits").glob("*.json"))
    assert len(found) == 36
    record = records.read(found[0])
    assert record.provenance["packages"]["scikit-learn"] is None
    how = {"flat": True, "graphs": False, "failure": None}
    assert record.provenance["packed"] == {"side_by_side": record.provenance["packed"]["side_by_side"], **how}
    assert records.read(out / "results/quick/tiny.json").get("loss") == [0.0, 0.1, 0.2]
    with tarfile.open(out / "gpu.tar") as archive:
        packed = {member.name for member in archive if member.isfile()}
    assert packed == outputs(out) - {"gpu.tar"}
    assert "ValueError" not in (out / "failed/broken.log").read_text()

    before = {path: path.stat().st_mtime_ns for path in found}
    again = command(*arguments, **bare)
    assert [line.split("left  ")[1] for line in again.stdout.splitlines() if "left  " in line] == [
        f"smoke: {len(checks)} of {len(checks)} checks passed, done",
        "kernels: the compiled step, up to date",
        "cifar10: 18 runs, up to date",
        "mnist: 18 runs, up to date",
        "chapters: tiny, up to date",
        "chapters: broken, failed: in two lines",
    ]
    assert {path: path.stat().st_mtime_ns for path in found} == before


def test_with_no_time_nothing_is_written_but_what_was_not_done(
    notebook: Notebook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook("tiny")
    assert (
        main(
            ["gpu", "--minutes", "0.0001", "--dry-run", "--out", str(tmp_path / "out"), "--only", "mnist,chapters"]
        )
        == 0
    )
    assert outputs(tmp_path / "out") == {"summary.txt", "gpu.tar"}
    found = capsys.readouterr().out
    assert "mnist: 18 runs, out of time" in found
    assert "chapters: tiny, out of time" in found


def test_a_chapter_that_runs_out_of_time_is_ended_with_all_that_it_started(
    notebook: Notebook, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"""
    import pathlib, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
    time.sleep(600)
    """
    notebook("slow", body)
    session = gpu.Session(tmp_path / "out", "cpu", "quick", time.monotonic() + 60, dry=True, capture=False)
    session.out.mkdir()
    # The time is over as soon as the notebook has started what it starts.
    monkeypatch.setattr(
        gpu.Session, "left", property(lambda self: 0.0 if (tmp_path / "pid").exists() else 9.0), raising=True
    )
    chapters.all_of(session, ["slow"])
    assert session.results == [("chapters", "out of time", "slow")]
    assert outputs(session.out) == {"failed/slow.log"}
    deadline = time.monotonic() + 20
    pid = (tmp_path / "pid").read_text()
    while state(pid) not in ("gone", "Z") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state(pid) in ("gone", "Z")


def state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


def test_a_chapter_longer_than_what_is_left_is_not_started(notebook: Notebook, tmp_path: Path) -> None:
    for slug in ("adam", "hogwild", "new"):
        notebook(slug, "raise SystemExit(1)")
    session = gpu.Session(tmp_path / "out", "cpu", "paper", time.monotonic() + 60, dry=False, capture=False)
    session.out.mkdir()
    chapters.all_of(session, ["adam", "hogwild", "new"])
    assert session.results == [
        ("chapters", "skipped", "hogwild"),
        ("chapters", "out of time", "new"),
        ("chapters", "out of time", "adam"),
    ]


SMALL = Settings("digits", "cnn", num_epochs=2, num_train=72, num_val=40, batch_size=32)


def test_jobs_left_in_the_middle_leave_nothing_half_written(tmp_path: Path) -> None:
    todo = benchmark.jobs(mixes.parse("sgd, adam, nadam"), SMALL, [0])
    rounds = packing.run(todo, tmp_path, width=2, capture=False)
    assert next(rounds) is None, "both have made steps, neither has ended"
    rounds.close()
    assert outputs(tmp_path) == set()
    ended = [each for each in packing.run(todo, tmp_path, width=2, capture=False) if each]
    assert all(job.done(tmp_path) == record for job, record in ended)
    assert {job.name for job, _ in ended} == {job.name for job in todo}
    (clipped,) = benchmark.jobs(mixes.parse("sgd(0.1)+clip_norm(1.0)"), SMALL, [0])
    ((_, record),) = filter(None, packing.run([clipped], tmp_path, width=1, capture=False))
    assert not record.provenance["packed"]["flat"], "its rule looks at more than a coordinate"


def test_no_job_begins_without_time_for_it(tmp_path: Path) -> None:
    todo = benchmark.jobs(mixes.parse("sgd, adam, nadam"), SMALL, [0])
    asked: list[int] = []

    def room(running: int) -> bool:
        asked.append(running)
        return len(asked) <= 2

    ended = [each for each in packing.run(todo, tmp_path, width=2, room=room, capture=False) if each]
    assert [job.mix.text for job, _ in ended] == ["sgd", "adam"]
    assert asked[:3] == [0, 1, 0]


def test_a_job_that_fails_is_one_line_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = runs.network

    def fails(settings: Settings, ds: data.Dataset, seed: int) -> Any:
        if seed == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return network(settings, ds, seed)

    monkeypatch.setattr(runs, "network", fails)
    session = gpu.Session(tmp_path, "cpu", "quick", time.monotonic() + 600, dry=True, capture=False)
    jobs = [job for seed in (0, 1, 2) for job in benchmark.jobs(mixes.parse("adam"), SMALL, [seed])]
    gpu._train(session, "cifar10", jobs, tmp_path / "runs")
    assert sorted(session.results) == [
        ("cifar10", "done", "adam, seed 0"),
        ("cifar10", "done", "adam, seed 2"),
        ("cifar10", "failed", "adam, seed 1"),
    ]
    assert gpu._reason(torch.OutOfMemoryError("a\nb")) == "OutOfMemoryError: a b"


def test_without_the_data_the_stage_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(name: str) -> data.Dataset:
        raise data.DataError(f"{name} is not there")

    monkeypatch.setattr(data, "load", nothing)
    runs._part.cache_clear()
    arguments = ["gpu", "--minutes", "1", "--dry-run", "--out", str(tmp_path / "out"), "--only", "mnist"]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "mnist: all that was left, failed: digits is not there" in captured.out
    assert captured.err == "error: 1 failed: all that was left\n"


def test_the_runs_are_those_of_the_notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At scale paper the notebook `benchmark` asks for exactly these first, and so finds them done."""
    asked: list[benchmark.Job] = []

    class Enough(Exception):
        pass

    def run_all(todo: list[benchmark.Job], folder: Path, processes: int) -> Any:
        asked.extend(todo)
        if todo[0].settings.dataset == "mnist":
            raise Enough
        part = benchmark.Record("", "run", {}, {"train_loss": [1.0], "val_accuracy": [1.0]})
        part.curves = {"train_loss": {"x": [1], "seeds": [[1.0]], "xlabel": "", "ylabel": ""}}
        return [part] * len(todo)

    monkeypatch.setattr(benchmark, "run_all", run_all)
    monkeypatch.setattr(benchmark, "milliseconds", lambda part: 1.0)
    monkeypatch.setattr(data, "load", lambda name: data.Dataset(name, *[torch.zeros(0)] * 4, "", 10))
    monkeypatch.setattr(runs, "fastest_precision", lambda device: "bfloat16")
    with pytest.raises(Enough):
        script.run(REPOSITORY / "notebooks" / "benchmark.py", {"scale": "paper", "out": str(tmp_path / "x.json")})
    session = gpu.Session(tmp_path, "cpu", "paper", 0, dry=False, capture=True)
    chosen = mixes.parse(", ".join(benchmark.LABELS))
    ours = [benchmark.jobs(chosen, gpu._settings(session, name), gpu.SEEDS) for name in ("cifar10", "mnist")]
    assert [job.parameters for job in asked] == [job.parameters for jobs in ours for job in jobs]
    assert len(asked) == 2 * 18 * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes must be a number above 0, not 0.0"),
        (["--minutes", "nan"], "--minutes must be a number above 0, not nan"),
        (
            ["--only", "adam,cifar"],
            "there is nothing called 'adam' to run; there are smoke, kernels, cifar10, mnist, chapters",
        ),
        (["--device", "gpu"], "there is no device 'gpu' here"),
    ],
)
def test_mistakes_are_one_line(
    root: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gpu", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert outputs(root) == set()


def test_a_check_that_kills_its_process_is_one_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mortal.py").write_text(
        textwrap.dedent("""
        import os

        def check(name, device):
            if name == "dies":
                os._exit(1)
            return {"ok": True, "process": os.getpid()}, name != "spoils"
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import mortal  # type: ignore[import-not-found]

    monkeypatch.setattr(smoke, "_check", mortal.check)
    found = list(smoke.run("cpu", ["one", "two", "dies", "three", "spoils", "four"]))
    assert [check["name"] for check in found] == ["one", "two", "dies", "three", "spoils", "four"]
    assert [check["ok"] for check in found] == [True, True, False, True, True, True]
    assert found[2]["error"] == "its process died"
    one, two, three, spoils, four = (check["process"] for check in found if check["ok"])
    assert one == two, "a process makes many checks"
    assert three == spoils != four, "but none after its device was spoilt"


def test_a_check_that_fails_keeps_its_traceback() -> None:
    result, usable = smoke._check("graph: no such optimizer", "cpu")
    assert usable
    assert not result["ok"]
    assert result["error"] == "KeyError: 'graph: no such optimizer'"
    assert "Traceback" in result["traceback"]


def test_a_wrong_result_is_a_failure() -> None:
    right = torch.ones(3)
    smoke._close(right + 1e-5, right, 1e-4)
    for wrong in (right + 1e-3, right * float("nan")):
        with pytest.raises(AssertionError, match=r"^off by .* of it, not at most 1e-04$"):
            smoke._close(wrong, right, 1e-4)


def test_digits_without_scikit_learn_say_what_to_do(bare: dict[str, str], tmp_path: Path) -> None:
    code = "from experiments import data; print(data.load('digits').digest)"
    found = {}
    for folder in ("data", "nothing"):
        found[folder] = subprocess.run(
            [sys.executable, "-c", code],
            env={**bare, "DATA_DIR": str(tmp_path / folder)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert found["data"].stdout.strip() == data.DIGESTS["digits"]
    assert "DataError: digits come with scikit-learn, which is not installed" in found["nothing"].stderr


def test_an_archive_of_other_digits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    arrays = data._digits()
    arrays["x_train"][0, 0, 0] += 1
    data.write_archive(tmp_path / "digits.npz", arrays)
    with pytest.raises(UserError, match=r"digits\.npz is not the digits that this book measures on .*: delete"):
        data.load("digits")


def test_on_a_gpu_single_networks_are_packed_with_their_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`benchmark.run_all` packs them by device, model and precision, and runs the stacked ones as ever."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    common: dict[str, Any] = {"num_epochs": 1, "num_train": 64, "num_val": 40, "device": "cuda"}
    cnn, mlp = Settings("digits", "cnn", **common), Settings("digits", "mlp", **common)
    low = Settings("digits", "cnn", precision="bfloat16", **common)
    (mix,) = mixes.parse("adam")
    todo = [job for settings in (cnn, low, mlp, cnn) for job in benchmark.jobs([mix], settings, [0, 1])]
    packs: list[list[benchmark.Job]] = []
    others: list[benchmark.Job] = []

    def run(jobs: list[benchmark.Job], folder: Path) -> Any:
        packs.append(jobs)
        for job in jobs:
            yield None
            yield job, records.Record(job.name, "run", {})

    def alone(job: benchmark.Job, folder: Path, bar: Any) -> records.Record:
        others.append(job)
        return records.Record(job.name, "run", {})

    monkeypatch.setattr(packing, "run", run)
    monkeypatch.setattr(benchmark, "_run", alone)
    found = benchmark.run_all(todo, tmp_path)
    assert [record.slug for record in found] == [job.name for job in todo]
    assert [[job.settings for job in jobs] for jobs in packs] == [[cnn, cnn], [low, low]]
    assert [job.seeds for job in others] == [(0, 1)], "the stack of perceptrons"

    def failing(jobs: list[benchmark.Job], folder: Path) -> Any:
        yield jobs[0], ValueError("no reason")

    monkeypatch.setattr(packing, "run", failing)
    with pytest.raises(ValueError, match="no reason"):
        benchmark.run_all(todo, tmp_path)
