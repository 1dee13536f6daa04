"""The shapes of the parameters of four models and a layer: lists, so that nothing has to be built or downloaded."""

from collections.abc import Callable

from experiments import models

Shape = tuple[int, ...]


def cnn() -> list[Shape]:
    """The book's CNN on CIFAR-10: 20 tensors, 808,458 values."""
    return [tuple(p.shape) for p in models.cnn(seed=0).parameters()]


def resnet50() -> list[Shape]:
    """ResNet-50 (He et al. 2016), 1,000 classes, as torchvision has it: 161 tensors, 25,557,032 values."""

    def convolution(inputs: int, outputs: int, size: int) -> list[Shape]:
        # with the weight and bias of the batch normalization that follows; the convolution has no bias
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]

    shapes = convolution(3, 64, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        outputs = 4 * width
        for block in range(blocks):
            shapes += convolution(inputs, width, 1) + convolution(width, width, 3) + convolution(width, outputs, 1)
            if block == 0:  # the shortcut, where the number of channels changes
                shapes += convolution(inputs, outputs, 1)
            inputs = outputs
    return [*shapes, (1000, 2048), (1000,)]


def gpt2() -> list[Shape]:
    """GPT-2 small (Radford et al. 2019), output tied to the embedding: 148 tensors, 124,439,808 values."""
    width = 768
    norm = [(width,), (width,)]
    mlp = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *12 * (norm + attention() + norm + mlp), *norm]


def attention() -> list[Shape]:
    """One layer of GPT-2 small's attention, for rules whose products of matrices take long: 4 tensors, 2,362,368
    values.
    """
    width = 768
    return [(width, 3 * width), (3 * width,), (width, width), (width,)]


def tiny() -> list[Shape]:
    """1,000 tensors of 1,000 values: more bookkeeping than arithmetic."""
    return [(1000,)] * 1000


SHAPES: dict[str, Callable[[], list[Shape]]] = {
    "cnn": cnn,
    "resnet50": resnet50,
    "gpt2": gpt2,
    "tiny": tiny,
    "attention": attention,
}


def shrunk(shapes: list[Shape]) -> list[Shape]:
    """The first 50 tensors with no side longer than 8: to try the benchmark, not to measure anything."""
    return [tuple(min(side, 8) for side in shape) for shape in shapes[:50]]
