"""What only a fresh process shows: how long the first step takes, and how much memory a step needs.

`measure` starts this module as a command; the command prints one line of JSON.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from experiments.errors import UserError

from . import candidates
from .rules import RULES
from .shapes import SHAPES, shrunk

# Wherever compiled code is kept: ours, that of torch.compile, and Triton's.
CACHES = ("OPTIMIZERS_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
MEMORY = "STEP_TIME_MEMORY"
# glibc gives every block above 64 KiB back at once: memory that is held is memory that is in use.
RETURNED = {MEMORY: "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STEPS = 10


def measure(
    rule: str, shapes: str, candidate: str, threads: int, device: str, quick: bool, memory: bool = True
) -> dict[str, float]:
    """First step with nothing compiled yet, again in a second process, and where `memory` a step's in a third.

    Returns:
        ``cold`` and ``warm`` in seconds, construction and first step together; ``temporary`` and ``lasting``, as
        multiples of the gradients' bytes: what a step needs while it runs, and what the optimizer keeps besides the
        tensors of its state; ``extra``, their sum. The last three only where the system tells (Linux, CUDA).

    Raises:
        candidates.Skip: the candidate cannot run here.
        UserError: the process failed.
    """
    with tempfile.TemporaryDirectory(prefix="step-time-") as cache:
        given = [rule, shapes, candidate, str(threads), device, str(int(quick))]
        environment = dict.fromkeys(CACHES, cache)
        cold, warm = _run(given, environment), _run(given, environment)
        held = _run(given, environment | RETURNED) if memory else {}
    result = {"cold": cold["first"], "warm": warm["first"]}
    if held:
        result |= held | {"extra": held["temporary"] + held["lasting"]}
    return result


def _run(given: list[str], environment: dict[str, str]) -> dict[str, float]:
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.process", *given],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"the process for the first step of {' '.join(given[:3])} failed: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "skip" in answer:
        raise candidates.Skip(answer["skip"])
    return answer


def main(rule: str, shapes: str, candidate: str, threads: str, device: str, quick: str) -> dict[str, Any]:
    """Take the steps in this process."""
    torch.set_num_threads(int(threads))
    sizes = SHAPES[shapes]()
    params = [torch.zeros(shape, device=device) for shape in (shrunk(sizes) if int(quick) else sizes)]
    for p in params:
        p.requires_grad_().grad = torch.full_like(p, 1e-3)
    torch.zeros(64, device=device).add_(1)  # wakes the device and its thread pool
    build = candidates.of(RULES[rule], compiled=True)[candidate]
    try:
        if MEMORY in os.environ:
            return _memory_of(build, params, device)
        began = time.perf_counter()
        build(params)()
    except candidates.Skip as reason:
        return {"skip": str(reason)}
    if device != "cpu":
        torch.cuda.synchronize(device)
    return {"first": time.perf_counter() - began}


def _memory_of(build: candidates.Build, params: list[torch.Tensor], device: str) -> dict[str, float]:
    """`temporary` and `lasting` of a step, as in `measure`; nothing where the system does not tell."""
    small = torch.zeros(8, device=device).requires_grad_()
    small.grad = torch.ones_like(small)
    build([small])()  # whatever is imported at the first step is no optimizer's memory
    before = _memory(device)
    step = build(params)
    step()
    held = _memory(device, reset=True)
    for _ in range(STEPS):
        step()
    peak = _memory(device, peak=True)
    if before is None or held is None or peak is None:
        return {}
    gradients = sum(p.numel() * p.element_size() for p in params)
    lasting = held - before - _state_bytes(step)
    return {"temporary": (peak - held) / gradients, "lasting": lasting / gradients}


def _state_bytes(step: candidates.Step) -> int:
    """The bytes of all tensors in the state of the optimizer whose `step` this is; 0 if it is no method of one."""
    optimizer = getattr(step, "__self__", None)
    state = getattr(optimizer, "state", {})
    tensors = [t for values in state.values() for t in values.values() if isinstance(t, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def _memory(device: str, reset: bool = False, peak: bool = False) -> float | None:
    """Bytes that this process holds, or the most it has held since the last reset; None where nobody tells."""
    if device != "cpu":
        torch.cuda.synchronize(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return float((torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)(device))
    if not sys.platform.startswith("linux"):
        return None
    try:
        if not peak:
            ctypes.CDLL(None).malloc_trim(0)
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except (OSError, AttributeError):  # no permission, or a C library without malloc_trim
        return None
    values = {line.split(":")[0]: line.split() for line in lines}
    return 1024.0 * int(values["VmHWM" if peak else "VmRSS"][1])


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
