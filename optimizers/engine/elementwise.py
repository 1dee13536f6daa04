"""Whether what a stage makes of a coordinate depends on that coordinate alone.

Tensors are stepped in slices, in shards, by some of their rows, or by one coordinate after the other in a compiled
loop. A stage that reduces over its tensor (a norm, a mean), or asks for its shape, would make something else of
each. So every stage is tried before its first step: a part, given by itself, must come out as within the whole.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .compiled import plain
from .compiled.trace import form
from .eager import Active, Hyper, Part

# Whatever is done at every k-th step, for k up to 10 and many others, is done in the second of these.
_STEPS = (1.0, 126000.0)
_PART = slice(7, 17)  # of 24 coordinates; it begins and ends within a row
_TOLERANCE = 1e-4  # of the part's largest number: elementwise functions themselves differ in their last digits

_proven: dict[Any, Active] = {}  # with the stages, so that no other one has an address that is part of a key


def prove(active: Active, known: Hyper) -> None:
    """Try stages on small tensors, once for each form that their hyper-parameters give them.

    Args:
        active: the stages that do something, with their hyper-parameters.
        known: what else their signatures name and all parameters of a group share.

    Raises:
        ValueError: a stage is not elementwise.
    """
    active = [
        Part(stage, {name: plain(stage, name, value) for name, value in hyper.items()}, names)
        for stage, hyper, names in active
    ]
    key = form(active, {name: 0.0 if isinstance(value, Tensor) else value for name, value in known.items()})
    if key in _proven:
        return
    known = {name: _at_hand(value) if isinstance(value, Tensor) else value for name, value in known.items()}
    known |= {"index": 0, "stored": torch.bfloat16}  # as which a stage may do what it does not for wider ones
    with torch.no_grad():
        for part in active:
            for step in _STEPS:
                for tensors in _trials([name for each in active for name in each.names]):
                    if reason := _difference(part, tensors, {**known, "step": step}):
                        raise ValueError(
                            f"{part.stage!r} is not elementwise: {reason}. Long tensors are handed over in "
                            "slices: a stage must not reduce over its tensor (a norm, a mean) or ask for its "
                            "shape, but say how far it reaches (see Stage.reach)"
                        )
    _proven[key] = active


def _trials(names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Tensors to try a stage on: of several shapes and magnitudes, and with all sorts of things around the part."""
    extremes = [torch.inf, 0.0, 1.0, -torch.inf, 1e30, 1.0, -1.0]
    for shape, scale, around in (
        ((6, 4), 1.0, [1e3]),  # a sum, a mean, the largest and the least take its sign
        ((24,), 1.0, [-1e3]),
        ((6, 4), 1e-4, None),
        ((6, 4), 1.0, extremes),
    ):
        random = torch.Generator("cpu").manual_seed(0)
        tensors = {
            name: scale * torch.randn(24, generator=random, dtype=torch.float64, device="cpu")
            for name in ("x", "param", *names)
        }
        for name, tensor in tensors.items():
            if name in names:
                tensor.abs_()  # a root may be taken
            elif around:
                tensor[: _PART.start] = torch.tensor(around, dtype=torch.float64, device="cpu")
                tensor[_PART.stop :] = around[0]
        tensors["coordinate"] = torch.arange(24, device="cpu")
        yield {name: tensor.view(shape) for name, tensor in tensors.items()}


def _difference(part: Part, tensors: dict[str, Tensor], known: Hyper) -> str:
    """How a stage's results for a part by itself differ from the whole's; empty where they do not."""
    try:
        sums = _sums(part, tensors, known)
        whole = _results(part, tensors, known, sums)
    except Exception:  # it does not take this whole: there is nothing to compare
        return ""
    try:
        alone = _results(part, {name: tensor.flatten()[_PART] for name, tensor in tensors.items()}, known, sums)
    except Exception as error:
        return f"it takes a tensor, but no part of it ({type(error).__name__}: {error})".splitlines()[0]
    shape = tensors["x"].shape
    for name, result in whole.items():
        try:
            within = result.broadcast_to(shape).flatten()[_PART].double()
            apart = alone[name].broadcast_to(within.shape).double()
        except (RuntimeError, KeyError):
            return f"{name} is of shape {tuple(result.shape)} for a tensor of shape {tuple(shape)}"
        largest = within[within.isfinite()].abs().max() if within.isfinite().any() else 1.0
        if not torch.allclose(within, apart, rtol=_TOLERANCE, atol=_TOLERANCE * float(largest), equal_nan=True):
            return f"{name} at a coordinate changes with other coordinates"
    return ""


def _given(part: Part, tensors: dict[str, Tensor], known: Hyper) -> Hyper:
    """What a stage's signatures may name."""
    stage, hyper, names = part
    scalars: Hyper = dict(stage.scalars)
    scalars |= stage.count(scalars, known["step"], hyper, known["lr"])
    memory = {name: tensors[name] for name in names}
    given = {"param": tensors["param"], "grad": tensors["param"], "memory": tuple(memory.values())}
    given |= {"coordinate": tensors["coordinate"]}
    return given | {**known, **scalars, **hyper, **dict.fromkeys(stage.state), **memory}


def _terms(part: Part, tensors: dict[str, Tensor], known: Hyper) -> dict[str, Tensor]:
    if "terms" not in part.stage.asks:
        return {}
    terms: dict[str, Tensor] = part.stage.call("terms", tensors["x"], _given(part, tensors, known))
    return terms


def _sums(part: Part, tensors: dict[str, Tensor], known: Hyper) -> Hyper:
    """The sums of a stage's terms over whole tensors, and what they make of its scalars."""
    terms = _terms(part, tensors, known)
    sums = {name: float(term.expand(tensors["x"].shape).nansum()) for name, term in terms.items()}
    given = _given(part, tensors, known)
    return sums | (part.stage.settle(given, sums, known["step"], known["lr"], part.hyper) if sums else {})


def _results(part: Part, tensors: dict[str, Tensor], known: Hyper, sums: Hyper) -> dict[str, Tensor]:
    """What a stage returns, by name, its terms included."""
    stage, _, names = part
    given = _given(part, tensors, known) | sums
    out = stage.call("update", tensors["x"], given)
    x, *new = out if stage.state else (out,)
    after = stage.after(dict(tensors), {**given, "new_param": x}) | stage.store(dict(tensors), given)
    results = {"its result": x, **dict(zip(names, (n for n in new if n is not None), strict=True)), **after}
    results |= {f"its term {name}": term for name, term in _terms(part, tensors, known).items()}
    return {
        name: result if isinstance(result, Tensor) else torch.tensor(result, device="cpu")
        for name, result in results.items()
    }


def _at_hand(number: Tensor) -> Tensor:
    """A number in this machine's memory; of one that has no value yet, any."""
    return torch.tensor(0.5, dtype=number.dtype, device="cpu") if number.is_meta else number.detach().cpu()
