"""Optimizers by name, and the reference's 18 configurations."""

import builtins
import difflib
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch.optim.optimizer import ParamsT

from .adam import Adam
from .adamw import SGDW, AdamW
from .engine import Chain
from .gradient_noise import GradientNoise
from .lookahead import Lookahead
from .lr_dropout import GradientDropout, LearningRateDropout
from .momentum import SGD
from .nadam import NAdam
from .radam import RAdam, RAdamW
from .rmsprop import RMSprop


def _named() -> dict[str, type[Chain]]:
    """Every optimizer that `optimizers/__init__.py` imports, by its name in lower case."""
    import optimizers

    classes = [value for value in vars(optimizers).values() if isinstance(value, type)]
    return {c.__name__.lower(): c for c in classes if issubclass(c, Chain) and c is not Chain}


def list() -> builtins.list[str]:
    """The names that :func:`create` knows, in order."""
    return sorted(_named())


def create(name: str, params: ParamsT, **options: Any) -> Chain:
    """The optimizer of this name, for example ``optimizers.create("adamw", model.parameters(), lr=1e-3)``.

    Args:
        name: a name of :func:`list`; capitals do not matter.
        params: parameters, named parameters or parameter groups.
        options: whatever the class takes.

    Raises:
        ValueError: there is no such name; the error names the nearest.
        TypeError, ValueError: as the class raises them.
    """
    named = _named()
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    if name.lower() not in named:
        near = difflib.get_close_matches(name.lower(), named, n=1, cutoff=0.0)
        known = ", ".join(list())
        raise ValueError(f"there is no optimizer named {name!r}; did you mean {near[0]!r}? Names: {known}")
    return named[name.lower()](params, **options)


#: The reference's 18 runs: its settings, the papers' rules. ``optimizers.recipes["adamw"](model.parameters())``;
#: keywords override, as in ``recipes["adamw"](params, lr=3e-4)``.
recipes: Mapping[str, Callable[..., Chain]] = MappingProxyType(
    {
        "sgd": partial(SGD, lr=1e-3),
        "momentum": partial(SGD, lr=1e-3, momentum=0.99),
        "nesterov": partial(SGD, lr=1e-3, momentum=0.99, nesterov=True),
        "sgdw": partial(SGDW, lr=1e-3, momentum=0.99, weight_decay=1e-6),
        "momentum_lr_dropout": partial(SGD, lr=1e-3, momentum=0.99, extensions=(LearningRateDropout(0.5),)),
        "rmsprop": partial(RMSprop, lr=1e-3, alpha=0.9),
        "adam": partial(Adam, lr=1e-3),
        "adam_l2": partial(Adam, lr=1e-3, weight_decay=1e-4),
        "adamw": partial(AdamW, lr=1e-3, weight_decay=1e-4, decay="schedule"),
        "adam_lr_dropout": partial(Adam, lr=1e-3, extensions=(LearningRateDropout(0.5),)),
        "radam": partial(RAdam, lr=1e-3),
        "radamw": partial(RAdamW, lr=1e-3, weight_decay=1e-4, decay="schedule"),
        "radam_lr_dropout": partial(RAdam, lr=1e-3, extensions=(LearningRateDropout(0.5),)),
        "nadam": partial(NAdam, lr=1e-3),
        "lookahead_momentum": partial(SGD, lr=1e-3, momentum=0.99, extensions=(Lookahead(5, 0.5),)),
        "lookahead_adam": partial(Adam, lr=1e-3, extensions=(Lookahead(5, 0.5),)),
        "gradient_noise_adam": partial(Adam, lr=1e-3, extensions=(GradientNoise(0.3, 0.55),)),
        "gradient_dropout_adam": partial(Adam, lr=1e-3, extensions=(GradientDropout(0.9),)),
    }
)
