r"""Gradient noise (Neelakantan et al., 2015)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .engine import SEED, Place, Stage, normal


class GradientNoise(Stage):
    r"""Normal noise, drawn anew for every coordinate and step, on the gradient; it fades as training goes on.

    .. math:: g_t \leftarrow g_t + \mathcal N(0, \sigma_t^2), \qquad \sigma_t^2 = \frac{\eta}{(1 + t)^\gamma}

    Section 3 of Neelakantan et al. (2015); t counts a parameter's steps from 0, so the first noise has variance η.
    It is the variance that is annealed, not the deviation. The noise is added after clipping, as in the paper, and
    before L2 decay, whose gradient is known without noise. What it does to the parameter depends on the
    direction: Adam divides by the root of what the noise, too, has put into its second moment.

    Args:
        eta: η, the variance at the first step, in [0, ∞), in the unit of the gradient squared; 0 adds nothing.
            The paper chose among 0.01, 0.3 and 1.
        gamma: γ, how fast the variance falls, in [0, ∞); 0 for not at all.
        seed: a whole number in [0, 2⁶³); noise is a function of it, the step, the coordinate and the parameter: of
            its name, or of its place among all that are trained together, by one optimizer or by several (see
            `optimizers.engine.identity`).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    place = Place.GRADIENT
    rank = -2
    prefix = "gradient_noise"
    ranges = {"eta": "[0, inf)", "gamma": "[0, inf)", "seed": SEED}

    def __init__(self, eta: float = 0.3, gamma: float = 0.55, seed: int = 0) -> None:
        super().__init__(eta=eta, gamma=gamma, seed=seed)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["eta"] != 0)

    @staticmethod
    def update(
        grad: Tensor, index: int, step: float, coordinate: Tensor, eta: float, gamma: float, seed: int
    ) -> Tensor:
        # σ_t = √(η / (1 + t)^γ), where t = step − 1
        sigma = (eta / step**gamma) ** 0.5
        noise: Tensor = sigma * normal(seed, index, step, coordinate, stream=0)
        # g_t ← g_t + σ_t N(0, 1)
        return grad + noise.to(grad.dtype)
