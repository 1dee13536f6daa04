"""The lists of shapes against the models that they stand for."""

import math

import pytest
import torch

from benchmarks.shapes import SHAPES, resnet50, shrunk
from experiments.data import import_torchvision


@pytest.mark.parametrize(
    ("name", "tensors", "values"),
    [
        ("cnn", 20, 808_458),
        ("resnet50", 161, 25_557_032),
        ("gpt2", 148, 124_439_808),
        ("tiny", 1000, 1_000_000),
        ("attention", 4, 2_362_368),
    ],
)
def test_counts(name: str, tensors: int, values: int) -> None:
    shapes = SHAPES[name]()
    assert (len(shapes), sum(map(math.prod, shapes))) == (tensors, values)


def test_resnet50_is_torchvisions_in_order() -> None:
    import_torchvision()
    from torchvision.models import resnet50 as build

    with torch.device("meta"):
        model = build()
    assert resnet50() == [tuple(p.shape) for p in model.parameters()]


def test_shrunk_keeps_the_number_of_dimensions() -> None:
    small = shrunk(resnet50())
    assert [len(shape) for shape in small] == [len(shape) for shape in resnet50()[:50]]
    assert max(max(shape) for shape in small) == 8
