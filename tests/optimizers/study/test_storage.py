"""Workers that share a storage: every run once, none lost, whatever dies; and the same ranking as alone."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from optimizers import mixes, study
from optimizers.study import Problem, Protocol, StudyError, storage
from optimizers.study.protocol import Run
from optimizers.study.storage import Ledger, connect
from optimizers.study.worker import Study

RESULT: dict[str, Any] = {"loss": 0.5, "metric": None}
ADAMW = "adamw"


@pytest.fixture(params=["memory", "sqlite", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    urls = {"memory": None, "sqlite": f"sqlite:///{tmp_path}/study.db", "journal": str(tmp_path / "study.log")}
    return urls[request.param]


def ledgers(url: str | None, count: int = 2) -> list[Ledger]:
    shared = connect(url)
    return [Ledger(shared if url is None else connect(url), "p-12345678") for _ in range(count)]


def states(ledger: Ledger) -> Counter[TrialState]:
    return Counter(trial.state for trial in ledger._trials(ADAMW))


def test_a_run_is_claimed_once_and_its_result_is_everybodys(url: str | None) -> None:
    one, other = ledgers(url)
    run = Run(-5, 1000)
    claim = one.claim(ADAMW, run)
    assert claim is not None
    assert other.claimed(ADAMW) == {run}
    assert other.claim(ADAMW, run) is None, "somebody else has it"
    assert other.claim(ADAMW, Run(-4, 1000)) is not None
    assert claim.finish(RESULT)
    assert other.results(ADAMW) == one.results(ADAMW) == {run: RESULT}
    assert other.claim(ADAMW, run) is None, "it is done"
    assert other.results("sgd") == {}


def test_what_fails_or_is_given_back_can_be_claimed_again(url: str | None) -> None:
    one, other = ledgers(url)
    run = Run(-5, 1000)
    for reason in ("it broke", ""):
        claim = one.claim(ADAMW, run)
        assert claim is not None
        claim.fail(reason)
        assert other.claimed(ADAMW) == set()
    assert other.failures(ADAMW) == ["it broke"]
    assert other.claim(ADAMW, run) is not None


def test_a_dead_workers_run_is_taken_up_and_a_late_result_is_not_counted(
    url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = ledgers(url)
    run = Run(-5, 1000)
    claim = one.claim(ADAMW, run)
    assert claim is not None
    monkeypatch.setattr(storage, "_exists", lambda process: False)
    assert other.claimed(ADAMW) == set()
    again = other.claim(ADAMW, run)
    assert again is not None
    assert not claim.finish(RESULT), "it was taken from us"
    assert again.finish(RESULT)
    assert states(one) == {TrialState.FAIL: 1, TrialState.COMPLETE: 1}


def test_a_worker_elsewhere_is_dead_when_its_beat_stands_still(
    url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "owner", lambda: ["another machine", 1])
    one, other = ledgers(url)
    run = Run(-5, 1000)
    claim = one.claim(ADAMW, run)
    assert claim is not None
    monkeypatch.setattr(storage, "owner", lambda: ["here", os.getpid()])
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert other.claimed(ADAMW) == {run}
    clock[0] = storage.SILENCE - 1
    assert one._note(claim._trial, "beat", 1)
    assert other.claimed(ADAMW) == {run}
    clock[0] += storage.SILENCE - 1
    assert other.claimed(ADAMW) == {run}, "it has beaten meanwhile"
    clock[0] += 2
    assert other.claimed(ADAMW) == set()


def test_a_claim_beats_while_it_works(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BEAT", 0.001)
    one, other = ledgers(url)
    claim = one.claim(ADAMW, Run(-5, 1000))
    assert claim is not None
    with claim.alive():
        until = time.monotonic() + 60
        while not other._trials(ADAMW)[0].user_attrs["beat"] and time.monotonic() < until:
            pass
    assert other._trials(ADAMW)[0].user_attrs["beat"] > 0
    assert claim.finish(RESULT)


def test_many_claims_at_once_have_one_winner_each(tmp_path: Path) -> None:
    many = ledgers(f"sqlite:///{tmp_path}/study.db", 4)
    won: list[Run] = []

    def grab(ledger: Ledger) -> None:
        for seed in range(5):
            if ledger.claim(ADAMW, Run(-5, seed)):
                won.append(Run(-5, seed))

    threads = [threading.Thread(target=grab, args=(ledger,)) for ledger in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [Run(-5, seed) for seed in range(5)]


def make(path: Path, url: str | None) -> Study:
    given = Problem.load(path)
    chosen = mixes.parse("adamw, sgd")
    return Study(given, chosen, Protocol(4, 2, 2), Ledger(connect(url), given.name))


def test_the_numbers_do_not_depend_on_who_ran_them(line: Path, tmp_path: Path) -> None:
    alone = make(line, None)
    alone.work()
    shared = [make(line, f"sqlite:///{tmp_path}/study.db") for _ in range(2)]
    shared[0].ledger.claim("adamw", Run(-5, 1000))  # this process, which lives: nobody takes it
    (claimed,) = shared[1].ledger._trials("adamw")
    shared[0].ledger._end(claimed._trial_id, TrialState.FAIL)  # but now it is free again
    for one in shared:
        one.work()
    for mix in alone.mixes:
        expected, found = alone.results(mix), shared[1].results(mix)
        assert {run: r["curve"] for run, r in found.items()} == {run: r["curve"] for run, r in expected.items()}
        assert {run: r["loss"] for run, r in found.items()} == {run: r["loss"] for run, r in expected.items()}
        assert len(found) == alone.protocol.runs


def test_ten_thousand_trials_do_not_delay_the_next_run(line: Path, tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    crowd = make(line, str(journal))
    template = optuna.trial.create_trial(
        value=0.5, user_attrs={"run": [-5, 0], "result": {**RESULT, "curve": [0.5] * 99}}
    )
    ids = [crowd.ledger.storage.create_new_study([optuna.study.StudyDirection.MINIMIZE]) for _ in range(400)]
    logs = [
        {
            "op_code": 4,
            "worker_id": "x",
            "study_id": number,
            "datetime_start": None,
            "state": TrialState.COMPLETE.value,
            "value": 0.5,
            "user_attrs": template.user_attrs,
        }
        for number in ids
        for _ in range(25)
    ]
    crowd.ledger.storage._backend.append_logs(logs)  # type: ignore[attr-defined]
    joined = make(line, str(journal))
    began = time.process_time()
    assert joined.ledger.claim("adamw", joined.missing(joined.mixes[0])[0])
    assert time.process_time() - began < 2
    assert sum(len(joined.ledger.storage.get_all_trials(number, deepcopy=False)) for number in ids) == 10_000


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oracle://x:secret@y/z", r"oracle://x@y/z"),
        ("sqlite:////nowhere/at/all/study.db", "unable to open database file"),
        ("nothing://x", "the storage nothing://x cannot be used: Can't load plugin"),
        ("/nowhere/at/all/study.log", "No such file|cannot be used"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line_without_a_password(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.0)
    with pytest.raises(StudyError, match=message) as caught:
        Ledger(connect(url), "p").results("adamw")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.fixture
def postgres() -> Iterator[str]:
    """A PostgreSQL of the test's own, on a socket in a folder that its user may enter, as pytest's are not."""
    pytest.importorskip("psycopg2", reason="PostgreSQL's driver is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed")
    user = [] if os.getuid() else ["runuser", "-u", "postgres", "--"]  # it refuses to run as root
    home = Path(tempfile.mkdtemp(prefix="pg"))
    if user:
        shutil.chown(home, "postgres")
    binary = Path(initdb).parent
    subprocess.run([*user, initdb, "-D", home / "data", "-A", "trust", "-U", "me"], check=True, capture_output=True)
    options = f"-k {home} -c listen_addresses='' -c fsync=off"
    control = [*user, binary / "pg_ctl", "-D", home / "data", "-w"]
    subprocess.run([*control, "-o", options, "-l", home / "log", "start"], check=True, stdout=subprocess.DEVNULL)
    try:
        yield f"postgresql://me@/postgres?host={home}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(home)


def test_three_workers_on_one_postgresql_do_no_run_twice(line: Path, postgres: str) -> None:
    text = f"import sys; from optimizers import study; study.run({str(line)!r}, 'adamw, sgd', budget=3, seeds=2, "
    text += f"fresh_seeds=2, storage={postgres!r})"
    workers = [subprocess.Popen([sys.executable, "-c", text]) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    given = Problem.load(line)
    ledger = Ledger(connect(postgres), f"{given.name}-{given.fingerprint(1)}")
    for name in ("adamw", "sgd"):
        done = [tuple(t.user_attrs["run"]) for t in ledger._trials(name) if t.state is TrialState.COMPLETE]
        assert len(done) == len(set(done)) == 8
    alone = study.run(line, "adamw, sgd", budget=3, seeds=2, fresh_seeds=2)
    shared = study.run(line, "adamw, sgd", budget=3, seeds=2, fresh_seeds=2, storage=postgres)
    assert [(row["name"], row["losses"]) for row in shared["optimizers"]] == [
        (row["name"], row["losses"]) for row in alone["optimizers"]
    ]
