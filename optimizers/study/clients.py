"""Problems of people who have a Hugging Face `Trainer` or a `LightningModule`: their model, data and loss.

Their own optimizers, schedules, callbacks, mixed precision and accumulation of gradients are left out: hand in a
`schedule`, and what else the loss needs, yourself.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from .errors import StudyError
from .problem import Problem, Split


def from_trainer(make: Callable[[], Any], steps: int | None = None, **more: Any) -> Problem:
    """The problem of a `transformers.Trainer`.

    Args:
        make: makes the trainer, with ``model_init`` or a new model, a training and an evaluation set. It is called
            once for the data and once for every run's model.
        steps: of a run; by default the ``max_steps`` of its arguments.
        more: for :class:`Problem`, such as ``metric`` or ``schedule``.

    Raises:
        StudyError: no number of steps is given.
    """
    trainer = make()
    steps = steps or max(0, trainer.args.max_steps)
    if not steps:
        raise StudyError(
            "from_trainer needs steps: write from_trainer(make, steps=2000), or max_steps=2000 in its arguments"
        )

    def model(seed: int) -> nn.Module:
        fresh = make()
        made: nn.Module = fresh.call_model_init() if fresh.model_init is not None else fresh.model
        return made.to(trainer.args.device)

    def batches(seed: int, split: Split) -> Iterable[Any]:
        if split == "train":
            return trainer.get_train_dataloader()  # type: ignore[no-any-return]
        return trainer.get_eval_dataloader() if trainer.eval_dataset is not None else ()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return trainer.compute_loss(model, trainer._prepare_inputs(batch))  # type: ignore[no-any-return]

    return Problem(model, batches, loss, steps, **{"name": "trainer", **more})


def from_lightning(module: Callable[[], Any], data: Callable[[], Any], steps: int, **more: Any) -> Problem:
    """The problem of a `LightningModule` whose `training_step` returns the loss.

    Args:
        module: makes the module, with new weights.
        data: makes a `LightningDataModule`, or anything with ``train_dataloader`` and ``val_dataloader``, such as
            the module itself.
        steps: of a run.
        more: for :class:`Problem`; a ``device`` is where it is trained, by default the CPU.
    """
    device = more.pop("device", "cpu")
    loaders: dict[str, Any] = {}

    def model(seed: int) -> nn.Module:
        made: nn.Module = module().to(device)
        for log in "log", "log_dict":  # there is no Lightning trainer to log to
            object.__setattr__(made, log, lambda *args, **kwargs: None)
        return made

    def batches(seed: int, split: Split) -> Iterable[Any]:
        if not loaders:
            source = data()
            for call in ("prepare_data", "setup"):
                getattr(source, call, lambda *stage: None)(*(["fit"] if call == "setup" else []))
            loaders["train"], loaders["validation"] = source.train_dataloader(), source.val_dataloader()
        return loaders[split]  # type: ignore[no-any-return]

    def loss(model: Any, batch: Any) -> Tensor:
        moved = model.transfer_batch_to_device(batch, model.device, 0)
        found = model.training_step(moved, 0)
        return found["loss"] if isinstance(found, dict) else found  # type: ignore[no-any-return]

    return Problem(model, batches, loss, steps, **{"name": "module", **more})
