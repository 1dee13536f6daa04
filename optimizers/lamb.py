r"""LAMB: Adam with a step as long as the layer asks for (You et al., 2020)."""

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import AdamDirection, Betas
from .engine import Chain, Options, Place, Stage, select


def decayed(update: Tensor, param: Tensor, lr: float, weight_decay: float) -> Tensor:
    """α_t u_t = α_t (r_t + λ θ_{t−1}), where the chain has brought α_t r_t."""
    return update + (lr * weight_decay) * param


class TrustRatio(Stage):
    """Decay, and then the whole update at the length of its parameter, tensor by tensor: You et al. (2020).

    Lines 8 to 10 of their Algorithm 2. Where either norm is 0 the ratio is 1.
    """

    place = Place.UPDATE
    rank = 2  # all that would move the parameter is inside of the ratio
    reach = "tensor"
    ranges = {"weight_decay": "[0, inf)", "trust_clip": "bool", "always_adapt": "bool"}

    def __init__(self, weight_decay: float = 0.01, trust_clip: bool = False, always_adapt: bool = True) -> None:
        super().__init__(weight_decay=weight_decay, trust_clip=trust_clip, always_adapt=always_adapt)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["always_adapt"] or hyper["weight_decay"] != 0)

    @staticmethod
    def terms(update: Tensor, param: Tensor, lr: float, weight_decay: float) -> dict[str, Tensor]:
        return {
            "param_norm_sq": param**2,
            "update_norm_sq": decayed(update, param, lr, weight_decay) ** 2,
        }

    @staticmethod
    def update(
        update: Tensor,
        param: Tensor,
        lr: float,
        param_norm_sq: float,
        update_norm_sq: float,
        weight_decay: float,
        trust_clip: bool,
    ) -> Tensor:
        # ‖θ_{t−1}‖ / ‖u_t‖, and 1 where one of them is 0 (the sums have α_t² in the second)
        some = select(update_norm_sq > 0, update_norm_sq, 1.0)
        ratio = select(update_norm_sq > 0, lr * (param_norm_sq / some) ** 0.5, 1.0)
        ratio = select(param_norm_sq > 0, ratio, 1.0)
        if trust_clip:
            ratio = select(ratio < 1, ratio, 1.0)
        # α_t u_t ← (‖θ_{t−1}‖ / ‖u_t‖) α_t u_t
        update = ratio * decayed(update, param, lr, weight_decay)
        return update


class LAMB(Chain):
    r"""LAMB: every step is the learning rate times the norm of its tensor long.

    .. math:: u_t = \frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon} + \lambda \theta_{t-1}, \qquad
        \theta_t = \theta_{t-1} - \alpha_t \frac{\lVert \theta_{t-1} \rVert}{\lVert u_t \rVert} u_t

    Algorithm 2 of You et al. (2020), φ the identity, with Adam's :math:`\hat m_t` and :math:`\hat v_t`; the norms
    are those of a whole tensor, which stands for a layer: q, k and v in one matrix make another algorithm. The
    ratio is 1 where a norm is 0, so that a tensor that starts at 0 leaves it by Adam's step, and then grows by a
    factor of at most 1 + α a step. Decay is inside of the ratio: λ turns the step and does not lengthen it.

    A positive factor on all gradients of all steps changes nothing. NVIDIA's and timm's versions clip the global
    norm to 1 first: ``extensions=[ClipNorm(1.0)]``. Extensions that change the update, :class:`optimizers.Cautious`
    and :class:`optimizers.CautiousWeightDecay`, do so before the ratio, dropout of the learning rate after it.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate α, in [0, ∞), the step as a share of the tensor's norm; a number or a tensor of one
            element.
        betas: decay rates (β₁, β₂) of the two averages, each in [0, 1).
        eps: ε, in [0, ∞), in the unit of the gradient.
        weight_decay: λ, in [0, ∞).
        trust_clip: never lengthen a step: the ratio is at most 1 (timm's LAMBC). Small rates then make AdamW's
            steps.
        always_adapt: False leaves parameter groups with λ = 0 (biases, norms) to Adam's own step, as timm does.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        trust_clip: bool = False,
        always_adapt: bool = True,
        **options: Unpack[Options],
    ) -> None:
        stages = [AdamDirection(betas, eps), TrustRatio(weight_decay, trust_clip, always_adapt)]
        super().__init__(params, stages, lr=lr, **options)
