"""A chain's step on one coordinate as a list of operations, traced from the stages' own functions.

The stages are pure functions of tensors. Called once with tensors that have a dtype but no values, under a mode
that writes down each operation, they leave a `Program`: the same mathematics, ready to be written as one kernel.
Whatever may change from step to step (the count, the learning rate, every hyper-parameter that is a number, the
seeds) is an input of the program; whatever decides its form (which stages apply, flags, names) is part of it.
"""

import linecache
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..eager import Active, Hyper, Part, advance

_SIZE = (2,)  # of the tensors that stand for a parameter and its state: any size other than that of a number


@dataclass(frozen=True, eq=False)
class Value:
    """An input of the program or the result of an operation: one per coordinate, or one per parameter."""

    name: str
    dtype: torch.dtype
    elementwise: bool


@dataclass(frozen=True)
class Operation:
    """One operation of the trace; arguments are values of the program, Python numbers or None."""

    name: str
    args: tuple[Any, ...]
    result: Value
    equation: str  # the comment above the line that made it, or else the line


@dataclass(frozen=True)
class Program:
    """What one step computes; `stores` says where its results go."""

    names: tuple[str, ...]  # of the elementwise tensors that are read and written, the parameter first
    scalars: tuple[str, ...]  # of the numbers remembered per parameter besides the step
    reals: tuple[str, ...]  # numbers handed over at every step, as double …
    wholes: tuple[str, ...]  # … and as 64-bit integers
    operations: tuple[Operation, ...]
    stores: tuple[tuple[str, Any], ...]  # (name of a tensor or scalar, value)


class Untraceable(Exception):
    """A stage does what cannot be traced: it looks at a value, or uses something other than tensors."""


def numbers(active: Active, known: Hyper) -> Iterator[tuple[str, int | float]]:
    """The numbers that a step is given, each with its name, in the order in which a program expects them."""
    found: list[tuple[str, int | float]] = []
    for name, value in known.items():
        _mapped(lambda *pair: found.append(pair), name, value)
    for stage, hyper, _ in active:
        for name, value in hyper.items():
            _mapped(lambda *pair: found.append(pair), stage.key(name), value)
    yield from found


def form(active: Active, known: Hyper) -> tuple[Any, ...]:
    """All that decides a program but its dtype: chains of one form share it."""
    return (
        tuple((name, _form(value)) for name, value in known.items()),
        tuple(
            (
                type(stage),
                tuple((name, repr(value)) for name, value in vars(stage).items() if name != "hyper"),
                tuple((name, _form(value)) for name, value in hyper.items()),
                names,
            )
            for stage, hyper, names in active
        ),
    )


def trace(active: Active, known: Hyper, dtype: torch.dtype) -> Program:
    """Trace a chain's step on parameters whose arithmetic is done in `dtype`.

    Args:
        active: the stages that apply, with their hyper-parameters.
        known: what else the stages' signatures name and all parameters of a group share: ``lr``, ``schedule``,
            ``maximize``, ``stored`` and what `Stage.before` returned. Numbers in both are Python's: a float where
            it is not a count, as their type decides the program's.

    Raises:
        Untraceable: a stage needs to see a value, or uses an operation on something other than tensors.
    """
    recorder = _Recorder()
    reals: list[str] = []
    wholes: list[str] = []

    def given(name: str, value: int | float) -> Tensor:
        whole = isinstance(value, int)
        (wholes if whole else reals).append(name)
        return recorder.input(name, torch.int64 if whole else torch.float64)

    remembered = tuple(name for part in active for name in part.names)
    scalars = tuple(name for part in active for name in part.stage.scalars)
    with torch.no_grad():
        group = {name: _mapped(given, name, value) for name, value in known.items()}
        symbolic = [
            Part(stage, {name: _mapped(given, stage.key(name), value) for name, value in hyper.items()}, names)
            for stage, hyper, names in active
        ]
        step = recorder.input("step", torch.float64)
        memory = {name: recorder.input(name, torch.float64) for name in scalars}
        own: Hyper = {"index": recorder.input("index", torch.int64)}
        own["coordinate"] = recorder.input("coordinate", torch.int64, _SIZE)
        param, grad = recorder.input("param", dtype, _SIZE), recorder.input("grad", dtype, _SIZE)
        state = {name: recorder.input(name, dtype, _SIZE) for name in remembered}
        try:
            with recorder:
                for stage, hyper, _ in symbolic:
                    memory |= stage.count(memory, step, hyper)
                x, new = advance(symbolic, param, grad, state, {**group, **own, **memory, "step": step})
        except Exception as error:
            raise Untraceable(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        stores = {"param": x} | {name: new[name] for name in remembered} | {name: memory[name] for name in scalars}
        return Program(
            names=("param", *remembered),
            scalars=scalars,
            reals=tuple(reals),
            wholes=tuple(wholes),
            operations=tuple(recorder.operations),
            stores=tuple((name, recorder.value(tensor)) for name, tensor in stores.items()),
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mapped(function: Callable[[str, int | float], Any], name: str, value: Any) -> Any:
    """A hyper-parameter with `function` of each number in it: of itself, or of each in a tuple."""
    if isinstance(value, tuple):
        return tuple(_mapped(function, f"{name}{i + 1}", part) for i, part in enumerate(value))
    return function(name, value) if _is_number(value) else value


def _form(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_form, value))
    return type(value) if _is_number(value) else value


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down each operation on tensors of the `meta` device, which have a dtype and a size only."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self._made: dict[Any, Tensor] = {}
        self._values: dict[int, tuple[Tensor, Value]] = {}  # the tensors are kept: their ids must stay theirs

    def input(self, name: str, dtype: torch.dtype, size: Sequence[int] = ()) -> Tensor:
        tensor = torch.empty(tuple(size), dtype=dtype, device="meta")
        self._values[id(tensor)] = tensor, Value(name, dtype, bool(size))
        return tensor

    def value(self, argument: Any) -> Any:
        """The program's name for an argument."""
        if isinstance(argument, Tensor):
            if id(argument) in self._values:
                return self._values[id(argument)][1]
            if argument.device.type == "meta" or argument.numel() != 1:
                raise Untraceable(f"a tensor of shape {tuple(argument.shape)} comes from elsewhere")
            return argument.item()  # a Python number that torch has wrapped
        if argument is None or isinstance(argument, (int, float)):
            return argument
        raise Untraceable(f"{argument!r} is not a number")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or result.device.type != "meta":
            return result
        as_type = name == "view" and isinstance(args[1], torch.dtype)  # the same bits
        if as_type or name in ("_to_copy", "zeros_like", "ones_like", "empty_like"):
            arguments: tuple[Any, ...] = (self.value(args[0]),)
        elif name in ("full_like", "scalar_tensor", "full"):
            arguments = (self.value(args[0] if name == "scalar_tensor" else args[1]),)
        else:
            # All by position, as the operation's own signature orders them; what is left to a default is not there.
            given = {a.name: kwargs[a.name] for a in func._schema.arguments if a.name in kwargs}
            if name == "clamp":
                given = {side: given.get(side) for side in ("min", "max")} if len(args) == 1 else given
            arguments = tuple(map(self.value, (*args, *given.values())))
        known = (name, result.dtype, tuple((type(a), a) for a in arguments))
        if known in self._made:  # the same operation on the same values has the same result
            return self._made[known]
        self._made[known] = result
        value = Value(f"x{len(self.operations) + 1}", result.dtype, result.dim() > 0)
        self.operations.append(Operation(name, arguments, value, _equation()))
        self._values[id(result)] = result, value
        return result


def _equation() -> str:
    """The comment above the line of a stage that is being run, or else the line."""
    frame = sys._getframe(1)
    while frame and (frame.f_code.co_filename == __file__ or not _is_rule(frame.f_code.co_filename)):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    lines = [linecache.getline(frame.f_code.co_filename, frame.f_lineno - back).strip() for back in (0, 1)]
    return (lines[1] if lines[1].startswith("#") else lines[0]).lstrip("# ")


def _is_rule(filename: str) -> bool:
    # torch's own Python code runs between a rule and its operations.
    return not Path(filename).is_relative_to(Path(torch.__file__).parent)
