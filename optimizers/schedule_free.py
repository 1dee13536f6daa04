r"""Schedule-Free (Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .average import Average
from .engine import Place, Stage, select
from .hyperball import Hyperball
from .lookahead import Lookahead

# The largest learning rate is remembered as a float32: of one that is the same it may differ in the last place.
_ROUNDING = 1e-6


def warmed_up(lr: Any, step: Any, warmup_steps: Any) -> Any:
    """α_t: the learning rate, which grows linearly in the first steps."""
    # α_t = α min(1, t / T_warmup)
    ratio = warmup_steps / step
    return lr / select(ratio > 1, ratio, 1)


class ScheduleFree(Stage):
    r"""Average the iterates instead of lowering the learning rate, and take gradients close to the average.

    .. math:: z_{t+1} = z_t - \alpha_t d_t(y_t), \qquad x_{t+1} = (1 - c_t) x_t + c_t z_{t+1}, \qquad
        y_t = (1 - \beta) z_t + \beta x_t

    Equations 3–5 of Defazio et al. (2024), for any direction d, in the form of their code (`schedulefree`), which
    holds y and z: the parameters are y, where gradients and decoupled decay are taken; z is a state; the average
    :math:`x = y + (1 - 1/\beta)(z - y)` is where `optimizer.averaged()`, or `optimizer.eval()`, evaluates. The
    weights are :math:`c_t = w_t / (w_1 + \dots + w_t)` with :math:`w_t = t^r \max_{i \le t} \alpha_i^p`, t a
    parameter's own steps.

    The learning rate is meant to stay, and 1 to 10 times AdamW's, 10 to 50 times SGD's: `warmup_steps` warms it up,
    a scheduler that lowers it is refused. The directions' own momentum is best switched off, as in
    ``AdamW(params, 2.5e-3, betas=(0.0, 0.999), extensions=[ScheduleFree()])``, the authors' AdamWScheduleFree: no
    average of gradients is kept then.

    Args:
        beta: β, in (0, 1]: 1 takes the gradient at the average itself. At 0 that could not be told from y and z:
            there, the method is :class:`optimizers.Average` with ``decay=None``.
        warmup_steps: T_warmup, steps in which α_t grows linearly to the learning rate; a whole number in [0, ∞).
        r: power of t in the weights, in [0, ∞).
        weight_lr_power: p, power of the largest learning rate in the weights, in [0, ∞).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        ValueError: (when the optimizer is made) it has another average of the iterates (Lookahead, Average), or
            keeps them on a sphere (Hyperball).
        ValueError: (in `step`) the learning rate is below an earlier one.
    """

    place = Place.STEP_SIZE
    rank = 50  # what arrives is all that would move z
    averages = True
    sparse = "whole"
    wide = True
    prefix = "schedule_free"
    ranges = {
        "beta": "(0, 1]",
        "warmup_steps": f"int [0, {2**31})",
        "r": "[0, inf)",
        "weight_lr_power": "[0, inf)",
    }
    state = ("z",)
    scalars = {"lr_max": 0.0, "weight_sum": 0.0}  # the sum is in units of the last weight: for equal ones, a count

    def __init__(
        self, beta: float = 0.9, warmup_steps: int = 0, r: float = 0.0, weight_lr_power: float = 2.0
    ) -> None:
        super().__init__(beta=beta, warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)

    def joined(self, chain: Sequence[Stage]) -> Stage:
        for other in chain:
            if isinstance(other, Hyperball):
                raise ValueError(
                    "ScheduleFree and Hyperball do not go together: the average of weights on a sphere, and what "
                    "lies between, are inside of it; use one"
                )
            if isinstance(other, (Lookahead, Average)):
                raise ValueError(
                    f"ScheduleFree and {type(other).__name__} do not go together: its parameters lie between the "
                    "iterates and their average, and are neither to be pulled back nor averaged again; use one"
                )
        return self

    def refuses_lr(self, lr: float, state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> str | None:
        if "lr_max" not in state:
            return None
        largest = state["lr_max"].item()
        now = warmed_up(lr, state["step"].item() + 1, hyper["warmup_steps"])
        if now >= largest * (1 - _ROUNDING):
            return None
        return (
            f"{lr:g} is below an earlier one ({largest:g}), but ScheduleFree averages instead of lowering it, and "
            "would give such steps the weight of the largest: take the scheduler away (for warm-up, there is "
            "ScheduleFree(warmup_steps=...))"
        )

    def initial(self, name: str, param: Tensor) -> Tensor:
        # z_1 = y_1
        return param.clone()

    def count(self, scalars: Mapping[str, Any], step: Any, hyper: Mapping[str, Any], lr: Any) -> dict[str, Any]:
        rate, last = warmed_up(lr, step, hyper["warmup_steps"]), scalars["lr_max"]
        largest = select(rate > last * (1 + _ROUNDING), rate, last)
        # w_t = tʳ max α_iᵖ,  so  Σ w_i / w_t = 1 + (w_{t−1} / w_t) Σ_{i<t} w_i / w_{t−1}
        ratio = (1 - 1 / step) ** hyper["r"] * (last / select(largest > 0, largest, 1)) ** hyper["weight_lr_power"]
        return {"lr_max": largest, "weight_sum": 1 + ratio * scalars["weight_sum"]}

    @staticmethod
    def update(
        update: Tensor, param: Tensor, z: Tensor, weight_sum: float, step: float, beta: float, warmup_steps: int
    ) -> tuple[Tensor, Tensor]:
        # u_t = α_t d_t(y_t)
        update = warmed_up(update, step, warmup_steps)
        # c_t = w_t / (w_1 + … + w_t)
        c = 1 / weight_sum
        # y_t − y_{t+1} = c_t (y_t − z_t) + (1 − β (1 − c_t)) u_t;  z_{t+1} = z_t − u_t
        return c * (param - z) + (1 - beta * (1 - c)) * update, z - update

    def point(self, param: Tensor, state: Mapping[str, Tensor], hyper: Mapping[str, Any]) -> Tensor:
        dtype = torch.promote_types(param.dtype, state["z"].dtype)
        # x_t = y_t + (1 − 1/β) (z_t − y_t)
        return param.to(dtype).lerp(state["z"].to(dtype), 1 - 1 / hyper["beta"])
