"""Who does which run: Optuna's storage, one of its studies per optimizer, one trial per run.

A worker claims a run by writing a trial that is RUNNING. Trials of a study are numbered in the order in which they
came: of two workers who claim the same run at once, both see both trials, and the one with the lower number has it.
While it works, a claim's ``beat`` is counted up; where it no longer moves, or the process is known to be gone, the
trial FAILs, and the run is anybody's again. Nothing else is kept of who works: to join is to look.
"""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from .errors import StudyError
from .grid import rate
from .protocol import Result, Run, loss

BEAT = 10.0  # seconds between two signs of life
SILENCE = 90.0  # seconds without one, after which a claim is taken from its worker
PATIENCE = 60.0  # seconds in which a storage that does not answer is asked again
DISTRIBUTIONS: Any = {
    "learning_rate": FloatDistribution(1e-30, 1e30, log=True),
    "seed": IntDistribution(0, 2**31 - 1),
}
ENDED = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)
T = TypeVar("T")


def connect(url: str | None) -> BaseStorage:
    """Optuna's storage at ``sqlite:///file``, ``postgresql://…``, ``mysql://…``, or in a journal file.

    Args:
        url: a path without ``://`` is a journal, which many machines can write on a shared disk; None keeps all in
            memory.

    Raises:
        StudyError: it cannot be reached, or a driver is missing.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None:
        return optuna.storages.InMemoryStorage()
    try:
        if "://" not in url:
            from optuna.storages.journal import JournalFileBackend

            return optuna.storages.JournalStorage(JournalFileBackend(url))
        # SQLite lets one write at a time: the others wait.
        options = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else {}
        return patiently(lambda: _relational(url, options), "the storage")
    except ImportError as error:
        driver = {"postgresql": "psycopg2-binary", "mysql": "pymysql"}.get(url.partition(":")[0].partition("+")[0])
        advice = f": pip install {driver}" if driver else ""
        raise StudyError(
            f"there is no driver for the storage {hidden(url)}{advice} ({error.__cause__ or error})"
        ) from error
    except StudyError:
        raise
    except Exception as error:
        first = str(error.__cause__ or error).splitlines()[0]
        raise StudyError(f"the storage {hidden(url)} cannot be used: {first}") from error


def _relational(url: str, options: dict[str, Any]) -> BaseStorage:
    return optuna.storages._CachedStorage(optuna.storages.RDBStorage(url, engine_kwargs=options))


def hidden(url: str) -> str:
    """A URL without its password."""
    scheme, mark, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}{mark}{user.partition(':')[0]}{at}{place}"


def patiently(call: Callable[[], T], what: str) -> T:
    """What a call returns, tried again while a database is locked or away. StudyError after `PATIENCE` seconds."""
    import sqlalchemy.exc

    until, pause = time.monotonic() + PATIENCE, 0.05
    while True:
        try:
            return call()
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DBAPIError) as error:
            if time.monotonic() > until:
                first = str(error.__cause__ or error).splitlines()[0]
                raise StudyError(f"{what} does not answer: {first}") from error
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


class Ledger:
    """The runs of one problem in a storage: what is done, what is being done, and by whom.

    Args:
        storage: of `connect`.
        name: of the problem, its fingerprint included.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self.storage, self.name = storage, name
        self._ids: dict[str, int] = {}
        self._beats: dict[
            int, tuple[int, float]
        ] = {}  # of others' claims: the last beat, and when it was first seen

    def results(self, optimizer: str) -> dict[Run, Result]:
        """What is done, of one optimizer."""
        done: dict[Run, Result] = {}
        for trial in self._trials(optimizer):
            if trial.state is TrialState.COMPLETE:
                done.setdefault(_run(trial), trial.user_attrs["result"])
        return done

    def failures(self, optimizer: str) -> list[str]:
        """What went wrong, of one optimizer, in order."""
        return [t.user_attrs["error"] for t in self._trials(optimizer) if t.user_attrs.get("error")]

    def claimed(self, optimizer: str) -> set[Run]:
        """What is being done, of one optimizer. The claims of workers that are gone are ended first."""
        found = set()
        for trial in self._trials(optimizer):
            if trial.state is TrialState.RUNNING:
                if self._gone(trial):
                    self._end(trial._trial_id, TrialState.FAIL)
                else:
                    found.add(_run(trial))
        return found

    def claim(self, optimizer: str, run: Run) -> "Claim | None":
        """Take a run that is neither done nor claimed; None if somebody else was quicker."""
        template = create_trial(
            state=TrialState.RUNNING,
            params={"learning_rate": rate(run.power), "seed": run.seed},
            distributions=DISTRIBUTIONS,
            user_attrs={"run": list(run), "owner": owner(), "beat": 0},
        )
        study = self._study(optimizer)
        number = patiently(lambda: self.storage.create_new_trial(study, template), "the storage")
        for trial in self._trials(optimizer):  # in the order of their numbers
            if trial._trial_id == number:
                return Claim(self, number)
            if _run(trial) == run and trial.state in (TrialState.COMPLETE, TrialState.RUNNING):
                break
        self._end(number, TrialState.PRUNED)
        return None

    def _study(self, optimizer: str) -> int:
        if optimizer not in self._ids:
            name = f"{self.name}/{optimizer}"

            def find() -> int:
                with contextlib.suppress(optuna.exceptions.DuplicatedStudyError):
                    return self.storage.create_new_study([StudyDirection.MINIMIZE], name)
                return self.storage.get_study_id_from_name(name)

            self._ids[optimizer] = patiently(find, "the storage")
        return self._ids[optimizer]

    def _trials(self, optimizer: str) -> list[FrozenTrial]:
        study = self._study(optimizer)
        found = patiently(lambda: self.storage.get_all_trials(study, deepcopy=False), "the storage")
        return [trial for trial in found if "run" in trial.user_attrs]

    def _gone(self, trial: FrozenTrial) -> bool:
        """Whether the worker of a claim is known to be dead, or has not been heard of for long."""
        host, process = trial.user_attrs["owner"]
        here, _ = owner()
        if host == here and not _exists(process):
            return True
        beat, now = trial.user_attrs["beat"], time.monotonic()
        known, since = self._beats.get(trial._trial_id, (None, now))
        if known != beat:
            since = now
            self._beats[trial._trial_id] = beat, now
        return now - since > SILENCE

    def _end(self, trial: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Whether a trial has ended so, and not before in another way."""
        try:
            return patiently(lambda: self.storage.set_trial_state_values(trial, state, values), "the storage")
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _note(self, trial: int, key: str, value: Any) -> bool:
        try:
            patiently(lambda: self.storage.set_trial_user_attr(trial, key, value), "the storage")
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return True


class Claim:
    """A run that is ours until it is finished, failed or given back."""

    def __init__(self, ledger: Ledger, trial: int) -> None:
        self._ledger, self._trial = ledger, trial

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life while the work is done."""
        stop = threading.Event()

        def beat() -> None:
            count = 0
            while not stop.wait(BEAT):
                count += 1
                with contextlib.suppress(StudyError):
                    self._ledger._note(self._trial, "beat", count)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def finish(self, result: Result) -> bool:
        """Write down what came out; False, and nothing is written, if the run was taken from us meanwhile."""
        if not self._ledger._note(self._trial, "result", dict(result)):
            return False
        return self._ledger._end(self._trial, TrialState.COMPLETE, [loss(result)])

    def fail(self, reason: str) -> None:
        """Write down why there is no result; the run can be claimed again. Nothing is noted for an empty reason."""
        if reason:
            self._ledger._note(self._trial, "error", reason)
        self._ledger._end(self._trial, TrialState.FAIL)


def _run(trial: FrozenTrial) -> Run:
    return Run(*trial.user_attrs["run"])


def owner() -> list[Any]:
    """This process: where its number means something (this boot, this container), and its number."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return [f"{boot} {os.readlink('/proc/self/ns/pid')}", os.getpid()]
    except OSError:  # no such thing here: only the beats tell
        return [uuid.uuid4().hex, os.getpid()]


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(process)


def _is_zombie(process: int) -> bool:
    """Whether a process has ended, and only its parent has not asked for it yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False
