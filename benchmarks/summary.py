"""From seconds to the numbers of the record: ratios within a round, their medians and quartiles."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.records import Record

from .candidates import OWN, library_of
from .measure import IN_PLACE, ITEM
from .rules import RULES

Seconds = Mapping[str, Sequence[float]]
COMPILED = "torch_compiled"
ANCHOR = "torch_adamw"  # torch's fused AdamW, measured beside every rule: what all rules can be held against
OWN_ANCHOR = "ours_adamw"  # and beside the rules of after 2019 this package's
PLAIN = "ours_plain"  # beside a mix, the rule without its extension


def add(record: Record, place: str, seconds: Seconds, values: int, streams: float) -> None:
    """Store one session under the dotted key `place`.

    For each candidate: ``ms`` per step, ``gb_per_s``, the ``ratio`` to the reference and its inverse ``speedup``,
    ``over_adamw`` (the ratio to torch's fused AdamW), ``fraction`` of the limit, and for the eager step
    ``over_loop`` (the ratio to torch's loop); ``_low`` and ``_high`` are quartiles over the rounds. The limit is
    the time in which the fastest of the plain loops in place moves as many bytes: ``limit_gb_per_s``.

    For the fused step also, where these were measured: ``over_peer``, the ratio to the fastest ``peer``, torch's
    executions and other libraries' alike; ``per_byte``, the ratio of its time per byte to that of this package's
    AdamW; and ``over_plain``, the ratio to the rule without its extension.
    """
    moved = values * streams * ITEM
    first = reference(seconds)
    record.metric(f"{place}.reference", first)
    record.metric(f"{place}.megabytes", _short(moved / 1e6))
    limit = limit_of(seconds)
    record.metric(f"{place}.limit_gb_per_s", _short(moved / statistics.median(seconds[limit]) / 1e9))
    for name, times in seconds.items():
        key = f"{place}.{name}"
        record.metric(f"{key}.ms", _short(1e3 * statistics.median(times)))
        record.metric(f"{key}.gb_per_s", _short(moved / statistics.median(times) / 1e9))
        if library_of(name) == "machine":
            continue
        ratios = quartiles(times, seconds[first])
        _three(record, f"{key}.ratio", ratios)
        record.metric(f"{key}.speedup", _short(1 / ratios[1]))
        _three(record, f"{key}.fraction", quartiles(seconds[limit], times))
        if ANCHOR in seconds:
            _three(record, f"{key}.over_adamw", quartiles(times, seconds[ANCHOR]))
        if name == "ours_eager" and "torch_loop" in seconds:
            _three(record, f"{key}.over_loop", quartiles(times, seconds["torch_loop"]))
        if name == "ours_fused":
            _held_against(record, place, key, seconds, streams)


def _held_against(record: Record, place: str, key: str, seconds: Seconds, streams: float) -> None:
    """`over_peer`, `per_byte` and `over_plain` of the fused step."""
    times = seconds["ours_fused"]
    if (name := peer(seconds)) is not None:
        record.metric(f"{place}.peer", name)
        _three(record, f"{key}.over_peer", quartiles(times, seconds[name]))
    if OWN_ANCHOR in seconds:
        ratios = quartiles(times, seconds[OWN_ANCHOR])
        low, middle, high = (ratio * RULES["adamw"].streams / streams for ratio in ratios)
        _three(record, f"{key}.per_byte", (low, middle, high))
    if PLAIN in seconds:
        _three(record, f"{key}.over_plain", quartiles(times, seconds[PLAIN]))


def peer(seconds: Seconds) -> str | None:
    """The fastest execution of the rule that is not this package's, nor torch.compile's; None if there is none."""
    others = [name for name in seconds if library_of(name) not in ("ours", "machine")]
    others = [name for name in others if name not in (ANCHOR, COMPILED)]
    return min(others, key=lambda name: statistics.median(seconds[name]), default=None)


def limit_of(seconds: Seconds) -> str:
    """The fastest of the machine's own loops in place."""
    return min((name for name in IN_PLACE if name in seconds), key=lambda name: statistics.median(seconds[name]))


def reference(seconds: Seconds) -> str:
    """What a rule is held against: torch's fused step of it, else torch's fastest, else the fastest of the others.

    Not what torch.compile makes of it: that takes minutes to be there. Where nobody but this package was measured,
    torch's fused AdamW, and failing that the machine.
    """
    if "torch_fused" in seconds:
        return "torch_fused"
    own = [name for name in seconds if library_of(name) == "torch" and name not in (ANCHOR, COMPILED)]
    peers = [name for name in seconds if library_of(name) not in (*OWN, "machine")]
    last = [ANCHOR] if ANCHOR in seconds else [limit_of(seconds)]
    return min(own or peers or last, key=lambda name: statistics.median(seconds[name]))


def compiled_table(record: Record, shapes: str, setting: str, titles: Mapping[str, str]) -> str:
    """Step and first step of the rules that torch.compile was tried on, as a table in Markdown; "" without any."""
    rows = []
    for rule in record.metrics.get(shapes, {}).get(setting, {}):
        place, first = f"{shapes}.{setting}.{rule}", f"process.{shapes}.{rule}"
        names = (str(record.get(f"{place}.reference")), COMPILED, "ours_fused")
        steps = [value_of(record, f"{place}.{name}.ms") for name in names]
        waits = [value_of(record, f"{first}.{name}.cold") for name in names[1:]]
        if steps[1] is not None:
            cells = ["—" if value is None else f"{float(f'{value:.3g}'):,g}" for value in (*steps, *waits)]
            rows.append(f"| {titles.get(rule, rule)} | {' | '.join(cells)} |")
    head = "| Rule | torch as it comes, ms | compiled, ms | ours, ms | first step compiled, s | ours, s |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows]) if rows else ""


def peers_table(record: Record, shapes: str, setting: str, titles: Mapping[str, str]) -> str:
    """Our fused step beside the fastest of all others', rule by rule, as a table in Markdown; "" without any."""
    rows = []
    for rule in record.metrics.get(shapes, {}).get(setting, {}):
        place = f"{shapes}.{setting}.{rule}"
        ours, theirs = f"{place}.ours_fused", value_of(record, f"{place}.peer")
        if theirs is not None:
            cells = [
                f"{value:,.{digits}f}"
                for key, digits in (("ms", 1), ("over_adamw", 2), ("per_byte", 2))
                for value in [record.get(f"{ours}.{key}")]
            ]
            best = f"{record.get(f'{place}.{theirs}.ms'):,.1f} (`{theirs}`)"
            times = f"{1 / record.get(f'{ours}.over_peer'):.1f}"
            rows.append(f"| {titles[rule]} | {' | '.join(cells)} | {best} | {times} |")
    head = "| Rule | ours, ms | ÷ torch's fused AdamW | per byte ÷ our AdamW | others' best, ms | times as fast |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows]) if rows else ""


def value_of(record: Record, key: str) -> Any:
    """A metric, or None where it was not measured."""
    known = record.keys()
    return record.get(key) if key in known else None


def quartiles(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios, round by round."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def _three(record: Record, key: str, values: tuple[float, float, float]) -> None:
    for suffix, value in zip(("_low", "", "_high"), values, strict=True):
        record.metric(key + suffix, _short(value))


def _short(value: float) -> float:
    """Four digits: more than the clock is good for."""
    return float(f"{value:.4g}")
