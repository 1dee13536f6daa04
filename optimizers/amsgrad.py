r"""AMSGrad (Reddi, Kale and Kumar, 2018), as the paper has it."""

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import Betas, inverse_root, moments, nesterov_average
from .engine import Chain, Options, Place, Stage
from .weight_decay import by_group


class AMSGradDirection(Stage):
    """AMSGrad's direction m_t / √v̂_t: Algorithm 2 of Reddi, Kale and Kumar (2018), less the learning rate."""

    place = Place.DIRECTION
    ranges = {"betas": "pair [0, 1)", "eps": "[0, inf)", "nesterov": "bool"}
    state = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    velocity = ("exp_avg",)

    def __init__(self, betas: Betas = (0.9, 0.999), eps: float = 1e-8, nesterov: bool = False) -> None:
        super().__init__(betas=betas, eps=eps, nesterov=nesterov)

    @staticmethod
    def update(
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        max_exp_avg_sq: Tensor,
        betas: Betas,
        eps: float,
        nesterov: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        beta1, _ = betas
        exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
        # v̂_t = max(v̂_{t−1}, v_t)
        max_exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq)
        # with Nesterov's momentum β₁ m_t + (1 − β₁) g_t for m_t
        average = nesterov_average(grad, exp_avg, beta1, beta1) if nesterov else exp_avg
        # d_t = m_t / √v̂_t, and ε for a gradient that was always 0
        return average / (max_exp_avg_sq.sqrt() + eps), exp_avg, exp_avg_sq, max_exp_avg_sq

    def preconditioner(self, state: Mapping[str, Tensor], step: float, hyper: Mapping[str, Any]) -> Tensor:
        return inverse_root(state["max_exp_avg_sq"], hyper["eps"])


class AMSGrad(Chain):
    r"""AMSGrad as published: the denominator never shrinks.

    .. math:: \hat v_t = \max(\hat v_{t-1}, v_t), \qquad
        \theta_t = \theta_{t-1} - \alpha\, \frac{m_t}{\sqrt{\hat v_t} + \varepsilon}

    Algorithm 2 of Reddi, Kale and Kumar (2018), whose averages are *not* corrected for their bias; ε is added for
    gradients of 0, and the projection onto a feasible set is left to the user. What torch calls
    ``Adam(amsgrad=True)`` is another rule, under that name here, too: there the largest :math:`v` is divided by
    :math:`1 - \beta_2^t`, so that after a large first gradient the denominator shrinks by up to
    :math:`1 / \sqrt{1 - \beta_2}` while :math:`t` grows.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element; in the theory it falls as 1/√t.
        betas: decay rates (β₁, β₂) of the two averages, each in [0, 1); the theory needs β₁ < √β₂.
        eps: ε, in [0, ∞), in the unit of the gradient; 0 in the paper.
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞).
        nesterov: β₁ m_t + (1 − β₁) g_t for m_t, as in :class:`optimizers.Adam` but not corrected either.
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
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        super().__init__(params, [*decay, AMSGradDirection(betas, eps, nesterov)], lr=lr, **options)
