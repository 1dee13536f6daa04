"""Every optimizer of the book, any mix of them, as one real `torch.optim.Optimizer`."""

from .adam import Adam
from .chain import Chain
from .momentum import SGD
from .stage import Place, Stage
from .weight_decay import L2

__all__ = ["L2", "SGD", "Adam", "Chain", "Place", "Stage"]
