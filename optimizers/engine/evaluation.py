"""Where a model is evaluated: at a point of a stage's own, and for a gradient, a little way off (SAM).

The parameters are where the gradient is taken. A stage may know a better place to evaluate (an average of the
iterates): its `point`. `Evaluation` puts that in the parameters' place, in their own memory, and keeps what was
there in the state, as ``train_point``: whatever happens to the optimizer meanwhile (a checkpoint, a copy, a
pickle), the training goes on from there, bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from .eager import Active, Hyper
from .memory import resolved
from .settings import Settings
from .stage import Stage, has_point
from .state import rate
from .tensors import gradient, local, real

TRAIN_POINT = "train_point"


class Evaluation(Optimizer):
    """The part of a `Chain` that has to do with evaluating the model; see there."""

    _stages: tuple[Stage, ...]
    _settings: Settings
    _lock_free: bool
    _evaluating = False  # whether the parameters are at the stages' points

    def __init__(self, params: ParamsT, defaults: Hyper) -> None:
        self._rates: dict[int, Any] = {}  # by group, the learning rate that was last found to be right
        super().__init__(params, defaults)

    def _active(self, group: Hyper) -> Active:
        raise NotImplementedError

    # ------------------------------------------------------------------ the point of evaluation

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Evaluate at the stages' point: ``with optimizer.averaged(): evaluate(model)``.

        On leaving, also by an exception, the parameters are again what they were, bit for bit. Where :meth:`eval`
        was called before, they are at that point already, and stay there.
        """
        if self._evaluating:
            yield
            return
        self.eval()
        try:
            yield
        finally:
            self.train()

    def eval(self) -> None:
        """Put the stages' point (Schedule-Free's average, Lookahead's slow weights) in the parameters' place.

        Nothing happens in a chain whose stages have none, nor to parameters that have no state yet or whose group
        does without the stage. What the parameters were is kept in the state as ``train_point`` until
        :meth:`train`: a checkpoint of model and optimizer that is written meanwhile holds both points, and an
        optimizer that loads it is in this mode, too. (Not so `torch.distributed.checkpoint`, which reads only what
        the state that it loads into has: write such checkpoints in training mode.) Buffers, such as BatchNorm's
        statistics, are the model's and belong to the training point: `torch.optim.swa_utils.update_bn` renews them.
        And under FSDP2 (`fully_shard`) a model that was evaluated keeps the weights it has gathered until its next
        backward pass: call ``model.reshard()`` before it is trained, or evaluated, elsewhere.
        """
        if self._evaluating or not any(map(has_point, self._stages)):
            return
        self._evaluating = True
        members = [
            (param, self.state[param], part)
            for group in self.param_groups
            for part in self._active(group)
            if has_point(part.stage)
            for param in group["params"]
            if all(name in self.state.get(param, ()) for name in part.names)
        ]
        try:
            with torch.no_grad():
                # All are kept before one is written: parameters may be views of one memory.
                for param, state, _ in members:
                    state[TRAIN_POINT] = param.detach().clone()
                for param, state, (stage, hyper, _) in members:
                    own = {name: local(value) for name, value in state.items() if isinstance(value, Tensor)}
                    if (point := stage.point(own[TRAIN_POINT], own, hyper)) is not None:
                        local(param).copy_(point)
        except BaseException:
            self.train()
            raise

    def train(self) -> None:
        """Put the parameters back to where :meth:`eval` found them, bit for bit; else do nothing."""
        if not self._evaluating:
            return
        self._evaluating = False
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    if TRAIN_POINT in self.state.get(param, ()):
                        local(param).copy_(local(self.state[param].pop(TRAIN_POINT)))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_evaluating": self._evaluating}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rates = {}
        # A checkpoint says by its state in which mode it was written.
        kept = any(TRAIN_POINT in known for known in self.state.values())
        self._evaluating = state.get("_evaluating", kept)

    # ------------------------------------------------------------------ what can be read

    def preconditioner(self, param: Tensor) -> Any:
        """By what the direction has multiplied the gradient, or its average, of a parameter at its last step.

        Its largest eigenvalue with the Hessian's is the sharpness that decides about stability.

        Returns:
            A tensor of the parameter's shape (of a complex one, with its parts as a last dimension), such as Adam's
            1 / (√v̂_t + ε); of Shampoo the matrices (L^−p, R^−p), and of SOAP (Q_L, tensor, Q_R), where the tensor
            is that of the direction inside, in this basis.

        Raises:
            ValueError: the parameter is not the optimizer's, or has made no step, or its direction has none.
        """
        name = type(self).__name__
        for group in self.param_groups:
            if any(param is each for each in group["params"]) and (known := self.state.get(param)):
                state = {name: real(value) for name, value in known.items() if isinstance(value, Tensor)}
                for stage, hyper, _ in self._active(group):
                    if (found := stage.preconditioner(state, float(state["step"]), hyper)) is not None:
                        return found
                raise ValueError(f"{name} multiplies the gradient by nothing: it has no preconditioner")
        raise ValueError(f"a parameter of shape {tuple(param.shape)} has made no step with this {name}")

    # ------------------------------------------------------------------ the gradient

    def _evaluate(self, closure: Callable[[], float] | None) -> float | None:
        """What a step does first: refuse what it cannot do, and evaluate the closure, for SAM a second time.

        Raises:
            RuntimeError: the parameters are at the point of evaluation; or a stage needs a closure, and there is
                none, or gradients that are not scaled.
            ValueError: a stage cannot go on at a group's learning rate.
        """
        if self._evaluating:
            raise RuntimeError("the parameters are where they are evaluated: call optimizer.train() first")
        self._refuse_rates()
        ascents = [stage for stage in self._stages if stage.ascent is not None]
        for stage in ascents:
            self._settings.check_new(self.param_groups)
            self._refuse_ascent(stage, closure)
        if closure is None:
            return None
        with torch.enable_grad():
            loss = closure()
        for stage in ascents:
            with self._ascended(stage) as moved, torch.enable_grad():
                if moved:
                    closure()
        return loss

    def _refuse_rates(self) -> None:
        if all(type(stage).refuses_lr is Stage.refuses_lr for stage in self._stages):
            return
        self._settings.check_new(self.param_groups)
        for i, group in enumerate(self.param_groups):
            lr = rate(group)
            # To read a number on an accelerator would wait for the device.
            if group["capturable"] or (isinstance(lr, Tensor) and lr.device.type != "cpu"):
                continue
            # What is remembered of the parameters is read where the rate may have changed.
            if lr is self._rates.get(i) and not isinstance(lr, Tensor):
                continue
            for stage, hyper, _ in self._active(group):
                for state in (self.state[param] for param in group["params"] if param in self.state):
                    if reason := stage.refuses_lr(float(lr), state, hyper):
                        raise ValueError(f"lr of parameter group {i}: {reason}")
            self._rates[i] = lr

    def _refuse_ascent(self, stage: Stage, closure: Callable[[], float] | None) -> None:
        name = type(stage).__name__
        if getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None:
            raise RuntimeError(
                f"{name} takes two gradients in a step, of which a GradScaler knows one: train without it, in "
                "bfloat16 (torch.autocast) or float32"
            )
        # At a learning rate of 0 nothing moves: so torch.distributed.checkpoint has the state made.
        if closure is None and any(float(group["lr"]) != 0 for group in self.param_groups):
            raise RuntimeError(
                f"{name} takes two gradients in a step: call optimizer.step(closure), with a function that clears "
                "the gradients, computes the loss, calls its backward() and returns it (a GradScaler does not)"
            )
        if self._lock_free or any(group["differentiable"] for group in self.param_groups):
            raise RuntimeError(
                f"{name} moves the parameters away and back within a step: not with differentiable=True, nor after "
                "share_memory(), when other processes step, too"
            )

    @contextmanager
    def _ascended(self, stage: Stage) -> Iterator[bool]:
        """The parameters moved to where `stage` takes the gradient, then back, bit for bit, in their own memory.

        It gives whether a parameter has moved.
        """
        members: list[tuple[Tensor, Tensor, Hyper]] = []
        given: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            for group in self.param_groups:
                hyper = {name: group[stage.key(name)] for name in stage.hyper}
                for param in (param for param in group["params"] if param.grad is not None):
                    grad = local(gradient(param))
                    grad = real(grad.to_dense() if grad.is_sparse else grad)
                    # What is maximized is −f, minimized.
                    grad = -grad if group["maximize"] else grad
                    given.append((param, stage.length(grad, real(resolved(local(param))))))
                    if stage.applies(hyper):
                        members.append((param, grad, hyper))
            norm = total_norm(given) if members else None
            # All are kept before one is written: parameters may be views of one memory.
            kept = [(param, local(param).clone()) for param, *_ in members]
        try:
            with torch.no_grad():
                for param, grad, hyper in members:
                    own = local(param)
                    work = resolved(own)
                    point = real(work)
                    point.add_(stage.ascent(grad, point, norm.to(point.device), **hyper))  # type: ignore[union-attr]
                    if work is not own:
                        own.copy_(work)
            yield bool(members)
        finally:
            with torch.no_grad():
                for param, old in kept:
                    local(param).copy_(old)


def total_norm(given: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The Euclidean norm of tensors taken together: a number in double precision.

    Args:
        given: parameters, each with a tensor of its coordinates, of this process's if the parameter is sharded.
    """
    sums: dict[Any, Tensor] = {}
    for param, tensor in given:
        precise = torch.promote_types(tensor.dtype, torch.float32)
        square = torch.linalg.vector_norm(tensor, dtype=precise).double().square()
        whole: Any = param
        key = None
        if hasattr(param, "placements"):
            key = whole.device_mesh, tuple(placement.is_shard() for placement in whole.placements)
        sums[key] = sums[key] + square.to(sums[key].device) if key in sums else square
    total = torch.zeros((), dtype=torch.float64)
    for key, square in sums.items():
        if key is not None:
            from torch.distributed.tensor import DTensor, Partial, Replicate

            mesh, sharded = key
            spread = DTensor.from_local(square, mesh, [Partial() if each else Replicate() for each in sharded])
            square = spread.full_tensor()
        total = total.to(square.device) + square
    return total.sqrt()
