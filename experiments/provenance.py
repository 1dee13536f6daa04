"""Where a number comes from: the commit of the code, and the machine that computed it."""

import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from experiments import environment

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn")
CODE = ("benchmarks", "experiments", "notebooks", "optimizers")  # what the numbers come from


def commit(root: Path) -> dict[str, Any]:
    """The commit that is checked out, None outside a repository, and whether the code differs from it."""
    head, changes = git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain", "--", *CODE)
    return {"commit": head, "dirty": None if head is None else bool(changes)}


def git(root: Path, *arguments: str, **given: str) -> str | None:
    """What git prints of the repository of this root; None if it fails, or where there is none of either.

    Whoever owns it, and not one around an archive that was unpacked in it. `given` are variables for git.
    """
    root = root.resolve()
    command = ["git", "-C", str(root), "-c", f"safe.directory={root}", *arguments]
    env = environment.child(GIT_CEILING_DIRECTORIES=str(root.parent), GIT_OPTIONAL_LOCKS="0", **given)
    try:
        done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def machine(device: str) -> dict[str, Any]:
    """What the digits of a number depend on, besides the code."""
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "device_name": _device_name(device),
    }


def _version(package: str) -> str | None:
    """Its version; None where it is not installed, as on a machine with a GPU that has torch and little else."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        cpuinfo = ""
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()
