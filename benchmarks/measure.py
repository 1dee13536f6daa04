"""Time the steps of many candidates in one process, in turns, beside the machine's own bandwidth.

Clocks, caches and neighbors drift. So every candidate is measured in every round, in an order that is shuffled
anew, and what counts are the ratios within a round.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from experiments.errors import UserError

from .candidates import Build, Skip, Step
from .shapes import Shape

WARM_UP = 10  # steps; RAdam changes its form at the sixth, Lookahead looks at the fifth
BLOCK = 0.02  # seconds that one measurement takes at least
ITEM = 4  # bytes of a float32
# What torch does fastest to long vectors: p *= c, p += g and p += a b, all in place, and for comparison q = p.
SCALE, AXPY, TRIAD, COPY = "machine_scale", "machine_axpy", "machine_triad", "machine_copy"
IN_PLACE = (SCALE, AXPY, TRIAD)


class Setting(NamedTuple):
    """Where steps are taken. `threads` counts on a CPU alone."""

    device: str
    threads: int

    @property
    def name(self) -> str:
        return f"t{self.threads}" if self.device == "cpu" else self.device.replace(":", "")


def session(
    builds: Mapping[str, Build],
    shapes: Sequence[Shape],
    setting: Setting,
    *,
    streams: float,
    period: int = 1,
    rounds: int = 21,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, list[float]]:
    """Seconds per step of every candidate, one number per round, the machine's bandwidth among them.

    Args:
        builds: candidate -> its builder; one that raises Skip is left out, with a line that says why.
        shapes: of the parameters, float32, with gradients of normally distributed numbers.
        streams: values that a step moves per coordinate; the machine's own rows move as many bytes.
        period: a measurement covers a multiple of this number of steps.
        rounds: measurements per candidate, at least 1.
        seed: of the values and of the order within the rounds.
        say: takes the lines about what is left out.

    Raises:
        UserError: there is too little memory for all of them.
    """
    if rounds < 1:
        raise UserError(f"rounds must be at least 1, got {rounds}")
    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device)
    gc.collect()  # the candidates of the session before
    share = _must_share(len(builds), shapes, streams, device)
    steps = _bandwidth(sum(map(math.prod, shapes)), streams, device, share)
    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(shape, generator=generator).mul_(0.02).to(device) for shape in shapes]
    grads = [torch.randn(shape, generator=generator).mul_(1e-3).to(device) for shape in shapes]
    for name, build in builds.items():
        params = [(p if share else p.clone()).detach().requires_grad_() for p in start]
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        try:
            steps[name] = build(params)
        except Skip as reason:
            say(f"  without {name}: {reason}")
    return _interleaved(steps, period, rounds, random.Random(seed), device)


def _interleaved(
    steps: Mapping[str, Step], period: int, rounds: int, order: random.Random, device: torch.device
) -> dict[str, list[float]]:
    counts = {}
    for name, step in steps.items():
        _timed(step, WARM_UP, device)
        counts[name] = period * max(1, math.ceil(BLOCK / _timed(step, period, device)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    with _without_garbage_collection():
        for _ in range(rounds):
            order.shuffle(names)
            for name in names:
                if counts[name] > period:  # short steps: bring the candidate's own tensors back into the cache
                    steps[name]()
                seconds[name].append(_timed(steps[name], counts[name], device) / counts[name])
    return seconds


def _timed(step: Step, times: int, device: torch.device) -> float:
    """Seconds from the first call to when the last one's work is done."""
    _synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        step()
    _synchronize(device)
    return time.perf_counter() - began


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bandwidth(values: int, streams: float, device: torch.device, share: bool) -> dict[str, Step]:
    """Loops over plain buffers of such sizes that each moves the bytes that a step has to move.

    With `share` all loops go over one piece of memory, which then has to be much larger than the cache.
    """
    # Not zeros: the system may answer reads of untouched zeros from one page, which never leaves the cache.
    pool = torch.ones(math.ceil(values * streams) + 1 if share else 0, device=device)

    def buffers(count: int, per_value: int) -> list[torch.Tensor]:
        size = max(1, round(values * streams / per_value))
        if share:
            return [pool[i * size : (i + 1) * size] for i in range(count)]
        return [torch.ones(size, device=device) for _ in range(count)]

    (scaled,) = buffers(1, 2)
    p, g = buffers(2, 3)
    q, a, b = buffers(3, 4)
    target, source = buffers(2, 2)
    return {
        SCALE: lambda: scaled.mul_(1.0),
        AXPY: lambda: p.add_(g),
        TRIAD: lambda: q.addcmul_(a, b),
        COPY: lambda: target.copy_(source),
    }


def peak_flops(setting: Setting, size: int, rounds: int = 5) -> float:
    """Floating-point operations per second in a product of two matrices of `size` rows: the machine at its best."""
    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device)
    a, b = torch.ones(2, size, size, device=device)
    out = torch.empty_like(a)

    def product() -> object:
        return torch.mm(a, b, out=out)

    _timed(product, 2, device)
    return 2.0 * size**3 / min(_timed(product, 1, device) for _ in range(rounds))


def _must_share(candidates: int, shapes: Sequence[Shape], streams: float, device: torch.device) -> bool:
    """Whether all candidates share their parameters, and the machine's rows their memory, for want of it.

    Raises UserError if even that does not suffice.
    """
    copy = ITEM * sum(map(math.prod, shapes))
    state = copy * (streams - 3) / 2
    few = 2 + 4  # the start and the gradients, and some copies for temporaries
    free = available(device)
    least = copy * (few + streams) + candidates * state
    if least > free:
        raise UserError(
            f"{candidates} candidates need about {least / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free: name fewer with --libraries, or smaller --shapes"
        )
    return copy * (few + streams * (1 / 2 + 2 / 3 + 3 / 4 + 1)) + candidates * (state + copy) > free / 2


def available(device: torch.device) -> float:
    """Bytes of memory that can be taken; infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
