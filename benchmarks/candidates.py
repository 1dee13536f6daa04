"""Everything that can take a step of a rule: this package and torch in all their executions, other libraries."""

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .rules import PEERS, Rule

Step = Callable[[], object]
Build = Callable[[Sequence[Tensor]], Step]
OWN_MODULES = {"ours": ("optimizers", "."), "torch": ("torch", "torch")}
OWN = tuple(OWN_MODULES)


class Skip(Exception):
    """A candidate cannot run here; the message says why, and what to install where that would help."""


def of(rule: Rule, libraries: Collection[str] | None = None, compiled: bool = False) -> dict[str, Build]:
    """The candidates for a rule: name in the record -> a function that makes the step, or raises Skip.

    Args:
        libraries: only these, out of ours, torch and the keys of `PEERS`; None for all.
        compiled: also torch's step under `torch.compile`, which takes minutes to compile for a large model.
    """
    found: dict[str, Build] = {
        "ours_eager": partial(_step, partial(rule.ours, foreach=False, fused=False)),
        "ours_foreach": partial(_step, partial(rule.ours, foreach=True, fused=False)),
        "ours_fused": partial(_step, partial(rule.ours, fused=True)),
        "ours_kernel": partial(_kernel, partial(rule.ours, fused=True)),
    }
    if rule.torch is not None:
        found["torch_loop"] = partial(_step, partial(rule.torch, foreach=False))
        found["torch_foreach"] = partial(_step, partial(rule.torch, foreach=True))
        if rule.fused:
            found["torch_fused"] = partial(_step, partial(rule.torch, fused=True))
        if compiled:
            found["torch_compiled"] = partial(_compiled, partial(rule.torch, foreach=True))
    for name, build in rule.peers.items():
        found[name] = partial(_peer, name, build)
    return {name: build for name, build in found.items() if libraries is None or library_of(name) in libraries}


def library_of(candidate: str) -> str:
    """The library that a candidate is from: the first word of its name."""
    return candidate.partition("_")[0]


def _step(build: Callable[..., Optimizer], params: Sequence[Tensor]) -> Step:
    return build(list(params)).step


def _compiled(build: Callable[..., Optimizer], params: Sequence[Tensor]) -> Step:
    """Its first step is taken here: not every rule can be compiled, nor on every machine."""
    torch.compiler.reset()
    step: Step = torch.compile(build(list(params)).step)
    try:
        step()
    except Exception as error:  # whatever a compiler raises is a reason to leave the rule out, not to stop
        message = " ".join(str(error).split())
        raise Skip(f"torch.compile raised {type(error).__name__}: {message[:200]}") from error
    return step


def _kernel(build: Callable[..., Optimizer], params: Sequence[Tensor]) -> Step:
    """The compiled kernel alone, called as the last step called it: no Python, no gathering of addresses."""
    optimizer = build(list(params))
    for _ in range(2):  # after the first step some state is another tensor, and the tables are made anew
        optimizer.step()
    tables = [table for fused in getattr(optimizer, "_fused", {}).values() for table in fused.tables]
    if not tables:
        raise Skip("its step is not compiled here")
    if any(part.stage.reach == "matrix" for table in tables for part in table.active):
        raise Skip("between its kernels are products of matrices")
    calls: list[Step] = []
    for table in tables:

        def overheard(*arguments: Any, kernel: Callable[..., None] = table.kernel) -> None:
            calls.append(partial(kernel, *arguments))
            kernel(*arguments)

        table.kernel = overheard
    optimizer.step()

    def again() -> None:
        for call in calls:
            call()

    return again


def _peer(name: str, build: Callable[..., Optimizer], params: Sequence[Tensor]) -> Step:
    module = library(library_of(name))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated, which the caller cannot mend
            optimizer = build(module, list(params))
            getattr(optimizer, "train", bool)()  # Schedule-Free's optimizers ask for it
            step = optimizer.step
            step()
    except Exception as error:  # whatever another library raises is a reason to leave it out, not to stop
        message = " ".join(str(error).split())
        raise Skip(f"it raised {type(error).__name__}: {message[:200]}") from error
    return step


@cache
def library(name: str) -> Any:
    """The module of a library; Skip with what to install if it is not there.

    timm imports torchvision, whose import takes a second try beside a CPU-only torch.
    """
    module, package = (PEERS | OWN_MODULES)[name]
    try:
        if name == "timm":
            from experiments.data import import_torchvision

            import_torchvision()
        return importlib.import_module(module)
    except ImportError as error:
        raise Skip(f"{error}; pip install {package}, or for all of them pip install -e '.[benchmarks]'") from error


def versions(libraries: Collection[str]) -> dict[str, str]:
    """Package -> version of those of the libraries that are other people's."""
    packages = [package for name, (_, package) in PEERS.items() if name in libraries]
    return {package: importlib.metadata.version(package) for package in packages}
