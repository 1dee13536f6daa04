r"""RAdam and RAdamW: rectified Adam (Liu et al., 2020)."""

from typing import Any, Literal, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import Betas, first_moment, moments
from .engine import Chain, Options, Place, Stage, select
from .weight_decay import DecoupledWeightDecay, by_group


def sma_length(beta2: float, step: float) -> tuple[float, float]:
    """The length ρ_t of the simple average that weighs the past as v̂_t does, and its limit ρ_∞."""
    # ρ_∞ = 2 / (1 − β₂) − 1
    rho_inf = 2 / (1 - beta2) - 1
    # ρ_t = ρ_∞ − 2 t β₂ᵗ / (1 − β₂ᵗ)
    return rho_inf - 2 * step * beta2**step / (1 - beta2**step), rho_inf


def rectification(rho_t: float, rho_inf: float, rectified: Any) -> Any:
    """The factor r_t that gives the adaptive learning rate its final variance; 1 while it is not rectified."""
    # r_t = √[ (ρ_t − 4)(ρ_t − 2) ρ_∞ / ((ρ_∞ − 4)(ρ_∞ − 2) ρ_t) ]
    square = (rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t)
    return select(rectified, square, 1.0) ** 0.5


class RAdamDirection(Stage):
    """RAdam's direction r_t m̂_t / √v̂_t: Algorithm 2 of Liu et al. (2020), less the learning rate."""

    place = Place.DIRECTION
    ranges = {"betas": "pair [0, 1)", "eps": "[0, inf)", "threshold": "[4, inf)", "nesterov": "bool"}
    state = ("exp_avg", "exp_avg_sq")
    velocity = ("exp_avg",)

    def __init__(
        self,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        threshold: float = 5.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(betas=betas, eps=eps, threshold=threshold, nesterov=nesterov)

    @staticmethod
    def update(
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        step: float,
        betas: Betas,
        eps: float,
        threshold: float,
        nesterov: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        beta1, beta2 = betas
        exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
        exp_avg_hat = first_moment(grad, exp_avg, beta1, step, nesterov)
        rho_t, rho_inf = sma_length(beta2, step)
        # ρ_t < ρ_∞ never gets there (as plain numbers, where 1 / (ρ_∞ − 4) may not exist)
        if (rho_inf <= threshold) is True:
            return exp_avg_hat, exp_avg, exp_avg_sq
        rectified = rho_t > threshold
        # l_t = √(1 − β₂ᵗ) / (√v_t + ε)
        adaptive = (1 - beta2**step) ** 0.5 / (exp_avg_sq.sqrt() + eps)
        # d_t = r_t m̂_t l_t while the variance of l_t is tractable, ρ_t > 4 (torch: 5), else d_t = m̂_t
        factor = select(rectified, rectification(rho_t, rho_inf, rectified) * adaptive, 1.0)
        return exp_avg_hat * factor, exp_avg, exp_avg_sq


class RAdam(Chain):
    r"""Rectified Adam, a drop-in replacement for `torch.optim.RAdam`.

    .. math:: \theta_t = \theta_{t-1} - \alpha\, r_t \hat m_t \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v_t} + \varepsilon}
        \quad \text{if } \rho_t > 5, \quad \text{else} \quad \theta_t = \theta_{t-1} - \alpha\, \hat m_t

    with :math:`\rho_t` and :math:`r_t` of equations (3) and (5): Algorithm 2 of Liu et al. (2020), which has no ε
    and rectifies from :math:`\rho_t > 4` on: from step 5 for the usual β₂, from step 6 with torch's 5. Before that
    it makes steps of momentum, in the unit of the gradient.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        betas: decay rates (β₁, β₂) of the two averages, each in [0, 1); never rectified for β₂ ≤ 0.6.
        eps: ε, in [0, ∞), in the unit of the gradient; as in torch it is added to the uncorrected root: it counts
            :math:`1 / \sqrt{1 - \beta_2^t}` times as much as Adam's does, 13 times at t = 6.
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞).
        decoupled_weight_decay: decay by α λ θ past the averages instead, as AdamW does.
        threshold: rectify while ρ_t is above it, in [4, ∞): 5 as in torch, 4 as in the paper.
        nesterov: Nesterov's momentum with constant β₁, as in :class:`optimizers.Adam`.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        threshold: float = 5.0,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        super().__init__(params, [*decay, RAdamDirection(betas, eps, threshold, nesterov)], lr=lr, **options)


class RAdamW(Chain):
    r"""Rectified Adam with decoupled weight decay.

    .. math:: \theta_t = \theta_{t-1} - \alpha_t ( d_t + \lambda \theta_{t-1} )

    with RAdam's direction :math:`d_t`: Algorithm 2 of Liu et al. (2020) with the decay of :class:`optimizers.AdamW`
    (Loshchilov and Hutter 2019). It decays from the first step on, rectified or not.

    Args:
        params, lr, betas, eps, threshold, nesterov: as in :class:`optimizers.RAdam`.
        weight_decay: λ, in [0, ∞).
        decay: ``"lr"`` for α_t λ θ as in torch, ``"schedule"`` for η_t λ θ as in the paper.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        threshold: float = 5.0,
        nesterov: bool = False,
        decay: Literal["lr", "schedule"] = "lr",
        **options: Unpack[Options],
    ) -> None:
        stages = [RAdamDirection(betas, eps, threshold, nesterov), DecoupledWeightDecay(weight_decay, decay)]
        super().__init__(params, stages, lr=lr, **options)
