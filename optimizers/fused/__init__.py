"""One pass over memory: the step of a whole parameter group as one call of one compiled function.

`tracing` turns a chain's stages into a list of operations, `c_source` writes it as C, `compiler` makes a function
of that; here it is given a table of the tensors, where they are. Nothing is copied or laid out anew, so that
parameters, gradients, `state_dict`, `zero_grad(set_to_none=True)` and data-parallel training know nothing of it.
"""

import warnings
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from ..execution import Active, Hyper, Part, local, real, shard
from ..stage import Stage
from ..state import begin, schedule
from .c_source import STORED, c_source
from .compiler import NoCompiler, find, load
from .layout import alike, in_memory, layout
from .tracing import Program, Untraceable, form, numbers, trace

Indexed = list[tuple[Tensor, int]]  # parameters, each with its index among all of the optimizer's

# With fewer elements in all, a compiler is not worth the wait: a thousand eager steps take less.
WORTH_IT = 1 << 16
# With fewer elements in a call, a second thread is not worth waking up.
_ALONE = 1 << 15

_programs: dict[Any, Program] = {}


def worth_it(params: Iterable[Tensor]) -> bool:
    """Whether ``fused=None`` compiles the step of these parameters."""
    params = list(params)
    return sum(p.numel() for p in params) >= WORTH_IT and all(map(supported, params)) and find() is not None


def supported(param: Tensor) -> bool:
    """Whether a kernel can step this parameter: on the CPU, in a dtype that C has, its elements in a row in memory."""
    return (
        param.device.type == "cpu"
        and (type(param) in (Tensor, nn.Parameter) or hasattr(param, "to_local"))
        and real(local(param)).dtype in STORED
        and in_memory(local(param)) is not None
    )


class FusedStep:
    """The compiled step of one parameter group: its tables, made anew whenever a tensor in them is replaced."""

    def __init__(self) -> None:
        self.tables: list[Table] = []
        self._key: Any = None
        self._pairs: Indexed = []
        self._eager: Indexed = []

    def __call__(
        self, pairs: Indexed, active: Active, group: Hyper, shared: Hyper, states: Mapping[Tensor, Hyper]
    ) -> Indexed:
        """Advance these parameters, and return those that no kernel can.

        Args:
            pairs: the group's parameters that have a gradient, with their indices.
            active, group, shared: as for an eager step.
            states: the optimizer's state.
        """
        active = [
            Part(stage, {name: plain(stage, name, value) for name, value in hyper.items()}, names)
            for stage, hyper, names in active
        ]
        known = {"lr": float(group["lr"]), "schedule": float(schedule(group)), "maximize": group["maximize"]}
        known |= {name: float(value) for name, value in shared.items()}
        key = form(active, known)
        if key != self._key or not self._holds(pairs, states):
            self._key, self._pairs, self.tables, self._eager = None, pairs, [], []
            self._lay_out(pairs, active, known, group, states)
            self._key = key
        given = [value for _, value in numbers(active, known)]
        reals = array("d", [value for value in given if isinstance(value, float)])
        wholes = array("q", [value for value in given if isinstance(value, int)])
        for table in self.tables:
            table.step(reals, wholes)
        return self._eager

    def _holds(self, pairs: Indexed, states: Mapping[Tensor, Hyper]) -> bool:
        return (
            len(pairs) == len(self._pairs)
            and all(p is q and i == j for (p, i), (q, j) in zip(pairs, self._pairs, strict=True))
            and all(table.holds(states) for table in self.tables)
        )

    def _lay_out(self, pairs: Indexed, active: Active, known: Hyper, group: Hyper, states: Any) -> None:
        """Sort the parameters into tables, one per combination of dtypes."""
        by_dtypes: dict[tuple[torch.dtype, ...], Indexed] = {}
        names = [name for part in active for name in part.names]
        for param, index in pairs:
            if not supported(param):
                self._eager.append((param, index))
                continue
            begin(states[param], param, active, group)
            tensors = (param, param.grad, *(states[param][name] for name in names))
            by_dtypes.setdefault(tuple(real(t).dtype for t in tensors), []).append((param, index))
        try:
            for dtypes, members in by_dtypes.items():
                dtype = torch.float64 if dtypes[0] == torch.float64 else torch.float32
                program = _programs.get((form(active, known), dtype)) or trace(active, known, dtype)
                _programs[form(active, known), dtype] = program
                self.tables.append(Table(program, dtypes, members, states))
        except (Untraceable, NoCompiler) as error:
            self.tables, self._eager = [], pairs
            if group["fused"]:
                _warn(f"fused=True runs eagerly: {error}")
        if group["fused"] and self._eager and self._eager is not pairs:
            param = self._eager[0][0]
            _warn(
                f"fused=True steps some parameters eagerly, such as one of {param.dtype} and shape "
                f"{tuple(param.shape)} on {param.device}: it needs floating-point parameters on the CPU, their "
                "elements in a row in memory"
            )


class Table:
    """Parameters of one combination of dtypes: where they, their gradients and their state are in memory.

    Args:
        program: what a step computes.
        dtypes: of the parameters, their gradients and their state tensors, complex ones as real.
        members: the parameters, with their indices.
        states: the optimizer's state; what cannot be stepped where it is (another order in memory, a count of another
            type) is replaced in it.
    """

    def __init__(
        self, program: Program, dtypes: Sequence[torch.dtype], members: Indexed, states: Mapping[Tensor, Hyper]
    ) -> None:
        self.source = c_source(program, dtypes)
        self._kernel = load(self.source)
        self._params = [param for param, _ in members]
        self._locals = [local(param) for param in self._params]
        self._states = [states[param] for param in self._params]
        for param, state in zip(self._locals, self._states, strict=True):
            for name in program.names[1:]:
                if not hasattr(state[name], "to_local") and not alike(state[name], param):
                    state[name] = torch.empty_like(param).copy_(state[name])
            for name in ("step", *program.scalars):
                state[name] = state[name].to("cpu", torch.float32)
        self._values = list(chain.from_iterable(map(dict.values, self._states)))
        names = (*program.names[1:], "step", *program.scalars)
        self._tensors = [
            tensor
            for param, state in zip(self._locals, self._states, strict=True)
            for tensor in (param, *(local(state[name]) for name in names))
        ]
        self._sharded = any(param is not own for param, own in zip(self._params, self._locals, strict=True))
        self._complex = self._params[0].is_complex()
        self._grad_dtype = self._params[0].grad.dtype  # type: ignore[union-attr]
        self._strides = [param.stride() for param in self._locals]
        views = [real(param) for param in self._locals]
        self._sizes = array("q", [view.numel() for view in views])
        self._indices = array("q", [index for _, index in members])
        self._layouts = [layout(view, *shard(param)) for param, view in zip(self._params, views, strict=True)]
        self._layout_pointers = array("q", [_address(numbers) for numbers in self._layouts])
        self._large = sum(self._sizes) > _ALONE

    def holds(self, states: Mapping[Tensor, Hyper]) -> bool:
        """Whether the table's tensors still are the parameters' state, and the gradients of the dtype they were."""
        current = [states[param] for param in self._params]
        values = list(chain.from_iterable(map(dict.values, current)))
        return (
            not self._sharded
            and all(map(is_, current, self._states))
            and len(values) == len(self._values)
            and all(map(is_, values, self._values))
            and {grad.dtype for grad in self._grads()} == {self._grad_dtype}
        )

    def step(self, reals: "array[float]", wholes: "array[int]") -> None:
        """Advance all parameters by one step, with the numbers of the program's `reals` and `wholes`."""
        grads = self._grads()
        if self._complex or any(map(Tensor.is_neg, grads)):
            grads = [grad.resolve_conj().resolve_neg() for grad in grads]
        if list(map(Tensor.stride, grads)) != self._strides:
            grads = [
                grad if alike(grad, param) else torch.empty_like(param).copy_(grad)
                for grad, param in zip(grads, self._locals, strict=True)
            ]
        table = array("q", map(Tensor.data_ptr, self._tensors))
        gradients = array("q", map(Tensor.data_ptr, grads))
        failed = self._kernel(
            len(grads),
            torch.get_num_threads() if self._large else 1,
            *map(_address, (table, gradients, self._sizes, self._indices, self._layout_pointers, reals, wholes)),
        )
        if failed:
            raise MemoryError(f"there is no memory for the step of {len(grads)} parameters")
        # Written behind autograd's back: a backward pass that still needs the old values must be told.
        increment_version(self._params)

    def _grads(self) -> list[Tensor]:
        return [local(param.grad) for param in self._params]  # type: ignore[arg-type]


def plain(stage: Stage, name: str, value: Any) -> Any:
    """A hyper-parameter in Python's own types: an int for counts and seeds only, a float for any other number."""
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, (tuple, list)):
        return tuple(plain(stage, name, part) for part in value)
    whole = isinstance(value, bool) or stage.ranges.get(name, "").startswith("int")
    return float(value) if isinstance(value, int) and not whole else value


def _address(numbers: "array[Any]") -> int:
    return numbers.buffer_info()[0]


_warned: set[str] = set()


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
