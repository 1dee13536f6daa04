r"""Prodigy: Adam that finds its learning rate on the way (Mishchenko and Defazio, 2024)."""

import math
from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import Betas
from .engine import Chain, Options, Place, Stage, select


def third(betas: Betas, beta3: float | None) -> Any:
    """β₃, by which the estimate forgets: √β₂ unless it is given."""
    return betas[1] ** 0.5 if beta3 is None else beta3


def correction(step: float, betas: Betas, use_bias_correction: bool) -> Any:
    """What makes of the averages Adam's m̂ / √v̂: √(1 − β₂ᵗ) / (1 − β₁ᵗ), or 1."""
    return (1 - betas[1] ** step) ** 0.5 / (1 - betas[0] ** step) if use_bias_correction else 1.0


def penalized(grad: Tensor, param: Tensor, weight_decay: float, decouple: bool) -> Tensor:
    """The gradient, with that of the L2 penalty where decay is not decoupled."""
    return grad if decouple else grad + weight_decay * param


def weighted_sum(grad: Tensor, s: Tensor, lr: float, weight: Any, beta3: Any) -> Any:
    """s ← β₃ s + w g; what has the learning rate 0 waits."""
    return select(lr > 0, beta3 * s + weight * grad, s)


class ProdigyDirection(Stage):
    r"""Adam's direction, decay and all, times an estimate d of how far away the solution is.

    Mishchenko and Defazio (2024), as in their code. d and what it is made of are kept as multiples of d₀: so they
    begin with 1, and no square of d₀ is rounded to 0.
    """

    place = Place.DIRECTION
    reach = "optimizer"
    ranges = {
        "betas": "pair [0, 1)",
        "beta3": "[0, 1) or None",
        "eps": "[0, inf)",
        "weight_decay": "[0, inf)",
        "decouple": "bool",
        "use_bias_correction": "bool",
        "safeguard_warmup": "bool",
        "d0": "(0, inf)",
        "d_coef": "(0, inf)",
        "growth_rate": "[1, inf]",
    }
    state = ("exp_avg", "exp_avg_sq", "s", "p0")
    velocity = ("exp_avg",)
    scalars = {"d": 1.0, "d_before": 1.0, "d_max": 1.0, "d_numerator": 0.0}

    def __init__(
        self,
        betas: Betas = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = float("inf"),
    ) -> None:
        super().__init__(
            betas=betas, beta3=beta3, eps=eps, weight_decay=weight_decay, decouple=decouple,
            use_bias_correction=use_bias_correction, safeguard_warmup=safeguard_warmup,
            d0=d0, d_coef=d_coef, growth_rate=growth_rate,
        )  # fmt: skip

    def initial(self, name: str, param: Tensor) -> Tensor:
        # θ_0
        return param.clone() if name == "p0" else super().initial(name, param)

    @staticmethod
    def terms(
        grad: Tensor,
        param: Tensor,
        s: Tensor,
        p0: Tensor,
        step: float,
        lr: float,
        d: float,
        betas: Betas,
        beta3: float | None,
        weight_decay: float,
        decouple: bool,
        use_bias_correction: bool,
        safeguard_warmup: bool,
    ) -> dict[str, Tensor]:
        grad = penalized(grad, param, weight_decay, decouple)
        weight = d**2 * lr * correction(step, betas, use_bias_correction)
        s = weighted_sum(grad, s, lr, d**2 if safeguard_warmup else weight, third(betas, beta3))
        return {
            # d_t² γ_t ⟨g_t, θ_0 − θ_t⟩
            "progress": weight * grad * (p0 - param),
            # ‖s_{t+1}‖₁
            "s_norm": select(lr > 0, 1.0, 0.0) * s.abs(),
        }

    def settle(
        self, scalars: Mapping[str, Any], sums: Mapping[str, Any], step: Any, lr: Any, hyper: Mapping[str, Any]
    ) -> dict[str, Any]:
        d, largest, old = scalars["d"], scalars["d_max"], scalars["d_numerator"]
        # As long as there was no gradient, and wherever the learning rate is 0 everywhere, nothing is learned.
        some = sums["s_norm"] > 0
        # r_{t+1} = β₃ r_t + d_t² γ_t ⟨g_t, θ_0 − θ_t⟩
        numerator = third(hyper["betas"], hyper["beta3"]) * old + sums["progress"]
        # d̂_{t+1} = c r_{t+1} / ‖s_{t+1}‖₁
        estimate = hyper["d_coef"] * numerator / (hyper["d0"] * select(some, sums["s_norm"], 1.0))
        largest = select(some & (estimate > largest), estimate, largest)
        # d_{t+1} = max(d_t, d̂_{t+1}), after the first estimate at most the growth rate times d_t
        new = largest
        if hyper["growth_rate"] != math.inf:
            bound = select(d == 1, largest, d) * hyper["growth_rate"]
            new = select(bound < largest, bound, largest)
        return {
            "d": select(some, new, d),
            "d_before": d,
            "d_max": largest,
            "d_numerator": select(some, numerator, old),
        }

    @staticmethod
    def update(
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        s: Tensor,
        p0: Tensor,
        param: Tensor,
        step: float,
        lr: float,
        d: float,
        d_before: float,
        betas: Betas,
        beta3: float | None,
        eps: float,
        weight_decay: float,
        decouple: bool,
        use_bias_correction: bool,
        safeguard_warmup: bool,
        d0: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        beta1, beta2 = betas
        grad = penalized(grad, param, weight_decay, decouple)
        corrected = correction(step, betas, use_bias_correction)
        # s_{t+1} = β₃ s_t + d_t² γ_t g_t, or without γ_t, which a warm-up makes small
        weight = d_before**2 if safeguard_warmup else d_before**2 * lr * corrected
        s = weighted_sum(grad, s, lr, weight, third(betas, beta3))
        # m_{t+1} = β₁ m_t + (1 − β₁) d_t g_t
        exp_avg = select(lr > 0, beta1 * exp_avg + ((1 - beta1) * d_before) * grad, exp_avg)
        # v_{t+1} = β₂ v_t + (1 − β₂) d_t² g_t²
        exp_avg_sq = select(lr > 0, beta2 * exp_avg_sq + ((1 - beta2) * d_before**2) * grad**2, exp_avg_sq)
        # d_t (m_{t+1} / (√v_{t+1} + d_{t+1} ε) + λ θ_t)
        direction = exp_avg / (exp_avg_sq.sqrt() + d * eps)
        if decouple:
            direction = direction + weight_decay * param
        return (d0 * d_before * corrected) * direction, exp_avg, exp_avg_sq, s, p0


class Prodigy(Chain):
    r"""Prodigy: a drop-in replacement for the authors' `prodigyopt.Prodigy`, with their hyper-parameters.

    .. math:: \hat d_{t+1} = \frac{\sum_i \beta_3^{t-i} d_i^2 \gamma_i \langle g_i, \theta_0 - \theta_i \rangle}
        {\lVert \sum_i \beta_3^{t-i} d_i^2 \gamma_i g_i \rVert_1}, \quad d_{t+1} = \max(d_t, \hat d_{t+1}), \qquad
        \theta_{t+1} = \theta_t - \gamma_t d_t \frac{m_{t+1}}{\sqrt{v_{t+1}} + d_{t+1} \varepsilon}

    Algorithm 4 of Mishchenko and Defazio (2024) as their code has it. In a convex problem d is a lower bound of the
    distance from the start to a solution (its largest coordinate); it never falls, and from :math:`d_0` it takes
    about 2.5 steps per factor of 10. The sums go over all parameters of all groups, with the first group's d₀, c, β
    and growth rate. A group whose learning rate is 0 is left out. Leave γ at 1, and schedule it from there.

    Where d stays at d₀, raise that to 1e-5 or 1e-4; where a long warm-up lets d overshoot, set `safeguard_warmup`.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: γ, in [0, ∞), the same in all groups in which it is not 0; a number or a tensor of one element.
        betas: decay rates (β₁, β₂) of Adam's averages, each in [0, 1).
        beta3: β₃, by which the estimate forgets, in [0, 1); None for √β₂.
        eps: ε, in [0, ∞), in the unit of the gradient.
        weight_decay: λ, in [0, ∞).
        decouple: True for γ_t d_t λ θ past the averages, as in AdamW; False for the L2 penalty.
        use_bias_correction: Adam's correction of both averages, as a factor of the step.
        safeguard_warmup: leave γ out of the denominator of the estimate.
        d0: d₀, the first estimate, in (0, ∞), in the unit of the parameter: too small rather than too large.
        d_coef: c, what the estimate is multiplied by, in (0, ∞): the way to tune, 0.5 to 2.
        growth_rate: the most by which d may grow per step once it has left d₀, in [1, ∞].
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        ValueError: (in `step`) two groups have different learning rates, and neither is 0.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: Betas = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = float("inf"),
        **options: Unpack[Options],
    ) -> None:
        direction = ProdigyDirection(
            betas,
            beta3,
            eps,
            weight_decay,
            decouple,
            use_bias_correction,
            safeguard_warmup,
            d0,
            d_coef,
            growth_rate,
        )
        super().__init__(params, [direction], lr=lr, **options)

    def _refuse_rates(self) -> None:
        """Find the learning rates of all groups, which a scheduler may have set, to agree, before a step."""
        rates: dict[float, int] = {}
        for i, group in enumerate(self.param_groups if self.param_groups[1:] else ()):
            # (To read a number on an accelerator would wait for the device.)
            if not isinstance(group["lr"], Tensor) or group["lr"].device.type == "cpu":
                rates.setdefault(float(group["lr"]), i)
        if len(found := [(i, rate) for rate, i in rates.items() if rate != 0]) > 1:
            values = ", and of ".join(f"parameter group {i} {rate!r}" for i, rate in found)
            raise ValueError(
                f"Prodigy has one learning rate for all that it moves, as it has one estimate, but lr of {values}: "
                "make them equal, or 0"
            )
        super()._refuse_rates()

    @property
    def d(self) -> float:
        """The estimate d for the next step; times lr it is what Adam's learning rate would be."""
        first = self.param_groups[0]["d0"]
        known = [state["d"] for state in self.state.values() if "d" in state]
        return float(first * known[0]) if known else float(first)
