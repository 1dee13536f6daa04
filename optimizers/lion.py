r"""Lion: evolved sign momentum (Chen et al., 2023)."""

from typing import Literal, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import Betas
from .engine import Chain, Options, Place, Stage
from .weight_decay import DecoupledWeightDecay


class LionDirection(Stage):
    """The sign of a mix of average and gradient (Chen et al. 2023, Algorithm 2), less the learning rate."""

    place = Place.DIRECTION
    ranges = {"betas": "pair [0, 1)"}
    state = ("exp_avg",)
    velocity = state

    def __init__(self, betas: Betas = (0.9, 0.99)) -> None:
        super().__init__(betas=betas)

    @staticmethod
    def update(grad: Tensor, exp_avg: Tensor, betas: Betas) -> tuple[Tensor, Tensor]:
        beta1, beta2 = betas
        # d_t = sign(β₁ m_{t−1} + (1 − β₁) g_t), and sign(0) = 0
        direction = (beta1 * exp_avg + (1 - beta1) * grad).sign()
        # m_t = β₂ m_{t−1} + (1 − β₂) g_t
        exp_avg = beta2 * exp_avg + (1 - beta2) * grad
        return direction, exp_avg


class Lion(Chain):
    r"""Lion: every coordinate moves by the learning rate, up, down or not at all.

    .. math:: \theta_t = \theta_{t-1} - \alpha_t \left( \mathrm{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t)
        + \lambda \theta_{t-1} \right), \qquad m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Algorithm 2 of Chen et al. (2023), and their code. The average that is kept is slower than the one that is
    stepped along; with β₁ = β₂ it is :class:`optimizers.Signum`. Decay brings every coordinate into
    :math:`|\theta_i| \le 1 / \lambda`. The authors take a third to a tenth of AdamW's learning rate, and a λ that
    is larger by as much: their product stays.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞), in the unit of the parameter; a number or a tensor of one element.
        betas: (β₁, β₂), the average's share of the step and its decay rate, each in [0, 1); (0.95, 0.98) is the
            paper's choice for language models.
        weight_decay: λ, in [0, ∞).
        decay: ``"lr"`` for α_t λ θ as in the paper, ``"schedule"`` for η_t λ θ as in the paper of AdamW.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        decay: Literal["lr", "schedule"] = "lr",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params, [LionDirection(betas), DecoupledWeightDecay(weight_decay, decay)], lr=lr, **options
        )
