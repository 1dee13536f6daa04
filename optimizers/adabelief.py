r"""AdaBelief (Zhuang et al., 2020)."""

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import Betas, first_moment, inverse_root
from .engine import Chain, Options, Place, Stage
from .weight_decay import by_group


class AdaBeliefDirection(Stage):
    """AdaBelief's direction m̂_t / (√ŝ_t + ε): Algorithm 2 of Zhuang et al. (2020), less the learning rate."""

    place = Place.DIRECTION
    ranges = {"betas": "pair [0, 1)", "eps": "[0, inf)", "nesterov": "bool"}
    state = ("exp_avg", "exp_avg_var")
    velocity = ("exp_avg",)

    def __init__(self, betas: Betas = (0.9, 0.999), eps: float = 1e-16, nesterov: bool = False) -> None:
        super().__init__(betas=betas, eps=eps, nesterov=nesterov)

    @staticmethod
    def update(
        grad: Tensor, exp_avg: Tensor, exp_avg_var: Tensor, step: float, betas: Betas, eps: float, nesterov: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        beta1, beta2 = betas
        # m_t = β₁ m_{t−1} + (1 − β₁) g_t
        exp_avg = beta1 * exp_avg + (1 - beta1) * grad
        # s_t = β₂ s_{t−1} + (1 − β₂) (g_t − m_t)² + ε
        exp_avg_var = beta2 * exp_avg_var + (1 - beta2) * (grad - exp_avg) ** 2 + eps
        # ŝ_t = s_t / (1 − β₂ᵗ)
        exp_avg_var_hat = exp_avg_var / (1 - beta2**step)
        exp_avg_hat = first_moment(grad, exp_avg, beta1, step, nesterov)
        # d_t = m̂_t / (√ŝ_t + ε)
        return exp_avg_hat / (exp_avg_var_hat.sqrt() + eps), exp_avg, exp_avg_var

    def preconditioner(self, state: Mapping[str, Tensor], step: float, hyper: Mapping[str, Any]) -> Tensor:
        return inverse_root(state["exp_avg_var"] / (1 - hyper["betas"][1] ** step), hyper["eps"])


class AdaBelief(Chain):
    r"""AdaBelief: Adam that divides by how far gradients are from their average, not by how large they are.

    .. math:: s_t = \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2 + \varepsilon, \qquad
        \theta_t = \theta_{t-1} - \alpha\, \frac{\hat m_t}{\sqrt{\hat s_t} + \varepsilon}

    Algorithm 2 of Zhuang et al. (2020). One ε enters twice, and the inner one, in the unit of the gradient
    *squared*, is added to what is remembered, every time: :math:`\hat s_t` is never below
    :math:`\varepsilon / (1 - \beta_2)`, and the denominator never below the root of that. With the paper's ε = 1e-8
    this is 3e-3, and coordinates whose gradients are small make steps of momentum; with 1e-16, as here, in the
    authors' later code, timm and pytorch-optimizer, it is 3e-7. torch-optimizer has 1e-8; optax has two,
    ``eps_root`` inside and ``eps`` outside, both 1e-16.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        betas: decay rates (β₁, β₂) of the two averages, each in [0, 1).
        eps: ε, in [0, ∞), as said above; Adam's 1e-8 is another thing here.
        weight_decay: λ, in [0, ∞).
        nesterov: Nesterov's momentum with constant β₁, as in :class:`optimizers.Adam`.
        decoupled_weight_decay: decay by α λ θ past the averages, as AdamW and the authors' code do; False for the
            L2 penalty.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        decoupled_weight_decay: bool = True,
        **options: Unpack[Options],
    ) -> None:
        decay = by_group(weight_decay, decoupled_weight_decay)
        super().__init__(params, [*decay, AdaBeliefDirection(betas, eps, nesterov)], lr=lr, **options)
