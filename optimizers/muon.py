r"""Muon: the momentum, orthogonalized (Jordan et al., 2024; Liu et al., 2025), and NorMuon (Li et al., 2025)."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import AdamDirection, Betas
from .engine import Chain, Options, Partition, Place, Stage
from .orthogonal import JORDAN, orthogonalized
from .polar_express import Coefficients
from .weight_decay import DecoupledWeightDecay

Method = Literal["newton_schulz", "polar_express", "exact"]
Scale = Literal["original", "match_rms_adamw", "jordan", "moonlight"]
Precision = Literal["auto", "bfloat16", "float32", "float64"]


def split(x: Tensor, blocks: int) -> Tensor:
    """A matrix, or of several blocks a stack, (blocks, rows / blocks, columns)."""
    return x.reshape(blocks, -1, x.shape[1]) if blocks > 1 else x


def factor(rows: int, columns: int, adjust_lr_fn: str) -> float:
    """What torch multiplies the learning rate by, of a matrix that takes `columns` inputs to `rows` outputs."""
    if adjust_lr_fn == "match_rms_adamw":
        # An orthogonal matrix has an RMS of 1/√max(r, c), AdamW's step one of about 0.2
        return 0.2 * math.sqrt(max(rows, columns))
    # √max(1, r/c): the step changes outputs by as much (in RMS) as inputs of RMS 1, whatever the shape
    return math.sqrt(max(1.0, rows / columns))


class MuonDirection(Stage):
    """The momentum's nearest orthogonal matrix (Jordan et al. 2024), times a factor of its shape."""

    place = Place.DIRECTION
    reach = "matrix"
    ranges = {
        "momentum": "[0, 1)",
        "nesterov": "bool",
        "ns_coefficients": "each (-inf, inf)",
        "eps": "[0, inf)",
        "ns_steps": "int [1, 100)",
        "adjust_lr_fn": "original | match_rms_adamw",
        "method": "newton_schulz | polar_express | exact",
        "precision": "auto | bfloat16 | float32 | float64",
        "blocks": "int [1, inf)",
    }
    state = ("momentum_buffer",)
    velocity = state
    scale_free = True

    def __init__(
        self,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = JORDAN,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Scale | None = None,
        method: Method = "newton_schulz",
        precision: Precision = "auto",
        blocks: int = 1,
        **more: Any,
    ) -> None:
        super().__init__(
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            eps=eps,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            method=method,
            precision=precision,
            blocks=blocks,
            **more,
        )

    def plain(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """As everywhere, and the scale by the name that torch has for it."""
        hyper = super().plain(hyper)
        for word, name in (None, "original"), ("jordan", "original"), ("moonlight", "match_rms_adamw"):
            if hyper.get("adjust_lr_fn", name) == word:
                hyper["adjust_lr_fn"] = name
        return hyper

    def check(self, hyper: Mapping[str, Any], where: str = "") -> None:
        super().check(hyper, where)
        if len(hyper["ns_coefficients"]) != 3:
            raise TypeError(f"ns_coefficients{where} must be three numbers, got {hyper['ns_coefficients']!r}")

    def refuses(self, param: Tensor, hyper: Mapping[str, Any]) -> str | None:
        if param.dim() >= 2 and not param.is_complex():
            blocks = hyper["blocks"]
            return f"its {len(param)} rows are not {blocks=} matrices of as many" if len(param) % blocks else None
        reason = "it is complex" if param.is_complex() else "it has fewer than two dimensions"
        return (
            f"{reason}; give it to AdamW, by direction='adamw' in its group: muon_groups(model) makes such groups"
        )

    @staticmethod
    def update(grad: Tensor, momentum_buffer: Tensor, momentum: float, nesterov: bool) -> tuple[Tensor, Tensor]:
        # m_t = μ m_{t−1} + (1 − μ) g_t
        momentum_buffer = momentum * momentum_buffer + (1 - momentum) * grad
        # u_t = m_t, or Nesterov's μ m_t + (1 − μ) g_t
        direction = momentum * momentum_buffer + (1 - momentum) * grad if nesterov else momentum_buffer
        return direction, momentum_buffer

    @staticmethod
    def matrix(
        x: Tensor,
        ns_coefficients: Coefficients,
        eps: float,
        ns_steps: int,
        adjust_lr_fn: str,
        method: str,
        precision: str,
        blocks: int,
    ) -> Tensor:
        # Of several matrices in one tensor (queries, keys and values), each is orthogonalized by itself.
        stack = split(x, blocks)
        # O_t = U Vᵀ, where u_t = U S Vᵀ
        result = orthogonalized(stack, method, ns_coefficients, ns_steps, eps, precision)
        # d_t = √max(1, r/c) O_t, or 0.2 √max(r, c) O_t
        rows, columns = stack.shape[-2:]
        return (factor(rows, columns, adjust_lr_fn) * result.to(x.dtype)).reshape(x.shape)


class NorMuonDirection(MuonDirection):
    """Muon's direction, with its rows brought to one size, on average over the steps (Li et al. 2025)."""

    ranges = {**MuonDirection.ranges, "row_beta": "[0, 1)"}
    matrices = ("row_exp_avg_sq",)

    def __init__(self, row_beta: float = 0.95, **hyper: Any) -> None:
        super().__init__(row_beta=row_beta, **hyper)

    def initial(self, name: str, param: Tensor) -> Tensor:
        if name not in self.matrices:
            return super().initial(name, param)
        return param.new_zeros(len(param), 1, dtype=torch.promote_types(param.dtype, torch.float32))

    def size(self, name: str, shape: tuple[int, ...], hyper: Mapping[str, Any]) -> tuple[int, ...]:
        return (shape[0], 1)

    @staticmethod
    def matrix(  # type: ignore[override]
        x: Tensor,
        row_exp_avg_sq: Tensor,
        row_beta: float,
        ns_coefficients: Coefficients,
        eps: float,
        ns_steps: int,
        adjust_lr_fn: str,
        method: str,
        precision: str,
        blocks: int,
    ) -> tuple[Tensor, Tensor]:
        result = MuonDirection.matrix(x, ns_coefficients, eps, ns_steps, adjust_lr_fn, method, precision, blocks)
        # v_i ← β v_i + (1 − β) mean_j d_ij²
        row_exp_avg_sq = row_beta * row_exp_avg_sq + (1 - row_beta) * (result**2).mean(1, keepdim=True)
        # d̂_ij = d_ij / √v_i, and as long as it was: d̂ ← d̂ ‖d‖ / ‖d̂‖
        stack = split(result, blocks)
        scaled = (result / (row_exp_avg_sq.sqrt() + 1e-10)).reshape(stack.shape)
        sizes = [each.norm(dim=(-2, -1), keepdim=True) for each in (stack, scaled)]
        scaled = scaled * (sizes[0] / (sizes[1] + 1e-10))
        return scaled.reshape(x.shape), row_exp_avg_sq


class Muon(Chain):
    r"""Muon, a drop-in replacement for `torch.optim.Muon` that steps the other parameters, too, by AdamW.

    .. math:: m_t = \mu m_{t-1} + (1 - \mu) g_t, \qquad U S V^\top = \mu m_t + (1 - \mu) g_t, \qquad
        \theta_t = \theta_{t-1} - \alpha_t \left( \sqrt{\max(1, r/c)}\; U V^\top + \lambda \theta_{t-1} \right)

    for an r × c matrix: the step that goes down most, of all whose largest singular value is 1 (Jordan et al.
    2024). :math:`U V^\top` is found by five steps of Newton and Schulz, with singular values between 0.7 and 1.2
    for 1. Filters of convolutions are taken as matrices of (out, in × height × width), and by these has the factor
    √(r/c) its meaning. (torch's documentation has the average as a sum; its code, and this, has the average.)

    Muon is for matrices between hidden layers. Embeddings, the head, norms and biases go to AdamW, in parameter
    groups with ``direction="adamw"`` and a learning rate, ``betas`` and an ``eps`` of their own:
    :func:`optimizers.muon_groups` makes these groups of a model.

    Args:
        params: parameters, named parameters or parameter groups; all of two dimensions or more, but in groups with
            ``direction="adamw"``.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element. The authors take 0.02.
        weight_decay: λ, in [0, ∞).
        momentum: μ, in [0, 1).
        nesterov: average the gradient in once more, as above; else :math:`U S V^\top = m_t`.
        ns_coefficients: (a, b, c) of Newton and Schulz's polynomial a s + b s³ + c s⁵.
        eps: the least norm by which the momentum is divided, in [0, ∞). In groups for AdamW it is AdamW's ε, 1e-8
            unless they say otherwise.
        ns_steps: how often the polynomial is taken, in [1, 100).
        adjust_lr_fn: ``"original"`` (or ``"jordan"``, or None) for the factor √max(1, r/c), ``"match_rms_adamw"``
            (``"moonlight"``) for 0.2 √max(r, c), at which AdamW's learning rate and weight decay do (Liu et al.
            2025).
        method: ``"newton_schulz"``, ``"polar_express"``, which has a polynomial of its own for each step and ends
            nearer to 1, from 0.001 on within 0.14 in five (Amsel et al. 2025), or ``"exact"``, by a singular value
            decomposition.
        precision: in what :math:`U V^\top` is computed: ``"bfloat16"`` as torch does everywhere, ``"float32"``,
            ``"float64"``, or ``"auto"``: as the state is on CPUs, where bfloat16 is slow, and bfloat16 elsewhere.
        blocks: the number of matrices, of as many rows each, that a parameter consists of: 3 for queries, keys and
            values in one. Of a parameter group rather than of all.
        row_beta: NorMuon's β, in [0, 1), for rows brought to one size by the average of their squares; None for
            Muon.
        betas: β₁ and β₂ of AdamW, in groups for it.
        decay: ``"lr"`` for α_t λ θ as above, ``"schedule"`` for η_t λ θ as in the paper of AdamW.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        RuntimeError: (in `step`) a parameter is no matrix, or its rows are not that many blocks.

    Example:
        ``Muon(muon_groups(model, lr=0.02, adamw_lr=3e-4))``
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = JORDAN,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Scale | None = None,
        *,
        method: Method = "newton_schulz",
        precision: Precision = "auto",
        blocks: int = 1,
        row_beta: float | None = None,
        betas: Betas = (0.9, 0.95),
        decay: Literal["lr", "schedule"] = "lr",
        **options: Unpack[Options],
    ) -> None:
        given: dict[str, Any] = dict(
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            eps=eps,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            method=method,
            precision=precision,
            blocks=blocks,
        )
        muon = MuonDirection(**given) if row_beta is None else NorMuonDirection(row_beta, **given)
        stages = [Partition(muon=muon, adamw=AdamDirection(betas)), DecoupledWeightDecay(weight_decay, decay)]
        super().__init__(params, stages, lr=lr, **options)
