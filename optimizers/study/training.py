"""One run of a study: train, measure, and say what it cost. The same run is the same numbers, whoever does it."""

import contextlib
import math
import os
import platform
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..mixes import Mix
from .errors import ProblemError, StudyError
from .grid import rate
from .making import make
from .memory import Watch
from .problem import Problem
from .protocol import Run

# cuBLAS repeats its results only with a fixed workspace, and reads this once, at its first use.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

POINTS = 100  # of a training-loss curve: block means, which also smooth it
LOOK_STEPS, LOOK_SECONDS = 50, 1.0  # between two looks at the loss: looking waits for a GPU


class OptimizerError(StudyError):
    """An optimizer fails on a problem on which others may not."""


def run(
    problem: Problem,
    mix: Mix,
    one: Run,
    *,
    threads: int = 1,
    watch: Watch | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Train once.

    Returns:
        As plain JSON values: ``loss`` and ``metric`` on the validation batches after the last step, both None where
        the run diverged, that is, had a loss that is not finite; ``curve``, block means of the training loss, and
        ``validation`` (steps ``x`` from 1, values ``y``); ``seconds`` of training, without validation; ``ms``,
        the median time of a step; ``params``, ``state`` and ``peak``: bytes of the parameters, of the optimizer's
        state, and of a GPU's memory at most (None on a CPU); ``grown``: bytes that the process has grown by;
        ``machine``.

    Raises:
        ProblemError: the problem fails.
        OptimizerError: the optimizer refuses the model or its gradients.
    """
    where = f"with {mix.text}, learning rate {rate(one.power):g}, seed {one.seed}"
    watch = watch or Watch()
    try:
        with repeatable(one.seed, threads):
            return _run(problem, mix, one, watch, progress or (lambda share: None))
    except ProblemError as error:
        raise ProblemError(f"{error}, {where}") from error
    except StudyError as error:
        raise OptimizerError(str(error)) from error


def _run(problem: Problem, mix: Mix, one: Run, watch: Watch, progress: Callable[[float], None]) -> dict[str, Any]:
    model = problem.ask("model", one.seed)
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer: Any = make(mix, model, rate(one.power), one.seed)
    device = params[0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    scheduler = problem.ask("schedule", optimizer, problem.steps) if problem.schedule else None
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ProblemError(f"schedule of {problem.name} asks for losses: use one that goes by the step")
    torch.manual_seed(one.seed)  # whatever the model has drawn
    batches = problem.train_batches(one.seed)
    losses = torch.empty(problem.steps, device=device)
    stops = {round(problem.steps * k / problem.evaluations) for k in range(1, problem.evaluations + 1)} - {0}
    validation: dict[str, list[Any]] = {"x": [], "y": []}
    times: list[float] = []  # of a step, one for each look
    seconds, step, looked, metric, diverged = 0.0, 0, 0, None, False
    model.train()
    began = time.perf_counter()
    while step < problem.steps and not diverged:
        losses[step] = advance(problem, model, optimizer, next(batches))
        if scheduler is not None:
            scheduler.step()
        step += 1
        steps = step - looked
        if steps < LOOK_STEPS and step not in stops and time.perf_counter() - began < LOOK_SECONDS:
            continue
        finite = losses[looked:step].isfinite().tolist()
        took = time.perf_counter() - began
        times.append(took / steps)
        seconds += took
        if not all(finite):
            step, diverged = looked + finite.index(False) + 1, True
        elif step in stops:
            with optimizer.averaged():
                value, metric = problem.evaluate(model, one.seed)
            diverged = not math.isfinite(value)
            validation["x"].append(step)
            validation["y"].append(_short(value))
        watch.look(step)
        progress(step / problem.steps)
        looked, began = step, time.perf_counter()
    return {
        "loss": None if diverged else value,
        "metric": None if diverged else metric,
        "diverged": diverged,
        "curve": _curve(losses[:step].tolist(), problem.steps),
        "validation": validation,
        "seconds": round(seconds, 4),
        "ms": round(1000 * sorted(times)[len(times) // 2], 4),
        "params": sum(map(_bytes, params)),
        "state": sum(_bytes(t) for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)),
        "peak": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "grown": watch.grown(),
        "machine": machine(device),
    }


def advance(problem: Problem, model: Any, optimizer: Optimizer, batch: Any) -> Tensor:
    """One step on a batch; its loss."""

    def closure() -> Any:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss: Tensor = problem.ask("loss", model, batch)
            try:
                loss.backward()  # type: ignore[no-untyped-call]
            except Exception as error:
                raise ProblemError(f"the loss of {problem.name} has no gradient: {error}") from error
        return loss

    try:
        loss: Any = optimizer.step(closure)
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}") from error
    return loss.detach()  # type: ignore[no-any-return]


@contextlib.contextmanager
def repeatable(seed: int, threads: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's random numbers, fix threads and algorithms; put all back at the end."""
    numpy: Any = sys.modules.get("numpy")
    python, numbers = random.getstate(), numpy.random.get_state() if numpy else None
    before, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill, had = torch.utils.deterministic.fill_uninitialized_memory, torch.get_num_threads()  # type: ignore[attr-defined]
    with (
        torch.random.fork_rng(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.set_num_threads(had)
            random.setstate(python)
            if numpy:
                numpy.random.set_state(numbers)


def machine(device: torch.device) -> str:
    """What computed: times of different machines do not compare."""
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return f"{platform.node()}, {name}, torch {torch.__version__}"


def _curve(losses: list[float], steps: int) -> dict[str, list[Any]]:
    """Block means: the blocks of all runs of a problem are the same, a run that diverged ends early."""
    size = max(1, math.ceil(steps / POINTS))
    blocks = [losses[i : i + size] for i in range(0, len(losses), size)]
    x = [i * size + (len(block) + 1) / 2 for i, block in enumerate(blocks)]
    return {"x": x, "y": [_short(sum(block) / len(block)) for block in blocks]}


def _short(value: float) -> float | None:
    """Five digits, which is more than a figure shows; None where it is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
