"""Whether a problem leaks: the memory of this process, looked at while it runs."""

import os
from collections.abc import Callable

from .errors import ProblemError

MIB = 2**20
ALLOWED = 0.5  # of the memory that is free when a worker begins
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def resident() -> int:
    """Bytes of memory that this process has; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * PAGE
    except (OSError, ValueError):
        return 0


def free() -> int:
    """Bytes of memory that the machine has left; a terabyte where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 2**40


class Watch:
    """Stops a worker before its machine runs out of memory: what is done is kept, and the reason is told.

    Counted is what the process grows by after the first look, when model, optimizer and a batch are there.

    Args:
        allowed: bytes that it may grow by, at most, by default half of what is free now.
        size: measures the process.
    """

    def __init__(self, allowed: float | None = None, size: Callable[[], int] = resident) -> None:
        self._allowed = ALLOWED * free() if allowed is None else allowed
        self._size = size
        self._first: int | None = None
        self._begin = self._looks = 0

    def look(self, step: int) -> None:
        """Once in a while. ProblemError where the process has grown too far."""
        now = self._size()
        if self._first is None:
            self._first = now
        if self._looks == 0:
            self._begin = now
        self._looks += 1
        if now - self._first > self._allowed:
            raise ProblemError(
                f"the problem leaks memory: the process has grown by {(now - self._first) / MIB:,.0f} MiB, up to "
                f"step {step:,}; does it keep losses, with all that they were computed from, or batches"
            )

    def grown(self) -> int:
        """Bytes that the process has grown by since this was last asked, less the way to the first look."""
        grown = self._size() - self._begin if self._looks else 0
        self._looks = 0
        return grown
