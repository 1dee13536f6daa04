"""The page "Errata of the reference": its cells run, and what they measure is what the text around them says."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "book" / "errata.md").read_text("utf-8")


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """The variables that the cells leave."""
    state = torch.get_rng_state()
    scope: dict[str, Any] = {}
    for cell in re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```$", PAGE, re.M | re.S):
        exec(cell, scope)
    torch.set_rng_state(state)
    return scope


def test_the_wrong_sign_makes_weights_grow(measured):
    assert measured["sign_reference"] == pytest.approx([1.05**t for t in range(1, 8)])
    assert measured["sign_right"] == pytest.approx([0.95**t for t in range(1, 8)])


def test_the_gradient_grows_in_place(measured):
    assert measured["kept"] == {"the reference": [1.5, 2.0, 2.5, 3.0], "SGD(weight_decay=0.5)": [1.0] * 4}


def test_the_hidden_copy_undoes_an_edit(measured):
    reference, right = measured["hidden_reference"], measured["hidden_right"]
    assert reference[:5] == pytest.approx(right[:5])
    assert right[5] - reference[5] == pytest.approx(100 - reference[3], abs=0.5)


def test_nadam_of_the_reference_is_adam_one_step_late(measured):
    assert measured["nadam_reference"][0] == 0.0
    assert measured["nadam_reference"][1] != 0.0


def test_the_decay_falls_with_the_schedule(measured):
    assert measured["adamw_reference"][-1] == pytest.approx(0.99**100)
    assert measured["adamw_right"][-1] == pytest.approx(0.99**50 * 0.9999**50)


def test_lookahead_of_the_reference_is_sgd_with_pauses(measured):
    assert measured["lookahead_reference"] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
    assert measured["lookahead_right"] == [1, 2, 3, 4, 2.5, 3.5, 4.5, 5.5, 6.5, 5, 6, 7]


def test_noise_of_the_reference_is_one_number_and_many_steps(measured):
    assert measured["calls"] == 4
    for moved in measured["noise_reference"]:
        assert moved.unique().numel() == 1
        assert moved[0] < -4  # the noise of this seed is positive: four steps of more than 1
    ours = torch.cat(measured["noise_right"]).detach()
    assert ours.unique().numel() == ours.numel() == 12
    assert ours.mean().item() == pytest.approx(-1, abs=4 * math.sqrt(0.3 / 12))


def test_dropout_of_the_reference_steps_once_per_tensor(measured):
    for tensors, ((far, t), (right, one)) in measured["dropout"].items():
        assert (t, one) == (tensors, 1)
        assert (far, right) == pytest.approx((tensors, 1), rel=1e-6)


def test_no_coordinate_stays_with_nesterov(measured):
    assert measured["stayed_reference"] == [0.0] * 5
    assert measured["stayed_right"] == pytest.approx([0.5] * 5, abs=0.025)


def test_rmsprop(measured):
    assert measured["rmsprop_reference"] == pytest.approx([1.0] * 7)
    assert measured["rmsprop_right"] == pytest.approx([1 / math.sqrt(1 - 0.9**t) for t in range(1, 8)], rel=1e-6)


def test_momentum_is_a_hundredfold_learning_rate(measured):
    slow, momentum, fast = measured["gain"].values()
    assert (slow, fast) == pytest.approx((2, 200))
    assert momentum == pytest.approx(200 - 0.1 * 99 * (1 - 0.99**2000))


def test_what_is_right_is_equal(measured):
    assert set(measured["differences"]) == {"Adam", "Adam with L2", "RAdam"}
    assert max(measured["differences"].values()) <= 1e-12
