"""The environment that the Makefile uses: made anew, brought up to date, or left alone; and what make is told."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import install

from .conftest import REPOSITORY

Make = Callable[..., "subprocess.CompletedProcess[str]"]
UV = """#!/bin/sh
echo "$@" >> "{folder}/calls"
env > "{folder}/env"
exit "$(cat "{folder}/status" 2>/dev/null || echo 0)"
"""

# Runs a script as if the Python below its own environment were another one.
STARTS = """\
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys._base_executable, *sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def no_other_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests may be run by make: what it tells its children is not for the one that is tried."""
    for name in list(os.environ):
        if name.startswith("MAKE") or name in ("MFLAGS", "SCALE", "ONLY", "DEVICE", "PORT", "PYTHON", "VENV"):
            monkeypatch.delenv(name)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout in an awkward folder, with nothing but what installs."""
    folder = tmp_path / "a {b} ü $HOME #1 100% 'q' \"d\""
    (folder / "experiments").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "experiments/install.py"):
        shutil.copyfile(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture
def make(project: Path, tmp_path: Path) -> Make:
    """`make` in it, with a uv that installs nothing and keeps a list of how it was called."""
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {
        "uv": UV.format(folder=tools),
        # pip is what takes the time, and uv does without.
        "base": f'#!/bin/sh\nexec "{sys.executable}" -m venv --without-pip "$3"\n',
        "python": f'#!/bin/sh\nexec "{sys.executable}" -c \'{STARTS}\' {tools}/base "$@"\n',
    }
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["make", *arguments],
            cwd=project,
            env={**os.environ, "PATH": path, "PYTHON": str(tools / "python"), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def calls(tmp_path: Path) -> int:
    """How often uv was called, since the last time that this was asked."""
    path = tmp_path / "tools/calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return len(lines)


def test_an_install_is_done_once_for_each_text(make: Make, project: Path, tmp_path: Path) -> None:
    done = make("install-book")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("creating .venv\ninstalling the extra 'book' into .venv;")
    assert calls(tmp_path) == 1
    # Whatever its date, the same text is the same.
    os.utime(project / "pyproject.toml", (2**32, 2**32))
    assert make("install-book").stdout == ""
    assert make("install-book", PYTHON="/nonexistent").stdout == "", "it has a Python of its own by now"
    assert calls(tmp_path) == 0
    with (project / "constraints.txt").open("a") as file:
        file.write("numpy<3\n")
    kept = project / ".venv/kept"
    kept.touch()
    assert make("install-book").stdout.startswith("installing the extra")
    assert calls(tmp_path) == 1
    # Other extras go into the same.
    assert "'tests'" in make("install-tests").stdout
    assert kept.exists()


def test_an_install_that_fails_leaves_what_worked(make: Make, project: Path, tmp_path: Path) -> None:
    make("install-book")
    kept = project / ".venv/kept"
    kept.touch()
    with (project / "constraints.txt").open("a") as file:
        file.write("numpy<3\n")
    (tmp_path / "tools/status").write_text("1")
    for _ in range(2):
        done = make("install-book")
        assert done.returncode == 2
        assert "error: the extra 'book' could not be installed" in done.stderr
        assert kept.exists()
    (tmp_path / "tools/status").unlink()
    assert make("install-book").returncode == 0
    assert kept.exists()


def test_a_path_that_setuptools_would_fill_in(tmp_path: Path) -> None:
    """Its own name is a template to it: pip works through a link to the folder."""
    odd = tmp_path / "{x} $y"
    odd.mkdir()
    with install.plain(odd) as inside:
        assert not set("{}$") & set(str(inside))
        assert inside.samefile(odd)
    assert not inside.exists()
    with install.plain(tmp_path) as inside:
        assert inside == tmp_path


@pytest.mark.parametrize("how", ["no module", "interrupted", "no packages", "no Python"])
def test_one_that_was_left_half_made_is_made_anew(make: Make, project: Path, tmp_path: Path, how: str) -> None:
    """A missing python3-venv, Ctrl-C, an install that failed, or a Python that is gone since."""
    fake = tmp_path / "python"
    last = {"no module": "false", "interrupted": "kill -INT $PPID; sleep 5 #"}
    fake.write_text(f'#!/bin/sh\nmkdir -p "$3/lib"\n{last.get(how, tmp_path / "tools/base")} "$@"\n')
    fake.chmod(0o755)
    run = [sys.executable, "-c", STARTS, str(fake), str(project / "experiments/install.py"), ".venv", "book"]
    (tmp_path / "tools/status").write_text("1" if how == "no packages" else "0")
    environment = {**os.environ, "PATH": f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(run, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    if how == "no Python":
        assert done.returncode == 0
        (project / ".venv/bin/python").unlink()
    else:
        assert done.returncode == (130 if how == "interrupted" else 2)
        assert ("apt install python3-venv" in done.stderr) == (how == "no module")
    (project / ".venv/rubbish").mkdir()
    (tmp_path / "tools/status").write_text("0")
    done = make("install-book")
    assert (done.returncode, done.stderr) == (0, "")
    assert "creating .venv" in done.stdout
    assert not (project / ".venv/rubbish").exists()


def test_one_that_is_not_ours_is_left_alone(make: Make, project: Path, tmp_path: Path) -> None:
    (project / ".venv").mkdir()
    (project / ".venv/mine").touch()
    done = make("install-book")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "error: .venv was not made here: remove it, or name another, make VENV=.venv-book"
    )
    assert (project / ".venv/mine").exists()
    assert calls(tmp_path) == 0
    assert make("install-book", "VENV=an other").returncode == 0
    assert (project / "an other/bin/python").exists()


def test_pips_settings_reach_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    for name in ("PIP_USER", "PIP_TARGET", "PIP_REQUIREMENT", "PIP_PYTHON", "UV_SYSTEM_PYTHON", "UV_RESOLUTION"):
        monkeypatch.setenv(name, "1")
    for name, value in {
        "PIP_INDEX_URL": "file:///a",
        "PIP_EXTRA_INDEX_URL": "file:///b file:///c",
        "PIP_FIND_LINKS": "/d /e",
        "PIP_CERT": "f",
        "UV_CACHE_DIR": "g",
        "HTTPS_PROXY": "h",
    }.items():
        monkeypatch.setenv(name, value)

    def found() -> dict[str, str]:
        given = install.settings()
        return {name: value for name, value in given.items() if name.startswith(("PIP_", "UV_", "HTTPS"))}

    kept = {
        "PIP_INDEX_URL": "file:///a",
        "PIP_EXTRA_INDEX_URL": "file:///b file:///c",
        "PIP_FIND_LINKS": "/d /e",
        "PIP_CERT": "f",
        "UV_CACHE_DIR": "g",
        "HTTPS_PROXY": "h",
        "PIP_USER": "0",
    }
    translated = {
        "UV_DEFAULT_INDEX": "file:///a",
        "UV_EXTRA_INDEX_URL": "file:///b file:///c",
        "UV_FIND_LINKS": "/d,/e",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert found() == kept | translated
    # uv's own come first.
    own = {"UV_INDEX_URL": "file:///i", "UV_INDEX": "file:///j", "UV_FIND_LINKS": "/k"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert found() == kept | own
    monkeypatch.setenv("HOME", "/nonexistent")
    assert found()["UV_NO_CACHE"] == "1"


@pytest.mark.parametrize(
    "given",
    ["only=adam", "scale=quick", "Device=cpu", "port=1", "ONLI=adam"],
    ids=lambda given: given.split("=")[0],
)
def test_a_variable_that_there_is_not(make: Make, given: str) -> None:
    done = make("help", given)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"there is no variable {given.partition('=')[0]}, there are SCALE ONLY DEVICE PORT" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert make("help", "ONLY=adam", "PIP_INDEX_URL=file:///a", "CC=clang").returncode == 0


@pytest.fixture
def complete(project: Path) -> Path:
    """An environment that needs no install, with the interpreter of these tests."""
    python = project / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for extra in ("book", "tests"):
        (project / f".venv/.complete-{extra}").write_text(install.digest(REPOSITORY, extra))
    shutil.rmtree(project / "experiments")
    shutil.copytree(
        REPOSITORY / "experiments", project / "experiments", ignore=shutil.ignore_patterns("__pycache__")
    )
    (project / "notebooks").mkdir()
    return project


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ONLY=a'b", 'there is no notebook "a\'b"; there are none in notebooks/'),
        ('ONLY=a"; echo b #', "there is no notebook"),
        ("SCALE=qu'ick", 'there is no scale "qu\'ick"'),
        ("DEVICE=c'pu", 'there is no device "c\'pu" here'),
    ],
    ids=["a quote", "a command", "SCALE", "DEVICE"],
)
def test_a_word_that_there_is_not(make: Make, complete: Path, given: str, message: str) -> None:
    done = make("reproduce", given)
    assert done.returncode == 2
    first, last = done.stderr.splitlines()
    assert first.startswith(f"error: {message}")
    assert last.startswith("make: ***")


def test_a_port_that_is_none(make: Make, complete: Path) -> None:
    (complete / "book").mkdir()
    (complete / "book/build.py").write_text("")
    done = make("serve", "PORT=8'0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("error: not on port 8'0 (ValueError: invalid literal")


def test_settings_for_another_python_do_not_stop_make(make: Make, complete: Path) -> None:
    (complete / "book/claims").mkdir(parents=True)
    done = make("verdicts", PYTHONHOME="/nonexistent", PYTHONSAFEPATH="1", PYTHONOPTIMIZE="2", PYTHONINSPECT="1")
    assert (done.returncode, done.stdout) == (0, "there are no claims in book/claims/\n")
