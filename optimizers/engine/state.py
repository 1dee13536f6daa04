"""What an optimizer remembers per parameter: how it begins, where it lives, what a checkpoint makes of it."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .eager import Active, Hyper
from .stage import select
from .tensors import as_matrix, gathered, local


def begin(state: Hyper, param: Tensor, index: int, active: Active, group: Hyper) -> None:
    """Create what the state lacks: everything at the first step, an extension's part after a foreign checkpoint."""
    if "index" not in state and any("index" in part.stage.needs for part in active):
        state["index"] = torch.tensor(index, dtype=torch.int64, device="cpu")
    numbers = {"step": 0.0}
    for part in active:
        numbers |= part.stage.scalars
    for name, value in numbers.items():
        if name not in state:
            state[name] = torch.tensor(value, dtype=torch.float32, device=home(param, group))
    for part in active:
        for name in part.names:
            if name not in state:
                # A differentiable step follows the parameter into what is remembered of it.
                origin = param.clone() if group["differentiable"] else param.detach()
                state[name] = cast(part.stage.initial(name, origin), param, active)
        for name in part.stage.matrices:
            if name not in state:
                state[name] = part.stage.initial(name, as_matrix(gathered(local(param.detach()), param)))


def cast(tensor: Tensor, param: Tensor, active: Active) -> Tensor:
    """A state tensor as the stages will have it kept."""
    for stage, hyper, _ in active:
        tensor = stage.cast(tensor, param, hyper)
    return tensor


def home(param: Tensor, group: Hyper) -> torch.device:
    """Where a parameter's numbers live: on the CPU, as reading one from an accelerator waits for the device.

    A graph that captures the step needs them beside the parameter.
    """
    return param.device if group["capturable"] else torch.device("cpu")


def number(scalar: Tensor, group: Hyper) -> Any:
    """A 0-d tensor as stages are given it: a number, unless a graph captures the step or autograd follows it."""
    if scalar.requires_grad:
        return scalar.double()  # as precise as a number
    return scalar if group["capturable"] else scalar.item()


def apart(lr: Any) -> Any:
    """A learning rate that no one changes in place, nor learns."""
    return lr.detach().clone() if isinstance(lr, Tensor) else lr


def rate(group: Hyper) -> Any:
    """The learning rate: a number, or a 0-d tensor also where the group has one of shape (1,)."""
    return _scalar(group["lr"])


def schedule(group: Hyper) -> Any:
    """The schedule's multiplier η_t: lr over `initial_lr`, which schedulers keep, or else over the first lr.

    A base of 0 counts as 1: from 0 there is no multiple.
    """
    base = _scalar(group.get("initial_lr", group.get("base_lr", 0.0)))
    return rate(group) / select(base > 0, base, 1)


def _scalar(value: Any) -> Any:
    return value.reshape(()) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Uncast:
    """A checkpoint's tensor, such that torch does not cast it."""

    tensor: Tensor


def uncast(states: Mapping[Any, Any], scalars: Container[str], tensors: Container[str]) -> dict[Any, Any]:
    """A checkpoint's state with numbers for `scalars` and `Uncast` for `tensors`.

    But for `step`, torch casts every tensor to its parameter's dtype.
    """

    def apart(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.item() if name in scalars else Uncast(value) if name in tensors else value

    return {
        key: {name: apart(name, value) for name, value in values.items()} if isinstance(values, dict) else values
        for key, values in states.items()
    }


def adopt(state: Hyper, param: Tensor, active: Active, group: Hyper) -> Hyper:
    """A parameter's state as this package writes it, from one that torch or an older release wrote."""
    device = home(param, group)
    state = {name: value for name, value in state.items() if value is not None}
    matrices = {name for part in active for name in part.stage.matrices}
    for name, value in state.items():
        if isinstance(value, float):
            state[name] = torch.tensor(value, dtype=torch.float32, device=device)
        if isinstance(value, Uncast):
            tensor = value.tensor.to(param.device)
            state[name] = tensor if name in matrices else cast(tensor, param, active)
    if "index" in state:
        state["index"] = torch.tensor(int(state["index"]), dtype=torch.int64, device="cpu")
    if state:
        # torch's SGD keeps no count: with a velocity, at least one step was made.
        step = state.get("step", 1.0)
        if not isinstance(step, Tensor):
            step = torch.tensor(float(step), dtype=torch.float32, device=device)
        # A copy: torch hands over the checkpoint's own tensor, and the next step would write into it.
        state["step"] = step.to(device, torch.float32, copy=True)
    return state
