"""One pass over memory: the step of a whole parameter group as one call of one compiled function.

`tracing` turns a chain's stages into a list of operations, `c_source` writes it as C, `compiler` makes a function
of that, and `table` hands it the tensors, where they are. Nothing is copied or laid out anew, so that parameters,
gradients, `state_dict`, `zero_grad(set_to_none=True)` and data-parallel training know nothing of it.
"""

import warnings
from array import array
from collections.abc import Iterable, Mapping
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..execution import Active, Hyper, Part, local, real
from ..stage import Stage
from ..state import begin, schedule
from .c_source import STORED
from .compiler import NoCompiler, find
from .layout import in_memory
from .table import Indexed, Table, check_alike
from .tracing import Program, Untraceable, form, numbers, trace

# With fewer elements in all, a compiler is not worth the wait: a thousand eager steps take less.
WORTH_IT = 1 << 16

_programs: dict[Any, Program] = {}


def worth_it(params: Iterable[Tensor]) -> bool | None:
    """Whether ``fused=None`` compiles the step of these parameters; None while a lazy one has no size."""
    params = list(params)
    if any(map(is_lazy, params)):
        return None
    return sum(p.numel() for p in params) >= WORTH_IT and all(map(supported, params)) and find() is not None


def supported(param: Tensor) -> bool:
    """Whether a kernel can step this parameter: on the CPU, of a dtype that C has, in a row in memory."""
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
        self._params: Indexed = {}
        self._eager: Indexed = {}

    def __call__(
        self, params: Indexed, active: Active, group: Hyper, shared: Hyper, states: Mapping[Tensor, Hyper]
    ) -> Indexed:
        """Advance these parameters, and return those that no kernel can.

        Args:
            params: those of the group's that have a gradient, by their indices.
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
        grads = [table.grads() for table in self.tables]
        if key != self._key or not self._holds(params, grads, states):
            self._key, self._params, self.tables, self._eager = None, params, [], {}
            self._lay_out(params, active, known, group, states)
            self._key = key
            grads = [table.grads() for table in self.tables]
        given = [value for _, value in numbers(active, known)]
        reals = array("d", [value for value in given if isinstance(value, float)])
        wholes = array("q", [value for value in given if isinstance(value, int)])
        for table, its in zip(self.tables, grads, strict=True):
            table.step(its, reals, wholes)
        return self._eager

    def _holds(self, params: Indexed, grads: list[list[Tensor]], states: Mapping[Tensor, Hyper]) -> bool:
        return (
            params.keys() == self._params.keys()
            and all(map(is_, params.values(), self._params.values()))
            and all(table.holds(its, states) for table, its in zip(self.tables, grads, strict=True))
        )

    def _lay_out(self, params: Indexed, active: Active, known: Hyper, group: Hyper, states: Any) -> None:
        """Sort the parameters into tables, one per combination of dtypes, and complex ones by themselves."""
        by_kind: dict[tuple[bool, tuple[torch.dtype, ...]], Indexed] = {}
        names = [name for part in active for name in part.names]
        for index, param in params.items():
            if not supported(param):
                self._eager[index] = param
                continue
            begin(states[param], param, active, group)
            tensors = (param, param.grad, *(states[param][name] for name in names))
            check_alike(param, dict(zip(("its gradient", *names), tensors[1:], strict=True)))
            kind = param.is_complex(), tuple(real(t).dtype for t in tensors)
            by_kind.setdefault(kind, {})[index] = param
        try:
            for (_, dtypes), members in by_kind.items():
                dtype = torch.float64 if dtypes[0] == torch.float64 else torch.float32
                program = _programs.get((form(active, known), dtype)) or trace(active, known, dtype)
                _programs[form(active, known), dtype] = program
                self.tables.append(Table(program, dtypes, members, states))
        except (Untraceable, NoCompiler) as error:
            self.tables, self._eager = [], params
            if group["fused"]:
                _warn(f"fused=True runs eagerly: {error}")
        if group["fused"] and self._eager and self._eager is not params:
            param = next(iter(self._eager.values()))
            _warn(
                f"fused=True steps some parameters eagerly, such as one of {param.dtype} and shape "
                f"{tuple(param.shape)} on {param.device}: it needs floating-point parameters on the CPU, their "
                "elements in a row in memory"
            )


def plain(stage: Stage, name: str, value: Any) -> Any:
    """A hyper-parameter in Python's own types: an int for counts and seeds only, a float for any other number."""
    if isinstance(value, Tensor) or (hasattr(value, "item") and not isinstance(value, (tuple, list))):
        value = value.item()  # of torch's or of NumPy's
    if isinstance(value, (tuple, list)):
        return tuple(plain(stage, name, part) for part in value)
    whole = isinstance(value, bool) or stage.ranges.get(name, "").startswith("int")
    return float(value) if isinstance(value, int) and not whole else value


_warned: set[str] = set()


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
