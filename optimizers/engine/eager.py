"""How a step is carried out, eagerly: parameter by parameter, slice by slice, with the stages' own functions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .memory import overlap, resolved
from .stage import Place, Stage
from .tensors import local, real

# Long tensors are updated in slices of about this many elements, so that a rule's temporaries stay in the cache.
SLICE = 1 << 17

Hyper = dict[str, Any]
_PLACES = tuple(Place)  # which is walked faster than an Enum


class Part(NamedTuple):
    """A stage that does something in a parameter group."""

    stage: Stage
    hyper: Hyper
    names: tuple[str, ...]  # those of its tensors that are in use


Active = Sequence[Part]  # in the order of their places
WHOLE = "whole"  # the name, among the state tensors, of what is handed from one part of a step to the next


class Span(NamedTuple):
    """The part of a chain that is gone through at once."""

    sums: Mapping[Stage, Mapping[str, Any]] = MappingProxyType({})  # those that are known, by stage and term
    since: Stage | None = None  # begin with this one, or behind its `matrix`, with what goes in or that returned
    until: Stage | None = None  # end with the terms of this one, or in front of its `matrix`


ALL = Span()


def kept(active: Active, dtype: torch.dtype) -> Active:
    """The stages with those of their tensors that are kept for a parameter of this dtype."""
    if all(part.stage.remembers_for(dtype) for part in active):
        return active
    return [part if part.stage.remembers_for(dtype) else part._replace(names=()) for part in active]


def advance(
    active: Active, param: Tensor, grad: Tensor, state: dict[str, Tensor], known: Hyper, span: Span
) -> tuple[Any, dict[str, Tensor]]:
    """One step of a chain as a pure function: the new parameter and the new state.

    They are in the dtypes that it is given, but in float32 at least where a stage is `wide`.

    Args:
        active: the stages that do something.
        param, grad: real tensors of one shape.
        state: the stages' tensors, of the same shape.
        known: ``lr``, ``step``, ``maximize``, ``stored`` and whatever else the stages' signatures name.
        span: where in the chain to begin and to end. At a stage whose terms are wanted, they are returned in the
            parameter's place, and what goes into it is ``state[WHOLE]``; in front of a stage's `matrix`, what it is
            to be given.
    """
    sums, since, until = span
    state = dict(state)
    if any(part.stage.wide for part in active):
        dtype = torch.promote_types(param.dtype, torch.float32)
        param, grad, state = param.to(dtype), grad.to(dtype), {name: old.to(dtype) for name, old in state.items()}
    old = dict(state)
    grad = -grad if known["maximize"] else grad
    x, flows, scaled = (grad, True, False) if since is None else (state[WHOLE], False, False)
    for place in _PLACES:
        if place is Place.UPDATE and flows and not scaled:
            # u_t = α d_t
            x = known["lr"] * x
        if place is Place.PARAMETERS and flows:
            # θ_t = θ_{t−1} − u_t
            x = param - x
        for stage, hyper, names in active:
            if stage.place is not place:
                continue
            if stage is since and "terms" in stage.asks:
                flows = True
            if flows:
                given: Hyper = {"param": param, "grad": grad, **known, **hyper}
                given |= {**dict.fromkeys(stage.state), **state}
                given |= {"memory": tuple(state[name] for name in names), **sums.get(stage, {})}
                if stage is until and "terms" in stage.asks:
                    terms = stage.call("terms", _wide(x), {name: _wide(value) for name, value in given.items()})
                    return terms, _stored(active, old, state, known) | {WHOLE: x}
                out = stage.call("update", x, given)
                x, *new = out if stage.state else (out,)
                state.update(zip(names, (tensor for tensor in new if tensor is not None), strict=True))
                if stage is until:
                    return x, _stored(active, old, state, known)
            scaled |= stage.includes_lr
            flows |= stage is since
    for stage, hyper, _ in active:
        state.update(stage.after(state, {**known, **hyper, "new_param": x}))
    return x, _stored(active, old, state, known)


def _wide(value: Any) -> Any:
    """A tensor of 16-bit numbers, whose squares may overflow, in float32."""
    is_narrow = isinstance(value, Tensor) and value.is_floating_point() and value.itemsize < 4
    return value.float() if is_narrow else value


def _stored(active: Active, old: dict[str, Tensor], new: dict[str, Tensor], known: Hyper) -> dict[str, Tensor]:
    """The new state as stages will have it stored, where it is not the old one."""
    for stage, hyper, _ in active:
        if type(stage).store is Stage.store:  # which is asked too often to be asked in vain
            continue
        changed = stage.store(new, {**known, **hyper})
        new = new | {name: tensor for name, tensor in changed.items() if new[name] is not old.get(name)}
    return new


def step_in_place(
    active: Active, param: Tensor, grad: Tensor, state: dict[str, Tensor], known: Hyper, span: Span = ALL
) -> None:
    """Advance a parameter and its state where they are: slice by slice, or where a sparse gradient has entries."""
    own = local(param)
    work = resolved(own)
    names = _names(active, state)
    if grad.is_sparse:
        tensors = [real(tensor) for tensor in (work, *(local(state[name]) for name in names))]
        index, values, coordinate = entries(param, grad)
        old = [tensor[index] for tensor in tensors]
        memory = dict(zip(names, old[1:], strict=True))
        new_param, new = advance(active, old[0], values, memory, {**known, "coordinate": coordinate}, span)
        for tensor, result in zip(tensors, [new_param, *(new[name] for name in names)], strict=True):
            tensor[index] = result.to(tensor.dtype)
    else:
        for p, g, memory, at in _parts(active, param, work, grad, state):
            x, new = advance(active, p, g, memory, known | at, span)
            if span.until is None:
                p.copy_(x)
            else:
                new[WHOLE] = x
            for name, tensor in memory.items():
                if new[name] is not tensor:
                    tensor.copy_(new[name])
    if work is not own and span.until is None:  # a view that is conjugated lazily is written as a whole
        own.copy_(work)


def sum_terms(
    active: Active, param: Tensor, grad: Tensor, state: dict[str, Tensor], known: Hyper, span: Span
) -> dict[str, Tensor]:
    """The sums of a stage's terms over the part of a parameter that this process holds, in double precision."""
    sums: dict[str, Tensor] = {}
    for p, g, memory, at in _parts(active, param, resolved(local(param)), grad, state):
        terms, _ = advance(active, p, g, memory, known | at, span)
        for name, term in terms.items():
            total = term.expand(p.shape).sum(dtype=torch.float64)
            sums[name] = sums[name] + total if name in sums else total
    return sums


def step_differentiably(
    active: Active, param: Tensor, grad: Tensor, state: dict[str, Tensor], known: Hyper, span: Span = ALL
) -> None:
    """Advance a parameter in place and replace its state, so that autograd can follow both."""

    def back(tensor: Tensor) -> Tensor:
        return torch.view_as_complex(tensor) if param.is_complex() else tensor

    names = _names(active, state)
    p = real(param.clone())
    known = {**known, "coordinate": coordinates(param, p.shape, 0)}
    dense = grad.to_dense() if grad.is_sparse else grad
    x, new = advance(active, p, real(dense), {name: real(state[name]) for name in names}, known, span)
    if span.until is None:
        param.copy_(back(x))
    else:
        new[WHOLE] = x
    state.update({name: back(new[name].to(real(state[name]).dtype)) for name in names})


def step_lock_free(active: Active, param: Tensor, grad: Tensor, state: dict[str, Tensor], known: Hyper) -> None:
    """Advance a parameter and its state where they are, writing no coordinate that the step does not change."""
    names = [name for part in active for name in part.names]
    shared = [real(tensor) for tensor in (param, *(state[name] for name in names))]
    index: tuple[Tensor, ...] | None = None
    if grad.is_sparse:
        index, grad, coordinate = entries(param, grad)
        old = [tensor[index] for tensor in shared]
    else:
        coordinate = coordinates(param, shared[0].shape, 0)
        grad, old = real(grad), [tensor.clone() for tensor in shared]
    p, memory = old[0], dict(zip(names, old[1:], strict=True))
    new_param, new = advance(active, p, grad, memory, {**known, "coordinate": coordinate}, ALL)
    for tensor, before, after in zip(shared, old, [new_param, *(new[name] for name in names)], strict=True):
        is_param, after = tensor is shared[0], after.to(before.dtype)
        change = (after - before if is_param else after).to(tensor.dtype)
        if index is not None:
            tensor.index_put_(index, change, accumulate=is_param)
        else:
            if tensor.dim() == 0:  # which has no index
                tensor, before, after, change = tensor[None], before[None], after[None], change[None]
            at = torch.nonzero(after != before, as_tuple=True)
            tensor.index_put_(at, change[at], accumulate=is_param)


def entries(param: Tensor, grad: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Where a sparse gradient has values, the values, in reals, and their coordinates."""
    grad = grad.coalesce()
    index, values = tuple(grad.indices()), real(grad.values())
    strides = [math.prod(shard(param)[0][d + 1 :]) for d in range(len(index))]
    first = sum((i * stride for i, stride in zip(index, strides, strict=True)), torch.zeros_like(grad.indices()[0]))
    within = torch.arange(math.prod(values.shape[1:]), device=values.device).view(values.shape[1:])
    return index, values, first.view(-1, *[1] * within.dim()) + within


def _names(active: Active, state: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that go through a chain along with the parameter."""
    return [*(name for part in active for name in part.names), *([WHOLE] if WHOLE in state else [])]


def _parts(
    active: Active, param: Tensor, own: Tensor, grad: Tensor, state: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor], Hyper]]:
    """A parameter, its gradient, its state and what stages are told of their coordinates, in real slices."""
    names = _names(active, state)
    counted = any("coordinate" in part.stage.needs for part in active)
    tensors = [real(tensor) for tensor in (own, local(grad), *(local(state[name]) for name in names))]
    for row, (p, g, *memory) in _slices(tensors):
        at = {"coordinate": coordinates(param, p.shape, row)} if counted else {}
        yield p, g, dict(zip(names, memory, strict=True)), at


def _slices(tensors: Sequence[Tensor]) -> Iterator[tuple[int, Sequence[Tensor]]]:
    """The tensors, all of one shape, as views of whole rows, about `SLICE` elements each, with their first row."""
    first, grad, *memory = tensors
    if first.numel() <= SLICE:
        yield 0, tensors
        return
    if overlap(*tensors):  # the gradient of a slice must not be what an earlier one has written
        tensors = [first, grad.clone(), *memory]
    rows = max(1, SLICE * first.shape[0] // first.numel())
    for row in range(0, first.shape[0], rows):
        yield row, [tensor[row : row + rows] for tensor in tensors]


def shard(param: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of the whole parameter, in reals, and where in it begins the part that this process holds."""
    shape, offset = tuple(param.shape), (0,) * param.dim()
    if hasattr(param, "to_local"):
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        assert isinstance(param, DTensor)
        _, first = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
        offset = tuple(first)
    return ((*shape, 2), (*offset, 0)) if param.is_complex() else (shape, offset)


def coordinates(param: Tensor, shape: torch.Size, row: int) -> Tensor:
    """Positions, counted row by row in the whole parameter, of a slice of `shape` that begins at local row `row`.

    A shard counts as the whole tensor would: every process draws the numbers that one process would have drawn.
    """
    whole, offset = shard(param)
    if not hasattr(param, "to_local"):
        first = row * math.prod(whole[1:])
        return torch.arange(first, first + math.prod(shape), device=param.device).view(shape)
    position = torch.zeros((), dtype=torch.int64, device=param.device)
    for dim, size in enumerate(shape):
        begin = offset[dim] + (row if dim == 0 else 0)
        along = torch.arange(begin, begin + size, device=param.device) * math.prod(whole[dim + 1 :])
        position = position + along.view([-1] + [1] * (len(shape) - 1 - dim))
    return position.expand(shape)
