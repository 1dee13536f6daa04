"""Ranges of hyper-parameters: one line each beside the rule, one clear error for a value outside.

A range is written as the papers write it: ``"[0, 1)"``, ``"(0, inf)"``, ``"int [1, inf)"``, ``"[0, inf) or None"``,
``"bool"``, for words ``"keep | reset"``, and for several numbers ``"pair [0, 1)"`` or ``"each [0, 1)"``.
"""

from functools import lru_cache
from numbers import Real
from typing import Any

import torch


@lru_cache
def _parse(interval: str) -> tuple[float, bool, float, bool]:
    low, high = interval[1:-1].split(",")
    return float(low), interval[0] == "[", float(high), interval[-1] == "]"


def check(name: str, value: Any, interval: str) -> None:
    """Raise unless `value` lies in `interval`.

    Args:
        name: what the error calls the value, for example ``"lr"``.
        value: a number, a tensor of one element, or what else the interval says.
        interval: ``"bool"``, ``"word | word"``, or ``"[low, high)"``, after ``"int "`` where only whole numbers
            make sense, before ``" or None"`` where the value may be left out, and after ``"pair "`` or ``"each "``
            where it is two, or one or more, numbers in a tuple or list.

    Raises:
        TypeError: the value is of the wrong kind (a string for a number, a number for a bool).
        ValueError: the value is outside the interval; NaN is outside every interval.
    """
    if interval == "bool":
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")
        return
    if " | " in interval:
        if value not in interval.split(" | "):
            raise ValueError(f"{name} must be one of {interval.split(' | ')}, got {value!r}")
        return
    if interval.endswith(" or None"):
        if value is None:
            return
        interval = interval.removesuffix(" or None")
    kind, _, entries = interval.partition(" ")
    if kind in ("pair", "each"):
        if not isinstance(value, (tuple, list)) or not value or (kind == "pair" and len(value) != 2):
            raise TypeError(f"{name} must be {'two' if kind == 'pair' else 'one or more'} numbers, got {value!r}")
        for i, entry in enumerate(value):
            check(f"{name}[{i}]", entry, entries)
        return
    whole, bounds = interval.startswith("int "), interval.removeprefix("int ")
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number in {bounds}, got a tensor of {value.numel()} elements")
        number = value.item()
    else:
        number = value
    if isinstance(number, bool) or not isinstance(number, int if whole else Real):
        raise TypeError(f"{name} must be {'a whole' if whole else 'a'} number in {bounds}, got {value!r}")
    low, low_in, high, high_in = _parse(bounds)
    try:
        # Whole numbers are compared as they are: as a float, 2**63 - 1 is 2**63.
        x = number if whole else float(number)
    except OverflowError:
        raise ValueError(f"{name} must lie in {bounds}, got a number too large for a float") from None
    if not ((low < x or (low_in and x == low)) and (x < high or (high_in and x == high))):
        raise ValueError(f"{name} must lie in {bounds}, got {value!r}")
