"""A chain's step on one coordinate as passes over memory, traced from the stages' own functions.

The stages are pure functions of tensors. Called once with tensors that have a dtype but no values, under a mode
that writes down each operation, they leave a `Program`: the same mathematics, ready to be written as one kernel.
Whatever may change from step to step (the count, the learning rate, every hyper-parameter that is a number, the
seeds) is an input of the program; whatever decides its form (which stages apply, flags, names) is part of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..eager import WHOLE, Active, Hyper, Part, Span, advance
from ..stage import Stage
from .recorder import SIZE, Operation, Recorder, Untraceable, Value


@dataclass(frozen=True)
class Program:
    """What one pass over memory computes: what it stores, or the terms whose sums it returns."""

    names: tuple[str, ...]  # of the elementwise tensors that are read and written, the parameter first
    scalars: tuple[str, ...]  # of the numbers remembered per parameter besides the step
    reals: tuple[str, ...]  # numbers handed over at every step, as double …
    wholes: tuple[str, ...]  # … and as 64-bit integers
    operations: tuple[Operation, ...]
    stores: tuple[tuple[str, Any], ...]  # (name of a tensor or scalar, value)
    sums: tuple[str, ...] = ()  # numbers given per parameter: the sums of earlier passes
    terms: tuple[tuple[str, Any], ...] = ()  # (name, value of a coordinate) of what is summed
    width: int = 0  # of the sums of all passes
    counts: bool = True  # whether this pass is a step's first one, which counts it
    stage: Stage | None = (
        None  # of the terms, or behind whose `matrix` the next pass begins; None for a step's last
    )


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


def trace(active: Active, known: Hyper, dtype: torch.dtype) -> tuple[Program, ...]:
    """Trace a chain's step on parameters whose arithmetic is done in `dtype`: its passes, in order.

    Args:
        active: the stages that apply, with their hyper-parameters.
        known: what else the stages' signatures name and all parameters of a group share: ``lr``, ``schedule``,
            ``maximize``, ``stored`` and what `Stage.before` returned; the whole optimizer's scalars, and under
            their names with `SETTLED` in front, what they become. Numbers are Python's: a float where it is not a
            count, as their type decides the program's.

    Raises:
        Untraceable: a stage needs to see a value, or uses an operation on something other than tensors.
    """
    tracing = _Tracing(active, known, dtype)
    with torch.no_grad():
        try:
            with tracing.recorder:
                programs = list(tracing.programs())
                return tuple(replace(program, width=len(programs[-1].sums)) for program in programs)
        except Exception as error:
            raise Untraceable(f"{type(error).__name__}: {error}".splitlines()[0]) from error


SETTLED = "settled_"


def own_scalars(active: Active) -> tuple[str, ...]:
    """The scalars that each parameter has for itself."""
    return tuple(name for part in active if part.stage.reach != "optimizer" for name in part.stage.scalars)


class _Tracing:
    """A chain with a program's inputs in the place of its numbers and tensors."""

    def __init__(self, active: Active, known: Hyper, dtype: torch.dtype) -> None:
        self.recorder = Recorder()
        self._reals: list[str] = []
        self._wholes: list[str] = []
        self._sums: list[str] = []
        known = {name: _mapped(self._given, name, value) for name, value in known.items()}
        self._active = [
            Part(
                stage, {name: _mapped(self._given, stage.key(name), value) for name, value in hyper.items()}, names
            )
            for stage, hyper, names in active
        ]
        # What is on the way to the sums of one tensor is stored, so that less is read afterwards.
        self._stores_early = not any(part.stage.reach in ("optimizer", "matrix") for part in active)
        whole = any(part.stage.reach in ("tensor", "matrix")[not self._stores_early :] for part in active)
        self._names = (*(name for part in active for name in part.names), *([WHOLE] if whole else []))
        self._own = own_scalars(active)
        numbers = {name: self.recorder.input(name, torch.float64) for name in ("step", *self._own)}
        numbers["index"] = self.recorder.input("index", torch.int64)
        numbers["coordinate"] = self.recorder.input("coordinate", torch.int64, SIZE)
        self._known = known | numbers
        tensors = {name: self.recorder.input(name, dtype, SIZE) for name in ("param", "grad", *self._names)}
        self._tensors = tensors["param"], tensors["grad"], {name: tensors[name] for name in self._names}

    def _given(self, name: str, value: int | float) -> Tensor:
        whole = isinstance(value, int)
        (self._wholes if whole else self._reals).append(name)
        return self.recorder.input(name, torch.int64 if whole else torch.float64)

    def programs(self) -> Iterator[Program]:
        """The passes: one for each stage that asks for sums or a matrix, and the last."""
        known, span = dict(self._known), Span()
        for stage, hyper, _ in self._active:
            known |= stage.count(known, known["step"], hyper, known["lr"])
        for stage, hyper, _ in self._active:
            if stage.reach == "element":
                continue
            out, new = advance(self._active, *self._tensors, known, span._replace(until=stage))
            if stage.reach == "matrix":
                yield self._program(span, stage, self._stores(new | {WHOLE: out}, known))
                known |= {name: self._known[name] for name in self._own}  # which are stored now
                span = span._replace(since=stage)
                continue
            early = self._stores_early
            yield self._program(span, stage, self._stores(new, known) if early else {}, out)
            if early:
                known |= {name: self._known[name] for name in self._own}
                span = span._replace(since=stage)
            sums = {term: self._sum(f"{type(stage).__name__}_{term}") for term in out}
            span = span._replace(sums={**span.sums, stage: sums})
            if stage.reach == "optimizer":
                known |= {name: known[SETTLED + name] for name in stage.scalars}
            else:
                known |= stage.settle(known, sums, known["step"], known["lr"], hyper)
        x, new = advance(self._active, *self._tensors, known, span)
        yield self._program(span, None, {"param": x} | self._stores(new, known))

    def _sum(self, name: str) -> Tensor:
        self._sums.append(name)
        return self.recorder.input(name, torch.float64)

    def _stores(self, new: Mapping[str, Tensor], known: Hyper) -> dict[str, Tensor]:
        return {name: new[name] for name in self._names} | {name: known[name] for name in self._own}

    def _program(
        self,
        span: Span,
        stage: Stage | None,
        stores: Mapping[str, Tensor] = MappingProxyType({}),
        terms: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Program:
        value = self.recorder.value
        results = [[(name, value(tensor)) for name, tensor in each.items()] for each in (stores, terms)]
        return Program(
            names=("param", *self._names),
            scalars=self._own,
            reals=tuple(self._reals),
            wholes=tuple(self._wholes),
            operations=_needed(self.recorder.operations, [value for each in results for _, value in each]),
            stores=tuple(results[0]),
            sums=tuple(self._sums),
            terms=tuple(results[1]),
            counts=span == Span(),
            stage=stage,
        )


def _needed(operations: Sequence[Operation], results: Sequence[Any]) -> tuple[Operation, ...]:
    """The operations that results depend on, in their order."""
    wanted, found = {value for value in results if isinstance(value, Value)}, []
    for operation in reversed(operations):
        if operation.result in wanted:
            found.append(operation)
            wanted |= {value for value in operation.args if isinstance(value, Value)}
    return tuple(reversed(found))


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
