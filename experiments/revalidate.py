"""Confirm published records for code that has changed since, where the change moves no bit.

A record names the commit that it was measured with. Where the code of that commit is today's but for what does not
count (see `code_hash`), nothing has to run. Elsewhere the notebook runs on this machine with both codes, at quick
scale, whatever the scale of the record: where all metrics and curves are equal bit for bit, the record gains a
confirmation, which its digest covers; where one moved, it has to be measured again.

A confirmed record may be compared from the commit that it was last confirmed for, as equality is transitive: each
step between the two codes was seen to move nothing. What a quick run does not reach is not confirmed by it, such as
a branch that only larger networks take: that is the price of minutes instead of hours.

A notebook says in its header (`races: [real.lost, real/*]`) which metrics and curves depend on an order that no
seed decides; they are not compared. Both runs are kept below `_build/`, so that a stopped command loses nothing.
"""

import asyncio
import contextlib
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jupytext

from experiments import code_hash, environment, history, provenance, records, run
from experiments.errors import RecordError, UserError
from experiments.records import Record

SHOWN = 3  # of what moved


def revalidate(scale: str | None = None, only: Sequence[str] = (), jobs: int | None = None) -> None:
    """Confirm what can be confirmed of the published records at a scale, or at all, and say what became of each.

    `jobs` runs go side by side, by default one per core. Raises UserError at once where there is no history to
    compare with, and at the end if a record of other code than today's is not confirmed, for whatever reason.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs must be 1 or more, not {jobs}")
    paths = _published(scale, only)
    if provenance.commit(records.ROOT)["commit"] is None:
        raise UserError(
            f"records are compared with the code of earlier commits, and git finds none in {records.ROOT}: "
            "work in a clone of the project"
        )
    with run.lock(_folder() / "lock", "another revalidate is running in this folder: let it finish, or stop it"):
        failed = asyncio.run(_Session(jobs or os.cpu_count() or 1).confirm_all(paths))
    if failed:
        names = ", ".join(map(_name, failed))
        raise UserError(f"not confirmed: {names} (the reasons stand above); to measure again: {_again(failed)}")


def _published(scale: str | None, only: Sequence[str]) -> list[Path]:
    """The files of the published records that are asked for."""
    run.check_words(scale or records.SCALES[0], *(slug for slug in only if slug not in records.COMMANDS))
    folders = [records.ROOT / "results" / name for name in ([scale] if scale else records.SCALES)]
    found = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    if missing := sorted(set(only) - {path.stem for path in found}):
        raise UserError(f"no record of {missing[0]} is published{f' at scale {scale}' if scale else ''}")
    return [path for path in found if not only or path.stem in only]


def _again(paths: Sequence[Path]) -> str:
    """The commands that measure some records again."""
    commands: dict[str, list[str]] = {}
    for path in paths:
        own = records.COMMANDS.get(path.stem)
        command = own.line if own else f"make reproduce SCALE={path.parent.name} ONLY="
        commands.setdefault(command, []).extend([] if own else [path.stem])
    return ", ".join(f"`{command}{','.join(slugs)}`" for command, slugs in commands.items())


class _Session:
    """One call of the command, which runs every notebook once with each code."""

    def __init__(self, jobs: int) -> None:
        self.slots = asyncio.Semaphore(jobs)
        self.runs: dict[Path, asyncio.Task[Record]] = {}

    async def confirm_all(self, paths: Sequence[Path]) -> list[Path]:
        """The records that are of other code than today's and stay so."""
        with history.unpacking(_folder() / "code"):
            words = await asyncio.gather(*(self.confirm(path) for path in paths))
        if "current" in words:
            print(f"of today's code already: {words.count('current')} of {len(paths)} records", flush=True)
        return [path for path, word in zip(paths, words, strict=True) if word == "not confirmed"]

    async def confirm(self, path: Path) -> str:
        """What became of a record, in a word: current, confirmed, or not confirmed. The reason is printed."""
        try:
            record = records.read(path)
            today = records.code_today(record.slug, record.scale)
            if record.is_of(today):
                return "current"
            reason = await self.compare(record)
            if records.code_today(record.slug, record.scale) != today or records.read(path) != record:
                raise UserError("its code, or the record itself, has changed meanwhile")
            _add(record, path, {"code_hash": today, **reason})
            word, because = "confirmed", reason["because"]
        except history.ShallowError:  # it concerns all records
            raise
        except (UserError, OSError) as error:
            word, because = "not confirmed", str(error)
        print(f"{_name(path)}: {word}: {because}", flush=True)
        return word

    async def compare(self, record: Record) -> dict[str, str]:
        """Why the record holds for today's code, and on what machine that was seen; UserError if it does not."""
        slug, scale, source = record.slug, record.scale, records.source(record.slug)
        if not source.exists():
            raise UserError(f"{source.relative_to(records.ROOT)}, which measured it, is gone")
        base = history.base_of(record, _folder() / "code")
        if code_hash.of_notebook(base.source(slug), base.root, scale) == records.code_today(slug, scale):
            return {"device_name": provenance.machine("cpu")["device_name"], "because": f"{base} is the same"}
        if slug in records.COMMANDS:
            raise UserError("its code has changed, and a notebook does not measure it")
        # Where nothing that counts at this scale differs in the notebook, both codes run today's: its settings at
        # quick scale may be others than they were.
        same = code_hash.same_notebook(base.source(slug), source, scale)
        device = "cuda" if str(record.parameters.get("device")).startswith("cuda") else "cpu"
        if device != "cpu":
            run.check_device(device)
        before, after = await asyncio.gather(
            self.before(slug, base, source if same else base.source(slug), device),
            self.after(slug, device),
            return_exceptions=True,  # so that neither is left alone when the other fails
        )
        if isinstance(before, BaseException):
            raise before
        if isinstance(after, BaseException):
            raise after
        if moved := differences(before, after, _races(slug)):
            more = f"; and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
            raise UserError(f"at quick scale, {base} and today's differ: {'; '.join(moved[:SHOWN])}{more}")
        return {
            "device_name": after.provenance["device_name"],
            "because": f"at quick scale, {base} and today's give the same, bit for bit",
        }

    async def before(self, slug: str, base: history.Base, notebook: Path, device: str) -> Record:
        """What a notebook measures with earlier code, in a book of its own for every commit and notebook."""
        text = notebook.read_text(encoding="utf-8")
        book = _folder() / "runs" / f"{base.commit[:12]}-{code_hash.of_source(text, _folder())}"
        records.write_text(book / "notebooks" / f"{slug}.py", text)
        return await self.measure(slug, base.root, book, device, str(base))

    async def after(self, slug: str, device: str) -> Record:
        """What it measures with today's code: this machine's own record, as `make reproduce` writes it."""
        fresh = not run.is_current(slug, "quick", device)
        return await self.measure(slug, environment.CODE, records.ROOT, device, "today's code", fresh=fresh)

    async def measure(
        self, slug: str, code: Path, book: Path, device: str, whose: str, *, fresh: bool = False
    ) -> Record:
        """The quick record of a book, with the code in a folder: the one there, or (always if `fresh`) of a run."""
        path = book / "_build" / "results" / "quick" / f"{slug}.json"
        while task := self.runs.get(path):
            record = await task
            if record.provenance["device"] == device:
                return record
            if self.runs[path] is task:  # its place is free for a run on the other device
                break
        with contextlib.suppress(RecordError):  # none, or damaged: as good as none
            record = records.read(path)
            here = provenance.machine(device)
            if not fresh and all(record.provenance.get(key) == value for key, value in here.items()):
                return record
        self.runs[path] = asyncio.create_task(self.execute(slug, code, book, device, whose))
        return await self.runs[path]

    async def execute(self, slug: str, code: Path, book: Path, device: str, whose: str) -> Record:
        """Run a notebook at quick scale with the code in a folder, in a process that ends with this one."""
        async with self.slots:
            print(f"running {slug} at quick scale with {whose}", flush=True)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "experiments", "run", slug, "--scale", "quick", "-p", "device", device),
                cwd=code,
                env=environment.child(PYTHONPATH=str(code), BOOK_ROOT=str(book)),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            try:
                out, err = await process.communicate()
            finally:
                if process.returncode is None:
                    process.terminate()
                    await process.wait()
        if process.returncode:
            said = err.decode(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
            raise UserError(f"its quick run with {whose} failed: {said[-1].removeprefix('error: ')}")
        return records.read(out.decode().splitlines()[-1])


def differences(before: Record, after: Record, races: Sequence[str]) -> list[str]:
    """What two runs of a notebook do not have in common, but for the names that match a pattern in `races`."""
    old, new = _values(before), _values(after)
    measured = [(kind, name) for kind, name in old | new if kind in ("metric", "curve")]
    racing = {pattern: {key for key in measured if fnmatchcase(key[1], pattern)} for pattern in races}
    for pattern, found in racing.items():
        if not found:
            raise UserError(f"notebooks/{after.slug}.py measures nothing called {pattern!r}, which it says races")
    moved = []
    for key in [key for key in old | new if key not in set().union(*racing.values())]:
        name = " ".join(key)
        if key not in new:
            moved.append(f"{name} is gone")
        elif key not in old:
            moved.append(f"{name} is new")
        elif json.dumps(old[key]) != json.dumps(new[key]):
            moved.append(f"{name}: {_change(_flat(old[key]), _flat(new[key]))}")
    return moved


def _values(record: Record) -> dict[tuple[str, str], Any]:
    """All that has to be equal, by kind and name. What the axes of a curve are called is no number."""
    return {
        **{("parameter", name): value for name, value in record.parameters.items()},
        **{("data", name): value for name, value in record.provenance["data"].items()},
        **{("metric", key): record.get(key) for key in record.keys()},  # noqa: SIM118
        **{("curve", name): [curve["x"], curve["seeds"]] for name, curve in record.curves.items()},
    }


def _change(old: Sequence[Any], new: Sequence[Any]) -> str:
    if len(old) != len(new):
        return f"{len(old)} values → {len(new)}"
    apart = [(a, b) for a, b in zip(old, new, strict=True) if json.dumps(a) != json.dumps(b)]
    if len(apart) <= 1:
        return "".join(f"{a} → {b}" for a, b in apart)
    gaps = [abs(a - b) for a, b in apart if isinstance(a, int | float) and isinstance(b, int | float)]
    return f"{len(apart)} of {len(old)} values" + (f", by up to {max(gaps):.3g}" if gaps else "")


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return [item for part in value for item in _flat(part)] if isinstance(value, list) else [value]


def _races(slug: str) -> list[str]:
    races: Any = jupytext.read(records.source(slug)).metadata.get("races", [])
    if not isinstance(races, list) or not all(isinstance(pattern, str) for pattern in races):
        raise UserError(f"notebooks/{slug}.py: `races` in its header is not a list of names")
    return races


def _add(record: Record, path: Path, confirmation: dict[str, Any]) -> None:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    known = record.provenance.setdefault("confirmations", [])
    known.append({**provenance.commit(records.ROOT), **confirmation, "date": today})
    records.save(record, path)


def _folder() -> Path:
    return records.ROOT / "_build" / "revalidate"


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"
