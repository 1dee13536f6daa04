"""One pass over memory: the step of a whole parameter group as one call of one compiled function.

`tracing` turns a chain's stages into a list of operations, `c_source` writes it as C, `compiler` makes a function
of that, and `table` hands it the tensors, where they are. Nothing is copied or laid out anew, so that parameters,
gradients, `state_dict`, `zero_grad(set_to_none=True)` and data-parallel training know nothing of it.
"""

import warnings
from array import array
from collections.abc import Iterable, Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..execution import Active, Hyper, Part, local, real
from ..stage import Stage
from ..state import begin, check_dense, schedule, with_gradients
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
        self._params: Sequence[Tensor] = ()
        self._without: Sequence[Tensor] = ()  # those of them without a gradient
        self._eager: Indexed = {}
        self._reals, self._wholes = array("d"), array("q")

    def prepare(
        self, indices: Sequence[int], active: Active, group: Hyper, shared: Hyper, states: Mapping[Tensor, Hyper]
    ) -> Indexed:
        """Make ready to `run`, moving nothing, and return the parameters that no kernel can advance.

        Args:
            indices: of the group's parameters, by which their draws differ.
            active, group, shared: as for an eager step.
            states: the optimizer's state.

        Raises:
            RuntimeError: a gradient is sparse, or it or a state tensor is not of its parameter's shape.
        """
        active = [
            Part(stage, {name: plain(stage, name, value) for name, value in hyper.items()}, names)
            for stage, hyper, names in active
        ]
        known = {"lr": float(group["lr"]), "schedule": float(schedule(group)), "maximize": group["maximize"]}
        known |= {name: float(value) for name, value in shared.items()}
        key = form(active, known)
        if key != self._key or not self._holds(group["params"], states):
            self._key, self._params, self.tables, self._eager = None, list(group["params"]), [], {}
            self._without = [param for param in self._params if param.grad is None]
            self._lay_out(with_gradients(self._params, indices), active, known, group, states)
            self._key = key
            for table in self.tables:
                table.look()
        given = [value for _, value in numbers(active, known)]
        self._reals = array("d", [value for value in given if isinstance(value, float)])
        self._wholes = array("q", [value for value in given if isinstance(value, int)])
        return self._eager

    def run(self) -> None:
        """Advance the parameters by one step."""
        for table in self.tables:
            table.step(self._reals, self._wholes)

    @property
    def compiles(self) -> bool:
        """False once it was found that no kernel can advance these parameters."""
        return bool(self.tables) or not self._eager

    def _holds(self, params: Sequence[Tensor], states: Mapping[Tensor, Hyper]) -> bool:
        return (
            len(params) == len(self._params)
            and all(map(is_, params, self._params))
            and all([table.holds(states) for table in self.tables])
            and all(param.grad is None for param in self._without)
            and all(param.grad is not None for param in self._eager.values())
        )

    def _lay_out(self, params: Indexed, active: Active, known: Hyper, group: Hyper, states: Any) -> None:
        """Sort the parameters into tables, one per combination of dtypes, and complex ones by themselves."""
        check_dense(params.values())
        by_kind: dict[tuple[bool, tuple[torch.dtype, ...]], Indexed] = {}
        names = [name for part in active for name in part.names]
        for index, param in params.items():
            if not supported(param):
                self._eager[index] = param
                continue
            begin(states[param], param, index, active, group)
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
    if hasattr(value, "item"):
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
