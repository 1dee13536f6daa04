"""One criterion on one metric: its bounds, where they come from, and whether a record meets them.

A claims file holds criteria in three places: the checks of a claim, its controls, and its preconditions.
"""

import datetime
import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from experiments.errors import ClaimError, RecordError
from experiments.intervals import interval
from experiments.records import SCALES, Record

CRITERIA = ("below", "above", "between")
ORIGINS = ("theory", "paper", "pilot")
UNITS = ("ratio", "ln", "log2")
ROUNDING = 1e-9
Outcome = Literal["holds", "fails", "undecided"]


class Was(NamedTuple):
    """What stood in the claims file until `date`, and why it was changed."""

    old: str
    why: str
    date: datetime.date


class Grid(NamedTuple):
    """Of a metric that is a ratio of learning rates from a grid, or its logarithm: each may be its neighbour."""

    unit: str  # ratio, ln or log2
    factor: float | str  # between neighbours; a name is that of a parameter of the record
    steps: int

    def widen(self, low: float, high: float, record: Record) -> tuple[float, float]:
        """The interval with the grid's steps on either side."""
        factor = record.parameters.get(self.factor) if isinstance(self.factor, str) else self.factor
        if not isinstance(factor, int | float) or factor <= 1:
            raise RecordError(f"{record.name} has no parameter {self.factor!r} that is the factor of a grid")
        step = float(factor) ** self.steps
        if self.unit == "ratio":
            return min(low * step, low / step), max(high * step, high / step)
        half = math.log(step) if self.unit == "ln" else math.log2(step)
        return low - half, high + half


@dataclass(frozen=True)
class Check:
    """One criterion: low < metric < high (or low ≤ metric ≤ high for `between`), possibly other at some scales.

    With `over`, of the metric divided by that one, seed by seed. A `limit` may be reached later than any run ends:
    its criterion can hold, but not fail.
    """

    metric: str
    says: str
    criterion: dict[str, Any]
    at: dict[str, dict[str, Any]] = field(default_factory=dict)
    only_at: tuple[str, ...] = SCALES
    origin: str = "pilot: not said"
    grid: Grid | None = None
    over: str | None = None
    limit: bool = False
    was: tuple[Was, ...] = ()

    def bounds(self, scale: str) -> tuple[str, tuple[float, float]]:
        """The kind of criterion, and the two bounds, at a scale."""
        ((kind, value),) = (self.at.get(scale) or self.criterion).items()
        if kind == "between":
            return kind, (float(value[0]), float(value[1]))
        return kind, (-math.inf, float(value)) if kind == "below" else (float(value), math.inf)

    def describe(self, scale: str) -> str:
        """The criterion in symbols: `< 1e-06`, `> 0.5`, `0.9 to 1.1`."""
        kind, (low, high) = self.bounds(scale)
        return {"below": f"< {high:g}", "above": f"> {low:g}", "between": f"{low:g} to {high:g}"}[kind]

    def outcome(self, scale: str, low: float | None, high: float | None) -> Outcome:
        """Holds if the whole interval satisfies the criterion, fails if the whole interval violates it.

        With a grid in it, an interval that touches the bound decides nothing: one step apart is not apart.
        """
        if low is None or high is None:
            return "undecided"
        kind, (lower, upper) = self.bounds(scale)
        gap = ROUNDING if self.grid else 0.0
        if kind == "between":
            inside, outside = lower <= low and high <= upper, high + gap < lower or low - gap > upper
        else:
            inside = lower < low and high < upper
            outside = low - gap >= upper if kind == "below" else high + gap <= lower
        return "holds" if inside else "fails" if outside and not self.limit else "undecided"

    def evidence(self, record: Record) -> "Evidence":
        """What a record says of it. RecordError if it lacks the metric, TypeError if that holds no numbers."""
        value = record.get(self.metric)
        if self.over is not None:
            value = _quotient(value, record.get(self.over))
        mean, low, high = interval(value)
        if self.grid and low is not None and high is not None:
            low, high = self.grid.widen(low, high, record)
        return Evidence(self, mean, low, high, self.outcome(record.scale, low, high))


class Evidence(NamedTuple):
    """What a check rests on: mean and 95 % interval over the seeds; None where a run gave no finite number."""

    check: Check
    mean: float | None
    low: float | None
    high: float | None
    outcome: Outcome


def _quotient(above: Any, below: Any) -> Any:
    """Seed by seed; null where either is, and where nothing divides."""
    if not isinstance(above, list) and not isinstance(below, list):
        above, below = [above], [below]
    if not isinstance(above, list) or not isinstance(below, list) or len(above) != len(below):
        raise TypeError(f"{above!r} and {below!r} are not of the same seeds")
    if any(isinstance(item, str) for item in (*above, *below)):
        raise TypeError(f"{above!r} ÷ {below!r} is not a number")
    return [None if a is None or not b else a / b for a, b in zip(above, below, strict=True)]


def parse(item: Any, where: str, origin: str | None = None) -> Check:
    """A check as it stands in a claims file; `origin` is its claim's. ClaimError for any mistake."""
    keys(item, {"metric", "says"}, {*CRITERIA, *_OPTIONS}, where)
    metric, says = (text(item, key, where) for key in ("metric", "says"))
    over = text(item, "over", where) if "over" in item else None
    limit = flag(item, "limit", where)
    at, only_at = item.get("at", {}), item.get("only_at", list(SCALES))
    for name, scales in (("at", at), ("only_at", only_at)):
        if not isinstance(scales, dict if name == "at" else list) or any(scale not in SCALES for scale in scales):
            raise ClaimError(f"{where}: `{name}` must name scales out of {', '.join(SCALES)}")
    if not only_at:
        raise ClaimError(f"{where}: `only_at` names no scale")
    own = {key: item[key] for key in CRITERIA if key in item}
    missing = [scale for scale in only_at if scale not in at]
    if own or missing:
        _criterion(own, where)
    for scale, criterion in at.items():
        _criterion(criterion, f"{where}, at {scale}")
    source = parse_origin(item, where) or origin
    if source is None:
        raise ClaimError(f"{where}: lacks `origin`, which says where the threshold comes from: {_FORMS}")
    grid, was = _grid(item.get("grid"), where), parse_was(item, where)
    return Check(metric, says, own, at, tuple(only_at), source, grid, over, limit, was)


_OPTIONS = ("at", "only_at", "origin", "grid", "over", "limit", "was")
_FORMS = "`theory: <equation>`, `paper: <table or section>`, or `pilot: <what was known>`"


def parse_origin(item: dict[str, Any], where: str) -> str | None:
    if "origin" not in item:
        return None
    origin = text(item, "origin", where)
    word, _, source = origin.partition(":")
    if word not in ORIGINS or not source.strip():
        raise ClaimError(f"{where}: `origin` must be {_FORMS}, not {origin!r}")
    return origin


def parse_was(item: dict[str, Any], where: str) -> tuple[Was, ...]:
    """The earlier versions, oldest first: `was: [{old: …, why: …, date: 2026-11-28}]`."""
    versions = item.get("was", [])
    if not isinstance(versions, list):
        raise ClaimError(f"{where}: `was` must be a list, oldest first, not {versions!r}")
    for version in versions:
        keys(version, {"old", "why", "date"}, set(), f"{where}, was")
        if type(version["date"]) is not datetime.date:
            raise ClaimError(f"{where}, was: `date` must be a date, year-month-day, not {version['date']!r}")
    place = f"{where}, was"
    return tuple(Was(text(item, "old", place), text(item, "why", place), item["date"]) for item in versions)


def _grid(item: Any, where: str) -> Grid | None:
    if item is None:
        return None
    form = (
        f"{where}: `grid` must be {{unit: factor}}, the unit one of {', '.join(UNITS)} and the factor a number "
        f"above 1 or the name of a parameter; it may have `steps`, a whole number above 0; not {item!r}"
    )
    if not isinstance(item, dict) or len(set(item) & set(UNITS)) != 1 or set(item) - {*UNITS, "steps"}:
        raise ClaimError(form)
    (unit,) = set(item) & set(UNITS)
    factor, steps = item[unit], item.get("steps", 1)
    number = isinstance(factor, int | float) and not isinstance(factor, bool) and 1 < factor < math.inf
    if not (number or isinstance(factor, str)) or type(steps) is not int or steps < 1:
        raise ClaimError(form)
    return Grid(unit, factor, steps)


def _criterion(item: Any, where: str) -> None:
    if not isinstance(item, dict) or len(item) != 1 or not set(item) <= set(CRITERIA):
        raise ClaimError(f"{where}: needs exactly one criterion out of {', '.join(CRITERIA)}")
    ((kind, value),) = item.items()
    numbers = value if kind == "between" else [value]
    if (
        not isinstance(numbers, list)
        or len(numbers) != (2 if kind == "between" else 1)
        or any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers)
    ):
        shape = "[low, high], two numbers" if kind == "between" else "a number"
        raise ClaimError(
            f"{where}: `{kind}` must be {shape}, not {value!r} (YAML reads 1e-6 as text: write 1.0e-6)"
        )
    if kind == "between" and numbers[0] > numbers[1]:
        raise ClaimError(f"{where}: `between` must be [low, high], not {value!r}")


def text(item: dict[str, Any], key: str, where: str) -> str:
    """A field that must hold text."""
    value = item[key]
    if not isinstance(value, str) or not value.strip():
        raise ClaimError(f"{where}: `{key}` must be text, not {value!r}")
    return value


def flag(item: dict[str, Any], key: str, where: str) -> bool:
    """A field that is true or false, or absent, which is false."""
    value = item.get(key, False)
    if not isinstance(value, bool):
        raise ClaimError(f"{where}: `{key}` must be true or false, not {value!r}")
    return value


def keys(item: Any, required: set[str], optional: set[str], where: str) -> None:
    """A mapping that has these keys and no others."""
    if not isinstance(item, dict):
        raise ClaimError(f"{where}: must be a mapping with {', '.join(sorted(required))}")
    for word, wrong in (("lacks", required - set(item)), ("does not know", set(item) - required - optional)):
        if wrong:
            raise ClaimError(f"{where}: {word} {', '.join(f'`{key}`' for key in sorted(map(str, wrong)))}")
