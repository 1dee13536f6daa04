"""An optimizer for a model, from a mix and a learning rate, with the parameter groups it needs; and its code."""

import inspect
from functools import partial
from typing import Any

import torch
from torch import nn

import optimizers

from ..engine import Chain
from ..engine.stage import has_point
from ..groups import muon_groups, weight_decay_groups
from ..mixes import EXTENSIONS, Mix
from ..muon import Muon
from .errors import StudyError

# AdamW's learning rate beside Muon's, as muon_groups has them: one is searched, the other goes along.
ADAMW = 3e-4 / 0.02


def make(mix: Mix, model: nn.Module, lr: float, seed: int = 0) -> Chain:
    """The optimizer: biases and norms do not decay, and Muon steps matrices only.

    Raises:
        StudyError: it refuses the model.
    """
    try:
        return mix.build(_groups(mix, model, lr), lr=lr, seed=seed)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{mix.text} refuses the model: {str(error).splitlines()[0]}") from error


def _groups(mix: Mix, model: nn.Module, lr: float) -> list[dict[str, Any]]:
    probe, decay = _probe(mix)
    if isinstance(probe, Muon):
        groups = muon_groups(model, lr=lr, adamw_lr=ADAMW * lr, **_said_decay(mix))
    elif decay:
        groups = weight_decay_groups(model, decay)
    else:
        groups = [{"params": [(name, p) for name, p in model.named_parameters() if p.requires_grad]}]
    if "hyperball" in probe.param_groups[0]:  # it keeps the norms of matrices
        groups = [part for group in groups for part in _by_dimension(group)]
    return groups


def _said_decay(mix: Mix) -> dict[str, Any]:
    """The weight decay that a mix says itself; Muon's groups have one of their own."""
    return {key: value for key, value in mix.base[2] if key == "weight_decay"}


def _by_dimension(group: dict[str, Any]) -> list[dict[str, Any]]:
    matrices = [(name, p) for name, p in group["params"] if p.dim() > 1]
    others = [(name, p) for name, p in group["params"] if p.dim() <= 1]
    parts = [{**group, "params": matrices}, {**group, "params": others, "hyperball": False}]
    return [part for part in parts if part["params"]]


def _probe(mix: Mix) -> tuple[Chain, float]:
    """The mix on nothing, and its weight decay."""
    probe = mix.build([torch.zeros(1, requires_grad=True)])
    return probe, float(probe.param_groups[0].get("weight_decay", 0.0))


def code(mix: Mix, lr: float) -> list[str]:
    """The two lines that make this optimizer: an import and a call, for a `model`; and where to evaluate."""
    name, positional, named = mix.base
    factory = optimizers.recipes.get(name) or partial(optimizers.create, name)
    assert isinstance(factory, partial)
    probe, decay = _probe(mix)
    rule = type(probe)
    names = [key for key in inspect.signature(rule).parameters if key != "params"]
    options = {**factory.keywords, **dict(zip(names, positional, strict=False)), **dict(named), "lr": lr}
    written = [_stage(stage) for stage in options.pop("extensions", ())]
    written += [_call(EXTENSIONS[n].__name__, *args, **dict(pairs)) for n, args, pairs in mix.extensions]
    classes = [rule.__name__, *(text.partition("(")[0] for text in written)]
    params = "model.parameters()"
    if isinstance(probe, Muon):
        told = "".join(f", weight_decay={value!r}" for value in _said_decay(mix).values())
        params = f"muon_groups(model, lr={lr:.3g}, adamw_lr={ADAMW * lr:.3g}{told})"
        options.pop("lr")
        options.pop("weight_decay", None)
        classes.append("muon_groups")
    elif decay:
        params = f"weight_decay_groups(model, {decay:g})"
        options.pop("weight_decay", None)
        classes.append("weight_decay_groups")
    if written:
        options["extensions"] = _Code(f"[{', '.join(written)}]")
    call = _call(rule.__name__, _Code(params), **options)
    lines = [f"from optimizers import {', '.join(sorted(set(classes)))}", f"optimizer = {call}"]
    if any(map(has_point, probe._stages)):
        lines.append("# to evaluate: with optimizer.averaged(): …")
    return lines


class _Code(str):
    """Text that stands in the code as it is."""

    __repr__ = str.__str__


def _call(name: str, *positional: Any, **named: Any) -> str:
    return f"{name}({', '.join([*map(repr, positional), *(f'{key}={value!r}' for key, value in named.items())])})"


def _stage(stage: Any) -> str:
    """A stage that a recipe comes with, by what differs from its defaults."""
    defaults = inspect.signature(type(stage)).parameters
    changed = {key: v for key, v in stage.hyper.items() if key in defaults and v != defaults[key].default}
    return _call(type(stage).__name__, **changed)
