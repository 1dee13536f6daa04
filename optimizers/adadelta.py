r"""Adadelta (Zeiler, 2012)."""

from typing import Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .engine import Chain, Options, Place, Stage
from .weight_decay import by_group


class AdadeltaDirection(Stage):
    """The gradient times RMS[Δx]_{t−1} / RMS[g]_t: Algorithm 1 of Zeiler (2012)."""

    place = Place.DIRECTION
    ranges = {"rho": "[0, 1]", "eps": "[0, inf)"}
    state = ("square_avg", "acc_delta")

    def __init__(self, rho: float = 0.9, eps: float = 1e-6) -> None:
        super().__init__(rho=rho, eps=eps)

    @staticmethod
    def update(
        grad: Tensor, square_avg: Tensor, acc_delta: Tensor, rho: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # E[g²]_t = ρ E[g²]_{t−1} + (1 − ρ) g_t²
        square_avg = rho * square_avg + (1 - rho) * grad**2
        # Δx_t = RMS[Δx]_{t−1} / RMS[g]_t · g_t, where RMS[y] = √(E[y²] + ε); the paper's Δx has the opposite sign
        delta = (acc_delta + eps).sqrt() / (square_avg + eps).sqrt() * grad
        # E[Δx²]_t = ρ E[Δx²]_{t−1} + (1 − ρ) Δx_t²
        acc_delta = rho * acc_delta + (1 - rho) * delta**2
        return delta, square_avg, acc_delta


class Adadelta(Chain):
    r"""Adadelta, a drop-in replacement for `torch.optim.Adadelta`.

    .. math:: \theta_t = \theta_{t-1} - \alpha\, \frac{\mathrm{RMS}[\Delta x]_{t-1}}{\mathrm{RMS}[g]_t}\, g_t,
        \qquad \mathrm{RMS}[y] = \sqrt{E[y^2] + \varepsilon}

    Algorithm 1 of Zeiler (2012), which has no learning rate: α = 1. Its size is set by ε instead: the first step is
    :math:`\sqrt{\varepsilon / (1 - \rho)}` whatever the gradient, if that is not small.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: α, in [0, ∞), 1 in the paper; a number or a tensor of one element.
        rho: decay rate ρ of both averages, in [0, 1]; 0.95 in the paper.
        eps: ε, in [0, ∞), under both roots.
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞).
        decoupled_weight_decay: decay by α λ θ past the averages instead, as AdamW does.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        super().__init__(params, [*decay, AdadeltaDirection(rho, eps)], lr=lr, **options)
