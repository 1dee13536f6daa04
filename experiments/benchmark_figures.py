"""The benchmark's figures and tables, drawn from its record."""

import html
import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments import figures
from experiments.benchmark import FIGURES, LABELS
from experiments.intervals import in_percent, interval
from experiments.records import Record

# (hue, dashes): what overlaps in one of the seven figures is told apart by its dashes.
STYLES = {
    "sgd": ("gray", "-"),
    "momentum": ("orange", "-"),
    "nesterov": ("vermilion", "--"),
    "sgdw": ("violet", ":"),
    "momentum_lr_dropout": ("green", "-"),
    "rmsprop": ("pink", "-"),
    "adam": ("blue", "-"),
    "adam_l2": ("green", "--"),
    "adamw": ("violet", ":"),
    "adam_lr_dropout": ("vermilion", "--"),
    "radam": ("teal", "-"),
    "radamw": ("olive", "--"),
    "radam_lr_dropout": ("green", "--"),
    "nadam": ("crimson", "--"),
    "lookahead_momentum": ("crimson", "--"),
    "lookahead_adam": ("teal", "--"),
    "gradient_noise_adam": ("pink", "-"),
    "gradient_dropout_adam": ("olive", "-"),
}
GROUPS = {
    "SGD's family": ("sgd", "momentum", "nesterov", "sgdw", "momentum_lr_dropout", "lookahead_momentum"),
    "Adam's family": ("rmsprop", "adam", "adam_l2", "adamw", "nadam", "radam", "radamw"),
    "Extensions": (
        *("adam", "adam_lr_dropout", "radam_lr_dropout", "lookahead_adam"),
        *("gradient_noise_adam", "gradient_dropout_adam"),
    ),
}
DATASETS = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}


def datasets(record: Record) -> list[str]:
    """The data sets of a record, the one of the seven figures first."""
    return list(record.parameters["datasets"])


def family(record: Record, title: str, dataset: str | None = None) -> Figure:
    """One of the seven figures: training loss above, validation loss and accuracy below."""
    dataset = dataset or datasets(record)[0]
    fig, axes = figures.figure(2, 2, height=5.2, height_ratios=[1.5, 1])
    for ax in axes[0]:
        ax.remove()
    top = fig.add_subplot(axes[0, 0].get_gridspec()[0, :])
    _lines(record, top, [f"{dataset}/{name}/train_loss" for name in FIGURES[title]], FIGURES[title])
    top.set(yscale="log", xlabel="epoch", ylabel="training loss", title=f"{title}, {DATASETS[dataset]}")
    for ax, key in zip(axes[1], ("val_loss", "val_accuracy"), strict=True):
        _lines(record, ax, [f"{dataset}/{name}/{key}" for name in FIGURES[title]], FIGURES[title], labels=False)
        ax.set(xlabel="epoch", title=key.replace("val_", "validation "))
    axes[1, 0].set_yscale("log")
    for ax in (top, axes[1, 0]):
        figures.plain_ticks(ax)
    return fig


def in_words(record: Record, title: str) -> str:
    """One of the seven figures as its alternative text says it: where each curve ends."""
    dataset = datasets(record)[0]
    ends = []
    for name in FIGURES[title]:
        mean, _, _ = interval(record.get(f"{dataset}.{name}.train_loss"))
        ends.append(f"{LABELS[name]} {'diverges' if mean is None else f'{mean:.3g}'}")
    return (
        "Training loss over the epochs on a logarithmic axis; below it validation loss and accuracy. "
        f"Mean training loss of the last epoch: {', '.join(ends)}."
    )


def overview(record: Record, dataset: str) -> Figure:
    """All seven figures at a glance: training losses on one data set."""
    fig, axes = figures.figure(len(FIGURES), 1, height=2.1 * len(FIGURES), sharex=True)
    for ax, (title, names) in zip(axes, FIGURES.items(), strict=True):
        _lines(record, ax, [f"{dataset}/{name}/train_loss" for name in names], names)
        ax.set(yscale="log", ylabel="training loss", title=title)
        figures.plain_ticks(ax)
    axes[-1].set_xlabel("epoch")
    return fig


def grouped(record: Record, kind: str, xlabel: str, ylabel: str, **scales: Any) -> Figure:
    """Curves `kind/<name>` of all 18, in three panels."""
    fig, axes = figures.figure(len(GROUPS), 1, height=2.5 * len(GROUPS), sharex=True)
    for ax, (title, names) in zip(axes, GROUPS.items(), strict=True):
        _lines(record, ax, [f"{kind}/{name}" for name in names], names)
        ax.set(ylabel=ylabel, title=title, **scales)
        if scales.get("yscale") == "log":
            figures.plain_ticks(ax)
    axes[-1].set_xlabel(xlabel)
    return fig


def ranking(record: Record) -> Figure:
    """The ranks after tuning, with their bootstrap intervals, best first."""
    fig, ax = figures.figure(height=4.6)
    order = by_rank(record)
    for place, name in enumerate(reversed(order)):
        rank, low, high = (record.get(f"tuned.{name}.{key}") for key in ("rank", "rank_low", "rank_high"))
        color = figures.PALETTE[STYLES[name][0]][0]
        ax.plot([low, high], [place, place], color=color, linewidth=5, alpha=0.35)
        ax.plot([rank], [place], "o", color=color)
    ax.set(yticks=range(len(order)), yticklabels=[LABELS[name] for name in reversed(order)])
    ax.set(xlabel="rank by validation loss", xlim=(0.5, len(order) + 0.5), xticks=[1, 6, 12, 18])
    return fig


def table(record: Record, dataset: str) -> str:
    """The 18 runs in numbers, as an HTML table: mean over the seeds and half the 95 % interval."""
    target = record.parameters["targets"][dataset]
    head = (
        *("optimizer", "training loss", "accuracy, %"),
        *(f"steps to a loss of {target:g}", "ms per step"),
    )
    rows = []
    for name, label in LABELS.items():
        run = record.metrics[dataset][name]
        accuracy = [None if v is None else 100 * v for v in run["val_accuracy"]]
        reached = run["steps_to_target"]
        time = record.provenance["milliseconds_per_step"][dataset][name]
        cells = [
            _pm(run["train_loss"], ".3g"),
            _pm(accuracy, ".1f"),
            "never" if None in reached else f"{statistics.fmean(reached):.0f}",
            f"{time:.2f}",
        ]
        rows.append((label, *cells))
    return _html(head, rows)


# A control's name in the record: the method it is held against; the plain rule that the method may amount to.
CONTROLS = {
    "momentum": ("momentum", "SGD, learning rate × 100"),
    "radam": ("radam", "Adam, warm-up over 2,000 steps"),
    "lr_dropout": ("adam_lr_dropout", "Adam, learning rate × ½"),
    "radam_lr_dropout": ("radam_lr_dropout", "RAdam, learning rate × ½"),
    "lookahead_momentum": ("lookahead_momentum", "momentum, learning rate × ½"),
    "lookahead_adam": ("lookahead_adam", "Adam, learning rate × ½"),
    "gradient_noise": ("gradient_noise_adam", "the same, variance × 0.001"),
    "gradient_dropout": ("gradient_dropout_adam", "Adam"),
}


def controls(record: Record) -> str:
    """The controls as an HTML table: how much the method's final training loss is, against the control's."""
    rows = []
    for name, (method, control) in CONTROLS.items():
        ratios = [record.get(f"controls.{dataset}.{name}.log_ratio") for dataset in datasets(record)]
        rows.append((LABELS[method], control, *map(_percent, ratios)))
    return _html(("method", "control", *(DATASETS[dataset] for dataset in datasets(record))), rows)


def found(record: Record) -> str:
    """What the two comparisons that are fair come to: three sentences of Markdown."""
    first, second, third = (LABELS[name] for name in by_rank(record)[:3])
    rank, low, high = (round(record.get(f"tuned.adam.{key}")) for key in ("rank", "rank_low", "rank_high"))
    alike = []
    for dataset in datasets(record):
        intervals = [interval(record.get(f"controls.{dataset}.{name}.log_ratio")) for name in CONTROLS]
        count = sum(low is not None and high is not None and low <= 0 <= high for _, low, high in intervals)
        alike.append(f"in {count} of {len(CONTROLS)} cases on {DATASETS[dataset]}")
    return (
        f"With a learning rate of its own for each, the lowest validation losses are those of {first}, {second} "
        f"and {third}; Adam has rank {rank} of {len(LABELS)}, somewhere from {low} to {high}. Beside the plain "
        "rule with the learning rate, or the schedule, that it may amount to, a method cannot be told from it "
        f"{' and '.join(alike)}."
    )


def by_rank(record: Record) -> list[str]:
    """The optimizers after tuning, best first."""
    return sorted(
        LABELS, key=lambda name: (record.get(f"tuned.{name}.rank"), record.get(f"tuned.{name}.rank_high"))
    )


def tuned(record: Record) -> str:
    """The optimizers at their best learning rates as an HTML table, best first."""
    rows = []
    for name in by_rank(record):
        rank, low, high = (round(record.get(f"tuned.{name}.{key}")) for key in ("rank", "rank_low", "rank_high"))
        rate, loss = (record.get(f"tuned.{name}.{key}") for key in ("lr", "val_loss"))
        rows.append((LABELS[name], f"{rank} ({low} to {high})", f"{rate:g}", _pm(loss, ".3f")))
    return _html(("optimizer", "rank", "learning rate", "validation loss"), rows)


WHEN = {"final": "at the end", "early": "first half"}


def differences(record: Record) -> str:
    """What the seven figures show in numbers, as an HTML table: one method's training loss against another's."""
    rows = []
    for key, ratios in record.metrics["claims"].items():
        method, _, other = key.partition("_over_")
        base, _, when = other.rpartition("_")
        if method in LABELS and base in LABELS and when in WHEN:
            rows.append((LABELS[method], LABELS[base], WHEN[when], _percent(ratios)))
    return _html(("method", "against", "training loss", "is"), rows)


def control_in_words(record: Record, name: str) -> str:
    """How far a control itself has come, on the data set of the seven figures: a sentence of Markdown."""
    losses = record.get(f"controls.{datasets(record)[0]}.{name}.control_loss")
    ends = "diverges" if None in losses else f"ends at a training loss of {statistics.fmean(losses):.2f}"
    return f"The control itself {ends}; guessing has {math.log(10):.2f}."


def _html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls where a page is narrow; the first cell of a row is its header."""
    lines = [
        f'<th scope="row">{html.escape(first)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        for first, *cells in rows
    ]
    return (
        '<div class="pst-scrollable-table-container"><table class="table"><thead><tr>'
        + "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
        + "</tr></thead><tbody>"
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</tbody></table></div>"
    )


def show_table(markup: str) -> None:
    """Display an HTML table in a page."""
    from IPython.display import display

    display({"text/html": markup, "text/plain": "a table"}, raw=True)  # type: ignore[no-untyped-call]


def _lines(record: Record, ax: Any, curves: Sequence[str], names: Sequence[str], labels: bool = True) -> None:
    for curve, name in zip(curves, names, strict=True):
        hue, dashes = STYLES[name]
        points, color = record.curves[curve], figures.PALETTE[hue][0]
        if any(value is not None for line in points["seeds"] for value in line):  # not all diverged at once
            figures.band(ax, points["x"], points["seeds"], LABELS[name], color=color, linestyle=dashes)
    ax._direct_labels = labels


def _percent(ratios: Sequence[float | None]) -> str:
    return "diverged" if None in ratios else in_percent(list(ratios))


def _pm(values: Sequence[float | None], form: str) -> str:
    mean, low, _ = interval(list(values))
    if mean is None or low is None:
        return "diverged"
    text = f"{mean:{form}}".replace("-", "\N{MINUS SIGN}")
    return f"{text}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{mean - low:.2g}" if len(values) > 1 else text
