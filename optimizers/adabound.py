r"""AdaBound and AMSBound: Adam's rates between two bounds that meet (Luo, Xiong, Liu and Sun, 2019)."""

from collections.abc import Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import Betas, moments, nesterov_average
from .engine import Chain, Options, Place, Stage
from .weight_decay import DecoupledWeightDecay, by_group


def rate_bounds(final_lr: float, gamma: float, step: float) -> tuple[float, float]:
    """The bounds on every coordinate's learning rate, which start at (0, ∞) and meet at `final_lr`."""
    # η_l(t) = α* (1 − 1 / (γ t + 1)),     η_u(t) = α* (1 + 1 / (γ t))
    return final_lr * (1 - 1 / (gamma * step + 1)), final_lr * (1 + 1 / (gamma * step))


class AdaBoundStep(Stage):
    """AdaBound's step: the learning rate of each coordinate, clipped, times the average (the authors' code)."""

    place = Place.DIRECTION
    includes_lr = True
    ranges = {
        "betas": "pair [0, 1)",
        "final_lr": "[0, inf)",
        "gamma": "(0, inf)",
        "eps": "[0, inf)",
        "amsbound": "bool",
        "nesterov": "bool",
    }
    state = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    velocity = ("exp_avg",)

    def __init__(
        self,
        betas: Betas = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        amsbound: bool = False,
        nesterov: bool = False,
    ) -> None:
        super().__init__(betas=betas, final_lr=final_lr, gamma=gamma, eps=eps, amsbound=amsbound, nesterov=nesterov)

    def remembers(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        return self.state if hyper["amsbound"] else self.state[:2]

    @staticmethod
    def update(
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        max_exp_avg_sq: Tensor | None,
        step: float,
        lr: float,
        schedule: float,
        betas: Betas,
        final_lr: float,
        gamma: float,
        eps: float,
        nesterov: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        beta1, beta2 = betas
        exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
        second = exp_avg_sq
        if max_exp_avg_sq is not None:
            # AMSBound: the largest v so far
            second = max_exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq)
        # Adam's rate α √(1 − β₂ᵗ) / (1 − β₁ᵗ) / (√v_t + ε), with the corrections of both averages
        rate = lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step) / (second.sqrt() + eps)
        # η_t = Clip(rate, η_l(t), η_u(t)); a scheduler moves the bounds as it moves the learning rate
        lower, upper = rate_bounds(schedule * final_lr, gamma, step)
        rate = rate.clamp(lower, upper)
        # with Nesterov's momentum β₁ m_t + (1 − β₁) g_t for m_t
        average = nesterov_average(grad, exp_avg, beta1, beta1) if nesterov else exp_avg
        # u_t = η_t m_t
        return rate * average, exp_avg, exp_avg_sq, max_exp_avg_sq


class AdaBound(Chain):
    r"""AdaBound: Adam at first, SGD with momentum in the end.

    .. math:: \eta_t = \mathrm{Clip}\left(
        \frac{\alpha \sqrt{1 - \beta_2^t}}{(1 - \beta_1^t) (\sqrt{v_t} + \varepsilon)},
        \; \alpha^* - \frac{\alpha^*}{\gamma t + 1}, \; \alpha^* + \frac{\alpha^*}{\gamma t} \right), \qquad
        \theta_t = \theta_{t-1} - \eta_t m_t

    Algorithm 2 of Luo, Xiong, Liu and Sun (2019) as their code has it: with Adam's corrections inside the clip,
    without the paper's :math:`1/\sqrt t`. Their code scales the bounds with the scheduled learning rate, as here,
    by a list of first learning rates that it makes once: here every group keeps its own.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α of Adam, in [0, ∞); a number or a tensor of one element.
        betas: decay rates (β₁, β₂) of the two averages, each in [0, 1).
        final_lr: α*, the learning rate of SGD, in [0, ∞), before any scheduler; its bounds are multiplied by
            lr / initial_lr.
        gamma: speed γ of the bounds, in (0, ∞): they are within a factor 2 of each other from t = 2.4 / γ on.
        eps: ε, in [0, ∞), in the unit of the gradient, added to the uncorrected root.
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞).
        amsbound: take the largest :math:`v` so far, as AMSGrad does.
        nesterov: β₁ m_t + (1 − β₁) g_t for m_t.
        decoupled_weight_decay: decay by α λ θ past the averages instead, as AdamW does.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsbound: bool = False,
        *,
        nesterov: bool = False,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        direction = AdaBoundStep(betas, final_lr, gamma, eps, amsbound, nesterov)
        super().__init__(params, [*decay, direction], lr=lr, **options)


class AMSBound(Chain):
    r"""AMSBound: AdaBound with the largest :math:`v` so far, as AMSGrad takes it.

    .. math:: \hat v_t = \max(\hat v_{t-1}, v_t)

    for :math:`v_t` in :class:`optimizers.AdaBound`: Algorithm 3 of Luo, Xiong, Liu and Sun (2019), as their
    code has it (``amsbound=True``).

    Args:
        params, lr, betas, final_lr, gamma, eps, weight_decay, nesterov, decoupled_weight_decay: as in
            :class:`optimizers.AdaBound`.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        direction = AdaBoundStep(betas, final_lr, gamma, eps, True, nesterov)
        super().__init__(params, [*decay, direction], lr=lr, **options)


class AdaBoundW(Chain):
    r"""AdaBound with decoupled weight decay.

    .. math:: \theta_t = \theta_{t-1} - \eta_t m_t - \alpha_t \lambda \theta_{t-1}

    :class:`optimizers.AdaBound` with the decay of :class:`optimizers.AdamW` (Loshchilov and Hutter 2019). The
    bounds are on the rate of the gradient; the decay takes α_t or η_t, unclipped. (The authors' own AdaBoundW takes
    λ θ, whatever the learning rate.)

    Args:
        params, lr, betas, final_lr, gamma, eps, amsbound, nesterov: as in :class:`optimizers.AdaBound`.
        weight_decay: λ, in [0, ∞).
        decay: ``"lr"`` for α_t λ θ as in torch's AdamW, ``"schedule"`` for η_t λ θ as in the paper of AdamW.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsbound: bool = False,
        *,
        nesterov: bool = False,
        decay: Literal["lr", "schedule"] = "lr",
        **options: Unpack[Options],
    ) -> None:
        direction = AdaBoundStep(betas, final_lr, gamma, eps, amsbound, nesterov)
        super().__init__(params, [direction, DecoupledWeightDecay(weight_decay, decay)], lr=lr, **options)


class AMSBoundW(Chain):
    r"""AMSBound with decoupled weight decay.

    .. math:: \theta_t = \theta_{t-1} - \eta_t m_t - \alpha_t \lambda \theta_{t-1}

    :class:`optimizers.AMSBound` (Luo et al. 2019) with the decay of :class:`optimizers.AdaBoundW`.

    Args:
        params, lr, betas, final_lr, gamma, eps, weight_decay, nesterov, decay: as in :class:`optimizers.AdaBoundW`.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        nesterov: bool = False,
        decay: Literal["lr", "schedule"] = "lr",
        **options: Unpack[Options],
    ) -> None:
        direction = AdaBoundStep(betas, final_lr, gamma, eps, True, nesterov)
        super().__init__(params, [direction, DecoupledWeightDecay(weight_decay, decay)], lr=lr, **options)
