"""Mean and 95 % interval of what was measured once for each seed, as numbers and as a reader reads them."""

import math
import statistics
from collections.abc import Callable
from typing import Any

from scipy.special import stdtrit  # type: ignore[import-untyped]

CONFIDENCE = 0.95
# From a ratio, or its logarithm, to the natural logarithm.
UNITS: dict[str, Callable[[float], float]] = {
    "ln": lambda value: value,
    "log2": lambda value: value * math.log(2),
    "ratio": math.log,
}
PERCENT = "\N{NARROW NO-BREAK SPACE}%"


def interval(value: Any) -> tuple[float | None, float | None, float | None]:
    """Mean and 95 % interval (Student's t) of one value per seed; the value itself where there is only one.

    A null among the values (a run that diverged) leaves no interval: all three are None. TypeError for text.
    """
    values = value if isinstance(value, list) else [value]
    if not values or any(item is None for item in values):
        return None, None, None
    if any(not isinstance(item, int | float) for item in values):
        raise TypeError(f"{value!r} is not a number")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, mean, mean
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error
    return mean, mean - half, mean + half


def in_percent(value: Any, unit: str = "ln") -> str:
    """A ratio, or its logarithm, as people say it: `32 % less (20 to 43)`, `3.2 times as much (2.5 to 4.1)`.

    Mean and interval are those of the logarithm, so the mean is the geometric one. The interval goes from the
    smaller effect to the larger; where it has less and more in it, from less to more.

    Raises:
        ValueError: the unit is none of `UNITS`, or a ratio is not above 0.
        TypeError: these are not numbers.
        OverflowError: a logarithm is beyond any number.
    """
    if unit not in UNITS:
        raise ValueError(f"there is no unit {unit!r}; there are {', '.join(UNITS)}")
    values = value if isinstance(value, list) else [value]
    if unit == "ratio" and any(isinstance(one, int | float) and one <= 0 for one in values):
        raise ValueError(f"{value!r} holds a ratio that is not above 0")
    convert = UNITS[unit]
    logs = [convert(one) if isinstance(one, int | float) and not isinstance(one, bool) else one for one in values]
    mean, low, high = interval(logs)
    if mean is None or low is None or high is None:
        return "not finite"
    widest = max(map(abs, (mean, low, high)))
    decimals = 0 if widest >= 0.1 or not widest else 1 if widest >= 0.01 else 2
    form = _form(mean)
    size = _size(mean, form, decimals)
    text = f"{size}{form if size.strip('0.') else PERCENT}"  # what is rounded to 0 is neither less nor more
    if low == high:
        return text
    if low * high > 0:  # on one side: in the words that have been said already
        first, last = (low, high) if mean > 0 else (high, low)
        return f"{text} ({_size(first, form, decimals)} to {_size(last, form, decimals)})"
    ends = (f"{_size(end, _form(end), decimals)}{_form(end)}" for end in (low, high))
    return f"{text} ({' to '.join(ends)})"


def _form(log: float) -> str:
    """The words for a ratio: percent, or from twice as much, and a hundredth, on a factor."""
    if log >= math.log(2):
        return " times as much"
    if log <= -math.log(100):
        return " times less"
    return PERCENT + (" less" if log < 0 else " more" if log > 0 else "")


def _size(log: float, form: str, decimals: int) -> str:
    """The number that goes with the words."""
    if not form.startswith(PERCENT):
        return _count(math.exp(abs(log)))
    percent = 100 * abs(math.expm1(log))
    while log < 0 and decimals < 9 and round(percent, decimals) >= 100:  # 99.6 % less is not 100
        decimals += 1
    return f"{percent:,.{decimals}f}"


def _count(number: float) -> str:
    """Two digits, which is more than an interval is good for."""
    return f"{float(f'{number:.2g}'):,.{1 if number < 9.95 else 0}f}" if number < 1e6 else f"{number:.0e}"
