r"""Gradient clipping, by value and by global norm (Pascanu, Mikolov and Bengio, 2013)."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .engine import Place, Stage


class ClipNorm(Stage):
    r"""Scale all gradients together so that their norm is at most `max_norm`.

    .. math:: g \leftarrow g \cdot \min\left(1, \frac{c}{\lVert g \rVert + 10^{-6}}\right)

    Algorithm 1 of Pascanu, Mikolov and Bengio (2013), in the numbers of `torch.nn.utils.clip_grad_norm_`, but
    ``p.grad`` stays as it is. The norm is that of all gradients of all parameter groups, whatever their settings;
    the two parts of a complex number count as two coordinates.

    Args:
        max_norm: c, in (0, ∞], in the unit of the gradient; a group may have its own; ∞ clips nothing.
        norm_type: p of the p-norm, in (0, ∞]; the whole optimizer has one.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    place = Place.GRADIENT
    sparse = "entries"
    rank = -4
    prefix = "clip_norm"
    ranges = {"max_norm": "(0, inf]", "norm_type": "(0, inf]"}

    def __init__(self, max_norm: float, norm_type: float = 2.0) -> None:
        super().__init__(max_norm=max_norm, norm_type=norm_type)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["max_norm"] != math.inf)

    def joined(self, chain: Sequence[Stage]) -> Stage:
        for stage in chain:
            if stage.scale_free:
                warnings.warn(
                    f"ClipNorm before {type(stage).__name__}: its step does not depend on the gradient's length, "
                    "so that clipping a gradient only changes its weight among earlier ones",
                    stacklevel=4,
                )
        return self

    def before(self, grads: Sequence[Tensor], hyper: Mapping[str, Any]) -> dict[str, Any]:
        real = [torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad for grad in grads]
        norm_type = float(hyper["norm_type"])
        if not real:
            return {"total_norm": torch.zeros((), dtype=torch.float32, device="cpu")}
        if torch.is_grad_enabled():  # a differentiable step: torch's function cuts the graph
            norms = [torch.linalg.vector_norm(grad, norm_type) for grad in real]
            norm = torch.linalg.vector_norm(torch.stack([each.to(norms[0].device) for each in norms]), norm_type)
        else:
            norm = torch.nn.utils.get_total_norm(real, norm_type=norm_type)
        # The norm of sharded gradients is spread over the processes: every one of them needs the sum.
        return {"total_norm": norm.full_tensor() if hasattr(norm, "full_tensor") else norm}

    @staticmethod
    def update(grad: Tensor, total_norm: Tensor, max_norm: float) -> Tensor:
        # g ← g · min(1, c / (‖g‖ + 10⁻⁶))
        return grad * (max_norm / (total_norm + 1e-6)).clamp(max=1.0).to(grad.device)


class ClipValue(Stage):
    r"""Clip every coordinate of the gradient to [−c, c], as `torch.nn.utils.clip_grad_value_` does.

    .. math:: g \leftarrow \min(\max(g, -c), c)

    Along with :class:`ClipNorm` it comes second.

    Args:
        value: c, in (0, ∞], in the unit of the gradient; ∞ clips nothing.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    place = Place.GRADIENT
    sparse = "entries"
    rank = -3
    prefix = "clip_value"
    ranges = {"value": "(0, inf]"}

    def __init__(self, value: float) -> None:
        super().__init__(value=value)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["value"] != math.inf)

    @staticmethod
    def update(grad: Tensor, value: float) -> Tensor:
        # g ← min(max(g, −c), c)
        return grad.clamp(-value, value)
