r"""Weights and state in 16 bits without a copy in 32: stochastic rounding (Gupta et al., 2015) and Kahan summation.

A bfloat16 has 8 bits of significand. Rounded to nearest, it stays as it is under a change of less than half of its
last place (2⁻⁹ of the number or less), however often that is made. Stochastic rounding makes such a change at
random, exactly in the mean; Kahan summation keeps what was rounded away for the next step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .engine import SEED, Place, Stage, bits

# How many of the last bits of a float32's significand these dtypes lack.
_LACKING = {torch.bfloat16: 16, torch.float16: 13}


def _rounded(x: Tensor, dtype: torch.dtype, random: Tensor | None) -> Tensor:
    """The numbers of `dtype`, one of `_LACKING`, next to x, as float32: above or below by chance, or the nearest.

    The bits of a float32, taken as a whole number, count the numbers away from zero, across exponents. So those
    that `dtype` lacks are cleared once something was added to them that decides about a carry: random bits, or half
    of the last place. What is beyond the largest finite number, infinite or NaN is left to the usual rounding.
    """
    lacking, limits = _LACKING[dtype], torch.finfo(dtype)
    x = x.to(torch.float32)
    shift = None
    if limits.smallest_normal > torch.finfo(torch.float32).smallest_normal:
        # float16 is evenly spaced from its smallest normal numbers down to 0: there, x is rounded among those.
        shift = torch.where(x.abs() < limits.smallest_normal, x.sign() * limits.smallest_normal, 0)
    pattern = (x if shift is None else x + shift).view(torch.int32)
    last = (1 << lacking) - 1
    # P(up) = (x − below) / (above − below);  to nearest, a tie goes to the even one
    carry = (pattern >> lacking & 1) + (last >> 1) if random is None else random & last
    y = ((pattern + carry) & ~last).view(torch.float32)
    y = torch.where(x.abs() < limits.max, y if shift is None else y - shift, x)
    # Its derivative is that of x.
    return x + (y - x).detach() if x.requires_grad else y


class StochasticRounding(Stage):
    r"""Round the new parameter up or down by chance, such that its mean is the number that it is to be.

    .. math:: \theta_t = \lfloor x \rfloor + \epsilon\, d, \qquad
        d \sim \mathrm{Bernoulli}\left(\frac{x - \lfloor x \rfloor}{\epsilon}\right),
        \qquad x = \theta_{t-1} - u_t

    Section 3.1 of Gupta et al. (2015), for parameters in bfloat16 or float16: ε is the distance between the two
    numbers of that dtype next to x. Parameters in float32 and float64 stay as they are. The whole step is computed
    in float32, also eagerly. torchao's Adams round so, too (``bf16_stochastic_round``), but for numbers beyond the
    largest finite one, which are rounded to nearest here. What is remembered, also of weights (Lookahead's slow
    ones, Schedule-Free's z, averages), is rounded to nearest unless :class:`StateDtype` says otherwise. (Of
    processes that share memory without a lock, each adds its change in the parameter's dtype, which rounds once
    more.)

    Args:
        seed: a whole number in [0, 2⁶³); a draw is a function of it, the step, the coordinate and the parameter: of
            its name, or of its place among all that are trained together, by one optimizer or by several (see
            `optimizers.engine.identity`).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    place = Place.PARAMETERS
    rank = 100
    sparse = "entries"
    wide = True
    prefix = "stochastic_rounding"
    ranges = {"seed": SEED}

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)

    @staticmethod
    def update(
        param: Tensor, index: int, step: float, coordinate: Tensor, stored: torch.dtype, seed: int
    ) -> Tensor:
        if stored.to_real() not in _LACKING:
            return param
        # θ_t = ⌊x⌋ + ε Bernoulli((x − ⌊x⌋) / ε)
        return _rounded(param, stored.to_real(), bits(seed, index, step, coordinate, stream=4))


class Kahan(Stage):
    r"""Keep what rounding the parameter has cost it, and make up for it at the next step.

    .. math:: s = \theta_{t-1} + c_{t-1} - u_t, \qquad \theta_t = \mathrm{round}(s), \qquad c_t = s - \theta_t

    Compensated summation (Kahan, 1965), for parameters in bfloat16 or float16. c is the state ``compensation``, of
    the parameter's dtype: together, they have about twice its digits. Parameters in float32 and float64 stay as
    they are, and nothing is remembered of them. The whole step is computed in float32, also eagerly, and stages
    after it (Lookahead) are given s before it is rounded. optimi's ``kahan_sum`` is the same but for its digits: it
    rounds each operation, c − u among them, to the parameter's dtype, and decays weights without compensation.

    Raises:
        ValueError: (when the optimizer is made) the parameters are rounded by chance, too.
    """

    place = Place.PARAMETERS
    rank = -100
    sparse = "entries"
    wide = True
    state = ("compensation",)

    def remembers_for(self, dtype: torch.dtype) -> bool:
        return dtype.to_real() in _LACKING

    def joined(self, chain: Sequence[Stage]) -> Stage:
        if any(isinstance(stage, StochasticRounding) for stage in chain):
            raise ValueError(
                "Kahan and StochasticRounding cannot be in one chain: Kahan makes up for a rounding to nearest, "
                "which the other replaces; use one of them"
            )
        return self

    @staticmethod
    def update(param: Tensor, compensation: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # s = θ_{t−1} + c_{t−1} − u_t
        return param if compensation is None else param + compensation, compensation

    def after(self, state: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Tensor]:
        if "compensation" not in state:
            return {}
        s, dtype = known["new_param"], known["stored"].to_real()
        # c_t = s − round(s)
        c = s - _rounded(s, dtype, None)
        return {"compensation": torch.where(s.abs() < torch.finfo(dtype).max, c, 0)}


class StateDtype(Stage):
    """Keep what is remembered of each coordinate in another dtype than the parameter's.

    In bfloat16 it is rounded stochastically (see :class:`StochasticRounding`), with random bits of each tensor's
    own: to nearest, a moving average at β = 0.999 would stand still, as it moves by less than half of a last place.
    In float32, it has all its digits beside parameters in 16 bits. The whole step is computed in float32, or for
    parameters in float64 in that. What is remembered of complex parameters stays complex, as they are. A checkpoint
    in whichever dtype is loaded into this one.

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float32``, or its name. Another one that is set in a parameter group
            later holds for what is first remembered, or loaded, from then on.
        seed: as of :class:`StochasticRounding`; the same one gives other bits here.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    place = Place.PARAMETERS
    rank = 101
    sparse = "entries"
    wide = True
    prefix = "state"
    ranges = {"dtype": "bfloat16 | float32", "seed": SEED}

    def __init__(self, dtype: torch.dtype | Literal["bfloat16", "float32"] = torch.bfloat16, seed: int = 0) -> None:
        super().__init__(dtype=dtype, seed=seed)

    def plain(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        # By its name, so that parameter groups can be written as JSON.
        given = hyper.get("dtype")
        name = {"dtype": str(given).removeprefix("torch.")} if isinstance(given, torch.dtype) else {}
        return super().plain({**hyper, **name})

    def cast(self, tensor: Tensor, param: Tensor, hyper: Mapping[str, Any]) -> Tensor:
        return tensor.to(param.dtype if param.is_complex() else getattr(torch, hyper["dtype"]))

    @staticmethod
    def update(param: Tensor, index: int, step: float, coordinate: Tensor) -> Tensor:
        return param  # what is named here is for `store`

    def store(self, state: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Tensor]:
        if known["dtype"] == "float32" or known["stored"].is_complex:
            return {}
        draw = known["seed"], known["index"], known["step"], known["coordinate"]
        # A draw of 32 bits is enough for two tensors: its lower half for the one, the upper for the next.
        pairs = [bits(*draw, stream=5 + i) for i in range((len(state) + 1) // 2)]
        halves = [half for pair in pairs for half in (pair, pair >> 16)]
        return {
            name: _rounded(tensor, torch.bfloat16, random)
            for (name, tensor), random in zip(state.items(), halves, strict=False)
        }
