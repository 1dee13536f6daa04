"""What a command does first: whatever its output can hold, it prints; told to end, it ends in order."""

import io
import signal
import sys
from typing import NoReturn


def prepare() -> None:
    """Print a question mark for what the output's encoding lacks, and end on SIGTERM and SIGHUP as on Ctrl-C.

    By default these two end a process on the spot, and what it started would go on without it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # under nohup, SIGHUP is ignored, and stays so
            signal.signal(number, _end)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)
