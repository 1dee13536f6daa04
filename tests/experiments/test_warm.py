"""Forked processes: their own environment, outputs and end, and nothing of each other's."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import kernels, records, run, warm

from .conftest import BODY, REPOSITORY
from .test_run import Notebook, files


@pytest.fixture(scope="module")
def variables() -> Iterator[dict[str, str]]:
    """By which a server is found, which the tests of this module share: its imports take seconds."""
    with warm.server({**os.environ, "PYTHONPATH": str(REPOSITORY)}) as variables:
        assert list(variables) == [warm.SERVER]
        yield variables


@pytest.fixture
def served(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm.SERVER, variables[warm.SERVER])


def python(text: str, **options: object) -> warm.Process:
    return warm.Process("builtins:exec", text, **options)  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    """Wait for the end of a process that is none of our children."""
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.usefixtures("served")
def test_a_forked_process_is_as_if_it_had_been_started(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = "import os, sys; print(os.getcwd(), os.environ.get('A'), 'PATH' in os.environ); "
    process = python(said + "print('wrong', file=sys.stderr); sys.exit(3)", env={"A": "ä"}, cwd=tmp_path)
    assert process.wait() == process.poll() == 3
    assert capfd.readouterr() == (f"{tmp_path} ä False\n", "wrong\n")
    assert python("raise KeyError('lost')").wait() == 1
    assert capfd.readouterr().err.endswith("KeyError: 'lost'\n")
    assert python("import os; os.kill(os.getpid(), 11)").wait() == -signal.SIGSEGV
    assert python("import sys; assert 'torch' in sys.modules; assert 'experiments.run' in sys.modules").wait() == 0


@pytest.mark.usefixtures("served")
def test_no_forked_process_sees_what_another_did(capfd: pytest.CaptureFixture[str]) -> None:
    fresh = """
import os, random, numpy, torch
assert torch.get_default_dtype() == torch.float32
print(torch.initial_seed(), numpy.random.random())
assert torch.get_num_threads() == 1, 'the server has no others to give'
assert "here" not in os.environ
assert len(os.listdir("/proc/self/task")) == 1
"""
    spoil = """
torch.set_default_dtype(torch.float64)
torch.manual_seed(1)
torch.set_num_threads(7)
os.environ["here"] = "1"
"""
    for _ in range(2):
        assert python(fresh + spoil).wait() == 0
    assert len(set(capfd.readouterr().out.split())) == 4, "what was not seeded differs, as in a process of its own"


@pytest.mark.usefixtures("served")
def test_signals_reach_a_process_and_what_it_started(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    text = f"""
import signal, subprocess
pipe = open({str(fifo)!r}, "w")
subprocess.Popen(["sleep", "1000"], pass_fds=[pipe.fileno()])  # its child holds the pipe open, too
print("ready", file=pipe, flush=True)
signal.pause()
"""
    for end in (
        lambda process: process.send_signal(signal.SIGINT),
        lambda process: process.terminate(),
        lambda process: process.kill(),
        lambda process: process._server.close(),  # as when the process that asked for it dies
    ):
        process = python(text)
        with fifo.open() as pipe:
            assert pipe.readline() == "ready\n"
            assert process.poll() is None
            end(process)
            assert pipe.read() == "", "both are gone"
    process = python("signal = __import__('signal'); signal.pause()")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    process.kill()  # too late, and no harm


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_all_end_with_the_process_that_started_the_server(tmp_path: Path, signum: signal.Signals) -> None:
    text = """
import os, sys
from experiments import warm
with warm.server(os.environ, preload=()) as variables:
    os.environ |= variables
    process = warm.Process("builtins:exec", "__import__('signal').pause()")
    print(process.pid, flush=True)
    process.wait()
"""
    starter = subprocess.Popen(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    with starter.stdout:
        pid = int(starter.stdout.readline())
    starter.send_signal(signum)
    assert starter.wait() == -signum
    assert gone(pid)


def test_without_a_server_everything_runs_the_slow_way(
    notebook: Notebook, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = root / ("x" * 100)  # no path for a socket
    long.mkdir()
    monkeypatch.setattr(warm, "temporary", lambda: str(long))
    with warm.server(os.environ) as variables:
        assert variables == {}
    notebook("tiny")
    # None any more: a job whose starter is gone, or on another machine.
    for there in ({}, {warm.SERVER: str(root / "socket")}):
        done = subprocess.run(
            [sys.executable, "-m", "experiments.warm", "run", "tiny"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **there},
            check=False,
        )
        assert done.returncode == 0
        assert records.local("tiny", "quick") is not None
        records.local_path("tiny", "quick").unlink()


@pytest.mark.usefixtures("served")
def test_a_notebook_in_a_forked_kernel(notebook: Notebook, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    notebook("tiny")
    path = run.run("tiny", "quick")
    assert records.read(path).get("loss") == [0.0, 0.1, 0.2]
    assert run.read_notebook(path.with_suffix(".ipynb")).cells[1].outputs[0].text == "scale quick, lr 0.1\n"
    assert capfd.readouterr() == ("", "")
    notebook("dies", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(run.UserError, match="dies failed at scale quick: Kernel died"):
        run.run("dies", "quick")
    run.run("tiny", "quick")


def test_a_kernel_whose_server_is_gone_starts_the_slow_way(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm.SERVER, str(root / "socket"))

    async def start() -> bool:
        manager = kernels.Kernel()
        await manager.start_kernel(cwd=manager.folder)
        try:
            return await manager.is_alive()
        finally:
            await manager.shutdown_kernel(now=True)

    assert asyncio.run(start())


def test_a_killed_command_takes_its_kernel_along(notebook: Notebook, root: Path) -> None:
    os.mkfifo(root / "pipe")
    body = f"pipe = open({str(root / 'pipe')!r}, 'w')\nprint('here', file=pipe, flush=True)\nsignal.pause()\n"
    notebook("tiny", "import signal\n" + body)
    command = [sys.executable, "-m", "experiments.warm", "run", "tiny"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with warm.server(environment, preload=()) as variables:
        for signum, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
            process = subprocess.Popen(command, env=environment | variables)
            with open(root / "pipe") as pipe:  # opens when the notebook does
                assert pipe.readline() == "here\n"
                process.send_signal(signum)
                assert pipe.read() == ""
            assert process.wait() == status
    assert files(root / "_build/results") == set()


def test_a_job_whose_server_dies_begins_again_the_slow_way(notebook: Notebook, root: Path) -> None:
    told = root / "told"
    body = f"""
import os, pathlib, signal
if not pathlib.Path({str(told)!r}).exists():
    pathlib.Path({str(told)!r}).touch()
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()
"""
    notebook("tiny", body + BODY)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with warm.server(environment, preload=()) as variables:
        command = [sys.executable, "-m", "experiments.warm", "run", "tiny"]
        assert subprocess.run(command, env=environment | variables, check=False).returncode == 0
    assert told.exists()
    assert records.local("tiny", "quick") is not None
