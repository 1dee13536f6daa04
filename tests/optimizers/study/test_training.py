"""One run: the same numbers whoever does it, groups for the model, and one line for whatever goes wrong."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optimizers
from optimizers import mixes
from optimizers.study import Problem, ProblemError, StudyError, training
from optimizers.study.making import code, make
from optimizers.study.memory import Watch
from optimizers.study.protocol import Run

TIMES = ("seconds", "ms", "grown", "machine")


def go(problem: Problem, text: str = "adamw", power: int = -2, seed: int = 3, **more: Any) -> dict[str, Any]:
    found = training.run(problem, mixes.parse(text)[0], Run(power, seed), **more)
    return {key: value for key, value in found.items() if key not in TIMES}


def problem(**parts: Any) -> Problem:
    def batches(seed: int, split: str) -> list[torch.Tensor]:
        return list(torch.randn(2, 4, 3))

    given: dict[str, Any] = {
        "model": lambda seed: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1)),
        "batches": batches,
        "loss": lambda model, batch: model(batch).square().mean(),
        "steps": 8,
    }
    return Problem(**{**given, **parts})


@pytest.mark.parametrize(
    "text", ["adamw+gradient_noise", "muon", "sgd+sam", "adamw+schedule_free", "adamw+hyperball"]
)
def test_the_same_run_is_the_same_numbers_and_leaves_no_trace(text: str) -> None:
    text = text.replace("adamw+h", "adamw(weight_decay=0)+h")
    torch.manual_seed(7)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = go(problem(), text)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    torch.rand(5)
    go(problem(), "sgd")
    assert go(problem(), text) == first
    assert go(problem(), text, seed=4) != first


def test_a_run_is_what_a_loop_by_hand_gives(line: Path) -> None:
    found = go(Problem.load(line), "adam", power=-2, seed=3)
    given = Problem.load(line)
    torch.manual_seed(3)
    model: nn.Module = given.model(3)
    optimizer = optimizers.Adam(model.named_parameters(), lr=0.1)
    torch.manual_seed(3)
    losses = []
    for _ in range(3):
        for batch in given.batches(3, "train"):
            optimizer.zero_grad()
            loss = given.loss(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if len(losses) == 4:  # two more evaluations follow, which draw nothing
            early = given.loss(model, next(iter(given.batches(3, "validation")))).item()
    # The batches of all epochs are those of one call, gone through again.
    assert found["validation"]["x"] == [4, 8, 12]
    assert found["validation"]["y"][0] == pytest.approx(early, rel=1e-4)
    assert found["curve"]["y"][:4] == pytest.approx(losses[:4], rel=1e-4)
    assert found["params"] == 8
    assert found["state"] == 2 * 8 + 2 * 4, "two moments and a count for each of two parameters"


def test_validation_is_at_the_average_and_weighs_examples() -> None:
    def batches(seed: int, split: str) -> list[torch.Tensor]:
        return [torch.ones(4, 1)] if split == "train" else [torch.zeros(3, 1), torch.ones(1, 1)]

    seen: list[float] = []

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        if not model.training:
            seen.append(float(next(model.parameters())))
        return (model(batch) - 2).square().mean()

    made = problem(
        model=lambda seed: nn.Linear(1, 1, bias=False), batches=batches, loss=loss, steps=30, evaluations=1
    )
    found = go(made, "sgd+average(0.9)", power=-2)
    weight = seen[-1]
    assert weight < 2 - 1e-3, "the average is behind the iterate"
    assert found["loss"] == pytest.approx((3 * 4 + (weight - 2) ** 2) / 4)


def test_the_schedule_is_part_of_the_problem() -> None:
    rates: list[float] = []

    def schedule(optimizer: Any, steps: int) -> Any:
        assert steps == 8

        def factor(step: int) -> float:
            rates.append(step)
            return 1 - step / steps

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    assert go(problem(schedule=schedule))["loss"] != go(problem())["loss"]
    assert rates == [step for step in range(9) for group in "wb"], "of weights, and of biases, which do not decay"


def test_a_run_that_diverges_ends_and_is_a_result() -> None:
    found = go(problem(steps=3000), "sgd", power=12)
    assert found["diverged"]
    assert found["loss"] is found["metric"] is None
    assert found["curve"]["y"][-1] is None
    assert len(found["curve"]["x"]) < 10


def test_groups_are_made_for_the_model_and_the_code_to_copy_makes_them_too() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2))
    for text in (
        *("adamw", "muon", "adamw+schedule_free", "sgd(momentum=0.5, nesterov=True)", "adam_lr_dropout"),
        *(
            "radamw(nesterov=True)+lookahead(k=3)+clip_norm(1.0)",
            "lion(weight_decay=0.1)",
            "muon(weight_decay=0.2)",
        ),
    ):
        (mix,) = mixes.parse(text)
        ours = make(mix, model, 0.0316)
        names: dict[str, Any] = {"model": model}
        lines = code(mix, 0.0316)
        exec("\n".join(lines), names)
        theirs = names["optimizer"]
        for one, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert one["lr"] == pytest.approx(other["lr"], rel=1e-2), "to three digits"
            assert all(one[key] == other[key] for key in one if key not in ("params", "param_names", "lr")), text
            assert all(a is b for a, b in zip(one["params"], other["params"], strict=True)), text
        assert [type(stage) for stage in ours._stages] == [type(stage) for stage in theirs._stages]
        assert lines[0].startswith("from optimizers import ")
        assert ("averaged" in lines[-1]) == ("schedule_free" in text or "lookahead" in text)
    decays = {group["weight_decay"] for group in make(mixes.parse("adamw")[0], model, 0.1).param_groups}
    assert decays == {1e-4, 0.0}
    muon = make(mixes.parse("muon")[0], model, 0.02)
    assert {(g["direction"], round(g["lr"], 6)) for g in muon.param_groups} == {("muon", 0.02), ("adamw", 3e-4)}


def fails(*arguments: Any) -> Any:
    raise RuntimeError("no such luck\nat all")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": fails}, r"model of t raises RuntimeError: no such luck \(.*line \d+\)$"),
        ({"batches": fails}, "batches of t raises RuntimeError: no such luck"),
        ({"loss": fails}, "loss of t raises RuntimeError: no such luck"),
        ({"metric": fails}, "metric of t raises RuntimeError: no such luck"),
        ({"model": lambda seed: 3}, "model of t must return a torch.nn.Module, not 3"),
        ({"loss": lambda model, batch: 1.0}, "loss of t must return one number as a tensor"),
        ({"loss": lambda m, batch: m(batch).mean() * math.nan}, "loss on a training batch of t is nan before"),
        ({"batches": lambda seed, split: []}, 'batches of t has no batch for the split "train"'),
        (
            {"batches": lambda seed, split: [torch.ones(2, 3)] if split == "train" else None},
            "t has no validation split",
        ),
    ],
)
def test_a_problem_that_fails_is_one_line_that_names_the_part(parts: dict[str, Any], message: str) -> None:
    made = problem(name="t", **parts)
    with pytest.raises(ProblemError, match=message) as caught:
        made.check()
    assert "\n" not in str(caught.value)


def test_a_failure_on_the_way_names_the_run() -> None:
    calls: list[int] = []

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            fails()
        return model(batch).square().mean()

    with pytest.raises(ProblemError, match=r"loss of \w+ raises .*, with adamw, learning rate 0.1, seed 3"):
        go(problem(loss=loss))


def test_an_optimizer_that_refuses_the_problem_is_told_from_a_problem_that_fails() -> None:
    sparse = problem(
        model=lambda seed: nn.Embedding(5, 1, sparse=True),
        batches=lambda seed, split: [torch.tensor([1, 2])],
    )
    assert go(sparse, "sgd")["loss"] is not None
    with pytest.raises(training.OptimizerError, match=r"^[^\n]+$"):
        go(sparse, "soap")


@pytest.mark.parametrize(
    ("parts", "message"),
    [({"steps": 0}, "steps must be a whole number"), ({"loss": 3}, "loss must be a function, not 3")],
)
def test_a_part_of_the_wrong_kind_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        problem(**parts)


def test_a_leak_stops_the_worker_before_the_machine_is_out_of_memory() -> None:
    sizes = iter([100, 150, 100, 150, 390, 650, 1000])
    watch = Watch(allowed=500, size=lambda: next(sizes))
    watch.look(1)
    watch.look(2)
    assert watch.grown() == 0
    watch.look(1)
    watch.look(2)
    with pytest.raises(ProblemError, match="the problem leaks memory"):
        watch.look(3)


def test_a_problem_file_that_changes_is_another_study(line: Path) -> None:
    one, again = Problem.load(line), Problem.load(line)
    assert one.fingerprint(1) == again.fingerprint(1) != one.fingerprint(2)
    assert one.name == "line"
    line.write_text(line.read_text(encoding="utf-8").replace("0.1", "0.2"), encoding="utf-8")
    assert Problem.load(line).fingerprint(1) != one.fingerprint(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "cannot be read: ModuleNotFoundError: No module named"),
        ("1 +", "cannot be read: SyntaxError"),
        ("problem = 3", "defines no `problem`: write problem = Problem"),
    ],
)
def test_a_file_that_is_no_problem_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=message) as caught:
        Problem.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(StudyError, match="there is no file"):
        Problem.load(tmp_path / "q.py")
