"""A stage: one idea from one paper, as a pure function on tensors.

A stage says in which of five places it works, which hyper-parameters it has and in what range, which tensors
it remembers per parameter, and how it turns what it is given into what it passes on. It holds no tensors:
hyper-parameters live in the optimizer's `param_groups`, memory lives in its `state`, as torch expects.
"""

import inspect
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .validation import check, plain


class Place(IntEnum):
    """Where a stage works, in the order in which a step runs through them."""

    GRADIENT = 1  # gradient → gradient: L2, clipping, gradient noise, gradient dropout
    DIRECTION = 2  # gradient → direction: momentum, RMSprop, Adam, …; exactly one (none: the gradient itself)
    UPDATE = 3  # lr × direction → update: decoupled weight decay
    STEP_SIZE = 4  # update → update: learning-rate dropout, which masks all that would move the parameter
    PARAMETERS = 5  # new parameter → new parameter: Lookahead


class Stage:
    """Base of every stage. A subclass defines `place`, `ranges`, `state` and `update`.

    `update` takes the tensor that flows through the chain (the gradient, the direction, the update or the new
    parameter, by place) and, by keyword, whatever it names in its signature:

    - a hyper-parameter of its own (a number);
    - a tensor of its own `state` (same shape as the parameter);
    - ``memory``: all its tensors as a tuple, for a stage whose number of tensors is a hyper-parameter;
    - ``param`` (the parameter before the step), ``step`` (1 at the first step), ``lr``;
    - ``schedule``: the learning rate as a multiple of the one before any scheduler changed it;
    - ``grad``: the gradient as it came, negated to maximize;
    - for noise: ``index`` (which parameter it is, see `identity`) and ``coordinate`` (int64, the
      position of each element in it);
    - ``stored``: the dtype in which the parameter is kept, whatever its arithmetic is done in;
    - whatever `before` returned.

    It changes nothing in place and returns the tensor to pass on, followed by the new state tensors in the order
    of `state`, with None for one that is not in use. What it makes of a coordinate depends on that coordinate
    alone: long tensors are handed over in slices. (Before the first step it is tried on small tensors; see
    `elementwise`.)

    A stage that depends on more says how far it reaches. With the `reach` "tensor" or "optimizer" it defines
    `terms`, with a signature of the same kind, which returns elementwise terms by name; `update` is given their
    sums, over all coordinates of the parameter (of all parameters that the stage steps), by these names: numbers,
    in double precision. With "matrix" it defines `matrix`, which is given what `update` passes on, whole.
    """

    place: ClassVar[Place]
    #: the order inside a place, smallest first; stages of one rank run in the order in which they were given
    rank: ClassVar[int] = 0
    #: the hyper-parameters and their ranges, for example ``{"momentum": "[0, inf)"}``
    ranges: Mapping[str, str] = {}
    #: names of the tensors remembered per parameter; they start at zero unless `initial` says otherwise
    state: tuple[str, ...] = ()
    #: those of a direction's state tensors that are a velocity: Lookahead can reset or average them
    velocity: tuple[str, ...] = ()
    #: numbers remembered per parameter besides `step`, with their first values; kept as 0-d float32 tensors
    scalars: ClassVar[Mapping[str, float]] = {}
    #: hyper-parameters that it may have in common with another stage of a chain, if that one says so, too
    shared: ClassVar[tuple[str, ...]] = ()
    #: hyper-parameters appear in `param_groups` under this prefix (so that extensions cannot clash)
    prefix: ClassVar[str] = ""
    #: True for a direction that a factor on all gradients does not change
    scale_free: ClassVar[bool] = False
    #: True for a direction whose result already contains the learning rate
    includes_lr: ClassVar[bool] = False
    #: what it makes of a sparse gradient (an embedding's): "entries" where a gradient of 0 leaves a coordinate, and
    #: what is remembered of it, as they are, so that a step on the others is the whole step; "whole" where it needs
    #: the zeros, too; None refuses it
    sparse: ClassVar[Literal["entries", "whole"] | None] = None
    #: True for an extension that takes the place of a direction's momentum, so that one whose own is 0 keeps none
    averages: ClassVar[bool] = False
    #: True where all stages must be given at least 32 bits, eagerly as well: 16-bit tensors are then handed over in
    #: float32, as a compiled step always has them
    wide: ClassVar[bool] = False
    #: what a coordinate of its result may depend on: itself, sums over the tensor or over all tensors, or anything
    reach: ClassVar[Literal["element", "tensor", "optimizer", "matrix"]] = "element"
    #: names of further tensors remembered per parameter, of any shape, which `matrix` alone is given
    matrices: tuple[str, ...] = ()
    #: by function (`update`, `terms`, `matrix`) the names in its signature, and all of them
    asks: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    needs: ClassVar[frozenset[str]] = frozenset()
    #: static methods; their signatures differ from stage to stage
    update: Any
    terms: Any
    matrix: Any
    #: under which it stands in a `Partition`: the groups with this ``direction`` are stepped by it
    route: str | None = None
    #: for a stage that takes the gradient elsewhere: ``length(grad, param)``, the tensor whose norm, taken over all
    #: parameters, is given to ``ascent(grad, param, norm, *, hyper-parameters…)``, the way from the parameter there
    length: Any = None
    ascent: Any = None

    def __init__(self, **hyper: Any) -> None:
        self.hyper = self.plain(hyper)
        self.check(self.hyper)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        functions = [name for name in ("update", "terms", "matrix") if name in cls.__dict__]
        named = {name: tuple(list(inspect.signature(getattr(cls, name)).parameters)[1:]) for name in functions}
        cls.asks = {**cls.asks, **named}
        cls.needs = frozenset(name for names in cls.asks.values() for name in names)

    def call(self, function: str, x: Tensor, given: Mapping[str, Any]) -> Any:
        """`update`, `terms` or `matrix` of x, with those of the given values that its signature names."""
        return getattr(self, function)(x, **{name: given[name] for name in self.asks[function]})

    def plain(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """Hyper-parameters in Python's own types, as `validation.plain` makes them."""
        ranges = self.ranges
        return {name: plain(value, ranges[name]) if name in ranges else value for name, value in hyper.items()}

    def check(self, hyper: Mapping[str, Any], where: str = "") -> None:
        """Raise `TypeError` or `ValueError` where a hyper-parameter is out of its range.

        Args:
            hyper: hyper-parameters by their names in this stage.
            where: text put behind the name in the error, for example ``" of parameter group 1"``.
        """
        for name, interval in self.ranges.items():
            check(self.key(name) + where if where else name, hyper[name], interval)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        """Whether the stage does anything at these values; a neutral stage is left out of the chain."""
        return True

    def remembers(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        """The names in `state` that are in use at these values; the others are not kept and given as None."""
        return self.state

    def remembers_for(self, dtype: torch.dtype) -> bool:
        """Whether it keeps any of that for parameters of this dtype; else it is given None for all of it."""
        return True

    def count(self, scalars: Mapping[str, Any], step: Any, hyper: Mapping[str, Any], lr: Any) -> dict[str, Any]:
        """The new `scalars`, once per parameter and step, before `update`, which is given them as it is `step`."""
        return {}

    def settle(
        self, scalars: Mapping[str, Any], sums: Mapping[str, Any], step: Any, lr: Any, hyper: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The new `scalars` once the sums of `terms`, which was given the old ones, are known.

        With the reach "optimizer" the scalars are the whole optimizer's, settled once per step with the first
        group's hyper-parameters; every parameter's state has them.
        """
        return {}

    def refuses(self, param: Tensor, hyper: Mapping[str, Any]) -> str | None:
        """Why a parameter cannot be stepped at these values, if it cannot: said before anything moves."""
        return "a matrix of complex numbers" if self.reach == "matrix" and param.is_complex() else None

    def size(self, name: str, shape: tuple[int, ...], hyper: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The shape of one of `matrices`, or one number for zeros of it, of a parameter that `matrix` is given in
        this `shape`; None for any. Another one, of a wrong checkpoint, is refused before anything moves.
        """
        return None

    def refuses_beside(self, others: Sequence[tuple["Stage", Mapping[str, Any]]]) -> str | None:
        """Why it cannot be with these stages at their settings: said when the optimizer is made, and of groups."""
        return None

    def initial(self, name: str, param: Tensor) -> Tensor:
        """The state tensor `name` before the first step: shape, dtype and device of `param`.

        One of `matrices` is of any shape, and `param` as `matrix` is given it.
        """
        return torch.zeros_like(param, memory_format=torch.preserve_format)

    def cast(self, tensor: Tensor, param: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        """A state tensor, of this or another stage, in the dtype in which it is kept, at first or when loaded."""
        return tensor

    def before(self, grads: Sequence[Tensor], hyper: Mapping[str, Any]) -> dict[str, Any]:
        """Values computed once per step from all gradients, for the signature of `update` (a global norm)."""
        return {}

    def after(self, state: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Tensor]:
        """State tensors, of this or another stage, to replace at the end of the step.

        Args:
            state: all of the chain's that are in use.
            known: the stage's hyper-parameters, what else its signature may name, and ``new_param``: what the
                parameter has become, before it is rounded to its dtype.
        """
        return {}

    def store(self, state: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Tensor]:
        """State tensors as they are to be stored, those of another stage, too: asked whenever some are written.

        Where a stage reaches further, that is more than once in a step; what was stored must come out unchanged.
        The arguments are those of `after`, but for ``new_param``.
        """
        return {}

    def point(self, param: Tensor, state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> Tensor | None:
        """Where to evaluate the model, if not at the parameter itself: see `Chain.eval`. It changes nothing."""
        return None

    def refuses_lr(self, lr: float, state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> str | None:
        """Why a parameter cannot be stepped at this learning rate; asked before anything moves."""
        return None

    def preconditioner(self, state: Mapping[str, Tensor], step: float, hyper: Mapping[str, Any]) -> Any:
        """By what a direction multiplies the gradient, or its average, as of the last step; None if by nothing."""
        return None

    def joined(self, chain: Sequence["Stage"]) -> "Stage":
        """The stage as it takes part in `chain`; raises `ValueError` where it cannot."""
        return self

    def key(self, name: str) -> str:
        """The name of the hyper-parameter `name` in `param_groups`."""
        return f"{self.prefix}_{name}" if self.prefix else name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.hyper.items())})"


def has_point(stage: Stage) -> bool:
    """Whether a stage says where to evaluate."""
    return type(stage).point is not Stage.point


def select(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where `condition` holds, else `no`: for conditions on the step, a number or a 0-d tensor."""
    if isinstance(condition, Tensor):
        if not isinstance(yes, Tensor) and not isinstance(no, Tensor):
            # Of two plain numbers, torch would make a tensor of its default dtype, which is the user's to choose.
            yes = torch.full((), yes, dtype=torch.float32, device=condition.device)
        return torch.where(condition, yes, no)
    return yes if condition else no
