"""Weight decay: the coupled kind (L2), which goes through the gradient, and the decoupled kind, which does not."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from .engine import Place, Stage


class L2(Stage):
    """The gradient of the penalty (λ/2)‖θ‖², added to the gradient: torch's `weight_decay` of SGD and Adam."""

    place = Place.GRADIENT
    rank = 1
    ranges = {"weight_decay": "[0, inf)"}

    def __init__(self, weight_decay: float = 0.0) -> None:
        super().__init__(weight_decay=weight_decay)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["weight_decay"] != 0)

    @staticmethod
    def update(grad: Tensor, param: Tensor, weight_decay: float) -> Tensor:
        # g_t ← g_t + λ θ_{t−1}
        return grad + weight_decay * param


class DecoupledWeightDecay(Stage):
    """Decay past the direction (Loshchilov and Hutter 2019, Algorithm 1 line 10 and Algorithm 2 line 12).

    With ``decay="lr"`` a step takes α_t λ θ_{t−1} off the parameter, α_t being the learning rate: torch's AdamW.
    With ``decay="schedule"`` it takes η_t λ θ_{t−1}, as the paper has it: η_t = α_t / α is the schedule's
    multiplier, so that the best λ does not depend on α. The paper's λ is torch's lr × weight_decay. α is the
    group's `initial_lr` where a scheduler has set it, else its learning rate when it was added.
    """

    place = Place.UPDATE
    ranges = {"weight_decay": "[0, inf)", "decay": "lr | schedule", "decoupled_weight_decay": "bool"}

    def __init__(self, weight_decay: float = 1e-2, decay: Literal["lr", "schedule"] = "lr") -> None:
        # The last is for torch.optim's NAdam and RAdam, which read it from the groups of our checkpoints.
        super().__init__(weight_decay=weight_decay, decay=decay, decoupled_weight_decay=True)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["weight_decay"] != 0)

    @staticmethod
    def update(
        update: Tensor, param: Tensor, lr: float, schedule: float, weight_decay: float, decay: str
    ) -> Tensor:
        # u_t ← u_t + α_t λ θ_{t−1}     or, in the paper,     u_t ← u_t + η_t λ θ_{t−1}
        return update + ((lr if decay == "lr" else schedule) * weight_decay) * param


class L2ByGroup(L2):
    """L2 in the parameter groups whose `decoupled_weight_decay` is False."""

    ranges = {"weight_decay": "[0, inf)", "decoupled_weight_decay": "bool"}
    shared = ("weight_decay", "decoupled_weight_decay")

    def __init__(self, weight_decay: float, decoupled_weight_decay: bool) -> None:
        Stage.__init__(self, weight_decay=weight_decay, decoupled_weight_decay=decoupled_weight_decay)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return super().applies(hyper) and not hyper["decoupled_weight_decay"]


class DecoupledByGroup(DecoupledWeightDecay):
    """Decoupled decay, × lr, in the parameter groups whose `decoupled_weight_decay` is True."""

    ranges = L2ByGroup.ranges
    shared = L2ByGroup.shared

    def __init__(self, weight_decay: float, decoupled_weight_decay: bool) -> None:
        Stage.__init__(self, weight_decay=weight_decay, decoupled_weight_decay=decoupled_weight_decay)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return super().applies(hyper) and bool(hyper["decoupled_weight_decay"])

    @staticmethod
    def update(update: Tensor, param: Tensor, lr: float, weight_decay: float) -> Any:  # type: ignore[override]
        return DecoupledWeightDecay.update(update, param, lr, 1.0, weight_decay, "lr")


def by_group(weight_decay: float, decoupled_weight_decay: bool) -> list[Stage]:
    """Torch's two arguments: L2, or decoupled decay × lr in the parameter groups that say so."""
    return [L2ByGroup(weight_decay, decoupled_weight_decay), DecoupledByGroup(weight_decay, decoupled_weight_decay)]


def no_decay(stage: Stage, others: Sequence[tuple[Stage, Mapping[str, Any]]], reason: str) -> str | None:
    """Why `stage`, because of what it does, cannot be beside one that decays weights, if there is one."""
    for other, hyper in others:
        if hyper.get("weight_decay", 0) != 0:
            return (
                f"{type(other).__name__} decays (weight_decay={hyper['weight_decay']!r}) beside "
                f"{type(stage).__name__}, {reason}: set weight_decay=0"
            )
    return None
