"""Where tensors are in memory: whose address may be handed out, and which have memory in common."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)  # of any other class, torch's operations may mean something else


def resolved(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy of a view that is conjugated or negated lazily."""
    return tensor.resolve_conj().resolve_neg()


def owns_memory(tensor: Tensor) -> bool:
    """Whether what a kernel of its device would find at the tensor's address are the tensor's own numbers."""
    return addressable(tensor, tensor.device) and resolved(tensor) is tensor


def addressable(tensor: Tensor, device: torch.device) -> bool:
    """Whether a kernel of a device may be given its address: the memory is there, and is what the tensor says."""
    return stands_for_itself(tensor) and tensor.layout == torch.strided and tensor.device == device


def stands_for_itself(tensor: Tensor) -> bool:
    """Whether a tensor has memory, and is no wrapper of Python (a class of its own) or of C++ (a transform's)."""
    if type(tensor) not in PLAIN:
        return False
    if tensor.layout != torch.strided or tensor.is_meta or tensor.numel() == 0:
        return True
    try:
        return tensor.data_ptr() != 0
    except RuntimeError:
        return False


def extent(tensor: Tensor) -> int:
    """How many elements lie from a tensor's first to its last in memory, both included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two coordinates may be one place in memory (an expanded tensor); interleaved strides count, too."""
    if type(tensor) not in PLAIN or tensor.is_contiguous():
        return False
    last = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= last:
                return True
            last += (size - 1) * stride
    return False


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of a tensor's first byte and of the one behind its last."""
    begin = tensor.data_ptr()
    size = tensor.numel() if tensor.is_contiguous() else extent(tensor) if tensor.numel() else 0
    return begin, begin + size * tensor.itemsize


def _spans(tensors: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    for tensor in tensors:
        if type(tensor) in PLAIN and tensor.layout == torch.strided and tensor.device.type != "meta":
            begin, end = _span(tensor)
            if end > begin:
                yield begin, end


def overlap(*tensors: Tensor) -> bool:
    """Whether two of the tensors may have memory in common; columns that interleave count, too."""
    spans = sorted(_spans(tensors))
    return any(after[0] < before[1] for before, after in pairwise(spans))


def tied(written: Mapping[int, Sequence[Tensor]], read: Mapping[int, Sequence[Tensor]]) -> frozenset[int]:
    """The parameters, by their keys, whose step writes memory that another tensor of the step has, too.

    Args:
        written, read: the tensors that are written and read (the gradients) in each parameter's step.
    """
    spans = [
        (begin, end, index, writes)
        for kind, writes in ((written, True), (read, False))
        for index, tensors in kind.items()
        for begin, end in _spans(tensors)
    ]
    found: set[int] = set()
    group: list[tuple[int, bool]] = []
    last = 0
    for begin, end, index, writes in [*sorted(spans), (1 << 64, 1 << 64, -1, False)]:
        if begin >= last:
            if len(group) > 1 and any(writes for _, writes in group):
                found |= {index for index, _ in group}
            group = []
        group.append((index, writes))
        last = max(last, end)
    return frozenset(found)
