r"""Adagrad (Duchi, Hazan and Singer, 2011)."""

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import inverse_root
from .engine import Chain, Options, Place, Stage
from .weight_decay import by_group


class AdagradDirection(Stage):
    """The gradient over the root of the sum of all squares (Duchi, Hazan and Singer 2011, Figure 1, diagonal)."""

    place = Place.DIRECTION
    sparse = "entries"
    ranges = {"lr_decay": "[0, inf)", "initial_accumulator_value": "[0, inf)", "eps": "[0, inf)"}
    state = ("sum",)

    def __init__(self, lr_decay: float = 0.0, initial_accumulator_value: float = 0.0, eps: float = 1e-10) -> None:
        super().__init__(lr_decay=lr_decay, initial_accumulator_value=initial_accumulator_value, eps=eps)

    def initial(self, name: str, param: Tensor) -> Tensor:
        value = self.hyper["initial_accumulator_value"]
        return torch.full_like(
            param, complex(value, value) if param.is_complex() else value, memory_format=torch.preserve_format
        )

    @staticmethod
    def update(grad: Tensor, sum: Tensor, step: float, lr_decay: float, eps: float) -> tuple[Tensor, Tensor]:
        # G_t = G_{t−1} + g_t²
        sum = sum + grad**2
        # d_t = g_t / (√G_t + ε), and with torch's decay of the learning rate α_t = α / (1 + (t − 1) η)
        return grad / (sum.sqrt() + eps) / (1 + (step - 1) * lr_decay), sum

    def preconditioner(self, state: Mapping[str, Tensor], step: float, hyper: Mapping[str, Any]) -> Tensor:
        return inverse_root(state["sum"], hyper["eps"])


class Adagrad(Chain):
    r"""Adagrad, a drop-in replacement for `torch.optim.Adagrad`.

    .. math:: G_t = G_{t-1} + g_t^2, \qquad \theta_t = \theta_{t-1} - \frac{\alpha}{1 + (t-1)\eta}
        \frac{g_t}{\sqrt{G_t} + \varepsilon}

    Figure 1 of Duchi, Hazan and Singer (2011) with a diagonal matrix and no regularizer; η and a first sum other
    than 0 are torch's additions. Of a sparse gradient, the entries are stepped that it has: the others stay.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        lr_decay: η, in [0, ∞).
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞).
        initial_accumulator_value: G_0 of every parameter, in [0, ∞), in the unit of the squared gradient.
        eps: ε, in [0, ∞), in the unit of the gradient.
        decoupled_weight_decay: decay by α λ θ past the division instead, as AdamW does.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        direction = AdagradDirection(lr_decay, initial_accumulator_value, eps)
        super().__init__(params, [*decay, direction], lr=lr, **options)
