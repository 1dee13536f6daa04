"""What the tests of rules for matrices share: matrices, and where noisy gradients of a quadratic lead them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)


def eta(t: int) -> float:
    """The schedule of `path` at its step t, from 0."""
    return 1 / (1 + 0.1 * t)


def gradient(start: Tensor, t: int, i: int) -> Tensor:
    """The gradient of `path` at its step t for its parameter i, which began at `start`."""
    return gaussian(*start.shape, seed=1000 * t + i) + 0.5 * start


def path(
    make: Callable[[list[Tensor]], Optimizer],
    shapes: Sequence[tuple[int, ...]],
    steps: int = 30,
    dtype: torch.dtype = torch.float64,
    begin: int = 0,
    params: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], Optimizer]:
    """The parameters after these steps, and the optimizer."""
    starts = [gaussian(*shape, seed=i) for i, shape in enumerate(shapes)]
    params = [p.detach().clone().to(dtype).requires_grad_() for p in params or starts]
    optimizer = make(params)
    scheduler = LambdaLR(optimizer, eta)
    for t in range(begin, begin + steps):
        for i, (param, start) in enumerate(zip(params, starts, strict=True)):
            param.grad = gradient(start, t, i).to(dtype)
        optimizer.step()
        scheduler.step()
    return [p.detach() for p in params], optimizer


def follow(oracle: Callable[..., Any], shape: tuple[int, ...], i: int, steps: int = 30, **options: Any) -> Any:
    """Where `path` leads parameter i by ``oracle(theta, gradient, t, eta, memory, **options)``, t from 1."""
    start = gaussian(*shape, seed=i)
    theta, memory = start.numpy(), {}
    for t in range(steps):
        theta = oracle(theta, gradient(start, t, i).numpy(), t + 1, eta(t), memory, **options)
    return theta


def apart(params: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference of a coordinate."""
    return max((a - b).abs().max().item() for a, b in zip(params, others, strict=True))


def singular_values(x: Tensor) -> Tensor:
    return torch.linalg.svdvals(x.double())
