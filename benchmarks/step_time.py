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
from .modern import BY_ARITHMETIC, MODERN
from .plan import AFTER_2019, KNOWN, PROCESS_SHAPES, WITH_COMPILER, Plan
from .rules import PEERS, RULES
from .shapes import SHAPES, Shape


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
            asked, shapes = ", ".join(plan.rules), ", ".join(plan.shapes)
            raise UserError(f"{asked}: not measured on {shapes}; name other --shapes")
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
