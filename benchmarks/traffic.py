"""What a step does to memory: the operations of an eager step, and the loop that a fused step is compiled from."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, every operation on tensors of more than one element is written down.

    ``operations`` holds pairs of the operation's name and its streams: tensors read plus tensors written.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = {id(value) for value in args if isinstance(value, Tensor) and value.numel() > 1}
        written = isinstance(result, Tensor) and result.numel() > 1
        if read or written:
            self.operations.append((func.overloadpacket.__name__, len(read) + written))
        return result


def of_step(optimizer: Optimizer) -> list[tuple[str, int]]:
    """The operations of the optimizer's next step, each with its streams."""
    traffic = Traffic()
    with torch.no_grad(), traffic:
        optimizer.step()
    return traffic.operations


def compiled_loop(optimizer: Optimizer) -> str:
    """The loop over coordinates, in C, of a fused step that has been taken; "" where it was not compiled."""
    tables = [table for fused in getattr(optimizer, "_fused", {}).values() for table in fused.tables]
    if not tables:
        return ""
    source = str(tables[0].source)
    begin = source.index("for (int64_t i = begin")
    return source[begin : source.index("\n    }\n", begin) + len("\n    }")].replace("\n    ", "\n")
