"""What a user set for other work reaches no process that is started here; what the machine needs does."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import code_hash, environment, provenance, records, run

from .conftest import REPOSITORY

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Notebook = Callable[..., Path]


def test_what_is_kept_and_what_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = {
        "PATH": os.environ["PATH"],
        "HTTPS_PROXY": "a",
        "SSL_CERT_FILE": "b",
        "PIP_INDEX_URL": "c",
        "CUDA_VISIBLE_DEVICES": "1",
        "LD_LIBRARY_PATH": "d",
        "CC": "clang",
        "SLURM_CONF": "e",
        "PYTORCH_CUDA_ALLOC_CONF": "f",
        "CITATION": "g",
    }
    dropped = (
        *(
            "PYTHONHOME",
            "PYTHONSTARTUP",
            "PYTHONOPTIMIZE",
            "PYTHONIOENCODING",
            "MPLBACKEND",
            "MATPLOTLIBRC",
            "LC_ALL",
        ),
        *("JUPYTER_PATH", "IPYTHONDIR", "SNAKEMAKE_PROFILE", "GIT_DIR", "OMP_NUM_THREADS", "CI", "COLUMNS", "TZ"),
        *(
            "TORCH_LOGS",
            "PYTORCH_JIT",
            "XDG_CONFIG_HOME",
            "MAKEFLAGS",
            "NO_COLOR",
            "BASH_ENV",
            "EXPERIMENT_PROGRESS",
        ),
    )
    for name, value in {**kept, **dict.fromkeys(dropped, "x"), "BOOK_ROOT": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    found = environment.child(OMP_NUM_THREADS="3")
    assert {name: found.get(name) for name in kept} == kept
    assert [name for name in dropped if name in found] == ["OMP_NUM_THREADS"]
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["PYTHONPATH"] == f"{REPOSITORY}{os.pathsep}{tmp_path}"
    monkeypatch.setattr(os, "environ", found)
    assert environment.child(OMP_NUM_THREADS="3") == found, "a child's child has the same"


def test_data_and_compiled_code_stay_where_the_user_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("DATA_DIR", "OPTIMIZERS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = environment.child()
    assert found["DATA_DIR"] == f"{tmp_path}/.cache/optimization-for-deep-learning"
    assert found["OPTIMIZERS_CACHE"] == f"{tmp_path}/.cache/optimizers"
    assert found["HOME"] == str(environment.HOME)
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/roomy")
    assert environment.child()["OPTIMIZERS_CACHE"] == f"{tmp_path}/roomy/optimizers"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", "sets")
    monkeypatch.setenv("OPTIMIZERS_CACHE", "~/compiled")
    found = environment.child()
    assert found["DATA_DIR"] == f"{tmp_path}/sets"
    assert found["OPTIMIZERS_CACHE"] == f"{tmp_path}/compiled"
    # Without a home they are in the child's.
    for name in ("DATA_DIR", "OPTIMIZERS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    found = environment.child()
    assert found["DATA_DIR"] == f"{environment.HOME}/.cache/optimization-for-deep-learning"
    assert found["OPTIMIZERS_CACHE"] == f"{environment.HOME}/.cache/optimizers"


def test_a_user_whom_the_system_does_not_know_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert environment.child()["LOGNAME"] == environment.child()["USER"] == "reader"


def test_temporary_files_are_where_sockets_can_be_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel's, and those of torch's workers."""
    long = tmp_path / ("long" * 25)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(environment, "temporary", environment.temporary.__wrapped__)  # which looks only once
    assert not environment.sockets_in(str(long))
    assert environment.child()["TMPDIR"] == "/tmp"
    code = "import multiprocessing.connection as c; print(c.Listener(None, 'AF_UNIX').address)"
    done = subprocess.run([sys.executable, "-c", code], env=environment.child(), capture_output=True, check=True)
    assert done.stdout.startswith(b"/tmp/")


HOSTILE = """\
import os, sys
import matplotlib
found = dict(
    width=matplotlib.rcParams["lines.linewidth"],
    planted="planted" in globals(),
    home=os.path.expanduser("~"),
    locale=os.environ["LANG"],
    checks=__debug__,
    python=sys.executable,
    threads=os.environ["OMP_NUM_THREADS"],
)
from experiments import records
record = records.new("{slug}", scale, dict(found=found))
_ = records.write(record, out)
"""


@pytest.fixture
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings of somebody who did much else before."""
    home = tmp_path_factory.mktemp("home")
    long = home / ("long" * 25)
    long.mkdir()
    for name, text in {
        ".config/matplotlib/matplotlibrc": "lines.linewidth: 17\n",
        "elsewhere/matplotlibrc": "lines.linewidth: 18\n",
        ".ipython/profile_default/startup/00.py": "planted = 1\nprint('planted')\n",
        ".ipython/profile_default/ipython_config.py": "c.InteractiveShellApp.exec_lines = ['planted = 1']\n",
        ".local/share/jupyter/kernels/python3/kernel.json": json.dumps(
            {"argv": ["false", "{connection_file}"], "display_name": "x", "language": "python"}
        ),
        "snakemake/config.yaml": "executor: nowhere\n",
        "startup.py": "planted = 1\n",
        "bash_env": "exit 3\n",
        ".gitconfig": "[core]\n\tbroken\n[",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    return {
        "HOME": str(home),
        "MATPLOTLIBRC": str(home / "elsewhere"),
        "IPYTHONDIR": str(home / ".ipython"),
        "JUPYTER_PATH": str(home / ".local/share/jupyter"),
        "SNAKEMAKE_PROFILE": str(home / "snakemake"),
        "SNAKEMAKE_OUTPUT_CACHE": "/nonexistent",
        "PYTHONSTARTUP": str(home / "startup.py"),
        "PYTHONOPTIMIZE": "1",
        "BASH_ENV": str(home / "bash_env"),
        "GIT_DIR": "/nonexistent",
        "MPLBACKEND": "nonsense",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "7",
        "TMPDIR": str(long),
    }


def test_a_run_sees_none_of_its_users_settings(
    notebook: Notebook, root: Path, command: Command, hostile: dict[str, str]
) -> None:
    notebook("tiny", HOSTILE)
    (root / "matplotlibrc").write_text("lines.linewidth: 19\n")
    done = command("reproduce", **hostile)
    assert (done.returncode, done.stderr) == (0, "")
    assert records.read(root / "_build/results/quick/tiny.json").parameters["found"] == {
        "width": 1.5,
        "planted": False,
        "home": str(environment.HOME),
        "locale": "C.UTF-8",
        "checks": True,
        "python": sys.executable,
        "threads": "1",
    }
    executed = run.read_notebook(root / "_build/results/quick/tiny.ipynb")
    assert not any(cell.get("outputs") for cell in executed.cells)


def test_a_home_that_is_not_there(notebook: Notebook, root: Path, command: Command) -> None:
    notebook("tiny")
    for home in ("/nonexistent", "/proc/1"):
        assert command("reproduce", HOME=home, XDG_CACHE_HOME=home).returncode == 0
        (root / "_build/results/quick/tiny.json").unlink()


def test_git_is_asked_about_this_repository_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not about one around an archive, nor about one that a hook is at work on."""

    def git(*arguments: str, folder: Path = root) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
        done = subprocess.run(
            ["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "outer")
    inner = root / "inner"
    inner.mkdir()
    monkeypatch.setattr(records, "ROOT", inner)
    assert provenance.commit(records.ROOT) == {"commit": None, "dirty": None}
    git("init", "-q", folder=inner)
    git("commit", "-q", "--allow-empty", "-m", "inner", folder=inner)
    monkeypatch.setenv("GIT_DIR", str(root / ".git"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "broken")
    commit = provenance.commit(records.ROOT)["commit"]
    for name in ("GIT_DIR", "GIT_CONFIG_COUNT"):
        monkeypatch.delenv(name)
    assert commit == git("rev-parse", "HEAD", folder=inner)


def test_git_does_not_mind_who_cloned(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", root], check=True)
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", root, *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    child = environment.child
    monkeypatch.setattr(environment, "child", lambda **given: child(GIT_TEST_ASSUME_DIFFERENT_OWNER="1", **given))
    assert provenance.commit(records.ROOT)["dirty"] is False


def test_sockets_that_cannot_be_bound_are_ports(
    notebook: Notebook, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "sockets_in", lambda folder: False)
    notebook("tiny")
    run.run("tiny", "quick")
    assert records.local("tiny", "quick") is not None


def test_no_record_hangs_on_the_machinery() -> None:
    """A change in how processes are started makes no record out of date."""
    for path in sorted((REPOSITORY / "notebooks").glob("*.py")):
        files = {file.stem for file in code_hash.files_of_notebook(path, REPOSITORY)}
        assert not files & {"environment", "kernels", "console", "install", "reproduce"}, path.name
