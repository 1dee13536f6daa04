r"""Sharpness-aware minimization: SAM (Foret, Kleiner, Mobahi and Neyshabur, 2021) and ASAM (Kwon et al., 2021)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .engine import Place, Stage


class SAM(Stage):
    r"""Take the gradient where, within a radius ρ, the loss is about the largest.

    .. math:: e_t = \rho \frac{\nabla f(\theta_t)}{\lVert \nabla f(\theta_t) \rVert}, \qquad
        g_t = \nabla f(\theta_t + e_t)

    Equation 2 of Foret et al. (2021), for any direction: g is what the chain is given for its gradient. The norm
    is that of all parameters of all groups together (10⁻¹² is added to it), whatever their ρ; shards of one
    parameter count as one, but ZeRO's optimizers see their own parameters only.

    A step evaluates twice, so it needs ``optimizer.step(closure)``, as torch's LBFGS does: the closure clears the
    gradients, computes the loss, calls `backward` and returns it. The first evaluation is at θ_t, and its loss is
    returned; for the second, the parameters are moved, in their own memory, and put back bit for bit, also where
    the closure fails. What else the closure changes, such as BatchNorm's statistics, changes twice. Under
    DistributedDataParallel e is that of the whole batch; a closure that enters `no_sync` at its first call has each
    process climb by its own share's ("m-sharpness", as in the paper's experiments).

    Args:
        rho: ρ, in [0, ∞), in the unit of the parameters; a group may have its own; 0 does nothing.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        RuntimeError: (in `step`) there is no closure, or a GradScaler, the group is differentiable, or the
            parameters are shared by processes.
    """

    place = Place.GRADIENT
    sparse = "entries"
    prefix = "sam"
    ranges = {"rho": "[0, inf)"}

    def __init__(self, rho: float = 0.05) -> None:
        super().__init__(rho=rho)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return bool(hyper["rho"] != 0)

    @staticmethod
    def length(grad: Tensor, param: Tensor) -> Tensor:
        # ‖∇f‖
        return grad

    @staticmethod
    def ascent(grad: Tensor, param: Tensor, norm: Tensor, rho: float) -> Tensor:
        # e_t = ρ ∇f / ‖∇f‖
        return rho / (norm + 1e-12) * grad

    @staticmethod
    def update(grad: Tensor) -> Tensor:
        # g_t = ∇f(θ_t + e_t), when it comes here
        return grad


class ASAM(SAM):
    r"""SAM in a neighbourhood that does not change when a layer is scaled, and the next one scaled back.

    .. math:: e_t = \rho \frac{\theta_t^2 \, \nabla f(\theta_t)}{\lVert \theta_t \nabla f(\theta_t) \rVert}

    Kwon, Kim, Park and Choi (2021), with their operator :math:`T = |\theta|` for every coordinate and nothing
    added to it.

    Args:
        rho: ρ, in [0, ∞), relative to the parameters: about ten times SAM's and more.

    Raises:
        As :class:`SAM`.
    """

    def __init__(self, rho: float = 2.0) -> None:
        super().__init__(rho=rho)

    @staticmethod
    def length(grad: Tensor, param: Tensor) -> Tensor:
        # ‖|θ| ∇f‖
        return param.abs() * grad

    @staticmethod
    def ascent(grad: Tensor, param: Tensor, norm: Tensor, rho: float) -> Tensor:
        # e_t = ρ θ² ∇f / ‖|θ| ∇f‖
        return rho / (norm + 1e-12) * param.square() * grad
