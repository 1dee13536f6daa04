"""The table of tensors that kernels are given: parameters of one kind, their gradients and their state.

What is the same wherever kernels run stands here; `c_table` and `cuda_table` say how theirs are given their rows.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..eager import WHOLE, Active, Hyper
from ..execution import Totals, apply_matrix
from ..identity import Indexed
from ..memory import addressable, resolved
from ..stage import Stage
from ..tensors import Gradients, local, real
from .layout import alike
from .trace import Program


class Table:
    """Parameters of one combination of dtypes on one device: where they, their gradients and their state are.

    A step is a call of `begin` and those of a worker (see `execution`), each a pass over memory.

    Args:
        programs: what a step computes, pass by pass.
        dtypes: of the parameters, their gradients and their state tensors, complex ones as real.
        members: the parameters, by their indices.
        grads: the step's gradients.
        states: the optimizer's state; in it are replaced the counts of steps, by views of one piece of memory, and
            what cannot be stepped as it is: tensors in another order in memory than their parameter's, other
            numbers of another type or elsewhere.
    """

    captured = False  # whether a graph has a step of it, so that its memory must outlive the table's use
    _sums: Tensor  # of a step, by row: those of all passes

    def __init__(
        self,
        programs: Sequence[Program],
        dtypes: Sequence[torch.dtype],
        members: Indexed,
        states: Mapping[Tensor, Hyper],
        grads: Gradients,
    ) -> None:
        names, scalars = programs[0].names[1:], programs[0].scalars
        self._whole = names.index(WHOLE) + 1 if WHOLE in names else None  # its place among a row's tensors
        self._wide = torch.promote_types(dtypes[0], torch.float32)
        if self._whole is not None:
            dtypes, names = (*dtypes, self._wide), names[:-1]
        self._programs = programs
        sources = [self._write(program, dtypes) for program in programs]
        self.source = "\n".join(sources)
        self._functions = list(map(self._load, programs, sources))
        self._params = list(members.values())
        self.stored = self._params[0].dtype
        self._locals = [local(param) for param in self._params]
        self._states = [states[param] for param in self._params]
        for param, own, state in zip(self._params, self._locals, self._states, strict=True):
            for name in names:
                if not alike(local(state[name]), own):
                    state[name] = torch.empty_like(param.detach(), dtype=state[name].dtype).copy_(state[name])
        self._count_place = self._gather(scalars)
        # Known once all have made their first step, which begins, and may replace, what they remember.
        self._whole_state, self._all_states, self._values = states, list[Hyper](), list[Any]()
        self._names = *names, *scalars
        self._tensors = self._now()
        self._sharded = any(param is not own for param, own in zip(self._params, self._locals, strict=True))
        self._complex = self._params[0].is_complex()
        self._grad_dtype = grads[self._params[0]].dtype
        # What the kernel takes for granted of the tensors, and the signs by which a step sees that it may not.
        self._forms = list(map(_form, self._tensors))
        self._pointers = list(map(Tensor.data_ptr, self._tensors))
        self._row = 1 + len(names) + len(scalars)
        self._strides = [param.stride() for param in self._locals]
        self._grads: list[Any] = []  # from `look` to `step`
        self._grad_pointers: list[int] = []
        self._usual = False  # whether they can be stepped as they are
        self._guard = self._guard_grads()
        self._views = [real(param) for param in self._locals]

    # ------------------------------------------------------------------ what differs from home to home

    @classmethod
    def missing(cls, device: torch.device) -> str:
        """Why nothing can be compiled for a device; empty where it can."""
        raise NotImplementedError

    def _write(self, program: Program, dtypes: Sequence[torch.dtype]) -> str:
        """The text of a pass."""
        raise NotImplementedError

    def _load(self, program: Program, source: str) -> Any:
        """What the text of a pass compiles to."""
        raise NotImplementedError

    def _gather(self, scalars: Sequence[str]) -> int:
        """Put counts into one piece of memory, whose address it returns, and scalars where kernels read them."""
        raise NotImplementedError

    def kernel(self, function: Any, rows: range) -> None:
        """A pass over some parameters: the compiled function alone."""
        raise NotImplementedError

    @property
    def step(self) -> Any:
        """The largest count."""
        raise NotImplementedError

    def know(self, scalars: Hyper, settled: bool) -> None:
        """Take the whole optimizer's scalars, as they were or as they are now."""
        raise NotImplementedError

    def _rooms(self) -> list[Tensor]:
        """What is handed from one part of a step to the next: by row, a tensor in the form of the parameter."""
        raise NotImplementedError

    def _number(self, state: Hyper, name: str) -> Any:
        """A scalar as a stage's `matrix` is given it."""
        raise NotImplementedError

    def _count(self, row: int) -> Any:
        """A row's count of steps, this one included, as a stage's `matrix` is given it."""
        raise NotImplementedError

    def _passes(self) -> None:
        """The passes that are left of a step."""
        raise NotImplementedError

    # ------------------------------------------------------------------ between two steps

    def _now(self) -> list[Tensor]:
        """The tensors that kernels read and write, row by row."""
        return [
            tensor
            for param, state in zip(self._params, self._states, strict=True)
            for tensor in (local(param), *(local(state[name]) for name in self._names))
        ]

    def look(self, grads: Gradients) -> None:
        """Take the gradients of now for the next step."""
        self._grads = list(map(attrgetter("grad"), self._params))
        self._usual = not grads and self._guard is not None and self._guard.check(*self._grads)
        if self._usual:
            self._grad_pointers = list(map(Tensor.data_ptr, self._grads))
            self._usual = all(self._grad_pointers)  # one that is 0 has lost its memory, or has no elements
        if not self._usual:
            self._grads = [None if param.grad is None else grads[param] for param in self._params]

    def holds(self, states: Mapping[Tensor, Hyper], grads: Gradients) -> bool:
        """Whether the table's tensors still are the parameters' state, in the form they had; the gradients too.

        It takes the gradients of now, as `look` does.
        """
        self.look(grads)
        # All of the optimizer's state is compared, in its order: looking each parameter up takes far longer.
        values = list(chain.from_iterable(map(dict.values, self._states)))
        return (
            len(states) == len(self._all_states)
            and all(map(is_, states.values(), self._all_states))
            and len(values) == len(self._values)
            and all(map(is_, values, self._values))
            and (self._usual or self._grads_hold())
            and self._forms_hold()
        )

    def _guard_grads(self) -> Any:
        """What tells gradients like those of now, if these can be stepped as they are.

        It compares all tensors' sizes, strides, dtypes and the like with known ones in one call, and is private to
        torch: without it a step of many small tensors takes a little longer.
        """
        try:
            from torch._C._dynamo.guards import TensorGuards
        except ImportError:
            return None
        grads: list[Any] = [param.grad for param in self._params]
        usual = not self._sharded and not self._complex and not any(grad.is_neg() for grad in grads)
        if usual and [grad.stride() for grad in grads] == self._strides:
            return TensorGuards(*grads, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        return None

    def _grads_hold(self) -> bool:
        return all(
            grad is not None
            and addressable(local(grad), param.device)
            and grad.dtype == self._grad_dtype
            and local(grad).shape == param.shape
            for grad, param in zip(self._grads, self._locals, strict=True)
        )

    def _forms_hold(self) -> bool:
        """Whether each tensor still has its shape, order in memory, dtype and device: `.data` may be replaced.

        To ask all of them takes longer than a step of small ones. Whoever replaces a tensor's memory moves it, or
        changes its gradient's strides or size; and whoever replaces a count's also replaces others'.
        """
        if self._states[0]["step"].data_ptr() != self._count_place:
            return False
        if self._sharded:  # of which each process holds a part, whose memory may be replaced, too
            self._tensors = self._now()
        # What has moved may have come to lie where another tensor is, or nowhere.
        if list(map(Tensor.data_ptr, self._tensors)) != self._pointers:
            return False
        return self._usual or list(map(_form, self._tensors)) == self._forms

    # ------------------------------------------------------------------ a step

    def begin(self, active: Active, known: Hyper) -> None:
        """Take the numbers of one step: the stages with their hyper-parameters, and what else they name."""
        self.active, self.known = active, known
        self._at = 0
        self._wholes: list[Tensor] = []
        grads, self._grads = self._grads, []
        if not self._usual:
            grads = [resolved(local(grad)) for grad in grads]
            grads = [
                grad if alike(grad, param) else torch.empty_like(param, dtype=grad.dtype).copy_(grad)
                for grad, param in zip(grads, self._locals, strict=True)
            ]
            self._grad_pointers = list(map(Tensor.data_ptr, grads))
        self._stepped = grads  # kept until the step is done

    @property
    def scales(self) -> bool:
        """Whether its kernels read a GradScaler's numbers, so that nobody waits for them."""
        return False

    @property
    def alone(self) -> bool:
        return not self._sharded and all(part.stage.reach in ("element", "tensor") for part in self.active)

    @property
    def params(self) -> Sequence[Tensor]:
        return self._params

    def sums(self, stage: Stage) -> Totals:
        if self._whole is not None and not self._wholes and stage.reach == "tensor":
            self._wholes = self._rooms()
        program = self._programs[self._at]
        self._pass(range(len(self._params)))
        columns = self._sums[:, len(program.sums) : len(program.sums) + len(program.terms)]
        self._taken = dict(zip((name for name, _ in program.terms), columns.unbind(1), strict=True))
        return self._taken

    def take(self, stage: Stage, sums: Totals) -> None:
        for name, column in self._taken.items():
            if sums[name] is not column:
                column.copy_(sums[name])

    def matrix(self, stage: Stage) -> None:
        self._wholes = self._wholes or self._rooms()
        self._pass(range(len(self._params)))
        part = next(part for part in self.active if part.stage is stage)
        for i, (param, state, grad) in enumerate(zip(self._params, self._states, self._stepped, strict=True)):
            scalars = {name: self._number(state, name) for name in stage.scalars}
            known = {**self.known, **scalars, "step": self._count(i)}
            self._wholes[i].copy_(apply_matrix(part, param, self._wholes[i], grad, state, known))

    def _pass(self, rows: range) -> None:
        """Go over the memory of some parameters once, as the next program says."""
        self.kernel(self._functions[self._at], rows)
        self._at += 1

    def finish(self) -> None:
        self._passes()
        # Written behind autograd's back: a backward pass that still needs the old values must be told.
        increment_version(self._params)
        self._wholes, self._stepped = [], []
        if not self._values:
            self._all_states = list(self._whole_state.values())
            self._values = list(chain.from_iterable(map(dict.values, self._states)))


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg()
