r"""Cautious steps (Liang, Chen, Liu and Liu, 2024) and cautious weight decay (Chen et al., 2026)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .engine import Place, Stage, select
from .weight_decay import no_decay


def opposed(a: Tensor, b: Tensor) -> Tensor:
    """Where a·b ≤ 0, and not where the product of two small numbers is rounded to 0."""
    return a.sign() * b.sign() <= 0


class Cautious(Stage):
    r"""Move only the coordinates in which the step goes down the gradient of now, and those by more.

    .. math:: \theta_t = \theta_{t-1} - s\, [u_t g_t > 0] \odot u_t, \qquad s = \frac{n}{\#\{u_t g_t > 0\}}

    Liang, Chen, Liu and Liu (2024), for any direction that remembers earlier gradients; s counts the n coordinates
    of one tensor. As in their code, decoupled decay is neither masked nor asked: u is the step without it. g is the
    gradient as it came, before clipping, noise or an L2 penalty.

    At an unchanged learning rate this is also a larger step: on noise alone its RMS is about 1.4 times the plain
    one. (So a control is the plain optimizer at 1.4 times the rate; ``rescale="none"`` is another.)

    **With Muon** the mask comes after the orthogonalization and undoes it: the singular values of a 64 × 64 step,
    at most 1.2 before, go up to 2. With SOAP and Shampoo, too, it mixes the directions that they have told apart.

    Args:
        rescale: s. ``"mean"`` divides by the share of coordinates that move, of which `eps` is the least that
            counts, as in the authors' C-AdamW and in timm; ``"count"`` is n / (count + eps) as in the first version
            of the paper, C-Lion and pytorch-optimizer, which halves the step of a single number; ``"none"`` is 1,
            the mask alone; and ``"off"`` leaves a parameter group's steps as they are.
        eps: in (0, ∞); None for 0.001 with ``"mean"``, 1 with ``"count"``.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        ValueError: (when the optimizer is made) the direction always has the sign of the gradient.
    """

    place = Place.UPDATE
    rank = -1  # before decay
    reach = "tensor"
    prefix = "cautious"
    ranges = {"rescale": "mean | count | none | off", "eps": "(0, inf) or None"}

    def __init__(self, rescale: Literal["mean", "count", "none", "off"] = "mean", eps: float | None = None) -> None:
        super().__init__(rescale=rescale, eps=eps)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["rescale"] != "off")

    def joined(self, chain: Sequence[Stage]) -> Stage:
        directions = [stage for stage in chain if stage.place is Place.DIRECTION]
        if not any(map(remembers_gradients, directions)):
            names = " and ".join(type(stage).__name__ for stage in directions) or "a chain without a direction"
            raise ValueError(
                f"Cautious moves the coordinates in which the step has the sign of the gradient, and with {names} "
                "that is every one: it remembers no earlier gradients (no velocity). Give it momentum, or leave "
                "Cautious out"
            )
        return self

    @staticmethod
    def terms(update: Tensor, grad: Tensor) -> dict[str, Tensor]:
        one = torch.ones_like(update)
        return {"moving": torch.where(opposed(update, grad), 0, one), "size": one}

    @staticmethod
    def update(update: Tensor, grad: Tensor, moving: float, size: float, rescale: str, eps: float | None) -> Tensor:
        # u_t ← [u_t g_t > 0] u_t, and what is no number stays none
        masked = torch.where(opposed(update, grad), 0 * update, update)
        if rescale == "mean":
            # s = 1 / max(mean [u_t g_t > 0], ε)
            least = 1e-3 if eps is None else eps
            share = moving / select(size > 0, size, 1.0)
            masked = masked * (1 / select(share > least, share, least))
        elif rescale == "count":
            # s = n / (#{u_t g_t > 0} + ε)
            masked = masked * (size / (moving + (1.0 if eps is None else eps)))
        return masked


def remembers_gradients(direction: Stage) -> bool:
    """Whether a direction, at the optimizer's own settings, can differ from the gradient in sign."""
    if direction.reach == "matrix":
        return True
    used = direction.remembers(direction.hyper) if direction.applies(direction.hyper) else ()
    velocities = [name for name in direction.velocity if name in used]
    beta1, *_ = direction.hyper.get("betas", (None,))
    # An average with β₁ = 0 is the gradient.
    return len(velocities) > int(beta1 == 0)


class CautiousWeightDecay(Stage):
    r"""Decoupled decay, but only in the coordinates that the step shrinks anyway.

    .. math:: \theta_t = \theta_{t-1} - \alpha_t
        \left( u_t + \lambda\, [u_t \theta_{t-1} > 0] \odot \theta_{t-1} \right)

    Chen et al. (2026), for any direction. Where decay would pull against the step it is left out, so that it does
    not move the minimum: plain decoupled decay, as in AdamW, finds one of another problem. (The paper writes ≥: the
    two differ where a step is exactly 0, which here leaves the coordinate where it is.)

    It takes the place of the optimizer's own decay: ``AdamW(params, weight_decay=0, extensions=[…])``.

    Args:
        weight_decay: λ, in [0, ∞), × the learning rate, as for :class:`optimizers.AdamW`; in a parameter group,
            ``cautious_weight_decay``.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        ValueError: (when the optimizer is made) it decays already.
    """

    place = Place.UPDATE
    rank = 1  # after Cautious
    prefix = "cautious"
    ranges = {"weight_decay": "[0, inf)"}

    def __init__(self, weight_decay: float = 1e-2) -> None:
        super().__init__(weight_decay=weight_decay)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["weight_decay"] != 0)

    def refuses_beside(self, others: Sequence[tuple[Stage, Mapping[str, Any]]]) -> str | None:
        return no_decay(self, others, "which decays in its place")

    @staticmethod
    def update(update: Tensor, param: Tensor, lr: float, weight_decay: float) -> Tensor:
        # u_t ← u_t + α_t λ [u_t θ_{t−1} > 0] θ_{t−1}
        return update + torch.where(opposed(update, param), 0, (lr * weight_decay) * param)
