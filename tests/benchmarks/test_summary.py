"""From seconds to ratios, on numbers whose answers are known; and the goals that they are held against."""

import pytest

from benchmarks import candidates, summary, targets
from benchmarks.modern import MODERN
from benchmarks.plan import AFTER_2019, KNOWN, Plan
from experiments import records
from experiments.records import Record

SECONDS = {
    "ours_fused": [1.0, 2.0, 3.0, 4.0, 5.0],
    "ours_eager": [8.0, 8.0, 8.0, 8.0, 8.0],
    "torch_loop": [4.0, 4.0, 4.0, 4.0, 4.0],
    "torch_foreach": [2.0, 2.0, 2.0, 2.0, 2.0],
    "kozistr": [1.5, 1.5, 1.5, 1.5, 1.5],
    summary.ANCHOR: [2.0, 4.0, 6.0, 8.0, 10.0],
    "machine_axpy": [0.5, 0.5, 0.5, 0.5, 0.5],
    "machine_triad": [0.75, 0.75, 0.75, 0.75, 0.75],
    "machine_copy": [0.25, 0.25, 0.25, 0.25, 0.25],
}


def without(*names: str) -> dict[str, list[float]]:
    return {name: times for name, times in SECONDS.items() if name not in names}


def record_of(seconds: dict[str, list[float]]) -> Record:
    record = Record("speed", "standard", {})
    summary.add(record, "cnn.t1.adam", seconds, values=1000, streams=7)
    return record


def test_the_reference_is_torchs_fused_then_torchs_best_then_the_best_of_the_others() -> None:
    assert summary.reference({**SECONDS, "torch_fused": [9.0] * 5}) == "torch_fused"
    assert summary.reference(SECONDS) == "torch_foreach"
    assert (
        summary.reference({**SECONDS, summary.COMPILED: [0.1] * 5}) == "torch_foreach"
    )  # not what has to be waited for
    assert summary.reference(without("torch_foreach", "torch_loop")) == "kozistr"
    assert summary.reference(without("torch_foreach", "torch_loop", "kozistr")) == summary.ANCHOR
    assert summary.reference({"ours_fused": [1.0], "machine_axpy": [1.0]}) == "machine_axpy"


def test_a_compiled_step_stands_beside_the_time_that_it_takes_to_compile() -> None:
    record = Record("speed_compile", "standard", {})
    for rule in ("radam", "nadam"):
        seconds = SECONDS | ({summary.COMPILED: [0.5] * 5} if rule == "nadam" else {})
        summary.add(record, f"resnet50.t1.{rule}", seconds, values=1000, streams=7)
    record.metric(f"process.resnet50.nadam.{summary.COMPILED}.cold", 358.4)
    head, _, *rows = summary.compiled_table(record, "resnet50", "t1", {"nadam": "NAdam"}).splitlines()
    assert len(rows) == 1  # RAdam was not compiled
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *rows)]
    assert dict(zip(*cells, strict=True)) == {
        "Rule": "NAdam",
        "torch as it comes, ms": "2,000",
        "compiled, ms": "500",
        "ours, ms": "3,000",
        "first step compiled, s": "358",
        "ours, s": "—",
    }
    assert summary.compiled_table(record, "cnn", "t1", {}) == ""


def test_ratios_are_taken_round_by_round() -> None:
    get = record_of(SECONDS).get
    assert get("cnn.t1.adam.reference") == "torch_foreach"
    assert [get(f"cnn.t1.adam.ours_fused.ratio{end}") for end in ("_low", "", "_high")] == [1.0, 1.5, 2.0]
    assert get("cnn.t1.adam.ours_fused.speedup") == pytest.approx(1 / 1.5, rel=1e-3)
    # Twice as fast in every round, though both are five times as slow in the last one as in the first.
    assert [get(f"cnn.t1.adam.ours_fused.over_adamw{end}") for end in ("_low", "", "_high")] == [0.5, 0.5, 0.5]
    assert get("cnn.t1.adam.ours_eager.over_loop") == 2.0
    assert get("cnn.t1.adam.ours_eager.fraction") == 0.0625


def test_milliseconds_and_bytes() -> None:
    get = record_of(SECONDS).get
    assert get("cnn.t1.adam.megabytes") == 0.028  # 7 × 4 bytes × 1000
    assert get("cnn.t1.adam.ours_fused.ms") == 3000
    # the fastest loop in place, though a copy is faster
    assert get("cnn.t1.adam.limit_gb_per_s") == pytest.approx(28_000 / 0.5 / 1e9)
    assert get("cnn.t1.adam.machine_copy.gb_per_s") == pytest.approx(28_000 / 0.25 / 1e9)


def test_one_round_has_no_spread() -> None:
    assert summary.quartiles([3.0], [2.0]) == (1.5, 1.5, 1.5)


def test_candidates_of_different_rounds_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        summary.quartiles([1.0, 2.0], [1.0])


def test_the_fused_step_is_held_against_the_fastest_of_all_others() -> None:
    """torch's or not: half a second slower than kozistr's in the first round, three and a half in the last."""
    get = record_of(SECONDS).get
    assert get("cnn.t1.adam.peer") == "kozistr"
    assert [get(f"cnn.t1.adam.ours_fused.over_peer{end}") for end in ("_low", "", "_high")] == [1.333, 2.0, 2.667]
    assert summary.peer(without("kozistr")) == "torch_foreach"
    assert summary.peer({**SECONDS, summary.COMPILED: [0.1] * 5}) == "kozistr"
    assert summary.peer(without("kozistr", "torch_foreach", "torch_loop")) is None


def test_per_byte_is_beside_our_adamw_which_moves_seven_streams() -> None:
    seconds = {**SECONDS, summary.OWN_ANCHOR: [2.0, 4.0, 6.0, 8.0, 10.0], summary.PLAIN: [1.0, 2.0, 2.0, 2.0, 2.0]}
    record = Record("speed_modern", "standard", {})
    summary.add(record, "cnn.t1.lion", seconds, values=1000, streams=5)
    assert record.get("cnn.t1.lion.ours_fused.per_byte") == 0.7  # half of the time for 5/7 of the bytes
    assert record.get("cnn.t1.lion.ours_fused.over_plain") == 1.5
    keys = record_of(SECONDS).keys()
    assert not [key for key in keys if "per_byte" in key or "over_plain" in key]


def test_the_table_of_peers_names_the_fastest() -> None:
    record = Record("speed_modern", "standard", {})
    summary.add(record, "cnn.t1.lion", {**SECONDS, summary.OWN_ANCHOR: [2.0] * 5}, values=1000, streams=5)
    summary.add(record, "cnn.t1.muon", {"ours_fused": [1.0], "machine_axpy": [1.0]}, values=1000, streams=5)
    head, _, *rows = summary.peers_table(record, "cnn", "t1", {"lion": "Lion"}).splitlines()
    assert len(rows) == 1  # nobody else's Muon was measured
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *rows)]
    assert dict(zip(*cells, strict=True)) == {
        "Rule": "Lion",
        "ours, ms": "3,000.0",
        "÷ torch's fused AdamW": "0.50",
        "per byte ÷ our AdamW": "2.10",
        "others' best, ms": "1,500.0 (`kozistr`)",
        "times as fast": "0.5",
    }
    assert summary.peers_table(record, "gpt2", "t1", {}) == ""


@pytest.mark.parametrize(
    ("plan", "target"),
    [(Plan(), target) for target in targets.TARGETS] + [(AFTER_2019, target) for target in targets.MODERN_TARGETS],
    ids=lambda value: getattr(value, "says", ""),
)
def test_every_goal_asks_for_something_that_is_measured(plan: Plan, target: targets.Target) -> None:
    shapes, *_, rule, candidate, figure = target.key.removeprefix("process.").split(".")
    assert shapes in plan.shapes
    assert rule in (plan.own_processes if target.key.startswith("process.") else plan.rules_on(shapes))
    names = candidates.of(KNOWN[rule])
    assert candidate in names
    assert summary.PLAIN in names or figure != "over_plain"
    assert plan.modern or figure != "per_byte"


def test_the_goals_of_a_record_are_its_own() -> None:
    record = measured(resnet50__t1__lion__ours_fused__per_byte=1.0, resnet50__t1__lamb__ours_fused__over_adamw=1.8)
    assert targets.count(record, {"t1": ""}) == (0, 0)
    assert targets.count(record, {"t1": ""}, targets.MODERN_TARGETS) == (1, 2)
    lines = targets.table(record, {"t1": "1"}, targets.MODERN_TARGETS).replace("\u00a0", " ").splitlines()
    assert len(lines) == 2 + len(targets.MODERN_TARGETS)
    assert "| Lion: time per byte ÷ our AdamW's | ≤ 1.1 | 1.00 ✓ met |" in lines
    assert "| LAMB: time ÷ torch's fused AdamW | ≤ 1.7 | 1.80 ✗ missed |" in lines
    assert {target.key.split(".")[2] for target in targets.MODERN_TARGETS} <= set(MODERN)


def lines_of(record: Record, settings: dict[str, str]) -> list[str]:
    return targets.table(record, settings).replace("\u00a0", " ").splitlines()


def measured(**values: float) -> Record:
    record = Record("speed", "standard", {})
    record.metric("machine.t1.gflops", 100.0)
    for key, value in values.items():
        record.metric(key.replace("__", "."), value)
    return record


ADAM = "resnet50__t1__adam__ours_fused__ratio"
RMSPROP = "resnet50__t1__rmsprop__ours_fused__"


def test_the_table_says_met_and_missed() -> None:
    record = measured(
        **{ADAM: 1.2, f"{ADAM}_low": 1.1, f"{ADAM}_high": 1.3},
        **{f"{RMSPROP}speedup": 4.0, f"{RMSPROP}ratio_low": 0.2, f"{RMSPROP}ratio_high": 0.5},
    )
    lines = lines_of(record, {"t1": "1 thread", "t2": "2 threads"})
    assert lines[0].endswith("| goal | 1 thread | 2 threads |")
    assert len(lines) == 2 + len(targets.TARGETS)
    assert "| Adam: time ÷ torch's fused | ≤ 1.15 | 1.20 ✗ missed (1.10 to 1.30) | not measured |" in lines
    # The quartiles of a ratio's inverse are the inverses, the other way round.
    assert any("≥ 3 | 4.00 ✓ met (2.00 to 5.00)" in line for line in lines)
    assert targets.count(record, {"t1": "", "t2": ""}) == (1, 2)


def test_a_missed_speedup_says_what_the_limit_would_give() -> None:
    """At 80 % of the limit and 2.4 times torch's best, no kernel can be more than 3 times as fast."""
    for value, says in ((2.4, "2.40 ✗ missed; 3.00 at the limit itself"), (3.2, "3.20 ✓ met")):
        record = measured(**{f"{RMSPROP}speedup": value, f"{RMSPROP}fraction": 0.8})
        assert any(line.endswith(f"| ≥ 3 | {says} |") for line in lines_of(record, {"t1": "1"}))


def test_what_a_process_measured_is_counted_once() -> None:
    record = measured(process__resnet50__adamw__ours_fused__cold=10.0)
    assert targets.count(record, {"t1": "", "t2": ""}) == (1, 1)
    (line,) = [line for line in lines_of(record, {"t1": "1", "t2": "2"}) if "nothing compiled" in line]
    assert line.endswith("| ≤ 10 s | 10.00 s ✓ met |  |")


def test_a_record_of_the_benchmark_names_the_command() -> None:
    assert records.source("speed") == records.ROOT / "benchmarks" / "step_time.py"
    assert records.source("adam") == records.ROOT / "notebooks" / "adam.py"
