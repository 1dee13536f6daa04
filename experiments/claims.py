"""What the papers claim, and the verdict that a record gives. Claims stand in `book/claims/<slug>.yaml`.

Nothing here knows an optimizer: a claim is a list of criteria on metrics, written before the run, and its verdict
follows from the intervals that the seeds give.
"""

import functools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from scipy.special import stdtrit  # type: ignore[import-untyped]

from experiments import records
from experiments.errors import ClaimError, RecordError
from experiments.records import SCALES, Record

CONFIDENCE = 0.95
KINDS = ("exact", "empirical")
WORDS = ("reproduced", "reproduced in part", "not reproduced at this scale", "refuted", "not testable")
CRITERIA = ("below", "above", "between")
Outcome = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Check:
    """One criterion: low < metric < high (or low ≤ metric ≤ high for `between`), possibly other at some scales."""

    metric: str
    says: str
    criterion: dict[str, Any]
    at: dict[str, dict[str, Any]]
    only_at: tuple[str, ...] = SCALES

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
        """Holds if the whole interval satisfies the criterion, fails if the whole interval violates it."""
        if low is None or high is None:
            return "undecided"
        kind, (lower, upper) = self.bounds(scale)
        if kind == "between":
            inside, outside = lower <= low and high <= upper, high < lower or low > upper
        else:
            inside = lower < low and high < upper
            outside = low >= upper if kind == "below" else high <= lower
        return "holds" if inside else "fails" if outside else "undecided"


class Evidence(NamedTuple):
    """What a check rests on: mean and 95 % interval over the seeds; None where a run gave no finite number."""

    check: Check
    mean: float | None
    low: float | None
    high: float | None
    outcome: Outcome


class Verdict(NamedTuple):
    word: str
    evidence: list[Evidence]


@dataclass(frozen=True)
class Claim:
    id: str
    claim: str
    where: str
    kind: str
    experiment: str
    control: str
    checks: tuple[Check, ...]
    precondition: Check | None
    paper: str  # a key of book/references.bib
    file: Path

    def verdict(self, record: Record | None) -> Verdict | None:
        """The verdict of a record, or None without one. ClaimError if the record lacks a metric."""
        if record is None:
            return None
        evidence = [self._evidence(check, record) for check in self.checks if record.scale in check.only_at]
        outcomes = [item.outcome for item in evidence]
        met = self.precondition is None or self._evidence(self.precondition, record).outcome == "holds"
        if not met or not outcomes:
            word = "not testable"
        elif all(outcome == "holds" for outcome in outcomes):
            word = "reproduced"
        elif "holds" in outcomes:
            word = "reproduced in part"
        elif self.kind == "exact" and "fails" in outcomes:
            word = "refuted"
        else:
            word = "not reproduced at this scale"
        return Verdict(word, evidence)

    def _evidence(self, check: Check, record: Record) -> Evidence:
        try:
            mean, low, high = interval(record.get(check.metric))
        except (RecordError, TypeError) as error:
            raise ClaimError(f"{self.file}: claim {self.id!r}: {error}") from error
        return Evidence(check, mean, low, high, check.outcome(record.scale, low, high))


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


def slugs() -> list[str]:
    """The papers that have a claims file, sorted."""
    return sorted(path.stem for path in (records.ROOT / "book" / "claims").glob("*.yaml"))


def load(slug: str) -> list[Claim]:
    """The claims of one paper, in the file's order. ClaimError naming the file and the claim for any mistake."""
    path = records.ROOT / "book" / "claims" / f"{slug}.yaml"
    try:
        content = _content(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ClaimError(
            f"{path} does not exist; there are claims for {', '.join(slugs()) or 'no paper'}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClaimError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    _keys(content, {"paper", "claims"}, set(), f"{path}")
    if not isinstance(content["paper"], str):
        raise ClaimError(f"{path}: `paper` must be a key of book/references.bib, not {content['paper']!r}")
    if not isinstance(content["claims"], list) or not content["claims"]:
        raise ClaimError(f"{path}: `claims` must be a list of claims")
    claims = [_claim(item, i, content["paper"], path) for i, item in enumerate(content["claims"], 1)]
    if len({claim.id for claim in claims}) < len(claims):
        raise ClaimError(f"{path}: two claims have the same id")
    return claims


@functools.lru_cache(maxsize=64)
def _content(text: str) -> Any:
    """What a claims file holds; a page reads it once for each of its cards."""
    return yaml.safe_load(text)


def _claim(item: Any, number: int, paper: str, path: Path) -> Claim:
    where = (
        f"{path}: claim {item['id']!r}" if isinstance(item, dict) and "id" in item else f"{path}: claim {number}"
    )
    texts = {"id", "claim", "where", "kind", "experiment", "control"}
    _keys(item, texts | {"checks"}, {"precondition"}, where)
    for key in sorted(texts):
        if not isinstance(item[key], str) or not item[key].strip():
            raise ClaimError(f"{where}: `{key}` must be text, not {item[key]!r}")
    if item["kind"] not in KINDS:
        raise ClaimError(f"{where}: `kind` must be {' or '.join(KINDS)}, not {item['kind']!r}")
    if not isinstance(item["checks"], list) or not item["checks"]:
        raise ClaimError(f"{where}: `checks` must be a list of at least one check")
    checks = tuple(_check(check, f"{where}, check {i}") for i, check in enumerate(item["checks"], 1))
    precondition = item.get("precondition")
    condition = _check(precondition, f"{where}, precondition") if precondition is not None else None
    return Claim(**{key: item[key] for key in texts}, checks=checks, precondition=condition, paper=paper, file=path)


def _check(item: Any, where: str) -> Check:
    _keys(item, {"metric", "says"}, {*CRITERIA, "at", "only_at"}, where)
    for key in ("metric", "says"):
        if not isinstance(item[key], str) or not item[key].strip():
            raise ClaimError(f"{where}: `{key}` must be text, not {item[key]!r}")
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
    return Check(item["metric"], item["says"], own, at, tuple(only_at))


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


def _keys(item: Any, required: set[str], optional: set[str], where: str) -> None:
    if not isinstance(item, dict):
        raise ClaimError(f"{where}: must be a mapping with {', '.join(sorted(required))}")
    for word, keys in (("lacks", required - set(item)), ("does not know", set(item) - required - optional)):
        if keys:
            raise ClaimError(f"{where}: {word} {', '.join(f'`{key}`' for key in sorted(map(str, keys)))}")
