r"""Averages of the iterates: exponential, and that of Polyak and Juditsky (1992)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .engine import Place, Stage, select


class Average(Stage):
    r"""Remember an average of the parameters to evaluate at; the training itself is the same without it.

    .. math:: \bar\theta_n = \bar\theta_{n-1} + c_n (\theta_n - \bar\theta_{n-1}), \qquad c_1 = 1

    with :math:`c_n = 1 - d` for the exponential average of decay d, which the first iterate then has too large a
    part in, :math:`c_n = (1 - d) / (1 - d^n)` for the same without this bias, and :math:`c_n = 1 / n` for the mean
    of all iterates (Polyak and Juditsky 1992). `optimizer.averaged()`, or `optimizer.eval()`, evaluates there.

    The iterates are the parameters after each step, n of them so far: θ₀ is not one. Without debias it is what
    `torch.optim.swa_utils.AveragedModel` computes if it is updated after every step, with
    ``get_ema_multi_avg_fn(decay)``, or, for None, with its own default. It is kept in the parameters' dtype.

    Args:
        decay: d, in [0, 1); 0 averages nothing; None for the mean of all iterates.
        debias: weigh the iterates by :math:`d^{n-i}` alone, the first one, too.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        ValueError: (when the optimizer is made) another stage says where to evaluate, too.
    """

    place = Place.PARAMETERS
    rank = 9  # what is averaged is where the step ends
    sparse = "whole"
    prefix = "average"
    ranges = {"decay": "[0, 1) or None", "debias": "bool"}
    state = ("average",)
    scalars = {"n_averaged": 0.0}

    def __init__(self, decay: float | None = 0.999, debias: bool = False) -> None:
        super().__init__(decay=decay, debias=debias)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["decay"] != 0)

    def count(self, scalars: Mapping[str, Any], step: Any, hyper: Mapping[str, Any], lr: Any) -> dict[str, Any]:
        return {"n_averaged": scalars["n_averaged"] + 1}

    @staticmethod
    def update(
        param: Tensor, average: Tensor, n_averaged: float, decay: float | None, debias: bool
    ) -> tuple[Tensor, Tensor]:
        if decay is None:
            # c_n = 1 / n
            weight = 1 / n_averaged
        elif debias:
            # c_n = (1 − d) / (1 − dⁿ)
            weight = (1 - decay) / (1 - decay**n_averaged)
        else:
            # c_1 = 1, then c_n = 1 − d
            weight = select(n_averaged == 1, 1.0, 1 - decay)
        # θ̄_n = θ̄_{n−1} + c_n (θ_n − θ̄_{n−1})
        return param, average + weight * (param - average)

    def point(self, param: Tensor, state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> Tensor:
        return state["average"]
