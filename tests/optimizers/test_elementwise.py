"""A stage that looks at more than one coordinate is refused before it moves anything; any other keeps working."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import SGD, Chain, Place, Stage
from optimizers.engine import elementwise

BOTH = pytest.mark.parametrize("fused", [False, True], ids=["eager", "compiled"])
SIZES = pytest.mark.parametrize("size", [3, 300_000], ids=["small", "large"])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be traced runs eagerly, and says so
        yield


def stage(update: Callable[..., Any], place: Place = Place.DIRECTION, **attributes: Any) -> Stage:
    kind = type("Custom", (Stage,), {"place": place, "update": staticmethod(update), **attributes})
    return kind()


NOT_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "unit norm": lambda g: g / g.norm(),
    "clipped norm": lambda g: g / g.norm().clamp(min=1.0),
    "clipped by item": lambda g: g / max(1.0, g.square().mean().sqrt().item()),
    "trust ratio": lambda g, param: g * (param.norm() / g.norm()).clamp(0.1, 10.0),
    "largest": lambda g: g / g.abs().max(),
    "centralized": lambda g: g - g.mean(),
    "centralized rows": lambda g: g - g.mean(-1, keepdim=True) if g.dim() > 1 else g,
    "median": lambda g: g - g.median(),
    "sum": lambda g: g.sum(),
    "decides by the sum": lambda g: g if g.sum() > 0 else -g,
    "all or nothing": lambda g: g if g.isfinite().all() else torch.zeros_like(g),
    "softmax": lambda g: g.softmax(-1),
    "sorted": lambda g: g.sort().values,
    "cumulative": lambda g: g.cumsum(0),
    "shifted": lambda g: g.roll(1),
    "top": lambda g: torch.where(g.abs() >= g.abs().flatten().topk(3).values.min(), g, 0.0),
    "quantized": lambda g: (g / g.abs().max() * 7).round() * g.abs().max() / 7,
    "orthogonal": lambda g: g @ g.T @ g if g.dim() == 2 else g,
    "by NumPy": lambda g: g / float(np.linalg.norm(g.numpy())),
    "by size": lambda g: g / g.numel() ** 0.5,
    "by dimensions": lambda g: g if g.dim() > 1 else 0 * g,
    "every tenth step": lambda g, step: g / g.norm() if step % 10 == 0 else g,
}


@SIZES
@BOTH
@pytest.mark.parametrize("name", NOT_ELEMENTWISE)
def test_what_depends_on_other_coordinates_is_refused(name: str, fused: bool, size: int) -> None:
    first, param = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(size, 1))
    first.grad, param.grad = torch.ones(2), torch.ones(size, 1)
    optimizer = Chain([first, param], [stage(NOT_ELEMENTWISE[name])], lr=0.1, fused=fused)
    with pytest.raises(ValueError, match=r"Custom\(\) is not elementwise: .*must not reduce over its tensor"):
        optimizer.step()
    assert torch.equal(first.detach(), torch.ones(2))
    assert torch.equal(param.detach(), torch.ones(size, 1))
    assert not optimizer.state


@BOTH
@pytest.mark.parametrize("place", list(Place))
def test_in_every_place(place: Place, fused: bool) -> None:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    with pytest.raises(ValueError, match="not elementwise: its result at a coordinate changes"):
        SGD([param], 0.1, extensions=[stage(lambda x: x - x.mean(), place)], fused=fused).step() if (
            place is not Place.DIRECTION
        ) else Chain([param], [stage(lambda x: x - x.mean())], lr=0.1, fused=fused).step()


@BOTH
def test_state_that_depends_on_other_coordinates_is_refused(fused: bool) -> None:
    def update(grad: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return grad, 0.9 * scale + 0.1 * grad.square().mean()

    def after(self: Stage, state: Any, known: Any) -> dict[str, Tensor]:
        return {"momentum_buffer": state["momentum_buffer"] / state["momentum_buffer"].norm()}

    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    with pytest.raises(ValueError, match="not elementwise: scale at a coordinate changes"):
        Chain([param], [stage(update, state=("scale",))], lr=0.1, fused=fused).step()
    late = stage(lambda new: new, Place.PARAMETERS, after=after)
    with pytest.raises(ValueError, match="not elementwise: momentum_buffer at a coordinate changes"):
        SGD([param], 0.1, momentum=0.9, extensions=[late], fused=fused).step()


def only_finite(grad: Tensor) -> Tensor:
    if grad.isnan().any():
        raise ArithmeticError("the gradient is not a number")
    return grad


ELEMENTWISE: dict[str, tuple[Callable[..., Any], float]] = {
    "sign": (lambda g: g.sign(), 1.0),
    "decides by a value": (lambda g: g.clamp(-1, 1) if g.abs().max() > 1 else g, 1.0),
    "decides by the step": (lambda g, step: g if step < 3 else -g, 2.0),
    "item": (lambda g, lr: g * torch.as_tensor(lr).item() * 10, 2.0),
    "NumPy": (lambda g: torch.from_numpy(np.sign(g.numpy())), 1.0),
    "a rare function": (lambda g: torch.special.bessel_j0(g) * 0 + g, 2.0),
    "raises": (only_finite, 2.0),
    "stacked": (lambda g, param: torch.stack([g, g + 0 * param]).mean(0), 2.0),
    "a constant": (lambda g: torch.ones(()), 1.0),
    "rounds": (lambda g: g.round(), 2.0),
    "only in single precision": (lambda g: g if g.dtype == torch.float32 else 1 / 0, 2.0),
}


@SIZES
@BOTH
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_what_looks_at_one_coordinate_at_a_time_keeps_working(name: str, fused: bool, size: int) -> None:
    function, expected = ELEMENTWISE[name]
    param = nn.Parameter(torch.ones(size))
    param.grad = torch.full((size,), 2.0)
    optimizer = Chain([param], [stage(function)], lr=0.1, fused=fused)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((size,), 1 - 0.1 * expected))


def test_a_stage_is_tried_once_and_again_in_another_form(monkeypatch: pytest.MonkeyPatch) -> None:
    class Normalizing(Stage):
        place = Place.DIRECTION
        ranges = {"normalize": "bool", "scale": "(0, inf)"}

        @staticmethod
        def update(grad: Tensor, normalize: bool, scale: float) -> Tensor:
            return scale * (grad / grad.norm() if normalize else grad)

    tried: list[Any] = []
    difference = elementwise._difference
    monkeypatch.setattr(elementwise, "_difference", lambda *given: tried.append(given) or difference(*given))
    param = nn.Parameter(torch.ones(3))
    optimizer = Chain([param], [Normalizing(normalize=False, scale=1.0)], lr=0.1)
    param.grad = torch.ones(3)
    optimizer.step()
    number = len(tried)
    assert number > 0
    for t in range(5):
        optimizer.param_groups[0]["scale"] = 1.0 + t
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + t)
        optimizer.step()
    assert len(tried) == number
    Chain([param], [Normalizing(normalize=False, scale=3.0)], lr=0.2).step()
    assert len(tried) == number
    optimizer.param_groups[0]["normalize"] = True
    with pytest.raises(ValueError, match="not elementwise"):
        optimizer.step()


def test_a_schedule_of_hyper_parameters_tries_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Betas that change at every step, as OneCycleLR has them; in a list, as configurations do; a tensor for lr."""
    tried: list[Any] = []
    difference = elementwise._difference
    monkeypatch.setattr(elementwise, "_difference", lambda *given: tried.append(given) or difference(*given))
    elementwise._proven.clear()
    param = nn.Parameter(torch.ones(3))
    extensions = [optimizers.ClipNorm(1.0)]
    optimizer = optimizers.Adam([param], torch.tensor(0.1), extensions=extensions)
    numbers = []
    for t in range(4):
        optimizer.param_groups[0]["betas"] = [0.9 - 0.1 * t, 0.99]
        param.grad = torch.ones(3)
        optimizer.step()
        numbers.append(len(tried))
    assert numbers[0] > 0
    assert numbers == numbers[:1] * 4


def test_nothing_of_ours_is_refused_and_the_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    elementwise._proven.clear()
    for name in optimizers.list():
        for device in ("cpu", "meta"):
            extensions: list[Any] = [
                optimizers.GradientNoise(), optimizers.GradientDropout(), optimizers.LearningRateDropout(),
                optimizers.Lookahead(2), optimizers.ClipNorm(1.0), optimizers.ClipValue(1.0),
            ]  # fmt: skip
            param = nn.Parameter(torch.ones(3, 2))
            param.grad = torch.ones(3, 2)
            with torch.device(device):  # where a step must not look for its tensors
                optimizers.create(name, [param], extensions=extensions, weight_decay=0.1).step()
    assert torch.equal(torch.get_rng_state(), before)
