"""Run every experiment that is out of date, in parallel, through Snakemake."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

from experiments import records, run, warm
from experiments.errors import UserError


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
    if device and not _elsewhere(snakemake):  # on a cluster it is the node's device that counts: `run` looks there
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
    lock = records.ROOT / "_build" / "work" / "reproduce.lock"
    # Not for other machines, which cannot reach it, nor for GPUs: a process that has used one must not fork.
    forks = not _elsewhere(snakemake) and (device or "cpu") == "cpu"
    with (
        run.lock(lock, "another reproduce is running in this folder: let it finish, or stop it") as held,
        warm.server(os.environ) if forks else contextlib.nullcontext(dict(os.environ)) as environment,
        # Snakemake holds the lock too: it is free only when both are gone.
        subprocess.Popen(_command(stale, scale, device, snakemake), env=environment, pass_fds=[held]) as process,
    ):
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it was interrupted too, and stops its jobs first
            raise
    if not status:  # all done, or all that it was asked: with `-n` it only says what it would do
        return
    failed = [slug for slug in stale if not run.is_current(slug, scale, device)]
    if failed:
        raise UserError(f"not finished at scale {scale}: {', '.join(failed)} (the reason stands above)")


def _command(slugs: Sequence[str], scale: str, device: str | None, extra: Sequence[str]) -> list[str]:
    targets = [str(records.local_path(slug, scale).relative_to(records.ROOT / "_build")) for slug in slugs]
    # One GPU serves one notebook at a time; a cluster's executor counts jobs instead of cores.
    cores = [] if _elsewhere(extra) else ["--cores", "1" if (device or "").startswith("cuda") else "all"]
    config = ["--config", f"device={device}"] if device else []
    return [
        *(sys.executable, "-m", "snakemake", *targets),
        *("--snakefile", str(run.CODE / "Snakefile"), "--directory", str(records.ROOT / "_build")),
        # Never by modification times: after a clone they mean nothing. The lock is ours, see above.
        *("--rerun-triggers", "params", "--rerun-incomplete", "--nolock", "--keep-going"),
        *([] if os.environ.get("VERBOSE") else ["--quiet", "all"]),
        *("--forcerun", *targets),
        *cores,
        *config,
        *extra,
    ]


def _elsewhere(snakemake: Sequence[str]) -> bool:
    """Whether Snakemake is told to run the jobs with an executor, which means: on other machines."""
    return any(word.partition("=")[0] in ("--executor", "-e") for word in snakemake)
