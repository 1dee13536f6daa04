"""Mean and 95 % interval of what was measured once for each seed."""

import math
import statistics
from typing import Any

from scipy.special import stdtrit  # type: ignore[import-untyped]

CONFIDENCE = 0.95


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
