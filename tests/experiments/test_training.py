"""The training loop: deterministic to the bit, and exactly the loop that one would write by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments import data, models, training


@pytest.fixture
def ds() -> data.Dataset:
    return data.load("digits")


def run(
    ds: data.Dataset, *, lr: float = 0.1, model: nn.Module | None = None, **options: object
) -> tuple[training.History, nn.Module]:
    model = model or models.mlp(64, seed=0)
    settings = {"epochs": 2, "seed": 3, "progress": False, **options}
    return training.train(model, torch.optim.SGD(model.parameters(), lr=lr), ds, **settings), model  # type: ignore[arg-type]


def test_the_same_arguments_give_the_same_bits(ds: data.Dataset) -> None:
    (first, a), (second, b), (other, _) = run(ds), run(ds), run(ds, seed=4)
    assert first.train_loss == second.train_loss
    assert first.epoch == second.epoch
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert other.train_loss != first.train_loss


def test_dropout_is_seeded_and_the_global_state_untouched(ds: data.Dataset) -> None:
    def losses() -> list[float]:
        linear = models.logistic(64, seed=0)
        return run(ds, model=nn.Sequential(nn.Flatten(), nn.Dropout(0.5), linear))[0].train_loss

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = losses()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert losses() == first
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_is_the_loop_one_would_write_by_hand(ds: data.Dataset) -> None:
    history, trained = run(ds, epochs=2, batch_size=100, max_train=250)
    model = models.mlp(64, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = ds.images("train")[:250], ds.labels("train")[:250]
    order = torch.Generator().manual_seed(3)
    losses, means = [], []
    for _ in range(2):
        permutation = torch.randperm(250, generator=order)
        total = 0.0
        for start in (0, 100, 200):
            batch = permutation[start : start + 100]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            total += loss.item() * len(batch)
        means.append(total / 250)
    assert history.train_loss == losses
    assert history.steps == [1, 2, 3, 4, 5, 6]
    assert [epoch["train_loss"] for epoch in history.epoch] == pytest.approx(means, rel=1e-9)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), trained.parameters(), strict=True))
    with torch.no_grad():
        logits = model(ds.images("test"))
    assert history.epoch[-1]["test_loss"] == pytest.approx(
        F.cross_entropy(logits, ds.labels("test")).item(), rel=1e-5
    )
    assert history.epoch[-1]["test_accuracy"] == (logits.argmax(1) == ds.labels("test")).double().mean().item()


def test_evaluation_restores_the_mode_and_leaves_batch_statistics_alone(ds: data.Dataset) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    for mode in (True, False):
        model.train(mode)
        before = model[1].running_mean.clone()
        training.accuracy_and_loss(model, ds.images("test"), ds.labels("test"))
        assert model.training is mode
        assert torch.equal(model[1].running_mean, before)
    evaluated, _ = run(ds, model=models.cnn(1, 8, seed=0), epochs=1, max_train=256)
    blind, _ = run(ds, model=models.cnn(1, 8, seed=0), epochs=1, max_train=256, evaluate=False)
    assert evaluated.train_loss == blind.train_loss
    assert blind.epoch[0]["test_loss"] is blind.epoch[0]["test_accuracy"] is None


def test_divergence_stops_the_run_at_the_first_non_finite_loss(ds: data.Dataset) -> None:
    history, _ = run(ds, lr=1e30, epochs=50)
    assert history.diverged
    assert not math.isfinite(history.train_loss[-1])
    assert all(math.isfinite(loss) for loss in history.train_loss[:-1])
    assert history.epoch == [], "an epoch that did not finish is not reported"
    assert not run(ds)[0].diverged


def test_loss_scale_multiplies_the_gradient_but_not_the_record(ds: data.Dataset) -> None:
    scaled, _ = run(ds, lr=0.1 / 1024, loss_scale=1024.0)
    plain, _ = run(ds, lr=0.1)
    assert scaled.train_loss == plain.train_loss, "a power of two changes no digit"


def test_the_schedule_is_stepped_every_iteration(ds: data.Dataset) -> None:
    history, model = run(
        ds, epochs=1, schedule=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: float(t == 0))
    )
    first, start = models.mlp(64, seed=0), models.mlp(64, seed=0)
    assert len(history.train_loss) == 12
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    batch = torch.randperm(1437, generator=torch.Generator().manual_seed(3))[:128]
    F.cross_entropy(first(ds.images("train")[batch]), ds.labels("train")[batch]).backward()
    optimizer.step()
    for moved, p, origin in zip(model.parameters(), first.parameters(), start.parameters(), strict=True):
        assert torch.equal(moved, p), "only the first step had a learning rate"
        assert not torch.equal(moved, origin)


def test_a_plateau_schedule_is_stepped_every_epoch_with_the_mean_training_loss(ds: data.Dataset) -> None:
    seen: list[float] = []

    class Recorder(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics: float, epoch: int | None = None) -> None:  # type: ignore[override]
            seen.append(metrics)
            super().step(metrics, epoch)

    model = models.mlp(64, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # nothing improves: patience runs out
    shown: list[tuple[int, float]] = []
    history = training.train(
        model,
        optimizer,
        ds,
        epochs=5,
        seed=3,
        schedule=lambda o: Recorder(o, factor=0.5, patience=2, threshold=0.01),
        progress=lambda epoch, loss: shown.append((epoch, loss)),
    )
    assert seen == [epoch["train_loss"] for epoch in history.epoch]
    assert shown == list(enumerate(seen, 1))

    for patience, expected in ((2, 0.5), (9, 1.0)):
        model = models.mlp(64, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, maximize=True)
        schedule = lambda o, p=patience: torch.optim.lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=p)  # noqa: E731
        training.train(model, optimizer, ds, epochs=4, seed=3, schedule=schedule, max_train=8, progress=False)
        assert optimizer.param_groups[0]["lr"] == expected


def test_bfloat16_is_close_and_a_wrong_word_is_an_error(ds: data.Dataset) -> None:
    assert run(ds, precision="bfloat16")[0].train_loss == pytest.approx(run(ds)[0].train_loss, rel=0.05)
    with pytest.raises(ValueError, match="Invalid precision='half': choose one of float32, tf32, bfloat16"):
        run(ds, precision="half")
    with pytest.raises(ValueError, match="Invalid epochs=0"):
        run(ds, epochs=0)


def test_progress_goes_to_the_runners_file(
    ds: data.Dataset,
    tmp_path: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "progress"  # type: ignore[operator]
    monkeypatch.setenv("EXPERIMENT_PROGRESS", str(path))
    run(ds, progress=True)
    assert [line[:21] for line in path.read_text().splitlines()] == [
        "SGD: epoch 1 of 2, tr",
        "SGD: epoch 2 of 2, tr",
    ]
    assert capfd.readouterr() == ("", ""), "a notebook's outputs must not hold progress"


def test_downsample_takes_block_means() -> None:
    assert training.downsample([1.0, 2.0, 3.0], 10) == ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert training.downsample([1.0, 3.0, 5.0, 9.0], 2) == ([1.5, 3.5], [2.0, 7.0])
    x, y = training.downsample(list(range(1001)))
    assert len(x) == len(y) == 200
    assert training.downsample([]) == ([], [])
    assert math.isnan(training.downsample([1.0, math.nan, 2.0, 2.0], 2)[1][0])
    with pytest.raises(ValueError, match="Invalid points=0"):
        training.downsample([1.0], 0)
