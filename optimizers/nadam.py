r"""NAdam and NAdamW: Nesterov's momentum in Adam (Dozat, 2016)."""

from collections.abc import Mapping
from typing import Any, Literal, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import Betas, first_moment, inverse_root, moments, nesterov_average
from .engine import Chain, Options, Place, Stage
from .weight_decay import DecoupledWeightDecay, by_group


def scheduled_momentum(beta1: float, step: float, momentum_decay: float) -> float:
    """The momentum μ_t, which rises from about β₁/2 towards β₁: half way at t = 17 / ψ."""
    # μ_t = β₁ (1 − ½ · 0.96^{t ψ})
    mu: float = beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay))
    return mu


class NAdamDirection(Stage):
    """Nadam's direction m̄_t / (√v̂_t + ε) (Dozat 2016, Algorithm 2, in torch's form), less the learning rate."""

    place = Place.DIRECTION
    ranges = {"betas": "pair [0, 1)", "eps": "[0, inf)", "momentum_decay": "[0, inf) or None"}
    state = ("exp_avg", "exp_avg_sq")
    velocity = ("exp_avg",)
    scalars = {"mu_product": 1.0}

    def __init__(self, betas: Betas = (0.9, 0.999), eps: float = 1e-8, momentum_decay: float | None = 4e-3) -> None:
        super().__init__(betas=betas, eps=eps, momentum_decay=momentum_decay)

    def count(self, scalars: Mapping[str, Any], step: Any, hyper: Mapping[str, Any], lr: Any) -> dict[str, Any]:
        beta1, psi = hyper["betas"][0], hyper["momentum_decay"]
        # Π_t = Π_{t−1} μ_t, with μ_t = β₁ where there is no schedule
        return {
            "mu_product": scalars["mu_product"] * (beta1 if psi is None else scheduled_momentum(beta1, step, psi))
        }

    @staticmethod
    def update(
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        mu_product: float,
        step: float,
        betas: Betas,
        eps: float,
        momentum_decay: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        beta1, beta2 = betas
        exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
        if momentum_decay is None:
            average = first_moment(grad, exp_avg, beta1, step, nesterov=True)
        else:
            mu = scheduled_momentum(beta1, step, momentum_decay)
            mu_next = scheduled_momentum(beta1, step + 1, momentum_decay)
            # m̄_t = μ_{t+1} m_t / (1 − Π_{t+1}) + (1 − μ_t) g_t / (1 − Π_t)
            average = nesterov_average(grad, exp_avg, mu, mu_next, 1 - mu_product, 1 - mu_product * mu_next)
        # v̂_t = v_t / (1 − β₂ᵗ)
        exp_avg_sq_hat = exp_avg_sq / (1 - beta2**step)
        # d_t = m̄_t / (√v̂_t + ε)
        return average / (exp_avg_sq_hat.sqrt() + eps), exp_avg, exp_avg_sq

    def preconditioner(self, state: Mapping[str, Tensor], step: float, hyper: Mapping[str, Any]) -> Tensor:
        return inverse_root(state["exp_avg_sq"] / (1 - hyper["betas"][1] ** step), hyper["eps"])


class NAdam(Chain):
    r"""Nadam, a drop-in replacement for `torch.optim.NAdam`.

    .. math:: \bar m_t = \frac{\mu_{t+1} m_t}{1 - \Pi_{t+1}} + \frac{(1 - \mu_t) g_t}{1 - \Pi_t}, \qquad
        \theta_t = \theta_{t-1} - \alpha\, \frac{\bar m_t}{\sqrt{\hat v_t} + \varepsilon}

    with :math:`\mu_t = \beta_1 (1 - \tfrac12 0.96^{t\psi})` and :math:`\Pi_t = \mu_1 \cdots \mu_t` (Dozat 2016).
    The texts differ: in the workshop's Algorithm 2, :math:`m_t` itself is averaged with :math:`\mu_t`, and
    :math:`\hat v_t` has a further factor β₂; the author's earlier report, Keras and torch, and so this class,
    average with the constant β₁. A constant gradient then moves by less than Adam at first: by 0.73 of it at t = 3.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        betas: decay rates (β₁, β₂) of the two averages, each in [0, 1).
        eps: ε, in [0, ∞), in the unit of the gradient.
        weight_decay: coefficient λ of the L2 penalty, in [0, ∞).
        momentum_decay: ψ, in [0, ∞), 0.004 in the paper (1/250); None for constant :math:`\mu_t = \beta_1`, which
            is ``optax.nadam`` and ``Adam(nesterov=True)``. With 0, :math:`\mu_t` stays at β₁/2.
        decoupled_weight_decay: decay by α λ θ past the averages instead, as AdamW does.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float | None = 4e-3,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        super().__init__(params, [*decay, NAdamDirection(betas, eps, momentum_decay)], lr=lr, **options)


class NAdamW(Chain):
    r"""Nadam with decoupled weight decay.

    .. math:: \theta_t = \theta_{t-1} - \alpha_t \left( \frac{\bar m_t}{\sqrt{\hat v_t} + \varepsilon}
        + \lambda \theta_{t-1} \right)

    :class:`optimizers.NAdam` (Dozat 2016) with the decay of :class:`optimizers.AdamW` (Loshchilov and Hutter 2019).

    Args:
        params, lr, betas, eps, momentum_decay: as in :class:`optimizers.NAdam`.
        weight_decay: λ, in [0, ∞).
        decay: ``"lr"`` for α_t λ θ as in torch, ``"schedule"`` for η_t λ θ as in the paper.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        momentum_decay: float | None = 4e-3,
        *,
        decay: Literal["lr", "schedule"] = "lr",
        **options: Unpack[Options],
    ) -> None:
        stages = [NAdamDirection(betas, eps, momentum_decay), DecoupledWeightDecay(weight_decay, decay)]
        super().__init__(params, stages, lr=lr, **options)
