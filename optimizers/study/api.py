"""A study from Python: `run`, and what the command does besides."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import mixes
from .errors import StudyError
from .problem import Problem
from .protocol import Protocol

if TYPE_CHECKING:
    from .worker import News, Study

EXTRA = "the extra `study` is missing: pip install 'optimization-for-deep-learning[study]'"


def run(
    problem: Problem | str | Path,
    optimizers: str,
    *,
    budget: int = 7,
    seeds: int = 3,
    fresh_seeds: int = 5,
    storage: str | None = None,
    out: str | Path | None = None,
    threads: int = 1,
    tell: "Callable[[News], None] | None" = None,
) -> dict[str, Any]:
    """Try optimizers on a problem, and say what came out.

    Args:
        problem: the problem, or the file that defines one as `problem`.
        optimizers: mixes as on the command line, ``"adamw, radamw(nesterov=True)+lookahead"``.
        budget: learning rates that each optimizer gets, at least 3.
        seeds: with which each of these is run.
        fresh_seeds: others, with which the best is run again.
        storage: where runs are kept, and shared with other workers: ``"sqlite:///study.db"``, ``"postgresql://…"``,
            ``"mysql://…"``, or the path of a journal file; None keeps them in memory.
        out: a folder for ``report.html`` and ``report.json``; None writes nothing.
        threads: of each run.
        tell: is told how far the study is.

    Returns:
        The report as plain JSON values: ``optimizers``, best first, ``comparisons`` with the best, ``warnings``.

    Raises:
        StudyError: an argument is wrong, the problem fails, or the storage cannot be used. What is done is kept in
            the storage, and the same call goes on from there.
    """
    study = prepare(problem, optimizers, Protocol(budget, seeds, fresh_seeds), storage, threads)
    from . import report

    study.work(tell or (lambda news: None))
    found = report.collect(study)
    if out is not None:
        report.write(found, out)
    return found


def prepare(
    problem: Problem | str | Path, optimizers: str, protocol: Protocol, storage: str | None, threads: int
) -> "Study":
    """The study, connected to its storage; nothing is run yet."""
    try:
        with warnings.catch_warnings():
            # In a notebook without widgets, the bars that Optuna could show say that they cannot be shown.
            warnings.filterwarnings("ignore", "IProgress not found")
            from . import report  # noqa: F401  (all that the extra is for)
            from .storage import Ledger, connect
            from .worker import Study
    except ModuleNotFoundError as error:
        raise StudyError(f"{EXTRA} ({error})") from error
    try:
        chosen = mixes.parse(optimizers)
    except ValueError as error:
        raise StudyError(str(error)) from error
    if not 1 <= threads <= 16 * (os.cpu_count() or 1):
        raise StudyError(f"threads must be from 1 to {16 * (os.cpu_count() or 1)} on this machine, not {threads!r}")
    if not isinstance(problem, Problem):
        problem = Problem.load(problem)
    ledger = Ledger(connect(storage), f"{problem.name}-{problem.fingerprint(threads)}")
    return Study(problem, chosen, protocol, ledger, threads)
