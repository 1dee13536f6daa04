"""One pass over memory: the step of a whole parameter group as one call of one compiled function.

`trace` turns a chain's stages into a list of operations; `expressions` writes them, `c` and `cuda` what is around
them; `compiler` and `nvrtc` make functions of that, and a table hands them the tensors, where they are: `c_table`
the CPU's, `cuda_table` a GPU's. Nothing is copied or laid out anew, so that parameters, gradients, `state_dict`,
`zero_grad(set_to_none=True)` and data-parallel training know nothing of it.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..eager import Active, Hyper, Part, kept
from ..execution import _common
from ..identity import Indexed
from ..memory import addressable, owns_memory
from ..stage import Stage
from ..state import begin, rate, schedule
from ..tensors import Gradients, local, real
from .c_table import CTable
from .compiler import NoCompiler
from .cuda_table import CudaTable
from .kernel import STORED
from .layout import in_memory
from .recorder import Untraceable
from .table import Table
from .trace import SETTLED, Program, form, trace

# With fewer elements in all, a compiler is not worth the wait: a thousand eager steps take less.
WORTH_IT = 1 << 16
# Where it is known that it pays. (What is written for GPUs has not run on one yet: it is for those who ask for it.)
PAYS = ("cpu",)

# By the type of a device, the tables of the tensors that are there.
TABLES: dict[str, type[Table]] = {"cpu": CTable, "cuda": CudaTable}

# With the stages, so that no other one has an address that is part of a key.
_programs: dict[Any, tuple[tuple[Program, ...], Active]] = {}


def worth_it(params: Iterable[Tensor]) -> bool | None:
    """Whether ``fused=None`` compiles the step of these parameters; None while a lazy one has no size."""
    params = list(params)
    if any(map(is_lazy, params)):
        return None
    pays = sum(p.numel() for p in params) >= WORTH_IT and all(p.device.type in PAYS for p in params)
    return pays and all(map(supported, params)) and not missing(params)


def supported(param: Tensor) -> bool:
    """Whether a kernel can step it: on a device that has some, of a dtype that they know, in a row in memory."""
    if type(param) not in (Tensor, nn.Parameter) and not hasattr(param, "to_local"):
        return False
    own = local(param)
    return (
        own.device.type in TABLES and owns_memory(own) and real(own).dtype in STORED and in_memory(own) is not None
    )


def missing(params: Iterable[Tensor]) -> str:
    """Why nothing compiles for one of the devices on which parameters are; empty where it does for all of them."""
    for device in dict.fromkeys(param.device for param in params):
        kind = TABLES.get(device.type)
        if reason := kind.missing(device) if kind else f"there are no kernels for {device.type}":
            return reason
    return ""


def execution_of(
    groups: Sequence[Hyper], steps: Mapping[int, "FusedStep"], compiles: Callable[[Hyper], bool]
) -> str:
    """How groups are stepped, and what keeps one from being compiled that could be."""
    kinds, why = set(), ""
    for i, group in enumerate(groups):
        step, reason = steps.get(i), ""
        if group["fused"] or group["fused"] is group["foreach"] is None:
            reason = step.why if step else missing(group["params"])
        compiled = compiles(group) and (step.compiles if step else not reason)
        kinds.add("compiled" if compiled else "eager")
        why = why or ("" if compiled else reason)
    return " and ".join(sorted(kinds)) + (f" ({why.splitlines()[0]})" if why else "")


class FusedStep:
    """The compiled step of one parameter group: its tables, made anew whenever a tensor in them is replaced."""

    def __init__(self) -> None:
        self.tables: list[Table] = []
        self._key: Any = None
        self._params: Sequence[Tensor] = ()
        self._without: Sequence[Tensor] = ()  # those of them without a gradient
        self.members: Indexed = {}  # those with one
        self.eager: Indexed = {}  # those of them that no kernel can advance
        self.why = ""  # if that is so of all
        self._captured: list[Table] = []  # to whose memory graphs refer

    def prepare(
        self,
        members: Indexed,
        active: Active,
        group: Hyper,
        shared: Hyper,
        states: Mapping[Tensor, Hyper],
        grads: Gradients,
        tied: frozenset[int],
        held: bool,
    ) -> Indexed:
        """Make the tables ready for a step, moving nothing, and return the parameters that no kernel can advance.

        Args:
            members: those of the group's parameters that have a gradient.
            active, group, shared: as for an eager step.
            states: the optimizer's state.
            grads: the step's gradients, all of which were checked.
            tied: the ids of the parameters that can only be stepped one after the other.
            held: what `holds` has said.
        """
        active = [
            Part(stage, {name: plain(stage, name, value) for name, value in hyper.items()}, names)
            for stage, hyper, names in active
        ]
        asked = any("schedule" in part.stage.needs for part in active)
        known = {"lr": _value(rate(group)), "schedule": _value(schedule(group)) if asked else 1.0}
        known |= {"maximize": group["maximize"], **{name: _value(value) for name, value in shared.items()}}
        # The whole optimizer's scalars, before and after they are settled: see `execution`.
        scalars = [name for part in active if part.stage.reach == "optimizer" for name in part.stage.scalars]
        known |= {prefix + name: 0.0 for prefix in ("", SETTLED) for name in scalars}
        at_hand = {name: 0.0 if isinstance(value, Tensor) else value for name, value in known.items()}
        key = form(active, at_hand), tied
        if key != self._key or not held:
            self._key, self._params, self.members = None, list(group["params"]), members
            self._captured += [table for table in self.tables if table.captured]
            self.tables, self.eager, self.why = [], {}, ""
            self._without = [param for param in self._params if param.grad is None]
            self._lay_out(members, active, at_hand, group, states, grads, tied)
            self._key = key
            for table in self.tables:
                table.look(grads)
        for table in self.tables:
            table.begin(kept(active, table.stored), {**known, "stored": table.stored})
            if table.captured and not group["capturable"]:
                raise RuntimeError("a step is captured into a graph only with capturable=True")
        return self.eager

    @property
    def compiles(self) -> bool:
        """False once it was found that no kernel can advance these parameters."""
        return bool(self.tables) or not self.eager

    @property
    def scales(self) -> bool:
        """Whether all that was last stepped is stepped by kernels that read a GradScaler's numbers themselves."""
        return self._key is not None and not self.eager and all(table.scales for table in self.tables)

    def holds(self, params: Sequence[Tensor], states: Mapping[Tensor, Hyper], grads: Gradients) -> bool:
        """Whether all tensors are those that were laid out; it takes the gradients of now for the step."""
        return (
            self._key is not None
            and len(params) == len(self._params)
            and all(map(is_, params, self._params))
            and all([table.holds(states, grads) for table in self.tables])
            and all(param.grad is None for param in self._without)
            and all(param.grad is not None for param in self.eager.values())
        )

    def _lay_out(
        self,
        params: Indexed,
        active: Active,
        known: Hyper,
        group: Hyper,
        states: Any,
        grads: Gradients,
        tied: frozenset[int],
    ) -> None:
        """Sort the parameters into tables, one per combination of dtypes, and complex ones by themselves."""
        by_kind: dict[Any, Indexed] = {}
        for index, param in params.items():
            tensors = [param, grads[param]]
            compiles = id(param) not in tied and supported(param) and not param.grad.is_sparse  # type: ignore[union-attr]
            if compiles:
                parts = kept(active, param.dtype)
                begin(states[param], param, index, parts, group)
                tensors += [states[param][name] for part in parts for name in part.names]
            if compiles and all(addressable(each, param.device) for each in map(local, tensors)):
                kind = param.device, param.dtype, tuple(real(tensor).dtype for tensor in tensors)
                by_kind.setdefault(kind, {})[index] = param
            else:
                self.eager[index] = param
        for device, *_ in list(by_kind)[:1]:
            _share(active, states, device)
        try:
            for (device, stored, dtypes), members in by_kind.items():
                dtype = torch.float64 if dtypes[0] == torch.float64 else torch.float32
                parts, given = kept(active, stored), {**known, "stored": stored}
                programs, _ = _programs.get((form(parts, given), dtype)) or (trace(parts, given, dtype), active)
                _programs[form(parts, given), dtype] = programs, active
                self.tables.append(TABLES[device.type](programs, dtypes, members, states, grads))
        except (Untraceable, NoCompiler) as error:
            self.tables, self.eager, self.why = [], params, str(error)
        # (Nothing is faster for a sparse gradient.)
        slow = [param for param in self.eager.values() if not param.grad.is_sparse]  # type: ignore[union-attr]
        if slow and not self.tables:
            self.why = self.why or missing(slow)
        if group["fused"] and slow:
            _warn(
                f"fused=True runs eagerly: {self.why}"
                if self.why
                else f"fused=True steps some parameters eagerly, such as one of {slow[0].dtype} and shape "
                f"{tuple(slow[0].shape)} on {slow[0].device}: it needs floating-point parameters on the CPU or a "
                "GPU with NVRTC, their elements in a row in memory that no other one has, and plain tensors for "
                "gradients and state"
            )


def _share(active: Active, states: Mapping[Tensor, Hyper], device: torch.device) -> None:
    """Have the whole optimizer's scalars on a device, where a step reads and writes them without waiting for it."""
    for stage in [part.stage for part in active if part.stage.reach == "optimizer"]:
        for name, scalar in _common(stage, states).items():
            there = scalar.to(device) if scalar.device.type == "cpu" else scalar
            for state in states.values():
                if name in state:
                    state[name] = there


def _value(value: Any) -> Any:
    """A number as Python's, or where reading it would wait for an accelerator, its tensor."""
    return value if isinstance(value, Tensor) and value.device.type != "cpu" else float(value)


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
