"""The table of tensors in a GPU's memory, as the kernels of `cuda` are given it: a step waits for nothing there.

What stays from step to step is on the device: addresses of parameters and state, sizes, layouts, and which elements
each block of threads takes. What is new is handed over by value with each launch: the step's numbers, and the
gradients' addresses. Numbers that are known on the card alone (a learning rate in a tensor, a norm) are read there.
"""

import ctypes
import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, Protocol

import torch
from torch import Tensor

from ..eager import Active, Hyper, shard
from ..tensors import local
from .compiler import NoCompiler
from .cuda import CHUNK, GRADS, PREPARED, THREADS, cuda_source
from .layout import layout
from .nvrtc import card
from .table import Table
from .trace import SETTLED, Program, numbers

_BESIDE = 32  # threads to a block of `prepare_all`, which has one for each row
_ALIGNED = 16  # bytes, to which the rows of what is handed from pass to pass are aligned
_SLOTS = ("table", "rows", "counts", "sums", "prepared", "grad_scale", "found_inf", "scratch", "parts")


class Processor(Protocol):
    """Where kernels are loaded and launched: see `nvrtc.Card`."""

    device: torch.device

    def load(self, source: str, names: Sequence[str]) -> list[Any]: ...
    def launch(self, kernel: Any, blocks: int, threads: int, arguments: Any) -> None: ...
    def capturing(self) -> bool: ...


class CudaTable(Table):
    """A `Table` whose rows are stepped by kernels of a GPU, on torch's current stream.

    Raises:
        RuntimeError: a graph is being captured, of which the making of a table cannot be part.
    """

    def __init__(self, *given: Any) -> None:
        self._home = self.processor(next(iter(given[2].values())).device)
        if self._home.capturing():
            raise RuntimeError(
                "a graph is being captured, but what the step needs on the device is not there, or has changed: "
                "make a step before the capture, on the same parameters, with gradients for all of them"
            )
        super().__init__(*given)
        self._sizes = [view.numel() for view in self._views]
        self._offsets = [
            0,
            *accumulate(-(-size * self._wide.itemsize // _ALIGNED) * _ALIGNED for size in self._sizes),
        ]
        self._grad_places = array("q", [0]) * (-(-len(self._params) // GRADS) * GRADS)
        self._upload()
        # Where a launch finds its arguments: the numbers of a step in slots that stay where they are.
        self._slots = array("q", [0]) * (len(_SLOTS) + 2 * len(self._groups))
        self._set(table=self._rows.data_ptr(), rows=len(self._params), counts=self._counts.data_ptr())
        self._terms = max(len(program.terms) for program in self._programs)
        self._advances = [self._advance_arguments(i, *group) for i, group in enumerate(self._groups)]
        self._totals = self._arguments(*map(self._slot, ("table", "parts", "sums")))

    @classmethod
    def processor(cls, device: torch.device) -> Processor:
        """What compiles and launches for a device; NoCompiler where nothing does."""
        return card(device.index or 0)

    @classmethod
    def missing(cls, device: torch.device) -> str:
        try:
            cls.processor(device)
        except NoCompiler as error:
            return str(error)
        return ""

    def _write(self, program: Program, dtypes: Sequence[torch.dtype]) -> str:
        return cuda_source(program, dtypes)

    def _load(self, program: Program, source: str) -> list[Any]:
        names = ["prepare_all", "advance_all", *(["sum_all"] if program.terms else [])]
        return self._home.load(source, names)

    def _gather(self, scalars: Sequence[str]) -> int:
        for name in ("step", *scalars):
            found = [state[name] for state in self._states]
            if all(number.device.type == "cpu" for number in found):  # one copy, not one each
                values = torch.tensor([number.item() for number in found], dtype=torch.float32)
                together = values.to(self._home.device)
            else:
                together = torch.stack([n.reshape(()).to(self._home.device, torch.float32) for n in found])
            for state, number in zip(self._states, together.unbind(), strict=True):
                state[name] = number
            if name == "step":
                self._counts = together
        # What they are, without asking the card: for rules that decide by them.
        self._counted, self._made = self._counts.tolist(), 0
        return self._counts.data_ptr()

    def _upload(self) -> None:
        """Put on the device what holds for all steps."""
        device, rows = self._home.device, len(self._params)
        layouts = [layout(view, *shard(p)) for p, view in zip(self._params, self._views, strict=True)]
        begins = [0, *accumulate(map(len, layouts))]
        self._layouts = torch.tensor(list(chain.from_iterable(layouts)), dtype=torch.int64).to(device)
        chunks = torch.tensor([-(-size // CHUNK) for size in self._sizes], dtype=torch.int64)
        firsts = chunks.cumsum(0) - chunks
        table = torch.tensor(self._pointers, dtype=torch.int64).view(rows, self._row)
        if self._whole is not None:
            offsets = torch.tensor(self._offsets[:-1], dtype=torch.int64)
            table = torch.cat([table[:, : self._whole], offsets[:, None], table[:, self._whole :]], 1)
        indices = torch.tensor([int(state.get("index", 0)) for state in self._states], dtype=torch.int64)
        places = self._layouts.data_ptr() + 8 * torch.tensor(begins[:-1], dtype=torch.int64)
        columns = torch.tensor(self._sizes, dtype=torch.int64), indices, places, firsts
        self._rows = torch.cat([table, torch.stack(columns, 1)], 1).contiguous().to(device)
        # Of each block of `advance_all`, the row and which part of it.
        row = torch.repeat_interleave(torch.arange(rows), chunks)
        number = torch.arange(len(row)) - firsts[row]
        self._chunks = torch.stack([row, number], 1).to(torch.int32).contiguous().to(device)
        ends = [*firsts[::GRADS].tolist(), len(row)]
        #: what each launch of `advance_all` takes: its first row, its first chunk, and how many chunks
        self._groups = [(i * GRADS, ends[i], ends[i + 1] - ends[i]) for i in range(len(ends) - 1)]

    # ------------------------------------------------------------------ arguments

    def _set(self, **values: int) -> None:
        for name, value in values.items():
            self._slots[_SLOTS.index(name)] = value

    def _slot(self, name: str) -> int:
        return self._place(_SLOTS.index(name))

    def _place(self, number: int) -> int:
        return self._slots.buffer_info()[0] + number * self._slots.itemsize

    def _arguments(self, *places: int) -> Any:
        return (ctypes.c_void_p * len(places))(*places)

    def _advance_arguments(self, i: int, row: int, chunk: int, _: int) -> Any:
        own = len(_SLOTS) + 2 * i
        self._slots[own], self._slots[own + 1] = self._chunks.data_ptr() + chunk * self._chunks[0:1].nbytes, row
        grads = self._grad_places.buffer_info()[0] + row * self._grad_places.itemsize
        table, prepared, scratch, parts = map(self._slot, ("table", "prepared", "scratch", "parts"))
        return self._arguments(table, prepared, self._place(own), self._place(own + 1), scratch, parts, grads)

    def _take_numbers(self) -> None:
        """Pack the step's `inputs` (see `cuda`): numbers by value, or by the address at which the card has them."""
        on_card = {name: self._at_hand(value) for name, value in self.known.items() if isinstance(value, Tensor)}
        given = numbers(self.active, {n: 0.0 if n in on_card else value for n, value in self.known.items()})
        reals: list[Any] = []
        wholes = []
        for name, value in given:
            if isinstance(value, int):
                wholes.append(value)
            elif name in on_card:
                place, single = on_card[name].data_ptr(), on_card[name].dtype == torch.float32
                reals += [0.0, place if single else 0, 0 if single else place]
            else:
                reals += [value, 0, 0]
        reals, wholes = reals or [0.0, 0, 0], wholes or [0]
        packed = struct.pack(f"={'dqq' * (len(reals) // 3)}{'q' * len(wholes)}", *reals, *wholes)
        self._inputs = ctypes.create_string_buffer(packed, len(packed))
        self._kept.append(on_card)
        names = [self._slot(name) for name in ("sums", "prepared", "grad_scale", "found_inf")]
        table = map(self._slot, ("table", "rows", "counts"))
        self._prepare = self._arguments(*table, ctypes.addressof(self._inputs), *names)

    def _at_hand(self, value: Tensor) -> Tensor:
        """A number as a kernel can read it, without waiting for it."""
        precise = value if value.dtype in (torch.float32, torch.float64) else value.double()
        return precise.to(self._home.device, non_blocking=True)

    # ------------------------------------------------------------------ a step

    def begin(self, active: Active, known: Hyper) -> None:
        super().begin(active, known)
        # Memory of this step, taken on the stream of this step: a graph that captures it has its own.
        self._kept: list[Any] = []
        self.captured |= self._home.capturing()
        self._grad_places[: len(self._grad_pointers)] = array("q", self._grad_pointers)
        self._sums = self._room(torch.zeros, len(self._params), self._programs[0].width)
        self._set(sums=self._sums.data_ptr(), prepared=self._bytes(len(self._params) * PREPARED))
        if self._terms:
            self._set(parts=self._room(torch.empty, len(self._chunks), self._terms).data_ptr())
        if self._whole is not None:
            self._set(scratch=self._bytes(self._offsets[-1]))
        self._set(grad_scale=0, found_inf=0)
        self._made += 1
        self._take_numbers()

    @property
    def scales(self) -> bool:
        """Whether its kernels read a GradScaler's numbers, and divide the gradients of now.

        Not where sums are asked for between passes, nor where two parameters share a gradient, nor in 16 bits, in
        which is lost what the scale has kept from underflow.
        """
        places = list(filter(None, self._grad_pointers))
        return len(self._programs) == 1 and self._grad_dtype != torch.float16 and len(set(places)) == len(places)

    def scale(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Have kernels divide by a GradScaler's scale, and leave all as it is where it has found an overflow."""
        found = {"grad_scale": grad_scale, "found_inf": found_inf}
        given = {
            n: v.to(self._home.device, torch.float32, non_blocking=True) for n, v in found.items() if v is not None
        }
        self._kept.append(given)
        self._set(**{name: value.data_ptr() for name, value in given.items()})
        if grad_scale is not None and not self._usual:  # those that were copied are divided where they are, too
            factor = given["grad_scale"]
            if found_inf is not None:
                factor = torch.where(given["found_inf"] == 0, factor, 1.0)
            for param, stepped in zip(self._params, self._stepped, strict=True):
                grad = local(param.grad)  # type: ignore[arg-type]
                if stepped.data_ptr() != grad.data_ptr():
                    grad.div_(factor)

    def _room(self, make: Any, *size: int) -> Tensor:
        room: Tensor = make(size, dtype=torch.float64, device=self._home.device)
        self._kept.append(room)
        return room

    def _bytes(self, size: int) -> int:
        self._scratch = torch.empty(size, dtype=torch.uint8, device=self._home.device)
        self._kept.append(self._scratch)
        return self._scratch.data_ptr()

    @property
    def step(self) -> Tensor:
        return self._counts.max()

    def know(self, scalars: Hyper, settled: bool) -> None:
        self.known |= {(SETTLED + name if settled else name): value for name, value in scalars.items()}
        self._take_numbers()

    def _rooms(self) -> list[Tensor]:
        wide = self._scratch.view(self._wide)
        begins = [offset // self._wide.itemsize for offset in self._offsets[:-1]]
        pairs = zip(self._views, begins, strict=True)
        return [wide.as_strided(view.shape, view.stride(), begin) for view, begin in pairs]

    def _number(self, state: Hyper, name: str) -> Tensor:
        return state[name]  # type: ignore[no-any-return]

    def _count(self, row: int) -> Any:
        return self._counts[row] if self.captured else self._counted[row] + self._made

    def _passes(self) -> None:
        while self._at < len(self._programs):
            self._pass(range(len(self._params)))

    def kernel(self, function: Any, rows: range) -> None:
        """A pass over all parameters: the launches alone."""
        prepare, advance, *total = function
        launch = self._home.launch
        launch(prepare, -(-len(rows) // _BESIDE), _BESIDE, self._prepare)
        for (_, _, chunks), arguments in zip(self._groups, self._advances, strict=True):
            if chunks:
                launch(advance, chunks, THREADS, arguments)
        for each in total:
            launch(each, len(rows), THREADS, self._totals)
