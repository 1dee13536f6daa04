"""Verdicts from constructed records, one for every word, and a clear error for every mistake in the YAML."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments import claims, intervals, records
from experiments.checks import Check
from experiments.errors import ClaimError

Change = dict[str, Any]
REMOVE = object()


def record(scale: str = "quick", **metrics: Any) -> records.Record:
    made = records.Record("tiny", scale, {})
    for name, value in metrics.items():
        made.metric(name, value)
    return made


@pytest.fixture
def claim(root: Path) -> Callable[..., claims.Claim]:
    """Load a claim with two checks, a < 1 and b > 2, after changing fields of the claim or of the first check."""

    def load(check: Change | None = None, **changes: Any) -> claims.Claim:
        first = {"metric": "a", "below": 1.0, "says": "small", "origin": "theory: eq. 1", **(check or {})}
        content = {
            **{
                "id": "one",
                "claim": "It works.",
                "where": "§1",
                "kind": "exact",
                "experiment": "x",
                "control": "y",
            },
            "checks": [first, {"metric": "b", "above": 2, "says": "large", "origin": "paper: table 1"}],
            **changes,
        }
        for fields in (first, content):
            for key in [key for key, value in fields.items() if value is REMOVE]:
                del fields[key]
        text = yaml.safe_dump({"paper": "key2015", "read": "All.", "claims": [content]})
        (root / "book/claims/tiny.yaml").write_text(text)
        return claims.load("tiny")[0]

    return load


CONTROL = {"metric": "c", "above": 0, "says": "a control", "origin": "pilot: chosen"}
WIDE = [0.0, 9.0, 0.0]  # an interval that decides nothing


@pytest.mark.parametrize(
    ("kind", "universal", "a", "b", "word"),
    [
        ("exact", False, 0.5, 3.0, "reproduced"),
        ("exact", True, 0.5, 3.0, "reproduced"),
        ("empirical", False, [0.5, 0.6, 0.5], [3.0, 3.1, 3.2], "reproduced"),
        ("exact", False, 0.5, 1.0, "reproduced in part"),
        ("exact", True, 0.5, 1.0, "refuted"),
        ("exact", True, 0.5, WIDE, "reproduced in part"),
        ("empirical", False, WIDE, 3.0, "reproduced in part"),
        ("exact", False, 1.5, 1.0, "refuted"),
        ("exact", False, WIDE, 1.0, "refuted"),
        ("exact", True, WIDE, 1.0, "refuted"),
        ("empirical", False, 1.5, 1.0, "not reproduced at this scale"),
        ("empirical", False, 1.5, WIDE, "not reproduced at this scale"),
        ("empirical", False, WIDE, WIDE, "undecided"),
        ("exact", True, WIDE, WIDE, "undecided"),
        ("exact", False, [0.5, None], None, "undecided"),
    ],
)
def test_every_word(
    claim: Callable[..., claims.Claim], kind: str, universal: bool, a: Any, b: Any, word: str
) -> None:
    verdict = claim(kind=kind, universal=universal).verdict(record(a=a, b=b))
    assert verdict is not None
    assert verdict.word == word
    assert word in claims.WORDS


def test_a_precondition_that_is_not_met(claim: Callable[..., claims.Claim]) -> None:
    made = claim(preconditions=[{**CONTROL, "metric": "d"}, CONTROL])
    for c, word in (
        (1.0, "reproduced"),
        (-1.0, "not testable"),
        ([-1.0, 1.0], "not testable"),
        (None, "not testable"),
    ):
        verdict = made.verdict(record(a=0.5, b=3.0, c=c, d=1.0))
        assert verdict is not None
        assert verdict.word == word
        assert [item.check.metric for item in verdict.preconditions] == ["d", "c"]


@pytest.mark.parametrize(("a", "b"), [(0.5, 3.0), (0.5, 1.0), (1.5, 1.0), (WIDE, WIDE)])
@pytest.mark.parametrize("kind", claims.KINDS)
def test_a_control_qualifies_and_never_counts(
    claim: Callable[..., claims.Claim], kind: str, a: Any, b: Any
) -> None:
    alone = claim(kind=kind).verdict(record(a=a, b=b))
    made = claim(kind=kind, controls=[CONTROL])
    for c, qualified in ((1.0, False), (-1.0, True), ([-1.0, 1.0], False)):
        verdict = made.verdict(record(a=a, b=b, c=c))
        assert verdict is not None
        assert alone is not None
        assert (verdict.word, verdict.evidence) == (alone.word, alone.evidence)
        assert verdict.qualified is qualified
        assert [item.check.metric for item in verdict.controls] == ["c"]


@pytest.mark.parametrize(
    ("grid", "value", "outcome"),
    [
        # a < 1: a factor of 2 between neighbours.
        ({"ratio": 2}, 0.49, "holds"),
        ({"ratio": 2}, 0.5, "undecided"),
        ({"ratio": 2}, 2.0, "undecided"),
        ({"ratio": 2}, 2.01, "fails"),
        ({"ratio": 2, "steps": 2}, 2.01, "undecided"),
        ({"ln": 2}, 1 - 0.694, "holds"),
        ({"ln": 2}, 1 - 0.693, "undecided"),
        ({"ln": 2}, 1.694, "fails"),
        ({"ln": "spacing"}, 1.694, "undecided"),  # the record's own, 4
        ({"log2": 2}, -0.01, "holds"),
        ({"log2": 2}, 0.0, "undecided"),
        ({"log2": 4}, -0.01, "undecided"),
    ],
)
def test_the_interval_includes_the_grid(
    claim: Callable[..., claims.Claim], grid: Change, value: float, outcome: str
) -> None:
    made = record(a=value, b=3.0)
    made.parameters["spacing"] = 4
    verdict = claim({"grid": grid}).verdict(made)
    assert verdict is not None
    assert (verdict.evidence[0].mean, verdict.evidence[0].outcome) == (value, outcome)


def test_one_metric_over_another_seed_by_seed(claim: Callable[..., claims.Claim]) -> None:
    made = claim({"over": "b"})
    # 0.5, 0.5, 0.5: paired by seed, the ratio has no spread, though both metrics have.
    verdict = made.verdict(record(a=[2.0, 3.0, 4.0], b=[4.0, 6.0, 8.0]))
    assert verdict is not None
    assert verdict.evidence[0][1:] == (0.5, 0.5, 0.5, "holds")
    for a, b in ((None, 4.0), ([2.0, None], [4.0, 4.0]), ([2.0, 2.0], [4.0, 0.0])):
        verdict = made.verdict(record(a=a, b=b))
        assert verdict is not None
        assert (verdict.evidence[0].mean, verdict.evidence[0].outcome) == (None, "undecided")
    for a, b, message in (([1.0], [1.0, 2.0], "not of the same seeds"), ("text", 3.0, "is not a number")):
        with pytest.raises(ClaimError, match=rf"tiny\.yaml: claim 'one': .*{message}"):
            made.verdict(record(a=a, b=b))


def test_a_limit_can_hold_and_not_fail(claim: Callable[..., claims.Claim]) -> None:
    for a, word in ((0.5, "reproduced"), (1.5, "reproduced in part")):
        verdict = claim({"limit": True}, universal=True).verdict(record(a=a, b=3.0))
        assert verdict is not None
        assert verdict.word == word


def test_a_grid_that_the_record_does_not_name(claim: Callable[..., claims.Claim]) -> None:
    with pytest.raises(ClaimError, match=r"tiny\.yaml: claim 'one': .* has no parameter 'spacing'"):
        claim({"grid": {"ln": "spacing"}}).verdict(record(a=0.5, b=3.0))


def test_what_was_changed_is_kept(claim: Callable[..., claims.Claim]) -> None:
    was = {"old": "below 2", "why": "the word is one-sided", "date": datetime.date(2026, 11, 28)}
    assert not claim().changed
    for changed in (claim({"was": [was]}), claim(was=[was]), claim(controls=[{**CONTROL, "was": [was]}])):
        assert changed.changed
    assert claim({"was": [was]}).checks[0].was == (tuple(was.values()),)


def test_a_claim_may_stand_elsewhere(claim: Callable[..., claims.Claim]) -> None:
    assert (claim().paper, claim().own) == ("key2015", False)
    elsewhere = claim(paper="other2016", own=True)
    assert (elsewhere.paper, elsewhere.own) == ("other2016", True)


def test_the_origin_of_a_claim_is_that_of_its_checks(claim: Callable[..., claims.Claim]) -> None:
    made = claim({"origin": REMOVE}, origin="pilot: 0.126 had been computed")
    assert [check.origin for check in made.checks] == ["pilot: 0.126 had been computed", "paper: table 1"]


def test_no_record_no_verdict(claim: Callable[..., claims.Claim]) -> None:
    assert claim().verdict(None) is None


def test_the_interval_is_students(claim: Callable[..., claims.Claim]) -> None:
    # By the table: t(0.975, 2) = 4.302653, and these three have standard deviation 1.
    mean, low, high = intervals.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    assert intervals.interval(5) == intervals.interval([5]) == (5.0, 5.0, 5.0)
    verdict = claim().verdict(record(a=[-1.0, 0.0, 1.0], b=3.0))
    assert verdict is not None
    first = verdict.evidence[0]
    assert (first.check.says, first.mean, first.outcome) == ("small", 0.0, "undecided")
    assert first.high == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("criterion", "low", "high", "outcome"),
    [
        ({"below": 1.0}, 0.5, 0.9, "holds"),
        ({"below": 1.0}, 0.5, 1.0, "undecided"),
        ({"below": 1.0}, 1.0, 1.5, "fails"),
        ({"above": 1.0}, 1.1, 1.5, "holds"),
        ({"above": 1.0}, 0.5, 1.5, "undecided"),
        ({"above": 1.0}, 0.5, 1.0, "fails"),
        ({"between": [1.0, 2.0]}, 1.0, 2.0, "holds"),
        ({"between": [1.0, 2.0]}, 0.9, 1.5, "undecided"),
        ({"between": [1.0, 2.0]}, 0.9, 2.5, "undecided"),
        ({"between": [1.0, 2.0]}, 2.1, 2.5, "fails"),
        ({"between": [1.0, 2.0]}, 0.1, 0.9, "fails"),
        ({"below": 1.0}, None, None, "undecided"),
    ],
)
def test_outcomes(criterion: Change, low: float | None, high: float | None, outcome: str) -> None:
    assert Check("a", "says", criterion).outcome("quick", low, high) == outcome


def test_scales(claim: Callable[..., claims.Claim]) -> None:
    made = claim({"at": {"standard": {"above": 5}}}, kind="empirical")
    words = [made.verdict(record(scale, a=6.0, b=3.0)) for scale in ("quick", "standard")]
    assert [verdict.word for verdict in words if verdict] == ["reproduced in part", "reproduced"]
    assert [made.checks[0].describe(scale) for scale in ("quick", "standard")] == ["< 1", "> 5"]
    restricted = claim({"only_at": ["standard"]})
    verdict = restricted.verdict(record(b=3.0))
    assert verdict is not None
    assert (verdict.word, len(verdict.evidence)) == ("reproduced", 1)
    nothing = claim(
        checks=[{"metric": "a", "below": 1, "says": "s", "only_at": ["paper"], "origin": "pilot: x"}]
    ).verdict(record())
    assert nothing is not None
    assert nothing.word == "not testable"


@pytest.mark.parametrize(
    ("check", "changes", "message"),
    [
        ({"belov": 1}, {}, "claim 'one', check 1: does not know `belov`"),
        ({"below": REMOVE}, {}, "check 1: needs exactly one criterion out of below, above, between"),
        ({"above": 0}, {}, "check 1: needs exactly one criterion"),
        ({"below": "1e-6"}, {}, "`below` must be a number, not '1e-6' .*write 1.0e-6"),
        ({"below": True}, {}, "`below` must be a number, not True"),
        ({"below": REMOVE, "between": 3}, {}, "`between` must be \\[low, high\\], two numbers, not 3"),
        ({"below": REMOVE, "between": [2, 1]}, {}, "`between` must be \\[low, high\\], not \\[2, 1\\]"),
        ({"metric": REMOVE}, {}, "check 1: lacks `metric`"),
        ({"at": {"huge": {"below": 1}}}, {}, "`at` must name scales out of quick, standard, paper"),
        ({"at": {"paper": {"under": 1}}}, {}, "check 1, at paper: needs exactly one criterion"),
        ({"only_at": "paper"}, {}, "`only_at` must name scales"),
        ({"only_at": []}, {}, "check 1: `only_at` names no scale"),
        ({"metric": 5}, {}, "check 1: `metric` must be text, not 5"),
        ({"says": True}, {}, "check 1: `says` must be text, not True"),
        ({}, {"kind": "sure"}, "claim 'one': `kind` must be exact or empirical, not 'sure'"),
        ({}, {"control": REMOVE}, "claim 'one': lacks `control`"),
        ({}, {"why": "x"}, "claim 'one': does not know `why`"),
        ({}, {"checks": []}, "`checks` must be a list of at least one check"),
        ({}, {"claim": 3}, "`claim` must be text, not 3"),
        ({}, {"preconditions": [{"metric": "c", "says": "s"}]}, "precondition 1: needs exactly one criterion"),
        ({}, {"preconditions": CONTROL}, "`preconditions` must be a list of at least one check"),
        ({}, {"controls": []}, "`controls` must be a list of at least one check"),
        ({}, {"controls": [{**CONTROL, "metric": "b"}]}, "claim 'one': b is both a check and a control"),
        (
            {"origin": REMOVE},
            {},
            "check 1: lacks `origin`, which says where the threshold comes from: `theory: <eq",
        ),
        ({"origin": "theory"}, {}, "check 1: `origin` must be `theory: <equation>`.*not 'theory'"),
        ({"origin": "guess: 0.1"}, {}, "check 1: `origin` must be .*not 'guess: 0.1'"),
        ({}, {"origin": 3}, "claim 'one': `origin` must be text, not 3"),
        ({}, {"universal": "yes"}, "claim 'one': `universal` must be true or false, not 'yes'"),
        ({}, {"universal": True, "kind": "empirical"}, "claim 'one': only an exact claim can be `universal`"),
        ({}, {"own": 1}, "claim 'one': `own` must be true or false, not 1"),
        ({}, {"paper": 1}, "claim 'one': `paper` must be text, not 1"),
        ({"grid": 2}, {}, "check 1: `grid` must be \\{unit: factor\\}, the unit one of ratio, ln, log2.*not 2"),
        ({"grid": {"ln": 1}}, {}, "check 1: `grid` must be"),
        ({"grid": {"ln": 2, "ratio": 2}}, {}, "check 1: `grid` must be"),
        ({"grid": {"ln": 2, "steps": 0}}, {}, "check 1: `grid` must be"),
        ({"grid": {"steps": 2}}, {}, "check 1: `grid` must be"),
        ({"limit": 1}, {}, "check 1: `limit` must be true or false, not 1"),
        ({"over": 1}, {}, "check 1: `over` must be text, not 1"),
        ({"was": {"old": "x"}}, {}, "check 1: `was` must be a list, oldest first, not"),
        ({"was": [{"old": "x", "why": "y"}]}, {}, "check 1, was: lacks `date`"),
        ({"was": [{"old": "x", "why": "y", "date": "today"}]}, {}, "was: `date` must be a date, .* not 'today'"),
        ({}, {"was": [{"old": "", "why": "y", "date": "today"}]}, "claim 'one', was: `date` must be"),
        ({}, {"id": REMOVE}, "claim 1: lacks `id`"),
    ],
)
def test_mistakes_name_the_file_and_the_claim(
    claim: Callable[..., claims.Claim], check: Change, changes: Change, message: str
) -> None:
    with pytest.raises(ClaimError, match=rf"tiny\.yaml: .*{message}"):
        claim(check, **changes)


def test_a_metric_that_the_record_lacks(claim: Callable[..., claims.Claim]) -> None:
    with pytest.raises(ClaimError, match=r"tiny\.yaml: claim 'one': .* has no metric 'a'; the nearest are b"):
        claim().verdict(record(b=3.0))
    with pytest.raises(ClaimError, match="'text' is not a number"):
        claim().verdict(record(a="text", b=3.0))


def test_files_that_are_not_claims(root: Path) -> None:
    path = root / "book/claims/tiny.yaml"
    with pytest.raises(ClaimError, match=r"tiny\.yaml does not exist; there are claims for no paper"):
        claims.load("tiny")
    for text, message in (
        ("a: [", "is not YAML"),
        ("- 1", "must be a mapping with claims, paper, read"),
        ("a: 2026-99-99", "is not YAML"),
        ("paper: x\nread: x\nclaims: 3", "`claims` must be a list"),
        ("paper: 3\nread: x\nclaims: []", "`paper` must be a key of book/references.bib, not 3"),
        ("paper: x\nclaims: []", "lacks `read`"),
        ("paper: x\nread:\nclaims: []", "`read` must be a line on what was read of the paper, not None"),
    ):
        path.write_text(text)
        with pytest.raises(ClaimError, match=rf"tiny\.yaml.*{message}"):
            claims.load("tiny")
    assert claims.slugs() == ["tiny"]


def test_two_claims_with_one_id(root: Path, claim: Callable[..., claims.Claim]) -> None:
    claim()
    path = root / "book/claims/tiny.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "claims": content["claims"] * 2}))
    with pytest.raises(ClaimError, match="two claims have the same id"):
        claims.load("tiny")


@pytest.mark.parametrize("slug", claims.slugs())
def test_the_books_own_claims_load_and_their_metrics_are_published(slug: str) -> None:
    published = records.published(slug)
    assert published is not None, "no published record"
    for claim in claims.load(slug):
        assert claim.verdict(published) is not None


EVERY = [(slug, claim) for slug in claims.slugs() for claim in claims.load(slug)]


@pytest.mark.parametrize("slug", claims.slugs())
def test_every_chapter_says_what_was_read(slug: str) -> None:
    line = claims.read(slug)
    assert len(line) > 10
    assert "\n" not in line


@pytest.mark.parametrize(("slug", "claim"), [pytest.param(*one, id=f"{one[0]}-{one[1].id}") for one in EVERY])
def test_no_control_is_among_the_checks(slug: str, claim: claims.Claim) -> None:
    """What is a control of one claim of a paper is a check of none, and what once was a control remains one."""
    controls = {(check.metric, check.over) for other in claims.load(slug) for check in other.controls}
    checks = {(check.metric, check.over) for check in claim.checks}
    assert checks & controls == set()
    assert [check.metric for check in claim.checks if "control" in f"{check.metric} {check.says}".lower()] == []
    assert [check.metric for check in claim.checks if any("a check" in was.old for was in check.was)] == []


# Corrected formulas, other rules, other settings: whatever they show, the claim is not about them.
CONTROLS = [
    *(("adam", "first_step.uncorrected"), ("adam", "invariance.down_default_eps")),
    *(("adadelta", "units.matched"), ("adadelta", "slope.adagrad"), ("adamw", "fixed.derived")),
    *(("hogwild", "delay.narrow_16"), ("hogwild", "delay.slow_64"), ("large_lr", "cluster.m200.ratio")),
    *(("marginal_value", "rotation.excess"), ("marginal_value", "epsilon.excess")),
    *(("nadam", "training.over_adam_half"), ("overview", "escape.adam"), ("lookahead", "variance.control")),
]


@pytest.mark.parametrize(("slug", "metric"), CONTROLS)
def test_what_is_a_control(slug: str, metric: str) -> None:
    loaded = claims.load(slug)
    assert [claim.id for claim in loaded if metric in {check.metric for check in claim.checks}] == []
    assert len([claim.id for claim in loaded if metric in {check.metric for check in claim.controls}]) == 1


@pytest.mark.parametrize(("slug", "claim"), [pytest.param(*one, id=f"{one[0]}-{one[1].id}") for one in EVERY])
def test_every_threshold_has_an_origin(root: Path, slug: str, claim: claims.Claim) -> None:
    """Also without the loader's help: a claims file that loses one is refused."""
    path = root / "book/claims" / f"{slug}.yaml"
    content = yaml.safe_load(claim.file.read_text(encoding="utf-8"))
    (found,) = (one for one in content["claims"] if one["id"] == claim.id)
    found.pop("origin", None)
    for check in found["checks"]:
        check.pop("origin", None)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ClaimError, match=rf"claim '{claim.id}', check 1: lacks `origin`"):
        claims.load(slug)
