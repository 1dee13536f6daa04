r"""Adam and Adamax (Kingma and Ba, 2015), and what the whole Adam family shares."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .engine import Chain, Options, Place, Stage
from .weight_decay import by_group

Betas = tuple[float, float]


def moments(grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, betas: Betas) -> tuple[Tensor, Tensor]:
    """The moving averages of the gradient and of its square, m_t and v_t."""
    beta1, beta2 = betas
    # m_t = β₁ m_{t−1} + (1 − β₁) g_t
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    # v_t = β₂ v_{t−1} + (1 − β₂) g_t²
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    return exp_avg, exp_avg_sq


def nesterov_average(
    grad: Tensor, exp_avg: Tensor, mu: float, mu_next: float, bias: float = 1.0, bias_next: float = 1.0
) -> Tensor:
    """Nesterov's combination of the average and the gradient, which replaces m̂_t (Dozat 2016, section 2).

    Without its denominator, Adam moves by m̂_t = μ_t m_{t−1} / (1 − Π_t) + (1 − μ_t) g_t / (1 − Π_t), where
    Π_t = μ_1 ⋯ μ_t. As Nesterov's momentum does, Nadam applies already now the momentum that the next step would
    apply: in the first term it puts m_t, μ_{t+1} and Π_{t+1} for m_{t−1}, μ_t and Π_t.

    Args:
        mu, mu_next: μ_t and μ_{t+1}.
        bias, bias_next: 1 − Π_t and 1 − Π_{t+1}; 1 for averages that are not corrected for their bias.
    """
    # m̄_t = μ_{t+1} m_t / (1 − Π_{t+1}) + (1 − μ_t) g_t / (1 − Π_t)
    return mu_next / bias_next * exp_avg + (1 - mu) / bias * grad


def first_moment(grad: Tensor, exp_avg: Tensor, beta1: float, step: float, nesterov: bool) -> Tensor:
    """m̂_t, or with Nesterov's momentum m̄_t at μ_t = β₁ for every t (as optax writes it)."""
    if nesterov:
        # m̄_t = β₁ m_t / (1 − β₁ᵗ⁺¹) + (1 − β₁) g_t / (1 − β₁ᵗ)
        return nesterov_average(grad, exp_avg, beta1, beta1, 1 - beta1**step, 1 - beta1 ** (step + 1))
    # m̂_t = m_t / (1 − β₁ᵗ)
    average: Tensor = exp_avg / (1 - beta1**step)
    return average


def inverse_root(v: Tensor, eps: float) -> Tensor:
    """1 / (√v + ε), by which an average of gradients is multiplied."""
    return 1 / (v.sqrt() + eps)


class AdamDirection(Stage):
    """Adam's direction m̂_t / (√v̂_t + ε): Algorithm 1 of Kingma and Ba (2015), less the learning rate."""

    place = Place.DIRECTION
    ranges = {"betas": "pair [0, 1)", "eps": "[0, inf)", "amsgrad": "bool", "nesterov": "bool"}
    state = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    velocity = ("exp_avg",)
    #: whether m_t is kept where β₁ is 0 and it is the gradient's copy, as torch.optim's checkpoints have it
    keeps_copy = True

    def __init__(
        self, betas: Betas = (0.9, 0.999), eps: float = 1e-8, amsgrad: bool = False, nesterov: bool = False
    ) -> None:
        super().__init__(betas=betas, eps=eps, amsgrad=amsgrad, nesterov=nesterov)

    def joined(self, chain: Sequence[Stage]) -> Stage:
        if not any(other.averages for other in chain):
            return self
        stage = copy.copy(self)
        stage.keeps_copy = False
        return stage

    def remembers(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        names = self.state if hyper["amsgrad"] else self.state[:2]
        return names if self.keeps_copy or hyper["betas"][0] != 0 else names[1:]

    @staticmethod
    def update(
        grad: Tensor,
        exp_avg: Tensor | None,
        exp_avg_sq: Tensor,
        max_exp_avg_sq: Tensor | None,
        step: float,
        betas: Betas,
        eps: float,
        amsgrad: bool,
        nesterov: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        beta1, beta2 = betas
        average, exp_avg_sq = moments(grad, grad if exp_avg is None else exp_avg, exp_avg_sq, betas)
        exp_avg = None if exp_avg is None else average
        exp_avg_hat = first_moment(grad, average, beta1, step, nesterov)
        largest = exp_avg_sq
        if amsgrad:
            assert max_exp_avg_sq is not None
            # torch's reading of AMSGrad: the largest v so far, corrected as if it were v_t
            largest = max_exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq)
        # v̂_t = v_t / (1 − β₂ᵗ)
        exp_avg_sq_hat = largest / (1 - beta2**step)
        # d_t = m̂_t / (√v̂_t + ε)
        return exp_avg_hat / (exp_avg_sq_hat.sqrt() + eps), exp_avg, exp_avg_sq, max_exp_avg_sq

    def preconditioner(self, state: Mapping[str, Tensor], step: float, hyper: Mapping[str, Any]) -> Tensor:
        v = state["max_exp_avg_sq" if hyper["amsgrad"] else "exp_avg_sq"]
        return inverse_root(v / (1 - hyper["betas"][1] ** step), hyper["eps"])


class AdamaxDirection(Stage):
    """Adamax's direction m̂_t / u_t: Algorithm 2 of Kingma and Ba (2015), less the learning rate."""

    place = Place.DIRECTION
    ranges = {"betas": "pair [0, 1)", "eps": "[0, inf)", "nesterov": "bool"}
    state = ("exp_avg", "exp_inf")
    velocity = ("exp_avg",)

    def __init__(self, betas: Betas = (0.9, 0.999), eps: float = 1e-8, nesterov: bool = False) -> None:
        super().__init__(betas=betas, eps=eps, nesterov=nesterov)

    @staticmethod
    def update(
        grad: Tensor, exp_avg: Tensor, exp_inf: Tensor, step: float, betas: Betas, eps: float, nesterov: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        beta1, beta2 = betas
        # m_t = β₁ m_{t−1} + (1 − β₁) g_t
        exp_avg = beta1 * exp_avg + (1 - beta1) * grad
        # u_t = max(β₂ u_{t−1}, |g_t| + ε); the paper has no ε: torch's keeps the first gradient 0 from giving 0/0
        exp_inf = torch.maximum(beta2 * exp_inf, grad.abs() + eps)
        # d_t = m̂_t / u_t
        return first_moment(grad, exp_avg, beta1, step, nesterov) / exp_inf, exp_avg, exp_inf


class Adam(Chain):
    r"""Adam, a drop-in replacement for `torch.optim.Adam`.

    .. math:: \theta_t = \theta_{t-1} - \alpha\, \frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon}

    with :math:`\hat m_t` and :math:`\hat v_t` the bias-corrected exponential moving averages of the gradient and
    of its square: Algorithm 1 of Kingma and Ba (2015), in the form with ε (not the ε̂ of their section 2).

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        betas: decay rates (β₁, β₂) of the two averages, each in [0, 1).
        eps: ε, in [0, ∞), in the unit of the gradient.
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞).
        amsgrad: torch's reading of AMSGrad, which takes the largest :math:`v` so far and corrects it as if it were
            :math:`v_t`; for the paper's see :class:`optimizers.AMSGrad`.
        nesterov: Nesterov's momentum with constant β₁, :math:`\bar m_t = \beta_1 m_t / (1 - \beta_1^{t+1}) +
            (1 - \beta_1) g_t / (1 - \beta_1^t)` for :math:`\hat m_t` (Dozat 2016): ``NAdam(momentum_decay=None)``.
        decoupled_weight_decay: decay by α λ θ past the averages instead, as AdamW does.
        options: ``extensions`` and torch's ``maximize``, ``foreach``, ``capturable``, ``differentiable`` and
            ``fused``; see :class:`optimizers.Chain`.

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
        amsgrad: bool = False,
        *,
        nesterov: bool = False,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        super().__init__(params, [*decay, AdamDirection(betas, eps, amsgrad, nesterov)], lr=lr, **options)


class Adamax(Chain):
    r"""Adamax, a drop-in replacement for `torch.optim.Adamax`.

    .. math:: u_t = \max(\beta_2 u_{t-1}, |g_t| + \varepsilon), \qquad
        \theta_t = \theta_{t-1} - \alpha\, \frac{\hat m_t}{u_t}

    Adam with the infinity norm for the second moment: Algorithm 2 of Kingma and Ba (2015), which has no ε.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        betas: decay rates (β₁, β₂) of the average and of the norm, each in [0, 1).
        eps: ε, in [0, ∞), in the unit of the gradient; it keeps a first gradient of 0 from giving 0/0.
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞).
        nesterov: Nesterov's momentum in the average, as in :class:`optimizers.Adam`.
        decoupled_weight_decay: decay by α λ θ past the average instead, as AdamW does.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        super().__init__(params, [*decay, AdamaxDirection(betas, eps, nesterov)], lr=lr, **options)
