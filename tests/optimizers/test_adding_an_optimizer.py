"""The README's worked example: a new optimizer is one module of fewer than 80 lines and one line in a list."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import optimizers

ROOT = Path(optimizers.__file__).parent.parent
LINE = "from .qhm import QHM as QHM"


@pytest.fixture(scope="module")
def example() -> str:
    """The code block of the README's section."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Add an optimizer")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


@pytest.fixture(scope="module")
def project(example: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with the module and the line, in a folder of its own, and this folder's contract suite."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "optimizers", project / "optimizers", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "optimizers" / "qhm.py").write_text(example, encoding="utf-8")
    with (project / "optimizers" / "__init__.py").open("a", encoding="utf-8") as init:
        init.write(LINE + "\n")
    shutil.copy(Path(__file__).with_name("test_contract.py"), project)
    return project


def test_it_is_short(example: str) -> None:
    assert len(example.splitlines()) < 80


def run(project: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=project, env={"PYTHONPATH": str(project)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_steps_as_its_equation_says(project: Path) -> None:
    code = """
import numpy as np, torch, optimizers
assert "qhm" in optimizers.list(), optimizers.list()
theta = np.array([1.0, -2.0, 0.5]); m = np.zeros(3)
param = torch.tensor(theta, requires_grad=True)
optimizer = optimizers.create("qhm", [param], lr=0.1, momentum=0.6, nu=0.8)
for t in range(10):
    g = np.cos(theta + t)
    param.grad = torch.tensor(g)
    optimizer.step()
    m = 0.6 * m + 0.4 * g
    theta = theta - 0.1 * (0.2 * g + 0.8 * m)
    assert np.abs(param.detach().numpy() - theta).max() < 1e-12
try:
    optimizers.QHM([param], momentum=1.0)
except ValueError as error:
    assert str(error) == "momentum must lie in [0, 1), got 1.0", error
else:
    raise AssertionError("momentum=1.0 was taken")
"""
    run(project, "-c", code)


def test_it_keeps_the_whole_contract(project: Path) -> None:
    """The suite that every named optimizer passes, with each extension and with all."""
    out = run(
        project,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "-k",
        "qhm",
        "test_contract.py",
    )
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None
    assert int(passed[1]) >= 8 * 25
    assert "failed" not in out


def test_it_is_typed_and_tidy(project: Path, example: str) -> None:
    run(project, "-m", "mypy", "--strict", "-p", "optimizers")
    run(project, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "optimizers/qhm.py")
