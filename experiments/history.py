"""The code that a published record was measured with, or last confirmed for, from git's history."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments import code_hash, provenance, records
from experiments.errors import UserError
from experiments.records import Record


class ShallowError(UserError):
    """The clone lacks history, which mends all records at once."""


@dataclass(frozen=True)
class Base:
    """The code of a commit, unpacked in a folder."""

    commit: str
    root: Path

    def __str__(self) -> str:
        return f"the code of commit {self.commit[:10]}"

    def source(self, slug: str) -> Path:
        """What writes the record, as it was."""
        return self.root / records.source(slug).relative_to(records.ROOT)


def base_of(record: Record, folder: Path) -> Base:
    """The newest code that the record is known to hold for and that git has, unpacked below `folder`.

    Raises ShallowError or UserError where there is none, or where it is not what the record says.
    """
    original = record.provenance
    known = [*reversed(original.get("confirmations", [])), original]
    clean = [one for one in known if one["commit"] and not one["dirty"]]
    if not clean:
        what = f"changes to commit {original['commit'][:10]} that" if original["commit"] else "code that"
        raise UserError(f"it was measured with {what} nobody committed")
    there = (
        one
        for one in clean
        if provenance.git(records.ROOT, "cat-file", "-e", f"{one['commit']}^{{commit}}") is not None
    )
    found = next(there, None)
    if found is None:
        commit = clean[0]["commit"][:10]
        if provenance.git(records.ROOT, "rev-parse", "--is-shallow-repository") == "true":
            raise ShallowError(f"this clone is shallow and lacks commit {commit}: run `git fetch --unshallow`")
        raise UserError(f"the commit of its code, {commit}, is not in this clone")
    base = Base(found["commit"], _unpack(found["commit"], folder))
    source = base.source(record.slug)
    if not source.exists() or found["code_hash"] not in (
        code_hash.of_notebook(source, base.root, record.scale),
        code_hash.of_source(source.read_text(encoding="utf-8"), base.root),  # how the first records have it
    ):
        raise UserError(f"{base} is not the code that it was measured with")
    return base


@contextlib.contextmanager
def unpacking(folder: Path) -> Iterator[Path]:
    """A folder for the code of earlier commits, which goes at the end; what a killed call left there goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(commit: str, folder: Path) -> Path:
    """The files of a commit. They are no worktree, which would have to be unregistered with git in the end."""
    root = folder / commit
    if not root.exists():
        index = {"GIT_INDEX_FILE": str(folder / f"{commit}.index")}
        for arguments in (["read-tree", commit], ["checkout-index", "--all", f"--prefix={root}/"]):
            if provenance.git(records.ROOT, *arguments, **index) is None:
                raise UserError(f"git cannot unpack commit {commit[:10]}: see what `git fsck` says")
    return root
