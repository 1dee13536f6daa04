"""The command: what it measures, what it writes, and what it says to a wrong word."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import candidates, process, step_time, summary
from benchmarks.modern import MODERN
from benchmarks.plan import AFTER_2019, WITH_COMPILER, Plan
from experiments import records
from experiments.errors import UserError

SMALL = Plan(("tiny",), ("sgd", "mix"), (1,), libraries=("ours", "torch"), rounds=2, processes=False, quick=True)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(records, "ROOT", tmp_path)
    return tmp_path


def test_a_run_leaves_one_whole_record(root: Path) -> None:
    path = step_time.run(SMALL)
    assert path == root / "_build" / "trials" / "quick" / "speed.json"
    record = records.read(path)
    assert record.get("tiny.t1.sgd.reference") == "torch_fused"
    assert record.get("tiny.t1.sgd.megabytes") == pytest.approx(50 * 8 * 5 * 4 / 1e6)
    assert record.get("machine.t1.gflops") > 0
    for candidate in ("ours_fused", "ours_kernel", "ours_eager", "ours_foreach", "torch_loop", "torch_adamw"):
        assert record.get(f"tiny.t1.sgd.{candidate}.fraction") > 0
        assert record.get(f"tiny.t1.sgd.{candidate}.ms") > 0
    assert record.get("tiny.t1.mix.reference") == "torch_adamw"  # torch has no Lookahead
    assert record.parameters["missing"] == []
    assert not any((root / "_build" / "benchmark").iterdir())


def test_a_stopped_run_goes_on_where_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, places = step_time.session, []

    def stops_at_the_second(*arguments: Any, **options: Any) -> Any:
        places.append(options["streams"])
        if len(places) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(step_time, "session", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        step_time.run(SMALL)
    (kept,) = (root / "_build" / "benchmark").glob("*/tiny.t1.*.json")
    first = json.loads(kept.read_text())
    assert not (root / "_build" / "trials").exists()
    record = records.read(step_time.run(SMALL))
    assert places == [5, 7.4, 7.4]
    median = np.median(first["ours_fused"])
    assert record.get("tiny.t1.sgd.ours_fused.ms") == pytest.approx(1e3 * median, rel=1e-3)


def test_only_a_whole_plan_lands_among_the_records(root: Path) -> None:
    assert Plan().out() == root / "_build" / "results" / "standard" / "speed.json"
    assert Plan(device="cuda").out().name == "speed_cuda.json"
    assert Plan().out(["timm"]) == root / "_build" / "trials" / "standard" / "speed.json"
    for part in (
        Plan(rules=("adam",)),
        Plan(threads=(1,)),
        Plan(libraries=("ours",)),
        Plan(processes=False),
        Plan(quick=True),
    ):
        assert part.out().parent.parent == root / "_build" / "trials"


def test_what_is_compiled_has_a_record_of_its_own_even_of_one_rule(root: Path) -> None:
    few = {"shapes": ("resnet50",), "rules": ("nadam", "aggmo"), "threads": (1,), "libraries": candidates.OWN}
    plan = Plan(**few, compiled=True)
    assert plan.out() == root / "_build" / "results" / "standard" / "speed_compile.json"
    assert Plan(**few, compiled=True, device="cuda").out().name == "speed_cuda_compile.json"
    assert plan.own_processes == {"nadam": ("torch_compiled", "ours_fused")}  # torch has no AggMo
    assert set(Plan().own_processes) == {"adamw", "mix_noise"}
    for part in ({"libraries": ("torch",)}, {"processes": False}, {"shapes": ("cnn",)}, {"quick": True}):
        assert Plan(**{**few, **part}, compiled=True).out().parent.parent == root / "_build" / "trials"


def test_the_command_compiles_what_torch_has_on_one_model(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(step_time, "run", lambda plan, out: plans.append(plan))
    assert (
        step_time.main(["--compile"])
        == step_time.main(["--compile", "--rules", "nadam"])
        == step_time.main([])
        == 0
    )
    assert (plans[0].shapes, plans[0].libraries) == (("resnet50",), ("ours", "torch"))
    assert {"sgd", "nadam"} < set(plans[0].rules)
    assert "mix" not in plans[0].rules
    assert plans[1].rules == ("nadam",)
    assert plans[2] == Plan()


def test_rules_of_after_2019_have_a_record_of_their_own(root: Path) -> None:
    assert AFTER_2019.out() == root / "_build" / "results" / "standard" / "speed_modern.json"
    assert dataclasses.replace(AFTER_2019, device="cuda").out().name == "speed_cuda_modern.json"
    assert AFTER_2019.out(["heavyball"]).parent.parent == root / "_build" / "trials"
    for part in ({"rules": ("lion",)}, {"threads": (1,)}, {"libraries": candidates.OWN}, {"quick": True}):
        assert dataclasses.replace(AFTER_2019, **part).out().parent.parent == root / "_build" / "trials"
    assert all(plan.slug in records.COMMANDS for plan in (Plan(), AFTER_2019, WITH_COMPILER))
    assert records.COMMANDS["speed_modern"].line == "python -m benchmarks.step_time --modern"


def test_the_command_measures_rules_of_after_2019(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(step_time, "run", lambda plan, out: plans.append(plan))
    assert step_time.main(["--modern"]) == 0
    assert step_time.main(["--modern", "--rules", "lion,soap", "--libraries", "ours,heavyball"]) == 0
    assert plans[0] == AFTER_2019
    assert (plans[1].rules, plans[1].libraries) == (("lion", "soap"), ("ours", "heavyball"))
    with pytest.raises(SystemExit):
        step_time.main(["--modern", "--compile"])


def test_rules_of_after_2019_stand_beside_both_adamw_and_slow_ones_take_fewer_rounds(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[float, Any] = {}

    def measure(builds: Any, sizes: Any, setting: Any, *, streams: float, rounds: int, **_: Any) -> Any:
        asked[streams] = (rounds, set(builds))
        return {name: [1.0] for name in [*builds, "machine_scale"]}

    monkeypatch.setattr(step_time, "session", measure)
    small = {"shapes": ("attention", "cnn"), "threads": (1,), "libraries": candidates.OWN, "quick": True}
    plan = dataclasses.replace(AFTER_2019, rules=("lamb", "muon_average"), rounds=9, **small)
    record = records.read(step_time.run(plan))
    anchors = {summary.ANCHOR, summary.OWN_ANCHOR}
    assert plan.rules_on("attention") == ["muon_average"]
    lamb, mix = (asked[MODERN[name].streams] for name in plan.rules)
    assert (lamb[0], mix[0]) == (9, 3)
    assert anchors <= lamb[1]
    assert anchors | {summary.PLAIN} <= mix[1]
    assert record.get("attention.t1.muon_average.ours_fused.over_plain") == 1
    assert record.get("cnn.t1.lamb.ours_fused.per_byte") == pytest.approx(0.7)


def test_first_steps_of_compiled_rules_are_measured_without_their_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def measure(*arguments: Any, memory: bool) -> dict[str, float]:
        asked.append((*arguments[:3], memory))
        return {"cold": 358.0, "warm": 20.0}

    monkeypatch.setattr(process, "measure", measure)
    monkeypatch.setattr(
        step_time, "session", lambda builds, *_, **__: {name: [1.0] for name in [*builds, "machine_scale"]}
    )
    plan = Plan(("resnet50",), ("nadam",), (1,), libraries=candidates.OWN, compiled=True, rounds=1, quick=True)
    record = records.read(step_time.run(plan))
    assert asked == [("nadam", "resnet50", name, False) for name in ("torch_compiled", "ours_fused")]
    assert record.get("process.resnet50.nadam.torch_compiled.cold") == 358
    assert record.get("resnet50.t1.nadam.torch_compiled.ms") == 1000


def test_settings_of_a_cpu_are_thread_counts_and_a_gpu_has_one() -> None:
    assert [setting.name for setting in Plan().settings] == ["t1", "t2"]
    assert [setting.name for setting in Plan(device="cuda").settings] == ["cuda"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "adam,adma"], "--rules: there is no 'adma'; there are sgd, adam"),
        (["--shapes", "vgg"], "--shapes: there is no 'vgg'; there are cnn, resnet50"),
        (["--libraries", "jax"], "--libraries: there is no 'jax'"),
        (["--threads", "0"], "--threads must be whole numbers of at least 1"),
        (["--rounds", "many"], "--rounds must be whole numbers of at least 1"),
        (["--device", "cuda"], "there is no device 'cuda'"),
        (["--modern", "--rules", "adam"], "--rules: there is no 'adam'; there are lion, signum"),
        (["--rules", "lion"], "--rules: there is no 'lion'; there are sgd, adam"),
        (["--shapes", "gpt2", "--rules", "adam"], "adam: not measured on gpt2; name other --shapes"),
    ],
)
def test_a_wrong_word_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert step_time.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


# ---------------------------------------------------------------- processes of their own


def test_the_first_step_is_timed() -> None:
    answer = process.main("adamw", "cnn", "ours_fused", "1", "cpu", "1")
    assert set(answer) == {"first"}
    assert answer["first"] > 0


def test_memory_is_told_apart_from_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer that keeps half of the gradients' bytes, and needs three times as many while it steps."""
    params = [torch.zeros(1 << 23).requires_grad_()]  # 32 MiB: the C library returns such blocks at once

    class Wasteful(torch.optim.Optimizer):
        def __init__(self, params: list[torch.Tensor]) -> None:
            super().__init__(params, {})
            self.kept = [np.ones(p.numel() // 2, np.float32) for p in params]

        def step(self, closure: Any = None) -> None:
            for p in self.param_groups[0]["params"]:
                if p not in self.state:
                    self.state[p]["exp_avg"] = torch.ones_like(p)
                np.ones(3 * p.numel(), np.float32)

    memory = process._memory_of(lambda given: Wasteful(list(given)).step, params, "cpu")
    if process._memory("cpu") is None:  # not Linux: nobody tells
        assert memory == {}
    else:
        assert memory["lasting"] == pytest.approx(0.5, abs=0.1)
        assert memory["temporary"] == pytest.approx(3, abs=0.1)


def test_what_goes_wrong_in_a_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"first step of nonsense cnn ours_fused failed: KeyError"):
        process._run(["nonsense", "cnn", "ours_fused", "1", "cpu", "1"], {})


def test_a_candidate_that_cannot_run_says_so_through_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(params: Any) -> Any:
        raise candidates.Skip("not here")

    monkeypatch.setattr(candidates, "of", lambda *_, **__: {"timm": absent})
    assert process.main("adamw", "cnn", "timm", "1", "cpu", "1") == {"skip": "not here"}


def test_what_is_kept_depends_on_every_module_of_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(records.ROOT / "benchmarks", tmp_path / "benchmarks")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    before = step_time._kept({})
    with (tmp_path / "benchmarks" / "measure.py").open("a") as file:
        file.write("\nTHRESHOLD = 1\n")
    assert step_time._kept({}) != before


def test_a_gpu_measures_every_rule_on_every_model() -> None:
    assert Plan().rules_on("gpt2") == ["adamw", "nadam"]
    assert Plan(device="cuda").rules_on("gpt2") == list(Plan().rules)
