"""The benchmark's figures and table hold all that the record holds, and say what diverged."""

import html
import re

import pytest

from benchmarks import training_speed
from experiments import benchmark_figures, figures
from experiments.benchmark import FIGURES, LABELS
from experiments.records import Record


@pytest.fixture
def record() -> Record:
    """Two data sets, two seeds; on the second one, SGD diverged at once, with all seeds."""
    parameters = {"datasets": {"digits": {}, "mnist": {}}, "targets": {"digits": 0.5, "mnist": 0.1}}
    made = Record("benchmark", "quick", parameters)
    made.provenance["milliseconds_per_step"] = {}
    for dataset in parameters["datasets"]:
        made.provenance["milliseconds_per_step"][dataset] = dict.fromkeys(LABELS, 1.25)
        for i, name in enumerate(LABELS):
            lost = dataset == "mnist" and name == "sgd"
            for key in ("train_loss", "val_loss", "val_accuracy"):
                made.metric(f"{dataset}.{name}.{key}", [None, None] if lost else [0.25, 0.75])
                lines = [[], []] if lost else [[2.0, 1.0, 0.1 + i / 100], [2.0, 1.1, 0.2]]
                made.curve(f"{dataset}/{name}/{key}", [1, 2, 3], lines, "epoch", key)
            made.metric(f"{dataset}.{name}.steps_to_target", [30.0, None] if i else [30.0, 50.0])
        for name in benchmark_figures.CONTROLS:
            ratios = {"radam": [None, 0.5], "lr_dropout": [-0.5, -0.25]}.get(name, [-0.25, 0.75])
            made.metric(f"controls.{dataset}.{name}.log_ratio", ratios)
            losses = [None, 1.0] if name == "radam" else [1.9, 2.1]
            made.metric(f"controls.{dataset}.{name}.control_loss", losses)
    for i, name in enumerate(LABELS):
        made.curve(f"lr/{name}", [0.1, 1.0], [[0.5, 0.4]], "learning rate", "validation loss")
        for key, value in (("rank", i + 1), ("rank_low", i + 1), ("rank_high", i + 2), ("lr", 0.01)):
            made.metric(f"tuned.{name}.{key}", value)
        made.metric(f"tuned.{name}.val_loss", [0.25, 0.75])
    made.metric("claims.nesterov_over_sgd_final", [-0.5, -0.25])
    made.metric("claims.rmsprop_over_adam_early", [None, 0.5])
    made.metric("claims.lookahead_momentum_over_momentum_final", [0.25])
    for other in ("adam_over_start", "momentum_over_control", "precision_over_control"):
        made.metric(f"claims.{other}", [0.5, 0.25])
    return made


@pytest.mark.parametrize("title", FIGURES)
@pytest.mark.parametrize("dataset", ["digits", "mnist"])
def test_a_figure_names_every_run_that_is_in_it(record: Record, title: str, dataset: str) -> None:
    markup = figures.markup(benchmark_figures.family(record, title, dataset), "x")
    for name in FIGURES[title]:
        drawn = not (dataset == "mnist" and name == "sgd")
        assert (f">{LABELS[name]}<" in markup) is drawn
    assert "nan" not in markup


def test_in_words_a_figure_says_where_its_runs_end(record: Record) -> None:
    assert benchmark_figures.in_words(record, "Weight decay").endswith("Adam 0.5, Adam + L2 0.5, AdamW 0.5.")
    record.parameters["datasets"] = {"mnist": {}}
    assert "SGD diverges, momentum 0.5" in benchmark_figures.in_words(record, "SGD and its family")


def test_runs_of_one_figure_look_different() -> None:
    for names in [*FIGURES.values(), *benchmark_figures.GROUPS.values()]:
        looks = [benchmark_figures.STYLES[name] for name in names]
        assert len(set(looks)) == len(looks), names
    assert {name for names in benchmark_figures.GROUPS.values() for name in names} == set(LABELS)


def test_the_other_figures_name_all_runs(record: Record) -> None:
    drawn = [
        benchmark_figures.overview(record, "digits"),
        benchmark_figures.grouped(record, "lr", "learning rate", "loss", xscale="log", yscale="log"),
        benchmark_figures.ranking(record),
    ]
    for fig in drawn:
        markup = figures.markup(fig, "x")
        for label in LABELS.values():
            assert f">{label}<" in markup


def cells_of(table: str) -> list[list[str]]:
    text = re.sub("[\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}]", " ", html.unescape(table))
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]


def test_the_table_has_a_row_for_every_run(record: Record) -> None:
    _, *cells = cells_of(benchmark_figures.table(record, "mnist"))
    assert [row[0] for row in cells] == list(LABELS.values())
    assert cells[0][1:] == ["diverged", "diverged", "40", "1.25"]
    assert cells[1][1:] == ["0.5 ± 3.2", "50.0 ± 3.2e+02", "never", "1.25"]


def test_controls_are_shown_on_every_data_set(record: Record) -> None:
    head, *rows = cells_of(benchmark_figures.controls(record))
    assert head == ["method", "control", "digits", "MNIST"]
    assert rows[0] == [
        "momentum",
        "SGD, learning rate × 100",
        *["28 % more (450 times less to 740 times as much)"] * 2,
    ]
    assert rows[1] == ["RAdam", "Adam, warm-up over 2,000 steps", "diverged", "diverged"]
    assert rows[2][2:] == ["31 % less (86 % less to 3.4 times as much)"] * 2
    assert len(rows) == len(benchmark_figures.CONTROLS)


def test_the_figures_are_told_in_percent(record: Record) -> None:
    head, *rows = cells_of(benchmark_figures.differences(record))
    assert head == ["method", "against", "training loss", "is"]
    assert rows == [
        ["Nesterov", "SGD", "at the end", "31 % less (86 % less to 3.4 times as much)"],
        ["RMSprop", "Adam", "first half", "diverged"],
        ["Lookahead(momentum)", "momentum", "at the end", "28 % more"],
    ]


def test_what_was_found_is_computed(record: Record) -> None:
    record.metrics["tuned"]["nadam"]["rank"] = 0.5
    record.metrics["controls"]["digits"]["lr_dropout"]["log_ratio"] = [-0.5, -0.49]
    names = list(LABELS)
    adam = names.index("adam") + 1
    text = benchmark_figures.found(record)
    assert f"those of {LABELS['nadam']}, {LABELS[names[0]]} and {LABELS[names[1]]};" in text
    assert f"Adam has rank {adam} of 18, somewhere from {adam} to {adam + 1}." in text
    # one diverges on both, and one is told apart on the first
    assert text.endswith("in 6 of 8 cases on digits and in 7 of 8 cases on MNIST.")
    first, *_ = cells_of(benchmark_figures.tuned(record))[1:]
    assert first == [
        LABELS["nadam"],
        f"0 ({names.index('nadam') + 1} to {names.index('nadam') + 2})",
        "0.01",
        "0.500 ± 3.2",
    ]


def test_a_control_is_told_apart_from_one_that_only_guesses(record: Record) -> None:
    said = [benchmark_figures.control_in_words(record, name) for name in ("momentum", "radam")]
    assert said[0] == "The control itself ends at a training loss of 2.00; guessing has 2.30."
    assert said[1] == "The control itself diverges; guessing has 2.30."


def test_speeds_are_compared_within_a_round() -> None:
    """A machine that gets slower from round to round does not change a ratio."""
    calls: list[str] = []

    def candidate(name: str, speed: float) -> training_speed.Candidate:
        def run() -> float:
            calls.append(name)
            return speed / len(calls)

        return run

    table = training_speed.compare({"plain": candidate("plain", 100), "ours": candidate("ours", 400)}, rounds=3)
    assert calls == ["plain", "ours"] * 4
    plain, ours = (line.split() for line in table.splitlines()[2:])
    assert plain[2:] == ["1.00", "1.00", "to", "1.00"]
    assert float(ours[2]) == pytest.approx(4 * 5 / 6, abs=0.01)
    assert [float(ours[3]), float(ours[5])] == pytest.approx([4 * 3 / 4, 4 * 7 / 8], abs=0.01)
