r"""Shampoo: a matrix's gradient, whitened on both sides (Gupta, Koren and Singer, 2018)."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .engine import Chain, Options, Place, Stage, symmetric
from .weight_decay import DecoupledWeightDecay

Graft = Literal["none", "adam"]
Sides = tuple[Tensor, Tensor]


def read(step: Any) -> Any:
    """A count that decides what is done; RuntimeError where a graph would capture what this one decides."""
    if isinstance(step, Tensor) and step.device.type != "cpu":
        raise RuntimeError("a rule reads its count at every step: no graph can capture it; set capturable=False")
    return step


def sides(x: Tensor) -> Sides:
    """A gradient as a matrix whose rows are what is whitened, and as one whose columns are, in the same way.

    Of a vector (or a number), the second has no rows: it is whitened as a column, on one side.
    """
    return (x, x.mT) if x.dim() == 2 else (x.reshape(-1, 1), x.new_zeros(0, 1))


def second_moment(x: Tensor, largest: int) -> Tensor:
    """X Xᵀ, or of more than so many rows its diagonal."""
    return symmetric(x, x.mT) if len(x) <= largest else (x**2).sum(1)


def eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, in descending order, and eigenvectors, as columns, of a symmetric matrix."""
    finite = matrix.isfinite().all()  # another one has none
    matrix = torch.where(finite, matrix, 0.0)
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError:  # in single precision, some do not converge
        values, vectors = (tensor.to(matrix.dtype) for tensor in torch.linalg.eigh(matrix.double()))
    return values.flip(0), torch.where(finite, vectors.flip(1), torch.nan)


def power(matrix: Tensor, exponent: float, eps: float) -> Tensor:
    """(A + ε)^−p of a symmetric matrix of no negative eigenvalues; of a diagonal one, if given as a vector."""
    if matrix.dim() == 1:
        return (matrix + eps) ** -exponent
    values, vectors = eigenvectors(matrix)
    # Q (Λ + ε)^−p Qᵀ
    return symmetric(vectors * (values.clamp(min=0.0) + eps) ** -exponent, vectors.mT)


def times(root: Tensor, x: Tensor) -> Tensor:
    """The product of a matrix, or of a diagonal given as a vector, and X; X itself where there is no such side."""
    if root.numel() == 0:
        return x
    return root @ x if root.dim() == 2 else root[:, None] * x


class ShampooDirection(Stage):
    """Shampoo's direction L^−p G R^−p: Algorithm 1 of Gupta, Koren and Singer (2018), less the learning rate."""

    place = Place.DIRECTION
    reach = "matrix"
    ranges = {
        "momentum": "[0, 1)",
        "beta": "(0, 1) or None",
        "exponent": "(0, inf) or None",
        "eps": "(0, inf)",
        "every": "int [1, inf)",
        "graft": "none | adam",
        "graft_beta": "[0, 1)",
        "max_precond_dim": "int [0, inf)",
    }
    matrices = ("left", "right", "left_root", "right_root", "graft_exp_avg_sq", "momentum_buffer")

    def __init__(
        self,
        momentum: float = 0.0,
        beta: float | None = None,
        exponent: float | None = None,
        eps: float = 1e-4,
        every: int = 1,
        graft: Graft = "none",
        graft_beta: float = 0.999,
        max_precond_dim: int = 8192,
    ) -> None:
        super().__init__(
            momentum=momentum,
            beta=beta,
            exponent=exponent,
            eps=eps,
            every=every,
            graft=graft,
            graft_beta=graft_beta,
            max_precond_dim=max_precond_dim,
        )

    def refuses(self, param: Tensor, hyper: Mapping[str, Any]) -> str | None:
        return "it is complex" if param.is_complex() else None

    def size(self, name: str, shape: tuple[int, ...], hyper: Mapping[str, Any]) -> tuple[int, ...]:
        if not name.startswith(("left", "right")):
            return shape
        rows, columns = shape if len(shape) == 2 else (math.prod(shape), 0)
        n = rows if name.startswith("left") else columns
        return (n, n) if n <= hyper["max_precond_dim"] else (n,)

    def initial(self, name: str, param: Tensor) -> Tensor:
        """One 0, in place of a tensor of zeros of whatever shape comes to be needed."""
        return torch.zeros((), dtype=torch.promote_types(param.dtype, torch.float32), device=param.device)

    @staticmethod
    def update(grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def matrix(
        x: Tensor,
        left: Tensor,
        right: Tensor,
        left_root: Tensor,
        right_root: Tensor,
        graft_exp_avg_sq: Tensor,
        momentum_buffer: Tensor,
        step: int,
        momentum: float,
        beta: float | None,
        exponent: float | None,
        eps: float,
        every: int,
        graft: str,
        graft_beta: float,
        max_precond_dim: int,
    ) -> tuple[Tensor, ...]:
        step = read(step)
        keep, add, bias = (1.0, 1.0, 1.0) if beta is None else (beta, 1 - beta, 1 - beta**step)
        rows, columns = sides(x)
        # L_t = L_{t−1} + G_t G_tᵀ  and  R_t = R_{t−1} + G_tᵀ G_t, or averages of them
        left = keep * left + add * second_moment(rows, max_precond_dim)
        right = keep * right + add * second_moment(columns, max_precond_dim)
        if (step - 1) % every == 0 or left_root.dim() == 0:  # of another optimizer's checkpoint, there are none
            # L_t^−p and R_t^−p: p = 1/(2k) for k sides
            p = exponent or (1 / 4 if x.dim() == 2 else 1 / 2)
            left_root, right_root = power(left / bias, p, eps), power(right / bias, p, eps)
        # D_t = L_t^−p G_t R_t^−p
        direction = times(right_root, times(left_root, rows).mT).mT.reshape(x.shape)
        if graft == "adam":
            # D_t ← D_t ‖A_t‖ / ‖D_t‖, where A_t = G_t / (√v̂_t + 1e-8) is Adam's, without an average of gradients
            graft_exp_avg_sq = graft_beta * graft_exp_avg_sq + (1 - graft_beta) * x**2
            adam = x / ((graft_exp_avg_sq / (1 - graft_beta**step)).sqrt() + 1e-8)
            direction = direction * (adam.norm() / direction.norm().clamp(min=torch.finfo(x.dtype).tiny))
        if momentum != 0:
            # M_t = μ M_{t−1} + (1 − μ) D_t
            direction = momentum_buffer = momentum * momentum_buffer + (1 - momentum) * direction
        return direction, left, right, left_root, right_root, graft_exp_avg_sq, momentum_buffer

    def preconditioner(
        self, state: Mapping[str, Tensor], step: float, hyper: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        return state["left_root"], state["right_root"]


class Shampoo(Chain):
    r"""Shampoo: Adagrad with a whole matrix for the rows and one for the columns.

    .. math:: L_t = L_{t-1} + G_t G_t^\top, \quad R_t = R_{t-1} + G_t^\top G_t, \quad \theta_t = \theta_{t-1} -
        \alpha_t \left( (L_t + \varepsilon I)^{-1/4}\, G_t\, (R_t + \varepsilon I)^{-1/4} + \lambda \theta_{t-1}
        \right)

    Algorithm 1 of Gupta, Koren and Singer (2018). If gradients are vec(G) ~ N(0, A ⊗ B), their averages are A and B
    up to a factor, and powers of −½ would whiten them; the paper's −¼ do so half-way: ``exponent=0.5`` with a
    ``beta`` is what is mostly used today. Of one gradient alone, the step with −¼ is :math:`U V^\top`, Muon's.

    Vectors and numbers have one side, L, with the power −½, as tensors of order one have in the paper. Those of
    more than two dimensions are taken as matrices, the first one against all others (in the paper they have as many
    sides as dimensions). State and work grow with the square and the cube of rows and columns.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        momentum: μ, in [0, 1), of an average of the directions; 0 as in the paper keeps none.
        weight_decay: λ, in [0, ∞), decoupled.
        beta: decay rate of averages in place of the sums, in (0, 1), corrected for their beginning at 0 as Adam's
            are; None for sums.
        exponent: p of the powers −p, in (0, ∞); None for the paper's, ¼ of matrices and ½ of vectors.
        eps: ε, in (0, ∞), in the unit of the squared gradient.
        every: the powers are computed at the first step, and then at every so many.
        graft: ``"adam"`` for steps as long as those of Adam (without its average of gradients), tensor by tensor.
        graft_beta: β₂ of this Adam, in [0, 1).
        max_precond_dim: of more rows or columns than this, L or R is a diagonal.
        decay: ``"lr"`` for α_t λ θ, ``"schedule"`` for η_t λ θ as in the paper of AdamW.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        RuntimeError: (in `step`) a parameter is complex.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        beta: float | None = None,
        exponent: float | None = None,
        eps: float = 1e-4,
        every: int = 1,
        graft: Graft = "none",
        *,
        graft_beta: float = 0.999,
        max_precond_dim: int = 8192,
        decay: Literal["lr", "schedule"] = "lr",
        **options: Unpack[Options],
    ) -> None:
        direction = ShampooDirection(momentum, beta, exponent, eps, every, graft, graft_beta, max_precond_dim)
        super().__init__(params, [direction, DecoupledWeightDecay(weight_decay, decay)], lr=lr, **options)
