"""The command line: `python -m experiments COMMAND`. Mistakes are one line on stderr and exit status 2."""

import argparse
import ast
import sys
from collections.abc import Sequence
from typing import Any

from experiments.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:cut])
    if given[cut + 1 :] and options.command != "reproduce":
        return _complain(f"{options.command} takes nothing after --")
    try:
        _dispatch(options, given[cut + 1 :])
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def _dispatch(options: argparse.Namespace, rest: Sequence[str]) -> None:
    # Imported here, so that a mistyped command or `--help` does not wait for torch.
    match options.command:
        case "run":
            from experiments import run

            parameters = {name: _literal(value) for name, value in options.parameters}
            print(run.run(options.slug, options.scale, parameters))
        case "reproduce":
            from experiments import reproduce

            reproduce.reproduce(options.scale, options.only or None, options.device or None, rest)
        case "verdicts":
            from experiments import run, verdicts

            if options.scale:
                run.check_words(options.scale)
            print(verdicts.table(options.scale or None))
        case "publish":
            from experiments import publish

            for slug in publish.publish(options.scale, options.only or None):
                print(f"published {slug} at scale {options.scale}")
        case "data":
            from experiments import data

            for name in data.DIGESTS:
                print(f"{name}: SHA-256 {data.load(name).digest}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description="Run, compare and publish experiments."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run one notebook")
    run.add_argument("slug")
    run.add_argument(
        *("-p", "--parameter"),
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter of the notebook; the record then lands in _build/trials/, unless NAME is device",
    )
    reproduce = commands.add_parser(
        "reproduce", help="run all that is out of date; after --, options for Snakemake"
    )
    reproduce.add_argument("--device", help="cpu, cuda, …; by default what the notebook says")
    verdicts = commands.add_parser("verdicts", help="print your verdicts beside the published ones")
    verdicts.add_argument("--scale")
    publish = commands.add_parser("publish", help="check your records and copy them to results/")
    commands.add_parser("data", help="fetch and verify every data set")
    for command in (run, reproduce, publish):
        command.add_argument("--scale", default="quick", help="quick (the default), standard or paper")
    for command in (reproduce, publish):
        command.add_argument("--only", metavar="SLUG", help="one notebook instead of all")
    return parser


def _literal(text: str) -> Any:
    """A Python value where the text is one (1e-3, [0, 1], True), else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
