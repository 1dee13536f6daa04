"""Stacked networks: each is the network that it would be alone, whatever happens to its neighbors."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import optimizers
from experiments import data, mixes, models, stacked, training
from experiments.stacked import StackedMLP

SEEDS = (3, 4, 5)


@pytest.fixture(scope="module")
def ds() -> data.Dataset:
    return data.load("digits")


def rising(optimizer: Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: (step + 1) / 20)


def together(
    ds: data.Dataset, text: str, seeds: tuple[int, ...] = SEEDS, shared: bool = False, epochs: int = 2
) -> list[training.History]:
    model = StackedMLP(seeds, 64)
    optimizer = mixes.parse(text)[0].build(model.parameters())
    return stacked.train(model, optimizer, ds, epochs=epochs, shared_batches=shared)


def test_the_logits_are_those_of_the_single_networks(ds: data.Dataset) -> None:
    images = ds.images("test")[:50]
    stack = StackedMLP(SEEDS, 64, (32, 16))
    own = torch.stack([images.roll(i, 0).flatten(1) for i in range(3)])
    for i, seed in enumerate(SEEDS):
        single = models.mlp(64, (32, 16), seed=seed)
        torch.testing.assert_close(stack(images.flatten(1))[i], single(images), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(stack(own)[i], single(images.roll(i, 0)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", ["sgd(0.1, momentum=0.9)", "adam+lookahead", "radamw(nesterov=True)"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("schedule", [None, rising], ids=["constant", "rising"])
def test_each_network_trains_as_it_would_alone(
    ds: data.Dataset, text: str, shared: bool, schedule: Callable[[Optimizer], LambdaLR] | None
) -> None:
    mix, stack = mixes.parse(text)[0], StackedMLP(SEEDS, 64)
    common: Any = {"epochs": 2, "schedule": schedule}
    histories = stacked.train(stack, mix.build(stack.parameters()), ds, shared_batches=shared, **common)
    for seed, history in zip(SEEDS, histories, strict=True):
        model, order = models.mlp(64, seed=seed), SEEDS[0] if shared else seed
        single = training.train(model, mix.build(model.parameters()), ds, seed=order, progress=False, **common)
        assert history.train_loss == pytest.approx(single.train_loss, rel=1e-5)
        assert len(history.epoch) == 2
        for ours, theirs in zip(history.epoch, single.epoch, strict=True):
            for key in ("epoch", "train_loss", "test_loss"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
            assert ours["test_accuracy"] == pytest.approx(theirs["test_accuracy"], abs=1.5 / 360)


def test_evaluation_adds_up_its_batches(ds: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """360 images in batches of 100: the accuracy and the loss of all, not of the last 60."""
    x, y = ds.images("test"), ds.labels("test")
    monkeypatch.setattr(training, "EVALUATION_BATCH", 100)
    found = stacked.evaluate(StackedMLP(SEEDS, 64), x.flatten(1), y, batch=100)
    for seed, of_stack in zip(SEEDS, found, strict=True):
        model = models.mlp(64, seed=seed)
        with torch.no_grad():
            logits = model(x)
        accuracy = (logits.argmax(1) == y).double().mean().item()
        expected = (accuracy, F.cross_entropy(logits.double(), y).item())
        assert training.accuracy_and_loss(model, x, y) == pytest.approx(expected, rel=1e-6)
        assert of_stack == pytest.approx(expected, rel=1e-6)


def test_noise_and_masks_differ_between_the_networks(ds: data.Dataset) -> None:
    """Twins, equal but for their place in the stack, stay equal without noise and part with it."""
    plain = together(ds, "adam", seeds=(3, 3), epochs=1)
    assert plain[0].train_loss == pytest.approx(plain[1].train_loss, rel=1e-6)
    for extension in ("gradient_noise", "lr_dropout", "gradient_dropout"):
        first, second = (h.train_loss for h in together(ds, f"adam+{extension}", seeds=(3, 3), epochs=1))
        assert first[0] == pytest.approx(second[0], rel=1e-6)
        assert abs(first[-1] - second[-1]) > 1e-4


def test_a_network_that_diverges_leaves_its_neighbors_alone(ds: data.Dataset) -> None:
    model = StackedMLP(SEEDS, 64)
    with torch.no_grad():
        model.weights[0][1] = math.inf
    optimizer = mixes.parse("adam")[0].build(model.parameters())
    histories = stacked.train(model, optimizer, ds, epochs=2)
    assert [history.diverged for history in histories] == [False, True, False]
    assert [len(history.epoch) for history in histories] == [2, 0, 2]
    assert not math.isfinite(histories[1].train_loss[-1])
    untouched = together(ds, "adam")
    assert histories[0].train_loss == untouched[0].train_loss
    assert histories[2].train_loss == untouched[2].train_loss


def test_the_same_arguments_give_the_same_bits_and_leave_the_generator_alone(ds: data.Dataset) -> None:
    before = torch.get_rng_state()
    first, second = together(ds, "adam+lr_dropout"), together(ds, "adam+lr_dropout")
    assert [h.train_loss for h in first] == [h.train_loss for h in second]
    assert [h.epoch for h in first] == [h.epoch for h in second]
    assert torch.equal(torch.get_rng_state(), before)


def test_when_all_have_diverged_the_rest_is_not_run(ds: data.Dataset) -> None:
    calls: list[int] = []
    model = StackedMLP((0, 1), 64)
    optimizer = mixes.parse("sgd(1e30)")[0].build(model.parameters())
    histories = stacked.train(model, optimizer, ds, epochs=40, progress=lambda epoch, loss: calls.append(epoch))
    assert all(history.diverged for history in histories)
    assert calls == []


def test_a_grid_is_its_single_runs(ds: data.Dataset) -> None:
    """Every network moves at its own learning rate, under a schedule too, as one alone at that rate would."""
    make = functools.partial(optimizers.Adam, weight_decay=1e-3)
    options: Any = {"epochs": 2, "schedule": rising}
    grid = stacked.train_grid(make, [1e-3, 1e-2], SEEDS[:2], ds, hidden=(64,), **options)
    assert list(grid) == [1e-3, 1e-2]
    for rate, histories in grid.items():
        for seed, history in zip(SEEDS[:2], histories, strict=True):
            model = models.mlp(64, seed=seed)
            single = training.train(
                model, make(model.parameters(), lr=rate), ds, seed=seed, progress=False, **options
            )
            assert history.train_loss == pytest.approx(single.train_loss, rel=1e-4)


def test_a_grid_of_one_seed_shares_its_batches_and_survives_a_rate_that_is_too_large(ds: data.Dataset) -> None:
    make = functools.partial(optimizers.SGD, momentum=0.9)
    grid = stacked.train_grid(make, [1e-2, 1e30], [3], ds, hidden=(64,), epochs=1)
    assert [history.diverged for (history,) in grid.values()] == [False, True]
    model = models.mlp(64, seed=3)
    single = training.train(model, make(model.parameters(), lr=1e-2), ds, seed=3, epochs=1, progress=False)
    assert grid[1e-2][0].train_loss == pytest.approx(single.train_loss, rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_rates_multiply_the_update_of_their_row(fused: bool) -> None:
    w = torch.ones(3, 2, 2, requires_grad=True)
    optimizer = optimizers.SGD([w], lr=0.5, extensions=[stacked.Rates([0.0, 1.0, 4.0])], fused=fused)
    w.grad = torch.full_like(w, 2.0)
    optimizer.step()
    assert w[:, 0, 0].tolist() == [1.0, 0.0, -3.0]
