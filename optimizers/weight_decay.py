"""Weight decay: the coupled kind (L2), which goes through the gradient, and the decoupled kind, which does not."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .stage import Place, Stage


class L2(Stage):
    """The gradient of the penalty (λ/2)‖θ‖², added to the gradient: torch's `weight_decay` of SGD and Adam."""

    place = Place.GRADIENT
    ranges = {"weight_decay": "[0, inf)"}

    def __init__(self, weight_decay: float = 0.0) -> None:
        super().__init__(weight_decay=weight_decay)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["weight_decay"] != 0)

    @staticmethod
    def update(grad: Tensor, param: Tensor, weight_decay: float) -> Tensor:
        # g_t ← g_t + λ θ_{t−1}
        return grad + weight_decay * param
