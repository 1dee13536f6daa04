"""A book of its own for every test: `notebooks/`, `book/claims/` and `results/` in a temporary folder."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import records

REPOSITORY = Path(__file__).resolve().parents[2]
HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
scale = "quick"
seeds = [0, 1, 2]
device = "cpu"
out = "{slug}.json"
lr = 0.1

# %%
"""
BODY = """\
from experiments import records

record = records.new("{slug}", scale, {{"seeds": seeds, "device": device, "lr": lr}})
record.metric("loss", [lr * seed for seed in seeds])
print(f"scale {{scale}}, lr {{lr}}")

# %%
records.write(record, out)
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty book, which `records.ROOT` points to for the length of a test."""
    for folder in ("notebooks", "book/claims", "results"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setenv("BOOK_ROOT", str(tmp_path))  # the same for what a test starts
    # What a run tells its kernel by the environment goes with the test.
    monkeypatch.setenv("EXPERIMENT_PROGRESS", "")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return tmp_path


@pytest.fixture
def notebook(root: Path) -> Callable[..., Path]:
    """Write a notebook into the book: `notebook(slug, body)`; the default body writes a small record."""

    def write(slug: str, body: str = BODY) -> Path:
        path = root / "notebooks" / f"{slug}.py"
        path.write_text(HEADER.format(slug=slug) + textwrap.dedent(body).format(slug=slug))
        return path

    return write


@pytest.fixture
def command(root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m experiments …` on the book as its user would."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "experiments", *arguments],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
