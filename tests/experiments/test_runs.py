"""The settings of a run: what they select, what they refuse, and that a run does what they say."""

import math

import pytest
import torch

from experiments import data, mixes, models, runs, training
from experiments.errors import UserError
from experiments.runs import Settings
from experiments.training import History

SMALL = {"dataset": "digits", "num_epochs": 2, "num_train": 256, "num_val": 60}


def settings(**changes: object) -> Settings:
    return Settings(**{**SMALL, **changes})  # type: ignore[arg-type]


def train(text: str, chosen: Settings, seeds: tuple[int, ...] = (0,), stack: bool = False) -> list[History]:
    return runs.train(mixes.parse(text)[0].build, chosen, seeds, stack=stack)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "cifar"}, "there is no data set 'cifar'; there are digits, mnist, cifar10"),
        ({"model": "vgg"}, "there is no model 'vgg'; there are cnn, mlp"),
        ({"precision": "half"}, "there is no precision 'half'; there are float32, tf32, bfloat16"),
        ({"num_train": 1438}, "num-train must be 1 to 1437 for digits, not 1438"),
        ({"num_val": 0}, "num-val must be 1 to 360 for digits, not 0"),
        ({"num_val": 181, "fresh_val": True}, "num-val must be 1 to 180 for digits, not 181"),
        ({"num_epochs": 0}, "num-epochs must be 1 or more, not 0"),
        ({"warmup": 5, "lr_schedule": True}, "warmup and lr_schedule are two schedules: choose one"),
        ({"device": "gpu"}, "there is no device 'gpu'"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match="^" + message):
        settings(**changes)


@pytest.mark.parametrize(
    ("device", "amx", "avx512", "expected"),
    [
        ("cuda", False, False, "bfloat16"),
        ("cpu", True, False, "bfloat16"),
        ("cpu", False, True, "bfloat16"),
        ("cpu", False, False, "float32"),
    ],
)
def test_bfloat16_where_the_machine_has_instructions_for_it(
    device: str, amx: bool, avx512: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert runs.fastest_precision(device) == expected


def test_the_model_follows_the_data_set() -> None:
    assert [Settings(dataset=name, num_train=1, num_val=1).model for name in data.SHAPES] == ["mlp", "mlp", "cnn"]
    assert settings(model="cnn").model == "cnn"
    assert settings(num_train=257).steps == 6


def test_validation_images_for_tuning_and_for_the_result_are_not_the_same() -> None:
    whole = data.load("digits")
    first, second = runs.dataset(settings()), runs.dataset(settings(fresh_val=True))
    assert torch.equal(first.x_train, whole.x_train[:256])
    assert torch.equal(torch.cat([first.x_test, second.x_test]), whole.x_test[:120])
    assert torch.equal(torch.cat([first.y_test, second.y_test]), whole.y_test[:120])


def test_a_run_is_training_with_these_settings() -> None:
    (history,) = train("adam+lr_dropout(0.5)", settings(), (4,))
    model = models.mlp(64, seed=4)
    optimizer = mixes.parse("adam+lr_dropout(0.5, seed=4)")[0].build(model.parameters(), fused=True)
    by_hand = training.train(model, optimizer, runs.dataset(settings()), epochs=2, seed=4, progress=False)
    assert history.train_loss == by_hand.train_loss
    assert history.epoch == by_hand.epoch


def test_stacked_and_single_runs_agree() -> None:
    together = train("adam", settings(), (0, 1), stack=True)
    alone = train("adam", settings(), (0, 1))
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)


def test_the_cnn_runs_in_its_fast_layout() -> None:
    chosen = settings(model="cnn", num_epochs=1, num_train=64, batch_size=32, num_val=10)
    (history,) = train("sgd(0.01)", chosen)
    assert len(history.train_loss) == 2
    model = models.cnn(1, 8, seed=0)  # its optimizer made before the layout changes: the same numbers
    ds = runs.dataset(chosen)
    by_hand = training.train(
        model, torch.optim.SGD(model.parameters(), lr=0.01), ds, epochs=1, batch_size=32, seed=0, progress=False
    )
    assert history.train_loss == pytest.approx(by_hand.train_loss, rel=1e-4)


def test_warmup_and_plateau_reach_the_optimizer() -> None:
    plain, warm = (train("sgd(0.1)", settings(warmup=w))[0].train_loss for w in (0, 10**6))
    assert warm[0] == plain[0]
    assert plain[-1] < 0.9 * plain[0]
    assert warm[-1] == pytest.approx(training_start(), abs=1e-4), "a millionth of a step moves nothing"
    # A loss that rises at every epoch: patience 5 is over after 6 more.
    rising = settings(num_epochs=9, num_train=8, lr_schedule=True)
    scheduled = train("sgd(0.3, maximize=True)", rising)[0]
    constant = train("sgd(0.3, maximize=True)", settings(num_epochs=9, num_train=8))[0]
    assert scheduled.train_loss[:7] == constant.train_loss[:7]
    assert scheduled.train_loss[8] < constant.train_loss[8]


def test_warm_up_rises_in_a_line_and_then_stays() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    make = settings(warmup=4).schedule()
    assert make is not None
    scheduler, rates = make(optimizer), []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def training_start() -> float:
    """The loss of the untrained network on the last batch of the warm-up test."""
    model, ds = models.mlp(64, seed=0), runs.dataset(settings())
    order = torch.Generator().manual_seed(0)
    for _ in range(2):
        last = torch.randperm(256, generator=order)[128:]
    return float(torch.nn.functional.cross_entropy(model(ds.images("train")[last]), ds.labels("train")[last]))


def test_measures_of_a_run_and_of_one_that_diverged() -> None:
    fine = History(train_loss=[4.0, 2.0, 2.0, 1.0])
    fine.epoch = [
        {"epoch": 1, "train_loss": 3.0, "test_loss": 2.5, "test_accuracy": 0.5},
        {"epoch": 2, "train_loss": 1.5, "test_loss": 1.25, "test_accuracy": 0.75},
    ]
    burst = History(train_loss=[4.0, 8.0, math.inf], epoch=fine.epoch[:1], diverged=True)
    metrics, curves = runs.measure([fine, burst], settings())
    assert metrics == {
        "train_loss": [1.5, None],
        "early_train_loss": [3.0, None],
        "val_loss": [1.25, None],
        "val_accuracy": [0.75, None],
        "diverged": [0, 1],
    }
    x, (line, broken), label = curves["train_loss"]
    assert (x, line, label) == ([0.5, 1.0, 1.5, 2.0], [4.0, 2.0, 2.0, 1.0], "training loss")
    assert broken[:2] == [4.0, 8.0]
    assert not any(map(math.isfinite, broken[2:]))
    assert curves["val_accuracy"] == ([1, 2], [[0.5, 0.75], [0.5]], "validation accuracy")
