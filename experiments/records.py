"""A record: what was run, what was measured, and on what. Written by notebooks, read by the book, never edited.

A notebook makes one with `new`, fills it with `metric`, `curve` and `uses`, and ends with `write`.
"""

import datetime
import difflib
import functools
import hashlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments import code_hash, provenance
from experiments.errors import RecordError

if TYPE_CHECKING:  # reading a record needs no torch, whose import takes two seconds
    from experiments.data import Dataset

FORMAT = 1
SCALES = code_hash.SCALES
MAX_POINTS = 200
ROOT = Path(os.environ.get("BOOK_ROOT") or Path(__file__).resolve().parents[1])


class Command(NamedTuple):
    """What writes a record that no notebook does."""

    source: str  # a file, from the root
    line: str  # for the shell


# It needs the machine for itself, or other libraries.
COMMANDS = {
    **{
        f"speed{device}{apart}": Command(
            "benchmarks/step_time.py",
            f"python -m benchmarks.step_time --{apart[1:]}" if apart else "make benchmark",
        )
        for device in ("", "_cuda")
        for apart in ("", "_compile", "_modern")
    },
    "equality": Command("benchmarks/equality.py", "make equality"),
}


@dataclass
class Record:
    """One experiment's result. `metrics` is nested by the dots of the keys; `curves` maps a name to its points."""

    slug: str
    scale: str
    parameters: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=time.perf_counter, repr=False, compare=False)

    def metric(self, key: str, value: Any) -> None:
        """Store a number, or a list of numbers (one per seed), under a dotted key. Non-finite becomes null."""
        *groups, name = key.split(".")
        place = self.metrics
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ValueError(f"metric {key!r}: {group!r} is already a number, it cannot also be a group")
        if not all([*groups, name]) or name in place:
            raise ValueError(f"metric {key!r}: " + ("is already there" if name in place else "has an empty part"))
        place[name] = _plain(value, f"metric {key!r}")

    def curve(
        self, name: str, x: Sequence[float], seeds: Sequence[Sequence[float]], xlabel: str, ylabel: str
    ) -> None:
        """Store one line per seed over a shared x. A seed that stopped early may be shorter: null fills it up.

        Raises ValueError for more than 200 points (see `training.downsample`), or a seed longer than x.
        """
        xs = _plain(x, f"curve {name!r}")
        lines = [_plain(seed, f"curve {name!r}") for seed in seeds]
        if not xs or len(xs) > MAX_POINTS:
            raise ValueError(f"curve {name!r} has {len(xs)} points, not 1 to {MAX_POINTS}: use training.downsample")
        if not lines or any(not isinstance(line, list) or len(line) > len(xs) for line in lines):
            raise ValueError(f"curve {name!r}: every seed needs a list of at most {len(xs)} values, one per x")
        if name in self.curves:
            raise ValueError(f"curve {name!r} is already there")
        filled = [line + [None] * (len(xs) - len(line)) for line in lines]
        self.curves[name] = {"x": xs, "seeds": filled, "xlabel": xlabel, "ylabel": ylabel}

    def uses(self, ds: "Dataset") -> None:
        """Name a data set, with its digest, among what the numbers rest on."""
        self.provenance["data"][ds.name] = ds.digest

    def get(self, key: str) -> Any:
        """The metric at a dotted key; RecordError naming the nearest keys if it is not one of them."""
        place: Any = self.metrics
        for part in key.split("."):
            if not isinstance(place, dict) or part not in place:
                near = difflib.get_close_matches(key, self.keys(), n=5, cutoff=0)
                raise RecordError(f"{self.name} has no metric {key!r}; the nearest are {', '.join(near) or 'none'}")
            place = place[part]
        if isinstance(place, dict):
            raise RecordError(f"{self.name}: {key!r} is a group of metrics ({', '.join(place)}), not a metric")
        return place

    def keys(self) -> list[str]:
        """The dotted keys of all metrics."""

        def walk(place: dict[str, Any], prefix: str) -> list[str]:
            return [
                key
                for name, value in place.items()
                for key in (walk(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name])
            ]

        return walk(self.metrics, "")

    @property
    def name(self) -> str:
        return f"the record of {self.slug} at scale {self.scale}"

    def is_of(self, code: str | None) -> bool:
        """Whether it was measured with the code of that hash, or confirmed for it (see `revalidate`)."""
        confirmations = self.provenance.get("confirmations", [])
        return code is not None and code in [known["code_hash"] for known in (self.provenance, *confirmations)]

    def content(self) -> dict[str, Any]:
        """Everything that the digest covers, as plain JSON values."""
        return {
            "format": FORMAT,
            "slug": self.slug,
            "scale": self.scale,
            "parameters": self.parameters,
            "metrics": self.metrics,
            "curves": self.curves,
            "provenance": self.provenance,
        }


def new(
    slug: str, scale: str, parameters: Mapping[str, Any], *, threads: int = 1, precision: str = "float32"
) -> Record:
    """Start a record: collect the provenance, start the clock, and fix torch's thread count.

    The order in which a sum is taken, and so its last digits, depends on the number of threads: with a fixed number
    the record is the same on a machine with other cores. `parameters["device"]` names the device, if there is one.
    """
    if scale not in SCALES:
        raise RecordError(f"there is no scale {scale!r}; there are {', '.join(SCALES)}")
    import torch

    torch.set_num_threads(threads)
    plain = {key: _plain(value, f"parameter {key!r}") for key, value in parameters.items()}
    origin = {
        **provenance.commit(ROOT),
        "code_hash": code_today(slug, scale),
        "data": {},
        **provenance.machine(str(plain.get("device", "cpu"))),
        "threads": threads,
        "precision": precision,
    }
    return Record(slug, scale, plain, provenance=origin)


def write(record: Record, out: str | Path) -> Path:
    """Stop the clock and write the record whole or not at all; returns `out` as a path."""
    now = datetime.datetime.now(datetime.UTC)
    record.provenance["seconds"] = round(time.perf_counter() - record._began, 2)
    record.provenance["finished"] = now.isoformat(timespec="seconds")
    return save(record, out)


def save(record: Record, out: str | Path) -> Path:
    """Write the record as it is, whole or not at all, with its digest; returns `out` as a path."""
    content, path = record.content(), Path(out)
    write_text(path, _readable({**content, "digest": digest(content)}))
    return path


def read(path: str | Path) -> Record:
    """The record in a file; RecordError if it is damaged, of another format, or was edited by hand."""
    try:
        return parse(Path(path).read_bytes(), path)
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error}): restore it, or run the experiment again") from error


@functools.lru_cache(maxsize=64)
def _read_once(path: Path, version: tuple[int, ...]) -> Record:
    return read(path)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes whenever a file is written anew."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def parse(data: bytes, path: str | Path) -> Record:
    """The record in the bytes of the file `path`; RecordError as `read`."""
    mend = "records are written by notebooks, never by hand: restore it, or run the experiment again"
    try:
        content = json.loads(data)
        stated = content.pop("digest")
        version = content.pop("format")
        record = Record(**content)
        intact = digest(record.content()) == stated
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is not a whole record ({error}): {mend}") from error
    if version != FORMAT:
        raise RecordError(f"{path} has format {version}, this code reads format {FORMAT}: run the experiment again")
    if not intact:
        raise RecordError(f"{path} does not match its own digest, so it was changed after it was written: {mend}")
    return record


def published(slug: str) -> Record | None:
    """The record that the book prints: the one of the largest scale in results/. None if there is none.

    It is read once, though every number in a chapter asks for it, and shared: not to be changed.
    """
    paths = [published_path(slug, scale) for scale in reversed(SCALES)]
    return next((_read_once(path, _stamp(path)) for path in paths if path.exists()), None)


def local(slug: str, scale: str) -> Record | None:
    """The record of this machine's own run at that scale, or None."""
    path = local_path(slug, scale)
    return read(path) if path.exists() else None


def source(slug: str) -> Path:
    """The file that writes the record: a notebook, or one of `COMMANDS`."""
    return ROOT / (COMMANDS[slug].source if slug in COMMANDS else f"notebooks/{slug}.py")


def code_today(slug: str, scale: str) -> str | None:
    """The hash of what writes the record at a scale, and of all that this uses, as it is now; None without it."""
    path = source(slug)
    return code_hash.of_notebook(path, ROOT, scale) if path.exists() else None


def published_path(slug: str, scale: str) -> Path:
    """Where a committed record is, or would be."""
    return ROOT / "results" / scale / f"{slug}.json"


def local_path(slug: str, scale: str) -> Path:
    """Where this machine's own record is, or would be: below `_build`, or the environment's BOOK_BUILD."""
    return Path(os.environ.get("BOOK_BUILD") or ROOT / "_build") / "results" / scale / f"{slug}.json"


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON: keys sorted, no spaces."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: under a temporary name in the same folder, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _readable(content: Mapping[str, Any]) -> str:
    """Indented JSON with every list of plain values on one line, so that a difference can be read."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    # No value of ours holds both a bracket and a line break: JSON writes the latter as \n.
    return re.sub(r"\[\n[^\[\]{}]*?\n\s*\]", lambda m: re.sub(r"\n\s*", " ", m[0]), text) + "\n"


def _plain(value: Any, what: str) -> Any:
    """Numbers, text and lists of them, from Python, NumPy or torch, as JSON has them; non-finite floats as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()  # exact: a float32 is also a float64
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): _plain(item, what) for key, item in value.items()}
        case list() | tuple() | range():
            return [_plain(item, what) for item in value]
    raise ValueError(f"{what} is a {type(value).__name__}; a record holds numbers, text, and lists of them")
