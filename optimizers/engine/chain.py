"""The engine: a chain of stages that is one real `torch.optim.Optimizer`.

A step runs each parameter through five places (`Place`), in this order whatever order the stages were given in:

    gradient   g ← ∇f(θ), negated to maximize; L2, clipping, noise, gradient dropout
    direction  d ← momentum, Adam, … of g                    (none: d = g)
    update     u ← α d, then decoupled weight decay           (α is the learning rate)
    step size  u ← learning-rate dropout of u
    parameters θ ← θ − u, then Lookahead

The mathematics is in the stages, as pure functions; this module keeps torch's books: groups, state, checkpoints.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypedDict, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, _use_grad_for_differentiable

from .compiled import FusedStep, execution_of, worth_it
from .composition import Partition, in_order, refuse_clashes
from .eager import Active, Hyper, Part, kept
from .evaluation import Evaluation
from .execution import One, Worker, run
from .identity import Indices
from .memory import owns_memory
from .plan import Plan
from .settings import Settings
from .stage import Stage
from .state import adopt, apart, begin, uncast
from .tensors import Gradients


class Options(TypedDict, total=False):
    """The keywords that every named optimizer takes besides its own, with the meaning they have in `Chain`."""

    extensions: Iterable[Stage]
    maximize: bool
    foreach: bool | None
    capturable: bool
    differentiable: bool
    fused: bool | None


class Chain(Evaluation):
    """An optimizer made of stages; every named optimizer of this package is a `Chain`.

    Args:
        params: parameters, named parameters (pairs of name and parameter), or parameter groups (dicts), which may
            override any hyper-parameter of any stage.
        stages: at most one direction, and any other stages, in any order; a stage class at most once.
        lr: learning rate, in [0, ∞); a number or a tensor of one element.
        extensions: further stages, in any order.
        maximize: ascend instead of descend.
        foreach: accepted for torch's sake: True and False both mean an eager step, a loop over tensors.
        capturable: keep `step` as a tensor on the parameter's device, as CUDA graphs need; they replay the values
            that numbers had, so that a learning rate that changes must be a tensor, too.
        differentiable: let autograd record the step (slower; the state is replaced, not written in place).
        fused: True compiles the step, all stages together, into one pass over memory, with the C compiler of the
            machine, on a GPU with torch's NVRTC (see :mod:`optimizers.engine.compiled`); where that cannot be, it
            warns and runs eagerly. None compiles where it pays: on a CPU, with a compiler at hand and 65,536
            elements or more. `repr` says what is done, and why not.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a hyper-parameter is out of its range, or the stages do not fit together.
        RuntimeError: (in `step`) a gradient is sparse and a stage needs it dense, or it or the state is not of the
            parameter's shape, or has no memory of its own.
        ValueError: (in `step`) a stage is not elementwise.
    """

    _lock_free = False  # set by `share_memory`
    _worth_compiling: bool | None = None  # not known until the first step

    def __init__(
        self,
        params: ParamsT,
        stages: Iterable[Stage],
        *,
        lr: float | Tensor,
        extensions: Iterable[Stage] = (),
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        if not isinstance(extensions, Iterable):
            raise TypeError(f"extensions must be a list of stages, got {extensions!r}")
        self._stages = in_order([*stages, *extensions])
        self._fused: dict[int, FusedStep] = {}
        self._plan = Plan()
        self._indices = Indices(any("index" in stage.needs for stage in self._stages))
        defaults: Hyper = {
            "lr": lr,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        refuse_clashes(self._stages, [*defaults, "params", "param_names", "initial_lr", "base_lr"])
        for stage in self._stages:
            defaults |= {stage.key(name): value for name, value in stage.hyper.items()}
        self._settings = Settings(self._stages, list(defaults))
        defaults = self._settings.plain(defaults)
        self._settings.check(defaults, "")
        super().__init__(params, defaults)

    # ------------------------------------------------------------------ the step

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = self._evaluate(closure)
        self._advance()
        return loss

    def _advance(self) -> None:
        """Update every parameter, with the gradients that are there."""
        scaler = [getattr(self, name, None) for name in ("grad_scale", "found_inf")]  # set by torch.amp.GradScaler
        by_kernels = any(number is not None for number in scaler) and self._kernels_scale
        if scaler[1] is not None and not by_kernels and scaler[1]:  # a gradient is not finite
            return
        self._settings.check_new(self.param_groups)
        grads = Gradients()
        if scaler[0] is not None and not by_kernels:
            grads.unscale(float(scaler[0]), [param for group in self.param_groups for param in group["params"]])
        groups = self.param_groups
        actives = [self._active(group) for group in groups]
        compiled = {i: self._fused.setdefault(i, FusedStep()) for i, g in enumerate(groups) if self._compiles(g)}
        # All that can be refused is refused before the first parameter moves.
        eager, shared = self._plan.make(
            groups, self._indices, actives, self.state, grads, compiled, self._lock_free
        )
        if by_kernels and not self._kernels_scale:  # what was laid out anew is stepped otherwise, and begun now
            return self._advance()
        self._indices.begin()
        workers: list[Worker] = []  # the first group's come first: what the whole optimizer has once is as it says
        for i, (group, active, members) in enumerate(zip(groups, actives, eager, strict=True)):
            workers += compiled[i].tables if i in compiled else ()
            for index, param in members.items():
                given = param, grads[param], index, group, active, shared, self.state[param], self._lock_free
                workers.append(One(*given))
        for worker in workers if by_kernels else ():
            worker.scale(*scaler)  # type: ignore[attr-defined]
        run(self._stages, workers, self.state)

    def _patch_step_function(self) -> None:
        """Call hooks at each step, as torch does, and have torch.compile leave a step, hooks and all, as it is."""
        rule, hooked = type(self), getattr(self.step, "hooked", False)
        super()._patch_step_function()
        if not hooked:
            rule.step = torch.compiler.disable(rule.step)  # type: ignore[method-assign, no-untyped-call]
            rule.step.hooked = True  # type: ignore[attr-defined]

    @property
    def _kernels_scale(self) -> bool:
        """Whether the kernels of the last step read a GradScaler's numbers themselves: nobody waits for them."""
        steps = [self._fused.get(i) for i in range(len(self.param_groups))]
        looked = any(type(stage).before is not Stage.before for stage in self._stages)  # at scaled gradients
        return not looked and all(step is not None and step.scales for step in steps)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `torch.amp.GradScaler` leaves scaled gradients to `step`, as to torch's fused optimizers."""
        can = self._kernels_scale  # else an overflow would have to be asked for, for which a graph cannot wait
        return all(group["fused"] and (can or not group["capturable"]) for group in self.param_groups)

    def _active(self, group: Hyper) -> Active:
        """The stages that do something in this group, each with its hyper-parameters."""
        stages = [s for s in self._stages if s.route is None or s.route == group["direction"]]
        pairs = [(s, {name: group[s.key(name)] for name in s.hyper}) for s in stages]
        return [Part(stage, hyper, stage.remembers(hyper)) for stage, hyper in pairs if stage.applies(hyper)]

    def _compiles(self, group: Hyper) -> bool:
        """Whether a group's step is compiled: as `fused` says, or where it says nothing, where that is faster."""
        if self._lock_free or group["differentiable"]:
            return False
        if group["fused"] is None and group["foreach"] is None:
            if self._worth_compiling is None:
                params = [param for group in self.param_groups for param in group["params"]]
                self._worth_compiling = worth_it(params)
            return bool(self._worth_compiling)
        return bool(group["fused"])

    def share_memory(self) -> "Chain":
        """Put the parameters and the whole state, made now, into shared memory, for Hogwild training.

        Call it last: after `load_state_dict` and `add_param_group`, before the processes start, which
        :func:`optimizers.run_hogwild` does. From then on steps write only what they change, and gradients may be
        row-sparse; see `optimizers.hogwild`.

        Returns:
            The optimizer itself.

        Raises:
            ValueError: a parameter is not in the CPU's memory, a group is differentiable, or a stage reaches
                further than an element: other processes would change what it sums.
        """
        if far := [stage for stage in self._stages if stage.reach != "element"]:
            raise ValueError(f"share_memory() needs stages that are elementwise, {far[0]!r} is not")
        self._settings.check_new(self.param_groups)
        for group in self.param_groups:
            params = group["params"]
            here = all(owns_memory(param) and param.device.type == "cpu" for param in params)
            if group["differentiable"] or not here:
                raise ValueError(
                    "share_memory() needs all parameters on the CPU, dense and not conjugated lazily, and "
                    "differentiable=False"
                )
        for i, group in enumerate(self.param_groups):
            for index, param in self._indices.of(i, group).items():
                if param.requires_grad:
                    begin(self.state[param], param, index, kept(self._active(group), param.dtype), group)
                    for tensor in (param, *self.state[param].values()):
                        tensor.share_memory_()
        self._lock_free = True
        self._indices.begin()
        return self

    # ------------------------------------------------------------------ torch's books

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its hyper-parameters are checked before anything is touched.

        Raises:
            TypeError, ValueError: as torch, and for a hyper-parameter out of its range.
        """
        if isinstance(param_group, dict):
            direction = param_group.get("direction", self.defaults.get("direction"))
            given = self._settings.plain(Partition.defaults(self._stages, direction) | param_group)
            self._settings.check(self.defaults | given, f" of parameter group {len(self.param_groups)}")
            param_group.update(given)
            if self._scheduled:
                # Kept here, not at the first step: by then a scheduler, or a checkpoint, may have changed lr.
                param_group.setdefault("base_lr", apart(param_group.get("lr", self.defaults["lr"])))
        super().add_param_group(param_group)
        self._indices.of(len(self.param_groups) - 1, self.param_groups[-1])
        self._worth_compiling = None

    @property
    def _scheduled(self) -> bool:
        """Whether a stage asks how far a scheduler has moved the learning rate."""
        return any("schedule" in stage.needs for stage in self._stages)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint, this package's or torch.optim's of the same algorithm."""
        scalars = {"index", *(name for stage in self._stages for name in stage.scalars)}
        casts = any(type(stage).cast is not Stage.cast for stage in self._stages)
        tensors = {name for stage in self._stages for name in (stage.state if casts else ()) + stage.matrices}
        super().load_state_dict({**state_dict, "state": uncast(state_dict["state"], scalars, tensors)})

    def __getstate__(self) -> dict[str, Any]:
        own = ("_stages", "_indices", "_lock_free")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle, a copy or a checkpoint, torch.optim's own checkpoints included."""
        if "_stages" not in state:
            # A checkpoint's groups replace ours whole: what its writer did not know gets our defaults.
            groups = [self._settings.plain(self.defaults | group) for group in state["param_groups"]]
            for i, group in enumerate(groups):
                self._settings.check(group, f" of parameter group {i}")
            state = {**state, "param_groups": groups}
        super().__setstate__(state)
        self._settings = Settings(self._stages, list(self.defaults))
        self._fused, self._plan, self._worth_compiling = {}, Plan(), None
        for group in self.param_groups:
            if self._scheduled:
                group.setdefault("base_lr", apart(group["lr"]))
            for param in group["params"]:
                # A pickle or a copy is as we wrote it, and its tensors may be shared with other processes.
                if param in self.state and "_stages" not in state:
                    self.state[param] = adopt(self.state[param], param, self._active(group), group)

    def source(self) -> str:
        """The C or CUDA text of the compiled step, per pass and kind of parameters; empty where it is eager."""
        return "\n".join(dict.fromkeys(table.source for step in self._fused.values() for table in step.tables))

    def __repr__(self) -> str:
        stages = "".join(f"    {stage!r}\n" for stage in self._stages)
        execution = execution_of(self.param_groups, self._fused, self._compiles)
        return f"{super().__repr__()[:-1]}Stages\n{stages}Execution: {execution}\n)"
