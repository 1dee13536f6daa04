"""The table of tensors that a kernel is given: parameters of one kind, their gradients and their state."""

from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..execution import Hyper, local, real, shard
from .c_source import c_source
from .compiler import load
from .layout import alike, layout
from .tracing import Program

Indexed = dict[int, Tensor]  # parameters by their indices among all of the optimizer's

# With fewer elements in all, a second thread is not worth waking up.
_ALONE = 1 << 15


class Table:
    """Parameters of one combination of dtypes: where they, their gradients and their state are in memory.

    Args:
        program: what a step computes.
        dtypes: of the parameters, their gradients and their state tensors, complex ones as real.
        members: the parameters, by their indices.
        states: the optimizer's state; in it is replaced what cannot be stepped as it is: tensors in another order
            in memory than their parameter's, counts of another type.
    """

    def __init__(
        self, program: Program, dtypes: Sequence[torch.dtype], members: Indexed, states: Mapping[Tensor, Hyper]
    ) -> None:
        self.source = c_source(program, dtypes)
        self._kernel = load(self.source)
        self._params = list(members.values())
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
        self._indices = array("q", members)
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
            *[
                _address(a)
                for a in (table, gradients, self._sizes, self._indices, self._layout_pointers, reals, wholes)
            ],
        )
        if failed:
            raise MemoryError(f"there is no memory for the step of {len(grads)} parameters")
        # Written behind autograd's back: a backward pass that still needs the old values must be told.
        increment_version(self._params)

    def _grads(self) -> list[Tensor]:
        return [local(param.grad) for param in self._params]  # type: ignore[arg-type]


def _address(numbers: "array[Any]") -> int:
    return numbers.buffer_info()[0]
