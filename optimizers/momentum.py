r"""SGD, with classical and with Nesterov's momentum (Sutskever, Martens, Dahl and Hinton, 2013)."""

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .engine import Chain, Options, Place, Stage, select
from .weight_decay import L2


class Momentum(Stage):
    """The velocity b_t = μ b_{t−1} + g_t (Sutskever et al. 2013, eq. 1–4), with the learning rate outside of it."""

    place = Place.DIRECTION
    sparse = "whole"
    ranges = {"momentum": "[0, inf)", "dampening": "(-inf, inf)", "nesterov": "bool"}
    state = ("momentum_buffer",)
    velocity = state

    def __init__(self, momentum: float = 0.9, dampening: float = 0.0, nesterov: bool = False) -> None:
        super().__init__(momentum=momentum, dampening=dampening, nesterov=nesterov)

    def check(self, hyper: Mapping[str, Any], where: str = "") -> None:
        super().check(hyper, where)
        if hyper["nesterov"] and (hyper["momentum"] == 0 or hyper["dampening"] != 0):
            raise ValueError(
                f"nesterov{where} needs momentum above 0 and dampening 0, "
                f"got momentum={hyper['momentum']!r}, dampening={hyper['dampening']!r}"
            )

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["momentum"] != 0)

    @staticmethod
    def update(
        grad: Tensor,
        momentum_buffer: Tensor,
        step: float,
        momentum: float,
        dampening: float,
        nesterov: bool,
    ) -> tuple[Tensor, Tensor]:
        # b_t = μ b_{t−1} + (1 − τ) g_t, and b_1 = g_1: the first velocity is not dampened
        momentum_buffer = momentum * momentum_buffer + select(step == 1, 1, 1 - dampening) * grad
        # classical: d_t = b_t          Nesterov, at the look-ahead point: d_t = g_t + μ b_t
        return (grad + momentum * momentum_buffer if nesterov else momentum_buffer), momentum_buffer


class SGD(Chain):
    r"""Stochastic gradient descent, a drop-in replacement for `torch.optim.SGD`.

    .. math:: b_t = \mu b_{t-1} + (1-\tau) g_t, \qquad \theta_t = \theta_{t-1} - \alpha b_t

    and with Nesterov's momentum :math:`\theta_t = \theta_{t-1} - \alpha (g_t + \mu b_t)`: equations (1)–(4) of
    Sutskever et al. (2013), with :math:`\alpha` outside the velocity and, for Nesterov, written at the
    look-ahead point. At a constant learning rate both forms make the same steps. Gradients may be sparse.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        momentum: μ, in [0, ∞).
        dampening: τ; the first velocity is the gradient itself, whatever τ.
        weight_decay: coefficient λ of the coupled L2 penalty, in [0, ∞).
        nesterov: use Nesterov's momentum; needs ``momentum > 0`` and ``dampening == 0``.
        options: ``extensions`` and torch's ``maximize``, ``foreach``, ``capturable``, ``differentiable`` and
            ``fused``; see :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, [L2(weight_decay), Momentum(momentum, dampening, nesterov)], lr=lr, **options)
