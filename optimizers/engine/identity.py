"""Which parameter is which: the index by which the draws of one parameter differ from those of all others.

Noise is a function of a seed, a parameter's index, its step and the coordinate (see `random`). The index
must be the same in every process that trains the model, in every repetition of the run and after a resume, and no
two parameters that are trained together may share one, though each may have an optimizer of its own. It is

- what the parameter's state says, once it has made a step: a checkpoint, a copy and a pickle carry it;
- made of the parameter's name, where the optimizer was given names (`model.named_parameters()`), whatever its place
  among the others; the parts of a name that wrappers add (``module.``, ``_orig_mod.``) do not count;
- or else the parameter's position among all unnamed ones of the run, in the order in which optimizers took them.

A *run* is what is made before any of it steps. Optimizers with a stage that draws, made one after another (one per
parameter, per part of a model, for a generator and its discriminator), are of one run and draw independently. Once
one of them has stepped, the next that is made begins a new run, in which positions begin at 0 again: a training
that is repeated draws the same. Where that is not right, as for several runs that are made together and shall not
depend on each other, :func:`new_run` says where one begins. Each thread has runs of its own.
"""

import hashlib
import sys
import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .eager import Hyper

# Parts of a name that say how a model is wrapped, by DDP, torch.compile, FSDP1 or activation checkpointing.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

Indexed = dict[int, Tensor]  # parameters of a group by their indices


class Run:
    """The parameters that are trained together, each with its index."""

    def __init__(self) -> None:
        self.began = False  # whether one of its optimizers has stepped, or is shared by processes that will
        self._unnamed = 0
        self._taken: set[int] = set()
        # An optimizer that is made anew for the same parameters, before a step, means the same run.
        self._known: Any = WeakTensorKeyDictionary()

    def indices(self, params: Sequence[Tensor], names: Sequence[str | None]) -> list[int]:
        """The indices of parameters that an optimizer takes, with their names where they have some."""
        indices = []
        for param, name in zip(params, names, strict=True):
            known = self._known.setdefault(param, {})
            if name not in known:
                known[name] = self._next(name)
            indices.append(known[name])
        return indices

    def _next(self, name: str | None) -> int:
        if name is None:
            self._unnamed += 1
            return self._unnamed - 1
        name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        # Of two models, or of many parameters, two may have one name, or one hash.
        index = _hash(name)
        while index in self._taken:
            name += "'"
            index = _hash(name)
        self._taken.add(index)
        return index

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_known": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _known=WeakTensorKeyDictionary())


class _Current(threading.local):
    def __init__(self) -> None:
        self.run = Run()


_current = _Current()


def new_run() -> None:
    """Begin a run: optimizers made from here on draw as if they were the first that this process makes.

    It is of use where optimizers of several runs are made before any of them steps, for example to compare them
    with common random numbers; else a run begins by itself, with the first optimizer after a step.
    """
    _current.run = Run()


class Indices:
    """The indices of an optimizer's parameters, group by group.

    Args:
        draw: whether anything is drawn by them; else they only tell a group's parameters apart.
    """

    def __init__(self, draw: bool) -> None:
        if draw and _current.run.began:
            new_run()
        self._run = _current.run if draw else None
        self._groups: list[list[int]] = []

    def of(self, i: int, group: Hyper) -> Indexed:
        """The parameters of group `i` by their indices; the groups before it must have been asked for."""
        return dict(zip(self._given(i, group), group["params"], strict=True))

    def _given(self, i: int, group: Hyper) -> Sequence[int]:
        params = group["params"]
        if self._run is None:
            return range(len(params))
        if i == len(self._groups) or len(self._groups[i]) != len(params):
            # Also of a group of which this process has none, others are counted.
            whole = _whole_group(params, i)
            names = group.get("param_names") or [None] * len(whole)
            known = dict(zip(map(id, whole), self._run.indices(whole, names), strict=True))
            self._groups[i : i + 1] = [[known[id(param)] for param in params]]
        return self._groups[i]

    def begin(self) -> None:
        """Training begins: what is made from here on is of another run."""
        if self._run:
            self._run.began = True


def _whole_group(params: Sequence[Tensor], group: int) -> Sequence[Tensor]:
    """All parameters of a group as one process would have them.

    `torch.distributed.optim.ZeroRedundancyOptimizer` gives the optimizer that it makes this process's share of each
    group only, sorted by size, and does not say so: it is looked for among the callers.
    """
    zero = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame = sys._getframe(1) if zero else None
    while frame is not None:
        if frame.f_globals is vars(zero):
            owner = frame.f_locals.get("self")
            if isinstance(owner, zero.ZeroRedundancyOptimizer):  # type: ignore[union-attr]
                whole: Sequence[Tensor] = owner.param_groups[group]["params"]
                return whole
        frame = frame.f_back
    return params


def _hash(name: str) -> int:
    """31 bits of a name's digest, above all positions."""
    return 1 << 31 | int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:4]) >> 1
