"""The table of verdicts: what this machine measured beside what is published."""

from collections.abc import Sequence

from experiments import claims, records
from experiments.errors import RecordError
from experiments.records import SCALES, Record

NONE = "no result yet"


def table(scale: str | None = None) -> str:
    """Every claim with both verdicts, as text. `scale` is that of your records; by default the largest there is.

    Your record is set beside the published one of the same scale; where there is none, beside the one that the book
    prints.
    """
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for slug in claims.slugs():
        yours = _yours(slug, scale)
        wanted = scale or (yours.scale if yours else None)
        path = records.published_path(slug, wanted) if wanted else None
        published = records.read(path) if path and path.exists() else records.published(slug)
        for claim in claims.load(slug):
            words = [verdict.word if verdict else NONE for verdict in map(claim.verdict, (published, yours))]
            both = published is not None and yours is not None
            agreement = ("agrees" if words[0] == words[1] else "differs") if both else "—"
            cells = [
                word + (f" ({record.scale})" if record else "")
                for word, record in zip(words, (published, yours), strict=True)
            ]
            rows.append((slug, claim.id, *cells, agreement))
        notes += _notes(slug, published, yours)
    if not rows:
        return "there are no claims in book/claims/"
    return "\n".join(
        [*align([("paper", "claim", "published", "yours", ""), *rows]), *([""] if notes else []), *notes]
    )


def _yours(slug: str, scale: str | None) -> Record | None:
    found = (records.local(slug, name) for name in ([scale] if scale else reversed(SCALES)))
    return next((record for record in found if record), None)


def _notes(slug: str, published: Record | None, yours: Record | None) -> list[str]:
    """What a reader should know about the two records of one paper."""
    notes = []
    for whose, record in (("the published", published), ("your", yours)):
        today = record and records.code_today(slug, record.scale)
        if record and today and not record.is_of(today):
            notes.append(f"{slug}: {whose} {record.scale} record is of other code than today's")
    if published and yours and published.scale == yours.scale:
        keys = published.keys()
        same = sum(_value(published, key) == _value(yours, key) for key in keys)
        notes.append(f"{slug}: {same} of {len(keys)} metrics equal the published ones to the last digit")
    return notes


def _value(record: Record, key: str) -> object:
    try:
        return record.get(key)
    except RecordError:
        return NotImplemented


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("─" * width for width in widths).rstrip(), *lines[1:]]
