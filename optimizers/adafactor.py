r"""Adafactor: squares averaged by row and column, and steps relative to the weights (Shazeer and Stern, 2018)."""

from collections.abc import Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .engine import Chain, Options, Place, Stage
from .shampoo import read
from .weight_decay import DecoupledWeightDecay

Floor = Literal["denominator", "square"]


def root_mean_square(x: Tensor) -> Tensor:
    """RMS(x) = ‖x‖ / √n, a 0-d tensor."""
    size: Tensor = x.norm() / x.numel() ** 0.5
    return size


class AdafactorDirection(Stage):
    """Adafactor's step (Shazeer and Stern 2018, Algorithms 4 and 5), its learning rate included."""

    place = Place.DIRECTION
    reach = "matrix"
    includes_lr = True
    ranges = {
        "beta2_decay": "(-inf, 0]",
        "eps": "pair [0, inf)",
        "d": "[1, inf]",
        "floor": "denominator | square",
        "relative_step": "bool",
        "scale_parameter": "bool",
        "momentum": "[0, 1)",
    }
    matrices = ("row_var", "col_var", "variance", "momentum_buffer")

    def __init__(
        self,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        floor: Floor = "denominator",
        relative_step: bool = True,
        scale_parameter: bool = True,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(
            beta2_decay=beta2_decay,
            eps=eps,
            d=d,
            floor=floor,
            relative_step=relative_step,
            scale_parameter=scale_parameter,
            momentum=momentum,
        )

    def check(self, hyper: Mapping[str, Any], where: str = "") -> None:
        eps = hyper["eps"]
        if isinstance(eps, tuple) and eps[:1] == (None,):  # which stands for a number that depends on the dtype
            eps = (0.0, *eps[1:])
        super().check({**hyper, "eps": eps}, where)

    def refuses(self, param: Tensor, hyper: Mapping[str, Any]) -> str | None:
        return "it is complex" if param.is_complex() else None

    def size(self, name: str, shape: tuple[int, ...], hyper: Mapping[str, Any]) -> tuple[int, ...]:
        if name == "momentum_buffer" or len(shape) < 2:
            return () if name in ("row_var", "col_var") else shape
        return {"row_var": (shape[0], 1), "col_var": (1, shape[1]), "variance": ()}[name]

    def initial(self, name: str, param: Tensor) -> Tensor:
        """One 0, in place of a tensor of zeros whose shape is that of what is averaged, if anything is."""
        return torch.zeros((), dtype=torch.promote_types(param.dtype, torch.float32), device=param.device)

    @staticmethod
    def update(grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def matrix(
        x: Tensor,
        param: Tensor,
        row_var: Tensor,
        col_var: Tensor,
        variance: Tensor,
        momentum_buffer: Tensor,
        step: float,
        lr: float,
        beta2_decay: float,
        eps: tuple[float | None, float],
        d: float,
        floor: str,
        relative_step: bool,
        scale_parameter: bool,
        momentum: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        step = read(step)
        eps1, eps2 = eps
        # Where ε₁ is: under the root of what is divided by (torch), or in every g² (the paper)
        if floor == "denominator":
            least, added = torch.finfo(x.dtype).eps if eps1 is None else eps1, 0.0
        else:
            least, added = 0.0, 1e-30 if eps1 is None else eps1
        squared = x**2 + added
        # β₂ₜ = 1 − t^−0.8, which is 0 at the first step: no bias to correct
        beta2 = 1 - step**beta2_decay
        if x.dim() == 2:
            # R_t = β₂ₜ R_{t−1} + (1 − β₂ₜ) mean over columns of g_t²
            row_var = beta2 * row_var + (1 - beta2) * squared.mean(1, keepdim=True)
            # C_t = β₂ₜ C_{t−1} + (1 − β₂ₜ) mean over rows of g_t²
            col_var = beta2 * col_var + (1 - beta2) * squared.mean(0, keepdim=True)
            # V_t = R_t C_t / mean R_t: of all matrices of rank 1, the nearest to Adam's (in the I-divergence)
            second = row_var @ col_var / row_var.mean().clamp(min=least)
        else:
            # V_t = β₂ₜ V_{t−1} + (1 − β₂ₜ) g_t²
            second = variance = beta2 * variance + (1 - beta2) * squared
        # U_t = g_t / √V_t
        update = x * second.clamp(min=least**2).rsqrt()
        # Û_t = U_t / max(1, RMS(U_t) / d)
        update = update / (root_mean_square(update) / d).clamp(min=1.0)
        if momentum != 0:
            # M_t = β₁ M_{t−1} + (1 − β₁) Û_t
            update = momentum_buffer = momentum * momentum_buffer + (1 - momentum) * update
        # ρ_t = min(α, 1/√t)
        rate = min(lr, step**-0.5) if relative_step else lr
        # α_t = max(ε₂, RMS(θ_{t−1})) ρ_t
        if scale_parameter:
            update = update * root_mean_square(param).clamp(min=eps2)
        return rate * update, row_var, col_var, variance, momentum_buffer


class Adafactor(Chain):
    r"""Adafactor, a drop-in replacement for `torch.optim.Adafactor`, and by its options the paper's.

    .. math:: V_t = \frac{R_t C_t}{\overline{R_t}}, \quad U_t = \frac{g_t}{\sqrt{V_t}}, \quad
        \theta_t = \theta_{t-1} - \min\Big(\alpha_t, \frac{1}{\sqrt t}\Big) \max(\varepsilon_2,
        \mathrm{RMS}(\theta_{t-1})) \frac{U_t}{\max(1, \mathrm{RMS}(U_t) / d)} - \alpha_t \lambda \theta_{t-1}

    Shazeer and Stern (2018); :math:`R_t` and :math:`C_t` are averages of the means of :math:`g_t^2` over each row's
    columns and each column's rows: r + c numbers are kept of r × c. Vectors keep all of :math:`V_t`. Tensors of
    more than two dimensions are taken as matrices, the first one against all others; torch takes the last two of
    each apart, and its checkpoint of such a tensor does not fit.

    torch's ``lr`` is the largest relative step, not a learning rate: after 1 / lr² steps all values give the same
    step, 1/√t. With ``relative_step=False`` it is a learning rate, as in Hugging Face's with a given ``lr``.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: the largest relative step, in [0, ∞), and what decay is multiplied by; a number or a tensor of one
            element.
        beta2_decay: the exponent in β₂ = 1 − t^decay, in (−∞, 0].
        eps: (ε₁, ε₂), the least root of V (or what is added to g²), in the unit of the gradient (of its square),
            and the least RMS of a parameter; each in [0, ∞), and None for an ε₁ of the dtype's resolution (1e-30).
        d: the largest RMS of a step in units of its learning rate, in [1, ∞]; ∞ for any.
        weight_decay: λ, in [0, ∞).
        floor: where ε₁ is: ``"denominator"`` as in torch, or as in the paper added to each ``"square"`` g².
        relative_step: no larger step than 1/√t; False for a step of ``lr`` at all times.
        scale_parameter: steps relative to the RMS of the parameter; False for steps in its unit.
        momentum: β₁, in [0, 1), of an average of the steps U; 0, as is torch's and the paper's default, keeps none.
        decay: ``"lr"`` for α_t λ θ as in torch, ``"schedule"`` for η_t λ θ as in the paper of AdamW.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        RuntimeError: (in `step`) a parameter is complex.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        floor: Floor = "denominator",
        relative_step: bool = True,
        scale_parameter: bool = True,
        momentum: float = 0.0,
        decay: Literal["lr", "schedule"] = "lr",
        **options: Unpack[Options],
    ) -> None:
        direction = AdafactorDirection(beta2_decay, eps, d, floor, relative_step, scale_parameter, momentum)
        super().__init__(params, [direction, DecoupledWeightDecay(weight_decay, decay)], lr=lr, **options)
