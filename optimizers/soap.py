r"""SOAP: Adam, or any other elementwise rule, in the eigenbasis of Shampoo (Vyas et al., 2025)."""

from collections.abc import Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import AdamDirection, Betas
from .engine import Chain, Options, Place, Stage, select, symmetric
from .shampoo import eigenvectors, read
from .weight_decay import DecoupledWeightDecay

SLICE = 1 << 17  # elements


def rotated(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Q_Lᵀ X Q_R: X in the bases whose vectors are the columns of Q_L and Q_R, on the sides that have one."""
    x = left.mT @ x if left.numel() else x
    return x @ right if right.numel() else x


def averaged(gram: Tensor, x: Tensor, beta: float, largest: int) -> Tensor:
    """β A + (1 − β) X Xᵀ; nothing, (0, 0), of a vector, and of a matrix of more rows than `largest`."""
    if x.dim() < 2 or len(x) > largest:
        return x.new_zeros(0, 0)
    return symmetric(x, x.mT, gram.expand(len(x), len(x)), beta=beta, alpha=1 - beta)


def power_iteration(gram: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """A basis nearer to the eigenvectors, in the order of their eigenvalues, and where in the old one they were."""
    product = gram @ basis
    # λ_i ≈ q_iᵀ A q_i
    order = (basis * product).sum(0).argsort(descending=True)
    # Q R = A Q
    return torch.linalg.qr(product[:, order])[0], order


class Rotated(Stage):
    """A direction in the eigenbasis of Shampoo's L and R: of ``AdamDirection()``, SOAP's (Vyas et al. 2025).

    What the direction remembers is kept in that basis, as in the authors' code. When the basis changes, its
    velocities are rotated along, while its other averages, whose entries are squares, only follow the order of the
    axes. Vectors are stepped by the direction itself.

    Args:
        inner: the direction, any elementwise one.
        shampoo_beta: decay rate of the averages L of G Gᵀ and R of Gᵀ G, in [0, 1).
        precondition_frequency: the bases are made at the first step, and brought up to date at every so many.
        max_precond_dim: sides of more rows or columns are not rotated.
        first_step: whether the first gradient, from which the bases are made, is stepped along, too. In the
            authors' code it is not: nothing moves, and the direction counts steps from the second.

    Raises:
        TypeError: `inner` is not an elementwise direction.
    """

    place = Place.DIRECTION
    reach = "matrix"

    def __init__(
        self,
        inner: Stage,
        shampoo_beta: float = 0.95,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        first_step: bool = False,
    ) -> None:
        is_direction = isinstance(inner, Stage) and inner.place is Place.DIRECTION and inner.reach == "element"
        if not is_direction or {"index", "coordinate", "grad"} & inner.needs:
            raise TypeError(f"Rotated takes an elementwise direction, such as AdamDirection(), got {inner!r}")
        self.inner = inner
        self.matrices = (*inner.state, "left_gram", "right_gram", "left_basis", "right_basis")
        own = {
            "shampoo_beta": "[0, 1)",
            "precondition_frequency": "int [1, inf)",
            "max_precond_dim": "int [0, inf)",
            "first_step": "bool",
        }
        asked = [name for name in (*inner.needs, *inner.hyper, *self.matrices, *own, "step") if name != "memory"]
        vars(self).update(
            ranges={**inner.ranges, **own},
            asks={"update": (), "matrix": tuple(dict.fromkeys(asked))},
            needs=frozenset(asked),
            scalars=inner.scalars,
            prefix=inner.prefix,
            includes_lr=inner.includes_lr,
            shared=("first_step",),
        )
        super().__init__(
            **inner.hyper,
            shampoo_beta=shampoo_beta,
            precondition_frequency=precondition_frequency,
            max_precond_dim=max_precond_dim,
            first_step=first_step,
        )

    def _inner_hyper(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        return {name: hyper[name] for name in self.inner.hyper}

    def check(self, hyper: Mapping[str, Any], where: str = "") -> None:
        super().check(hyper, where)
        self.inner.check(self._inner_hyper(hyper), where)

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return self.inner.applies(self._inner_hyper(hyper))

    def refuses(self, param: Tensor, hyper: Mapping[str, Any]) -> str | None:
        return "it is complex" if param.is_complex() else self.inner.refuses(param, self._inner_hyper(hyper))

    def size(self, name: str, shape: tuple[int, ...], hyper: Mapping[str, Any]) -> tuple[int, ...]:
        if name in self.inner.state:
            return shape
        n = shape[name.startswith("right")] if len(shape) == 2 else 0
        return (n, n) if n <= hyper["max_precond_dim"] else (0, 0)

    def initial(self, name: str, param: Tensor) -> Tensor:
        """The inner direction's; else one 0, in place of a tensor of zeros of whatever shape comes to be needed."""
        if name in self.inner.remembers(self.inner.hyper):
            return self.inner.initial(name, param.to(torch.promote_types(param.dtype, torch.float32)))
        return torch.zeros((), dtype=torch.promote_types(param.dtype, torch.float32), device=param.device)

    def count(self, scalars: Mapping[str, Any], step: Any, hyper: Mapping[str, Any], lr: Any) -> dict[str, Any]:
        if hyper["first_step"]:
            return self.inner.count(scalars, step, self._inner_hyper(hyper), lr)
        new = self.inner.count(scalars, step - 1, self._inner_hyper(hyper), lr)
        return {name: select(step > 1, value, scalars[name]) for name, value in new.items()}

    def __repr__(self) -> str:
        own = (f"{name}={value!r}" for name, value in self.hyper.items() if name not in self.inner.hyper)
        return f"Rotated({', '.join([repr(self.inner), *own])})"

    @staticmethod
    def update(grad: Tensor) -> Tensor:
        return grad

    def matrix(self, x: Tensor, **given: Any) -> tuple[Tensor, ...]:
        """The stage's step; what it is given depends on the inner direction."""
        first, step = given["left_basis"].dim() == 0, read(given["step"]) - (0 if given["first_step"] else 1)
        memory = {name: given[name] for name in self.inner.state}
        beta, largest = given["shampoo_beta"], given["max_precond_dim"]
        # L_t = β L_{t−1} + (1 − β) G_t G_tᵀ  and  R_t = β R_{t−1} + (1 − β) G_tᵀ G_t
        grams = [
            averaged(given["left_gram"], x, beta, largest),
            averaged(given["right_gram"], x.mT if x.dim() == 2 else x, beta, largest),
        ]
        bases = [eigenvectors(each)[1] for each in grams] if first else [given["left_basis"], given["right_basis"]]
        if step < 1:
            direction = torch.zeros_like(x)
        else:
            # D_t = Q_L d(Q_Lᵀ G_t Q_R) Q_Rᵀ, where d is the inner direction
            inside = {**given, "step": step}
            if "param" in given:
                inside["param"] = rotated(given["param"], *bases)
            direction, memory = self._step_inside(rotated(x, *bases), memory, inside)
            direction = rotated(direction, *(basis.mT for basis in bases))
            if step % given["precondition_frequency"] == 0:
                bases, memory = self._turned(grams, bases, memory)
        return direction, *memory.values(), *grams, *bases

    def _step_inside(
        self, x: Tensor, memory: dict[str, Tensor], given: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The inner direction of a rotated gradient, and what it remembers from now on."""
        names = self.inner.remembers(self._inner_hyper(given))
        tensors = {"x": x, **{name: memory[name] for name in names}}
        if "param" in given:
            tensors["param"] = given["param"]
        slices = [tensors]
        if x.dim() == 2 and x.numel() > SLICE:  # so that the rule's temporaries stay in the cache
            rows = max(1, SLICE // x.shape[1])
            starts = range(0, len(x), rows)
            slices = [{name: t[i : i + rows] for name, t in tensors.items()} for i in starts]
        results = []
        for each in slices:
            known = {**given, **dict.fromkeys(memory), **each, "memory": tuple(each[name] for name in names)}
            out = self.inner.call("update", each["x"], known)
            results.append([tensor for tensor in (out if memory else (out,)) if tensor is not None])
        direction, *new = map(torch.cat, zip(*results, strict=True)) if len(results) > 1 else results[0]
        return direction, memory | dict(zip(names, new, strict=True))

    def _turned(
        self, grams: list[Tensor], bases: list[Tensor], memory: dict[str, Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The bases, brought up to date, and what is remembered, in them."""
        turns, orders = [], []
        for i, (each, basis) in enumerate(zip(grams, bases, strict=True)):
            bases[i], order = power_iteration(each, basis) if basis.numel() else (basis, slice(None))
            turns.append(basis.mT @ bases[i])
            orders.append(order)
        for name, tensor in memory.items():
            if name in self.inner.velocity:
                # M ← Q_L'ᵀ (Q_L M Q_Rᵀ) Q_R'
                memory[name] = rotated(tensor, *turns)
            elif tensor.dim() == 2:
                memory[name] = tensor[orders[0]][:, orders[1]]
        return bases, memory

    def preconditioner(self, state: Mapping[str, Tensor], step: float, hyper: Mapping[str, Any]) -> Any:
        inner = self.inner.preconditioner(state, step - (not hyper["first_step"]), self._inner_hyper(hyper))
        return None if inner is None else (state["left_basis"], inner, state["right_basis"])


class DecayAfter(DecoupledWeightDecay):
    """Decay of the weight at which the step arrives; none at a first step that moves nothing: as in SOAP's code."""

    ranges = {**DecoupledWeightDecay.ranges, "first_step": "bool"}
    shared = ("first_step",)

    def __init__(self, weight_decay: float, decay: Literal["lr", "schedule"], first_step: bool) -> None:
        Stage.__init__(
            self, weight_decay=weight_decay, decay=decay, decoupled_weight_decay=True, first_step=first_step
        )

    @staticmethod
    def update(  # type: ignore[override]
        update: Tensor,
        param: Tensor,
        lr: float,
        schedule: float,
        step: float,
        weight_decay: float,
        decay: str,
        first_step: bool,
    ) -> Any:
        rate = (lr if decay == "lr" else schedule) * weight_decay
        # θ_t = (1 − α_t λ) (θ_{t−1} − u_t), so that u_t ← u_t + α_t λ (θ_{t−1} − u_t)
        return update + (rate if first_step else select(step > 1, rate, 0.0)) * (param - update)


class SOAP(Chain):
    r"""SOAP: Adam in Shampoo's eigenbasis.

    .. math:: \theta_t = (1 - \alpha_t \lambda) \left( \theta_{t-1} - \alpha_t\,
        Q_L\, \mathrm{Adam}(Q_L^\top G_t Q_R)\, Q_R^\top \right)

    where the columns of :math:`Q_L` and :math:`Q_R` are the eigenvectors of averages of :math:`G G^\top` and
    :math:`G^\top G`. Algorithm 3 of Vyas et al. (2025) as in their code: Adam's averages are kept in the rotated
    space, every f-th step brings the bases up to date by one power iteration, decay is of the weight after the
    step, and the first step makes the bases and moves nothing. Only ε is added to :math:`\sqrt{\hat v}`, as
    everywhere here, where they add it to :math:`\sqrt v`. Vectors are stepped by Adam. :class:`optimizers.Rotated`
    rotates any other
    direction: ``Chain(params, [Rotated(LionDirection())], lr=1e-4)``.

    Args:
        params: parameters, named parameters or parameter groups; tensors of more than two dimensions are taken as
            matrices, the first one against all others.
        lr: learning rate α, in [0, ∞); a number or a tensor of one element.
        betas: decay rates (β₁, β₂) of Adam's averages, each in [0, 1).
        shampoo_beta: decay rate of the averages of G Gᵀ and Gᵀ G, in [0, 1); None for β₂.
        eps: ε, in [0, ∞), in the unit of the gradient.
        weight_decay: λ, in [0, ∞).
        precondition_frequency: f, the steps between two changes of the bases.
        max_precond_dim: sides of more rows or columns than this are not rotated; 0 for Adam, one step late.
        first_step: step along the first gradient, too.
        decay: ``"lr"`` for α_t λ θ, ``"schedule"`` for η_t λ θ as in the paper of AdamW.
        options: as in :class:`optimizers.Chain`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range.
        RuntimeError: (in `step`) a parameter is complex.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: Betas = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        *,
        first_step: bool = False,
        decay: Literal["lr", "schedule"] = "lr",
        **options: Unpack[Options],
    ) -> None:
        adam = AdamDirection(betas, eps)
        beta = adam.hyper["betas"][1] if shampoo_beta is None else shampoo_beta
        direction = Rotated(adam, beta, precondition_frequency, max_precond_dim, first_step)
        super().__init__(params, [direction, DecayAfter(weight_decay, decay, first_step)], lr=lr, **options)
