r"""Weights and state in 16 bits without a copy in 32: stochastic rounding (Gupta et al., 2015) and Kahan summation.

A bfloat16 has 8 bits of significand: a change of less than half of its last place, 2⁻⁹ of the number, is rounded away
to nearest, however often it is made. Stochastic rounding makes it at random, in the mean exactly; Kahan summation
keeps what was rounded away for the next step.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .engine import SEED, Place, Stage, bits

# How many of the last bits of a float32 are not in a number of these dtypes.
_DROPPED = {torch.bfloat16: 16, torch.float16: 13}


def _rounded(x: Tensor, dtype: torch.dtype, random: Tensor | None) -> Tensor:
    """The numbers of `dtype`, one of `_DROPPED`, next to x, as float32: above or below by chance, or the nearest.

    Of the pattern of a float32, taken as a whole number, one more is the next number away from zero, also where the
    exponent changes. So the last bits are cleared once something is added that decides about a carry: random bits,
    or half of them. What is beyond the largest finite number, infinite or NaN is left to the usual rounding.
    """
    dropped, limits = _DROPPED[dtype], torch.finfo(dtype)
    x = x.to(torch.float32)
    z, offset = x, None
    if limits.smallest_normal > torch.finfo(torch.float32).smallest_normal:
        # Below its normal numbers, float16 has the places of its smallest ones: shifted, float32 has them, too.
        offset = torch.where(x.abs() < limits.smallest_normal, x.sign() * limits.smallest_normal, 0)
        z = x + offset
    pattern = z.view(torch.int32)
    last = (1 << dropped) - 1
    # P(up) = (x − below) / (above − below);  to nearest, a tie goes to the even one
    carry = random & last if random is not None else (last >> 1) + ((pattern >> dropped) & 1)
    y = ((pattern + carry) & ~last).view(torch.float32)
    y = torch.where(x.abs() < limits.max, y if offset is None else y - offset, x)
    # Its derivative is that of x.
    return x + (y - x).detach() if x.requires_grad else y


class StochasticRounding(Stage):
    r"""Round the new parameter up or down by chance, such that its mean is the number that it is to be.

    .. math:: \theta_t = \lfloor x \rfloor + \epsilon\, d, \qquad
        d \sim \mathrm{Bernoulli}\left(\frac{x - \lfloor x \rfloor}{\epsilon}\right),
        \qquad x = \theta_{t-1} - u_t

    Equation 1 of Gupta et al. (2015), where ε is the distance between the two numbers of the parameter's dtype next to
    x; for parameters in bfloat16 or float16. Parameters in float32 and float64 stay as they are. The whole step is
    computed in float32, also eagerly. The definition is torchao's (``bf16_stochastic_round``), there for its Adams
    only, but for numbers beyond the largest finite one, which are rounded to nearest here. What is remembered is
    rounded to nearest, unless :class:`StateDtype` says otherwise: so are Lookahead's slow weights.

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
        if stored.to_real() not in _DROPPED:
            return param
        # θ_t = ⌊x⌋ + ε Bernoulli((x − ⌊x⌋) / ε)
        return _rounded(param, stored.to_real(), bits(seed, index, step, coordinate, stream=4))


class Kahan(Stage):
    r"""Keep what rounding the parameter has cost it, and make up for it at the next step.

    .. math:: s = \theta_{t-1} + c_{t-1} - u_t, \qquad \theta_t = \mathrm{round}(s), \qquad c_t = s - \theta_t

    Compensated summation (Kahan, 1965), for parameters in bfloat16 or float16. c is the state ``compensation``, of the
    parameter's dtype: together they have about twice its digits. Parameters in float32 and float64 stay as they are,
    and nothing is remembered of them. The whole step is computed in float32, also eagerly; optimi's ``kahan_sum`` is
    the same sum, but every operation in it is rounded to bfloat16 unless it is done by its Triton kernel.
    Further stages after the step (Lookahead) are given s before it is rounded.

    Raises:
        ValueError: (when the optimizer is made) the parameters are rounded by chance, too.
    """

    place = Place.PARAMETERS
    rank = -100
    sparse = "entries"
    wide = True
    state = ("compensation",)

    def remembers_for(self, dtype: torch.dtype) -> bool:
        return dtype.to_real() in _DROPPED

    def joined(self, chain: Sequence[Stage]) -> Stage:
        if any(isinstance(stage, StochasticRounding) for stage in chain):
            raise ValueError(
                "Kahan and StochasticRounding cannot be in one chain: what the one keeps of a rounding to nearest, the "
                "other has already made up for in the mean; use one"
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

    In bfloat16, it is rounded stochastically (see :class:`StochasticRounding`), with random bits of its own for each
    tensor: a moving average at β = 0.999 moves by less than half of bfloat16's last place at each step, and to
    nearest would stand still. In float32, bfloat16 parameters get exact averages. The whole step is computed in
    float32, or in float64 for parameters of it. Complex parameters keep theirs. Checkpoints are loaded into this dtype.

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float32``, or its name.
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
        return param  # what is named here is for `after`

    def after(self, state: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Tensor]:
        if known["dtype"] == "float32" or known["stored"].is_complex:
            return {}
        draw = known["seed"], known["index"], known["step"], known["coordinate"]
        return {
            name: _rounded(tensor, torch.bfloat16, bits(*draw, stream=zlib.crc32(name.encode())))
            for name, tensor in state.items()
        }
