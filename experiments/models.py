"""The three models of the book: logistic regression, and the reference's MLP and CNN.

Every factory draws its weights from a generator of its own: the same seed gives the same model,
and the global random state is as it was.
"""

from itertools import pairwise

import torch
from torch import nn


def logistic(in_features: int = 784, classes: int = 10, *, seed: int) -> nn.Sequential:
    """Multinomial logistic regression on flattened images (N, C, H, W) -> logits (N, classes)."""
    return mlp(in_features, (), classes, seed=seed)


def mlp(in_features: int = 784, hidden: tuple[int, ...] = (64,), classes: int = 10, *, seed: int) -> nn.Sequential:
    """Fully connected ReLU network on flattened images (N, C, H, W) -> logits (N, classes)."""
    widths = (in_features, *hidden)
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights that we replace
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(widths[-1], classes))
    return _initialize(model, seed)


def cnn(in_channels: int = 3, size: int = 32, classes: int = 10, *, seed: int) -> nn.Sequential:
    """The reference's CNN on images (N, in_channels, size, size) -> logits (N, classes).

    One 5×5 convolution to 64 channels, four blocks of 3×3 convolution, batch normalization and ReLU, one
    linear layer, and no pooling: 808,458 parameters for CIFAR-10.
    """
    with torch.random.fork_rng(devices=[]):
        layers: list[nn.Module] = [nn.Conv2d(in_channels, 64, 5, padding=2), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * size * size, classes))
    return _initialize(model, seed)


def _initialize(model: nn.Sequential, seed: int) -> nn.Sequential:
    """Xavier-normal weights and zero biases (Glorot & Bengio 2010), drawn from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(module.weight, generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model
