"""From C text to a function, by the machine's own C compiler; kept on disk for the next process."""

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Not -ffast-math: it would lose NaN and infinity, and set the whole process to flush small numbers to zero.
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fwrapv", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
# From what makes the fastest code to what any compiler takes.
_OPTIONS = (
    ("-fopenmp", "-march=native", "-mprefer-vector-width=512"),
    ("-fopenmp", "-march=native"),
    ("-fopenmp", "-mcpu=native"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
INSTALL = (
    "install one (Debian and Ubuntu: apt install gcc; Fedora: dnf install gcc; macOS: xcode-select --install; "
    "conda: conda install c-compiler) or name yours in the environment variable CC"
)


class NoCompiler(Exception):
    """There is no C compiler, or it cannot compile; the message says what to do."""


def find() -> tuple[str, ...] | None:
    """The C compiler and its options: what CC says, or else the first on the path."""
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # a quotation without its end
        return None
    for program, *options in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if path := shutil.which(program):
            return path, *options
    return None


def folder() -> Path:
    """Where compiled functions are kept: OPTIMIZERS_CACHE, or a folder of the user's cache; OSError without one."""
    named = os.environ.get("OPTIMIZERS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return _absolute(named[0] or os.path.join(named[1] or "~/.cache", "optimizers"))


@functools.cache
def _absolute(path: str) -> Path:
    """A path that stays the same wherever the process goes, and that the loader does not search for."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:  # a user without a home
        raise OSError(error) from error


@functools.cache
def load(source: str) -> Callable[..., int]:
    """The function ``step`` of a C source.

    Raises:
        NoCompiler: nothing is there to compile it, or it does not compile.
    """
    try:
        return _load(source)
    except OSError as error:  # no room, or no folder at all that may be written to
        raise NoCompiler(f"there is no place for compiled steps ({error}): name one in OPTIMIZERS_CACHE") from None


def _load(source: str) -> Callable[..., int]:
    command, identity = _toolchain()
    name = hashlib.sha256("\0".join((identity, *command, source)).encode()).hexdigest()[:32] + ".so"
    try:
        step = _kept(command, source, folder() / name)
    except (OSError, NoCompiler):  # it cannot be written to, is full, or nothing in it may be run
        step = _made(command, source, None)
    step.argtypes = [ctypes.c_int64, ctypes.c_int] + [ctypes.c_void_p] * 9
    step.restype = ctypes.c_int
    function: Callable[..., int] = step
    return function


def _kept(command: tuple[str, ...], source: str, library: Path) -> Any:
    """The function of a library that is there, or else is put there."""
    if library.exists():
        with contextlib.suppress(OSError):  # damaged, for example by a full disk
            return ctypes.CDLL(str(library)).step
    library.parent.mkdir(parents=True, exist_ok=True)
    return _made(command, source, library)


def _made(command: tuple[str, ...], source: str, library: Path | None) -> Any:
    """The function of a new library, which is kept under this name, or else not kept.

    Once it is loaded, a library's file is not needed: without a place for it nothing is left behind, not even by a
    process that is killed later.
    """
    with tempfile.TemporaryDirectory(prefix="optimizers-", dir=library and library.parent) as temporary:
        made = Path(temporary) / "step.so"
        failure = _build(command, source, made)
        if failure:
            raise NoCompiler(f"{command[0]} does not compile a step: {failure}")
        step = ctypes.CDLL(str(made)).step
        if library:
            with made.open("rb") as file:
                os.fsync(file.fileno())  # or a power cut may leave it cut off, which kills whoever runs it
            os.replace(made, library)
    return step


@functools.cache
def _toolchain() -> tuple[tuple[str, ...], str]:
    """The command that compiles here, and all that its output depends on besides the source."""
    compiler = find()
    if compiler is None:
        named = os.environ.get("CC")
        raise NoCompiler(f"CC={named} is not a program" if named else f"there is no C compiler: {INSTALL}")
    failure = ""
    with tempfile.TemporaryDirectory() as temporary:
        for options in _OPTIONS:
            command = (*compiler, *_FLAGS, *options)
            failed = _build(command, "int probe;", Path(temporary) / "probe.so")
            if not failed:
                # The compiler's version and the machine's instructions, as it names them itself.
                macros = _run([*command, "-x", "c", "-dM", "-E", "-"], "").stdout
                return command, hashlib.sha256(macros.encode()).hexdigest()
            failure = failure or failed
    raise NoCompiler(f"{compiler[0]} does not compile ({failure.splitlines()[0]}): {INSTALL}")


def _links(command: tuple[str, ...]) -> list[str]:
    """With torch's own OpenMP library, so that one pool of threads does the work of both, and with libm."""
    own = (Path(torch.__file__).parent / "lib").glob("libgomp*.so*") if "-fopenmp" in command else ()
    return [*map(str, own), "-lm"]


def _build(command: tuple[str, ...], source: str, library: Path) -> str:
    """Make a shared library; returns what the compiler says when it cannot."""
    done = _run([*command, "-shared", "-o", str(library), "-x", "c", "-", "-x", "none", *_links(command)], source)
    return done.stderr.strip() or "no reason given" if done.returncode else ""


def _run(command: list[str], text: str) -> "subprocess.CompletedProcess[str]":
    # A compiler looks for its linker on the path, and finds none where a process was started without one.
    env = {"PATH": os.defpath, **os.environ}
    return subprocess.run(command, input=text, capture_output=True, encoding="utf-8", errors="replace", env=env)
