"""Which coordinate of a parameter stands where in memory."""

import math
from array import array
from collections.abc import Sequence

from torch import Tensor


def in_memory(tensor: Tensor) -> list[int] | None:
    """The dimensions longer than 1, the outermost in memory first; None where the elements are not in a row."""
    dims = sorted((d for d in range(tensor.dim()) if tensor.shape[d] != 1), key=tensor.stride, reverse=True)
    expected = 1
    for d in reversed(dims):
        if tensor.stride(d) != expected:
            return [] if tensor.numel() == 0 else None
        expected *= tensor.shape[d]
    return dims


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have each coordinate at the same place in memory."""
    return all(size == 1 or a.stride(d) == b.stride(d) for d, size in enumerate(a.shape))


def layout(tensor: Tensor, whole: tuple[int, ...], offset: tuple[int, ...]) -> "array[int]":
    """The coordinates of a tensor's elements, in the order of memory, as a kernel's `locate` reads them.

    Args:
        tensor: the elements, in a row in memory.
        whole: the shape of the parameter of which they may be a shard.
        offset: where in it the shard begins.

    Returns:
        How many dimensions, the first coordinate, and for each dimension, the outermost in memory first, its size
        and its stride in coordinates, counted row by row in the whole parameter. Those that can be walked as one
        are one.
    """
    strides = [math.prod(whole[d + 1 :]) for d in range(len(whole))]
    merged: list[tuple[int, int]] = []
    for d in in_memory(tensor) or []:
        size, stride = tensor.shape[d], strides[d]
        if merged and merged[-1][1] == size * stride:
            size *= merged.pop()[0]
        merged.append((size, stride))
    merged = merged or [(1, 1)]
    first = sum(o * s for o, s in zip(offset, strides, strict=True))
    return array("q", [len(merged), first, *(number for pair in merged for number in pair)])


def blocks(sizes: Sequence[int], room: int) -> list[range]:
    """Consecutive tensors, given by their sizes, as many as have room together; one that has none is alone."""
    found, begin, taken = [], 0, 0
    for i, size in enumerate(sizes):
        if i > begin and taken + size > room:
            found.append(range(begin, i))
            begin, taken = i, 0
        taken += size
    return [*found, range(begin, len(sizes))]
