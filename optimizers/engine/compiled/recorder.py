"""Operations on tensors without values, written down as they are called."""

import linecache
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SIZE = (2,)  # of the tensors that stand for a parameter and its state: any size other than that of a number


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


class Untraceable(Exception):
    """A stage does what cannot be traced: it looks at a value, or uses something other than tensors."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
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
        if not isinstance(result, Tensor) or result.device.type != "meta" or name == "empty":  # (an input)
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
