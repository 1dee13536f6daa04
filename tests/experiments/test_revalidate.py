"""Confirmations: a record outlives a change of its code that moves no bit, and no other change."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import code_hash, environment, history, provenance, publish, records, revalidate, run, verdicts
from experiments.__main__ import main
from experiments.errors import RecordError, UserError
from experiments.records import Record

from .conftest import REPOSITORY

Notebook = Callable[..., Path]
BODY = """\
from optimizers import helper

SETTINGS = {{"quick": {{"n": 1}}, "standard": {{"n": 5}}, "paper": {{"n": 6}}}}[scale]
"""
SAME = "METRICS = {'loss': [0.5, 1.0 * 0.25], 'real.lost': 1}\n"
MOVED = "METRICS = {'loss': [0.5, 0.375], 'real.lost': 2}\n"


@pytest.fixture
def git(root: Path) -> Callable[..., str]:
    """A repository around the book; `git(…)` is git in it, with a name to commit under."""

    def call(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(root), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    call("init", "-q")
    (root / ".gitignore").write_text("_build\n")
    return call


@pytest.fixture
def commit(root: Path, git: Callable[..., str]) -> Callable[[], str]:
    """Commit everything but the records; the commit's hash."""

    def call() -> str:
        git("add", "--all", ":!results")
        git("commit", "-q", "--allow-empty", "-m", "a step")
        return git("rev-parse", "HEAD")

    return call


@pytest.fixture
def book(root: Path, notebook: Notebook, commit: Callable[[], str]) -> Path:
    """A book of one commit: `tiny`, published at two scales, measures what `helper` says."""
    notebook("tiny", BODY)
    (root / "optimizers").mkdir()
    helper("METRICS = {'loss': [0.5, 0.25], 'real.lost': 1}\n")
    commit()
    for scale in ("quick", "standard"):
        put("tiny", scale)
    return root


def put(slug: str, scale: str) -> Path:
    record = records.new(slug, scale, {"device": "cpu"})
    record.metric("loss", 1.0)
    return records.write(record, records.published_path(slug, scale))


def helper(text: str) -> None:
    """Today's `helper`, whose numbers a run measures."""
    (records.ROOT / "optimizers/helper.py").write_text(text)
    for cache in (code_hash._parse, code_hash._canonical_file, code_hash._at_scale):
        cache.cache_clear()  # two edits of a test can fall into one tick of the clock


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """What was run, in place of running it: (slug, with whose code, the notebook)."""
    done: list[tuple[str, str, str]] = []

    async def execute(
        self: revalidate._Session, slug: str, code: Path, book: Path, device: str, whose: str
    ) -> Record:
        async with self.slots:
            done.append((slug, whose, (book / "notebooks" / f"{slug}.py").read_text()))
        helper = (code if code != environment.CODE else book) / "optimizers/helper.py"
        found: dict[str, Any] = runpy.run_path(str(helper))
        if reason := found.get("FAILS"):
            raise UserError(reason)
        record = records.new(slug, "quick", {"device": device})
        for key, value in found["METRICS"].items():
            record.metric(key, value)
        record.curve("real/line", [1, 2], [found.get("LINE", [1.0, 2.0])], "x", "y")
        path = book / "_build/results/quick" / f"{slug}.json"
        return records.read(records.write(record, path))

    monkeypatch.setattr(revalidate._Session, "execute", execute)
    return done


def no_device(device: str) -> None:
    raise UserError(f"there is no device {device!r} here")


def confirmations(slug: str = "tiny", scale: str = "quick") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = records.read(records.published_path(slug, scale)).provenance.get(
        "confirmations", []
    )
    return found


def published() -> dict[str, bytes]:
    paths = (records.ROOT / "results").glob("*/*.json")
    return {f"{path.parent.name}/{path.stem}": path.read_bytes() for path in paths}


def test_equal_runs_confirm_every_scale(book: Path, runs: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    before = {scale: records.read(records.published_path("tiny", scale)) for scale in ("quick", "standard")}
    helper(SAME)
    assert not before["quick"].is_of(records.code_today("tiny", "quick"))
    assert main(["revalidate"]) == 0
    short = before["quick"].provenance["commit"][:10]
    assert [whose for _, whose, _ in runs] == [f"the code of commit {short}", "today's code"], (
        "once for both scales"
    )
    for scale, old in before.items():
        new = records.read(records.published_path("tiny", scale))  # which checks the digest
        (one,) = new.provenance.pop("confirmations")
        assert new.content() == old.content(), "nothing else has changed"
        assert one["code_hash"] == records.code_today("tiny", scale) != old.provenance["code_hash"]
        assert one["commit"] == old.provenance["commit"]
        assert one["dirty"] is True
        assert one["device_name"] == old.provenance["device_name"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", one["date"])
    because = f"confirmed: at quick scale, the code of commit {short} and today's give the same, bit for bit"
    assert sorted(capsys.readouterr().out.splitlines()) == [f"quick/tiny: {because}", f"standard/tiny: {because}"]
    assert not (book / "_build/revalidate/code").exists()
    # It holds, as long as the code does.
    assert main(["revalidate"]) == 0
    assert capsys.readouterr().out == "of today's code already: 2 of 2 records\n"
    assert len(runs) == 2


def test_the_digest_covers_a_confirmation(book: Path, runs: list[Any]) -> None:
    helper(SAME)
    assert main(["revalidate", "--scale", "quick"]) == 0
    path = records.published_path("tiny", "quick")
    path.write_text(path.read_text().replace("bit for bit", "more or less"))
    with pytest.raises(RecordError, match="does not match its own digest"):
        records.read(path)


def test_all_that_asks_for_todays_code_takes_a_confirmation(book: Path, runs: list[Any]) -> None:
    (book / "book/claims/tiny.yaml").write_text(
        "paper: key2015\nread: all of it\nclaims:\n  - {id: grows, claim: It grows., where: §1, kind: exact, "
        "experiment: x, control: y, checks: [{metric: loss, above: -1, says: not negative, "
        "origin: 'theory: none'}]}\n"
    )
    helper(SAME)
    local = records.local_path("tiny", "standard")
    local.parent.mkdir(parents=True)
    shutil.copy(records.published_path("tiny", "standard"), local)
    note = "tiny: the published standard record is of other code than today's"
    assert note in verdicts.table("standard")
    assert not run.is_current("tiny", "standard")
    with pytest.raises(UserError, match="not of today's code"):
        publish.publish("standard", ["tiny"])
    revalidate.revalidate("standard")
    assert note not in verdicts.table("standard")
    shutil.copy(records.published_path("tiny", "standard"), local)
    assert run.is_current("tiny", "standard")
    assert publish.publish("standard", ["tiny"]) == ["tiny"]


def test_what_moved_is_named_and_nothing_is_written(
    book: Path, runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = published()
    helper(MOVED + "LINE = [1.5, 2.25]\n")
    assert main(["revalidate"]) == 2
    assert published() == before
    out, err = capsys.readouterr()
    assert "quick/tiny: not confirmed: at quick scale, the code of commit" in out
    moved = "today's differ: metric loss: 0.25 → 0.375; metric real.lost: 1 → 2; "
    assert f"{moved}curve real/line: 2 of 4 values, by up to 0.5\n" in out
    assert err == (
        "error: not confirmed: quick/tiny, standard/tiny (the reasons stand above); to measure again: "
        "`make reproduce SCALE=quick ONLY=tiny`, `make reproduce SCALE=standard ONLY=tiny`\n"
    )


def test_what_races_is_not_compared(book: Path, runs: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = book / "notebooks/tiny.py"

    def declare(races: str) -> None:
        path.write_text(re.sub(r"#   races.*\n|(?=# ---\n\n)", "", path.read_text()))
        path.write_text(path.read_text().replace("# ---\n\n", f"#   races: {races}\n# ---\n\n", 1))

    today = records.code_today("tiny", "quick")
    declare("[real.*, real/line]")
    helper(SAME)
    assert main(["revalidate", "--scale", "standard"]) == 0
    helper(SAME.replace("1}", "7}") + "LINE = [3.0, 4.0]\n")
    assert main(["revalidate", "--scale", "quick"]) == 0
    helper(MOVED)
    assert main(["revalidate", "--scale", "quick"]) == 2
    out = capsys.readouterr().out
    assert "metric loss: 0.25 → 0.375" in out
    assert "real" not in out
    for wrong, message in (
        ("[reel]", "notebooks/tiny.py measures nothing called 'reel', which it says races"),
        ("real", "notebooks/tiny.py: `races` in its header is not a list of names"),
    ):
        declare(wrong)
        assert main(["revalidate", "--scale", "quick"]) == 2
        assert message in capsys.readouterr().out
    helper("METRICS = {'loss': [0.5, 0.25], 'real.lost': 1}\n")
    assert records.code_today("tiny", "quick") == today, "a declaration puts no record out of date"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"a": 0.0}, {"a": -0.0}, ["metric a: 0.0 → -0.0"]),
        ({"a": 1}, {"a": 1.0}, ["metric a: 1 → 1.0"]),
        ({"a": 0.1}, {"a": 0.1 + 2**-56}, [f"metric a: 0.1 → {0.1 + 2**-56}"]),
        ({"a": [1.0, None]}, {"a": [1.0, 2.0]}, ["metric a: None → 2.0"]),
        ({"a": [1, 2, 3]}, {"a": [1, 2]}, ["metric a: 3 values → 2"]),
        ({"a": [1, 2, 3]}, {"a": [1, 3, 5]}, ["metric a: 2 of 3 values, by up to 2"]),
        ({"a": 1, "b": 2}, {"a": 1, "c": 2}, ["metric b is gone", "metric c is new"]),
        ({"a": [0.1, None]}, {"a": [0.1, None]}, []),
    ],
)
def test_bit_for_bit(root: Path, old: dict[str, Any], new: dict[str, Any], said: list[str]) -> None:
    assert 0.1 + 2**-56 != 0.1
    before, after = (
        Record("tiny", "quick", {}, metrics=metrics, provenance={"data": {}}) for metrics in (old, new)
    )
    assert revalidate.differences(before, after, []) == said


def test_other_parameters_data_and_curves_are_differences(root: Path) -> None:
    before, after = (
        Record("tiny", "quick", {"n": n}, provenance={"data": {"digits": str(n)}}) for n in (1, [1, {"m": 2}])
    )
    for record, label in ((before, "loss"), (after, "Loss")):  # words on the axes are no numbers
        record.curve("same", [1, 2], [[1, 2]], "step", label)
    after.curve("new", [1], [[1]], "step", "loss")
    found = revalidate.differences(before, after, [])
    assert found == ["parameter n: 1 values → 3", "data digits: 1 → [1, {'m': 2}]", "curve new is new"]


def test_the_same_code_needs_no_run(book: Path, runs: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The records that were written when the hash of a notebook covered the settings of all scales."""
    for scale in ("quick", "standard"):
        path = records.published_path("tiny", scale)
        record = records.read(path)
        record.provenance["code_hash"] = code_hash.of_source((book / "notebooks/tiny.py").read_text(), book)
        records.save(record, path)
    path = book / "notebooks/tiny.py"
    path.write_text(path.read_text().replace('{"n": 1}', '{"n": 1234}'))
    assert main(["revalidate"]) == 0
    assert len(runs) == 2, "only the quick record is of other code"
    short = provenance.commit(records.ROOT)["commit"][:10]
    assert f"standard/tiny: confirmed: the code of commit {short} is the same\n" in capsys.readouterr().out


def test_new_quick_settings_leave_the_standard_record(book: Path, runs: list[Any]) -> None:
    path = book / "notebooks/tiny.py"
    path.write_text(path.read_text().replace('{"n": 1}', '{"n": 1234}'))
    helper(SAME)
    assert main(["revalidate", "--scale", "standard"]) == 0
    assert ["1234" in notebook for *_, notebook in runs] == [True, True], "both codes run today's notebook"
    runs.clear()
    assert main(["revalidate", "--scale", "quick"]) == 0
    assert ["1234" in notebook for *_, notebook in runs] == [False], "a quick record is of its own settings"


def test_a_confirmed_record_is_compared_from_there(
    book: Path, runs: list[Any], commit: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    helper(SAME)
    second = commit()
    assert main(["revalidate", "--scale", "quick"]) == 0
    helper(SAME + "# a comment\nx = 1\n")  # not committed: nobody can take it up again
    assert main(["revalidate", "--scale", "quick"]) == 0
    assert f"the code of commit {second[:10]} and today's give the same" in capsys.readouterr().out
    helper(SAME + "x = 2\n")
    assert main(["revalidate", "--scale", "quick"]) == 0
    assert f"the code of commit {second[:10]} and today's give the same" in capsys.readouterr().out
    assert [(one["commit"], one["dirty"]) for one in confirmations()] == [
        (second, False),
        (second, True),
        (second, True),
    ]
    assert len({one["code_hash"] for one in confirmations()}) == 3
    assert [whose for _, whose, _ in runs].count(f"the code of commit {second[:10]}") == 1, "kept"


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"commit": "f" * 40}, "the commit of its code, ffffffffff, is not in this clone"),
        ({"commit": None, "dirty": None}, "it was measured with code that nobody committed"),
        ({"dirty": True}, "it was measured with changes to commit {short} that nobody committed"),
        ({"code_hash": "0" * 16}, "the code of commit {short} is not the code that it was measured with"),
    ],
)
def test_a_record_whose_code_is_not_to_be_had(
    book: Path, runs: list[Any], known: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = records.published_path("tiny", "quick")
    record = records.read(path)
    record.provenance |= known
    records.save(record, path)
    before = path.read_bytes()
    helper(SAME)
    assert main(["revalidate"]) == 2
    short = provenance.commit(records.ROOT)["commit"][:10]
    assert f"quick/tiny: not confirmed: {message.format(short=short)}\n" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert confirmations(scale="standard"), "the others go on"


def test_a_shallow_clone_is_one_error(
    book: Path, git: Callable[..., str], commit: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = provenance.commit(records.ROOT)["commit"]
    helper(SAME)
    git("add", "--all")
    commit()
    shallow = book / "shallow"
    git("clone", "-q", "--depth", "1", f"file://{book}", str(shallow))
    records.ROOT = shallow  # the fixture `root` takes it back
    assert main(["revalidate"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        f"error: this clone is shallow and lacks commit {first[:10]}: run `git fetch --unshallow`\n",
    )


def test_without_history_is_one_error(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(book / ".git")
    helper(SAME)
    assert main(["revalidate"]) == 2
    assert capsys.readouterr().err == (
        "error: records are compared with the code of earlier commits, and git finds none in "
        f"{book}: work in a clone of the project\n"
    )


def test_one_that_is_damaged_and_one_that_fails_stop_no_other(
    book: Path, notebook: Notebook, commit: Callable[[], str], runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    notebook("gone", BODY)
    notebook("other", "SETTINGS = 1\n")
    commit()
    damaged = put("other", "quick")
    damaged.write_text(damaged.read_text().replace("1.0", "2.0"))
    put("gone", "quick")
    (book / "notebooks/gone.py").unlink()
    helper("FAILS = 'its quick run failed: ZeroDivisionError'\n")
    assert main(["revalidate", "--only", "tiny"]) == 2
    assert capsys.readouterr().out.count("/tiny: not confirmed: its quick run failed: ZeroDivisionError\n") == 2
    helper(SAME)
    assert main(["revalidate"]) == 2
    out, err = capsys.readouterr()
    assert "other.json does not match its own digest" in out
    assert "quick/gone: not confirmed: notebooks/gone.py, which measured it, is gone\n" in out
    assert "not confirmed: quick/gone, quick/other (the" in err
    assert confirmations()
    assert confirmations(scale="standard")


def test_an_interruption_keeps_what_was_confirmed(
    book: Path,
    notebook: Notebook,
    commit: Callable[[], str],
    runs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    notebook("other", BODY)
    commit()
    path = put("other", "quick")
    before = path.read_bytes()
    helper(SAME)
    execute = revalidate._Session.execute

    async def interrupted(self: revalidate._Session, slug: str, *rest: Any) -> Record:
        while slug == "other":
            if confirmations():
                raise KeyboardInterrupt
            await revalidate.asyncio.sleep(0)
        return await execute(self, slug, *rest)

    monkeypatch.setattr(revalidate._Session, "execute", interrupted)
    assert main(["revalidate", "--scale", "quick"]) == 130
    assert len(confirmations()) == 1
    assert path.read_bytes() == before
    assert not (book / "_build/revalidate/code").exists()
    assert not list((book / "results").rglob("*.tmp"))
    monkeypatch.setattr(revalidate._Session, "execute", execute)
    done = len(runs)
    assert main(["revalidate", "--scale", "quick"]) == 0
    assert {slug for slug, *_ in runs[done:]} == {"other"}


def test_what_changes_meanwhile_is_not_confirmed(
    book: Path, runs: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    helper(SAME)
    before = published()
    differences = revalidate.differences

    def edited(*arguments: Any) -> list[str]:
        helper(MOVED)
        return differences(*arguments)

    monkeypatch.setattr(revalidate, "differences", edited)
    assert main(["revalidate", "--scale", "quick"]) == 2
    assert "its code, or the record itself, has changed meanwhile" in capsys.readouterr().out
    assert published() == before


def test_a_record_of_a_gpu_is_compared_on_one(
    book: Path, runs: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(provenance, "_device_name", str.upper)
    record = records.new("tiny", "paper", {"device": "cuda:1"})
    records.write(record, records.published_path("tiny", "paper"))
    helper(SAME)
    monkeypatch.setattr(run, "check_device", no_device)
    assert main(["revalidate"]) == 2
    assert "paper/tiny: not confirmed: there is no device 'cuda' here\n" in capsys.readouterr().out
    assert [confirmations(scale=scale)[0]["device_name"] for scale in ("quick", "standard")] == ["CPU", "CPU"]
    monkeypatch.setattr(run, "check_device", lambda device: None)
    helper(SAME + "x = 1\n")
    assert main(["revalidate"]) == 0
    names = [confirmations(scale=scale)[-1]["device_name"] for scale in ("quick", "standard", "paper")]
    assert names == ["CPU", "CPU", "CUDA"]


def test_runs_of_another_machine_are_made_again(book: Path, runs: list[Any]) -> None:
    helper(SAME)
    assert main(["revalidate", "--scale", "quick"]) == 0
    for path in (book / "_build").rglob("tiny.json"):
        record = records.read(path)
        record.provenance["packages"]["torch"] = "0.1"
        records.save(record, path)
    assert main(["revalidate", "--scale", "standard"]) == 0
    assert len(runs) == 4


def test_times_are_confirmed_only_for_the_same_code(
    book: Path, runs: list[Any], commit: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    (book / "benchmarks").mkdir()
    (book / "benchmarks/__init__.py").touch()
    source, measure = book / "benchmarks/step_time.py", book / "benchmarks/measure.py"
    source.write_text("from .measure import ROUNDS\n")
    measure.write_text("ROUNDS = 3\n")
    commit()
    path = put("speed", "standard")
    record = records.read(path)
    record.provenance["code_hash"] = code_hash.of_source(source.read_text(), book)  # of that file alone, as once
    records.save(record, path)
    assert not record.is_of(records.code_today("speed", "standard"))
    assert main(["revalidate", "--only", "speed"]) == 0
    assert len(confirmations("speed", "standard")) == 1
    helper(SAME)
    measure.write_text("ROUNDS = 4\n")
    capsys.readouterr()
    assert main(["revalidate", "--only", "speed"]) == 2
    out, err = capsys.readouterr()
    assert out == "standard/speed: not confirmed: its code has changed, and a notebook does not measure it\n"
    assert err.endswith("to measure again: `make benchmark`\n")
    assert runs == []


def test_a_record_without_confirmations_keeps_its_digest(book: Path) -> None:
    for path in (REPOSITORY / "results").glob("*/*.json"):
        stated = json.loads(path.read_bytes())["digest"]
        record = records.read(path)
        assert records.digest(record.content()) == stated
        assert record.is_of(record.provenance["code_hash"])
        assert not record.is_of("0" * 16)
        assert not record.is_of(None)


def test_with_the_code_of_the_commit_itself(
    root: Path, notebook: Notebook, commit: Callable[[], str], command: Callable[..., Any]
) -> None:
    """The whole way, with kernels: in a dirty checkout, whose earlier commit has a package of its own."""
    shutil.copytree(REPOSITORY / "experiments", root / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    old = root / "experiments/records.py"
    old.write_text(old.read_text().replace("MAX_POINTS = 200", "MAX_POINTS = 100"))
    path = notebook(
        "tiny",
        """\
        from experiments import records

        record = records.new("{slug}", scale, {{"device": device}})
        record.metric("loss", [lr * seed for seed in seeds])
        record.metric("points", records.MAX_POINTS)
        records.write(record, out)
        """,
    )
    commit()
    put("tiny", "quick")
    path.write_text(path.read_text().replace("lr * seed", "seed * lr"))
    shutil.rmtree(root / "experiments")  # today's is the repository's
    before = published()
    done = command("revalidate")
    assert done.returncode == 2
    assert "today's differ: metric points: 100 → 200\n" in done.stdout, "and all else is equal"
    assert done.stderr.count("\n") == 1
    assert published() == before
    assert records.read(records.local_path("tiny", "quick")).get("loss") == [0.0, 0.1, 0.2]


def test_an_interrupted_command_ends_its_runs(
    root: Path, notebook: Notebook, commit: Callable[[], str], command: Callable[..., Any]
) -> None:
    os.mkfifo(root / "pipe")
    notebook("tiny", "x = 1\n")
    (root / ".gitignore").write_text("pipe\n")
    commit()
    path = put("tiny", "quick")
    before = path.read_bytes()
    notebook(
        "tiny",
        f"""\
        import signal
        pipe = open({str(root / "pipe")!r}, "w")
        print("here", file=pipe, flush=True)
        signal.pause()
        """,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "revalidate", "--jobs", "2"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with open(root / "pipe") as pipe:  # opens when the notebook does
        assert pipe.readline() == "here\n"
        assert "another revalidate is running" in command("revalidate").stderr
        process.send_signal(signal.SIGINT)
        assert pipe.read() == "", "the end of the pipe: the kernel is gone, too"
    out, err = process.communicate()
    assert (process.returncode, err) == (130, b""), out
    assert path.read_bytes() == before
    assert not (root / "_build/revalidate/code").exists()


def test_the_code_of_a_commit_is_unpacked_whole(book: Path, git: Callable[..., str], tmp_path: Path) -> None:
    """And git knows nothing of it: neither its index nor its list of worktrees changes."""
    helper(MOVED)
    status = git("status", "--porcelain")
    with history.unpacking(book / "_build/code") as folder:
        base = history.base_of(records.read(records.published_path("tiny", "quick")), folder)
        assert (
            base.root / "optimizers/helper.py"
        ).read_text() == "METRICS = {'loss': [0.5, 0.25], 'real.lost': 1}\n"
        assert base.source("tiny") == base.root / "notebooks/tiny.py"
        assert git("status", "--porcelain") == status
        assert git("worktree", "list").count("\n") == 0
    assert not folder.exists()
