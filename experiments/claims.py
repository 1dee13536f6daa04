"""What the papers claim, and the verdict that a record gives. Claims stand in `book/claims/<slug>.yaml`.

Nothing here knows an optimizer: a claim is a list of criteria on metrics, written before the run, and its verdict
follows from the intervals that the seeds give.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments import checks, records
from experiments.checks import Check, Evidence, Outcome, Was
from experiments.errors import ClaimError, RecordError
from experiments.records import Record

KINDS = ("exact", "empirical")
WORDS = (
    *("reproduced", "reproduced in part", "undecided", "not reproduced at this scale", "refuted"),
    "not testable",
)


class Verdict(NamedTuple):
    """A word, from checks and preconditions alone, and what it rests on. Controls can only qualify it."""

    word: str
    evidence: list[Evidence]
    controls: list[Evidence]
    preconditions: list[Evidence]

    @property
    def qualified(self) -> bool:
        """Whether a control failed: then the word holds, but not for the reason, or the reach, that one thinks."""
        return self.word != "not testable" and any(item.outcome == "fails" for item in self.controls)


@dataclass(frozen=True)
class Claim:
    """What a paper claims, and what decides it.

    A *universal* claim (exact ones only) speaks of all cases, so that one failing check refutes it; others list
    instances, or parts, each of which may hold for itself. The book's *own* claims are counted apart.
    """

    id: str
    claim: str
    where: str
    kind: str
    experiment: str
    control: str
    checks: tuple[Check, ...]
    paper: str  # a key of book/references.bib
    file: Path
    controls: tuple[Check, ...] = ()
    preconditions: tuple[Check, ...] = ()
    universal: bool = False
    own: bool = False
    was: tuple[Was, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything that decides it was changed after its first verdict had been printed."""
        return bool(self.was) or any(one.was for one in (*self.checks, *self.controls, *self.preconditions))

    def verdict(self, record: Record | None) -> Verdict | None:
        """The verdict of a record, or None without one. ClaimError if the record lacks a metric."""
        if record is None:
            return None
        evidence, controls, preconditions = (
            [self._evidence(check, record) for check in listed if record.scale in check.only_at]
            for listed in (self.checks, self.controls, self.preconditions)
        )
        testable = all(item.outcome == "holds" for item in preconditions)
        word = self._word({item.outcome for item in evidence}) if testable and evidence else "not testable"
        return Verdict(word, evidence, controls, preconditions)

    def _word(self, outcomes: set[Outcome]) -> str:
        if outcomes == {"holds"}:
            return "reproduced"
        if "fails" in outcomes and (self.universal or (self.kind == "exact" and "holds" not in outcomes)):
            return "refuted"
        if "holds" in outcomes:
            return "reproduced in part"
        return "not reproduced at this scale" if "fails" in outcomes else "undecided"

    def _evidence(self, check: Check, record: Record) -> Evidence:
        try:
            return check.evidence(record)
        except (RecordError, TypeError) as error:
            raise ClaimError(f"{self.file}: claim {self.id!r}: {error}") from error


def slugs() -> list[str]:
    """The papers that have a claims file, sorted."""
    return sorted(path.stem for path in (records.ROOT / "book" / "claims").glob("*.yaml"))


def read(slug: str) -> str:
    """What the author of a chapter had of its paper, in one line."""
    return checks.text(_file(slug), "read", str(_path(slug)))


def load(slug: str) -> list[Claim]:
    """The claims of one paper, in the file's order. ClaimError naming the file and the claim for any mistake."""
    content, path = _file(slug), _path(slug)
    for key, what in (("paper", "a key of book/references.bib"), ("read", "a line on what was read of the paper")):
        if not isinstance(content[key], str) or not content[key].strip():
            raise ClaimError(f"{path}: `{key}` must be {what}, not {content[key]!r}")
    if not isinstance(content["claims"], list) or not content["claims"]:
        raise ClaimError(f"{path}: `claims` must be a list of claims")
    claims = [_claim(item, i, content["paper"], path) for i, item in enumerate(content["claims"], 1)]
    if len({claim.id for claim in claims}) < len(claims):
        raise ClaimError(f"{path}: two claims have the same id")
    return claims


def _path(slug: str) -> Path:
    return records.ROOT / "book" / "claims" / f"{slug}.yaml"


@functools.lru_cache(maxsize=64)
def _content(text: str) -> Any:
    """What a claims file holds; a page reads it once for each of its cards."""
    return yaml.safe_load(text)


def _file(slug: str) -> dict[str, Any]:
    path = _path(slug)
    try:
        content = _content(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ClaimError(
            f"{path} does not exist; there are claims for {', '.join(slugs()) or 'no paper'}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ClaimError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    checks.keys(content, {"paper", "read", "claims"}, set(), f"{path}")
    mapping: dict[str, Any] = content
    return mapping


def _claim(item: Any, number: int, paper: str, path: Path) -> Claim:
    where = (
        f"{path}: claim {item['id']!r}" if isinstance(item, dict) and "id" in item else f"{path}: claim {number}"
    )
    texts = ("id", "claim", "where", "kind", "experiment", "control")
    flags = ("universal", "own")
    lists = ("checks", "controls", "preconditions")
    checks.keys(item, {*texts, "checks"}, {*flags, *lists, "paper", "origin", "was"}, where)
    fields: dict[str, Any] = {key: checks.text(item, key, where) for key in texts}
    if item["kind"] not in KINDS:
        raise ClaimError(f"{where}: `kind` must be {' or '.join(KINDS)}, not {item['kind']!r}")
    for key in flags:
        fields[key] = checks.flag(item, key, where)
    if fields["universal"] and item["kind"] != "exact":
        raise ClaimError(f"{where}: only an exact claim can be `universal`, which one failing check refutes")
    origin = checks.parse_origin(item, where)
    for key in lists:
        listed = item.get(key, [])
        if not isinstance(listed, list) or (key in item and not listed):
            raise ClaimError(f"{where}: `{key}` must be a list of at least one check")
        fields[key] = tuple(
            checks.parse(one, f"{where}, {key.removesuffix('s')} {i}", origin) for i, one in enumerate(listed, 1)
        )
    checked, controlled = ({(one.metric, one.over) for one in fields[key]} for key in ("checks", "controls"))
    if twice := sorted(metric for metric, _ in checked & controlled):
        raise ClaimError(f"{where}: {', '.join(twice)} is both a check and a control: choose one")
    fields["paper"] = checks.text(item, "paper", where) if "paper" in item else paper
    return Claim(**fields, file=path, was=checks.parse_was(item, where))
