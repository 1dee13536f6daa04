r"""RMSprop (Tieleman and Hinton, 2012)."""

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import inverse_root
from .engine import Chain, Options, Place, Stage
from .momentum import Momentum
from .weight_decay import by_group


class RMSpropDirection(Stage):
    """The gradient over the root of its mean square (Tieleman and Hinton 2012), and momentum of the quotient."""

    place = Place.DIRECTION
    ranges = {
        "alpha": "[0, inf)",
        "eps": "[0, inf)",
        "momentum": "[0, inf)",
        "centered": "bool",
        "nesterov": "bool",
    }
    state = ("square_avg", "grad_avg", "momentum_buffer")
    velocity = ("momentum_buffer",)

    def __init__(
        self,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        nesterov: bool = False,
    ) -> None:
        super().__init__(alpha=alpha, eps=eps, momentum=momentum, centered=centered, nesterov=nesterov)

    def check(self, hyper: Mapping[str, Any], where: str = "") -> None:
        super().check(hyper, where)
        if hyper["nesterov"] and hyper["momentum"] == 0:
            raise ValueError(f"nesterov{where} needs momentum above 0, got momentum={hyper['momentum']!r}")

    def remembers(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        used = {"square_avg": True, "grad_avg": hyper["centered"], "momentum_buffer": hyper["momentum"] != 0}
        return tuple(name for name in self.state if used[name])

    @staticmethod
    def update(
        grad: Tensor,
        square_avg: Tensor,
        grad_avg: Tensor | None,
        momentum_buffer: Tensor | None,
        step: float,
        alpha: float,
        eps: float,
        momentum: float,
        nesterov: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        # E[g²]_t = a E[g²]_{t−1} + (1 − a) g_t²
        square_avg = alpha * square_avg + (1 - alpha) * grad**2
        variance = square_avg
        if grad_avg is not None:
            # centered (Graves 2013, eq. 38–45): E[g]_t = a E[g]_{t−1} + (1 − a) g_t
            grad_avg = alpha * grad_avg + (1 - alpha) * grad
            # Var[g]_t = E[g²]_t − E[g]_t², which rounding must not make negative
            variance = (square_avg - grad_avg**2).clamp(min=0)
        # d_t = g_t / (√E[g²]_t + ε)
        direction = grad / (variance.sqrt() + eps)
        if momentum_buffer is not None:
            # b_t = μ b_{t−1} + d_t, and d_t + μ b_t with Nesterov's momentum
            direction, momentum_buffer = Momentum.update(direction, momentum_buffer, step, momentum, 0.0, nesterov)
        return direction, square_avg, grad_avg, momentum_buffer

    def preconditioner(self, state: Mapping[str, Tensor], step: float, hyper: Mapping[str, Any]) -> Tensor:
        variance = state["square_avg"]
        if hyper["centered"]:
            variance = (variance - state["grad_avg"] ** 2).clamp(min=0)
        return inverse_root(variance, hyper["eps"])


class RMSprop(Chain):
    r"""RMSprop, a drop-in replacement for `torch.optim.RMSprop`.

    .. math:: E[g^2]_t = a\, E[g^2]_{t-1} + (1 - a)\, g_t^2, \qquad
        \theta_t = \theta_{t-1} - \alpha\, \frac{g_t}{\sqrt{E[g^2]_t} + \varepsilon}

    Tieleman and Hinton (2012, slide 29 of lecture 6), who take :math:`a = 0.9` and no ε. There is no correction of
    the average's bias: the first step is :math:`\alpha / \sqrt{1 - a}`.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        alpha: decay rate a of the mean square, in [0, ∞) as in torch; below 1 for an average.
        eps: ε, in [0, ∞), in the unit of the gradient, outside the root.
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞).
        momentum: μ of a velocity of the quotients, in [0, ∞).
        centered: divide by the standard deviation instead, the mean square less the squared mean (Graves 2013).
        nesterov: Nesterov's momentum, as in :class:`optimizers.SGD`; needs ``momentum > 0``.
        decoupled_weight_decay: decay by α λ θ past the division instead, as AdamW does.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        nesterov: bool = False,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        direction = RMSpropDirection(alpha, eps, momentum, centered, nesterov)
        super().__init__(params, [*decay, direction], lr=lr, **options)
