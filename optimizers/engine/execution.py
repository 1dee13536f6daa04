"""One step of all parameters: what each does by itself, and between, what a stage does that reaches further.

A worker steps some parameters, in one or several goes. In front of a stage that asks for sums over a tensor, all
workers add up its terms; where it asks for a whole matrix, they come up to it, and begin anew with what it returns.
What was computed on the way to sums is computed again behind them, and nothing is written before all are known; but
a compiled step whose sums are of one tensor each goes through its tensors one by one, and keeps what it has.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .eager import (
    ALL,
    WHOLE,
    Active,
    Hyper,
    Part,
    kept,
    step_differentiably,
    step_in_place,
    step_lock_free,
    sum_terms,
)
from .stage import Stage
from .state import begin, number, rate, schedule
from .tensors import as_matrix, gathered, local, scattered

Totals = dict[str, Tensor]  # by term, its sums, one per parameter of a worker
States = Mapping[Tensor, Hyper]


class Worker(Protocol):
    """Steps parameters that have their stages in common."""

    active: Active
    known: Hyper

    @property
    def alone(self) -> bool:
        """Whether it makes its sums itself, in `finish`, as they concern no other worker and no other process."""

    @property
    def params(self) -> Sequence[Tensor]:
        """The parameters, in the order of their sums."""

    @property
    def step(self) -> Any:
        """The largest of their counts, this step included."""

    def know(self, scalars: Hyper, settled: bool) -> None:
        """Take the whole optimizer's scalars, as they were or as they are now."""

    def sums(self, stage: Stage) -> Totals:
        """The sums of a stage's terms over what this process holds of each parameter."""

    def take(self, stage: Stage, sums: Totals) -> None:
        """Go on with these sums."""

    def matrix(self, stage: Stage) -> None:
        """Come up to a stage's `matrix`, and go on with what it returns."""

    def finish(self) -> None:
        """Write what is new."""


def run(stages: Sequence[Stage], workers: Sequence[Worker], states: States) -> None:
    """Make one step with all workers, none of which has begun.

    Args:
        stages: of the chain, in order.
        workers: of all parameter groups.
        states: the optimizer's.
    """
    finished: set[int] = set()
    for stage in [stage for stage in stages if stage.reach != "element"]:
        concerned = [worker for worker in workers if any(part.stage is stage for part in worker.active)]
        if stage.reach == "matrix":
            for worker in concerned:
                worker.matrix(stage)
                if [part.stage for part in worker.active if part.stage.reach != "element"][-1] is stage:
                    worker.finish()  # what it holds of the matrix is not needed any longer
                    finished.add(id(worker))
        elif concerned := [worker for worker in concerned if not worker.alone]:
            _sum(stage, concerned, states)
    for worker in workers:
        if id(worker) not in finished:
            worker.finish()


def _sum(stage: Stage, workers: Sequence[Worker], states: States) -> None:
    scalars = _common(stage, states) if stage.reach == "optimizer" else {}
    old = {name: plain(scalar) for name, scalar in scalars.items()}
    if scalars:
        for worker in workers:
            worker.know(old, settled=False)
    sums = [worker.sums(stage) for worker in workers]
    _over_shards(workers, sums)
    if stage.reach == "optimizer":
        home = next(iter(sums[0].values())).device
        total = {name: torch.stack([each[name].sum().to(home) for each in sums]).sum() for name in sums[0]}
        sums = [{name: total[name].to(s.device).expand(len(s)) for name, s in each.items()} for each in sums]
        hyper = next(part.hyper for part in workers[0].active if part.stage is stage)
        step, lr = _largest([worker.step for worker in workers]), workers[0].known["lr"]
        settled = stage.settle(old, {name: plain(value) for name, value in total.items()}, step, lr, hyper)
        for name, value in settled.items():
            if isinstance(value, Tensor) and value.requires_grad:
                for state in states.values():
                    state[name] = value.to(scalars[name])
            else:
                scalars[name].copy_(value)
        for worker in workers if scalars else ():
            worker.know(old | settled, settled=True)
    for worker, each in zip(workers, sums, strict=True):
        worker.take(stage, each)


def plain(value: Tensor) -> Any:
    """A number as stages are given it: Python's where it is at hand, unless autograd follows it."""
    if value.requires_grad:
        return value.double()  # as precise as a number
    return value if value.device.type != "cpu" else value.item()


def _largest(counts: Sequence[Any]) -> Any:
    """The largest count; where they are on an accelerator, whose answer a step does not wait for, the first."""
    return counts[0] if isinstance(counts[0], Tensor) and counts[0].device.type != "cpu" else max(counts)


def _common(stage: Stage, states: States) -> Hyper:
    """A stage's scalars, which all states have in common: one that is new takes part in those of the others."""
    if not stage.scalars:
        return {}
    having = [state for state in states.values() if all(name in state for name in stage.scalars)]
    largest = _largest([state["step"] for state in having])
    oldest = next(state for state in having if state["step"] is largest)
    for state in having:
        for name in stage.scalars:
            if state[name] is not oldest[name]:
                state[name] = oldest[name]
    return {name: oldest[name] for name in stage.scalars}


def _over_shards(workers: Sequence[Worker], sums: Sequence[Totals]) -> None:
    """Add to the sums over the shards of this process those over the others', in place and all at once."""
    meshes: dict[Any, list[tuple[int, int]]] = {}  # by mesh and the dimensions that shard: places in `sums`
    for w, worker in enumerate(workers):
        for i, param in enumerate(worker.params):
            placements = enumerate(getattr(param, "placements", ()))
            if dims := tuple(dim for dim, placement in placements if not placement.is_replicate()):
                meshes.setdefault((param.device_mesh, dims), []).append((w, i))  # type: ignore[attr-defined]
    for (mesh, dims), places in meshes.items():
        flat = torch.stack([torch.stack([total[i] for total in sums[w].values()]) for w, i in places])
        for dim in dims:
            torch.distributed.all_reduce(flat, group=mesh.get_group(dim))
        for (w, i), row in zip(places, flat, strict=True):
            for total, value in zip(sums[w].values(), row, strict=True):
                total[i] = value


def apply_matrix(part: Part, param: Tensor, whole: Tensor, grad: Tensor, state: Hyper, known: Hyper) -> Tensor:
    """What a stage's `matrix` makes of a tensor of which this process holds `whole`; the same part of it.

    Args:
        part: the stage, which replaces its `matrices` in the state.
        param, grad, state: of the parameter.
        known: what else the stage's signature may name.
    """
    stage, hyper, _ = part
    if param.numel() == 0:
        return whole
    given = {**known, **hyper, **{name: state[name] for name in stage.matrices}}
    for name, tensor in ("param", param), ("grad", -grad if known["maximize"] else grad):
        if name in stage.asks["matrix"]:
            given[name] = as_matrix(gathered(local(tensor), param)).to(whole.dtype)
    x = gathered(whole, param)
    out = stage.call("matrix", as_matrix(x), given)
    new, *matrices = out if stage.matrices else (out,)
    for name, matrix in zip(stage.matrices, matrices, strict=True):
        old = state[name]
        if matrix.requires_grad or matrix.shape != old.shape or matrix.dtype != old.dtype:
            state[name] = matrix
        elif matrix is not old:
            old.copy_(matrix)
    return scattered(new.reshape(x.shape), param)


class One:
    """Steps one parameter eagerly.

    Args:
        param, grad, index: the parameter.
        group: its group.
        active: the group's stages.
        shared: what stages have computed from all gradients.
        state: what is remembered of the parameter; begun, and counted on, here.
        lock_free: other processes step it at the same time.
    """

    def __init__(
        self,
        param: Tensor,
        grad: Tensor,
        index: int,
        group: Hyper,
        active: Active,
        shared: Hyper,
        state: Hyper,
        lock_free: bool,
    ) -> None:
        self.active, self._param = kept(active, param.dtype), param
        self._grad, self._differentiable, self._lock_free = grad, group["differentiable"], lock_free
        self._state = self._tensors = state
        self._span = ALL
        begin(state, param, index, self.active, group)
        state["step"] += 1
        step = number(state["step"], group)
        for stage, hyper, _ in active:
            self._keep(stage.count(state, step, hyper, rate(group)))
        self.known = {
            **shared,
            **{name: number(state[name], group) for part in active for name in part.stage.scalars},
            "step": step,
            "lr": rate(group),
            "schedule": schedule(group),
            "index": int(state["index"]) if "index" in state else None,
            "stored": param.dtype,
            "maximize": group["maximize"],
        }

    alone = False

    @property
    def params(self) -> Sequence[Tensor]:
        return (self._param,)

    @property
    def step(self) -> Any:
        return self.known["step"]

    def _keep(self, scalars: Hyper) -> None:
        for name, scalar in scalars.items():
            if self._differentiable:
                old = self._state[name]
                self._state[name] = scalar.to(old) if isinstance(scalar, Tensor) else torch.full_like(old, scalar)
            else:
                self._state[name].copy_(scalar)

    def know(self, scalars: Hyper, settled: bool) -> None:
        self.known |= scalars

    def sums(self, stage: Stage) -> Totals:
        span = self._span._replace(until=stage)
        sums = sum_terms(self.active, self._origin(), self._grad, self._tensors, self.known, span)
        return {name: total[None] for name, total in sums.items()}

    def _origin(self) -> Tensor:
        """The parameter as stages are given it: what autograd follows must not be written later."""
        return self._param.clone() if self._differentiable else self._param

    def take(self, stage: Stage, sums: Totals) -> None:
        known = {name: plain(total[0]) for name, total in sums.items()}
        if stage.reach == "tensor" and stage.scalars:
            hyper = next(part.hyper for part in self.active if part.stage is stage)
            old = {name: self.known[name] for name in stage.scalars}
            settled = stage.settle(old, known, self.step, self.known["lr"], hyper)
            self._keep(settled)
            self.known |= settled
        self._span = self._span._replace(sums={**self._span.sums, stage: known})

    def matrix(self, stage: Stage) -> None:
        own = local(self._param)
        whole = torch.empty_like(own, dtype=torch.promote_types(own.dtype, torch.float32))
        self._tensors = {**self._state, WHOLE: whole}
        self._advance(until=stage)
        part = next(part for part in self.active if part.stage is stage)
        whole = self._tensors[WHOLE]
        given = part, self._origin(), whole, self._grad, self._state, self.known
        self._tensors[WHOLE] = apply_matrix(*given)
        self._span = self._span._replace(since=stage)

    def finish(self) -> None:
        self._advance()

    def _advance(self, until: Stage | None = None) -> None:
        given = self.active, self._param, self._grad, self._tensors, self.known
        if self._lock_free:
            step_lock_free(*given)
        elif not self._differentiable:
            step_in_place(*given, self._span._replace(until=until))
        else:
            step_differentiably(*given, self._span._replace(until=until))
            if self._tensors is not self._state:
                self._state |= {name: self._tensors[name] for part in self.active for name in part.names}
