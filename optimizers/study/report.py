"""What a study found, from its ledger: as plain values, on a page, and in files."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..mixes import Mix
from . import analysis, page
from .analysis import Arm
from .grid import best, rate
from .making import code
from .protocol import Run
from .worker import Study


def collect(study: Study) -> dict[str, Any]:
    """The report of a study as plain JSON values; what is not done of it is missing there, and said."""
    arms = [_arm(study, mix) for mix in study.mixes]
    machines = sorted({run["machine"] for arm in arms for run in arm.runs})
    threads = f"{study.threads} thread{'s' if study.threads > 1 else ''}"
    return {
        "problem": study.problem.name,
        "steps": study.problem.steps,
        "protocol": asdict(study.protocol),
        "provenance": "; ".join([threads, *machines]),
        **analysis.summarize(arms),
    }


def _arm(study: Study, mix: Mix) -> Arm:
    results = study.results(mix)
    tried = study.protocol.tried(mix, results)
    missing = study.protocol.missing(mix, results)
    if missing:
        told = study.failed.get(mix.text) or (study.ledger.failures(mix.text) or ["it is not finished"])[-1]
        return Arm(mix.text, [], tried, failed=told)
    power, _ = best(tried)
    runs = [results[Run(power, seed)] for seed in study.protocol.fresh]
    return Arm(mix.text, runs, tried, code(mix, rate(power)))


def write(found: Mapping[str, Any], folder: str | Path) -> Path:
    """Write ``report.html`` and ``report.json`` into a folder, each whole or not at all; the path of the page."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.json": json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": page.render(found),
    }
    for name, text in texts.items():
        half = folder / f".{name}.{os.getpid()}"
        half.write_text(text, encoding="utf-8")
        half.replace(folder / name)
    return folder / "report.html"
