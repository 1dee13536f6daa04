"""Warm-up, stable, decay: the shapes, in torch's scheduler, and what the schedule is worth."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

import optimizers
from optimizers import wsd

SHAPES = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "sqrt": lambda x: 1 - math.sqrt(x),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_up_along_and_down(shape):
    schedule = wsd(100, warmup=10, decay=20, shape=shape)
    assert [schedule(t) for t in range(10)] == pytest.approx(np.arange(1, 11) / 10)
    assert [schedule(t) for t in range(10, 81)] == [1.0] * 71
    assert [schedule(t) for t in range(80, 100)] == pytest.approx([SHAPES[shape](k / 20) for k in range(20)])
    assert 0 < schedule(99) < 0.06
    assert [schedule(t) for t in (100, 101, 1000)] == pytest.approx([0.0] * 3, abs=1e-15)


def test_shares_of_all_steps():
    for share, steps in ((0.29, 29), (0.2, 20), (0.0, 0), (1.0, 100), (0.005, 0)):
        one, other = wsd(100, decay=share), wsd(100, decay=steps)
        assert [one(t) for t in range(120)] == [other(t) for t in range(120)]
    schedule = wsd(7, warmup=0.5, decay=0.5)  # three steps each
    assert [schedule(t) for t in range(8)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 2 / 3, 1 / 3, 0])
    assert wsd(np.int64(100), np.int64(10), np.float32(0.25))(80) == 0.8


def test_without_decay_it_never_ends():
    assert {wsd(10, decay=0)(t) for t in (0, 9, 10, 1000)} == {1.0}
    assert wsd(1, decay=1)(0) == 1.0


def scheduled(schedule, steps):
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.SGD([theta], lr=0.5)
    scheduler = LambdaLR(optimizer, schedule)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        theta.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
    return rates, optimizer, scheduler


def test_in_torchs_scheduler():
    rates, optimizer, _ = scheduled(wsd(10, warmup=2, decay=4), 10)
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125])
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_a_run_branches_from_its_stable_part():
    """From one checkpoint, a short end and a long one; the checkpoint does not say how long the run was to be."""
    _, optimizer, trunk = scheduled(wsd(100, warmup=2, decay=0), 6)
    saved = copy.deepcopy((optimizer.state_dict(), trunk.state_dict()))
    for steps in (10, 20):
        theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        branch = optimizers.SGD([theta], lr=0.5)
        scheduler = LambdaLR(branch, wsd(steps, warmup=2, decay=4))
        branch.load_state_dict(saved[0])
        scheduler.load_state_dict(saved[1])
        rates = []
        for _ in range(6, steps):
            rates.append(branch.param_groups[0]["lr"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # no optimizer's step before the scheduler's
                scheduler.step()
        assert rates == pytest.approx([0.5] * (steps - 10) + [0.5, 0.375, 0.25, 0.125])


def test_it_can_be_pickled():
    schedule = wsd(100, warmup=10, shape="sqrt")
    again = pickle.loads(pickle.dumps(schedule))
    assert [again(t) for t in range(110)] == [schedule(t) for t in range(110)]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"steps": 0}, ValueError, r"steps must lie in \[1, inf\), got 0"),
        ({"steps": 10.0}, TypeError, r"steps must be a whole number in \[1, inf\), got 10.0"),
        ({"warmup": -1}, ValueError, r"warmup must lie in \[0, 100\], got -1"),
        ({"warmup": 101}, ValueError, r"warmup must lie in \[0, 100\], got 101"),
        ({"warmup": True}, TypeError, r"warmup must be a whole number in \[0, 100\], got True"),
        (
            {"decay": 20.0},
            ValueError,
            r"decay must be a whole number of steps, or a share .* in \[0, 1\], got 20.0",
        ),
        ({"decay": math.nan}, ValueError, "decay must be a whole number of steps, or a share .*, got nan"),
        ({"decay": "20%"}, TypeError, r"decay must be a whole number in \[0, 100\], got '20%'"),
        ({"warmup": 0.5, "decay": 51}, ValueError, "must fit into steps=100, got 50 and 51 steps"),
        ({"shape": "exponential"}, ValueError, r"shape must be one of \['linear', 'cosine', 'sqrt'\]"),
    ],
)
def test_wrong_values_are_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        wsd(**{"steps": 100, **arguments})


def test_what_a_schedule_is_worth_with_its_own_best_rate():
    """A noisy quadratic of 200 curvatures 1/i, T = 1000, exact second moments, the rate from a grid of 17.

    At equal tuning a short decay is not a cosine; 1 − √x is better than a line; and WSD's best rate is lower.
    """
    curvature = 1 / np.arange(1, 201)
    rates = 0.01 * 199 ** (np.arange(17) / 16)

    def best(schedule):
        moments = np.ones((17, 200))
        for t in range(1000):
            rate = schedule(t) * rates[:, None]
            moments = (1 - rate * curvature) ** 2 * moments + rate**2 * curvature / 4
        losses = (curvature * moments).sum(1) / 2
        return losses.min(), rates[losses.argmin()]

    found = {
        "constant": best(wsd(1000, decay=0)),
        "cosine": best(wsd(1000, decay=1000, shape="cosine")),
        "linear": best(wsd(1000, decay=1000)),
        **{share: best(wsd(1000, decay=share, shape="sqrt")) for share in (0.05, 0.1, 0.2, 0.4)},
        "20 % linear": best(wsd(1000, decay=0.2)),
        "80 % linear": best(wsd(1000, decay=0.8)),
    }
    losses = {name: loss for name, (loss, _) in found.items()}
    expected = {"constant": 0.0995, "cosine": 0.0431, "linear": 0.0430, 0.05: 0.0726, 0.1: 0.0634, 0.2: 0.0559}
    expected |= {0.4: 0.0466, "20 % linear": 0.0579, "80 % linear": 0.0430}
    assert losses == pytest.approx(expected, abs=6e-5)
    assert found["constant"][1] == pytest.approx(0.20, abs=0.005)
    assert found["cosine"][1] == found["linear"][1] == pytest.approx(0.74, abs=0.005)
    assert all(0.27 < found[share][1] < 0.39 for share in (0.05, 0.1, 0.2, 0.4))
