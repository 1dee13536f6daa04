"""Where the jobs run elsewhere: what Snakemake is told, why a job failed, and that nothing takes a record away.

The tests on a real cluster need Slurm's daemons, munge, and Snakemake's plugin: `pip install -e '.[cluster]'`.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from experiments import cluster, records, reproduce, run
from experiments.errors import UserError

from . import slurm
from .conftest import BODY, REPOSITORY

Notebook = Callable[..., Path]
Controller = Callable[..., str]
Old = Callable[..., dict[str, bytes]]
Start = Callable[..., "subprocess.Popen[bytes]"]
Tools = Callable[..., None]
Command = Callable[..., "subprocess.CompletedProcess[str]"]
NEW = BODY.replace("[lr *", "[1 + lr *")
SAID = """\
[Sat Nov 28 02:40:38 2026]
Error in rule experiment:
    message: SLURM-job '4' failed, SLURM status is: 'FAILED'. Detailed failure reason unavailable (status command \
is not 'sacct').For further error details see the cluster/cloud log and the log files of the involved rule(s).
    jobid: 0
    output: work/done/quick/bad
    log: {log} (check log file(s) for error details)
    shell:
        python -m experiments run bad --scale quick
        (command exited with non-zero exit code)
    external_jobid: 4
[Sat Nov 28 02:41:09 2026]
Error in rule experiment:
    message: SLURM sbatch failed. The error message was 'sbatch: error: invalid partition specified: nope
sbatch: error: Batch job submission failed: Invalid partition name specified'.
    sbatch call:
        sbatch --parsable --job-name 86ed68bd
For further error details see the cluster/cloud log and the log files of the involved rule(s).
    jobid: 1
    output: work/done/quick/good
    shell:
        python -m experiments run good --scale quick
WorkflowError:
At least one job did not complete successfully.
"""


def test_the_executor_is_found_however_it_is_written() -> None:
    assert [
        cluster.executor(words) for words in (["--executor", "slurm"], ["-n", "--executor=slurm"], ["-e", "x"])
    ] == [*("slurm", "slurm", "x")]
    assert [cluster.executor(words) for words in ([], ["-n"], ["--jobs", "4"])] == [None] * 3
    assert cluster.options([]) == []


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """Commands of a Slurm that only answer: each a line of shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)

    def write(**lines: str) -> None:
        for name, line in {"sbatch": "true", **lines}.items():
            (folder / name).write_text(f"#!/bin/sh\n{line}\n")
            (folder / name).chmod(0o755)

    return write


OFF = "echo Slurm accounting storage is disabled >&2; exit 1"


@pytest.mark.parametrize(
    ("sacct", "age", "chosen"),
    [
        ("true", 2, "sacct"),
        ("true", 300, "sacct"),
        (OFF, 300, "squeue"),
        (OFF, 181, "squeue"),
        ("exit 127", 300, "squeue"),
    ],
)
def test_the_command_that_knows_what_became_of_a_job(
    tools: Tools, sacct: str, age: int, chosen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tools(sacct=sacct, scontrol=f"echo 'KillWait = 30 sec'; echo 'MinJobAge               = {age} sec'")
    assert cluster.options(["--executor", "slurm"])[-2:] == ["--slurm-status-command", chosen]
    assert ("accounting storage is disabled" in capsys.readouterr().out) == (sacct == OFF)


def test_a_cluster_that_never_tells_is_refused(tools: Tools) -> None:
    tools(sacct=OFF, scontrol="echo 'MinJobAge = 60 sec'")
    with pytest.raises(
        UserError, match=r"no accounts here \(Slurm accounting storage is disabled\) and forgets .* 60 s"
    ):
        cluster.options(["--executor", "slurm"])
    # Who decides it himself is not asked.
    assert "sacct" not in cluster.options(["--executor", "slurm", "--slurm-status-command=sacct"])


def test_no_slurm_and_no_plugin_are_one_line(
    notebook: Notebook, tmp_path: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook("tiny")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="there is no Slurm here"):
        reproduce.reproduce("quick", snakemake=["--executor", "slurm"])
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"plugin for Slurm is not installed: pip install -e '\.\[cluster\]'"):
        reproduce.reproduce("quick", snakemake=["--executor", "slurm"])


def test_the_reason_is_the_jobs_own(tmp_path: Path) -> None:
    log = tmp_path / "4.log"
    log.write_text(
        "Execute 1 jobs...\nerror: bad failed at scale quick: ZeroDivisionError\nError in rule experiment:\n"
    )
    partition = (
        "SLURM sbatch failed. The error message was 'sbatch: error: invalid partition specified: nope "
        "sbatch: error: Batch job submission failed: Invalid partition name specified'."
    )
    assert cluster.reasons(SAID.format(log=log)) == {
        "bad": f"bad failed at scale quick: ZeroDivisionError (log: {log})",
        "good": partition,
    }
    log.unlink()  # a job that ended before it began
    assert cluster.reasons(SAID.format(log=log))["bad"].startswith(
        "SLURM-job '4' failed, SLURM status is: 'FAILED'."
    )
    assert cluster.reasons("") == {}


def test_a_job_asks_for_a_gpu_where_the_device_is_one(
    notebook: Notebook, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    notebook("tiny")
    for device, asked in (("cuda:1", "gpu=1"), (None, "gpu=0")):
        subprocess.run(reproduce._command(["tiny"], "quick", device, ["-n"]), check=True)
        assert f"{asked}, mpi=" in "".join(capfd.readouterr()), "and for no srun"


def pipe(root: Path, name: str) -> str:
    os.mkfifo(root / name)
    return str(root / name)


def blocking(root: Path) -> str:
    """A notebook that says `here`, waits for the pipe `go`, and writes its record then."""
    here, go = pipe(root, "here"), pipe(root, "go")
    return f"with open({here!r}, 'w') as here:\n    here.write('here')\nopen({go!r}).read()\n{NEW}"


def kill_main(process: "subprocess.Popen[bytes]") -> None:
    """The end of the command and of Snakemake, but not of the jobs: a login node that crashes."""
    main = psutil.Process(process.pid)
    family = [main, *(child for child in main.children() if "snakemake" in child.cmdline())]
    for one in family:
        one.kill()
    process.wait()
    assert not psutil.wait_procs(family, timeout=60)[1]


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    """`python -m experiments reproduce …`, beside the test. It writes to files: its jobs may outlive it."""
    processes = []

    def run(*arguments: str) -> "subprocess.Popen[bytes]":
        with (root / "out").open("w") as out, (root / "err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "experiments", "reproduce", *arguments],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:  # the test failed before it ended
            kill_main(process)


@pytest.fixture
def old(notebook: Notebook, root: Path) -> Callable[..., dict[str, bytes]]:
    """Records of earlier code: `old("a", "b")`; gives what there is of them, by slug."""

    def write(*slugs: str) -> dict[str, bytes]:
        for slug in slugs:
            notebook(slug)
            if not records.local_path(slug, "quick").exists():
                record = records.new(slug, "quick", {"device": "cpu"})
                record.metric("loss", 0.0)
                records.write(record, records.local_path(slug, "quick"))
        return there(*slugs)

    return write


def there(*slugs: str) -> dict[str, bytes]:
    return {slug: records.local_path(slug, "quick").read_bytes() for slug in slugs}


def test_a_dead_main_and_its_jobs_that_live_on(
    notebook: Notebook, root: Path, command: Command, old: Old, start: Start
) -> None:
    before = old("tiny")
    notebook("tiny", blocking(root))
    alone = ("--", "--executor", "local", "--cores", "1")  # each job a process of its own, as on other machines
    first = start(*alone)
    assert (root / "here").read_text() == "here"
    jobs = [job for job in psutil.Process(first.pid).children(recursive=True) if "run" in job.cmdline()]
    kill_main(first)
    assert there("tiny") == before
    second = command("reproduce", *alone)
    assert second.returncode == 2
    assert "results-quick-tiny is already running" in second.stderr
    assert there("tiny") == before
    (root / "go").write_text("")
    assert not psutil.wait_procs(jobs, timeout=60)[1]
    assert records.read(records.local_path("tiny", "quick")).get("loss") == [1.0, 1.1, 1.2]
    assert command("reproduce").stdout == "up to date at scale quick: tiny\n"


needs_slurm = pytest.mark.skipif(
    bool(slurm.missing()) or importlib.util.find_spec(cluster.PLUGIN) is None,
    reason="needs Slurm's daemons, munge and the plugin",
)
ON_SLURM = (
    *("--", "--executor", "slurm", "--jobs", "8", "--default-resources", "runtime=5", "mem_mb=500"),
    *("--slurm-init-seconds-before-status-checks", "1"),
)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with slurm.running(tmp_path_factory.mktemp("slurm")) as path:
        yield path


@pytest.fixture
def controller(configuration: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A cluster, to which SLURM_CONF leads; the fixture asks it: `controller("squeue", …)`."""
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    return lambda *words: subprocess.run(words, check=True, capture_output=True, text=True).stdout


@needs_slurm
def test_a_job_that_ends_well_but_never_ran(
    notebook: Notebook,
    root: Path,
    tools: Tools,
    old: Old,
    command: Command,
) -> None:
    """As one that is requeued can: Slurm says COMPLETED, and the mark of an earlier run is still there."""
    before = old("tiny")
    notebook("tiny", NEW)
    mark = root / "_build/work/done/quick/tiny"
    mark.parent.mkdir(parents=True)
    mark.touch()
    tools(sacct=OFF, scontrol="echo MinJobAge = 300", sbatch="echo 7", squeue="echo '7|COMPLETED'")
    done = command("reproduce", *ON_SLURM, "--latency-wait", "1")
    assert done.returncode == 2
    assert "Missing" in done.stderr
    assert there("tiny") == before


@needs_slurm
def test_whatever_becomes_of_a_job(
    notebook: Notebook, root: Path, controller: Controller, old: Old, start: Start
) -> None:
    slugs = ("good", "bad", "cancelled", "late", "moved")
    before = old(*slugs)
    heard = {slug: pipe(root, slug) for slug in ("cancelled", "late", "moved")}
    wait = {
        slug: f"print('here', file=open({path!r}, 'w'), flush=True)\nsignal.pause()\n"
        for slug, path in heard.items()
    }
    notebook("good", f"import os\nassert os.environ['CUDA_VISIBLE_DEVICES'] == '0'\n{NEW}")
    notebook("bad", "0 / 0\n")
    for slug in ("cancelled", "late"):
        notebook(slug, f"import signal\n{wait[slug]}")
    again = wait["moved"].replace("\n", "\n    ")
    flag = str(root / "flag")
    notebook(
        "moved", f"import os, signal\nif not os.path.exists({flag!r}):\n    open({flag!r}, 'w')\n    {again}\n{NEW}"
    )

    def job(slug: str) -> tuple[str, str]:
        lines = [line.split() for line in controller("squeue", "-h", "-o", "%k %i %N").splitlines()]
        [(number, node)] = [rest for comment, *rest in lines if comment.endswith(f"quick_{slug}")]
        return number, node

    main = start(*ON_SLURM, "--set-resources", "experiment:gpu=1")
    for slug in heard:
        with open(heard[slug]) as source:
            assert source.readline() == "here\n"
        number, node = job(slug)
        if slug == "cancelled":
            controller("scancel", number)
        elif slug == "late":
            controller("scontrol", "update", f"JobId={number}", "TimeLimit=1")
        else:  # its node fails, and Slurm gives it another
            controller("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
            slurm.wait_until(lambda: "moved PENDING" in controller("squeue", "-h", "-o", "%k %T"))
            # At once, which works on another node only: this one refuses the job for two minutes.
            controller("scontrol", "update", f"JobId={number}", f"ExcNodeList={node}", "StartTime=now")
    assert main.wait() == 2
    assert "asking squeue what becomes of the jobs" in (root / "out").read_text()
    lines = (root / "err").read_text().splitlines()
    reasons = dict(line.split(": ", 1) for line in lines if line.partition(":")[0] in slugs)
    assert reasons.keys() == {"bad", "cancelled", "late"}
    assert "ZeroDivisionError: division by zero" in reasons["bad"]
    assert "CANCELLED" in reasons["cancelled"]
    assert "DUE TO TIME LIMIT" in reasons["late"]
    assert lines[-1].startswith("error: not finished at scale quick: bad, cancelled, late")
    for slug in ("good", "moved"):
        assert records.read(records.local_path(slug, "quick")).get("loss") == [1.0, 1.1, 1.2]
    kept = ("bad", "cancelled", "late")
    assert there(*kept) == {slug: before[slug] for slug in kept}


@needs_slurm
def test_a_success_exits_0_and_a_refusal_says_why(
    notebook: Notebook,
    root: Path,
    controller: Controller,
    command: Command,
    old: Old,
) -> None:
    before = old("tiny")
    notebook("tiny", NEW)
    refused = command("reproduce", *ON_SLURM, "--set-resources", "experiment:slurm_partition=nope")
    assert refused.returncode == 2
    assert "invalid partition specified: nope" in refused.stderr.splitlines()[-2]
    assert there("tiny") == before
    assert command("reproduce", *ON_SLURM).returncode == 0
    assert run.is_current("tiny", "quick")


@needs_slurm
def test_a_main_that_dies_on_the_login_node(
    notebook: Notebook, root: Path, controller: Controller, command: Command, old: Old, start: Start
) -> None:
    before = old("tiny")
    notebook("tiny", blocking(root))
    first = start(*ON_SLURM)
    assert (root / "here").read_text() == "here"
    kill_main(first)
    second = command("reproduce", *ON_SLURM)
    assert second.returncode == 2
    assert "tiny: results-quick-tiny is already running" in second.stderr
    assert there("tiny") == before
    (root / "go").write_text("")
    slurm.wait_until(lambda: not controller("squeue", "-h"))
    assert run.is_current("tiny", "quick")
    assert records.read(records.local_path("tiny", "quick")).get("loss") == [1.0, 1.1, 1.2]


@needs_slurm
def test_ctrl_c_takes_the_jobs_along(
    notebook: Notebook, root: Path, controller: Controller, old: Old, start: Start
) -> None:
    before = old("tiny")
    notebook("tiny", blocking(root))
    main = start(*ON_SLURM)
    assert (root / "here").read_text() == "here"
    os.killpg(main.pid, signal.SIGINT)
    assert main.wait() == 130
    slurm.wait_until(lambda: not controller("squeue", "-h"))
    assert there("tiny") == before
