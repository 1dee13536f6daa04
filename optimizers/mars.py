r"""MARS: gradients of less variance, by the gradient of the step before (Yuan et al., 2024)."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .engine import Place, Stage, select


def corrected(grad: Tensor, last_grad: Tensor, step: float, gamma: float, beta: float) -> Tensor:
    """c_t = g_t + γ β/(1−β) (g_t − g_{t−1}), and c_1 = g_1."""
    change: Tensor = grad - select(step == 1, grad, last_grad)
    return grad + (gamma * beta / (1 - beta)) * change


class MARS(Stage):
    r"""Show the direction a gradient that is corrected by how it has changed since the step before.

    .. math:: c_t = g_t + \gamma \frac{\beta}{1 - \beta} (g_t - g_{t-1}), \qquad
        g_t \leftarrow \frac{c_t}{\max(1, \lVert c_t \rVert)}

    Yuan et al. (2024), in the form that their experiments and their code take, for any direction: MARS-AdamW is
    ``AdamW(params, lr=3e-3, betas=(0.95, 0.99), extensions=[MARS()])``. The g_{t−1} of the theory is the gradient
    of the new batch at the old parameters; here as there it is the last step's own. The norm is that of one tensor.
    The first step has nothing to compare with (θ_0 = θ_1 in the paper): c_1 = g_1, where the authors' code takes 0
    for g_0.

    It comes after clipping, noise and gradient dropout, and before an L2 penalty. What the direction is shown never
    has a norm above 1, which matters to SGD more than to Adam.

    Args:
        gamma: γ, how much of the change counts, in [0, ∞); with 0 there is none, and with ``max_norm=math.inf``
            besides, nothing is done.
        beta: β, in [0, 1): the decay rate of the average that the gradient goes into. None for the direction's β₁
            or momentum, as it is when the optimizer is made.
        max_norm: the norm above which c_t is scaled down to it, in (0, ∞]: 1 in the paper.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        ValueError: (when the optimizer is made) `beta` is None, and there is no β₁ to take for it.
    """

    place = Place.GRADIENT
    reach = "tensor"
    prefix = "mars"
    ranges = {"gamma": "[0, inf)", "beta": "[0, 1) or None", "max_norm": "(0, inf]"}
    state = ("last_grad",)

    def __init__(self, gamma: float = 0.025, beta: float | None = None, max_norm: float = 1.0) -> None:
        super().__init__(gamma=gamma, beta=beta, max_norm=max_norm)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["gamma"] != 0 or hyper["max_norm"] != math.inf)

    def joined(self, chain: Sequence[Stage]) -> Stage:
        if self.hyper["beta"] is not None:
            return self
        directions = [stage for stage in chain if stage.place is Place.DIRECTION]
        betas = {stage.hyper.get("betas", (stage.hyper.get("momentum"),))[0] for stage in directions}
        if len(betas) != 1 or None in betas:
            names = " and ".join(type(stage).__name__ for stage in directions) or "a chain without a direction"
            raise ValueError(f"MARS takes its beta from the direction, but with {names} there is not one: give it")
        stage = copy.copy(self)
        stage.hyper = stage.hyper | {"beta": betas.pop()}
        stage.check(stage.hyper)
        return stage

    @staticmethod
    def terms(grad: Tensor, last_grad: Tensor, step: float, gamma: float, beta: float) -> dict[str, Tensor]:
        return {"norm_sq": corrected(grad, last_grad, step, gamma, beta) ** 2}

    @staticmethod
    def update(
        grad: Tensor, last_grad: Tensor, step: float, norm_sq: float, gamma: float, beta: float, max_norm: float
    ) -> tuple[Tensor, Tensor]:
        c = corrected(grad, last_grad, step, gamma, beta)
        # c_t ← c_t min(1, 1 / ‖c_t‖)
        norm = norm_sq**0.5
        return c * select(norm > max_norm, max_norm / select(norm > 0, norm, 1.0), 1.0), grad.clone()
