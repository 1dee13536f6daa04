"""Before a step: what it will do, parameter by parameter, and all that is refused, while nothing has moved yet."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from .compiled import FusedStep
from .composition import refuse_neighbours
from .eager import Active, Hyper
from .elementwise import prove
from .identity import Indexed, Indices
from .memory import resolved, stands_for_itself, tied
from .stage import Stage
from .state import rate, schedule
from .tensors import Gradients, check, local, refuse_sparse, said

Groups = Sequence[Hyper]
States = Mapping[Tensor, Hyper]


class Plan:
    """What is kept from step to step of how an optimizer's groups are stepped, as far as nothing has changed."""

    def __init__(self) -> None:
        self._tied: frozenset[int] = frozenset()
        self._places: list[int] = []
        self._proven: Sequence[Active] = ()

    def make(
        self,
        groups: Groups,
        indices: Indices,
        actives: Sequence[Active],
        states: States,
        grads: Gradients,
        compiled: Mapping[int, FusedStep],
        lock_free: bool,
    ) -> tuple[list[Indexed], Hyper]:
        """Make ready for one step.

        Args:
            groups, states: the optimizer's.
            indices: of the groups' parameters.
            actives: the stages that do something, by group.
            grads: the step's gradients.
            compiled: the steps of the groups that are compiled, which are made ready.
            lock_free: the step is that of one of several processes that share all memory.

        Returns:
            The parameters of each group that are to be stepped eagerly, by index, and what stages have computed
            from all gradients together.

        Raises:
            RuntimeError: a parameter, a gradient or the state cannot be stepped (see `tensors.check`).
            ValueError: a stage is not elementwise, or cannot be with another at a group's settings.
        """
        held = {i for i, step in compiled.items() if step.holds(groups[i]["params"], states, grads)}
        members = [
            compiled[i].members if i in held else _with_gradients(indices.of(i, group))
            for i, group in enumerate(groups)
        ]
        eager = [compiled[i].eager if i in held else params for i, params in enumerate(members)]
        # (At other settings, a stage may refuse what is laid out already.)
        for active, params in zip(actives, eager if actives == self._proven else members, strict=True):
            _check(params.values(), active, states, grads, lock_free)
        shared = _shared(groups, actives, grads)
        if actives != self._proven:
            for i, (group, active) in enumerate(zip(groups, actives, strict=True)):
                refuse_neighbours([(stage, hyper) for stage, hyper, _ in active], f"parameter group {i}: ")
                known = {"lr": rate(group), "schedule": schedule(group), "maximize": group["maximize"]}
                prove(active, {**shared, **known})
            self._proven = actives
        # What is laid out anew, or stepped eagerly, may have come to lie where compiled steps write.
        parts = [part for active in actives for part in active]
        common = {name for part in parts if part.stage.reach == "optimizer" for name in part.stage.scalars}
        places = [place for params in eager for place in _places(params, states, common)] if compiled else []
        if compiled.keys() - held or places != self._places:
            self._tied = _tied(groups, states, grads, common)
        self._places = places
        for i, step in compiled.items():
            eager[i] = step.prepare(members[i], actives[i], groups[i], shared, states, grads, self._tied, i in held)
        return eager, shared


def _with_gradients(params: Indexed) -> Indexed:
    return {index: param for index, param in params.items() if param.grad is not None}


def _check(params: Iterable[Tensor], active: Active, states: States, grads: Gradients, lock_free: bool) -> None:
    """Refuse what cannot be stepped; a sparse gradient of which all entries are needed gets its zeros."""
    names = [name for part in active for name in part.names]
    numbers = ["step", *(name for part in active for name in part.stage.scalars)]
    parts = [
        part for part in active if part.stage.reach == "matrix" or type(part.stage).refuses is not Stage.refuses
    ]
    takes = {part.stage.sparse: type(part.stage).__name__ for part in active}
    for param in params:
        grad = grads[param]
        if grad.is_sparse:
            if lock_free and grad.sparse_dim() != 1:
                refuse_sparse(param, "share_memory()")
            if not lock_free and None in takes:
                refuse_sparse(param, takes[None])
        check(param, grad, states.get(param, {}), names, numbers)
        for stage, hyper, _ in parts:
            reason = stage.refuses(param, hyper) or _misfit(stage, param, states.get(param, {}), hyper)
            if reason:
                raise RuntimeError(f"{type(stage).__name__} cannot step {said(param)}: {reason}")
        if grad.is_sparse and not lock_free and ("whole" in takes or grad.sparse_dim() == 0):
            grads[param] = grad.to_dense()
        if lock_free and resolved(param) is not param:
            raise RuntimeError("share_memory() needs parameters that are not conjugated or negated lazily")


def _misfit(stage: Stage, param: Tensor, state: Hyper, hyper: Hyper) -> str | None:
    """What is wrong with a stage's `matrices`, if anything is."""
    shape = param.shape if param.dim() < 3 else (param.shape[0], math.prod(param.shape[1:]))
    for name in (name for name in stage.matrices if name in state):
        wanted, matrix = stage.size(name, tuple(shape), hyper), state[name]
        if not isinstance(matrix, Tensor):
            return f"its {name} must be a tensor, got {matrix!r}"
        if wanted is not None and tuple(matrix.shape) not in (wanted, ()):
            found = f"its {name} has the shape {tuple(matrix.shape)}, not {wanted}"
            return f"{found}: was another checkpoint loaded, or a setting changed?"
    return None


def _shared(groups: Groups, actives: Sequence[Active], grads: Gradients) -> Hyper:
    """What stages compute from all gradients together, before the first parameter moves."""
    # Where groups differ, the first one decides.
    stages = {part.stage: part.hyper for active in reversed(actives) for part in active}
    shared: Hyper = {}
    if any(type(stage).before is not Stage.before for stage in stages):
        found = [grads[param] for group in groups for param in group["params"] if param.grad is not None]
        found = [grad.coalesce().values() if grad.is_sparse else grad for grad in found]
        for stage, hyper in stages.items():
            shared |= stage.before(found, hyper)
    return shared


def _places(params: Indexed, states: States, common: Collection[str]) -> Iterator[int]:
    for param in params.values():
        for tensor in _written(param, states, common):
            yield tensor.data_ptr() if stands_for_itself(tensor) else 0


def _written(param: Tensor, states: States, common: Collection[str]) -> Iterator[Tensor]:
    """The memory that a parameter's step writes, but for the numbers that all parameters have in common."""
    yield local(param)
    for name, tensor in states.get(param, {}).items():
        if isinstance(tensor, Tensor) and name not in common:
            yield local(tensor)


def _tied(groups: Groups, states: States, grads: Gradients, common: Collection[str]) -> frozenset[int]:
    """The ids of the parameters that can only be stepped one after the other: their steps share memory."""
    params = [param for group in groups for param in group["params"] if param.grad is not None]
    written = {id(param): list(_written(param, states, common)) for param in params}
    return tied(written, {id(param): [local(grads[param])] for param in params})
