"""What is compared: every rule, in this package, in torch and in other libraries, with equal hyper-parameters.

A builder takes parameters and returns an optimizer; other libraries' builders take the library's module first, so
that nothing here needs them. Where a library only re-exports torch's class, it is not listed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import optimizers as ours
from optimizers import GradientNoise, LearningRateDropout, Lookahead

# name in the record -> (module, name to install)
LIBRARIES = {
    "kozistr": ("pytorch_optimizer", "pytorch-optimizer"),
    "jettify": ("torch_optimizer", "torch-optimizer"),
    "optimi": ("optimi", "torch-optimi"),
    "timm": ("timm.optim", "timm"),
}
# Those that `equality` runs besides, and some of them `modern`.
PEERS = LIBRARIES | {
    "adabound": ("adabound", "adabound"),  # its authors'
    "heavyball": ("heavyball", "heavyball"),
    "keras": ("keras", "keras"),
    "labml": ("labml_nn.optimizers.adam", "labml-nn"),
    "optax": ("optax", "optax"),
    "prodigyopt": ("prodigyopt", "prodigyopt"),  # its authors'
    "schedulefree": ("schedulefree", "schedulefree"),  # its authors'
    "tinygrad": ("tinygrad.nn.optim", "tinygrad"),
    "torchzero": ("torchzero", "torchzero"),
}
Peers = Mapping[str, Callable[..., Any]]  # candidate's name, beginning with a library's key -> builder
KEEP, ETA, GAMMA = 0.5, 0.3, 0.55  # learning-rate dropout's and gradient noise's


@dataclass(frozen=True)
class Rule:
    """One update rule and who has it.

    Args:
        title: as the book calls it.
        streams: values that a step has to read or write per coordinate: the gradient once, the parameter and each
            tensor of the state twice, unless a sum has to be known first.
        ours: builds this package's; takes ``foreach`` and ``fused``.
        torch: builds torch's, if it has the rule; takes ``foreach``, and ``fused`` if `fused`.
        fused: whether torch has a hand-written kernel for it on a CPU.
        peers: candidate's name, beginning with a key of `PEERS`, or with ``ours`` or ``torch`` for what else of
            these is to be measured beside it -> builder, which takes the library's module first.
        period: steps after which the work repeats; 5 for a Lookahead that looks every fifth time.
    """

    title: str
    streams: float
    ours: Callable[..., Optimizer]
    torch: Callable[..., Optimizer] | None = None
    fused: bool = False
    peers: Peers = field(default_factory=dict)
    period: int = 1


def both(name: str, **options: Any) -> Peers:
    """pytorch-optimizer's class of this name, as a loop and with its foreach path, which is off on a CPU."""
    return {
        "kozistr": lambda module, params: getattr(module, name)(params, foreach=False, **options),
        "kozistr_foreach": lambda module, params: getattr(module, name)(params, foreach=True, **options),
    }


def optimi(name: str, **options: Any) -> Peers:
    return {
        "optimi": lambda module, params: getattr(module, name)(params, lr=1e-3, foreach=False, **options),
        "optimi_foreach": lambda module, params: getattr(module, name)(params, lr=1e-3, foreach=True, **options),
    }


def jettify(name: str, **options: Any) -> Peers:
    return {"jettify": lambda module, params: getattr(module, name)(params, **options)}


def _mix(params: Sequence[Tensor], *extra: Any, **options: Any) -> Optimizer:
    return ours.RAdamW(params, nesterov=True, extensions=[*extra, Lookahead(k=5, alpha=0.5)], **options)


def _assembled(radam: Callable[..., Optimizer], masks: bool, noise: bool) -> Callable[..., Optimizer]:
    """The mix from other libraries' pieces: RAdam, pytorch-optimizer's Lookahead, noise and masks by hand."""

    def build(module: Any, params: Sequence[Tensor]) -> Optimizer:
        optimizer = radam(module, params)
        if masks or noise:
            by_hand(optimizer, params, masks, noise)
        wrapped: Optimizer = module.Lookahead(optimizer, k=5, alpha=0.5)
        return wrapped

    return build


def by_hand(optimizer: Optimizer, params: Sequence[Tensor], masks: bool, noise: bool) -> None:
    """Noise on the gradients before `optimizer.step`, masks on the update after it, as one would in a script."""
    step, count = optimizer.step, 0

    @torch.no_grad()
    def stepped(closure: None = None) -> None:
        nonlocal count
        count += 1
        if noise:
            sigma = (ETA / count**GAMMA) ** 0.5
            for p in params:
                assert p.grad is not None
                p.grad.add_(torch.randn_like(p.grad), alpha=sigma)
        before = [p.clone() for p in params] if masks else []
        step()
        for p, old in zip(params, before, strict=False):
            p.sub_(old).mul_(torch.bernoulli(torch.full_like(p, KEEP))).add_(old)

    optimizer.step = stepped  # type: ignore[method-assign, assignment]


def _pieces(masks: bool, noise: bool) -> Peers:
    """With pytorch-optimizer's RAdam, as a loop and foreach, and with torch's; none of them knows Nesterov's."""

    def kozistr(module: Any, params: Sequence[Tensor], foreach: bool) -> Optimizer:
        built: Optimizer = module.RAdam(params, weight_decay=1e-2, weight_decouple=True, foreach=foreach)
        return built

    def torch_s(module: Any, params: Sequence[Tensor]) -> Optimizer:
        return torch.optim.RAdam(params, weight_decay=1e-2, decoupled_weight_decay=True, foreach=True)

    return {
        "kozistr": _assembled(partial(kozistr, foreach=False), masks, noise),
        "kozistr_foreach": _assembled(partial(kozistr, foreach=True), masks, noise),
        "kozistr_torch": _assembled(torch_s, masks, noise),
    }


_optim = torch.optim
_momentum: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9}
RULES: dict[str, Rule] = {
    "sgd": Rule(
        "SGD + momentum",
        5,
        partial(ours.SGD, **_momentum),
        partial(_optim.SGD, **_momentum),
        True,
        {**both("SGDW", **_momentum), **optimi("SGD", momentum=0.9)},
    ),
    "adam": Rule("Adam", 7, ours.Adam, _optim.Adam, True, optimi("Adam")),
    "adamw": Rule(
        "AdamW",
        7,
        ours.AdamW,
        _optim.AdamW,
        True,
        {**optimi("AdamW"), "timm": lambda module, params: module.AdamWLegacy(params, foreach=False)},
    ),
    "amsgrad": Rule(
        "AMSGrad",
        9,
        partial(ours.Adam, amsgrad=True),
        partial(_optim.Adam, amsgrad=True),
        True,
        {"timm": lambda module, params: module.AdamWLegacy(params, amsgrad=True, weight_decay=0, foreach=False)},
    ),
    "rmsprop": Rule("RMSprop", 5, ours.RMSprop, _optim.RMSprop),
    "nadam": Rule(
        "NAdam",
        7,
        ours.NAdam,
        _optim.NAdam,
        peers={
            "timm": lambda module, params: module.NAdamW(params, weight_decay=0, foreach=False),
            "timm_foreach": lambda module, params: module.NAdamW(params, weight_decay=0, foreach=True),
        },
    ),
    "radam": Rule(
        "RAdam",
        7,
        ours.RAdam,
        _optim.RAdam,
        peers={**both("RAdam"), **jettify("RAdam"), **optimi("RAdam")},
    ),
    "adadelta": Rule("Adadelta", 7, ours.Adadelta, _optim.Adadelta, peers=both("AdaDelta")),
    "adabound": Rule("AdaBound", 7, ours.AdaBound, peers={**both("AdaBound"), **jettify("AdaBound")}),
    "aggmo": Rule("AggMo", 9, ours.AggMo, peers={**both("AggMo"), **jettify("AggMo")}),
    # Lookahead reads and writes its slow weights every fifth step: 2 / 5 of a stream.
    "mix": Rule("RAdamW + Nesterov + Lookahead", 7.4, _mix, peers=_pieces(masks=False, noise=False), period=5),
    "mix_masks": Rule(
        "… + learning-rate dropout",
        7.4,
        lambda params, **options: _mix(params, LearningRateDropout(KEEP), **options),
        peers=_pieces(masks=True, noise=False),
        period=5,
    ),
    "mix_noise": Rule(
        "… + gradient noise",
        7.4,
        lambda params, **options: _mix(params, GradientNoise(ETA, GAMMA), LearningRateDropout(KEEP), **options),
        peers=_pieces(masks=True, noise=True),
        period=5,
    ),
}
