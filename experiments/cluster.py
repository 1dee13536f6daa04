"""Slurm: what Snakemake must be told on this cluster, and why a job failed."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from experiments.errors import UserError

PLUGIN = "snakemake_executor_plugin_slurm"
SLOWEST_POLL = 180  # seconds between two looks of the plugin at its jobs, once it has waited for a while
FAILED = re.compile(
    r"^Error in rule experiment:\n +message: (?P<message>.*?)\n +jobid: \d+\n"
    r" +output: \S*/(?P<slug>\w+)\n(?: +log: (?P<log>[^\n]*) \(check log)?",
    re.MULTILINE | re.DOTALL,
)
# What follows the message: the command that it wrapped, and where one might look.
TAIL = re.compile(r"\s*(sbatch call:|For further error details).*", re.DOTALL)


def executor(snakemake: Sequence[str]) -> str | None:
    """The executor that Snakemake's options name: where there is one, the jobs run on other machines."""
    for place, word in enumerate(snakemake):
        name, equals, value = word.partition("=")
        if name in ("--executor", "-e"):
            return value if equals else "".join(snakemake[place + 1 : place + 2])
    return None


def options(snakemake: Sequence[str]) -> list[str]:
    """What Snakemake needs beside `snakemake`, its options from the user, where these name an executor.

    Raises UserError where the plugin for Slurm is missing, or would never learn that a job has ended.
    """
    if not executor(snakemake):
        return []
    # Another machine's files are seen here up to a minute late, on NFS.
    needed = ["--latency-wait", "60"]
    if executor(snakemake) != "slurm":
        return needed
    if find_spec(PLUGIN) is None:
        raise UserError("Snakemake's plugin for Slurm is not installed: pip install -e '.[cluster]'")
    if not any(word.partition("=")[0] == "--slurm-status-command" for word in snakemake):
        needed += ["--slurm-status-command", status_command()]
    return needed


def status_command() -> str:
    """The command of Slurm that tells what became of a job: `sacct` where accounts are kept, else `squeue`.

    Raises UserError where neither does: without accounts an ended job is known for MinJobAge seconds only.
    """
    if not shutil.which("sbatch"):
        raise UserError("there is no Slurm here (no `sbatch`): run this on a machine from which jobs are submitted")
    status, said = _ask("sacct", "--allocations", "--noheader", "--name", "none")
    if status == 0:
        return "sacct"
    _, config = _ask("scontrol", "show", "config")
    age = re.search(r"^MinJobAge\s*=\s*(\d+)", config, re.MULTILINE)
    if age and int(age[1]) <= SLOWEST_POLL:
        raise UserError(
            f"Slurm keeps no accounts here ({said}) and forgets a job {age[1]} seconds after its end, before it is "
            f"asked: it needs slurmdbd, or a MinJobAge of more than {SLOWEST_POLL} in slurm.conf (default: 300)"
        )
    print(f"asking squeue what becomes of the jobs, for sacct cannot tell ({said})", flush=True)
    return "squeue"


def reasons(said: str) -> dict[str, str]:
    """Why jobs failed, in one line by slug, from what Snakemake said and from the jobs' own logs."""
    found = {}
    for failure in FAILED.finditer(said):
        log = Path(failure["log"]) if failure["log"] else None
        text = log.read_text(encoding="utf-8", errors="replace") if log and log.exists() else ""
        # Of `run`, which names the notebook's error; of Slurm, which says that it ended the job, and for what.
        own = dict.fromkeys(line.strip().removeprefix("error: ") for line in text.splitlines() if "error: " in line)
        reason = "; ".join(list(own)[-3:]) or " ".join(TAIL.sub("", failure["message"]).split())
        found[failure["slug"]] = f"{reason} (log: {log})" if text else reason
    return found


def _ask(*command: str) -> tuple[int, str]:
    """The exit status of one of Slurm's commands, and what it said; of one that does not answer, why."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()
