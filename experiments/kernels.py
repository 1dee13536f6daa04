"""Kernels that are forked from a server (`experiments.warm`) rather than started, where there is one."""

import os
import sys
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from experiments import warm


class Provisioner(LocalProvisioner):
    """Forks a Python kernel. The process is its own, with the environment and folder that it would have had."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        options = cmd[cmd.index("ipykernel_launcher") + 1 :]
        process: Any = warm.Process("experiments.kernels:begin", options, env=kwargs["env"], cwd=kwargs.get("cwd"))
        self.process, self.pid, self.cwd = process, process.pid, kwargs.get("cwd") or Path.cwd()
        return self.connection_info


class KernelManager(AsyncKernelManager):
    """Jupyter's own, with kernels that are forked where they can be."""

    async def _async_pre_start_kernel(self, **options: Any) -> tuple[list[str], dict[str, Any]]:
        if warm.available() and self.provisioner is None:
            self.provisioner = Provisioner(kernel_spec=self.kernel_spec, parent=self)
        return await super()._async_pre_start_kernel(**options)


def begin(options: list[str]) -> None:
    """What `python -m ipykernel_launcher OPTIONS` does, in a process that has imported it."""
    from ipykernel.kernelapp import IPKernelApp

    # The kernel ends with its parent, the server.
    sys.argv = ["ipykernel_launcher", *options, f"--IPKernelApp.parent_handle={os.getppid()}"]
    IPKernelApp.launch_instance()
