"""The command line: `python -m experiments COMMAND`. Mistakes are one line on stderr and exit status 2."""

import argparse
import ast
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from experiments import console, environment
from experiments.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = _parser()
    try:
        options, unknown = parser.parse_known_args(given[:cut])
        if unknown:
            return _complain(_unknown(options.command, unknown[0], options.known))
        if given[cut + 1 :] and options.command != "reproduce":
            return _complain(f"{options.command} takes nothing after --")
        _dispatch(options, given[cut + 1 :])
        sys.stdout.flush()
    except UserError as error:
        return _complain(str(error))
    except (
        BrokenPipeError
    ):  # the reader, such as `head`, has seen enough; nor is there anyone to flush to at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a folder that may not be written to, a full disk
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
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

            reproduce.reproduce(options.scale, _words(options.only), options.device or None, rest)
        case "verdicts":
            from experiments import run, verdicts

            if options.scale:
                run.check_words(options.scale)
            print(verdicts.table(options.scale or None))
        case "publish":
            from experiments import publish

            for slug in publish.publish(options.scale, _words(options.only)):
                print(f"published {slug} at scale {options.scale}")
        case "revalidate":
            from experiments import revalidate

            revalidate.revalidate(options.scale or None, _words(options.only), options.jobs)
        case "benchmark":
            from experiments import benchmark_command

            chosen = {name: value for name, value in vars(options).items() if name not in ("command", "known")}
            print(benchmark_command.run(**chosen))
        case "gpu":
            from experiments import gpu

            signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends what it has started
            chosen = {name: value for name, value in vars(options).items() if name not in ("command", "known")}
            print(gpu.gpu(**{**chosen, "only": _words(options.only)}))
        case "data":
            from experiments import data

            for name in data.DIGESTS:
                print(f"{name}: SHA-256 {data.load(name).digest}")


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, and only whole names of options: `--num` could mean two."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (`{self.prog} --help` lists what there is)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m experiments", description="Run, compare and publish experiments.")
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
    revalidate = commands.add_parser(
        "revalidate", help="confirm published records for today's code, where it moves no bit at quick scale"
    )
    revalidate.add_argument("--scale", help="quick, standard or paper; by default all")
    revalidate.add_argument("--jobs", type=int, metavar="N", help="runs side by side, by default one per core")
    _benchmark_options(commands.add_parser("benchmark", help="train one network with many optimizers"))
    _gpu_options(commands.add_parser("gpu", help="spend a GPU's minutes on what only a GPU can run"))
    commands.add_parser("data", help="fetch and verify every data set")
    for command in (run, reproduce, publish):
        command.add_argument("--scale", default="quick", help="quick (the default), standard or paper")
    for command in (reproduce, publish, revalidate):
        command.add_argument("--only", action="append", metavar="SLUGS", help="a list with commas, instead of all")
    for command in commands.choices.values():
        command.set_defaults(known=list(command._option_string_actions))
    return parser


def _benchmark_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train the reference's network with each optimizer and seed, and print what came out. Every run writes a "
        "record as it ends; the same command again does only what is missing."
    )
    parser.epilog = (
        'A mix is written with +, options as in Python: --optimizers "adam, '
        'radamw(nesterov=True)+gradient_noise+lr_dropout(0.5)+lookahead"'
    )
    add = parser.add_argument
    add("--dataset", default="cifar10", help="cifar10 (the default), mnist or digits (embedded)")
    add("--optimizers", default="all", metavar="LIST", help="names or mixes, by default the reference's 18")
    add("--seeds", default="0,1,2", metavar="LIST", help="whole numbers, by default 0,1,2")
    add("--num-epochs", type=int, default=30, metavar="N", help="default: 30")
    add("--num-train", type=int, metavar="N", help="training images, by default all")
    add("--num-val", type=int, metavar="N", help="validation images, by default 2048, or all if there are fewer")
    add("--batch-size", type=int, default=128, metavar="N", help="default: 128")
    add("--lr", type=float, help="learning rate of every optimizer, by default its own (the 18 have 0.001)")
    add("--lr-schedule", action="store_true", help="divide it by ten after 5 epochs without a lower training loss")
    add("--model", default="", help="cnn or mlp, by default the cnn for cifar10 and the mlp for the others")
    add("--precision", default="float32", help="float32 (the default), tf32 or bfloat16")
    add("--device", default="cpu", help="cpu (the default), cuda, cuda:1, …")
    add("--threads", type=int, default=1, metavar="N", help="of each run (default: 1)")
    add("--processes", type=int, default=1, metavar="N", help="runs side by side (default: 1)")
    add("--out", metavar="FOLDER", help="where the records go, by default _build/runs")
    add("--fresh", action="store_true", help="run what is there already again")


def _gpu_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "A smoke test of the device, the benchmark on CIFAR-10 and MNIST, and the chapters at scale paper, the "
        "shortest first, as far as the minutes go. The same command again does what is missing."
    )
    add = parser.add_argument
    add("--minutes", type=float, default=11, metavar="N", help="stop in time; by default 11")
    add("--out", metavar="FOLDER", help="where the records and gpu.tar go, by default _build")
    add("--device", default="cuda", help="cuda (the default), cuda:1, …")
    add("--only", action="append", metavar="LIST", help="of smoke, cifar10, mnist, chapters, and names of chapters")
    add("--eager", action="store_true", help="without CUDA graphs")
    add("--dry-run", action="store_true", help="the same at toy size, on the CPU")


def _unknown(command: str, word: str, known: Sequence[str]) -> str:
    if not word.startswith("-"):
        return f"{command} has no use for {word!r} (`python -m experiments {command} --help` lists what there is)"
    near = difflib.get_close_matches(word.split("=")[0], known, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return f"there is no option {word!r}; {advice}"


def _words(given: Sequence[str] | None) -> list[str]:
    """The words of lists with commas, each once."""
    return list(dict.fromkeys(word.strip() for text in given or () for word in text.split(",") if word.strip()))


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
    console.prepare()
    environment.adopt()
    sys.exit(main())
