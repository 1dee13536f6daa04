"""Processes that begin with everything imported: forked from one that has done it, once for many.

What a notebook needs takes seconds to import, longer than many notebooks take to compute. A server imports it once.
It starts no thread and draws no number, so what is forked from it computes what a process of its own would. Such a
process ends with the one that asked for it, however that ends, and all end with the server, which ends with the one
that started it. Where there is no server, as on the node of a cluster, or none any more, everything starts the slow
way, to the same end.

    python -m experiments.warm ARGUMENTS     does what python -m experiments ARGUMENTS does, in a forked process
"""

import contextlib
import ctypes
import gc
import importlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, NoReturn

from experiments.environment import temporary

SERVER = "EXPERIMENTS_SERVER"  # names the server's socket in the environment
KERNEL = (  # what the kernels of the book's chapters need
    *("experiments.kernels", "ipykernel.kernelapp", "ipykernel.ipkernel", "matplotlib.pyplot"),
    *("torch._dynamo", "optimizers", "experiments.figures", "experiments.claims"),
)
PRELOAD = (
    *("papermill", "jupytext", "jupyter_client.asynchronous", "experiments.run", "sklearn.datasets"),
    *("experiments.stacked", *KERNEL),
)
LOST = 255  # the status of a process whose server is gone
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent has ended


@contextlib.contextmanager
def server(environment: Mapping[str, str], preload: Sequence[str] = PRELOAD) -> Iterator[dict[str, str]]:
    """A server with this environment; yields the variables by which it is found, none where there can be none.

    Its processes write where those that ask for them do, and have their environment; but what an import reads from
    the environment, or from the folder it is in, is the server's.
    """
    with contextlib.ExitStack() as stack:
        listener, life, far = stack.enter_context(socket.socket(socket.AF_UNIX)), *socket.socketpair()
        stack.enter_context(life)  # closed however this process ends, and the server sees that
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="warm-", dir=temporary()))
            listener.bind(f"{folder}/socket")
            listener.listen(64)
            os.close(os.pidfd_open(os.getpid()))
        except (OSError, AttributeError):  # no room, a path too long for a socket, not Linux
            far.close()
            yield {}
            return
        with far:
            call = f"warm.serve({listener.fileno()}, {far.fileno()}, {list(preload)})"
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from experiments import warm; {call}"],
                env={
                    **environment,
                    # What a kernel would choose before it imports matplotlib.
                    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                    # NumPy's threads would not outlive a fork; torch gets its number when a record is begun.
                    "OMP_NUM_THREADS": "1",
                },
                cwd=folder,  # no matplotlibrc and the like in it
                pass_fds=(listener.fileno(), far.fileno()),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for those that ask
            )
        listener.close()
        try:
            yield {SERVER: f"{folder}/socket"}
        finally:
            life.close()
            process.wait()


def available() -> bool:
    """Whether the environment names a server."""
    return bool(os.environ.get(SERVER))


def end_with_parent() -> None:
    """Have this process killed as soon as its parent has ended, where the system is one that can: Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A call in a forked process, with what is used of a `subprocess.Popen`; OSError where there is no server.

    `function` is written module:name, gets `arguments`, which are plain values, and returns an exit status.
    """

    stdin = stdout = stderr = None

    def __init__(
        self, function: str, *arguments: Any, env: Mapping[str, str] | None = None, cwd: str | Path | None = None
    ) -> None:
        self.returncode: int | None = None
        self._server = Client(os.environ[SERVER], "AF_UNIX")
        self._server.send((function, arguments, dict(os.environ if env is None else env), str(cwd or Path.cwd())))
        for output in (1, 2):
            send_handle(self._server, output, 0)
        self.pid: int = self._server.recv()

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self.wait() if self.returncode is None and self._server.poll() else self.returncode

    def wait(self) -> int:
        """The exit status, as soon as there is one."""
        if self.returncode is None:
            try:
                self.returncode = self._server.recv()
            except (EOFError, OSError):
                self.returncode = LOST
            self._server.close()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """To the process and those that it started."""
        if self.poll() is None:
            with contextlib.suppress(OSError):
                self._server.send(int(signum))

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass(frozen=True)
class _Child:
    pid: int
    handle: int  # ready to read when it has ended
    owner: Connection  # sends signals, gets the status; when it closes, the child's time is over


def serve(listener: int, life: int, preload: Sequence[str]) -> None:
    """Import, then fork for everyone who connects to `listener`, until `life` is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in preload:
        importlib.import_module(name)
    for name, seed in (("torch", "seed"), ("numpy.random", "seed")):  # as random as in a process of its own
        if name in sys.modules:
            os.register_at_fork(after_in_child=getattr(sys.modules[name], seed))
    gc.collect()
    gc.freeze()  # or every child's collector would copy all of it
    children: dict[int, _Child] = {}  # by both of its descriptors
    door = socket.socket(fileno=listener)
    events = selectors.DefaultSelector()
    for descriptor in (listener, life):
        events.register(descriptor, selectors.EVENT_READ)

    def forget(descriptor: int) -> None:
        events.unregister(descriptor)
        del children[descriptor]

    while True:
        for descriptor in [key.fd for key, _ in events.select()]:
            child = children.get(descriptor)
            if descriptor == life:
                for child in children.values():
                    _kill(child.pid, signal.SIGKILL)
                door.close()
                return
            if descriptor == listener:
                owner = Connection(door.accept()[0].detach())
                with contextlib.suppress(EOFError, OSError):  # one that is gone again
                    child = _fork(owner, [key.fd for key in events.get_map().values()])
                    for descriptor in (child.handle, owner.fileno()):
                        children[descriptor] = child
                        events.register(descriptor, selectors.EVENT_READ)
            elif child is None:  # forgotten just now
                continue
            elif descriptor == child.handle:
                status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
                with contextlib.suppress(OSError):
                    child.owner.send(status)
                forget(child.handle)
                if child.owner.fileno() in children:
                    forget(child.owner.fileno())
                os.close(child.handle)
                child.owner.close()
            else:
                try:
                    _kill(child.pid, child.owner.recv())
                except (EOFError, OSError):
                    forget(descriptor)
                    _kill(child.pid, signal.SIGKILL)


def _kill(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signum)


def _fork(owner: Connection, others: Sequence[int]) -> _Child:
    request = owner.recv()
    outputs = [recv_handle(owner) for _ in range(2)]
    server, pid = os.getpid(), os.fork()
    if not pid:
        end_with_parent()
        if os.getppid() != server:
            os._exit(LOST)
        for number, output in enumerate(outputs, 1):
            os.dup2(output, number)
        for descriptor in (*others, *outputs, owner.fileno()):
            os.close(descriptor)
        _begin(*request)
    os.setpgid(pid, pid)
    for output in outputs:
        os.close(output)
    owner.send(pid)
    return _Child(pid, os.pidfd_open(pid), owner)


def _begin(function: str, arguments: Sequence[Any], environment: Mapping[str, str], folder: str) -> NoReturn:
    status: Any = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        module, _, name = function.partition(":")
        status = getattr(importlib.import_module(module), name)(*arguments)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            output.flush()
    os._exit(status if isinstance(status, int) else bool(status))  # without the server's own last acts


def _main(arguments: Sequence[str]) -> int:
    status = LOST
    with contextlib.suppress(KeyError, OSError, EOFError):  # no server, or none any more
        process = Process("experiments.__main__:main", list(arguments))
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            status = process.wait()
    if status != LOST:
        return status if status >= 0 else 128 - status
    os.environ.pop(SERVER, None)
    from experiments.__main__ import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
