"""The displayed equations of the chapter on speed, and the operations and streams that it counts, in the code."""

import re

import pytest
import torch

import optimizers
from benchmarks import traffic
from benchmarks.rules import RULES
from benchmarks.shapes import resnet50
from optimizers import Adam

from .equations import Chapter

CHAPTER = Chapter("speed")
equation = CHAPTER.equation


def parameter() -> torch.Tensor:
    p = torch.zeros(1000, requires_grad=True)
    p.grad = torch.ones(1000)
    return p


def remembered(optimizer: torch.optim.Optimizer) -> int:
    """s: how many numbers the rule remembers per parameter."""
    optimizer.step()
    (state,) = optimizer.state.values()
    return sum(value.numel() for value in state.values() if value.numel() > 1) // 1000


@equation("eq-speed-limit", r"T_{\min} = \frac{4d\,(3 + 2s)}{B} .")
def test_limit() -> None:
    d, bandwidth = 1000, 1e9
    for name, s in (("sgd", 1), ("rmsprop", 1), ("adam", 2), ("radam", 2), ("amsgrad", 3), ("aggmo", 3)):
        assert remembered(RULES[name].ours([parameter()], fused=False)) == s
        seconds = d * RULES[name].streams * torch.zeros(()).element_size() / bandwidth
        assert seconds == pytest.approx(4 * d * (3 + 2 * s) / bandwidth)
    assert remembered(optimizers.SGD([parameter()])) == 0


def operations_of_the_compiled_loop() -> list[str]:
    adam = Adam([parameter()], fused=True)
    adam.step()
    return re.findall(r"const float x\d+ = (.*);", traffic.compiled_loop(adam))


@equation("eq-speed-intensity", r"I = \frac{F}{4\,(3 + 2s)} = \frac{14}{28} = \frac12")
def test_intensity() -> None:
    operations = operations_of_the_compiled_loop()
    assert len(operations) == 14
    assert sum(" / " in line for line in operations) == 1
    assert sum(" * per_" in line for line in operations) == 2, "two more, as products with a shared reciprocal"
    assert sum("sqrtf" in line for line in operations) == 1
    assert len(operations) / (4 * RULES["adam"].streams) == 0.5


@equation("eq-speed-roofline", r"\min(P,\; I \cdot B)")
def test_roofline() -> None:
    """Left of the ridge P / B the smaller one is I B: F operations per coordinate in the time of the limit."""
    peak, bandwidth, d = 100e9, 10e9, 1000
    operations, bytes_moved = len(operations_of_the_compiled_loop()), 4 * RULES["adam"].streams
    intensity = operations / bytes_moved
    assert intensity < peak / bandwidth
    limit = bytes_moved * d / bandwidth
    assert min(peak, intensity * bandwidth) == pytest.approx(operations * d / limit)


@equation("eq-speed-loop", r"T \approx n\,k\,c + \frac{4d\,q}{B} ,")
def test_loop() -> None:
    """k and q of torch's loop: seven operations on the tensor, eighteen streams, for each of n tensors."""
    for n in (1, 3):
        adam = torch.optim.Adam([parameter() for _ in range(n)], foreach=False)
        adam.step()
        operations = traffic.of_step(adam)
        assert (len(operations), sum(streams for _, streams in operations)) == (7 * n, 18 * n)
    # The exercise: at 8 calls of 1 µs and 20 GB/s both terms are equal at d ≈ 2,200.
    d = 8e-6 * 20e9 / (4 * 18)
    assert d == pytest.approx(2222, rel=1e-3)
    small = [shape for shape in resnet50() if torch.Size(shape).numel() < d]
    assert len(small) == 107
    assert all(len(shape) == 1 for shape in small)
    assert sum(torch.Size(shape).numel() for shape in small) / 25_557_032 == pytest.approx(0.002, abs=2e-4)


def test_the_loop_loads_four_numbers_and_stores_three() -> None:
    adam = Adam([parameter()], fused=True)
    adam.step()
    loop = traffic.compiled_loop(adam)
    assert len(re.findall(r"= \w+_at\[i\];", loop)) == 4
    assert len(re.findall(r"^\s*\w+_at\[i\] = ", loop, re.MULTILINE)) == 3
    assert loop.startswith("for (")
    assert loop.endswith("\n}")


def test_an_eager_step_has_no_compiled_loop() -> None:
    adam = Adam([parameter()], fused=False)
    adam.step()
    assert traffic.compiled_loop(adam) == ""


def test_the_page_says_what_is_tested() -> None:
    assert CHAPTER.tested == CHAPTER.equations
