r"""AdamW and SGDW: decoupled weight decay (Loshchilov and Hutter, 2019)."""

from collections.abc import Mapping
from typing import Any, Literal, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import AdamDirection, Betas
from .engine import Chain, Options
from .momentum import Momentum
from .weight_decay import DecoupledWeightDecay


class MomentumWithLR(Momentum):
    """The velocity m_t = β₁ m_{t−1} + α_t g_t of SGDW (Loshchilov and Hutter 2019, Algorithm 1 line 8).

    The learning rate is inside: where it falls, the velocity keeps the larger steps of before.
    """

    includes_lr = True

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return True

    def remembers(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        return self.state if hyper["momentum"] != 0 else ()

    @staticmethod
    def update(  # type: ignore[override]
        grad: Tensor,
        momentum_buffer: Tensor | None,
        lr: float,
        step: float,
        momentum: float,
        dampening: float,
        nesterov: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if momentum_buffer is None:
            return lr * grad, None
        # m_t = β₁ m_{t−1} + (1 − τ) α_t g_t;  Nesterov's step: α_t g_t + β₁ m_t
        direction, momentum_buffer = Momentum.update(
            lr * grad, momentum_buffer, step, momentum, dampening, nesterov
        )
        return direction, momentum_buffer


class SGDW(Chain):
    r"""SGD with momentum and decoupled weight decay.

    .. math:: m_t = \beta_1 m_{t-1} + \eta_t \alpha g_t, \qquad
        \theta_t = \theta_{t-1} - m_t - \eta_t \lambda \theta_{t-1}

    Algorithm 1 of Loshchilov and Hutter (2019): the learning rate :math:`\eta_t \alpha` is inside the velocity, and
    the decay is multiplied by the schedule's multiplier :math:`\eta_t` alone.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        momentum: β₁, in [0, ∞).
        dampening: τ, as in torch's SGD: the gradient enters the velocity times 1 − τ, but for the first.
        weight_decay: λ, in [0, ∞); by default what AdamW's defaults, α λ = 1e-3 × 1e-2, come to.
        nesterov: use Nesterov's momentum; needs ``momentum > 0`` and ``dampening == 0``.
        decay: ``"schedule"`` for η_t λ θ as in the paper, ``"lr"`` for η_t α λ θ as torch's AdamW does it.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 1e-5,
        nesterov: bool = False,
        *,
        decay: Literal["lr", "schedule"] = "schedule",
        **options: Unpack[Options],
    ) -> None:
        stages = [MomentumWithLR(momentum, dampening, nesterov), DecoupledWeightDecay(weight_decay, decay)]
        super().__init__(params, stages, lr=lr, **options)


class AdamW(Chain):
    r"""Adam with decoupled weight decay, a drop-in replacement for `torch.optim.AdamW`.

    .. math:: \theta_t = \theta_{t-1} - \alpha_t \left( \frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon}
        + \lambda \theta_{t-1} \right)

    Algorithm 2 of Loshchilov and Hutter (2019) but for the decay, which torch multiplies by the learning rate
    :math:`\alpha_t = \eta_t \alpha`, and the paper by the schedule's multiplier :math:`\eta_t` alone:
    ``decay="schedule"``, with λ the product of torch's lr and weight_decay.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        betas: decay rates (β₁, β₂) of the two averages, each in [0, 1).
        eps: ε, in [0, ∞), in the unit of the gradient.
        weight_decay: λ, in [0, ∞).
        amsgrad: torch's reading of AMSGrad, as in :class:`optimizers.Adam`.
        nesterov: Nesterov's momentum with constant β₁, as in :class:`optimizers.Adam`.
        decay: ``"lr"`` as in torch, ``"schedule"`` as in the paper.
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
        amsgrad: bool = False,
        *,
        nesterov: bool = False,
        decay: Literal["lr", "schedule"] = "lr",
        **options: Unpack[Options],
    ) -> None:
        stages = [AdamDirection(betas, eps, amsgrad, nesterov), DecoupledWeightDecay(weight_decay, decay)]
        super().__init__(params, stages, lr=lr, **options)
