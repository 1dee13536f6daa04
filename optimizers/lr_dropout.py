r"""Learning-rate dropout, and the gradient dropout that it is compared with (Lin et al., 2019)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .engine import SEED, Place, Stage, uniform


class LearningRateDropout(Stage):
    r"""Let every coordinate move at this step with probability p only.

    .. math:: \theta_t = \theta_{t-1} - d_t \odot u_t, \qquad d_t \sim \mathrm{Bernoulli}(p)

    Lin et al. (2019), for any update u, as their released code has it: the mask d, drawn anew for every
    coordinate and step, multiplies the learning rate. All moments have seen the whole gradient by then, and
    nothing is divided by p: the mean step is p times the whole one. The paper decays weights through the gradient
    only; decoupled decay is part of the update here, so a coordinate that is left out stays exactly where it is.
    Lookahead's pull, which comes after the step, is not masked.

    Args:
        keep: p, the probability that a coordinate moves, in (0, 1]; 1 masks nothing.
        seed: a whole number in [0, 2⁶³); the mask is a function of it, the step, the coordinate and the parameter:
            of its name, or of its place among all that are trained together, by one optimizer or by several (see
            `optimizers.engine.identity`).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    place = Place.STEP_SIZE
    sparse = "entries"
    prefix = "lr_dropout"
    ranges = {"keep": "(0, 1]", "seed": SEED}

    def __init__(self, keep: float = 0.5, seed: int = 0) -> None:
        super().__init__(keep=keep, seed=seed)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["keep"] != 1)

    @staticmethod
    def update(update: Tensor, index: int, step: float, coordinate: Tensor, keep: float, seed: int) -> Tensor:
        # d_t ~ Bernoulli(p)
        mask = uniform(seed, index, step, coordinate, stream=3) < keep
        # u_t ← d_t ⊙ u_t
        return torch.where(mask, update, 0)


class GradientDropout(Stage):
    r"""Show the direction every coordinate of the gradient with probability p only, else 0.

    .. math:: g_t \leftarrow d_t \odot g_t, \qquad d_t \sim \mathrm{Bernoulli}(p)

    What Lin et al. (2019) compare learning-rate dropout with: the same mask in front of the moments, which take
    the zeros for gradients. Nothing is divided by p. Under a constant gradient SGD's mean step is p times the whole
    one, Adam's about √p times. Gradient noise is masked with the gradient; L2 decay is added after the mask.

    Args:
        keep: p, the probability that a coordinate of the gradient counts, in (0, 1]; 1 masks nothing.
        seed: a whole number in [0, 2⁶³); the mask is a function of it, the step, the coordinate and the parameter:
            of its name, or of its place among all that are trained together, by one optimizer or by several (see
            `optimizers.engine.identity`).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    place = Place.GRADIENT
    sparse = "entries"
    rank = -1
    prefix = "gradient_dropout"
    ranges = {"keep": "(0, 1]", "seed": SEED}

    def __init__(self, keep: float = 0.9, seed: int = 0) -> None:
        super().__init__(keep=keep, seed=seed)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["keep"] != 1)

    @staticmethod
    def update(grad: Tensor, index: int, step: float, coordinate: Tensor, keep: float, seed: int) -> Tensor:
        # d_t ~ Bernoulli(p)
        mask = uniform(seed, index, step, coordinate, stream=2) < keep
        # g_t ← d_t ⊙ g_t
        return torch.where(mask, grad, 0)
