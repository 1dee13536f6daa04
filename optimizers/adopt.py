r"""ADOPT: Adam that converges with any β₂ (Taniguchi et al., 2024)."""

import math
from typing import Any, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import Betas
from .engine import Chain, Options, Place, Stage, select
from .weight_decay import DecoupledByGroup, L2ByGroup


class ADOPTDirection(Stage):
    """The average of g_t / max(√v_{t−1}, ε) (Taniguchi et al. 2024, Algorithm 2), less the learning rate."""

    place = Place.DIRECTION
    ranges = {"betas": "pair [0, 1)", "eps": "[0, inf)", "clip": "bool"}
    state = ("exp_avg", "exp_avg_sq")
    velocity = ("exp_avg",)

    def __init__(self, betas: Betas = (0.9, 0.9999), eps: float = 1e-6, clip: bool = True) -> None:
        super().__init__(betas=betas, eps=eps, clip=clip)

    @staticmethod
    def update(
        grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: float, betas: Betas, eps: float, clip: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        beta1, beta2 = betas
        # c_t = t^{1/4}, where t = 0 is the first gradient, which moves nothing: v_0 = g_0²
        limit = (step - 1) ** 0.25 if clip else select(step > 1, math.inf, 0.0)
        # r_t = Clip(g_t / max(√v_{t−1}, ε), c_t): v_{t−1} has not seen g_t
        ratio = (grad / exp_avg_sq.sqrt().clamp(min=eps)).clamp(-limit, limit)
        # m_t = β₁ m_{t−1} + (1 − β₁) r_t
        exp_avg = beta1 * exp_avg + (1 - beta1) * ratio
        # v_t = β₂ v_{t−1} + (1 − β₂) g_t²
        beta2 = select(step > 1, beta2, 0.0)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
        return exp_avg, exp_avg, exp_avg_sq


class DecayAfterFirst(DecoupledByGroup):
    """Decoupled decay, but for the first step, which moves nothing."""

    @staticmethod
    def update(  # type: ignore[override]
        update: Tensor, param: Tensor, lr: float, step: float, weight_decay: float
    ) -> Any:
        # u_t ← u_t + α_t λ θ_{t−1}, t > 0
        return update + select(step > 1, lr * weight_decay, 0.0) * param


class ADOPT(Chain):
    r"""ADOPT: the denominator does not know the gradient that it divides, and the average comes after the division.

    .. math:: m_t = \beta_1 m_{t-1} + (1 - \beta_1)\,
        \mathrm{Clip}\left( \frac{g_t}{\max(\sqrt{v_{t-1}}, \varepsilon)},\; t^{1/4} \right), \qquad
        \theta_t = \theta_{t-1} - \alpha m_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2

    Algorithm 2 of Taniguchi et al. (2024), as their code has it today. The first gradient only makes
    :math:`v_0 = g_0^2`, and nothing moves, by decay neither. No average is corrected for its bias: under a constant
    gradient the steps grow as :math:`1 - \beta_1^t`.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        betas: decay rates (β₁, β₂) of the two averages, each in [0, 1).
        eps: ε, in [0, ∞), in the unit of the gradient: the least denominator.
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞).
        clip: False for the paper's Algorithm 1, without the clip: a coordinate whose first gradient was near 0 may
            then take a step of α (1 − β₁) / ε times the second.
        decoupled_weight_decay: decay by α λ θ past the averages instead, as AdamW does.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.9999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        clip: bool = True,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        stages = [kind(weight_decay, decoupled_weight_decay) for kind in (L2ByGroup, DecayAfterFirst)]
        super().__init__(params, [*stages, ADOPTDirection(betas, eps, clip)], lr=lr, **options)
