r"""Lookahead (Zhang, Lucas, Hinton and Ba, 2019)."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .stage import Place, Stage, select

if TYPE_CHECKING:
    from .chain import Chain


class Lookahead(Stage):
    r"""After every k steps, go back part of the way to where they began.

    .. math:: \phi \leftarrow \phi + \alpha (\theta_t - \phi), \quad \theta_t \leftarrow \phi
        \qquad \text{if } k \mid t

    Algorithm 1 of Zhang, Lucas, Hinton and Ba (2019). The slow weights φ start at θ₀, the parameter before its
    first step, and move in the same call as every k-th step; they are the state ``slow_param``. A checkpoint without
    them is fine: they start at the parameter as it then is. t counts a parameter's own steps.

    Args:
        k: steps between two syncs, a whole number in [1, ∞); None or ``math.inf`` for never.
        alpha: α, in (0, 1]; 1 leaves the parameter where it is, so that nothing is done and nothing remembered.
        inner: what a sync does to the direction's velocity (Adam's ``exp_avg``, not its second moment): ``"keep"``
            it, ``"reset"`` it to 0, or ``"average"`` it as the weights are, with a slow velocity that starts at 0.
            In the paper and its code, these are called maintain, reset and interpolate (or pullback).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        ValueError: (when the optimizer is made) `inner` is not ``"keep"``, and the direction has no velocity.
    """

    place = Place.PARAMETERS
    prefix = "lookahead"
    ranges = {"k": f"int [1, {2**31}) or None", "alpha": "(0, 1]", "inner": "keep | reset | average"}
    state = ("slow_param",)

    def __init__(
        self,
        k: int | float | None = 5,
        alpha: float = 0.5,
        inner: Literal["keep", "reset", "average"] = "keep",
    ) -> None:
        super().__init__(k=k, alpha=alpha, inner=inner)

    @classmethod
    def check(cls, hyper: Mapping[str, Any], where: str = "") -> None:
        super().check({**hyper, "k": None if hyper["k"] == math.inf else hyper["k"]}, where)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return hyper["k"] not in (None, math.inf) and bool(hyper["alpha"] != 1)

    def joined(self, chain: Sequence[Stage]) -> Stage:
        directions = [stage for stage in chain if stage.place is Place.DIRECTION]
        stage = copy.copy(self)
        stage.velocity = tuple(name for d in directions if d.applies(d.hyper) for name in d.velocity_in_use())
        return stage
