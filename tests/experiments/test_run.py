"""The commands, as their user runs them: real kernels, one-line errors, and nothing half-written."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
import pytest

from experiments import publish, records, run, verdicts
from experiments.__main__ import main

from .conftest import REPOSITORY

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Notebook = Callable[..., Path]
CLAIM = """\
paper: key2015
read: All of it.
claims:
  - id: grows
    claim: It grows.
    where: §1
    kind: exact
    experiment: x
    control: y
    checks: [{metric: loss, above: -1, says: not negative, origin: "theory: x"}]
"""


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "tiny", "-p", "sede", "3"],
            "notebooks/tiny.py has no parameter 'sede' to set; it has seeds, device, lr",
        ),
        (["run", "tiny", "-p", "out", "x"], "notebooks/tiny.py has no parameter 'out' to set"),
        (["run", "nope"], "there is no notebook 'nope'; there are tiny in notebooks/"),
        (["run", "../tiny"], "there is no notebook '../tiny'"),
        (["run", "tiny", "--scale", "foo"], "there is no scale 'foo'; there are quick, standard, paper"),
        (["reproduce", "--scale", "foo"], "there is no scale 'foo'; there are quick, standard, paper"),
        (["reproduce", "--only", "nope"], "there is no notebook 'nope'; there are tiny in notebooks/"),
        (["verdicts", "--scale", "foo"], "there is no scale 'foo'"),
        (["publish"], "there is nothing to publish at scale quick: run `make reproduce SCALE=quick` first"),
        (
            ["publish", "--only", "tiny"],
            "tiny has no record at scale quick: run `make reproduce SCALE=quick ONLY=tiny`",
        ),
        (["publish", "--", "x"], "publish takes nothing after --"),
        (["revalidate", "--scale", "foo"], "there is no scale 'foo'; there are quick, standard, paper"),
        (["revalidate", "--only", "nope"], "there is no notebook 'nope'; there are tiny in notebooks/"),
        (["revalidate", "--only", "tiny"], "no record of tiny is published"),
        (
            ["revalidate", "--only", "speed", "--scale", "quick"],
            "no record of speed is published at scale quick",
        ),
        (["revalidate", "--jobs", "0"], "jobs must be 1 or more, not 0"),
        (
            ["publish", "--only", "speed"],
            "speed is measured at scale standard: make publish SCALE=standard ONLY=speed",
        ),
        (
            ["publish", "--only", "speed_modern", "--scale", "standard"],
            "speed_modern has no record at scale standard: run `python -m benchmarks.step_time --modern`",
        ),
        (["run", "tiny", "-p", "device", "gpu"], "there is no device 'gpu' here: write cpu, or cuda"),
        (["reproduce", "--device", "meta"], "there is no device 'meta' here"),
        (
            ["run", "tiny", "-p", "seeds", "[-1]"],
            "seeds must be a list of whole numbers from 0 on, such as [0, 1, 2]",
        ),
        (["run", "tiny", "-p", "seeds", "[]"], "seeds must be a list of whole numbers from 0 on"),
        (["reproduce", "--only", "tiny", "--only", "nope"], "there is no notebook 'nope'"),
        (["publish", "--only", "tiny,nope"], "there is no notebook 'nope'"),
        (["reproduce", "tiny"], "reproduce has no use for 'tiny'"),
        (["verdicts", "--foo"], "there is no option '--foo'; there are -h, --help, --scale"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    notebook: Notebook, root: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook("tiny")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert files(root / "_build") == set()


def test_a_mistake_on_the_command_line_itself(notebook: Notebook, command: Command) -> None:
    notebook("tiny")
    done = command("reproduce", "--scale", "foo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no scale 'foo'; there are quick, standard, paper\n"


def test_a_damaged_data_set_is_one_line(root: Path, command: Command) -> None:
    (root / "mnist.npz").write_bytes(b"PK half an archive")
    done = command("data", DATA_DIR=str(root))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {root}/mnist.npz is damaged or not a data archive")
    assert done.stderr.count("\n") == 1


def test_parameters_cells_that_cannot_work(notebook: Notebook, root: Path) -> None:
    path = notebook("tiny")
    text = path.read_text()
    for old, new, message in (
        (' tags=["parameters"]', "", "has 0 cells with the tag `parameters`; it needs one"),
        ('out = "tiny.json"\n', "", "its parameters cell lacks out"),
        ("lr = 0.1", "lr = 1 / 10", "parameter 'lr' is not a literal value"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(run.UserError, match=message):
            run.defaults("tiny")


def test_reproduce_publish_and_verdicts(notebook: Notebook, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        return (status, *capfd.readouterr())

    first = notebook("first")
    notebook("second")
    (root / "book/claims/first.yaml").write_text(CLAIM)
    built, published = root / "_build/results/quick", root / "results/quick"

    status, _, err = call("reproduce")
    assert (status, err) == (0, "")
    assert files(built) == {"first.json", "first.ipynb", "second.json", "second.ipynb"}
    assert records.read(built / "first.json").get("loss") == [0.0, 0.1, 0.2]
    executed = run.read_notebook(built / "first.ipynb")
    assert executed.cells[1].outputs[0].text == "scale quick, lr 0.1\n"
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in executed.cells)
    assert not published.exists(), "a run never writes over what is published"

    # Nothing changed, or only a comment: nothing runs.
    first.write_text(first.read_text() + "# a comment\n")
    before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    assert call("reproduce") == (0, "up to date at scale quick: first, second\n", "")
    assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == before

    # Published: the records, and at quick the notebooks.
    status, _, err = call("publish")
    assert (status, err) == (0, "")
    assert files(published) == files(built)
    assert (published / "first.json").read_bytes() == (built / "first.json").read_bytes()
    _, table, _ = call("verdicts")
    assert "reproduced (quick)  reproduced (quick)  agrees" in table
    assert "first: 1 of 1 metrics equal the published ones to the last digit" in table

    # A changed number runs exactly what uses it; nothing stale or edited is published. A failure has one reason.
    first.write_text(first.read_text().replace("lr = 0.1", "lr = 0.25"))
    assert "not of today's code" in call("publish")[2]
    notes = call("verdicts")[1]
    assert "first: the published quick record is of other code than today's" in notes
    assert "first: your quick record is of other code than today's" in notes
    third = notebook("third", "0 / 0\n")
    status, out, err = call("reproduce")
    assert status == 2
    assert out.splitlines()[:2] == ["up to date at scale quick: second", "to run at scale quick: first, third"]
    assert records.read(built / "first.json").get("loss") == [0.0, 0.25, 0.5]
    assert (built / "second.json").stat().st_mtime_ns == before[built / "second.json"]
    assert "error: third failed at scale quick: ZeroDivisionError: division by zero" in err
    assert err.splitlines()[-1] == "error: not finished at scale quick: third (the reason stands above)"
    assert files(built) == {"first.json", "first.ipynb", "second.json", "second.ipynb"}
    assert files(root / "_build/failed") == {"third.ipynb"}
    third.unlink()

    # An edited record is not published, and counts as none: it is made again.
    path = built / "second.json"
    path.write_text(path.read_text().replace("0.2 ]", "0.3 ]"))
    status, _, err = call("publish")
    assert status == 2
    assert "second.json does not match its own digest" in err
    assert records.read(published / "first.json").get("loss") == [0.0, 0.1, 0.2], "all or nothing"
    assert not run.is_current("second", "quick")


def test_a_dry_run_and_a_cluster(notebook: Notebook, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    notebook("tiny")
    # However it is spelled, a dry run finishes nothing, and that is no error.
    assert main(["reproduce", "--", "-np"]) == 0
    assert files(root / "_build/results") == set()
    # A device is looked for where the jobs run: not here, when they go elsewhere.
    assert main(["reproduce", "--device", "cuda:77"]) == 2
    assert "there is no device 'cuda:77' here" in capfd.readouterr().err
    assert main(["reproduce", "--device", "cuda:77", "--", "--executor=nowhere"]) == 2
    error = capfd.readouterr().err
    assert "there is no device" not in error
    assert error.splitlines()[-1] == "error: not finished at scale quick: tiny (the reason stands above)"


def test_a_kernel_that_does_not_start(notebook: Notebook, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*_: object, **__: object) -> None:
        raise RuntimeError("Kernel didn't respond in 300 seconds")

    notebook("tiny")
    monkeypatch.setattr(papermill, "execute_notebook", no_kernel)
    with pytest.raises(run.UserError, match="tiny failed at scale quick: Kernel didn't respond in 300 seconds"):
        run.run("tiny", "quick")
    assert files(root / "_build") == {"tiny.ipynb"}
    assert (root / "_build/failed/quick/tiny.ipynb").exists()


def test_a_record_stays_until_a_new_one_takes_its_place(
    notebook: Notebook, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run that fails, for whatever reason, takes nothing away."""
    path = notebook("tiny")
    assert main(["reproduce"]) == 0
    built = root / "_build/results/quick"
    before = {file: (built / file).read_bytes() for file in files(built)}
    path.write_text(path.read_text() + "\n0 / 0\n")
    assert main(["reproduce", "--only", "tiny", "--", "--dry-run"]) == 0
    assert main(["reproduce"]) == 2
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert {file: (built / file).read_bytes() for file in files(built)} == before


@pytest.mark.parametrize("broken", ["notebooks/tiny.py", "helper.py"])
@pytest.mark.parametrize(
    ("content", "message"), [(b"x = (\n", "was never closed"), (b"x = '\xff'\n", "can't decode byte 0xff")]
)
def test_a_file_that_is_not_python_is_named(
    notebook: Notebook, root: Path, command: Command, broken: str, content: bytes, message: str
) -> None:
    path = notebook("tiny")
    (root / "book/claims/tiny.yaml").write_text(CLAIM)
    (root / "helper.py").write_text("x = 1\n")
    path.write_text(path.read_text().replace("from experiments", "import helper\nfrom experiments"))
    assert command("run", "tiny", PYTHONPATH=f"{REPOSITORY}{os.pathsep}{root}").returncode == 0
    assert command("publish").returncode == 0
    with (root / broken).open("ab") as file:
        file.write(content)
    for arguments in (["verdicts"], ["publish"], ["reproduce"]):
        done = command(*arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert broken in done.stderr
        assert message in done.stderr


def test_a_parameters_cell_that_is_not_python(notebook: Notebook, root: Path, command: Command) -> None:
    path = notebook("tiny")
    path.write_text(path.read_text().replace("lr = 0.1", "lr = ("))
    done = command("run", "tiny")
    assert done.returncode == 2
    assert "notebooks/tiny.py: its parameters cell is not Python" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_notebook_is_not_published(notebook: Notebook, root: Path, command: Command) -> None:
    notebook("tiny")
    assert command("run", "tiny").returncode == 0
    (root / "_build/results/quick/tiny.ipynb").write_text('{"cells": [')
    done = command("publish")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "tiny.ipynb is not a whole notebook" in done.stderr


def test_what_cannot_be_written_is_one_line(notebook: Notebook, root: Path, command: Command) -> None:
    notebook("tiny")
    (root / "_build").write_text("a file where a folder should be")
    done = command("run", "tiny")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert str(root / "_build") in done.stderr


def test_a_reader_that_has_seen_enough(notebook: Notebook, root: Path) -> None:
    (root / "book/claims/tiny.yaml").write_text(CLAIM)
    done = subprocess.run(
        f"{sys.executable} -m experiments verdicts | true",
        shell=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_a_trial_does_not_pass_for_a_result(notebook: Notebook, root: Path, command: Command) -> None:
    notebook("tiny")
    done = command("run", "tiny", "--scale", "standard", "-p", "lr", "1e-3", "-p", "seeds", "[5]")
    assert (done.returncode, done.stderr) == (0, "")
    record = records.read(root / "_build/trials/standard/tiny.json")
    assert record.parameters == {"seeds": [5], "device": "cpu", "lr": 1e-3}
    assert records.local("tiny", "standard") is None


def test_a_notebook_that_writes_no_record(notebook: Notebook, root: Path, command: Command) -> None:
    notebook("tiny", "print('nothing')\n")
    done = command("run", "tiny")
    assert done.returncode == 2
    assert done.stderr == "error: notebooks/tiny.py wrote no record of tiny at scale quick to 'tiny.json'\n"
    assert files(root / "_build") == set()


def test_a_killed_run_leaves_no_final_file_and_no_orphan(notebook: Notebook, root: Path, command: Command) -> None:
    os.mkfifo(root / "pipe")
    notebook(
        "tiny",
        f"""\
        import pathlib, signal
        pathlib.Path(out).write_text("half a record")
        pipe = open({str(root / "pipe")!r}, "w")
        print("here", file=pipe, flush=True)
        signal.pause()
        """,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "run", "tiny"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    with open(root / "pipe") as pipe:  # opens when the notebook does
        assert pipe.readline() == "here\n"
        second = command("run", "tiny")
        assert second.returncode == 2
        assert "is already running" in second.stderr
        os.killpg(process.pid, signal.SIGKILL)
        assert pipe.read() == "", "the end of the pipe: the kernel, which has a session of its own, is gone too"
    process.communicate()
    assert files(root / "_build/results") == set()
    notebook("tiny")
    assert command("run", "tiny").returncode == 0
    assert files(root / "_build") == {"tiny.json", "tiny.ipynb"}, "what the killed run left is gone"


def put(path: Path, scale: str = "quick", loss: float = 1.0, slug: str = "tiny") -> Path:
    record = records.new(slug, scale, {"device": "cpu"})
    record.metric("loss", loss)
    return records.write(record, path)


def test_the_table_says_where_verdicts_differ(notebook: Notebook, root: Path) -> None:
    notebook("tiny")
    (root / "book/claims/tiny.yaml").write_text(CLAIM)

    def row() -> list[str]:
        return verdicts.table().splitlines()[2].split("  ")[2:]

    assert [cell.strip() for cell in row() if cell.strip()] == ["no result yet", "no result yet", "—"]
    put(records.published_path("tiny", "quick"))
    put(records.local_path("tiny", "quick"), loss=-2.0)
    assert [cell.strip() for cell in row() if cell.strip()] == ["reproduced (quick)", "refuted (quick)", "differs"]
    assert "tiny: 0 of 1 metrics equal" in verdicts.table()
    put(records.local_path("tiny", "quick"), loss=2.0)
    assert row()[-1] == "agrees"
    put(records.local_path("tiny", "standard"), "standard")  # yours, of a scale that is not published
    cells = [cell.strip() for cell in row() if cell.strip()]
    assert cells == ["reproduced (quick)", "reproduced (standard)", "agrees"]


def test_a_record_of_another_device_is_not_current(notebook: Notebook, root: Path) -> None:
    notebook("tiny")
    run.run("tiny", "quick")
    assert run.is_current("tiny", "quick")
    assert run.is_current("tiny", "quick", "cpu")
    assert not run.is_current("tiny", "quick", "cuda")


def executed(record: Path, **changes: object) -> None:
    """A notebook beside a record, with one cell."""
    cell = nbformat.v4.new_code_cell(**{"source": "print(1)", "execution_count": 1, **changes})
    run.write_notebook(nbformat.v4.new_notebook(cells=[cell]), record.with_suffix(".ipynb"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: put(path, scale="standard"), "is the record of tiny at scale standard: run `make"),
        (lambda path: put(path, slug="other"), "is the record of other at scale quick: run `make"),
        (lambda path: path.with_suffix(".ipynb").unlink(), r"tiny\.ipynb is missing"),
        (lambda path: path.write_bytes(b"\xff"), r"tiny\.json is not a whole record"),
        (lambda path: executed(path, execution_count=None), "is not executed to its end"),
        (lambda path: executed(path, source=str(records.ROOT)), "shows a path of this machine"),
        (
            lambda path: (records.ROOT / "book/claims/tiny.yaml").write_text(CLAIM.replace("loss", "lots")),
            "has no metric 'lots'",
        ),
    ],
    ids=["scale", "slug", "notebook", "damaged", "unexecuted", "path", "metric"],
)
def test_what_is_not_fit_to_print_is_not_published(
    notebook: Notebook, root: Path, spoil: Callable[[Path], object], message: str
) -> None:
    notebook("tiny")
    path = put(records.local_path("tiny", "quick"))
    executed(path)
    spoil(path)
    with pytest.raises(run.UserError, match=message):
        publish.publish("quick", ["tiny"])
    assert files(root / "results") == set()


def test_what_is_fit_to_print_is_published_as_it_is(notebook: Notebook, root: Path) -> None:
    notebook("tiny")
    path = put(records.local_path("tiny", "quick"))
    executed(path)
    assert publish.publish("quick", ["tiny"]) == ["tiny"]
    assert (root / "results/quick/tiny.json").read_bytes() == path.read_bytes()
