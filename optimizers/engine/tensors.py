"""What a step takes for granted of a tensor: it is brought about, or refused by name, before anything moves.

A parameter, its gradient and its state may each be a shard, a result still on its way, a lazily conjugated view, or
a tensor without memory; all of them must be of one shape, on one device, and apart from each other.
"""

from collections.abc import Collection, Iterable, Sequence
from operator import sub
from typing import Any, cast

import torch
from torch import Tensor

from .memory import PLAIN, extent, overlap, overlaps_itself, resolved, stands_for_itself


class Gradients(dict[Tensor, Tensor]):
    """The gradients of one step, by parameter, as the step takes them."""

    def unscale(self, factor: float, params: Sequence[Tensor]) -> None:
        """Divide the parameters' gradients by a factor: ``param.grad`` itself, as torch's fused optimizers do."""
        given = {id(param.grad): param.grad for param in params if param.grad is not None}  # shared ones once
        for param in params:
            if param.grad is not None and (torch.is_grad_enabled() or param.grad.dtype == torch.float16):
                # What the scale has kept from underflow is not lost to the step.
                grad = gradient(param)
                self[param] = (grad.float() if grad.dtype == torch.float16 else grad) / factor
        for grad in () if torch.is_grad_enabled() else given.values():  # no tensor of a graph is changed
            (grad._values() if grad.is_sparse else grad).div_(factor)

    def __missing__(self, param: Tensor) -> Tensor:
        grad = self[param] = gradient(param)
        return grad


def gradient(param: Tensor) -> Tensor:
    """A parameter's gradient, with the parameter's placements and waited for.

    Raises:
        RuntimeError: one of both is distributed (a DTensor) and the other is not.
    """
    grad = cast(Any, param.grad)
    if type(grad) in PLAIN:
        if hasattr(param, "to_local"):
            raise RuntimeError(f"the gradient of {said(param)}, a DTensor, is a plain tensor: distribute it, too")
        return cast(Tensor, grad)
    if hasattr(grad, "to_local"):
        if not hasattr(param, "to_local"):
            raise RuntimeError(f"the gradient of {said(param)} is a DTensor, the parameter is not: distribute it")
        return placed(grad, param)
    return local(grad)


def placed(tensor: Any, like: Any) -> Tensor:
    """A DTensor with the placements of another: sums that are spread over the processes are added up."""
    if tensor.placements == like.placements and tensor.device_mesh == like.device_mesh:
        return cast(Tensor, tensor)
    return cast(Tensor, tensor.redistribute(like.device_mesh, like.placements))


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds, once it is there; any other tensor as it is."""
    if type(tensor) in PLAIN:
        return tensor
    part: Any = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    part = part.wait() if hasattr(part, "trigger_wait") else part
    # A class that leaves all operations to torch only adds a name to the memory.
    ordinary = type(part).__torch_dispatch__ is Tensor.__torch_dispatch__
    return cast(Tensor, part.as_subclass(Tensor) if ordinary else part)


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which this process holds `part`, as it does of the parameter `like`."""
    if not hasattr(like, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = cast(Any, like).device_mesh, cast(Any, like).placements
    shard = DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())
    return shard.full_tensor()


def scattered(whole: Tensor, like: Tensor) -> Tensor:
    """The part of a tensor, which every process has whole, that this process holds of the parameter `like`."""
    if not hasattr(like, "to_local"):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = cast(Any, like).device_mesh, cast(Any, like).placements
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(mesh, placements).to_local()


def as_matrix(tensor: Tensor) -> Tensor:
    """A tensor of more than two dimensions as (first, all others): of a convolution's filters, one per row."""
    return tensor.flatten(1) if tensor.dim() > 2 else tensor


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals: every rule treats the two parts as two coordinates."""
    # (A gradient may be conjugated lazily, and then has no such view.)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def check(
    param: Tensor, grad: Tensor, state: dict[str, Any], tensors: Collection[str], numbers: Iterable[str]
) -> None:
    """Refuse what cannot be stepped, and bring the state to the form of its parameter, which stays as it is.

    Args:
        param, grad: a parameter and its gradient (of `Gradients`).
        state: what is remembered of it so far.
        tensors, numbers: the names in it of the tensors and of the numbers that the step will use.

    Raises:
        RuntimeError: one of them has no memory, or is not of the parameter's shape, device and kind, or not a
            tensor at all; or parameter and state share memory.
    """
    if _ordinary(param, grad, state, tensors, numbers):
        return
    if param.layout != torch.strided:
        raise RuntimeError(f"{said(param)} has the layout {param.layout}: a step needs strided parameters")
    if any(placement.is_partial() for placement in getattr(param, "placements", ())):
        raise RuntimeError(f"{said(param)} is a sum spread over processes (Partial): redistribute it")
    base: Any = param._base if param._is_view() else param
    if torch.is_grad_enabled() and base.is_leaf and base.requires_grad:
        raise RuntimeError(
            f"{said(param)} is a leaf that requires grad: a differentiable step needs a clone() of it"
        )
    own = local(param)
    if overlaps_itself(own):
        raise RuntimeError(f"{said(param)} has coordinates that share memory (expand?): clone it first")
    for name in numbers:
        number = state.get(name)
        readable = isinstance(number, Tensor) and number.numel() == 1 and (param.is_meta or not number.is_meta)
        if name in state and not readable:
            raise RuntimeError(f"state[{name!r}] of {said(param)} must be a tensor of one number, got {number!r}")
    written = [own]
    _check_alike("its gradient", grad, param, own)
    _check_memory("the parameter", own, param)
    for name in tensors:
        if name in state:
            tensor = state[name]
            if not isinstance(tensor, Tensor):
                raise RuntimeError(f"state[{name!r}] of {said(param)} must be a tensor, got {tensor!r}")
            if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg():
                tensor = state[name] = _settled(tensor, param)
            _check_alike(name, tensor, param, own)
            part = local(tensor)
            if overlaps_itself(part):
                part = state[name] = tensor.clone(memory_format=torch.contiguous_format)
            written.append(part)
    if len(written) > 1 and overlap(*written):
        raise RuntimeError(f"{said(param)} and its state ({', '.join(tensors)}) share memory: clone them first")


def _ordinary(
    param: Tensor, grad: Tensor, state: dict[str, Any], tensors: Iterable[str], numbers: Iterable[str]
) -> bool:
    """Whether all is well, as it is in nearly every step, in as little time as possible; False says nothing."""
    everything: list[Any] = [param, *map(state.get, tensors), grad]
    shape, dtype, device, size = param.shape, param.dtype, param.device, param.nbytes
    for tensor in everything:
        if (
            type(tensor) not in PLAIN
            or tensor.layout is not torch.strided
            or tensor.dtype is not dtype
            or tensor.shape != shape
            or tensor.device != device
            or not tensor.is_contiguous()
            or tensor.is_neg()
        ):
            return False
    for number in map(state.get, numbers):
        if type(number) is not Tensor or number.numel() != 1 or number.is_meta:
            return False
    places = sorted(map(Tensor.data_ptr, everything[:-1]))
    return (
        dtype.is_floating_point
        and places[0] > 0
        and grad.data_ptr() > 0
        and not torch.is_grad_enabled()
        and (len(places) == 1 or min(map(sub, places[1:], places)) >= size)
    )


def refuse_sparse(param: Tensor, by: str) -> None:
    """Raise RuntimeError for a sparse gradient, in the name of who cannot take it."""
    raise RuntimeError(
        f"{by} needs dense gradients, got a sparse one for {said(param)}: build the embedding with sparse=False "
        "(after share_memory(), sparse rows are fine)"
    )


def _settled(tensor: Any, param: Tensor) -> Tensor:
    """A state tensor in the form in which a step writes it."""
    if hasattr(tensor, "to_local"):
        if not hasattr(param, "to_local"):
            raise RuntimeError(f"the state of {said(param)} has a DTensor, the parameter is none: distribute it")
        return placed(tensor, param)
    tensor = resolved(local(tensor))
    # (torch's SGD keeps the velocity of sparse gradients sparse.)
    return cast(Tensor, tensor.to_dense() if tensor.is_sparse else tensor)


def _check_alike(name: str, tensor: Tensor, param: Tensor, own: Tensor) -> None:
    """RuntimeError unless a gradient or a state tensor is as its parameter is, as a whole and on this process."""
    if tensor.layout != torch.strided and not tensor.is_sparse:
        raise RuntimeError(f"{name} has the layout {tensor.layout}, its parameter is strided: make it dense")
    part = tensor if type(tensor) is Tensor else local(tensor)
    other = None
    if tensor.shape != param.shape:
        other = f"the shape {tuple(tensor.shape)}, its parameter {tuple(param.shape)}"
    elif part.shape != own.shape:
        other = f"the local shape {tuple(part.shape)}, its parameter {tuple(own.shape)}"
    elif tensor.device != param.device:
        other = f"the device {tensor.device}, its parameter {param.device}"
    if other:
        raise RuntimeError(f"{name} has {other}: was a checkpoint of another model loaded?")
    if tensor.is_complex() != param.is_complex() or not (tensor.is_floating_point() or tensor.is_complex()):
        raise RuntimeError(f"{name} is of {tensor.dtype}, its parameter of {param.dtype}")
    if not part.is_sparse:
        _check_memory(name, part, param)
    if stands_for_itself(own) and not stands_for_itself(part):
        raise RuntimeError(f"{name} has no memory of its own (it is a {type(tensor).__name__}), its parameter has")


def _check_memory(name: str, tensor: Tensor, param: Tensor) -> None:
    """RuntimeError for a tensor whose storage was taken away, as FSDP does between uses."""
    if type(tensor) in PLAIN and tensor.device.type != "meta" and tensor.numel():
        end = (tensor.storage_offset() + extent(tensor)) * tensor.itemsize
        if tensor.untyped_storage().nbytes() < end:
            raise RuntimeError(f"{name} has no memory (its storage was resized), at {said(param)}")


def said(param: Tensor) -> str:
    return f"a parameter of shape {tuple(param.shape)}"
