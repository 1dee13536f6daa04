"""`python -m optimizers study problem.py …`: the study from the shell. Mistakes are one line and exit status 2."""

import argparse
import contextlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .api import prepare
from .errors import StudyError
from .protocol import Protocol

if TYPE_CHECKING:
    from .worker import News


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status: 1 where an optimizer has no result, 2 for a mistake."""
    try:
        return _study(_parser().parse_args(arguments))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that may not be written to, a full disk
        print(
            f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130


def _study(options: argparse.Namespace) -> int:
    protocol = Protocol(options.budget, options.seeds, options.fresh_seeds)
    out = Path(options.out)
    if options.processes < 1:
        raise StudyError(f"processes must be 1 or more, not {options.processes}")
    storage = options.storage
    if storage is None:
        out.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{out / 'study.db'}"
    study = prepare(options.problem, options.optimizers, protocol, storage, options.threads)
    from . import report, tables
    from .page import in_short
    from .storage import hidden

    given = (options.problem, options.optimizers, protocol, storage, options.threads)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a cluster ends a job: the run is given back
    try:
        with _helpers(options.processes - 1, given), _shown() as tell:
            study.work(tell)
    except StudyError as error:
        done = sum(study.done.values())
        kept = f"; {done} runs are kept in {hidden(storage)}: the same command goes on from there" if done else ""
        raise StudyError(f"{error}{kept}") from error
    found = report.collect(study)
    path = report.write(found, out)
    print(f"{tables.text(found)}\n\n{in_short(found)}\nThe report: {path}")
    for name, reason in study.failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if study.failed else 0


@contextlib.contextmanager
def _helpers(count: int, given: tuple[Any, ...]) -> Iterator[None]:
    """More workers on this machine, which end with this one."""
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_help, args=given) for _ in range(count)]
    for process in started:
        process.start()
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _help(*given: Any) -> None:
    """What a helper does. It says nothing: what it cannot do, the first worker will try, and tell."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(StudyError, KeyboardInterrupt):
        prepare(*given).work()


@contextlib.contextmanager
def _shown() -> "Iterator[Callable[[News], None]]":
    """Shows how far a study is: a bar with the time left, or a line per run where nobody sees it move."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(
        unit="run", dynamic_ncols=True, bar_format="{l_bar}{bar}| {n:.1f}/{total} runs, {remaining} left{postfix}"
    ) as bar:

        def tell(news: "News") -> None:
            if bar.total is None:
                bar.initial = news.done  # what was there counts for nothing in the time left
            bar.total, bar.n = news.total, news.done + news.share
            bar.set_postfix_str(f"{news.doing} {news.ended}".strip(), refresh=False)
            bar.refresh() if news.ended else bar.update(0)

        yield tell


class _Lines:
    """A line for each run of this worker, with the time left at the pace of all."""

    def __init__(self) -> None:
        self._began, self._first = time.monotonic(), -1

    def __call__(self, news: "News") -> None:
        if self._first < 0:
            self._first = news.done
        if news.ended:
            pace = (time.monotonic() - self._began) / max(1, news.done - self._first)
            left = pace * (news.total - news.done)
            told = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
            print(
                f"{news.done}/{news.total} runs, {told} left: {news.doing}: {news.ended}",
                file=sys.stderr,
                flush=True,
            )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StudyError(f"{message} (`{self.prog} --help` lists what there is)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m optimizers study",
        allow_abbrev=False,
        description="Try optimizers on a problem of your own: every one gets the same number of runs, with "
        "learning rates that are searched for, and the best is run again with fresh seeds. The same command "
        "again, anywhere, joins the study or goes on with it.",
        epilog='A mix is written with +, options as in Python: --optimizers "radamw(nesterov=True)+lookahead"',
    )
    add = parser.add_argument
    add("problem", help="a Python file that defines `problem`, an optimizers.study.Problem")
    add("--optimizers", required=True, metavar="LIST", help="names or mixes, with commas between them")
    add("--budget", type=int, default=7, metavar="N", help="learning rates of each optimizer (default: 7)")
    add("--seeds", type=int, default=3, metavar="N", help="of each learning rate (default: 3)")
    add("--fresh-seeds", type=int, default=5, metavar="N", help="others, for the best one (default: 5)")
    add(
        "--storage",
        metavar="URL",
        help="sqlite:///…, postgresql://…, mysql://… or a journal file; by default study.db in the folder of --out",
    )
    add("--out", default="report", metavar="FOLDER", help="where the report goes (default: report)")
    add("--processes", type=int, default=1, metavar="N", help="workers on this machine (default: 1)")
    add("--threads", type=int, default=1, metavar="N", help="of each run; its numbers depend on it (default: 1)")
    return parser
