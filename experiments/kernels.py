"""Kernels for notebooks and chapters: of this very Python, in the project's environment."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Dict, default

from experiments import environment, warm


class Kernel(AsyncKernelManager):
    """A kernel that no kernelspec, profile or variable of its user changes.

    Its sockets are files in a folder of its own rather than ports: kernels that start side by side would race for
    the same port. Only where no folder takes sockets, they are ports after all.
    """

    settings = Dict(help="variables of this kernel besides").tag(config=True)
    _folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())

    @property
    def folder(self) -> str:
        """An empty folder, but for the sockets, that lasts as long as the kernel."""
        return os.path.dirname(self.connection_file)

    @default("connection_file")
    def _connection_file_default(self) -> str:
        self._folder = tempfile.TemporaryDirectory(
            prefix="kernel-", dir=environment.temporary(), ignore_cleanup_errors=True
        )
        return os.path.join(self._folder.name, "kernel.json")

    @default("transport")
    def _transport_default(self) -> str:
        return "ipc" if environment.sockets_in(environment.temporary()) else "tcp"

    async def _async_start_kernel(self, **options: Any) -> None:
        await super()._async_start_kernel(**{"env": environment.child(**self.settings), **options})

    start_kernel = _async_start_kernel

    async def _async_pre_start_kernel(self, **options: Any) -> tuple[list[str], dict[str, Any]]:
        if warm.available() and self.provisioner is None:
            self.provisioner = Forked(kernel_spec=self.kernel_spec, parent=self)
        return await super()._async_pre_start_kernel(**options)

    async def _async_interrupt_kernel(self) -> None:
        # Not to shut it down: one that has just answered would still report the interrupt as an error of its own.
        if not self.shutting_down:
            await super()._async_interrupt_kernel()

    interrupt_kernel = _async_interrupt_kernel

    def cleanup_connection_file(self) -> None:
        super().cleanup_connection_file()
        if self._folder is not None:
            self._folder.cleanup()


class Forked(LocalProvisioner):
    """Forks a kernel from the server of `experiments.warm`, rather than start one that imports everything."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        options = cmd[cmd.index("ipykernel_launcher") + 1 :]
        where: Any = {"env": kwargs["env"], "cwd": kwargs.get("cwd")}
        try:
            process: Any = warm.Process("experiments.kernels:begin", options, **where)
        except (OSError, EOFError):  # no server any more
            return await super().launch_kernel(cmd, **kwargs)
        self.process, self.pid, self.cwd = process, process.pid, kwargs.get("cwd") or Path.cwd()
        return self.connection_info


def begin(options: list[str]) -> None:
    """What `python -m ipykernel_launcher OPTIONS` does, in a process that has imported it."""
    from ipykernel.kernelapp import IPKernelApp

    # The kernel ends with its parent, the server.
    sys.argv = ["ipykernel_launcher", *options, f"--IPKernelApp.parent_handle={os.getppid()}"]
    IPKernelApp.launch_instance()
