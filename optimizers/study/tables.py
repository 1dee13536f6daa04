"""A study as text: the rows of its tables, for the terminal and for the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from .memory import MIB

Rows = list[list[str]]
DASH = "—"


def ranking(found: Mapping[str, Any]) -> Rows:
    """One row per optimizer, best first; the first row is the head."""
    rows = [row for row in found["optimizers"] if not row.get("failed")]
    metric = any(row["metric"] is not None for row in rows)
    head = ["optimizer", "rank", "learning rate", "validation loss", *(["metric"] if metric else [])]
    body = [
        [
            row["name"],
            span(row["rank"], row["rank_low"], row["rank_high"]),
            DASH if row["lr"] is None else f"{row['lr']:g}{' (at the edge)' if row['at_edge'] else ''}",
            "diverged" if row["loss"] is None else plus_minus(row["loss"], row["low"]),
            *([number(row["metric"])] if metric else []),
        ]
        for row in rows
    ]
    return [head, *body]


def costs(found: Mapping[str, Any]) -> Rows:
    """Time and memory per step."""
    rows = [row for row in found["optimizers"] if not row.get("failed")]
    peak = any(row["peak"] is not None for row in rows)
    head = ["optimizer", "ms per step", "optimizer state", "of the parameters", *(["peak memory"] if peak else [])]
    body = [
        [
            row["name"],
            f"{row['ms']:.3g}",
            DASH if row["state"] is None else memory(row["state"]),
            DASH if row["state"] is None else f"{row['state'] / row['params']:.2g} ×",
            *([DASH if row["peak"] is None else memory(row["peak"])] if peak else []),
        ]
        for row in rows
    ]
    return [head, *body]


def comparisons(found: Mapping[str, Any]) -> Rows:
    """Every optimizer beside the best: by how much its loss is more, and whether that is decided."""
    head = ["optimizer", "loss more than the best's", "decided?"]
    body = []
    for row in found["comparisons"]:
        if row["difference"] is None:
            difference, answer = DASH, "yes: it diverges" if row["decided"] else "no: runs diverged"
        else:
            difference = signed(row["difference"])
            if row["low"] is not None:
                difference += f" ({signed(row['low'])} to {signed(row['high'])})"
            answer = (
                "yes" if row["decided"] else undecided(row["seeds"], seeds=len(found["optimizers"][0]["losses"]))
            )
        body.append([row["name"], difference, answer])
    return [head, *body]


def undecided(needed: int | None, seeds: int) -> str:
    """In words, how many seeds would decide what `seeds` have not."""
    if seeds < 2:
        return "no: one seed decides nothing"
    if needed is None:
        return "no: 1,000 seeds would not, take them as equal"
    return f"no: about {max(needed, seeds + 1):,} fresh seeds would, you have {seeds}"


def text(found: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    parts = [aligned(ranking(found))]
    if found["comparisons"]:
        parts.append(aligned(comparisons(found)))
    parts.append(aligned(costs(found)))
    parts += found["warnings"]
    best = next((row for row in found["optimizers"] if row.get("code")), None)
    if best:
        parts.append("\n".join(best["code"]))
    return "\n\n".join(parts)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of a fixed-width font, with a line below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


def span(value: float, low: float, high: float) -> str:
    return f"{value:.0f}" if low == high == value else f"{value:.0f} ({low:.0f} to {high:.0f})"


def plus_minus(mean: float, low: float | None) -> str:
    return number(mean) + (f" ± {mean - low:.2g}" if low is not None else "")


def number(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}".replace("-", "−")


def signed(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−")


def memory(size: float) -> str:
    return f"{size / MIB:,.1f} MiB" if size >= MIB / 10 else f"{size / 1024:,.1f} KiB"
