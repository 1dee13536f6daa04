"""What this package set out to reach, and whether a record of `benchmarks.step_time` shows that it did."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.records import Record

from .modern import MODERN
from .summary import value_of


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


_ELEMENTWISE = (
    ("lion", True),
    ("adopt", True),
    ("ademamix", True),
    ("schedule_free", True),
    ("prodigy", True),
    ("signum", False),
    ("adabelief", False),
)
_GPT2 = ("lion", "schedule_free")
_LAYER = "a layer of GPT-2's attention"
MODERN_TARGETS = (
    *(
        _at_most(f"{MODERN[rule].title}: time per byte ÷ our AdamW's", f"{_RESNET}{rule}.ours_fused.per_byte", 1.1)
        for rule, _ in _ELEMENTWISE
    ),
    *(
        _at_least(f"{MODERN[rule].title}: times faster than others' best", f"{_RESNET}{rule}.ours_fused.speedup", 3)
        for rule, peers in _ELEMENTWISE
        if peers
    ),
    *(
        target
        for rule in _GPT2
        for target in (
            _at_most(
                f"{MODERN[rule].title} on GPT-2: time per byte ÷ our AdamW's",
                f"gpt2.{{}}.{rule}.ours_fused.per_byte",
                1.1,
            ),
            _at_least(
                f"{MODERN[rule].title} on GPT-2: times faster than others' best",
                f"gpt2.{{}}.{rule}.ours_fused.speedup",
                3,
            ),
        )
    ),
    *(
        _at_most(f"{MODERN[rule].title}: time ÷ torch's fused AdamW", f"{_RESNET}{rule}.ours_fused.over_adamw", 1.7)
        for rule in ("lamb", "cautious")
    ),
    _at_most("Muon in float32: time ÷ others' best", f"{_RESNET}muon.ours_fused.over_peer", 1),
    _at_most(f"Muon in float32, {_LAYER}: time ÷ others' best", "attention.{}.muon.ours_fused.over_peer", 1),
    _at_most(f"SOAP, {_LAYER}: time ÷ others' best", "attention.{}.soap.ours_fused.over_peer", 0.7),
    *(
        _at_most(
            f"{MODERN[mix].title}: time ÷ {MODERN[rule].title}'s",
            f"attention.{{}}.{mix}.ours_fused.over_plain",
            1.05,
        )
        for mix, rule in (("muon_average", "muon"), ("soap_average", "soap"))
    ),
)


def table(record: Record, settings: dict[str, str], targets: Sequence[Target] = TARGETS) -> str:
    """Every target with what was measured, as a table in Markdown: one column per setting.

    Args:
        settings: name in the record -> heading, such as ``{"t1": "1 thread"}``.
        targets: `TARGETS`, or for the record of the rules of after 2019 `MODERN_TARGETS`.
    """
    head = ["ResNet-50, unless it says otherwise", "goal", *settings.values()]
    rows = [[t.says, t.goal, *(_cell(record, t, setting) for setting in settings)] for t in targets]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def count(record: Record, settings: dict[str, str], targets: Sequence[Target] = TARGETS) -> tuple[int, int]:
    """(how many goals were met, how many were measured), each setting counted by itself."""
    found = [
        target.met(value)
        for target in targets
        for setting in (settings if "{}" in target.key else list(settings)[:1])
        if (value := value_of(record, target.key.format(setting))) is not None
    ]
    return sum(found), len(found)


def _cell(record: Record, target: Target, setting: str) -> str:
    if "{}" not in target.key and setting != _first(record):
        return ""
    key = target.key.format(setting)
    value = value_of(record, key)
    if value is None:
        return "not measured"
    ends = [value_of(record, key.replace(".speedup", ".ratio") + end) for end in ("_low", "_high")]
    spread = ""
    if ends[0] is not None and ends[1] is not None:
        low, high = (1 / ends[1], 1 / ends[0]) if key.endswith(".speedup") else (ends[0], ends[1])
        spread = f" ({low:.2f} to {high:.2f})"
    if target.met(value):
        return f"{value:.2f}{target.unit} ✓\u00a0met{spread}"
    fraction = value_of(record, key.replace(".speedup", ".fraction")) if key.endswith(".speedup") else None
    best = f"; {value / fraction:.2f} at the limit itself" if fraction else ""
    return f"{value:.2f}{target.unit} ✗\u00a0missed{spread}{best}"


def _first(record: Record) -> str:
    """The setting in which a process of its own was measured."""
    return str(next(iter(record.metrics["machine"])))
