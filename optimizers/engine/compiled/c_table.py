"""The table of tensors in the CPU's memory, as a compiled C function is given it."""

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..eager import Active, Hyper, shard
from .c import c_source
from .compiler import INSTALL, find, load
from .layout import blocks, layout
from .table import Table
from .trace import SETTLED, Program, numbers

# With fewer elements in all, a second thread is not worth waking up.
_ALONE = 1 << 15
# Elements whose parameters, gradients and state stay in a core's cache from one pass to the next.
_BLOCK = 1 << 16


class CTable(Table):
    """A `Table` whose rows are stepped by C functions, on as many threads as torch has."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._places = array("q", self._pointers)
        if self._whole is not None:
            for row in reversed(range(len(self._params))):
                self._places.insert(row * self._row + self._whole, 0)
            self._row += 1
        self._sizes = array("q", [view.numel() for view in self._views])
        self._indices = array("q", [int(state.get("index", 0)) for state in self._states])
        pairs = zip(self._params, self._views, strict=True)
        self._layouts = [layout(view, *shard(param)) for param, view in pairs]
        self._layout_places = array("q", [numbers.buffer_info()[0] for numbers in self._layouts])
        self._large = sum(self._sizes) > _ALONE
        self._all = range(len(self._params))
        self._blocks: list[range] = []  # of rows that are stepped together where a table makes its sums itself

    @classmethod
    def missing(cls, device: torch.device) -> str:
        return "" if find() else f"there is no C compiler: {INSTALL}"

    def _write(self, program: Program, dtypes: Sequence[torch.dtype]) -> str:
        return c_source(program, dtypes)

    def _load(self, program: Program, source: str) -> Callable[..., int]:
        return load(source)

    def _gather(self, scalars: Sequence[str]) -> int:
        for state in self._states:
            for name in scalars:
                state[name] = state[name].to("cpu", torch.float32)
        # All counts are in one piece of memory, so that a step need not ask for the place of each.
        self._counts = array("f", [state["step"].item() for state in self._states])
        for state, count in zip(self._states, torch.frombuffer(self._counts, dtype=torch.float32), strict=True):
            state["step"] = count.detach()
        return self._counts.buffer_info()[0]

    def begin(self, active: Active, known: Hyper) -> None:
        known = {name: float(value) if isinstance(value, Tensor) else value for name, value in known.items()}
        super().begin(active, known)
        self._sums = torch.zeros(len(self._params), self._programs[0].width, dtype=torch.float64, device="cpu")
        self._numbers = _arrays(active, known)
        self._grad_places = array("q", self._grad_pointers)
        self._threads = torch.get_num_threads() if self._large else 1
        self._address()

    def _address(self) -> None:
        """Note where the functions' arguments are, and how many bytes of each stand for a row."""
        rows = self._counts, self._grad_places, self._sizes, self._indices, self._layout_places
        places = self._places.buffer_info()[0], self._row * self._places.itemsize
        sums = self._sums.data_ptr(), self._sums.shape[1] * self._sums.itemsize
        per_row = ((each.buffer_info()[0], each.itemsize) for each in rows)
        self._arguments = [places, *per_row, *((each.buffer_info()[0], 0) for each in self._numbers), sums]

    @property
    def step(self) -> Any:
        return max(self._counts)

    def know(self, scalars: Hyper, settled: bool) -> None:
        self.known |= {(SETTLED + name if settled else name): float(value) for name, value in scalars.items()}
        self._numbers = _arrays(self.active, self.known)
        self._address()

    def _rooms(self) -> list[Tensor]:
        assert self._whole is not None
        rooms = [torch.empty_like(view, dtype=self._wide) for view in self._views]
        self._places[self._whole :: self._row] = array("q", map(Tensor.data_ptr, rooms))
        return rooms

    def _number(self, state: Hyper, name: str) -> float:
        return float(state[name])

    def _count(self, row: int) -> Any:
        return self._counts[row]

    def _passes(self) -> None:
        for rows in self._in_blocks() if self.alone and self._whole is not None else [self._all]:
            if self.alone:
                self._at = 0
            while self._at < len(self._programs):
                self._pass(rows)

    def _in_blocks(self) -> list[range]:
        """Rows for which one scratch suffices: as many small tensors as stay in the cache, or one large one."""
        if not self._blocks:
            assert self._whole is not None
            self._blocks = blocks(self._sizes, _BLOCK)
            largest = max(sum(self._sizes[row] for row in rows) for rows in self._blocks)
            self._scratch = torch.empty(largest, dtype=self._wide, device="cpu")
            for rows in self._blocks:
                address = self._scratch.data_ptr()
                for row in rows:
                    self._places[row * self._row + self._whole] = address
                    address += self._sizes[row] * self._scratch.itemsize
        return self._blocks

    def kernel(self, function: Callable[..., int], rows: range) -> None:
        addresses = (address + rows.start * row for address, row in self._arguments)
        if function(len(rows), self._threads, *addresses):
            raise MemoryError(f"there is no memory for a step of {len(rows)} parameters")


def _arrays(active: Active, known: Hyper) -> tuple["array[float]", "array[int]"]:
    """The numbers of a program's `reals` and `wholes`."""
    given = [value for _, value in numbers(active, known)]
    reals, wholes = [x for x in given if isinstance(x, float)], [x for x in given if isinstance(x, int)]
    return array("d", reals), array("q", wholes)
