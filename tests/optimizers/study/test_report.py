"""What a report says: ranks and their intervals, what is undecided, and a page that needs nothing but itself."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizers import study
from optimizers.__main__ import main
from optimizers.study import analysis, page, tables
from optimizers.study.analysis import Arm
from optimizers.study.memory import MIB


def run(loss: float | None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "loss": loss,
        "metric": None,
        "diverged": loss is None,
        "curve": {"x": [1.5, 3.5], "y": [1.0, loss or 1.0]},
        "validation": {"x": [4], "y": [loss]},
        "seconds": 2.0,
        "ms": 1.5,
        "params": 100,
        "state": 200,
        "peak": None,
        "grown": 0,
        "machine": "here",
    }
    return {**found, **more}


def summary(*arms: Arm) -> dict[str, Any]:
    return {"problem": "t", "steps": 4, "protocol": None, "provenance": "1 thread", **analysis.summarize(arms)}


def test_ranks_are_certain_where_the_seeds_agree_and_wide_where_they_do_not() -> None:
    losses = {"b": [2.0, 2.1, 2.2], "a": [1.0, 1.1, 1.2], "lost": [None, 0.1, 0.1]}
    assert analysis.ranks(losses)["a"] == (1.0, 1.0, 2.0), "without the seed that diverged, `lost` is the best"
    clear = analysis.ranks({"b": [2.0, 2.1, 2.2], "a": [1.0, 1.1, 1.2]})
    assert clear == {"b": (2.0, 2.0, 2.0), "a": (1.0, 1.0, 1.0)}
    mixed = analysis.ranks({"x": [1.0, 2.0, 3.0, 0.0], "y": [2.0, 1.0, 0.0, 3.2]})
    assert mixed["x"] == (1.0, 1.0, 2.0)
    assert mixed["y"] == (2.0, 1.0, 2.0)
    assert analysis.ranks({"x": [1.0], "y": [1.0]}) == {"x": (1.0, 1.0, 1.0), "y": (1.0, 1.0, 1.0)}


def test_a_difference_is_students_of_pairs() -> None:
    # By the table: t(0.975, 2) = 4.302653; the differences 1, 2 and 3 have standard deviation 1.
    found = analysis.compare("b", "a", [2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found["difference"] == 2.0
    assert (found["low"], found["high"]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    assert not found["decided"]
    # t(0.975, 3) · 1 / √4 = 1.591 < 2: one seed more.
    assert found["seeds"] == 4
    assert analysis.compare("b", "a", [2.0, 2.1], [1.0, 1.1])["decided"]
    assert analysis.compare("b", "a", [2.0], [1.0])["decided"] is False


@pytest.mark.parametrize(("difference", "spread"), [(2.0, 1.0), (0.3, 1.0), (-0.1, 0.5)])
def test_the_number_of_seeds_is_the_smallest_that_decides(difference: float, spread: float) -> None:
    n = analysis.seeds(difference, spread)
    assert n is not None

    def of(count: int) -> tuple[float, float | None, float | None]:
        values = np.array([-1.0, 1.0] * (count // 2) + [0.0] * (count % 2))
        return analysis.interval(list(difference + spread * values / values.std(ddof=1)))

    def decides(count: int) -> bool:
        _, low, high = of(count)
        assert low is not None
        assert high is not None
        return low > 0 or high < 0

    assert decides(n)
    assert n == 2 or not decides(n - 1)
    assert analysis.seeds(1e-6, 1.0) is None


def test_runs_that_diverge_are_told_and_come_last() -> None:
    found = summary(Arm("a", [run(None), run(0.1)]), Arm("b", [run(0.5), run(0.6)]), Arm("c", [run(None)] * 2))
    assert [row["name"] for row in found["optimizers"]] == ["b", "a", "c"]
    assert found["optimizers"][1]["loss"] is None
    assert "a diverged with 1 of 2 fresh seeds." in found["warnings"]
    answers = {row["name"]: row["decided"] for row in found["comparisons"]}
    assert answers == {"a": False, "c": True}
    assert "diverged" in tables.text(found)
    json.dumps(found, allow_nan=False)


def test_what_a_reader_must_know_is_said() -> None:
    grid = {-3: [2.0], -2: [1.0], -1: [0.5]}
    arms = [
        Arm("a", [run(0.5, grown=200 * MIB)], grid),
        Arm("b", [run(0.6, grown=200 * MIB, machine="there")], {k: [math.inf] for k in grid}),
        Arm("c", [], failed="it has no sparse gradients"),
    ]
    told = " ".join(summary(*arms)["warnings"])
    for words in (
        "a is best at the end of its learning rates, 0.316",
        "b diverged at every learning rate",
        "c has no result: it has no sparse gradients.",
        "leaves 200 MiB more",
        "Times are of 2 machines",
    ):
        assert words in told


def test_one_seed_or_one_optimizer_is_a_report_too() -> None:
    alone = summary(Arm("a", [run(0.5)]))
    assert alone["comparisons"] == []
    assert "a has the lowest mean validation loss, 0.5." in page.render(alone)
    two = summary(Arm("a", [run(0.5)]), Arm("b", [run(0.6)]))
    assert "one seed decides nothing" in tables.text(two)
    assert "No optimizer has a result" in page.render(summary(Arm("a", [], failed="no")))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_command_writes_a_page_that_needs_nothing_else(
    line: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    order = ["study", str(line), "--optimizers", "adamw, sgd", "--budget", "4", "--seeds", "1", "--out", str(out)]
    assert main(order) == 0
    printed = capsys.readouterr()
    assert "18/18 runs" in printed.err
    assert "optimizer" in printed.out
    assert f"The report: {out}/report.html" in printed.out
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert {row["name"] for row in found["optimizers"]} == {"adamw", "sgd"}
    assert all(len(row["grid"]) == 4 and len(row["losses"]) == 5 for row in found["optimizers"])
    text = (out / "report.html").read_text(encoding="utf-8")
    parser = Tags()
    parser.feed(text)
    assert not [tag for tag, _ in parser.tags if tag in ("script", "img", "iframe")]
    links = [a.get("href") or a.get("xlink:href") for tag, a in parser.tags if tag in ("link", "a", "use")]
    assert all(link and link.startswith(("data:", "#")) for link in links)
    assert "http" not in re.sub(r'xmlns[:a-z]*="[^"]*"', "", text)
    assert sum(tag == "svg" for tag, _ in parser.tags) == 4
    ids = [a["id"] for _, a in parser.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for row in found["optimizers"]:
        assert row["code"][1].split("(")[0] in text
    # Again, with more seeds: what is done is not done again.
    assert main([*order, "--fresh-seeds", "6"]) == 0
    assert capsys.readouterr().err.count("validation loss") == 2


def test_the_same_study_from_python(line: Path, tmp_path: Path) -> None:
    told: list[int] = []
    found = study.run(
        line, "adamw, sgd(momentum=0.5)", budget=3, seeds=1, fresh_seeds=2, tell=lambda news: told.append(news.done)
    )
    assert told[-1] == 10
    assert sorted(told) == told
    assert [row["rank"] for row in found["optimizers"]] == [1.0, 2.0]
    assert found["protocol"] == {"budget": 3, "seeds": 1, "fresh_seeds": 2}


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["--optimizers", "adammw"], "there is no optimizer 'adammw'; did you mean 'adamw'?"),
        (["--optimizers", "adamw+lokahead"], "there is no extension 'lokahead'; did you mean 'lookahead'?"),
        (["--optimizers", "adamw", "--budget", "2"], "budget must be a whole number from 3"),
        (["--optimizers", "adamw", "--threads", "0"], "threads must be from 1"),
        (["--optimizers", "adamw", "--processes", "0"], "processes must be 1 or more"),
        (["--optimizers", "adamw", "--budgte", "5"], "unrecognized arguments: --budgte 5"),
        ([], "the following arguments are required: --optimizers"),
    ],
)
def test_a_mistake_is_one_line(
    order: list[str], message: str, line: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", str(line), "--out", str(tmp_path / "r"), *order]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_problem_that_fails_on_the_way_keeps_what_is_done(
    line: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    switch = tmp_path / "broken"
    text = line.read_text(encoding="utf-8").replace(
        "def batches(seed, split):", f"def batches(seed, split):\n    if seed == 2:\n        open({str(switch)!r})"
    )
    line.write_text(text, encoding="utf-8")
    order = ["study", str(line), "--optimizers", "adamw", "--budget", "3", "--seeds", "1", "--out", str(tmp_path)]
    assert main([*order, "--fresh-seeds", "4"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r"error: batches of line raises FileNotFoundError: .*\(line.py, line \d+\), with adamw, .*seed 2", said
    )
    assert "runs are kept in sqlite:///" in said
    switch.touch()
    assert main([*order, "--fresh-seeds", "4"]) == 0
    assert (tmp_path / "report.html").exists()


def test_an_optimizer_that_refuses_the_problem_leaves_the_others(
    line: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = line.read_text(encoding="utf-8").replace(
        "lambda seed: nn.Linear(1, 1)", "lambda seed: nn.Embedding(1, 1, sparse=True)"
    )
    text = text.replace("model(batch[0])", "model(batch[0].long() * 0)[:, 0]")
    line.write_text(text, encoding="utf-8")
    order = ["study", str(line), "--budget", "3", "--seeds", "1", "--fresh-seeds", "2", "--out", str(tmp_path)]
    assert main([*order, "--optimizers", "sgd, soap"]) == 1
    said = capsys.readouterr()
    assert re.search(r"^error: soap: [^\n]+$", said.err, re.M)
    assert "soap has no result" in said.out
