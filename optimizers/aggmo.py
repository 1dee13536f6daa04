r"""AggMo: aggregated momentum (Lucas, Sun, Zemel and Grosse, 2019)."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .engine import Chain, Options, Place, Stage
from .weight_decay import by_group


class AggregatedMomentum(Stage):
    """The mean of K velocities, each with its own damping (Lucas et al. 2019, eq. 3), less the learning rate."""

    place = Place.DIRECTION
    ranges = {"betas": "each [0, 1)"}

    def __init__(self, betas: Sequence[float] = (0.0, 0.9, 0.99)) -> None:
        super().__init__(betas=betas)
        self.state = self.velocity = self.remembers(self.hyper)

    def remembers(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(f"momentum_buffer_{i}" for i in range(len(hyper["betas"])))

    @staticmethod
    def update(grad: Tensor, memory: tuple[Tensor, ...], betas: tuple[float, ...]) -> tuple[Tensor, ...]:
        # v_t⁽ⁱ⁾ = β⁽ⁱ⁾ v_{t−1}⁽ⁱ⁾ + g_t, for i = 1 … K; the paper's v has the opposite sign
        memory = tuple(beta * buffer + grad for beta, buffer in zip(betas, memory, strict=True))
        # d_t = (1 / K) Σᵢ v_t⁽ⁱ⁾
        return sum(memory[1:], memory[0]) / len(betas), *memory


class AggMo(Chain):
    r"""Aggregated momentum: several velocities at once, the slow ones damped by the fast.

    .. math:: v_t^{(i)} = \beta^{(i)} v_{t-1}^{(i)} + g_t, \qquad
        \theta_t = \theta_{t-1} - \frac{\alpha}{K} \sum_{i=1}^{K} v_t^{(i)}

    Equation (3) of Lucas, Sun, Zemel and Grosse (2019), with the sign in the step. On a long slope it moves by
    :math:`\alpha` times the mean of :math:`1 / (1 - \beta^{(i)})` per step: 37 with the default, 10 with
    momentum 0.9.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        betas: damping vector, each in [0, 1); the paper recommends :math:`\beta^{(i)} = 1 - 0.1^{i-1}`, i = 1 … 3.
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞).
        decoupled_weight_decay: decay by α λ θ past the velocities instead, as AdamW does.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        betas: Sequence[float] = (0.0, 0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        super().__init__(params, [*decay, AggregatedMomentum(betas)], lr=lr, **options)
