r"""Adam (Kingma and Ba, 2015)."""

from typing import Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .chain import Chain, Options
from .stage import Place, Stage
from .weight_decay import L2


class AdamDirection(Stage):
    """Adam's direction m̂_t / (√v̂_t + ε): Algorithm 1 of Kingma and Ba (2015), less the learning rate."""

    place = Place.DIRECTION
    ranges = {"betas": "[0, 1)", "eps": "[0, inf)"}
    state = ("exp_avg", "exp_avg_sq")

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(betas=betas, eps=eps)

    @staticmethod
    def update(
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        step: float,
        betas: tuple[float, float],
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        beta1, beta2 = betas
        # m_t = β₁ m_{t−1} + (1 − β₁) g_t
        exp_avg = beta1 * exp_avg + (1 - beta1) * grad
        # v_t = β₂ v_{t−1} + (1 − β₂) g_t²
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
        # m̂_t = m_t / (1 − β₁ᵗ)
        exp_avg_hat = exp_avg / (1 - beta1**step)
        # v̂_t = v_t / (1 − β₂ᵗ)
        exp_avg_sq_hat = exp_avg_sq / (1 - beta2**step)
        # d_t = m̂_t / (√v̂_t + ε)
        return exp_avg_hat / (exp_avg_sq_hat.sqrt() + eps), exp_avg, exp_avg_sq


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
        weight_decay: coefficient λ of the coupled L2 penalty, in [0, ∞). For decoupled decay see AdamW.
        options: ``extensions`` and torch's ``maximize``, ``foreach``, ``capturable``, ``differentiable`` and
            ``fused``; see :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, [L2(weight_decay), AdamDirection(betas, eps)], lr=lr, **options)
