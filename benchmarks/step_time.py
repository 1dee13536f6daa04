"""Measure the time of an optimizer's step: `python -m benchmarks.step_time`; the chapter book/speed.md draws it.

The rules of after 2019 (`--modern`) and torch.compile (`--compile`) are measured apart, into records of their own.
A run that was stopped is taken up where it was: what was measured is kept below `_build/benchmark/` until the
record is written.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments import code_hash, records
from experiments.errors import UserError

from . import candidates, process, summary
from .measure import Setting, peak_flops, session
from .modern import BY_ARITHMETIC, BY_MEMORY, MODERN
from .rules import LIBRARIES, PEERS, RULES
from .shapes import SHAPES, Shape, shrunk

CPU, CUDA = "speed", "speed_cuda"  # one record per kind of device, and what is measured apart has its own
# Whose first step, and whose memory, a process of its own measures.
PROCESSES = {"adamw": ("ours_eager", "ours_fused", "torch_foreach", "torch_fused"), "mix_noise": ("ours_fused",)}
PROCESS_SHAPES = "resnet50"
# To compile takes minutes for each rule, so with --compile this is all that is measured, on one model.
COMPILING: tuple[str, ...] = (summary.COMPILED, "ours_fused")
# A rule that memory limits on ResNet-50 is limited by it on any larger model: on a CPU, where some steps take
# seconds there, a few rules stand for all.
# So do one layer's matrices for rules that arithmetic limits, of which ResNet-50's take Muon seconds, SOAP a minute.
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


def run(plan: Plan, out: Path | None = None) -> Path:
    """Measure everything in the plan and write the record; returns its path.

    Raises:
        UserError: the device is not there, or its memory does not suffice.
    """
    if plan.device != "cpu" and not torch.cuda.is_available():
        raise UserError(
            f"there is no device {plan.device!r}: torch {torch.__version__} sees no GPU; use --device cpu"
        )
    absent = missing(plan.libraries)
    parameters = {**dataclasses.asdict(plan), "missing": absent}
    record = records.new(plan.slug, plan.scale, parameters, threads=max(plan.threads))
    record.provenance["packages"] |= candidates.versions(set(plan.libraries) - set(absent))
    kept = _kept(parameters)
    for setting in plan.settings:
        flops = _once(
            kept / f"machine.{setting.name}.json", partial(peak_flops, setting, 64 if plan.quick else 2048)
        )
        record.metric(f"machine.{setting.name}.gflops", float(f"{flops / 1e9:.4g}"))
    for shapes in plan.shapes:
        sizes = plan.sizes(shapes)
        for setting in plan.settings:
            for name in plan.rules_on(shapes):
                place = f"{shapes}.{setting.name}.{name}"
                measure = partial(_session, plan, absent, name, sizes, setting, place)
                seconds = _once(kept / f"{place}.json", measure)
                summary.add(record, place, seconds, sum(map(math.prod, sizes)), KNOWN[name].streams)
    if plan.processes and PROCESS_SHAPES in plan.shapes:
        for rule, names in plan.own_processes.items():
            for candidate in _chosen(names, ("ours",) if plan.quick and not plan.compiled else plan.libraries):
                place = f"process.{PROCESS_SHAPES}.{rule}.{candidate}"
                for key, value in _once(kept / f"{place}.json", partial(_process, plan, rule, candidate)).items():
                    record.metric(f"{place}.{key}", float(f"{value:.4g}"))
    path = records.write(record, out or plan.out(absent))
    shutil.rmtree(kept)
    return path


def missing(libraries: Collection[str]) -> list[str]:
    """Which of the libraries are not installed; says for each how to get it."""
    absent = []
    for name in [name for name in libraries if name in PEERS]:
        try:
            candidates.library(name)
        except candidates.Skip as reason:
            print(f"without {name}: {reason}", file=sys.stderr)
            absent.append(name)
    return absent


def _session(
    plan: Plan, absent: Collection[str], name: str, sizes: list[Shape], setting: Setting, place: str
) -> dict[str, list[float]]:
    rule = KNOWN[name]
    builds = candidates.of(rule, [library for library in plan.libraries if library not in absent], plan.compiled)
    if "torch" in plan.libraries:
        builds[summary.ANCHOR] = candidates.of(RULES["adamw"])["torch_fused"]
    if plan.modern:
        builds[summary.OWN_ANCHOR] = candidates.of(RULES["adamw"])["ours_fused"]
    say = partial(print, file=sys.stderr, flush=True)
    say(place)
    return session(
        builds,
        sizes,
        setting,
        streams=rule.streams,
        period=rule.period,
        rounds=max(1, plan.rounds // 3) if name in BY_ARITHMETIC else plan.rounds,  # of steps that take seconds
        seed=plan.seed,
        say=say,
    )


def _process(plan: Plan, rule: str, candidate: str) -> dict[str, float]:
    print(f"first step: {rule} {candidate}", file=sys.stderr, flush=True)
    setting = plan.settings[0]
    try:
        where = (setting.threads, setting.device, plan.quick)
        return process.measure(rule, PROCESS_SHAPES, candidate, *where, memory=not plan.compiled)
    except candidates.Skip as reason:
        print(f"  without {candidate}: {reason}", file=sys.stderr)
        return {}


def _chosen(names: Sequence[str], libraries: Collection[str]) -> list[str]:
    return [name for name in names if candidates.library_of(name) in libraries]


def _kept(parameters: dict[str, Any]) -> Path:
    """The folder of what an interrupted run of this plan, with this code, has measured."""
    code = code_hash.of_source("import benchmarks.step_time", records.ROOT)  # with all that it imports
    text = json.dumps([parameters, code, torch.__version__])
    return records.ROOT / "_build" / "benchmark" / hashlib.sha256(text.encode()).hexdigest()[:16]


def _once(path: Path, measure: Any) -> Any:
    """What `measure` returns, from the file if it is there, else into the file."""
    if not path.exists():
        records.write_text(path, json.dumps(measure()))
    return json.loads(path.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; mistakes are one line on stderr and exit status 2."""
    options = _parser().parse_args(arguments)
    full = AFTER_2019 if options.modern else WITH_COMPILER if options.compile else Plan()
    try:
        plan = dataclasses.replace(
            full,
            shapes=_words("--shapes", options.shapes, SHAPES, full.shapes),
            rules=_words("--rules", options.rules, full.rules, full.rules),
            threads=_numbers("--threads", options.threads),
            device=options.device,
            libraries=_words("--libraries", options.libraries, full.libraries, full.libraries),
            rounds=_numbers("--rounds", options.rounds or ("3" if options.quick else str(Plan.rounds)))[0],
            seed=options.seed,
            processes=full.processes and not options.no_processes,
            quick=options.quick,
        )
        if not any(map(plan.rules_on, plan.shapes)):
            raise UserError(f"{', '.join(plan.rules)}: not measured on {', '.join(plan.shapes)}, name other --shapes")
        print(run(plan, options.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_time", description=__doc__)
    lists = "a list with commas; all by default:"
    parser.add_argument("--shapes", help=f"{lists} {', '.join(Plan.shapes)}")
    parser.add_argument("--rules", help=f"{lists} {', '.join(RULES)}; with --modern: {', '.join(MODERN)}")
    parser.add_argument("--libraries", help=f"{lists} {', '.join(Plan.libraries)}")
    parser.add_argument("--threads", default="1,2", help="on a CPU (default: 1,2)")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--rounds", help=f"measurements per candidate (default: {Plan.rounds}; quick: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the values and the order (default: 0)")
    apart = parser.add_mutually_exclusive_group()
    apart.add_argument(
        "--compile", action="store_true", help="torch.compile of torch's rules, in a record apart; minutes for each"
    )
    apart.add_argument("--modern", action="store_true", help="the rules of after 2019, in a record apart")
    parser.add_argument("--no-processes", action="store_true", help="leave out the first step and the memory")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, in seconds")
    parser.add_argument("--out", type=Path, help="the record's file (default: below _build/)")
    return parser


def _words(option: str, text: str | None, known: Collection[str], default: Collection[str]) -> tuple[str, ...]:
    if text is None:
        return tuple(default)
    words = tuple(text.split(","))
    wrong = [word for word in words if word not in known]
    if wrong:
        raise UserError(f"{option}: there is no {wrong[0]!r}; there are {', '.join(known)}")
    return words


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise UserError(f"{option} must be whole numbers of at least 1 with commas between, got {text!r}")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
