"""Run every experiment that is out of date, in parallel, through Snakemake."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from experiments import cluster, environment, records, run, warm
from experiments.errors import UserError

OF_A_RUN = re.compile(r"error: |\d\d:\d\d:\d\d  ")  # how the lines begin that `run` prints on stderr
PATIENCE = 30  # seconds for Snakemake to stop its jobs, on a cluster too


def reproduce(
    scale: str, only: Sequence[str] = (), device: str | None = None, snakemake: Sequence[str] = ()
) -> None:
    """Bring this machine's records at one scale up to date.

    Which records are stale is read from the records themselves, so a lost `.snakemake/` loses nothing, and where
    nothing is stale Snakemake is not even started. `snakemake` holds further arguments for it, such as
    `--executor slurm --jobs 40`. Raises UserError for words that do not exist, for a device that is not there, and
    when an experiment fails.
    """
    run.check_words(scale, *only)
    elsewhere = cluster.executor(snakemake)
    if device and not elsewhere:  # on a cluster it is the node's device that counts: `run` looks there
        run.check_device(device)
    chosen = list(only) or run.slugs()
    for slug in chosen:
        run.defaults(slug)  # a notebook that cannot run should say so before the others take their time
    stale = [slug for slug in chosen if not run.is_current(slug, scale, device)]
    fresh = [slug for slug in chosen if slug not in stale]
    if fresh:
        print(f"up to date at scale {scale}: {', '.join(fresh)}", flush=True)
    if not stale:
        return
    print(f"to run at scale {scale}: {', '.join(stale)}", flush=True)
    command = _command(stale, scale, device, snakemake)
    lock = records.ROOT / "_build" / "work" / "reproduce.lock"
    with run.lock(lock, "another reproduce is running in this folder: let it finish, or stop it") as held:
        for slug in stale:
            _mark(slug, scale).unlink(missing_ok=True)
        # Who gives Snakemake options of his own hears all that it says.
        loud = bool(snakemake or os.environ.get("VERBOSE"))
        with contextlib.ExitStack() as stack:
            # For one notebook a server would import no less than the notebook itself.
            alone = elsewhere or len(stale) == 1
            variables = {} if alone else stack.enter_context(warm.server(environment.child()))
            status, shown, unseen = _run(command, variables, held, loud)
    if not status:  # all done, or all that it was asked: with `-n` it only says what it would do
        return
    failed = [slug for slug in stale if not run.is_current(slug, scale, device)]
    if failed:
        if elsewhere:
            unseen = [f"{slug}: {why}" for slug, why in cluster.reasons("\n".join(shown)).items()]
        if sum(line.startswith("error: ") for line in shown) < len(failed):  # a job did not get to give its reason
            shown += unseen
            print(*unseen, sep="\n", file=sys.stderr)
        reason = "the reason stands above" if shown else f"Snakemake ended with status {status} and said nothing"
        raise UserError(f"not finished at scale {scale}: {', '.join(failed)} ({reason})")


def _command(slugs: Sequence[str], scale: str, device: str | None, extra: Sequence[str]) -> list[str]:
    targets = [str(_mark(slug, scale).relative_to(records.ROOT / "_build")) for slug in slugs]
    # One GPU serves one notebook at a time; a cluster's executor counts jobs instead of cores.
    cores = [] if cluster.executor(extra) else ["--cores", "1" if (device or "").startswith("cuda") else "all"]
    config = ["--config", f"device={device}"] if device else []
    return [
        *(sys.executable, "-m", "snakemake", *targets),
        *("--snakefile", str(environment.CODE / "Snakefile"), "--directory", str(records.ROOT / "_build")),
        # Never by modification times: after a clone they mean nothing. The lock is ours, see above.
        *("--rerun-triggers", "params", "--rerun-incomplete", "--nolock", "--keep-going"),
        *cores,
        *config,
        *cluster.options(extra),
        *extra,
    ]


def _mark(slug: str, scale: str) -> Path:
    """The file that says to Snakemake that a run has come to its end."""
    return records.ROOT / "_build" / "work" / "done" / scale / slug


def _run(
    command: Sequence[str], variables: Mapping[str, str], held: int, loud: bool
) -> tuple[int, list[str], list[str]]:
    """Run Snakemake to its end; returns its status and the lines on its stderr, those shown and those not.

    Shown are those of our runs, and all if `loud`. However this process is told to end, Snakemake and its jobs end
    before it.
    """
    mine = signal.getsignal(signal.SIGINT)
    if mine is signal.SIG_IGN:  # in the background of a script; its children would not hear us either
        signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command,
        env=environment.child(XDG_CONFIG_HOME=environment.CONFIG, **variables),
        pass_fds=[held],  # Snakemake holds the lock too: it is free only when both are gone
        process_group=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    if mine is signal.SIG_IGN:
        signal.signal(signal.SIGINT, mine)
    shown: list[str] = []
    unseen: list[str] = []

    def relay(source: TextIO, target: TextIO) -> None:
        for line in source:
            seen = target is sys.stdout or loud or OF_A_RUN.match(line)
            if target is sys.stderr:
                (shown if seen else unseen).append(line.rstrip("\n"))
            if seen:
                with contextlib.suppress(BrokenPipeError):  # nobody reads on: the jobs do
                    print(line, end="", file=target, flush=True)

    pairs = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    relays = [threading.Thread(target=relay, args=pair, daemon=True) for pair in pairs]
    for thread in relays:
        thread.start()
    try:
        process.wait()
    finally:
        _end(process)
        for thread in relays:  # they wait for the last one who holds the pipe
            thread.join(PATIENCE)
    return process.returncode, shown, unseen


def _end(process: "subprocess.Popen[str]") -> None:
    """Stop what is left of Snakemake and its jobs: as Ctrl-C does, and if that is not enough, for good."""
    with contextlib.suppress(ProcessLookupError):
        try:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
