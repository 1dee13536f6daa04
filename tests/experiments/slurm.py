"""A Slurm of one's own: munge, a controller and a few nodes, all on this machine, for the length of a test."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODES = 6
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])  # where the daemons are, but not every user's path leads
CONFIGURATION = """\
ClusterName=book
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
KillWait=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=60
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=1000 Gres=gpu:1\n"


def missing() -> list[str]:
    """The programs that a Slurm needs and this machine lacks."""
    return [
        program for program in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(program, path=PATH)
    ]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Path]:
    """A cluster that takes jobs; gives its slurm.conf, to be named in SLURM_CONF. All of it ends with the block."""
    host, ports = socket.gethostname().partition(".")[0], _free_ports(NODES + 1)
    names = [f"n{number}" for number in range(1, NODES + 1)]
    for name in ("state", *names):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    user = pwd.getpwuid(os.getuid()).pw_name
    lines = [NODE.format(name=name, host=host, port=port) for name, port in zip(names, ports[1:], strict=True)]
    conf = folder / "slurm.conf"
    conf.write_text("".join(lines) + CONFIGURATION.format(folder=folder, host=host, ports=ports, user=user))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    munge = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    commands = [
        ["munged", "--foreground", "--force", *(f"--{option}={folder / name}" for option, name in munge.items())],
        ["slurmctld", "-D", "-f", str(conf)],
        *(["slurmd", "-D", "-N", name, "-f", str(conf)] for name in names),
    ]
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(conf)}
    with contextlib.ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"{number}-{command[0]}.log").open("w"))
            stack.enter_context(_daemon(command, log.fileno(), environment))
            if not number:
                wait_until((folder / "munge.sock").exists)

        def ask(*command: str) -> list[str]:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            return done.stdout.split()

        wait_until(lambda: ask("sinfo", "-h", "-N", "-o", "%T") == ["idle"] * NODES)
        try:
            yield conf
        finally:  # the daemons that watch over jobs outlive the others
            ask("scancel", "--user", user)
            wait_until(lambda: not ask("squeue", "-h"))


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Return as soon as something is so; an error if it does not come about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not in {seconds} seconds"
        time.sleep(0.1)


@contextlib.contextmanager
def _daemon(command: list[str], log: int, environment: dict[str, str]) -> Iterator[None]:
    with subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            yield
        finally:
            process.terminate()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
