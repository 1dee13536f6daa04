"""How fast the compiled step is on a GPU: beside torch's own, and beside a copy of as much memory.

The rows come in order of value, one after the other, so that whoever has no time left keeps what there is.
"""

import statistics
import time
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import nn

import optimizers
from experiments import mixes

Row = dict[str, Any]
Step = Callable[[], Any]
LARGE, DRY = 1 << 28, 1 << 12  # elements in all
TENSORS = 8
REPEATS, WARM = 20, 3
MIX = "radamw(nesterov=True)+lr_dropout(0.5)+lookahead"
NOISY = "radamw(nesterov=True)+gradient_noise+lr_dropout(0.5)+lookahead"
# Of each rule, how many numbers per coordinate a step reads or writes at least, and torch's of that name.
RULES = {
    "adamw": (7, "AdamW"), MIX: (7, ""), NOISY: (7, ""), "nadam": (7, "NAdam"), "radam": (7, "RAdam"),
    "rmsprop": (5, "RMSprop"), "adadelta": (7, "Adadelta"), "lion": (5, ""),
}  # fmt: skip
SMALL: dict[str, list[tuple[int, ...]]] = {"1000 x 10": [(10,)] * 1000, "100 x 512 x 512": [(512, 512)] * 100}


def rows(device: torch.device, dry: bool) -> Generator[Row, None, None]:
    """Measure; a row says what, and either how fast or the error.

    Args:
        device: a GPU, or in a dry run the CPU.
        dry: at toy size.
    """
    elements = DRY if dry else LARGE
    copied = _copied(elements, device, dry)
    yield {"what": "copy", "seconds": 8 * elements / copied / 1e9, "gb_per_s": copied}
    for dtype in (torch.float32, torch.bfloat16):
        for rule, (streams, torchs) in RULES.items():
            kinds = ["ours", *(["torch fused"] if rule == "adamw" else []), *(["torch foreach"] if torchs else [])]
            for kind in kinds if dtype == torch.float32 or rule in ("adamw", MIX) else ():
                row: Row = {"what": rule, "kind": kind, "dtype": str(dtype)[6:], "elements": elements}
                shapes: list[tuple[int, ...]] = [(elements // TENSORS,)] * TENSORS
                row |= _measured(kind, rule, shapes, dtype, device, dry)
                if "seconds" in row:
                    row["gb_per_s"] = streams * elements * dtype.itemsize / row["seconds"] / 1e9
                    row["of_copy"] = row["gb_per_s"] / copied
                yield row
    for label, shapes in SMALL.items():
        for kind in ("ours", "torch fused"):
            row = {"what": "adamw", "kind": kind, "dtype": "float32", "shapes": label}
            yield row | _measured(kind, "adamw", shapes[:2] if dry else shapes, torch.float32, device, dry)


def _copied(elements: int, device: torch.device, dry: bool) -> float:
    """GB/s read and written, together, by a copy of so many single-precision numbers."""
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    return 8 * elements / _seconds(lambda: target.copy_(source), device, dry) / 1e9


def _measured(kind: str, rule: str, shapes: Any, dtype: torch.dtype, device: torch.device, dry: bool) -> Row:
    """Seconds per step on the device's clock, and until the step returns; or the error."""
    try:
        params = [nn.Parameter(torch.ones(shape, dtype=dtype, device=device)) for shape in shapes]
        for param in params:
            param.grad = torch.full_like(param, 0.01)
        optimizer: Any
        if kind == "ours":
            optimizers.new_run()
            optimizer = mixes.parse(rule)[0].build(params, fused=True)
        else:
            options = {"fused": True} if kind == "torch fused" else {"foreach": True}
            optimizer = getattr(torch.optim, RULES[rule][1])(params, **options)
        found: Row = {"seconds": _seconds(optimizer.step, device, dry)}
        began = time.perf_counter()
        for _ in range(WARM):
            optimizer.step()
        found["host_seconds"] = (time.perf_counter() - began) / WARM
        if kind == "ours" and "Execution: compiled\n" not in repr(optimizer):
            raise RuntimeError(repr(optimizer).splitlines()[-2])
        return found
    except Exception as error:  # one that does not work must not keep the others from being measured
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}


def _seconds(step: Step, device: torch.device, dry: bool) -> float:
    """The median time of a step: of the device, where there is a clock of its own."""
    for _ in range(WARM):
        step()
    times: list[float] = []
    for _ in range(2 if dry else REPEATS):
        if device.type == "cuda":
            begin, end = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            begin.record()
            step()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def said(row: Row) -> str:
    """A row in one line."""
    name = ", ".join(str(row[key]) for key in ("what", "kind", "dtype", "shapes") if key in row)
    if "error" in row:
        return f"{name}: {row['error']}"
    share = f", {row['of_copy']:.0%} of copy" if "of_copy" in row else ""
    speed = f", {row['gb_per_s']:.0f} GB/s{share}" if "gb_per_s" in row else ""
    host = f", {row['host_seconds'] * 1e6:.0f} µs of the host" if "host_seconds" in row else ""
    return f"{name}: {row['seconds'] * 1e6:.0f} µs{speed}{host}"
