"""A GPU played by the CPU: the very text of the kernels, compiled behind `cuda_host.h`, in the CPU's memory."""

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from optimizers.engine import compiled
from optimizers.engine.compiled.cuda_table import CudaTable, Processor

_numbers = itertools.count()


class OnCpu:
    """Loads and launches kernels as `nvrtc.Card` does, and notes which.

    Args:
        folder: for what is compiled.
    """

    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, list[Any]] = {}
        self.launches: list[tuple[str, int, int]] = []  # kernel, blocks, threads
        self.captures = False

    def load(self, source: str, names: Sequence[str]) -> list[Any]:
        if source not in self._known:
            heads = [
                f'extern "C" void launch_{name}(unsigned grid, unsigned block, void **arguments) '
                f"{{ launch({name}, grid, block, arguments); }}"
                for name in names
            ]
            text = "\n".join([f'#include "{Path(__file__).with_name("cuda_host.h")}"', source, *heads])
            path = self._folder / f"processor_{next(_numbers)}.so"
            options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-x", "c++", "-", "-o", str(path)]
            command = [shutil.which("c++") or "g++", *options]
            done = subprocess.run(command, input=text, text=True, capture_output=True)
            assert done.returncode == 0, done.stderr[:5000]
            library = ctypes.CDLL(str(path))
            self._known[source] = [(name, getattr(library, f"launch_{name}")) for name in names]
        return self._known[source]

    def launch(self, kernel: Any, blocks: int, threads: int, arguments: Any) -> None:
        name, function = kernel
        self.launches.append((name, blocks, threads))
        function(blocks, threads, arguments)

    def capturing(self) -> bool:
        return self.captures


def play(processor: OnCpu, monkeypatch: pytest.MonkeyPatch) -> OnCpu:
    """Have parameters in the CPU's memory stepped as those on a GPU are."""

    class Played(CudaTable):
        @classmethod
        def processor(cls, device: torch.device) -> Processor:
            return processor

    monkeypatch.setitem(compiled.TABLES, "cpu", Played)
    monkeypatch.setattr(processor, "launches", [])
    return processor
