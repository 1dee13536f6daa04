r"""Lookahead (Zhang, Lucas, Hinton and Ba, 2019)."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from .engine import Chain, Place, Stage, select


class Lookahead(Stage):
    r"""After every k steps, go back part of the way to where they began.

    .. math:: \phi \leftarrow \phi + \alpha (\theta_t - \phi), \quad \theta_t \leftarrow \phi
        \qquad \text{if } k \mid t

    Algorithm 1 of Zhang, Lucas, Hinton and Ba (2019). The slow weights φ start at θ₀, the parameter before its
    first step, and move in the same call as every k-th step; they are the state ``slow_param``. Where a checkpoint
    has none, they start at the parameter as it then is. t counts a parameter's own steps.

    Args:
        k: steps between two syncs, a whole number in [1, ∞); None or ``math.inf`` for never.
        alpha: α, in (0, 1]; 1 leaves the parameter where it is, so that nothing is done and nothing remembered.
        inner: what a sync does to the direction's velocity (Adam's ``exp_avg``, not its second moment): ``"keep"``
            it, ``"reset"`` it to 0, or ``"average"`` it as the weights are, with a slow velocity that starts at 0.
            (Of a parameter group of AggMo with more velocities than the optimizer's ``betas``, the first ones.)
            In the paper and its code, these are called maintain, reset and interpolate (or pullback).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        ValueError: (when the optimizer is made) `inner` is not ``"keep"``, and the direction has no velocity.
    """

    place = Place.PARAMETERS
    sparse = "whole"
    prefix = "lookahead"
    ranges = {"k": f"int [1, {2**31}) or None", "alpha": "(0, 1]", "inner": "keep | reset | average"}
    state: tuple[str, ...] = ("slow_param",)
    direction: str | None = None  # of the chain that the stage is part of

    def __init__(
        self,
        k: int | float | None = 5,
        alpha: float = 0.5,
        inner: Literal["keep", "reset", "average"] = "keep",
    ) -> None:
        super().__init__(k=k, alpha=alpha, inner=inner)

    def check(self, hyper: Mapping[str, Any], where: str = "") -> None:
        never = isinstance(hyper["k"], float) and hyper["k"] == math.inf
        super().check({**hyper, "k": None if never else hyper["k"]}, where)
        if hyper["inner"] != "keep" and self.direction is not None and not self.velocity:
            raise ValueError(f"inner={hyper['inner']!r}{where} needs a velocity, but {self.direction} has none")

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return hyper["k"] not in (None, math.inf) and bool(hyper["alpha"] != 1)

    def joined(self, chain: Sequence[Stage]) -> Stage:
        stage = copy.copy(self)
        directions = [other for other in chain if other.place is Place.DIRECTION]  # several in a Partition
        stage.direction = " and ".join(map(repr, directions)) or "a chain without a direction"
        stage.velocity = ()
        for other in directions:
            used = other.remembers(other.hyper) if other.applies(other.hyper) else ()
            stage.velocity += tuple(name for name in other.velocity if name in used)
        stage.check(stage.hyper)
        stage.state = ("slow_param", *(f"slow_{name}" for name in stage.velocity))
        return stage

    def remembers(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        return self.state if hyper["inner"] == "average" else self.state[:1]

    def initial(self, name: str, param: Tensor) -> Tensor:
        # φ_0 = θ_0
        return param.clone() if name == "slow_param" else super().initial(name, param)

    @staticmethod
    def update(fast: Tensor, memory: tuple[Tensor, ...], step: float, k: int, alpha: float) -> tuple[Tensor, ...]:
        slow, *slow_velocities = memory
        sync = step % k == 0
        # φ ← φ + α (θ_t − φ) at every k-th step
        slow = select(sync, slow + alpha * (fast - slow), slow)
        # θ_t ← φ
        return select(sync, slow, fast), slow, *slow_velocities

    def after(self, state: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Tensor]:
        new: dict[str, Tensor] = {}
        sync = known["step"] % known["k"] == 0
        # A parameter group may do without: SGD's with momentum 0 keeps no velocity, and there is nothing to reset.
        for name in [name for name in self.velocity if name in state] if known["inner"] != "keep" else ():
            velocity = state[name]
            if known["inner"] == "reset":
                new[name] = select(sync, torch.zeros_like(velocity), velocity)
            else:
                slow = state[f"slow_{name}"]
                # both velocities ← slow + α (fast − slow)
                mean = slow + known["alpha"] * (velocity - slow)
                new |= {name: select(sync, mean, velocity), f"slow_{name}": select(sync, mean, slow)}
        return new

    def point(self, param: Tensor, state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> Tensor:
        # φ is what the paper evaluates
        return state["slow_param"]

    @staticmethod
    @contextmanager
    def slow_weights(optimizer: Chain) -> Iterator[None]:
        """Put the slow weights in the parameters' place: ``with Lookahead.slow_weights(optimizer): evaluate()``.

        They are what the paper evaluates. A parameter that has none yet, or whose group does without Lookahead,
        stays as it is. On leaving, also by an exception, the parameters are again what they were. It is
        :meth:`optimizers.Chain.averaged`, of an optimizer that must have slow weights.

        Raises:
            ValueError: the optimizer has no Lookahead.
        """
        if not any(isinstance(stage, Lookahead) for stage in optimizer._stages):
            raise ValueError(f"{type(optimizer).__name__} has no Lookahead among its extensions")
        with optimizer.averaged():
            yield
