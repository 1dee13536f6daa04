"""The generator: the right numbers, and 10⁷ of them that no test of moments or correlations tells from chance.

Every bound is five standard deviations of the statistic under chance; the seeds are fixed, so a run repeats.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from optimizers.engine.random import _mix, bits, normal, uniform

N = 10_000_000
SEED, INDEX, STEP = 11, 2, 7


def lowbias32(x: int) -> int:
    """Wellons' mixer on Python's own integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def words(seed: int, index: int, step: int, coordinate: int, stream: int) -> int:
    """The definition of the generator: one mix per word of the key, two for the coordinate."""
    key = seed % 2**32
    for word in (seed >> 32, index, step, stream):
        key = (lowbias32(key) + word + 0x9E3779B9) % 2**32
    low, high = coordinate % 2**32, coordinate >> 32
    return lowbias32((lowbias32(low ^ lowbias32(key)) + high + key) % 2**32)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63 - 1])
@pytest.mark.parametrize("tensor_step", [False, True])
def test_bits_are_lowbias32_of_the_counters(seed: int, tensor_step: bool) -> None:
    coordinates = [0, 1, 5, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 3]
    for index, step, stream in [(0, 1, 0), (3, 2, 1), (1000, 2**24, 7)]:
        at = torch.tensor(float(step)) if tensor_step else float(step)
        drawn = bits(seed, index, at, torch.tensor(coordinates), stream)
        assert drawn.dtype == torch.int32
        assert [x % 2**32 for x in drawn.tolist()] == [words(seed, index, step, c, stream) for c in coordinates]


def unmixed(y: int) -> int:
    """The way back through lowbias32: its multipliers are odd, and its shifts leave the high bits alone."""
    y ^= y >> 16
    y = y * pow(0x846CA68B, -1, 2**32) % 2**32
    y ^= y >> 15 ^ y >> 30
    y = y * pow(0x7FEB352D, -1, 2**32) % 2**32
    return y ^ y >> 16


def test_the_mixer_is_one_to_one() -> None:
    """So no two counters can collide."""
    x = torch.randint(-(2**31), 2**31, (20_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    assert [unmixed(y % 2**32) for y in _mix(x).tolist()] == [y % 2**32 for y in x.tolist()]


def test_uniform_and_normal_are_made_of_the_bits() -> None:
    coordinate = torch.arange(1000)
    u = [(words(SEED, INDEX, STEP, c, 6) >> 8) / 2**24 for c in range(1000)]
    v = [(words(SEED, INDEX, STEP, c, 7) >> 8) / 2**24 for c in range(1000)]
    assert uniform(SEED, INDEX, STEP, coordinate, 6).tolist() == u
    box_muller = [math.sqrt(-2 * math.log(1 - a)) * math.cos(2 * math.pi * b) for a, b in zip(u, v, strict=True)]
    assert np.allclose(normal(SEED, INDEX, STEP, coordinate, 3), box_muller, rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def draws() -> Tensor:
    return normal(SEED, INDEX, STEP, torch.arange(N)).double()


@pytest.fixture(scope="module")
def uniforms() -> Tensor:
    return uniform(SEED, INDEX, STEP, torch.arange(N), 3)


def correlation(x: Tensor, y: Tensor) -> float:
    return (torch.dot(x, y) / len(x)).item()


def test_moments_of_the_normal(draws: Tensor) -> None:
    # The variances of the sample mean, variance, skewness and kurtosis of N normal numbers: 1, 2, 6 and 24 over N.
    mean, variance = draws.mean(), draws.var()
    z = (draws - mean) / variance.sqrt()
    assert abs(mean) < 5 * math.sqrt(1 / N)
    assert abs(variance - 1) < 5 * math.sqrt(2 / N)
    assert abs((z**3).mean()) < 5 * math.sqrt(6 / N)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(24 / N)


def test_the_distribution_of_the_normal(draws: Tensor) -> None:
    # Kolmogorov–Smirnov: √N times the largest distance exceeds 2.7 by chance once in a million. The grid of 2⁻²⁴
    # is far below that. And the tails: how many of 10⁷ are beyond 4 deviations.
    ordered = draws.sort().values
    below = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    distance = (below - (torch.arange(N, dtype=torch.float64) + 0.5) / N).abs().max()
    assert distance * math.sqrt(N) < 2.7
    expected = N * math.erfc(4 / math.sqrt(2))
    assert abs((draws.abs() > 4).sum().item() - expected) < 5 * math.sqrt(expected)
    assert draws.abs().max() < 5.9  # √(−2 ln 2⁻²⁴) = 5.77


def test_uniform_numbers(uniforms: Tensor) -> None:
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert abs(uniforms.double().mean() - 0.5) < 5 * math.sqrt(1 / 12 / N)
    # χ² of 1000 bins has mean 999 and variance 2 · 999.
    counts = torch.histc(uniforms, 1000, 0, 1).double()
    assert abs(((counts - N / 1000) ** 2 / (N / 1000)).sum() - 999) < 5 * math.sqrt(2 * 999)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_masks_keep_their_share(uniforms: Tensor, keep: float) -> None:
    kept = (uniforms < keep).double()
    assert abs(kept.mean() - keep) < 5 * math.sqrt(keep * (1 - keep) / N)
    # In runs, too: two neighbors are both kept with probability keep².
    both = (kept[1:] * kept[:-1]).mean()
    assert abs(both - keep**2) < 5 * math.sqrt(3 * keep**2 / N)


def test_every_bit_is_fair(draws: Tensor) -> None:
    drawn = bits(SEED, INDEX, STEP, torch.arange(N), 9)
    for bit in range(32):
        ones = ((drawn >> bit) & 1).sum().item()
        assert abs(ones - N / 2) < 5 * math.sqrt(N / 4), bit


@pytest.mark.parametrize("lag", [1, 2, 3, 10, 64, 1000, 65536])
def test_coordinates_are_independent(draws: Tensor, lag: int) -> None:
    assert abs(correlation(draws[lag:], draws[:-lag])) < 5 / math.sqrt(N - lag)
    # Of the squares, too, whose variance is 2: independent, not only uncorrelated.
    square = draws**2 - 1
    assert abs(correlation(square[lag:], square[:-lag])) < 5 * 2 / math.sqrt(N - lag)


OTHERS = {
    "the next step": (SEED, INDEX, STEP + 1, 0),
    "a step later by 5": (SEED, INDEX, STEP + 5, 0),
    "the next parameter": (SEED, INDEX + 1, STEP, 0),
    "parameter and step swapped": (SEED, STEP, INDEX, 0),
    "the next seed": (SEED + 1, INDEX, STEP, 0),
    "a seed's high word": (SEED + 2**32, INDEX, STEP, 0),
    "seed and parameter moved together": (SEED + 1, INDEX - 1, STEP, 0),
    "the next stream": (SEED, INDEX, STEP, 1),
    "stream and step moved together": (SEED, INDEX, STEP - 1, 1),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_steps_parameters_seeds_and_streams_are_independent(
    draws: Tensor, other: tuple[int, int, int, int]
) -> None:
    seed, index, step, stream = other
    fresh = normal(seed, index, step, torch.arange(N), stream).double()
    assert abs(correlation(draws, fresh)) < 5 / math.sqrt(N)
    assert abs(correlation(draws**2 - 1, fresh**2 - 1)) < 5 * 2 / math.sqrt(N)
    # Nor is one a shifted copy of the other.
    for shift in (1, 1024):
        assert abs(correlation(draws[shift:], fresh[:-shift])) < 5 / math.sqrt(N - shift)


def test_one_coordinate_over_many_seeds_steps_and_parameters() -> None:
    """Noise in the other direction: the few first coordinates, which biases of small models see, over all else."""
    n = 300
    coordinate = torch.arange(4)
    tables = {
        "steps": torch.stack([normal(SEED, INDEX, t, coordinate) for t in range(1, n + 1)]),
        "parameters": torch.stack([normal(SEED, i, STEP, coordinate) for i in range(n)]),
        "seeds": torch.stack([normal(s, INDEX, STEP, coordinate) for s in range(n)]),
    }
    for name, table in tables.items():
        z = table.double()
        assert abs(z.mean()) < 5 / math.sqrt(4 * n), name
        assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / (4 * n)), name
        assert abs((z[1:] * z[:-1]).mean()) < 5 / math.sqrt(4 * n), name
        assert abs((z[:, 1:] * z[:, :-1]).mean()) < 5 / math.sqrt(3 * n), name


def test_large_tensors_have_their_own_numbers_beyond_2_32() -> None:
    here, there = torch.arange(1000), torch.arange(1000) + 2**32
    assert (bits(SEED, INDEX, STEP, here) == bits(SEED, INDEX, STEP, there)).sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_no_number(dtype: torch.dtype) -> None:
    def drawn() -> Tensor:
        return normal(seed=3, index=1, step=2.0, coordinate=torch.arange(1000))

    expected = drawn()
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(drawn(), expected)
        assert expected.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
