"""The nearest orthogonal matrix, U Vᵀ of U S Vᵀ, by polynomials of Newton and Schulz's kind or exactly."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .engine import symmetric
from .polar_express import Coefficients, polar_express

# Jordan's p(s) = a s + b s³ + c s⁵: as steep at 0 as can be, where values may end anywhere between 0.7 and 1.2.
JORDAN: Coefficients = (3.4445, -4.7750, 2.0315)


def newton_schulz(x: Tensor, polynomials: Sequence[Coefficients], eps: float) -> Tensor:
    """U p(S / ‖S‖) Vᵀ of a matrix U S Vᵀ, or of each of a stack, p being the polynomials, one after the other.

    Args:
        x: (rows, columns), or (matrices, rows, columns).
        polynomials: (a, b, c) each, of a s + b s³ + c s⁵.
        eps: the least ‖X‖ to divide by.
    """
    add = torch.addmm if x.dim() == 2 else torch.baddbmm
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # X Xᵀ is to be the smaller of the two
        x = x.mT
    # ‖X‖₂ ≤ ‖X‖_F = 1
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    if x.shape[-1] >= 3 * x.shape[-2] and x.dtype != torch.bfloat16:
        x, polynomials = by_factors(x, polynomials), ()
    for a, b, c in polynomials:
        # A = X Xᵀ
        gram = symmetric(x, x.mT)
        # X ← a X + (b A + c A²) X   (with alpha=0, torch 2.13's baddbmm forgets beta in bfloat16)
        even = symmetric(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        x = add(x, even, x, beta=a)
    return x.mT if tall else x


def by_factors(x: Tensor, polynomials: Sequence[Coefficients]) -> Tensor:
    """The same of a wide matrix in fewer operations: X_k = Q_k X_0, where all but the ends is of the shorter side.

    Begun anew after two, since what rounding makes of small singular values grows with each.
    """
    for part in filter(None, (polynomials[:2], polynomials[2:])):
        gram, product = symmetric(x, x.mT), None
        for i, (a, b, c) in enumerate(part, 1):
            # P = a + b A + c A²,  Q ← P Q,  A ← P A P: polynomials of one A, and so symmetric
            factor = symmetric(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            product = factor if product is None else symmetric(factor, product)
            if i < len(part):
                gram = symmetric(symmetric(factor, gram), factor)
        x = cast(Tensor, product) @ x
    return x


def polar_factor(x: Tensor) -> Tensor:
    """U Vᵀ of a matrix U S Vᵀ, or of each of a stack, without the directions in which S is 0 but for rounding."""
    finite = x.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)  # of other matrices there is no decomposition
    u, s, vt = torch.linalg.svd(torch.where(finite, x, 0.0), full_matrices=False)
    seen = s > max(x.shape[-2:]) * torch.finfo(x.dtype).eps * s[..., :1]
    return torch.where(finite, (u * seen.unsqueeze(-2)) @ vt, torch.nan)


def orthogonalized(
    x: Tensor, method: str, coefficients: Coefficients, steps: int, eps: float, precision: str
) -> Tensor:
    """The nearest orthogonal matrix of a matrix, or of each of a stack, or about that."""
    if precision != "auto":
        x = x.to(getattr(torch, precision))
    elif x.device.type != "cpu":  # which computes in bfloat16 some twenty times slower than in float32
        x = x.bfloat16()
    if method == "exact":
        return polar_factor(x.float() if x.dtype == torch.bfloat16 else x)
    return newton_schulz(x, polar_express(steps) if method == "polar_express" else [coefficients] * steps, eps)
