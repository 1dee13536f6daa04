"""Problems small enough to follow by hand. The running quadratic carries the ideas of the whole book."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quadratic:
    """f(θ) = ½ Σᵢ λᵢ θᵢ², a bowl as narrow as the ratio of its curvatures λ. All in float64."""

    curvatures: tuple[float, ...] = (1.0, 20.0)
    start: tuple[float, ...] = (-4.0, 1.5)

    def __post_init__(self) -> None:
        if len(self.curvatures) != len(self.start):
            raise ValueError(f"{len(self.curvatures)} curvatures but a start of {len(self.start)} coordinates")

    @property
    def eigenvalues(self) -> Tensor:
        """λ, shape (n,)."""
        return torch.tensor(self.curvatures, dtype=torch.float64)

    def initial(self) -> Tensor:
        """A fresh copy of the starting point, shape (n,)."""
        return torch.tensor(self.start, dtype=torch.float64)

    def loss(self, theta: Tensor) -> Tensor:
        """f(θ) for θ of shape (..., n); shape (...)."""
        return 0.5 * (self.eigenvalues * theta**2).sum(-1)

    def gradient(self, theta: Tensor) -> Tensor:
        """∇f(θ) = λ θ, elementwise; the shape of θ."""
        return self.eigenvalues * theta
