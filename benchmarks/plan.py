"""What is measured of a step: which rules, whose, on which parameters; and where the record of it belongs."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

from experiments import records

from . import candidates, summary
from .measure import Setting
from .modern import BY_ARITHMETIC, BY_MEMORY, MODERN
from .rules import LIBRARIES, RULES
from .shapes import SHAPES, Shape, shrunk

CPU, CUDA = "speed", "speed_cuda"  # one record per kind of device, and what is measured apart has its own
# Whose first step, and whose memory, a process of its own measures.
PROCESSES = {"adamw": ("ours_eager", "ours_fused", "torch_foreach", "torch_fused"), "mix_noise": ("ours_fused",)}
PROCESS_SHAPES = "resnet50"
# To compile takes minutes for each rule, so with --compile this is all that is measured, on one model.
COMPILING: tuple[str, ...] = (summary.COMPILED, "ours_fused")
# A rule that memory limits on ResNet-50 is limited by it on any larger model: on a CPU, where some steps take
# seconds there, a few rules stand for all. Where arithmetic is the limit, one layer's matrices stand for a model's:
# a step of all of ResNet-50's takes Muon seconds, and SOAP longer than anybody wants to wait for hundreds of.
FEW = {
    "gpt2": ("adamw", "nadam", "lion", "schedule_free"),
    "resnet50": (*RULES, *BY_MEMORY, "muon"),
    "attention": tuple(BY_ARITHMETIC),
}
KNOWN = RULES | MODERN


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured. One that leaves something out, or is quick, is a trial: the book does not print it.

    With `compiled` torch.compile of torch's rules stands beside torch and this package, in a record of its own that
    may hold a few rules alone (see `WITH_COMPILER`); with `modern` the rules are other ones (see `AFTER_2019`).
    """

    shapes: tuple[str, ...] = ("cnn", "resnet50", "gpt2", "tiny")
    rules: tuple[str, ...] = tuple(RULES)
    threads: tuple[int, ...] = (1, 2)
    device: str = "cpu"
    libraries: tuple[str, ...] = (*candidates.OWN, *LIBRARIES)
    rounds: int = 21
    seed: int = 0
    compiled: bool = False
    processes: bool = True
    quick: bool = False
    modern: bool = False

    @property
    def whole(self) -> bool:
        if self.compiled:
            return PROCESS_SHAPES in self.shapes and self.processes and set(candidates.OWN) <= set(self.libraries)
        full = AFTER_2019 if self.modern else Plan()
        return all(
            getattr(self, name) == getattr(full, name)
            for name in ("shapes", "rules", "threads", "libraries", "processes")
        )

    @property
    def own_processes(self) -> dict[str, tuple[str, ...]]:
        """Rule -> the candidates that processes of their own measure."""
        if self.compiled:
            return {name: COMPILING for name in self.rules if RULES[name].torch is not None}
        return {name: names for name, names in PROCESSES.items() if name in self.rules}

    @property
    def settings(self) -> list[Setting]:
        cpu = self.device == "cpu"
        return [Setting(self.device, threads) for threads in (self.threads if cpu else self.threads[:1])]

    def rules_on(self, shapes: str) -> list[str]:
        """The rules that are measured on a model's shapes."""
        few = FEW.get(shapes, KNOWN) if self.device == "cpu" else KNOWN
        return [name for name in self.rules if name in few]

    def sizes(self, name: str) -> list[Shape]:
        return shrunk(SHAPES[name]()) if self.quick else SHAPES[name]()

    def out(self, absent: Collection[str] = ()) -> Path:
        """Where its record goes: among the records only if nothing was left out, and no library is absent."""
        path = records.local_path(self.slug, self.scale)
        trial = self.quick or absent or not self.whole
        return records.ROOT / "_build" / "trials" / self.scale / path.name if trial else path

    @property
    def slug(self) -> str:
        return (CPU if self.device == "cpu" else CUDA) + "_modern" * self.modern + "_compile" * self.compiled

    @property
    def scale(self) -> str:
        return "quick" if self.quick else "standard"


WITH_COMPILER = Plan(
    shapes=(PROCESS_SHAPES,),
    rules=tuple(name for name, rule in RULES.items() if rule.torch is not None),
    libraries=candidates.OWN,
    compiled=True,
)
AFTER_2019 = Plan(
    shapes=("resnet50", "gpt2", "attention"),
    rules=tuple(MODERN),
    libraries=(*candidates.OWN, *LIBRARIES, "prodigyopt", "schedulefree", "heavyball"),
    processes=False,
    modern=True,
)
