"""Shampoo: equal to the paper's algorithm, and what its powers whiten (Gupta, Koren and Singer 2018)."""

import numpy as np
import pytest
import torch

import optimizers

from .matrices import follow, gaussian, path

SHAPES = ((12, 5), (4, 9), (6, 6), (7,), ())


def root(matrix, exponent):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(values**-exponent) @ vectors.T


def shampoo(
    theta, g, t, eta, memory, lr, eps=1e-4, exponent=None, beta=None, every=1, weight_decay=0.0, momentum=0.0
):
    """Algorithm 1: L += G Gᵀ, R += Gᵀ G, θ −= α L^−¼ G R^−¼, with ε I at the start; a vector's one side has −½."""
    matrix = g if g.ndim == 2 else g.reshape(-1, 1)
    for side, product in (("l", matrix @ matrix.T), ("r", matrix.T @ matrix)):
        kept = memory.get(side, np.zeros_like(product))
        memory[side] = kept + product if beta is None else beta * kept + (1 - beta) * product
    if t % every == 1 % every:
        for side in "lr":
            corrected = memory[side] / (1 if beta is None else 1 - beta**t)
            power = (exponent or 1 / 4) if g.ndim == 2 else (exponent or 1 / 2)
            memory[f"root_{side}"] = root(corrected + eps * np.eye(len(corrected)), power)
    direction = memory["root_l"] @ matrix @ (memory["root_r"] if g.ndim == 2 else np.eye(1))
    m = memory["m"] = momentum * memory.get("m", 0.0) + (1 - momentum) * direction.reshape(g.shape)
    return theta - lr * eta * (m + weight_decay * theta)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eps": 1e-2, "weight_decay": 0.1, "every": 4},
        {"beta": 0.9, "exponent": 0.5, "momentum": 0.8},
    ],
)
def test_equals_the_paper(options):
    ours, _ = path(lambda p: optimizers.Shampoo(p, lr=0.1, **options), SHAPES)
    for i, (param, shape) in enumerate(zip(ours, SHAPES, strict=True)):
        assert np.abs(param.numpy() - follow(shampoo, shape, i, lr=0.1, **options)).max() < 1e-10


def step_of(g, **options):
    param = torch.zeros_like(g).requires_grad_()
    optimizer = optimizers.Shampoo([param], lr=1.0, **options)
    param.grad = g.clone()
    optimizer.step()
    return -param.detach()


def test_of_one_gradient_it_is_muon_s_direction():
    """(G Gᵀ)^−¼ G (Gᵀ G)^−¼ = U Vᵀ."""
    g = gaussian(8, 8)
    u, _, vt = torch.linalg.svd(g)
    assert (step_of(g, eps=1e-300) - u @ vt).abs().max() < 1e-13


@pytest.fixture(scope="module")
def whitened():
    """The condition of the covariance of steps whose gradients are L^½ Z R^½: of A ⊗ B by 10², 10³."""
    rows, columns = (torch.logspace(0, -c, n, dtype=torch.float64) for n, c in ((6, 2), (5, 3)))
    turns = [torch.linalg.qr(gaussian(n, n, seed=n))[0] for n in (6, 5)]
    half = [q @ torch.diag(values**0.5) @ q.mT for q, values in zip(turns, (rows, columns), strict=True)]
    gradients = half[0] @ gaussian(40_000, 6, 5) @ half[1]
    left = torch.einsum("nij,nkj->ik", gradients, gradients) / len(gradients)
    right = torch.einsum("nij,nik->jk", gradients, gradients) / len(gradients)
    return gradients, left, right


def condition(steps):
    flat = steps.reshape(len(steps), -1)
    values = torch.linalg.eigvalsh(flat.mT @ flat)
    return (values[-1] / values[0]).item()


@pytest.mark.parametrize(("exponent", "low", "high"), [(0.25, 0.98 * 1e5**0.5, 1.02 * 1e5**0.5), (0.5, 1.0, 1.2)])
def test_what_its_powers_whiten(whitened, exponent, low, high):
    """The paper's −¼ goes half of the way, to the root of the condition, 10⁵; −½ goes all of it."""
    from optimizers.shampoo import power

    gradients, left, right = whitened
    assert condition(gradients) == pytest.approx(1e5, rel=0.2)
    assert low < condition(power(left, exponent, 1e-12) @ gradients @ power(right, exponent, 1e-12)) < high


def test_the_stage_makes_the_same_averages_and_powers():
    """Of many gradients of one kind, with L and R as the optimizer keeps them: the last step is L^−½ G R^−½."""
    a, b = torch.diag(torch.logspace(0, -1, 4).double()), torch.diag(torch.logspace(0, -2, 3).double())
    param = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.Shampoo([param], lr=1.0, beta=0.99, exponent=0.5, eps=1e-12)
    for t in range(300):
        before, param.grad = param.detach().clone(), a @ gaussian(4, 3, seed=t) @ b
        optimizer.step()
    state, g = optimizer.state[param], param.grad
    left, right = (state[name] / (1 - 0.99**300) for name in ("left", "right"))
    expected = torch.tensor(root(left.numpy(), 0.5)) @ g @ torch.tensor(root(right.numpy(), 0.5))
    assert (before - param.detach() - expected).abs().max() < 1e-8


def test_grafted_it_is_as_long_as_adam_s_step():
    adam = torch.optim.Adam([torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)], lr=0.1, betas=(0.0, 0.9))
    (other,), param = adam.param_groups[0]["params"], torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.Shampoo([param], lr=0.1, beta=0.9, exponent=0.5, graft="adam", graft_beta=0.9)
    plain = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    ungrafted = optimizers.Shampoo([plain], lr=0.1, beta=0.9, exponent=0.5)
    for t in range(10):
        before = [p.detach().clone() for p in (param, other, plain)]
        for p in (param, other, plain):
            p.grad = gaussian(6, 4, seed=t)
        for each in (optimizer, adam, ungrafted):
            each.step()
        ours, adam_s, unlike = (p.detach() - old for p, old in zip((param, other, plain), before, strict=True))
        assert ours.norm().item() == pytest.approx(adam_s.norm().item(), rel=1e-12)
        assert torch.cosine_similarity(ours.flatten(), unlike.flatten(), dim=0).item() == pytest.approx(1.0)
    assert abs(ours.norm() / unlike.norm() - 1) > 0.1


def test_a_large_side_has_a_diagonal():
    """That of the sums of squares."""
    g = gaussian(9, 4)
    rows, columns = g.square().sum(1, keepdim=True), g.square().sum(0, keepdim=True)
    expected = (rows + 1e-4) ** -0.25 * g * (columns + 1e-4) ** -0.25
    assert (step_of(g, max_precond_dim=3) - expected).abs().max() < 1e-12
    one_side = (rows + 1e-4) ** -0.25 * g @ torch.tensor(root((g.mT @ g + 1e-4 * torch.eye(4)).numpy(), 0.25))
    assert (step_of(g, max_precond_dim=5) - one_side).abs().max() < 1e-12


def test_filters_are_matrices():
    filters, flat = gaussian(8, 3, 3, 3), gaussian(8, 27)
    ends = [
        path(lambda p: optimizers.Shampoo(p, lr=0.1), [shape], steps=1)[0] for shape in (filters.shape, flat.shape)
    ]
    g = gaussian(8, 3, 3, 3, seed=5)
    assert torch.equal(step_of(g).flatten(1), step_of(g.flatten(1)))
    assert ends[0][0].shape == (8, 3, 3, 3)


def test_zero_gradients_move_nothing():
    for options in ({}, {"graft": "adam", "momentum": 0.9}):
        assert not step_of(torch.zeros(3, 2, dtype=torch.float64), **options).any()


def test_complex_numbers_are_refused():
    param = torch.ones(2, 3, dtype=torch.complex64, requires_grad=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="complex"):
        optimizers.Shampoo([param]).step()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"beta": 1.0}, ValueError, r"beta must lie in \(0, 1\)"),
        ({"exponent": 0.0}, ValueError, r"exponent must lie in \(0, inf\)"),
        ({"eps": 0.0}, ValueError, r"eps must lie in \(0, inf\)"),
        ({"every": 0}, ValueError, "every must lie in"),
        ({"graft": "sgd"}, ValueError, "graft must be one of"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        optimizers.Shampoo([torch.zeros(2, 2)], **options)
