"""How a step is carried out, eagerly: parameter by parameter, slice by slice, with the stages' own functions."""

import math
from collections.abc import Iterator, Sequence
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


def kept(active: Active, dtype: torch.dtype) -> Active:
    """The stages with those of their tensors that are kept for a parameter of this dtype."""
    if all(part.stage.remembers_for(dtype) for part in active):
        return active
    return [part if part.stage.remembers_for(dtype) else part._replace(names=()) for part in active]


def advance(
    active: Active, param: Tensor, grad: Tensor, state: dict[str, Tensor], known: Hyper
) -> tuple[Tensor, dict[str, Tensor]]:
    """One step of a chain as a pure function: the new parameter and the new state.

    It is computed in the tensors' own dtypes, or where a stage asks for it (`Stage.wide`) in float32 at least.

    Args:
        active: the stages that do something.
        param, grad: real tensors of one shape.
        state: the stages' tensors, of the same shape.
        known: ``lr``, ``step``, ``maximize``, ``stored`` and whatever else the stages' signatures name.
    """
    if not any(part.stage.wide for part in active):
        return _advance(active, param, grad, state, known)
    dtype = torch.promote_types(param.dtype, torch.float32)
    wide = {name: tensor.to(dtype) for name, tensor in state.items()}
    new_param, new = _advance(active, param.to(dtype), grad.to(dtype), wide, known)
    return new_param.to(param.dtype), {name: tensor.to(state[name].dtype) for name, tensor in new.items()}


def _advance(
    active: Active, param: Tensor, grad: Tensor, state: dict[str, Tensor], known: Hyper
) -> tuple[Tensor, dict[str, Tensor]]:
    """`advance` in the dtypes of the tensors that it is given."""
    state = dict(state)
    x = -grad if known["maximize"] else grad
    scaled = False
    for place in _PLACES:
        if place is Place.UPDATE and not scaled:
            # u_t = α d_t
            x = known["lr"] * x
        if place is Place.PARAMETERS:
            # θ_t = θ_{t−1} − u_t
            x = param - x
        for stage, hyper, names in active:
            if stage.place is place:
                given = {"param": param, "memory": tuple(state[name] for name in names), **known, **hyper}
                given |= {**dict.fromkeys(stage.state), **state}
                out = stage.update(x, **{name: given[name] for name in stage.needs})
                x, *new = out if stage.state else (out,)
                state.update(zip(names, (tensor for tensor in new if tensor is not None), strict=True))
                scaled |= stage.includes_lr
    for stage, hyper, _ in active:
        state.update(stage.after(state, {**known, **hyper, "new_param": x}))
    return x, state


def step_in_place(active: Active, param: Tensor, grad: Tensor, state: dict[str, Tensor], known: Hyper) -> None:
    """Advance a parameter and its state where they are: slice by slice, or where a sparse gradient has entries."""
    names = [name for part in active for name in part.names]
    own = local(param)
    work = resolved(own)
    tensors = [real(tensor) for tensor in (work, *(local(state[name]) for name in names))]
    if grad.is_sparse:
        index, values, coordinate = entries(param, grad)
        old = [tensor[index] for tensor in tensors]
        new_param, new = advance(
            active, old[0], values, dict(zip(names, old[1:], strict=True)), {**known, "coordinate": coordinate}
        )
        for tensor, result in zip(tensors, [new_param, *(new[name] for name in names)], strict=True):
            tensor[index] = result.to(tensor.dtype)
    else:
        _step_slices(active, param, names, [tensors[0], real(local(grad)), *tensors[1:]], known)
    if work is not own:  # a view that is conjugated lazily is written as a whole
        own.copy_(work)


def _step_slices(
    active: Active, param: Tensor, names: Sequence[str], tensors: Sequence[Tensor], known: Hyper
) -> None:
    counted = any("coordinate" in part.stage.needs for part in active)
    for row, (p, g, *old) in _slices(tensors):
        if counted:
            known = {**known, "coordinate": coordinates(param, p.shape, row)}
        new_param, new = advance(active, p, g, dict(zip(names, old, strict=True)), known)
        p.copy_(new_param)
        for name, tensor in zip(names, old, strict=True):
            tensor.copy_(new[name])


def step_differentiably(
    active: Active, param: Tensor, grad: Tensor, state: dict[str, Tensor], known: Hyper
) -> None:
    """Advance a parameter in place and replace its state, so that autograd can follow both."""

    def back(tensor: Tensor) -> Tensor:
        return torch.view_as_complex(tensor) if param.is_complex() else tensor

    names = [name for part in active for name in part.names]
    p = real(param.clone())
    known = {**known, "coordinate": coordinates(param, p.shape, 0)}
    dense = grad.to_dense() if grad.is_sparse else grad
    new_param, new = advance(active, p, real(dense), {name: real(state[name]) for name in names}, known)
    param.copy_(back(new_param))
    state.update({name: back(new[name]) for name in names})


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
    new_param, new = advance(active, p, grad, memory, {**known, "coordinate": coordinate})
    for tensor, before, after in zip(shared, old, [new_param, *(new[name] for name in names)], strict=True):
        is_param = tensor is shared[0]
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
