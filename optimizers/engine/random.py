"""Randomness as a pure function of (seed, parameter, step, coordinate).

A draw is decided by the seed of the extension, the index of the parameter (its name, or its place among all that
are trained together: see `identity`), the parameter's own step, and the coordinate's position in it.

No generator, no state: the same arguments give the same number in eager or compiled execution, on any device, after
a resume or a copy, and torch's global generator is never touched. Every number comes from hashing its own counter,
in 32-bit integer arithmetic with `lowbias32`, a mixer with low bias found by search (Wellons, 2018).
"""

import math
from typing import Any

import torch
from torch import Tensor

# The range of an extension's seed, as `check` reads it.
SEED = f"int [0, {2**63})"

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)


def _signed(x: int) -> int:
    """The 32-bit pattern of `x` as the signed number that an int32 tensor holds."""
    return (x & _MASK) - ((x & 0x80000000) << 1)


def _wrapped(x: Any) -> Any:
    """The last 32 bits of an integer, signed; an int32 tensor has no others."""
    return x if isinstance(x, Tensor) else _signed(x)


def _mix(x: Any) -> Any:
    """lowbias32 of a signed 32-bit integer or of every element of an int32 tensor.

    Shifts are arithmetic, so the copies of the sign bit are masked off.
    """
    x = x ^ ((x >> 16) & 0xFFFF)
    x = _wrapped(x * _signed(_MULTIPLIERS[0]))
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = _wrapped(x * _signed(_MULTIPLIERS[1]))
    return x ^ ((x >> 16) & 0xFFFF)


def _word(x: Any) -> Any:
    """The last 32 bits of a whole number or a tensor of one."""
    return x.to(torch.int32) if isinstance(x, Tensor) else _signed(int(x))


def bits(seed: int, index: int, step: float | Tensor, coordinate: Tensor, stream: int = 0) -> Tensor:
    """32 random bits per coordinate, as int32, shaped like `coordinate`.

    Args:
        seed: the extension's seed, a whole number or a 0-d tensor of one, as the two that follow.
        index: which parameter it is, as `identity` says.
        step: 1 at the first step.
        coordinate: int64 positions in the whole (unsharded) parameter, row by row.
        stream: tells independent draws for the same coordinate apart.
    """
    # The key depends on no coordinate: where the step is a number, all of it is plain integers.
    count = step.to(coordinate.device) if isinstance(step, Tensor) else step
    key = _word(seed)
    # One full mix per word: nearby seeds, parameters and steps must not give related noise.
    for word in (seed >> 32, index, count, stream):
        key = _wrapped(_mix(key) + _word(word) + _signed(0x9E3779B9))
    low, high = coordinate.to(torch.int32), (coordinate >> 32).to(torch.int32)
    mixed: Tensor = _mix(_mix(low ^ _mix(key)) + high + key)
    return mixed


def uniform(seed: int, index: int, step: float | Tensor, coordinate: Tensor, stream: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), float32, on a grid of 2⁻²⁴; arguments as in :func:`bits`."""
    # Said in so many words: torch's default dtype is the user's to choose.
    return ((bits(seed, index, step, coordinate, stream) >> 8) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def normal(seed: int, index: int, step: float | Tensor, coordinate: Tensor, stream: int = 0) -> Tensor:
    """Standard normal numbers, float32, by the Box–Muller transform; arguments as in :func:`bits`."""
    u = uniform(seed, index, step, coordinate, 2 * stream)
    v = uniform(seed, index, step, coordinate, 2 * stream + 1)
    # 1 − u lies in (0, 1]: its logarithm is finite.
    return (-2 * (1 - u).log()).sqrt() * (2 * math.pi * v).cos()
