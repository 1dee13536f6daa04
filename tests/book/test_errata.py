"""The page "Seven ways an optimizer goes wrong": its cells run, and what they measure is what the text says."""

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


def test_the_gradient_grows_in_place(measured):
    assert measured["kept"] == {"in place": [1.5, 2.0, 2.5, 3.0], "SGD(weight_decay=0.5)": [1.0] * 4}


def test_a_step_in_the_loop_is_one_for_every_tensor(measured):
    assert set(measured["dropout"]) == {1, 4, 32}
    for tensors, ((far, t), (right, one)) in measured["dropout"].items():
        assert (t, one) == (tensors, 1)
        assert (far, right) == pytest.approx((tensors, 1), rel=1e-6)


def test_one_draw_pushes_all_coordinates_alike(measured):
    wrong, ours = measured["noise_wrong"], measured["noise_right"].detach()
    assert (wrong.unique().numel(), ours.unique().numel()) == (1, 12)
    assert wrong[0, 0] != -1  # there is noise, but the same for all
    assert ours.mean().item() == pytest.approx(-1, abs=4 * math.sqrt(0.3 / 12))


def test_a_copy_undoes_an_edit(measured):
    wrong, right = measured["hidden_wrong"], measured["hidden_right"]
    assert wrong[:5] == pytest.approx(right[:5])
    assert right[5:] == pytest.approx([90, 81])
    assert wrong[5] == pytest.approx(0.9**5 - 0.1 * 100)


def test_the_decay_falls_with_the_schedule(measured):
    assert measured["decay_wrong"][-1] == pytest.approx(0.99**100)
    assert measured["decay_right"][-1] == pytest.approx(0.99**50 * 0.9999**50)


def test_lookahead_that_writes_nothing_back_is_its_inner_optimizer(measured):
    assert measured["lookahead_wrong"] == list(range(1, 13))
    assert measured["lookahead_right"] == [1, 2, 3, 4, 2.5, 3.5, 4.5, 5.5, 6.5, 5, 6, 7]


def test_the_wrong_sign_makes_weights_grow(measured):
    assert measured["sign_reference"] == pytest.approx([1.05**t for t in range(1, 8)])
    assert measured["sign_right"] == pytest.approx([0.95**t for t in range(1, 8)])


def test_nadam_of_the_reference_turns_one_step_late(measured):
    """Adam on the gradients of the steps before: the first is zero, and the bias corrections count it."""
    expected, m, v, theta = [], 0.0, 0.0, 0.0
    for t, g in enumerate([0.0, *measured["turning"][:-1]], 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta -= m / (1 - 0.9**t) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        expected.append(theta)
    late, adam = measured["nadam_reference"], measured["nadam_adam"]
    assert late == pytest.approx(expected, abs=1e-12)
    assert late[0] == 0.0
    assert late.index(min(late)) == adam.index(min(adam)) + 1


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


def test_there_are_seven_and_every_anchor_of_the_table_is_there():
    assert [int(number) for number in re.findall(r"^## (\d)\.", PAGE, re.M)] == list(range(1, 8))
    anchors = set(re.findall(r"^\((errata-[\w-]+)\)=$", PAGE, re.M))
    assert set(re.findall(r"\{ref\}`(errata-[\w-]+)`", PAGE)) <= anchors


def test_what_is_right_is_equal(measured):
    assert set(measured["differences"]) == {"Adam", "Adam with L2", "RAdam"}
    assert max(measured["differences"].values()) <= 1e-12
