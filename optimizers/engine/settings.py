"""The hyper-parameters in an optimizer's groups: in Python's types and in range, whoever sets them, and when."""

from collections.abc import Collection, Sequence
from operator import is_
from typing import Any

from torch import Tensor

from .eager import Hyper
from .stage import Stage
from .validation import check, plain

# What every optimizer has; None leaves the choice of execution to it.
_RATE = "[0, inf)"
_FLAGS = ("maximize", "capturable", "differentiable", "foreach", "fused")
_CHOICES = ("foreach", "fused")
# A scheduler that ends at a learning rate of 0 may miss it by a rounding.
_ROUNDING = 1e-12


class Settings:
    """Keeps watch over what is in a chain's parameter groups.

    Args:
        stages: of the chain.
        names: all hyper-parameters of a group, ``lr`` the first.
    """

    def __init__(self, stages: Sequence[Stage], names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._keys = [(stage, {name: stage.key(name) for name in stage.hyper}) for stage in stages]
        self._seen: dict[int, list[Any]] = {}  # by group, the values that were last found to be right

    def plain(self, group: Hyper) -> Hyper:
        """The group with those hyper-parameters that it has in Python's own types."""
        group = {**group, **{name: plain(group[name], "bool") for name in _FLAGS if name in group}}
        # A learning rate in a tensor is the user's own: schedulers write into it, and autograd may follow it.
        if "lr" in group and not isinstance(group["lr"], Tensor):
            group["lr"] = plain(group["lr"], _RATE)
        for stage, keys in self._keys:
            given = stage.plain({name: group[key] for name, key in keys.items() if key in group})
            group |= {keys[name]: value for name, value in given.items()}
        return group

    def check(self, group: Hyper, where: str, names: Collection[str] | None = None) -> None:
        """Raise where a hyper-parameter is of the wrong kind or out of its range, or two contradict each other.

        Args:
            group: all of a group's, as `plain` returns them.
            where: text put behind the name in the error, for example ``" of parameter group 1"``.
            names: those that may be wrong; all of them by default.

        Raises:
            TypeError, ValueError: one is wrong.
        """
        names = self._names if names is None else names
        if "lr" in names:
            check("lr" + where, group["lr"], _RATE)
        for name in _FLAGS:
            if name in names and not (name in _CHOICES and group[name] is None):
                check(name + where, group[name], "bool")
        for other in ("foreach", "differentiable"):
            if group["fused"] and group[other]:
                raise ValueError(f"fused{where} and {other}{where} cannot both be True")
        for stage, keys in self._keys:
            if any(key in names for key in keys.values()):
                stage.check({name: group[key] for name, key in keys.items()}, where)

    def check_new(self, groups: Sequence[Hyper]) -> None:
        """Check, and put into Python's own types, what was set in the groups since this was last done.

        Raises:
            TypeError, ValueError: as `check`.
        """
        for i, group in enumerate(groups):
            values, seen = [group[name] for name in self._names], self._seen.get(i)
            if seen is not None and all(map(is_, values, seen)) and not isinstance(values[0], Tensor):
                continue
            pairs = zip(self._names, values, seen or values, strict=True)
            new = [name for name, value, old in pairs if seen is None or value is not old or _may_change(value)]
            group.update(self.plain({name: group[name] for name in new}))
            rate = group["lr"]
            if isinstance(rate, float) and -_ROUNDING < rate < 0:
                new = [name for name in new if name != "lr"]
            self.check(group, f" of parameter group {i}", new)
            self._seen[i] = [group[name] for name in self._names]


def _may_change(value: Any) -> bool:
    """Whether a value may have been written into; to read one on an accelerator would wait for the device."""
    return isinstance(value, Tensor) and value.device.type == "cpu"
