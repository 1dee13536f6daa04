"""What this package set out to reach, and whether a record of `benchmarks.step_time` shows that it did."""

from dataclasses import dataclass
from typing import Any

from experiments.records import Record


@dataclass(frozen=True)
class Target:
    """One quantity of the record and its bound. `{}` in `key` stands for the setting: t1, t2, cuda."""

    says: str
    key: str
    bound: float
    at_least: bool = False  # else at most
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a measured value, a median over the rounds, keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    @property
    def goal(self) -> str:
        return f"{'≥' if self.at_least else '≤'}\u00a0{self.bound:g}{self.unit}"


def _at_most(says: str, key: str, bound: float) -> Target:
    return Target(says, key, bound)


def _at_least(says: str, key: str, bound: float) -> Target:
    return Target(says, key, bound, at_least=True)


_RESNET = "resnet50.{}."
TARGETS = (
    *(
        _at_most(f"{title}: time ÷ torch's fused", f"{_RESNET}{rule}.ours_fused.ratio", bound)
        for title, rule, bound in (
            ("Adam", "adam", 1.15),
            ("AdamW", "adamw", 1.15),
            ("AMSGrad", "amsgrad", 1.15),
            ("SGD + momentum", "sgd", 1.3),
        )
    ),
    _at_most("AdamW on the CNN: time ÷ torch's fused", "cnn.{}.adamw.ours_fused.ratio", 1.2),
    _at_most("AdamW on 1,000 tiny tensors: time ÷ torch's fused", "tiny.{}.adamw.ours_fused.ratio", 0.4),
    *(
        _at_least(f"{title}: times faster than torch's best", f"{_RESNET}{rule}.ours_fused.speedup", 3)
        for title, rule in (
            ("RMSprop", "rmsprop"),
            ("NAdam", "nadam"),
            ("RAdam", "radam"),
            ("Adadelta", "adadelta"),
        )
    ),
    *(
        _at_least(f"{title}: times faster than any other library", f"{_RESNET}{rule}.ours_fused.speedup", 2)
        for title, rule in (("AdaBound", "adabound"), ("AggMo", "aggmo"))
    ),
    _at_most(
        "RAdamW + Nesterov + Lookahead: time ÷ torch's fused AdamW", f"{_RESNET}mix.ours_fused.over_adamw", 1.2
    ),
    _at_most("… + masks: time ÷ torch's fused AdamW", f"{_RESNET}mix_masks.ours_fused.over_adamw", 2.2),
    _at_least("… + masks + noise: times faster than from pieces", f"{_RESNET}mix_noise.ours_fused.speedup", 5),
    Target(
        "AdamW's kernel alone: fraction of the limit", f"{_RESNET}adamw.ours_kernel.fraction", 0.85, at_least=True
    ),
    _at_most("AdamW unfused: time ÷ torch's loop", f"{_RESNET}adamw.ours_eager.over_loop", 1.1),
    Target("First step, nothing compiled yet", "process.resnet50.adamw.ours_fused.cold", 10, unit="\u00a0s"),
    Target("First step in the next process", "process.resnet50.adamw.ours_fused.warm", 3, unit="\u00a0s"),
    Target("Extra memory ÷ the gradients'", "process.resnet50.adamw.ours_fused.extra", 1),
)


def table(record: Record, settings: dict[str, str]) -> str:
    """Every target with what was measured, as a table in Markdown: one column per setting.

    Args:
        settings: name in the record -> heading, such as ``{"t1": "1 thread"}``.
    """
    head = ["ResNet-50, unless it says otherwise", "goal", *settings.values()]
    rows = [[t.says, t.goal, *(_cell(record, t, setting) for setting in settings)] for t in TARGETS]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def count(record: Record, settings: dict[str, str]) -> tuple[int, int]:
    """(how many goals were met, how many were measured), each setting counted by itself."""
    found = [
        target.met(value)
        for target in TARGETS
        for setting in (settings if "{}" in target.key else list(settings)[:1])
        if (value := _value(record, target.key.format(setting))) is not None
    ]
    return sum(found), len(found)


def _cell(record: Record, target: Target, setting: str) -> str:
    if "{}" not in target.key and setting != _first(record):
        return ""
    key = target.key.format(setting)
    value = _value(record, key)
    if value is None:
        return "not measured"
    ends = [_value(record, key.replace(".speedup", ".ratio") + end) for end in ("_low", "_high")]
    spread = ""
    if ends[0] is not None and ends[1] is not None:
        low, high = (1 / ends[1], 1 / ends[0]) if key.endswith(".speedup") else (ends[0], ends[1])
        spread = f" ({low:.2f} to {high:.2f})"
    if target.met(value):
        return f"{value:.2f}{target.unit} ✓\u00a0met{spread}"
    fraction = _value(record, key.replace(".speedup", ".fraction")) if key.endswith(".speedup") else None
    best = f"; {value / fraction:.2f} at the limit itself" if fraction else ""
    return f"{value:.2f}{target.unit} ✗\u00a0missed{spread}{best}"


def _first(record: Record) -> str:
    """The setting in which a process of its own was measured."""
    return str(next(iter(record.metrics["machine"])))


def _value(record: Record, key: str) -> float | None:
    # Not `record.get`: it looks for similar names, of thousands, where there is none.
    place: Any = record.metrics
    for part in key.split("."):
        place = place.get(part) if isinstance(place, dict) else None
    return None if isinstance(place, dict) else place
