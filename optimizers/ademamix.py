r"""AdEMAMix: Adam with a second, slow average of the gradient (Pagliardini, Ablin and Grangier, 2025)."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import inverse_root
from .engine import Chain, Options, Place, Stage, select
from .weight_decay import DecoupledWeightDecay

ThreeBetas = tuple[float, float, float]


def progress(step: float, warmup: int) -> Any:
    """How much of a warm-up is done: min(t / T, 1)."""
    return select(step < warmup, step / warmup, 1.0)


def half_life(beta: Any) -> Any:
    """The number of steps, ln ½ / ln β, in which an average forgets half of what it was."""
    least = 1e-30  # stands for 0, whose logarithm is no number
    return math.log(0.5) / (beta.clamp(min=least).log() if isinstance(beta, Tensor) else math.log(max(beta, least)))


def slow_beta(step: float, beta1: float, beta3: float, warmup: int | None) -> Any:
    """β₃ at step t, whose half-life grows linearly from that of β₁ to its own (Pagliardini et al. 2025)."""
    if warmup is None:
        return beta3
    done = progress(step, warmup)
    # β₃(t) = exp( ln β₁ ln β₃ / ((1 − t/T) ln β₃ + (t/T) ln β₁) ) = ½ ^ (1 / half-life)
    return 0.5 ** (1 / ((1 - done) * half_life(beta1) + done * half_life(beta3)))


class AdEMAMixDirection(Stage):
    """The direction (m̂₁ + α m₂) / (√v̂ + ε): Algorithm 1 of Pagliardini et al. (2025), less the learning rate."""

    place = Place.DIRECTION
    ranges = {
        "betas": "each [0, 1)",
        "alpha": "[0, inf)",
        "beta3_warmup": "int [1, inf) or None",
        "alpha_warmup": "int [1, inf) or None",
        "eps": "[0, inf)",
    }
    state = ("exp_avg", "exp_avg_slow", "exp_avg_sq")
    velocity = ("exp_avg", "exp_avg_slow")

    def __init__(
        self,
        betas: ThreeBetas = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        beta3_warmup: int | None = None,
        alpha_warmup: int | None = None,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(betas=betas, alpha=alpha, beta3_warmup=beta3_warmup, alpha_warmup=alpha_warmup, eps=eps)

    def check(self, hyper: Mapping[str, Any], where: str = "") -> None:
        super().check(hyper, where)
        if len(hyper["betas"]) != 3:
            raise TypeError(f"betas{where} must be three numbers, got {hyper['betas']!r}")

    def remembers(self, hyper: Mapping[str, Any]) -> tuple[str, ...]:
        return self.state if hyper["betas"][0] != 0 else self.state[1:]

    @staticmethod
    def update(
        grad: Tensor,
        exp_avg: Tensor | None,
        exp_avg_slow: Tensor,
        exp_avg_sq: Tensor,
        step: float,
        betas: ThreeBetas,
        alpha: float,
        beta3_warmup: int | None,
        alpha_warmup: int | None,
        eps: float,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        beta1, beta2, beta3 = betas
        exp_avg_hat = grad
        if exp_avg is not None:
            # m₁ ← β₁ m₁ + (1 − β₁) g_t
            exp_avg = beta1 * exp_avg + (1 - beta1) * grad
            # m̂₁ = m₁ / (1 − β₁ᵗ)
            exp_avg_hat = exp_avg / (1 - beta1**step)
        beta3 = slow_beta(step, beta1, beta3, beta3_warmup)
        # m₂ ← β₃(t) m₂ + (1 − β₃(t)) g_t, which is not corrected
        exp_avg_slow = beta3 * exp_avg_slow + (1 - beta3) * grad
        # v ← β₂ v + (1 − β₂) g_t²
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
        # v̂ = v / (1 − β₂ᵗ)
        exp_avg_sq_hat = exp_avg_sq / (1 - beta2**step)
        # α(t) = α min(t/T, 1)
        share = alpha if alpha_warmup is None else alpha * progress(step, alpha_warmup)
        # d_t = (m̂₁ + α(t) m₂) / (√v̂ + ε)
        direction = (exp_avg_hat + share * exp_avg_slow) / (exp_avg_sq_hat.sqrt() + eps)
        return direction, exp_avg, exp_avg_slow, exp_avg_sq

    def preconditioner(self, state: Mapping[str, Tensor], step: float, hyper: Mapping[str, Any]) -> Tensor:
        return inverse_root(state["exp_avg_sq"] / (1 - hyper["betas"][1] ** step), hyper["eps"])


class AdEMAMix(Chain):
    r"""AdEMAMix: AdamW that adds to its average of the gradient another one, which remembers for 10⁴ steps.

    .. math:: m_2 \leftarrow \beta_3 m_2 + (1 - \beta_3) g_t, \qquad \theta_t = \theta_{t-1} - \alpha_t \left(
        \frac{\hat m_1 + \alpha\, m_2}{\sqrt{\hat v} + \varepsilon} + \lambda \theta_{t-1} \right)

    Algorithm 1 of Pagliardini, Ablin and Grangier (2025), with Adam's :math:`\hat m_1` and :math:`\hat v`. The slow
    average is not corrected for its bias: under a constant gradient the step grows from lr to (1 + α) lr, which is
    the AdamW to compare with. In fewer than some 10⁴ steps β₃ = 0.9999 does little: take about 1 − 10 / steps.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate, in [0, ∞); a number or a tensor of one element.
        betas: decay rates (β₁, β₂, β₃) of the fast average, of the squares' and of the slow one, each in [0, 1);
            with β₁ = 0 the fast average is the gradient, and is not kept.
        alpha: α, what the slow average counts, in [0, ∞): 5 to 10 in the paper, 2 by default in its code.
        beta3_warmup: T steps in which β₃ rises from β₁, its half-life linearly in t; None for constant β₃. The
            paper takes as many as the whole training has, and so for `alpha_warmup`.
        alpha_warmup: T steps in which α rises linearly from 0; None for constant α.
        eps: ε, in [0, ∞), in the unit of the gradient.
        weight_decay: λ, in [0, ∞).
        decay: ``"lr"`` for α_t λ θ as in the paper, ``"schedule"`` for η_t λ θ as in the paper of AdamW.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: ThreeBetas = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        beta3_warmup: int | None = None,
        alpha_warmup: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decay: Literal["lr", "schedule"] = "lr",
        **options: Unpack[Options],
    ) -> None:
        direction = AdEMAMixDirection(betas, alpha, beta3_warmup, alpha_warmup, eps)
        super().__init__(params, [direction, DecoupledWeightDecay(weight_decay, decay)], lr=lr, **options)
