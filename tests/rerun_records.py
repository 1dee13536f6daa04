"""The records that nbval has just written, beside the published ones; `make test` runs this after nbval.

Digits may differ between processors, and an empirical claim on the edge may tip over. An exact one may not.
"""

import pytest

from experiments import claims, records
from experiments.claims import Claim

EXACT = [(slug, claim) for slug in claims.slugs() for claim in claims.load(slug) if claim.kind == "exact"]


@pytest.mark.parametrize(("slug", "claim"), [pytest.param(*one, id=f"{one[0]}-{one[1].id}") for one in EXACT])
def test_an_exact_claim_comes_out_as_published(slug: str, claim: Claim) -> None:
    paths = records.published_path(slug, "quick"), records.ROOT / "_build" / "nbval" / f"{slug}.json"
    verdicts = [claim.verdict(records.read(path)) for path in paths]
    words, outcomes = zip(
        *((v.word, [item.outcome for item in (*v.evidence, *v.controls)]) for v in verdicts if v), strict=True
    )
    assert words[0] == words[1]
    assert outcomes[0] == outcomes[1]
