"""The rules of after 2019, as in `rules`: in this package, in torch and in other libraries, and mixes with them.

They have a plan and a record of their own: `python -m benchmarks.step_time --modern`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import optimizers as ours
from optimizers import MARS, Average, Cautious, ScheduleFree

from .rules import Peers, Rule, both, jettify, optimi

LARGEST = 10_000  # rows, or columns, of a matrix that is hidden: SOAP's default, and no embedding's


def _timm(name: str, **options: Any) -> Peers:
    """timm's class of this name, as a loop and with its foreach path."""
    return {
        "timm": lambda module, params: getattr(module, name)(params, foreach=False, **options),
        "timm_foreach": lambda module, params: getattr(module, name)(params, foreach=True, **options),
    }


def _extended(extension: Callable[[], Any], **settings: Any) -> Callable[..., Optimizer]:
    """Our AdamW with an extension."""
    return lambda params, **options: ours.AdamW(params, extensions=[extension()], **settings, **options)


def _schedule_free() -> Peers:
    def build(module: Any, params: Sequence[Tensor], foreach: bool) -> Any:
        return module.AdamWScheduleFree(params, foreach=foreach)

    return {
        "schedulefree": partial(build, foreach=False),
        "schedulefree_foreach": partial(build, foreach=True),
        **both("ScheduleFreeAdamW"),
    }


# Rules that memory limits. Those with two terms for `streams` go over memory twice, as they need a sum: what they
# have of the new parameter by then is written down in between where the sum is of one tensor, else computed again.
BY_MEMORY: dict[str, Rule] = {
    "lion": Rule("Lion", 5, ours.Lion, peers={**_timm("Lion"), **both("Lion"), **optimi("Lion")}),
    "signum": Rule("Signum", 5, ours.Signum, peers=both("SignSGD")),
    "adabelief": Rule(
        "AdaBelief",
        7,
        ours.AdaBelief,
        peers={
            "timm": lambda module, params: module.AdaBelief(params, rectify=False, foreach=False),
            **both("AdaBelief"),
            **jettify("AdaBelief", eps=1e-16, weight_decouple=True),
        },
    ),
    "adopt": Rule("ADOPT", 7, ours.ADOPT, peers={**_timm("Adopt", clip_exp=0.25), **both("ADOPT")}),
    "ademamix": Rule("AdEMAMix", 9, ours.AdEMAMix, peers=both("AdEMAMix")),
    "schedule_free": Rule(
        "Schedule-Free AdamW",
        7,
        _extended(ScheduleFree, lr=2.5e-3, betas=(0.0, 0.999), weight_decay=0.0),
        peers=_schedule_free(),
    ),
    "prodigy": Rule(
        "Prodigy",
        4 + 9,
        ours.Prodigy,
        peers={"prodigyopt": lambda module, params: module.Prodigy(params), **both("Prodigy")},
    ),
    "lamb": Rule(
        "LAMB",
        7 + 3,
        ours.LAMB,
        peers={
            **_timm("Lamb", max_grad_norm=None),
            **both("Lamb", weight_decay=1e-2),
            **jettify("Lamb", weight_decay=1e-2),
        },
    ),
    "cautious": Rule("AdamW + Cautious", 6 + 4, _extended(Cautious), peers=_timm("AdamWLegacy", caution=True)),
    "mars": Rule(
        "AdamW + MARS",
        2 + 9,
        _extended(MARS, lr=3e-3, betas=(0.95, 0.99)),
        peers={
            "timm": lambda module, params: module.Mars(params, betas=(0.95, 0.99), optimize_1d=True),
            **both("MARS", optimize_1d=True),
        },
    ),
    # The gradient for its averages, for the RMS of the step, and for the step; the parameter for its RMS.
    "adafactor": Rule(
        "Adafactor",
        6,
        ours.Adafactor,
        torch.optim.Adafactor,
        peers={
            "timm": lambda module, params: module.Adafactor(params),
            **both("AdaFactor", lr=None, betas=(None, 0.999)),
        },
    ),
}

# ---------------------------------------------------------------- products of matrices


def hidden(params: Sequence[Tensor]) -> list[list[Tensor]]:
    """The matrices, which are Muon's, and the rest, which is AdamW's."""
    matrices = [p for p in params if p.dim() >= 2 and max(len(p), p[0].numel()) <= LARGEST]
    chosen = set(map(id, matrices))
    return [matrices, [p for p in params if id(p) not in chosen]]


def muon(params: Sequence[Tensor], **options: Any) -> Optimizer:
    """Ours, with AdamW for what is no matrix."""
    matrices, rest = hidden(params)
    groups = [{"params": matrices, "lr": 0.02}, {"params": rest, "direction": "adamw", "lr": 3e-4}]
    return ours.Muon(groups, **options)


def _single_precision(function: FunctionType) -> None:
    """Make a library's Newton-Schulz compute in float32, as ours does on a CPU: none of them has a switch."""
    short = (torch.bfloat16, torch.float16)
    given = function.__defaults__ or ()
    function.__defaults__ = tuple(torch.float32 if value in short else value for value in given)


def _kozistr_muon(module: Any, params: Sequence[Tensor], method: str) -> Any:
    matrix = module.optimizer.utils.matrix
    for function in (matrix.zero_power_via_newton_schulz_5, matrix.zero_power_via_gram_newton_schulz):
        _single_precision(function)
    matrices, rest = hidden(params)
    groups = [{"params": matrices, "use_muon": True}, {"params": rest, "use_muon": False}]
    return module.Muon(groups, weight_decay=0.1, ns_method=method)


def _timm_muon(module: Any, params: Sequence[Tensor]) -> Any:
    _single_precision(module.muon.zeropower_via_newtonschulz)
    matrices, rest = hidden(params)
    groups = [{"params": matrices}, {"params": rest, "use_fallback": True}]
    return module.Muon(groups, weight_decay=0.1, nesterov=True, adjust_lr_fn="original")


def _torch_muon(module: Any, params: Sequence[Tensor], precise: bool = False) -> Any:
    """torch's, which takes matrices alone, with its fused AdamW for the rest; if `precise`, in float32."""
    matrices, rest = hidden(params)
    optimizers = [module.optim.Muon(matrices, lr=0.02), module.optim.AdamW(rest, lr=3e-4, fused=True)]

    def step() -> None:
        half = Tensor.bfloat16
        if precise:
            Tensor.bfloat16 = Tensor.float  # type: ignore[method-assign]
        try:
            for optimizer in optimizers:
                optimizer.step()
        finally:
            Tensor.bfloat16 = half  # type: ignore[method-assign]

    return SimpleNamespace(step=step)


def _heavyball_soap(module: Any, params: Sequence[Tensor]) -> Any:
    """Not compiled, which takes minutes: its time goes into products of matrices, which no compiler changes."""
    module.utils.compile_mode = None
    optimizer = module.SOAP(
        params,
        betas=(0.95, 0.95),
        precondition_frequency=10,
        max_precond_dim=LARGEST,
        merge_dims=False,
        use_precond_schedule=False,
    )
    optimizer.consume_grad = False  # as everywhere else, the gradients stay
    return optimizer


def _averaged(build: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """With an exponential average of the parameters, which is elementwise: one state more to read and write."""
    return lambda params, **options: build(params, extensions=[Average()], **options)


_muon_peers: Peers = {
    "torch_float32": partial(_torch_muon, precise=True),
    "kozistr": partial(_kozistr_muon, method="newton_schulz"),
    "kozistr_gram": partial(_kozistr_muon, method="gram_newton_schulz"),
    "timm": _timm_muon,
}
_soap_peers: Peers = {"kozistr": lambda module, params: module.SOAP(params), "heavyball": _heavyball_soap}

# Rules that arithmetic limits. Their `streams` leave out the bases and the products.
BY_ARITHMETIC: dict[str, Rule] = {
    "muon": Rule("Muon", 5, muon, peers=_muon_peers),
    "muon_average": Rule(
        "Muon + Average",
        7,
        _averaged(muon),
        peers={"ours_plain": lambda module, params: muon(params, fused=True)},
    ),
    "muon_bfloat16": Rule(
        "Muon in bfloat16", 5, partial(muon, precision="bfloat16"), peers={"torch_as_it_is": _torch_muon}
    ),
    "soap": Rule("SOAP", 7, ours.SOAP, peers=_soap_peers, period=10),
    "soap_average": Rule(
        "SOAP + Average",
        9,
        _averaged(ours.SOAP),
        peers={"ours_plain": lambda module, params: module.SOAP(params, fused=True)},
        period=10,
    ),
}
MODERN = BY_MEMORY | BY_ARITHMETIC
