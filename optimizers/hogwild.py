r"""Hogwild: several processes train one model in shared memory, without a lock (Recht, Ré, Wright and Niu, 2011).

Their rule, for a sum :math:`\sum_e f_e(x_e)` of which each term sees a few coordinates: every processor, again and
again, reads the coordinates of one term, computes their gradient, and takes the step off these coordinates alone,
with nothing but the addition to a single coordinate being atomic (Algorithm 1). `Chain.share_memory` makes an
optimizer work so, whatever its stages:

- a *row-sparse* gradient (``nn.Embedding(sparse=True)``, ``nn.EmbeddingBag(sparse=True)``) advances the rows that
  it has, of the parameter and of the state, and neither reads nor writes another: what decays or has momentum does
  so only in steps that see its row, as in `torch.optim.SparseAdam`;
- a dense gradient advances the whole parameter, but coordinates that the step does not change are not written.

The parameter is written by adding the step, so that two steps on one coordinate both count but for a collision
within the addition, which loses one of them: that much the theory allows. The state is replaced: a sum of two steps
could make a second moment negative. `step` is shared and counts the steps of all processes, collisions aside.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes


def run_hogwild(
    worker: Callable[..., Any],
    *args: Any,
    processes: int = 2,
    start_method: str = "spawn",
    timeout: float | None = None,
) -> None:
    """Call ``worker(rank, *args)`` in several processes at once and wait for all of them.

    Pass a model and its optimizer together, after ``model.share_memory()`` and ``optimizer.share_memory()``: every
    process trains the same tensors, with gradients of its own and one thread.

    Args:
        worker: a function of a module (not a lambda, unless with ``start_method="fork"``).
        args: what it gets after its rank, 0 … processes − 1; pickled, but for the contents of shared tensors.
        processes: how many, 1 or more.
        start_method: ``"spawn"``, ``"forkserver"`` or ``"fork"``, as in `multiprocessing`.
        timeout: seconds after which all are killed; None for never.

    Raises:
        RuntimeError: a worker raised, or died; the others are stopped, and the error has its rank and traceback.
        TimeoutError: a worker was not done in time.
        ValueError: `processes` is not a whole number of 1 or more.
    """
    if not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes must be a whole number in [1, inf), got {processes!r}")
    end = None if timeout is None else time.monotonic() + timeout
    context = start_processes(  # type: ignore[no-untyped-call]
        _work, (worker, args), processes, join=False, start_method=start_method
    )
    assert context is not None
    try:
        while not context.join(None if end is None else max(0.0, end - time.monotonic()), grace_period=1.0):
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"{processes} workers were not done after {timeout} seconds")
    except ProcessExitedException as error:
        raise RuntimeError(f"worker {error.error_index} of {processes} died: {error}") from error
    except ProcessRaisedException as error:
        raise RuntimeError(f"worker {error.error_index} of {processes} raised an error{error}") from None
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _work(rank: int, worker: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # The processes are the parallelism: more threads would only stand in their way.
    torch.set_num_threads(1)
    worker(rank, *args)
