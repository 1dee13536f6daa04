"""Five steps of everything that runs on a device, each beside the same steps where they are known to be right.

The checks run in a process of their own, one after the other: what kills it, or leaves its device unusable, is the
failure of one check.
"""

import functools
import itertools
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

import optimizers
from experiments import mixes, models, packed, stacked, training
from experiments.data import Dataset
from experiments.packed import Flat, Step

STEPS, BATCH = 5, 16
SEED = 0
SHAPES = ((7,), (40, 50), (), (8, 3, 3, 3))
LIMIT = 90  # seconds for a check, the start of its process included
# How far from the CPU's float32 losses may be after five steps: what the precision has, with room for growth.
TOLERANCE = {"float32": 1e-3, "tf32": 2e-2, "bfloat16": 5e-2}
# They take no vectors, or do something else at every so many steps, of which a graph knows nothing.
MATRICES = ("adafactor", "muon", "shampoo", "soap")
EXTENDED = (
    "radamw(nesterov=True)+gradient_noise+lr_dropout(0.5)+lookahead",
    "adam+lookahead(inner='average')",
    "nadam+lookahead(inner='reset')",
    "sgd(0.1, momentum=0.9)+clip_norm(0.1)",
    "adam+clip_value(0.01)+gradient_dropout",
)


def names() -> list[str]:
    """The checks, in order: the first ones are those that most depends on."""
    elementwise = [name for name in optimizers.list() if name not in MATRICES]
    texts = list(dict.fromkeys([*optimizers.recipes, *elementwise, *EXTENDED]))
    kinds = ("logistic", "mlp", "cnn", "flat", "stacked")
    return [
        "data: a set on the device",
        *(f"model: {kind}, {precision}" for kind, precision in itertools.product(kinds, training.PRECISIONS)),
        *(f"graph: {text}" for text in texts),
        "graph: two runs on two streams",
        *(f"eager: {text}, capturable={flag}" for text, flag in itertools.product(texts, (False, True))),
        "eager: parameters in bfloat16",
        "eager: a checkpoint is resumed",
        *(f"compiled: {text}" for text in texts),
        *(f"compiled graph: {text}" for text in ("adamw", *EXTENDED)),
    ]


def run(device: str, chosen: list[str]) -> Generator[dict[str, Any], None, None]:
    """Run checks; yield what became of each: name, ok, seconds, and of a failure its error and traceback."""
    pool = None
    try:
        for name in chosen:
            pool = pool or ProcessPoolExecutor(1, get_context("spawn"))
            began = time.perf_counter()
            try:
                result, usable = pool.submit(_check, name, device).result(timeout=LIMIT)
            except TimeoutError:
                result, usable = {"ok": False, "error": f"not done after {LIMIT} seconds"}, False
            except BrokenProcessPool:
                result, usable = {"ok": False, "error": "its process died"}, False
            if not usable:
                _end(pool)
                pool = None
            yield {"name": name, "seconds": round(time.perf_counter() - began, 3), **result}
    finally:
        if pool:
            _end(pool)


def _end(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())  # its shutdown waits for a check that hangs
    for process in processes:
        process.kill()
    pool.shutdown()


def _check(name: str, device: str) -> tuple[dict[str, Any], bool]:
    """The result of one check, and whether the device can be used after it."""
    torch.set_num_threads(1)
    place = torch.device(device)
    result: dict[str, Any]
    try:
        if place.type == "cuda":
            with torch.cuda.stream(torch.cuda.Stream(place)):  # type: ignore[no-untyped-call]
                _checks(place)[name]()
            torch.cuda.synchronize(place)
        else:
            _checks(place)[name]()
        result = {"ok": True}
    except Exception as error:
        text = " ".join(str(error).split())
        result = {
            "ok": False,
            "error": f"{type(error).__name__}: {text}"[:400],
            "traceback": traceback.format_exc(),
        }
    try:
        usable = torch.ones(1, device=place).item() == 1
    except RuntimeError:
        usable = False
    return result, usable


def _checks(device: torch.device) -> dict[str, Callable[[], None]]:
    checks: dict[str, Callable[[], None]] = {
        "data: a set on the device": lambda: _data(device),
        "graph: two runs on two streams": lambda: _two_streams(device),
        "eager: parameters in bfloat16": lambda: _close(
            _eager("adam", device, torch.bfloat16), _reference("adam"), 0.05
        ),
        "eager: a checkpoint is resumed": lambda: _checkpoint(device),
    }
    for name in names():
        kind, _, rest = name.partition(": ")
        if name in checks:
            continue
        if kind == "model":
            model, _, precision = rest.rpartition(", ")
            checks[name] = functools.partial(_model, model, precision, device)
        elif kind.endswith("graph"):
            checks[name] = functools.partial(_graph, rest, device, _fused(device) if "compiled" in kind else False)
        elif kind == "compiled":
            checks[name] = functools.partial(_compiled, rest, device)
        else:
            text, _, flag = rest.rpartition(", capturable=")
            checks[name] = functools.partial(_step, text, device, flag == "True")
    return checks


def _close(ours: Tensor, right: Tensor, tolerance: float) -> None:
    ours, right = ours.detach().double().cpu(), right.detach().double().cpu()
    error = float((ours - right).norm() / right.norm())
    if not error <= tolerance:  # NaN never passes
        raise AssertionError(f"off by {error:.1e} of it, not at most {tolerance:.0e}")


@functools.cache
def _set() -> Dataset:
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randint(256, (STEPS * BATCH, 3, 8, 8), dtype=torch.uint8, generator=generator)
    y = torch.randint(10, (STEPS * BATCH,), dtype=torch.uint8, generator=generator)
    return Dataset("smoke", x, y, x[:40], y[:40], "", 10)


def _data(device: torch.device) -> None:
    ds = _set()
    _close(ds.images("train", device), ds.images("train"), 1e-6)
    assert torch.equal(ds.labels("train", device).cpu(), ds.labels("train"))


def _losses(kind: str, precision: str, device: torch.device) -> Tensor:
    """The losses of five steps, and the test loss after them."""
    common: Any = {"epochs": 1, "batch_size": BATCH, "device": device, "precision": precision}
    if kind == "stacked":
        stack = stacked.StackedMLP((SEED, SEED + 1), 192).to(device)
        histories = stacked.train(stack, optimizers.Adam(stack.parameters()), _set(), **common)
    else:
        make: dict[str, Callable[[], nn.Module]] = {
            "logistic": lambda: models.logistic(192, seed=SEED),
            "mlp": lambda: models.mlp(192, seed=SEED),
            "cnn": lambda: models.cnn(3, 8, seed=SEED),
            "flat": lambda: Flat(models.cnn(3, 8, seed=SEED)),
        }
        model = make[kind]().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = optimizers.Adam(model.parameters(), fused=False)
        histories = [training.train(model, optimizer, _set(), seed=SEED, progress=False, **common)]
    return torch.tensor([[*history.train_loss, history.epoch[-1]["test_loss"]] for history in histories])


def _model(kind: str, precision: str, device: torch.device) -> None:
    _close(_losses(kind, precision, device), _losses(kind, "float32", torch.device("cpu")), TOLERANCE[precision])


def _eager(text: str, device: torch.device, dtype: torch.dtype, **options: Any) -> Tensor:
    """The parameters after five steps, in one row."""
    generator = torch.Generator().manual_seed(SEED)
    params = [
        nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype)) for s in SHAPES
    ]
    optimizer = mixes.parse(text)[0].build(params, **{"fused": False, **options})
    for _ in range(STEPS):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(device, dtype)
        optimizer.step()
    return torch.cat([param.detach().flatten() for param in params])


def _reference(text: str) -> Tensor:
    return _eager(text, torch.device("cpu"), torch.float64)


def _step(text: str, device: torch.device, capturable: bool) -> None:
    _close(_eager(text, device, torch.float32, capturable=capturable), _reference(text), 1e-3)


def _fused(device: torch.device) -> bool | None:
    """Compiled on a GPU; a CPU, which has tests of its own, only takes the same way."""
    return True if device.type == "cuda" else None


def _compiled(text: str, device: torch.device) -> None:
    """Within the precision of each dtype of the reference, with no warning that it is not compiled."""
    for dtype, tolerance in (torch.float64, 1e-6), (torch.float32, 1e-3), (torch.bfloat16, 0.1):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _close(_eager(text, device, dtype, fused=_fused(device)), _reference(text), tolerance)


def _checkpoint(device: torch.device) -> None:
    ends = []
    for resumed in (False, True):
        param = nn.Parameter(torch.ones(10, device=device))
        optimizer = optimizers.NAdam([param], capturable=True)
        for step in range(STEPS):
            if resumed and step == 2:
                state = optimizer.state_dict()
                optimizer = optimizers.NAdam([param], capturable=True)
                optimizer.load_state_dict(state)
            param.grad = torch.full_like(param, 1.0 + step)
            optimizer.step()
        ends.append(param)
    _close(ends[1], ends[0], 0)


def _flat_steps(text: str, device: torch.device, capture: bool, fused: bool | None = False) -> tuple[Tensor, Step]:
    """The parameters after five steps of a small network, the last with fewer examples, and what made them."""
    model = Flat(models.cnn(3, 8, seed=SEED)).to(device)
    optimizer = mixes.parse(text)[0].build([model.flat], capturable=True, fused=fused)
    step = Step(model, optimizer, "float32", capture)
    x, y, *_ = training.resident(_set(), device, training.layout(model))
    order = torch.arange(len(y), device=device).split(BATCH)  # type: ignore[no-untyped-call]
    with training.deterministic(SEED, device, "float32"):
        for indices in (*order[:-1], order[-1][: BATCH // 2]):
            step(x, y, indices)
    return model.flat, step


def _graph(text: str, device: torch.device, fused: bool | None) -> None:
    ours, step = _flat_steps(text, device, device.type == "cuda", fused)
    if step.failure:
        raise AssertionError(f"not captured: {step.failure}")
    _close(ours, _flat_steps(text, device, False, fused)[0], 1e-5)


def _two_streams(device: torch.device) -> None:
    """Two runs that take turns, each as it is alone."""

    def task() -> packed.Work:
        model = Flat(models.cnn(3, 8, seed=SEED)).to(device)
        optimizer = optimizers.Adam([model.flat], capturable=True, fused=False)
        step = Step(model, optimizer, "bfloat16", device.type == "cuda")
        common: Any = {"scheduler": None, "precision": "bfloat16", "progress": lambda epoch, loss: None}
        return training.by_steps(
            model, step, _set(), epochs=2, batch_size=BATCH, seed=SEED, device=device, **common
        )

    ends = []
    for width in (1, 2):
        for ended in packed.side_by_side(_one_by_one([task] * width), width, device, "bfloat16"):
            if ended and isinstance(ended[1], Exception):
                raise ended[1]
            if ended and isinstance(ended[1], training.History):
                ends.append(torch.tensor(ended[1].train_loss))
    for other in ends[1:]:
        _close(other, ends[0], 0)


def _one_by_one(tasks: list[packed.Task]) -> Callable[[int], packed.Task | None]:
    waiting = iter(tasks)
    return lambda running: next(waiting, None)
