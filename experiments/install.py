"""Make or bring up to date the environment that the Makefile uses: `python experiments/install.py VENV EXTRA`.

A stamp in it, `.complete-EXTRA`, holds the hash of the files that say what to install: it changes when their text
does, not when a clone gives them another date. An environment of ours that never was complete is made anew; one
that was is only installed into, and works as before where that fails. One that is not ours is left alone.
"""

import contextlib
import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
# Of pip's and uv's settings, those for where packages come from. Others put them elsewhere, or other ones.
KEPT = (
    *("PIP_*INDEX*", "UV_*INDEX*", "*_FIND_LINKS", "*_OFFLINE", "*_CACHE*", "*_LINK_MODE", "*_CONFIG_FILE"),
    *(
        "*CERT*",
        "*_TLS*",
        "*_HOST",
        "*PROXY*",
        "*_TIMEOUT",
        "*_RETRIES",
        "*_KEYRING*",
        "UV_HTTP*",
        "UV_CONCURRENT*",
    ),
    *("*_CONSTRAINT", "*_ONLY_BINARY", "*_NO_BINARY", "*_USE_FEATURE", "UV_TORCH_BACKEND"),
)
# uv has names of its own for pip's settings, and commas where pip has spaces.
OF_PIP = (
    ("PIP_INDEX_URL", ("UV_DEFAULT_INDEX", "UV_INDEX_URL"), " "),
    ("PIP_EXTRA_INDEX_URL", ("UV_EXTRA_INDEX_URL", "UV_INDEX"), " "),
    ("PIP_FIND_LINKS", ("UV_FIND_LINKS",), ","),
    ("PIP_NO_INDEX", ("UV_NO_INDEX",), " "),
)


class Failure(Exception):
    """What went wrong, in one line for the user."""


def main(venv: str, extra: str) -> int:
    folder = Path(os.path.abspath(venv))
    stamp, wanted = folder / f".complete-{extra}", digest(ROOT, extra)
    try:
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and works(folder):
            return 0
        if not (any(folder.glob(".complete-*")) and works(folder)):
            create(folder, venv)
        print(f"installing the extra '{extra}' into {venv}; the first time this takes a minute or two", flush=True)
        install(folder, extra)
        stamp.write_text(wanted, encoding="utf-8")
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def digest(root: Path, extra: str) -> str:
    """Hash of what decides the packages of an extra."""
    whole = hashlib.sha256(extra.encode())
    for name in ("pyproject.toml", "constraints.txt"):
        whole.update((root / name).read_bytes())
    return whole.hexdigest()


def works(folder: Path) -> bool:
    """Whether the environment's Python starts: not where that which it was made from is gone."""
    try:
        return not subprocess.run([python(folder), "-c", ""], env=settings(), stderr=subprocess.DEVNULL).returncode
    except OSError:
        return False


def create(folder: Path, name: str) -> None:
    """Make the environment. The sign that it is ours comes first, so that one half made can be made anew."""
    if sys.version_info < OLDEST:
        raise Failure(f"{sys.executable} is older than Python 3.11: name another, make PYTHON=python3.12")
    ours = folder / ".ours"
    if folder.exists() and any(folder.iterdir()) and not ours.exists():
        raise Failure(f"{name} was not made here: remove it, or name another, make VENV=.venv-book")
    folder.mkdir(parents=True, exist_ok=True)
    ours.touch()
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != ours:
            path.unlink()
    print(f"creating {name}", flush=True)
    # This Python itself may be of the environment that was just deleted.
    base = getattr(sys, "_base_executable", sys.executable)
    if subprocess.run([base, "-m", "venv", str(folder)], env=settings()).returncode:
        raise Failure(f"{base} could not make {name} (on Debian and Ubuntu it needs: apt install python3-venv)")


def install(folder: Path, extra: str) -> None:
    uv = shutil.which("uv")
    with plain(folder) as inside:
        if uv:
            command = [uv, "pip", "install", "--quiet", "--python", python(folder)]
        else:
            command = [python(inside), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        command += ["-c", "constraints.txt", "-e", f".[{extra}]"]
        if subprocess.run(command, env=settings(), cwd=ROOT).returncode:
            raise Failure(f"the extra '{extra}' could not be installed (the reason stands above)")


@contextlib.contextmanager
def plain(folder: Path) -> "Iterator[Path]":
    """The folder, under a path without what setuptools takes for the fields of a template: `{x}` and `$x`."""
    if not set("{}$") & set(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place, "venv")
        link.symlink_to(folder)
        yield link


def python(folder: Path) -> str:
    return str(folder / "bin" / "python")


def settings() -> "dict[str, str]":
    """The user's environment without what would lead pip or uv elsewhere; uv is told what pip is told."""

    def stays(name: str) -> bool:
        return not name.startswith(("PIP_", "UV_")) or any(fnmatch.fnmatchcase(name, kept) for kept in KEPT)

    found = {name: value for name, value in os.environ.items() if stays(name)}
    for theirs, names, separator in OF_PIP:
        if found.get(theirs) and not any(found.get(name) for name in names):
            found[names[0]] = separator.join(found[theirs].split())
            # Among several indexes pip takes the best version, uv the first index.
            if theirs == "PIP_EXTRA_INDEX_URL":
                found.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    if not os.access(os.path.expanduser("~"), os.W_OK):  # pip does without by itself
        found.setdefault("UV_NO_CACHE", "1")
    found["PIP_USER"] = "0"  # a file of settings may say otherwise
    return found


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
