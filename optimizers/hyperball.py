r"""Hyperball: matrices of fixed norm, in steps of fixed length (Wen et al., 2026)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .engine import Place, Stage, select
from .weight_decay import no_decay


class Hyperball(Stage):
    r"""Keep the Frobenius norm of a matrix where it began; every step is the learning rate times that norm long.

    .. math:: W_t = R \cdot \mathrm{Normalize}\left( W_{t-1} - \alpha_t R \cdot \mathrm{Normalize}(u_t) \right),
        \qquad R = \lVert W_0 \rVert_F

    Wen et al. (2026), for any update u: ``AdamW(params, weight_decay=0, extensions=[Hyperball()])`` is their AdamH,
    and on Muon it is MuonH. Decay would only have set the norm, and with it by what angle a step of the optimizer
    turns the matrix; here that angle is the learning rate. A matrix whose update is 0 stays as it is.

    R is the norm before the first step, the state ``radius``. A matrix that begins at 0 is on no sphere, and makes
    the optimizer's own steps. Tensors of fewer than two dimensions (biases, the gains of norms) are refused: give
    them a parameter group with ``hyperball=False``, which makes the optimizer's own steps, too, and may have a
    learning rate for itself. In the paper embeddings and the head are in that group.

    Args:
        hyperball: False for parameter groups that are left out.

    Raises:
        TypeError: the argument is of the wrong kind.
        ValueError: (when the optimizer is made) another stage decays weights.
        RuntimeError: (in `step`) a parameter has fewer than two dimensions.
    """

    place = Place.STEP_SIZE
    rank = 1  # the last to change the update
    reach = "tensor"
    ranges = {"hyperball": "bool"}
    scalars = {"radius": -1.0}  # below 0: not measured yet; 0: there is no sphere

    def __init__(self, hyperball: bool = True) -> None:
        super().__init__(hyperball=hyperball)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["hyperball"])

    def refuses_beside(self, others: Sequence[tuple[Stage, Mapping[str, Any]]]) -> str | None:
        return no_decay(self, others, "which keeps the norm that decay would change")

    def refuses(self, param: Tensor, hyper: Mapping[str, Any]) -> str | None:
        if param.dim() > 1:
            return super().refuses(param, hyper)
        return "it keeps the norms of matrices; give biases and gains a parameter group with hyperball=False"

    @staticmethod
    def terms(update: Tensor, param: Tensor) -> dict[str, Tensor]:
        return {"param_sq": param**2, "product": param * update, "update_sq": update**2}

    def settle(
        self, scalars: Mapping[str, Any], sums: Mapping[str, Any], step: Any, lr: Any, hyper: Mapping[str, Any]
    ) -> dict[str, Any]:
        # R = ‖W_0‖
        return {"radius": select(scalars["radius"] < 0, sums["param_sq"] ** 0.5, scalars["radius"])}

    @staticmethod
    def update(
        update: Tensor,
        param: Tensor,
        lr: float,
        radius: float,
        param_sq: float,
        product: float,
        update_sq: float,
    ) -> Tensor:
        # a = α_t R / ‖u_t‖
        a = lr * radius / select(update_sq > 0, update_sq, 1.0) ** 0.5
        # ‖W_{t−1} − a u_t‖² = ‖W_{t−1}‖² − 2 a ⟨W_{t−1}, u_t⟩ + (α_t R)²
        norm_sq = param_sq - 2 * a * product + (lr * radius) * (lr * radius)
        moves = (a > 0) & (update_sq > 0) & (norm_sq > 0)
        b = radius / select(moves, norm_sq, 1.0) ** 0.5
        # W_t = b (W_{t−1} − a u_t), as the update W_{t−1} − W_t
        turned = (1 - b) * param + (b * a) * update
        still = select(radius > 0, 0.0, 1.0) * update
        result: Tensor = select(moves, turned, still)
        return result
