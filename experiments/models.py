"""The models of the book: logistic regression, the reference's MLP and CNN, and a small GPT.

Every factory draws its weights from a generator of its own: the same seed gives the same model,
and the global random state is as it was.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


class Block(nn.Module):
    """Attention to what came before, then a layer for each position by itself; both add to what goes through."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attention.transpose(1, 2).reshape(x.shape))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


class GPT(nn.Module):
    """A decoder-only transformer on symbols (N, T) -> logits of the next ones (N, T, symbols); T at most `context`.

    RMSNorm in front of each part and at the end, GELU, learned positions, no biases, and a head of its own.
    """

    def __init__(self, symbols: int, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(symbols, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, symbols, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text) + self.positions.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def gpt(symbols: int, *, layers: int = 2, width: int = 64, heads: int = 4, context: int = 64, seed: int) -> GPT:
    """A small GPT: 111,040 parameters for 65 symbols. GPT-2 small has 12 layers, width 768, 12 heads and a context
    of 1024.

    Embeddings and the head are N(0, 0.02²) (Radford et al. 2019); matrices between hidden layers N(0, 1/fan-in),
    which at this width is more, those whose output is added to what goes through 1/√(2 layers) of it.
    """
    with torch.random.fork_rng(devices=[]):
        model = GPT(symbols, layers, width, heads, context)
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        if param.dim() == 2:
            hidden = name.startswith("blocks.")
            deviation = param.shape[1] ** -0.5 if hidden else 0.02
            if hidden and name.endswith(("proj.weight", "down.weight")):
                deviation *= (2 * layers) ** -0.5
            nn.init.normal_(param, std=deviation, generator=generator)
    return model
