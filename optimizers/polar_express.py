"""The Polar Express: for each step of Newton and Schulz a polynomial of its own (Amsel et al., 2025)."""

import math
from functools import lru_cache

import torch

Coefficients = tuple[float, float, float]  # (a, b, c) of p(s) = a s + b s³ + c s⁵

LEAST = 1e-3  # singular values from here to 1 are brought near to 1
CUSHION = 0.02  # a polynomial leaves what is below this part of the largest value to later ones, which are flatter
ROOM = 1.02  # for rounding, which may make a value larger than its bound: all but the last are taken at s / 1.02
PADE: Coefficients = (15 / 8, -10 / 8, 3 / 8)  # what they tend to: at 1 it is 1, with two derivatives of 0


def value(polynomial: Coefficients, s: float) -> float:
    """p(s)."""
    a, b, c = polynomial
    return a * s + b * s**3 + c * s**5


def nearest_to_one(low: float, high: float) -> Coefficients:
    """The odd polynomial of degree 5 that is nearest to 1 on [low, high], by Remez's algorithm."""
    if high - low < 1e-5:
        return PADE
    # Between the ends, p − 1 has its extremes at x and y, in the end; at all four it is ±E, with changing signs.
    x, y, error, before = (3 * low + high) / 4, (low + 3 * high) / 4, math.inf, -math.inf
    while abs(error - before) > 1e-15:
        # a s + b s³ + c s⁵ ± E = 1 at each
        rows = [[s, s**3, s**5, sign] for s, sign in ((low, 1), (x, -1), (y, 1), (high, -1))]
        matrix = torch.tensor(rows, dtype=torch.float64, device="cpu")
        before, (a, b, c, error) = error, torch.linalg.solve(matrix, torch.ones_like(matrix[0])).tolist()
        # 0 = p'(s) = a + 3 b s² + 5 c s⁴
        root = math.sqrt(9 * b**2 - 20 * a * c)
        x, y = (math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1))
    return a, b, c


@lru_cache
def polar_express(steps: int) -> tuple[Coefficients, ...]:
    """The polynomials of so many steps, each the best for what those before it leave of [LEAST, 1]."""
    polynomials, (low, high) = [], (LEAST, 1.0)
    for _ in range(steps):
        p = nearest_to_one(max(low, CUSHION * high), high)
        # [low, high] becomes an interval about 1
        scale = 2 / (value(p, low) + value(p, high))
        p = scale * p[0], scale * p[1], scale * p[2]
        polynomials.append(p)
        low = value(p, low / ROOM)
        high = 2 - low
    return (*((a / ROOM, b / ROOM**3, c / ROOM**5) for a, b, c in polynomials[:-1]), polynomials[-1])
