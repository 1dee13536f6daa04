"""A problem that takes milliseconds: a line through points, in a file as users write it."""

from pathlib import Path

import pytest

LINE = """
import torch
from torch import nn
from optimizers.study import Problem

x = torch.linspace(-1, 1, 64)[:, None]
y = 2 * x + 1 + 0.1 * torch.sin(40 * x)


def batches(seed, split):
    if split == "validation":
        return [(x[::2], y[::2])]
    return [(x[i], y[i]) for i in torch.randperm(64).split(16)]


problem = Problem(
    model=lambda seed: nn.Linear(1, 1),
    batches=batches,
    loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
    metric=lambda model, batch: (model(batch[0]) - batch[1]).abs().max(),
    steps=12,
    evaluations=3,
)
"""


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """The file of the problem."""
    path = tmp_path / "line.py"
    path.write_text(LINE, encoding="utf-8")
    return path
