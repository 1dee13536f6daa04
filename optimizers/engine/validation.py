"""Ranges of hyper-parameters: one line each beside the rule, one clear error for a value outside.

A range is written as the papers write it: ``"[0, 1)"``, ``"(0, inf)"``, ``"int [1, inf)"``, ``"[0, inf) or None"``,
``"bool"``, for words ``"keep | reset"``, and for several numbers ``"pair [0, 1)"`` or ``"each [0, 1)"``.

Values come from wherever users keep them: NumPy, a configuration system, a tensor. `plain` makes Python's own of
them, so that steps, checkpoints and error messages know no other kind.
"""

from collections.abc import Mapping
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from torch import Tensor


@lru_cache
def _parse(interval: str) -> tuple[float, bool, float, bool]:
    low, high = interval[1:-1].split(",")
    return float(low), interval[0] == "[", float(high), interval[-1] == "]"


def plain(value: Any, interval: str) -> Any:
    """A hyper-parameter in Python's own types, where it stands for what `interval` asks for.

    Numbers of NumPy, JAX and the like become int, float or bool, and sequences of them (lists, arrays, OmegaConf's
    lists) tuples. A tensor stays one where any real number will do: autograd may follow it, and a graph that
    captures the step may read it. What is of another kind is returned as it is, for `check` to refuse.
    """
    kind, _, entries = interval.partition(" ")
    if kind in ("pair", "each"):
        items = _items(value)
        return value if items is None else tuple(plain(item, entries) for item in items)
    if " | " in interval:
        return str.__str__(value) if isinstance(value, str) else value
    if isinstance(value, Tensor) and kind not in ("int", "bool"):
        # Of shape (1,) it would make a vector of a number; a learned one must stay the leaf that it is.
        return value.reshape(()) if value.numel() == 1 and not value.requires_grad else value
    return _number(value)


def _number(value: Any) -> Any:
    if callable(getattr(value, "item", None)):
        try:
            value = value.item()
        except (RuntimeError, TypeError, ValueError):  # of more than one number
            return value
    if type(value) in (bool, int, float) or not isinstance(value, Real):
        return value
    try:
        return int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:
        return value


def _items(value: Any) -> list[Any] | None:
    """The entries of a sequence of whatever make; None for anything else, such as a set, a dict or a generator."""
    if isinstance(value, (str, bytes, Mapping)):
        return None
    if isinstance(value, Tensor) and value.requires_grad:
        return None  # as numbers, they would no longer be learned
    if callable(getattr(value, "tolist", None)):
        items = value.tolist()
        return items if isinstance(items, list) else None
    ordered = all(hasattr(value, name) for name in ("__len__", "__iter__", "__getitem__"))
    return list(value) if ordered else None


def check(name: str, value: Any, interval: str) -> None:
    """Raise unless `value`, as `plain` returns it, lies in `interval`.

    Args:
        name: what the error calls the value, for example ``"lr"``.
        value: a number, a tensor of one element, or what else the interval says.
        interval: ``"bool"``, ``"word | word"``, or ``"[low, high)"``, after ``"int "`` where only whole numbers
            make sense, before ``" or None"`` where the value may be left out, and after ``"pair "`` or ``"each "``
            where it is two, or one or more, numbers in a sequence.

    Raises:
        TypeError: the value is of the wrong kind (a string for a number, a number for a bool).
        ValueError: the value is outside the interval; NaN is outside every interval.
    """
    value = plain(value, interval)
    if interval == "bool":
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")
        return
    if " | " in interval:
        if not isinstance(value, str) or value not in interval.split(" | "):
            raise ValueError(f"{name} must be one of {interval.split(' | ')}, got {value!r}")
        return
    if interval.endswith(" or None"):
        if value is None:
            return
        interval = interval.removesuffix(" or None")
    kind, _, entries = interval.partition(" ")
    if kind in ("pair", "each"):
        if not isinstance(value, tuple) or not value or (kind == "pair" and len(value) != 2):
            raise TypeError(f"{name} must be {'two' if kind == 'pair' else 'one or more'} numbers, got {value!r}")
        for i, entry in enumerate(value):
            check(f"{name}[{i}]", entry, entries)
        return
    whole, bounds = kind == "int", interval.removeprefix("int ")
    if isinstance(value, Tensor) and value.is_meta and value.numel() == 1:
        return  # it has no value yet
    number = _number(value)
    if (size := getattr(number, "size", None)) is not None:
        elements = number.numel() if isinstance(number, Tensor) else size
        what = "a tensor" if isinstance(number, Tensor) else "an array"
        raise ValueError(f"{name} must be a number in {bounds}, got {what} of {elements} elements")
    if isinstance(number, bool) or not isinstance(number, int if whole else Real):
        raise TypeError(f"{name} must be {'a whole' if whole else 'a'} number in {bounds}, got {value!r}")
    low, low_in, high, high_in = _parse(bounds)
    try:
        # Whole numbers are compared as they are: as a float, 2**63 - 1 is 2**63.
        x: Any = number if whole else float(number)
    except OverflowError:
        raise ValueError(f"{name} must lie in {bounds}, got a number too large for a float") from None
    if not ((low < x or (low_in and x == low)) and (x < high or (high_in and x == high))):
        raise ValueError(f"{name} must lie in {bounds}, got {value!r}")
