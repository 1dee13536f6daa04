"""The kernels of CUDA text on the CPU: compiled by a C++ compiler behind `cuda_host.h`, launched as by a driver."""

import ctypes
import itertools
import math
import shutil
import struct
import subprocess
from array import array
from pathlib import Path
from typing import Any

import torch

from optimizers.engine.compiled.cuda import CHUNK, GRADS, PREPARED, THREADS, cuda_source
from optimizers.engine.compiled.trace import Program
from optimizers.engine.eager import WHOLE

KERNELS = ("prepare_all", "advance_all", "sum_all")
_SCRATCH = 64  # where a row's scratch is counted from: any address will do
_numbers = itertools.count()


class Host:
    """Writes and loads functions that do the work of a C kernel, given what it is given, by CUDA text.

    Args:
        folder: for what is compiled.
        options: further ones for the compiler.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._command = [shutil.which("c++") or "g++", "-std=c++17", "-O1", "-fPIC", "-Wall", "-Werror"]
        self._command += ["-Wno-unknown-pragmas", "-Wno-unused", *options]
        self._kernels: dict[str, Kernels] = {}
        self._programs: dict[str, tuple[Program, list[int]]] = {}
        self.launches: list[tuple[str, int]] = []  # of which kernel, by how many blocks
        self.stepped: list[str] = []  # the texts whose kernels they were
        self.by_address = False  # whether numbers are handed over by the addresses of where they are
        self.beyond = 0  # elements, a multiple of CHUNK, that tensors have in front of those which are stepped
        self.grad_scale: torch.Tensor | None = None  # a GradScaler's
        self.found_inf: torch.Tensor | None = None

    def source(self, program: Program, stored: Any) -> str:
        text = cuda_source(program, stored)
        self._programs[text] = program, [dtype.itemsize for dtype in stored]
        return text

    def load(self, text: str) -> "Kernels":
        return self._kernels.setdefault(text, Kernels(self, text, *self._programs[text]))

    def build(self) -> None:
        """Compile all texts that are not yet."""
        header = self._folder / "cuda_host.h"
        if not header.exists():
            shutil.copy(Path(__file__).with_suffix(".h"), header)
            self._compile("-x", "c++-header", str(header), "-o", f"{header}.gch")
        parts = ['#include "cuda_host.h"']
        waiting = [kernels for kernels in self._kernels.values() if not kernels.functions]
        for kernels in waiting:
            names = {kernel: f"{kernel}_{kernels.number}" for kernel in KERNELS if f" {kernel}(" in kernels.text}
            parts += [f"namespace text_{kernels.number} {{", *(f"#define {k} {v}" for k, v in names.items())]
            parts += [kernels.text]
            for kernel, name in names.items():
                head = f'extern "C" void launch_{name}(unsigned grid, unsigned block, void **arguments)'
                parts += [f"{head} {{ launch({kernel}, grid, block, arguments); }}", f"#undef {kernel}"]
            parts += ["}"]
        path = self._folder / f"host_{next(_numbers)}.so"
        text = "\n".join(parts)
        self._compile("-I", str(self._folder), "-shared", "-x", "c++", "-", "-o", str(path), text=text)
        library = ctypes.CDLL(str(path))
        for kernels in waiting:
            kernels.functions = {
                kernel: getattr(library, f"launch_{kernel}_{kernels.number}")
                for kernel in KERNELS
                if f" {kernel}(" in kernels.text
            }

    def _compile(self, *arguments: str, text: str = "") -> None:
        done = subprocess.run([*self._command, *arguments], input=text, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr[:5000]


class Kernels:
    """Those of one text, called as the function of C text is."""

    def __init__(self, host: Host, text: str, program: Program, bytes_each: list[int]) -> None:
        self.text, self.number = text, next(_numbers)
        self.functions: dict[str, Any] = {}
        self._host, self._program, self._bytes = host, program, bytes_each

    def _launch(self, kernel: str, grid: int, block: int, *arguments: Any) -> None:
        self._host.launches.append((kernel, grid))
        boxes = [ctypes.c_int64(each) if isinstance(each, int) else each for each in arguments]
        self.functions[kernel](grid, block, (ctypes.c_void_p * len(boxes))(*map(ctypes.addressof, boxes)))

    def __call__(self, rows: int, threads: int, *addresses: int) -> int:
        if not self.functions:
            self._host.build()
        self._host.stepped.append(self.text)
        table, counts, grads, sizes, indices, layouts, real, whole, sums = addresses
        program, tensors = self._program, len(self._program.names) + len(self._program.scalars)
        terms, beyond = len(program.terms), self._host.beyond
        param_bytes, grad_bytes, *state_bytes = self._bytes

        table_rows, chunks = array("q"), array("i")
        firsts = [0]  # number of a row's first chunk
        columns = zip(*(_wholes(address, rows) for address in (sizes, indices, layouts)), strict=True)
        for i, (size, index, layout) in enumerate(columns):
            places = _wholes(table + 8 * tensors * i, tensors)
            if WHOLE in program.names:
                places[program.names.index(WHOLE)] -= _SCRATCH
            for place, size_each in enumerate((param_bytes, *state_bytes)):
                places[place] -= beyond * size_each
            table_rows.extend([*places, beyond + size, index, layout, firsts[-1]])
            parts = math.ceil(size / CHUNK)
            chunks.extend(number for part in range(parts) for number in (i, beyond // CHUNK + part))
            firsts.append(firsts[-1] + parts)

        given, kept = self._inputs(real, whole)
        prepared = ctypes.create_string_buffer(PREPARED * rows + 16)
        scaler = [0 if each is None else each.data_ptr() for each in (self._host.grad_scale, self._host.found_inf)]
        rows_at, prepared_at = table_rows.buffer_info()[0], ctypes.addressof(prepared)
        self._launch(
            "prepare_all", math.ceil(rows / 32), 32, rows_at, rows, counts, given, sums, prepared_at, *scaler
        )
        added = array("d", [math.nan] * (firsts[-1] * terms + 1))
        for first in range(0, rows, GRADS):
            last = min(first + GRADS, rows)
            if blocks := firsts[last] - firsts[first]:
                own = (address - beyond * grad_bytes for address in _wholes(grads + 8 * first, last - first))
                grad_places = (ctypes.c_int64 * GRADS)(*own)
                chunks_at = chunks.buffer_info()[0] + 8 * firsts[first]
                arguments = rows_at, prepared_at, chunks_at, first, _SCRATCH, added.buffer_info()[0], grad_places
                self._launch("advance_all", blocks, THREADS, *arguments)
        if terms:
            self._launch("sum_all", rows, THREADS, rows_at, added.buffer_info()[0], sums)
        del kept
        return 0

    def _inputs(self, real: int, whole: int) -> tuple[Any, Any]:
        """The numbers of a step, and what must stay in memory."""
        reals = (ctypes.c_double * len(self._program.reals)).from_address(real) if self._program.reals else [0.0]
        wholes = _wholes(whole, len(self._program.wholes)) or [0]
        kept, packed = [], b""
        for i, value in enumerate(reals):
            narrow, wide = ctypes.c_float(value), ctypes.c_double(value)
            kept += [narrow, wide]
            as_float = i % 2 and narrow.value == value
            at = (ctypes.addressof(narrow), 0) if as_float else (0, ctypes.addressof(wide))
            packed += struct.pack("dqq", *((math.nan, *at) if self._host.by_address else (value, 0, 0)))
        return ctypes.create_string_buffer(packed + struct.pack(f"{len(wholes)}q", *wholes)), kept


def _wholes(address: int, n: int) -> list[int]:
    return list((ctypes.c_int64 * n).from_address(address)) if n else []
