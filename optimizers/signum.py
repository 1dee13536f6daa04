r"""Signum and signSGD (Bernstein, Wang, Azizzadenesheli and Anandkumar, 2018)."""

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .engine import Chain, Options, Place, Stage
from .weight_decay import by_group


class SignDirection(Stage):
    """The sign of the gradient's average (Bernstein et al. 2018, Algorithms 1 and 2), less the learning rate."""

    place = Place.DIRECTION
    ranges = {"momentum": "[0, 1)"}
    state = ("momentum_buffer",)
    velocity = state

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__(momentum=momentum)

    def remembers(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        return self.state if hyper["momentum"] != 0 else ()

    @staticmethod
    def update(grad: Tensor, momentum_buffer: Tensor | None, momentum: float) -> tuple[Tensor, Tensor | None]:
        if momentum_buffer is None:
            # signSGD: d_t = sign(g_t), and sign(0) = 0
            return grad.sign(), None
        # m_t = β m_{t−1} + (1 − β) g_t
        momentum_buffer = momentum * momentum_buffer + (1 - momentum) * grad
        # Signum: d_t = sign(m_t)
        return momentum_buffer.sign(), momentum_buffer


class Signum(Chain):
    r"""Signum, and without momentum signSGD: every coordinate moves by the learning rate, or not at all.

    .. math:: m_t = \beta m_{t-1} + (1 - \beta) g_t, \qquad \theta_t = \theta_{t-1} - \alpha\, \mathrm{sign}(m_t)

    Algorithm 2 of Bernstein et al. (2018), and with ``momentum=0`` their Algorithm 1. The average is not corrected
    for its bias: a sign has none. ``Lion(betas=(β, β))`` is the same rule.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α (δ in the paper), in [0, ∞), in the unit of the parameter; a number or a tensor of one
            element.
        momentum: β, in [0, 1).
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞); it can turn a sign, whatever its size.
        decoupled_weight_decay: decay by α λ θ past the sign instead, as AdamW does.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        super().__init__(params, [*decay, SignDirection(momentum)], lr=lr, **options)
