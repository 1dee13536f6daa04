"""The package's command line: `python -m optimizers study problem.py …`."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    if arguments[:1] in (["-h"], ["--help"]):
        print("usage: python -m optimizers study PROBLEM --optimizers LIST …\n\nTry optimizers on your problem.")
        return 0
    if arguments[:1] != ["study"]:
        said = f"there is no command {arguments[0]!r}" if arguments else "a command is missing"
        print(f"error: {said}; there is: study (`python -m optimizers study --help`)", file=sys.stderr)
        return 2
    from .study.command import main as study

    return study(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
