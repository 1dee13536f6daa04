"""A problem to try optimizers on: a model, its batches, a loss, a number of steps and a schedule."""

import functools
import hashlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .errors import ProblemError, StudyError

Split = Literal["train", "validation"]
PARTS = ("model", "batches", "loss", "metric", "schedule")


@dataclass(frozen=True)
class Problem:
    """What every optimizer of a study is tried on.

    Before each of these functions is called, the global random states of Python, NumPy and torch are those of the
    run's seed: shuffling and dropout repeat.

    Args:
        model: ``model(seed)`` makes a new `torch.nn.Module`, on the device that it is to be trained on.
        batches: ``batches(seed, split)``, with "train" or "validation", gives an iterable of batches on that
            device. Where the training batches end before the steps do, they are gone through again.
        loss: ``loss(model, batch)``, a scalar tensor: the mean over the batch. The model is in training mode for
            training batches, and in evaluation mode for validation batches.
        steps: the number of the optimizer's steps in a run, at least 1.
        metric: ``metric(model, batch)``, a number that is reported beside the validation loss, such as accuracy.
        schedule: ``schedule(optimizer, steps)`` makes a learning-rate scheduler, stepped after every step of the
            optimizer; by default the learning rate stays.
        evaluations: how often the validation loss is measured, evenly spaced, the last time after the last step.
        name: what the study is called; by default as the file that the loss is in.

    Raises:
        StudyError: a number is out of its range, or a part is no function.
    """

    model: Callable[[int], nn.Module]
    batches: Callable[[int, Split], Iterable[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    steps: int
    metric: Callable[[nn.Module, Any], Any] | None = None
    schedule: Callable[[Optimizer, int], LRScheduler] | None = None
    evaluations: int = 5
    name: str = ""
    _sources: list[Any] = field(init=False, repr=False, compare=False)  # as they are now: a file may change later

    def __post_init__(self) -> None:
        for key in ("steps", "evaluations"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                raise StudyError(f"a problem's {key} must be a whole number from 1 on, not {value!r}")
        for key in PARTS:
            part = getattr(self, key)
            if not callable(part) and not (part is None and key in ("metric", "schedule")):
                raise StudyError(f"a problem's {key} must be a function, not {part!r}")
        if not self.name:
            file = _file(self.loss)
            object.__setattr__(self, "name", file.stem if file else "problem")
        parts = [getattr(self, key) for key in PARTS]
        object.__setattr__(self, "_sources", [_source(part) for part in parts if part is not None])

    @classmethod
    def load(cls, path: str | Path) -> "Problem":
        """The `problem` that a Python file defines.

        Raises:
            StudyError: there is no such file, it fails, or it defines no `problem`.
        """
        path = Path(path)
        if not path.is_file():
            raise StudyError(f"there is no file {str(path)!r}")
        spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
        if spec is None or spec.loader is None:
            raise StudyError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.resolve().parent))  # it may have modules of its own beside it
        sys.modules[path.stem] = module
        try:
            spec.loader.exec_module(module)
        except StudyError:
            raise
        except Exception as error:
            raise ProblemError(f"{path} cannot be read: {_said(error)}") from error
        problem = getattr(module, "problem", None)
        if not isinstance(problem, cls):
            raise StudyError(
                f"{path} defines no `problem`: write problem = Problem(model=…, batches=…, loss=…, steps=…)"
            )
        return problem

    @staticmethod
    def from_trainer(make: Callable[[], Any], steps: int | None = None, **more: Any) -> "Problem":
        """The problem of a Hugging Face `Trainer`; see `optimizers.study.clients`."""
        from .clients import from_trainer

        return from_trainer(make, steps, **more)

    @staticmethod
    def from_lightning(module: Callable[[], Any], data: Callable[[], Any], steps: int, **more: Any) -> "Problem":
        """The problem of a `LightningModule` and its data; see `optimizers.study.clients`."""
        from .clients import from_lightning

        return from_lightning(module, data, steps, **more)

    def ask(self, part: str, *arguments: Any) -> Any:
        """What one of the functions returns. ProblemError, one line that says which and where, if it raises."""
        try:
            return getattr(self, part)(*arguments)
        except StudyError:
            raise
        except Exception as error:
            raise ProblemError(f"{part} of {self.name} raises {_said(error)}") from error

    def train_batches(self, seed: int) -> Iterator[Any]:
        """Training batches without an end."""
        given = self.ask("batches", seed, "train")
        while True:
            count = 0
            for count, batch in enumerate(self._each(given, "train"), 1):  # noqa: B007
                yield batch
            if not count:
                raise ProblemError(f'batches of {self.name} has no batch for the split "train"')
            if isinstance(given, Iterator):
                given = self.ask("batches", seed, "train")

    def evaluate(self, model: nn.Module, seed: int) -> tuple[float, float | None]:
        """Mean loss and metric on the validation batches, in evaluation mode, by the number of their examples.

        Raises:
            ProblemError: there is no validation batch.
        """
        losses, metrics, total = 0.0, 0.0, 0
        training = model.training
        model.eval()
        with torch.no_grad():
            for batch in self._each(self.ask("batches", seed, "validation"), "validation"):
                n = examples(batch)
                losses += n * float(self.ask("loss", model, batch))
                metrics += n * float(self.ask("metric", model, batch)) if self.metric else 0.0
                total += n
        model.train(training)
        if not total:
            raise ProblemError(
                f'{self.name} has no validation split: batches(seed, "validation") gave no batch, and learning '
                "rates are chosen by the loss there"
            )
        return losses / total, metrics / total if self.metric else None

    def check(self, seed: int = 0) -> None:
        """Try every part once, on a new model.

        Raises:
            ProblemError: a part raises, returns something of another kind, or a loss that is not finite from the
                start; there is no validation batch.
        """
        model = self.ask("model", seed)
        if not isinstance(model, nn.Module):
            raise ProblemError(f"model of {self.name} must return a torch.nn.Module, not {model!r}")
        loss = self.ask("loss", model, next(self.train_batches(seed)))
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ProblemError(
                f"loss of {self.name} must return one number as a tensor that depends on the model's parameters, "
                f"not {loss!r}"
            )
        validation, _ = self.evaluate(model, seed)
        for what, value in ("loss on a training batch", float(loss.detach())), ("validation loss", validation):
            if not math.isfinite(value):
                raise ProblemError(f"the {what} of {self.name} is {value} before the first step")

    def fingerprint(self, threads: int) -> str:
        """Eight digits that change with what the numbers depend on: the files of its functions, steps, threads."""
        text = repr((self._sources, self.steps, self.evaluations, threads))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def _each(self, batches: Any, split: Split) -> Iterator[Any]:
        try:
            yield from batches if batches is not None else ()
        except Exception as error:
            raise ProblemError(f'batches of {self.name} raises {_said(error)}, for the split "{split}"') from error


def examples(batch: Any) -> int:
    """The number of examples in a batch: the length of the first tensor in it; 1 if there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    inner = batch.values() if hasattr(batch, "values") else batch if isinstance(batch, list | tuple) else ()
    return next((examples(item) for item in inner if isinstance(item, Tensor | list | tuple | dict)), 1)


def _said(error: Exception) -> str:
    """An error in one line, with the place it came from."""
    first = (str(error).strip() or "no message").splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((sys.prefix, "<"))]
    own = [frame for frame in own if Path(frame.filename).parent != Path(__file__).parent]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {first}{where}"


def _plain(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def _file(function: Any) -> Path | None:
    try:
        path = Path(inspect.getsourcefile(_plain(function)) or "")
    except TypeError:  # an object that can be called
        return None
    return path if path.is_file() else None


def _source(function: Any) -> Any:
    """The text of the file that a function is in; of one typed into a notebook, its code."""
    if file := _file(function):
        return file.read_text(encoding="utf-8")
    code = getattr(_plain(function), "__code__", None)
    if code is None:
        return type(function).__qualname__
    return code.co_code.hex(), code.co_names, [repr(c) for c in code.co_consts if not hasattr(c, "co_code")]
