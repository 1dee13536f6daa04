"""Products of matrices that are symmetric, for half the work of others."""

import torch
from torch import Tensor

# Rows that are computed at once: fewer would be multiplied more slowly than what is saved.
ROWS = 256


def symmetric(a: Tensor, b: Tensor, plus: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """α A B + β C of which it is known that it is symmetric, such as X Xᵀ: what is below the diagonal is copied.

    On a CPU, where no library that torch has does this, from 512 rows on; elsewhere it is the whole product.

    Args:
        a, b: (n, k) and (k, n), or stacks of as many.
        plus: C, (n, n), symmetric.
    """
    n, add = a.shape[-2], torch.addmm if a.dim() == 2 else torch.baddbmm
    narrow = a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64)
    if n < 2 * ROWS or narrow or (torch.is_grad_enabled() and any(t.requires_grad for t in (a, b))):
        return a @ b if plus is None else add(plus, a, b, alpha=alpha, beta=beta)
    out = a.new_empty(*a.shape[:-1], n)
    for each, left, right, more in zip(
        *(_matrices(t) for t in (out, a, b)), _matrices(out if plus is None else plus), strict=True
    ):
        for i in range(0, n, ROWS):
            rows = slice(i, i + ROWS)
            block = each[rows, i:]
            # (With beta=0 what is added is not read.)
            scale = 0.0 if plus is None else beta
            torch.addmm(more[rows, i:], left[rows], right[:, i:], alpha=alpha, beta=scale, out=block)
            each[i + ROWS :, rows].copy_(block[:, ROWS:].mT)
    return out


def _matrices(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,) if tensor.dim() == 2 else tensor.unbind()
