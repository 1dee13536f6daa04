"""A worker: takes a run that nobody does, does it, and writes it down, until all are done."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..mixes import Mix
from .errors import StudyError
from .grid import rate
from .memory import Watch
from .problem import Problem
from .protocol import Protocol, Result, Run
from .storage import Claim, Ledger
from .training import OptimizerError, repeatable, run

PAUSE = 0.2  # seconds between two looks at what others are doing
CHANCE = random.SystemRandom()  # which run is taken: workers seldom want the same, and no seed is touched


@dataclass
class News:
    """How far a study is, for whoever shows it."""

    done: int  # runs, of all workers
    total: int
    doing: str  # by this worker
    share: float = 0.0  # of it
    ended: str = ""  # what came of it, at its end


@dataclass
class Study:
    """One problem, some optimizers, one protocol, and the ledger of their runs."""

    problem: Problem
    mixes: Sequence[Mix]
    protocol: Protocol
    ledger: Ledger
    threads: int = 1
    failed: dict[str, str] = field(default_factory=dict)  # optimizers that refuse the problem, and why
    done: dict[str, int] = field(default_factory=dict)  # runs by optimizer, as far as this worker knows

    def work(self, tell: Callable[[News], None] = lambda news: None) -> None:
        """Do all that nobody else does; returns when everything is done.

        Raises:
            StudyError: the problem fails, or the storage does not answer; what is done is kept.
        """
        left = [mix for mix in self.mixes if self.missing(mix)]
        if left:
            with repeatable(0, self.threads):
                self.problem.check()
        watch = Watch()
        while left := [mix for mix in left if mix.text not in self.failed]:
            for mix in CHANCE.sample(left, len(left)):
                missing = self.missing(mix)
                if not missing:
                    left.remove(mix)
                elif taken := self._take(mix, missing):
                    self._do(mix, *taken, watch, tell)
                    break
            else:
                if left:
                    tell(self._news("waiting for other workers"))
                    time.sleep(PAUSE)

    def results(self, mix: Mix) -> Mapping[Run, Result]:
        """The runs of an optimizer that are done."""
        return self.ledger.results(mix.text)

    def missing(self, mix: Mix) -> list[Run]:
        """The runs of an optimizer that can be done now."""
        results = self.results(mix)
        missing = self.protocol.missing(mix, results)
        known = sum(one.seed in self.protocol.tuning or one.seed in self.protocol.fresh for one in results)
        self.done[mix.text] = min(known, self.protocol.runs - len(missing))
        return missing

    def _take(self, mix: Mix, missing: Sequence[Run]) -> tuple[Run, Claim] | None:
        claimed = self.ledger.claimed(mix.text)
        free = [one for one in missing if one not in claimed]
        if not free:
            return None
        one = CHANCE.choice(free)
        claim = self.ledger.claim(mix.text, one)
        return (one, claim) if claim else None

    def _do(self, mix: Mix, one: Run, claim: Claim, watch: Watch, tell: Callable[[News], None]) -> None:
        doing = f"{mix.text}, lr {rate(one.power):g}, seed {one.seed}"
        reason = "stopped"
        try:
            with claim.alive():
                result = run(
                    self.problem,
                    mix,
                    one,
                    threads=self.threads,
                    watch=watch,
                    progress=lambda share: tell(self._news(doing, share)),
                )
            reason = ""
        except OptimizerError as error:
            self.failed[mix.text] = reason = str(error)
            return
        except StudyError as error:
            reason = str(error)
            raise
        finally:
            if reason:
                claim.fail(reason)
        if claim.finish(result):
            self.done[mix.text] = min(self.done[mix.text] + 1, self.protocol.runs)
            ended = "diverged" if result["loss"] is None else f"validation loss {result['loss']:.4g}"
            tell(self._news(doing, ended=f"{ended}, {result['seconds']:.1f} s"))

    def _news(self, doing: str, share: float = 0.0, ended: str = "") -> News:
        total = self.protocol.runs * sum(mix.text not in self.failed for mix in self.mixes)
        done = sum(count for text, count in self.done.items() if text not in self.failed)
        return News(done, total, doing, share, ended)
