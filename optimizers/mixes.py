"""Optimizers as they are written on a command line: `radamw(nesterov=True)+gradient_noise+lr_dropout(0.5)`.

A mix is one optimizer and any extensions, joined by `+`, options in brackets as in Python. The optimizer is one of
the reference's 18 runs (`optimizers.recipes`), with its settings, or else any optimizer of the package, with its
own. An extension is any stage of the package: `ScheduleFree` is `schedule_free`.
"""

import ast
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

import optimizers

from .engine import Chain, Options, Place, Stage, new_run


def _named() -> dict[str, type[Stage]]:
    """Every stage that `optimizers/__init__.py` imports and that can be an extension: all but directions."""
    stages = [value for value in vars(optimizers).values() if isinstance(value, type) and issubclass(value, Stage)]
    names = {stage: re.sub(r"(?<=[a-z])(?=[A-Z])", "_", stage.__name__).lower() for stage in stages}
    names[optimizers.LearningRateDropout] = "lr_dropout"
    return {names[s]: s for s in stages if s is not Stage and s.place is not Place.DIRECTION}


EXTENSIONS: Mapping[str, type[Stage]] = _named()
# Given by the command or by torch, not written in a mix.
RESERVED = ("params", "extensions", "options", "foreach", "fused", "capturable", "differentiable")

Call = tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]]  # a name, positional values, named values


@dataclass(frozen=True)
class Mix:
    """An optimizer with its extensions; `text` is its one spelling, and what a record names it by."""

    text: str
    base: Call = field(repr=False)
    extensions: tuple[Call, ...] = field(repr=False, default=())

    def build(self, params: ParamsT, *, seed: int = 0, **options: Any) -> Chain:
        """The optimizer. `options` (lr, fused, …) override what the mix says; `seed` goes to noise and masks.

        A seed that the mix writes down itself, as in `gradient_noise(seed=7)`, stays. Raises ValueError or
        TypeError, as the optimizer does, where options or stages do not fit together.
        """
        name, positional, named = self.base
        factory = _optimizer(name)
        own = factory.keywords.get("extensions", ()) if isinstance(factory, functools.partial) else ()
        stages = [*own, *(EXTENSIONS[n](*args, **dict(pairs)) for n, args, pairs in self.extensions)]
        # An option given by its place is passed by its name, or it would clash with the recipe's own.
        names = [key for key in _signature(factory).parameters if key != "params"]
        given = {**dict(zip(names, positional, strict=False)), **dict(named), **options}
        new_run()  # what was made before, to try this mix or another, draws for itself
        optimizer = factory(params, **{**given, "extensions": stages})
        fixed = {f"{EXTENSIONS[n].prefix}_{key}" for n, _, pairs in self.extensions for key, _ in pairs}
        for group in optimizer.param_groups:
            for key in group:
                if key.endswith("_seed") and key not in fixed:
                    group[key] = seed
        return optimizer

    @property
    def imports(self) -> str:
        """A line of Python that imports exactly the classes that the mix is made of: for hashing their code."""
        probe = self.build([torch.zeros(1, requires_grad=True)])
        pairs = [(type(probe).__module__, type(probe).__name__)]
        pairs += [(type(stage).__module__, type(stage).__name__) for stage in probe._stages]
        return "\n".join(f"from {module} import {name}" for module, name in sorted(set(pairs)))

    @property
    def elementwise(self) -> bool:
        """Whether a step treats every coordinate alone, so that stacked networks do not see each other."""
        probe = self.build([torch.zeros(1, requires_grad=True)])
        return all(type(stage).before is Stage.before for stage in probe._stages)


def parse(text: str) -> list[Mix]:
    """The mixes in a list such as `adam, radamw(nesterov=True)+lookahead`, in order, each once.

    Raises:
        ValueError: something in it is no mix; one line that names the nearest valid word.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(
            f"cannot read the optimizers {text!r} ({error.msg}): write them as in "
            '"adam, radamw(nesterov=True)+gradient_noise+lr_dropout(0.5)+lookahead"'
        ) from error
    mixes = [_mix(node) for node in (tree.elts if isinstance(tree, ast.Tuple) else [tree])]
    return list({mix.text: mix for mix in mixes}.values())


def _mix(node: ast.expr) -> Mix:
    base, *extensions = [_call(term) for term in _terms(node)]
    factory = _optimizer(base[0])
    _check(base, factory)
    for extension in extensions:
        name = extension[0]
        if name not in EXTENSIONS:
            raise ValueError(_unknown("extension", name, EXTENSIONS))
        _check(extension, EXTENSIONS[name])
    mix = Mix("+".join(_spell(call) for call in (base, *extensions)), base, tuple(extensions))
    try:
        mix.build([torch.zeros(1, requires_grad=True)])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{mix.text}: {error}") from error
    return mix


def _terms(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_terms(node.left), *_terms(node.right)]
    return [node]


def _call(node: ast.expr) -> Call:
    if isinstance(node, ast.Name):
        return node.id.lower(), (), ()
    written = ast.unparse(node)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"{written!r} is neither a name nor a name with options, such as lr_dropout(0.5)")
    try:
        positional = tuple(ast.literal_eval(value) for value in node.args)
        named = tuple((str(keyword.arg), ast.literal_eval(keyword.value)) for keyword in node.keywords)
    except ValueError as error:
        raise ValueError(f"{written!r}: options must be numbers, text, True, False or None") from error
    return node.func.id.lower(), positional, named


def _optimizer(name: str) -> Callable[..., Chain]:
    """The recipe of this name, else the package's class."""
    if name in optimizers.recipes:
        return optimizers.recipes[name]
    if name in optimizers.list():
        return functools.partial(optimizers.create, name)
    raise ValueError(_unknown("optimizer", name, [*optimizers.recipes, *optimizers.list()]))


def _signature(factory: Callable[..., Any]) -> inspect.Signature:
    """The signature of the class behind a factory, of an optimizer or of an extension."""
    if isinstance(factory, functools.partial):
        if factory.func is optimizers.create:
            probe = factory([torch.zeros(1, requires_grad=True)])
            return inspect.signature(type(probe))
        return inspect.signature(factory.func)
    return inspect.signature(factory)


def _check(call: Call, factory: Callable[..., Any]) -> None:
    """ValueError for an option that the class does not have, or values that do not fit its signature."""
    name, positional, named = call
    parameters = _signature(factory).parameters
    takes_rest = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    valid = [key for key in [*parameters, *(Options.__annotations__ if takes_rest else ())] if key not in RESERVED]
    for key, _ in named:
        if key not in valid:
            raise ValueError(_unknown(f"option of {name}", key, valid))
    places = [key for key, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and key in valid]
    if len(positional) > len(places):
        raise ValueError(f"{_spell(call)} has {len(positional)} values, {name} takes {', '.join(places)}")
    if twice := [key for key in places[: len(positional)] if key in dict(named)]:
        raise ValueError(f"{_spell(call)} says {twice[0]} twice")


def _unknown(what: str, name: str, valid: Iterable[str]) -> str:
    names = list(dict.fromkeys(valid))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"there is no {what} {name!r}; did you mean {near[0]!r}? There are: {', '.join(names)}"


def _spell(call: Call) -> str:
    name, positional, named = call
    options = [*map(repr, positional), *(f"{key}={value!r}" for key, value in named)]
    return f"{name}({', '.join(options)})" if options else name
