"""Snakemake from outside: it stops when its caller does, and when it fails, its reason is shown."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import records, reproduce
from experiments.errors import UserError

from .conftest import REPOSITORY
from .test_run import CLAIM

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Notebook = Callable[..., Path]


IGNORES = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("told", "background"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGHUP, False), (signal.SIGINT, False)],
)
def test_told_to_end_it_ends_with_all_that_it_started(
    notebook: Notebook, root: Path, told: signal.Signals, background: bool
) -> None:
    """As by `timeout make reproduce`, or a terminal that is closed. In a script's background, Ctrl-C is ignored."""
    os.mkfifo(root / "pipe")
    notebook(
        "tiny",
        f"""\
        import time
        pipe = open({str(root / "pipe")!r}, "w")
        print("here", file=pipe, flush=True)
        time.sleep(600)
        """,
    )
    record = records.new("tiny", "quick", {})
    record.provenance["code_hash"] = "of other code"
    before = records.write(record, records.local_path("tiny", "quick")).read_bytes()
    arguments = [sys.executable, "-m", "experiments", "reproduce"]
    if background:
        arguments = [sys.executable, "-c", IGNORES, *arguments]
    process = subprocess.Popen(
        arguments, cwd=root, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, text=True
    )
    with open(root / "pipe") as pipe:  # opens when the notebook does
        assert pipe.readline() == "here\n"
        process.send_signal(told)
        _, err = process.communicate(timeout=reproduce.PATIENCE)  # well before it would lose patience
        assert pipe.read() == "", "the end of the pipe: the kernel is gone"
    assert process.returncode == 128 + told
    assert "Traceback" not in err
    assert (root / "_build/results/quick/tiny.json").read_bytes() == before
    assert not list((root / "_build/work").glob("*/"))


def test_snakemakes_own_reason_is_shown(notebook: Notebook, root: Path, command: Command) -> None:
    notebook("tiny")
    (root / "_build").mkdir()
    (root / "_build/.snakemake").write_text("a file where a folder should be")
    done = command("reproduce")
    *reason, last = done.stderr.splitlines()
    assert done.returncode == 2
    assert any(".snakemake" in line for line in reason)
    assert last == "error: not finished at scale quick: tiny (the reason stands above)"


def test_a_job_that_cannot_say_why_it_failed(notebook: Notebook, root: Path, command: Command) -> None:
    notebook("tiny", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n")
    done = command("reproduce")
    assert done.returncode == 2
    assert "Error in rule experiment" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: not finished at scale quick: tiny (the reason stands above)"


def test_no_reason_is_said_to_be_none(notebook: Notebook, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook("tiny")
    monkeypatch.setattr(reproduce, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(UserError, match=r"tiny \(Snakemake ended with status 3 and said nothing\)"):
        reproduce.reproduce("quick")


def test_a_job_says_why_in_one_line(notebook: Notebook, root: Path, command: Command) -> None:
    """And Snakemake, which knows less, says nothing."""
    notebook("tiny", "0 / 0\n")
    first, second = command("reproduce").stderr.splitlines()
    assert first.startswith("error: tiny failed at scale quick: ZeroDivisionError")
    assert second == "error: not finished at scale quick: tiny (the reason stands above)"
    assert len(command("reproduce", VERBOSE="1").stderr.splitlines()) > 2


def test_a_path_with_all_that_shells_and_templates_know(notebook: Notebook, root: Path, command: Command) -> None:
    odd = root / "a {slug} {{x}} {} ü $HOME #1 100% 'q' \"d\" `e` ; \\b"
    shutil.copytree(notebook("tiny").parent, odd / "notebooks")
    done = command("reproduce", BOOK_ROOT=str(odd))
    assert (done.returncode, done.stderr) == (0, "")
    assert records.read(odd / "_build/results/quick/tiny.json").slug == "tiny"


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["ascii", "C"],
)
def test_output_that_is_not_unicode(
    notebook: Notebook, root: Path, command: Command, settings: dict[str, str]
) -> None:
    odd = root / "ü"
    shutil.copytree(notebook("tiny").parent, odd / "notebooks")
    (odd / "book/claims").mkdir(parents=True)
    (odd / "book/claims/tiny.yaml").write_text(CLAIM)
    done = command("reproduce", BOOK_ROOT=str(odd), **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout
    done = command("verdicts", BOOK_ROOT=str(odd), **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert "reproduced (quick)" in done.stdout
    assert done.stdout.splitlines()[1].startswith("???")
