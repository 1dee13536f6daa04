"""SOAP: equal to its authors' code, written out here, and what another basis is for (Vyas et al. 2025)."""

import copy

import numpy as np
import pytest
import torch

import optimizers
from optimizers import Chain, Rotated
from optimizers.adam import AdamDirection
from optimizers.aggmo import AggregatedMomentum
from optimizers.lion import LionDirection
from optimizers.nadam import NAdamDirection

from .matrices import apart, eta, follow, gaussian, gradient, path

SHAPES = ((12, 5), (4, 9), (6, 6), (7,), ())


def soap(
    theta,
    g,
    t,
    eta,
    memory,
    lr=3e-3,
    betas=(0.95, 0.95),
    beta=0.95,
    eps=1e-8,
    weight_decay=0.01,
    f=10,
    largest=10000,
):
    """The authors' step, which rotates m back and forth each time; with Adam's ε, not ε̂."""
    sides = [len(x) <= largest and g.ndim == 2 for x in (g, g.T)] if g.ndim == 2 else [False, False]
    products = [g @ g.T, g.T @ g] if g.ndim == 2 else [None, None]

    def average():
        for i, side in enumerate(sides):
            if side:
                memory[f"gg{i}"] = beta * memory.get(f"gg{i}", 0.0) + (1 - beta) * products[i]

    def turn(x, back=False):
        for i, side in enumerate(sides):
            q = memory[f"q{i}"] if side else None
            if side and i == 0:
                x = q @ x if back else q.T @ x
            elif side:
                x = x @ q.T if back else x @ q
        return x

    if t == 1:
        average()
        for i, side in enumerate(sides):
            if side:
                memory[f"q{i}"] = np.linalg.eigh(memory[f"gg{i}"])[1][:, ::-1]
        memory["m"] = memory["v"] = np.zeros_like(g)
        return theta
    t -= 1
    p = turn(g)
    memory["m"] = betas[0] * memory["m"] + (1 - betas[0]) * p
    memory["v"] = betas[1] * memory["v"] + (1 - betas[1]) * p**2
    direction = memory["m"] / (1 - betas[0] ** t) / (np.sqrt(memory["v"] / (1 - betas[1] ** t)) + eps)
    theta = theta - lr * eta * turn(direction, back=True)
    theta = theta - lr * eta * weight_decay * theta
    memory["m"] = turn(memory["m"], back=True)
    average()
    if t % f == 0:
        for i, side in enumerate(sides):
            if side:
                gg, q = memory[f"gg{i}"], memory[f"q{i}"]
                order = np.argsort(-np.diag(q.T @ gg @ q))
                memory["v"] = np.take(memory["v"], order, axis=i)
                memory[f"q{i}"] = np.linalg.qr(gg @ q[:, order])[0]
    memory["m"] = turn(memory["m"])
    return theta


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        # The first gradient of an oblong matrix leaves the larger side's basis open: any vectors do where it is 0.
        ({}, ((6, 6), (5, 5))),
        ({"f": 3, "weight_decay": 0.3, "lr": 0.05, "betas": (0.8, 0.9)}, ((6, 6), (7,), ())),
        ({"f": 1, "largest": 6, "beta": 0.5}, SHAPES),
        ({"f": 4, "largest": 6, "eps": 1e-2}, SHAPES),
        ({"largest": 0}, SHAPES),
    ],
)
def test_equals_its_authors(options, shapes):
    names = {"f": "precondition_frequency", "largest": "max_precond_dim", "beta": "shampoo_beta"}
    named = {names.get(name, name): value for name, value in options.items()}
    if "betas" in options:
        options = {**options, "beta": options["betas"][1]}
    ours, _ = path(lambda p: optimizers.SOAP(p, **named), shapes)
    for i, (param, shape) in enumerate(zip(ours, shapes, strict=True)):
        # (Signs of eigenvectors are anyone's choice, and Adam's step does not depend on them.)
        assert np.abs(param.numpy() - follow(soap, shape, i, **options)).max() < 1e-9, shape


def test_without_rotation_it_is_adam_one_step_late():
    ours, _ = path(lambda p: optimizers.SOAP(p, max_precond_dim=0, weight_decay=0.0), SHAPES, 51, torch.float32)
    params = [gaussian(*shape, seed=i).float().requires_grad_() for i, shape in enumerate(SHAPES)]
    starts = [param.detach().double() for param in params]
    adam = torch.optim.Adam(params, betas=(0.95, 0.95))
    for t in range(1, 51):
        adam.param_groups[0]["lr"] = 3e-3 * eta(t)
        for i, (param, shape) in enumerate(zip(params, SHAPES, strict=True)):
            param.grad = gradient(gaussian(*shape, seed=i), t, i).float()
        adam.step()
    assert apart(ours, [p.detach() for p in params]) < 1e-6
    assert apart(ours, starts) > 0.04


def test_the_first_call_makes_the_bases_and_moves_nothing():
    for options, moves in (({}, False), ({"first_step": True}, True)):
        param = gaussian(6, 4).requires_grad_()
        before = param.detach().clone()
        optimizer = optimizers.SOAP([param], weight_decay=0.1, **options)
        param.grad = gaussian(6, 4, seed=1)
        optimizer.step()
        assert torch.equal(param.detach(), before) is not moves
        state = optimizer.state[param]
        for name, side in (("left", 6), ("right", 4)):
            basis, gram = state[f"{name}_basis"], state[f"{name}_gram"]
            assert (basis.mT @ basis - torch.eye(side)).abs().max() < 1e-12
            inside = basis.mT @ gram @ basis
            assert (inside - inside.diag().diag()).abs().max() < 1e-12
            assert (inside.diag().diff() < 1e-12).all()


def test_it_whitens():
    """Gradients of covariance A ⊗ B, of condition 10⁵: their directions, at β₁ = 0, have 1.1; Adam's 5·10⁴."""
    rows, columns = (torch.logspace(0, -c, n, dtype=torch.float64) for n, c in ((6, 2), (5, 3)))
    turns = [torch.linalg.qr(gaussian(n, n, seed=n))[0] for n in (6, 5)]
    half = [q @ torch.diag(values**0.5) @ q.mT for q, values in zip(turns, (rows, columns), strict=True)]
    gradients = half[0] @ gaussian(40_000, 6, 5) @ half[1]
    # The bases, from all gradients; then v, and the directions.
    bases = [
        torch.linalg.eigh(torch.einsum(how, gradients, gradients))[1].flip(1)
        for how in ("nij,nkj->ik", "nij,nik->jk")
    ]
    conditions = {}
    for name, (left, right) in {"soap": bases, "adam": [torch.eye(6).double(), torch.eye(5).double()]}.items():
        rotated = left.mT @ gradients @ right
        v = rotated.square().mean(0)
        flat = (left @ (rotated / v.sqrt()) @ right.mT).flatten(1)
        values = torch.linalg.eigvalsh(flat.mT @ flat)
        conditions[name] = (values[-1] / values[0]).item()
        if name == "soap":
            # Adafactor's factors are exact in the eigenbasis: V = λ_i μ_j / tr
            lam, mu = (
                torch.linalg.eigvalsh(torch.einsum(how, gradients, gradients)).flip(0) / 40_000
                for how in ("nij,nkj->ik", "nij,nik->jk")
            )
            factored = v.sum(1, keepdim=True) * v.sum(0, keepdim=True) / v.sum()
            assert (factored - lam[:, None] * mu / lam.sum()).abs().max() < 1e-13
    assert conditions["soap"] < 1.2
    assert conditions["adam"] > 1e4


def losses(make, rotate, steps=100):
    """Of Σ S_ij (W_ij)² / 2 in the axes, or in turned ones; S from 1 to 0.01, 8 × 8."""
    side = torch.linspace(1, 0.1, 8, dtype=torch.float64)
    s = side[:, None] * side
    left, right = (torch.linalg.qr(gaussian(8, 8, seed=i))[0] if rotate else torch.eye(8).double() for i in (1, 2))
    w = (left @ gaussian(8, 8, seed=3) @ right.mT).requires_grad_()
    optimizer, found = make([w]), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = 0.5 * (s * (left.mT @ w @ right) ** 2).sum()
        loss.backward()
        found.append(loss.item())
        optimizer.step()
    return np.array(found)


def test_a_rotation_of_the_problem_makes_no_difference():
    """As it does to Adam."""

    def difference(make):
        aligned, turned = losses(make, False), losses(make, True)
        assert aligned[-1] < 0.5 * aligned[0]
        return np.abs(turned / aligned - 1).max()

    common = {"lr": 0.02, "betas": (0.9, 0.95), "weight_decay": 0.0}
    assert difference(lambda p: optimizers.SOAP(p, precondition_frequency=1, **common)) < 0.02
    assert difference(lambda p: optimizers.AdamW(p, **common)) > 0.2


# ---------------------------------------------------------------------- any direction


@pytest.mark.parametrize(
    ("make", "linear"),
    [
        (lambda: AdamDirection((0.9, 0.95), amsgrad=True), False),
        (lambda: AdamDirection((0.9, 0.95), nesterov=True), False),
        (lambda: LionDirection(), False),
        (lambda: NAdamDirection(), False),
        (lambda: AggregatedMomentum((0.0, 0.9)), True),
    ],
)
def test_of_vectors_and_without_rotation_it_is_the_direction_itself(make, linear):
    """At once with `first_step`, numbers that it counts with included; a linear one is the same in any axes."""
    rotated, _ = path(lambda p: Chain(p, [Rotated(make(), first_step=True, max_precond_dim=0)], lr=0.01), SHAPES)
    plain, _ = path(lambda p: Chain(p, [make()], lr=0.01), SHAPES)
    assert apart(rotated, plain) < 1e-13
    vectors = [i for i, shape in enumerate(SHAPES) if len(shape) < 2]
    turned, _ = path(lambda p: Chain(p, [Rotated(make(), first_step=True)], lr=0.01), SHAPES)
    assert apart([turned[i] for i in vectors], [plain[i] for i in vectors]) < 1e-13
    assert (apart(turned, plain) < 1e-13) is linear


@pytest.mark.parametrize("inner", [LionDirection, NAdamDirection, AdamDirection])
def test_late_it_is_the_direction_one_step_late(inner):
    """Numbers that the direction counts with, too (NAdam's product of momenta)."""
    shapes = ((4, 3), (5,))
    gradients = [[gaussian(*shape, seed=10 * t + i) for i, shape in enumerate(shapes)] for t in range(12)]

    def run(stage, gradients):
        params = [gaussian(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
        optimizer = Chain(params, [stage], lr=0.01)
        for each in gradients:
            for param, grad in zip(params, each, strict=True):
                param.grad = grad.clone()
            optimizer.step()
        return [p.detach() for p in params]

    assert apart(run(Rotated(inner(), max_precond_dim=0), gradients), run(inner(), gradients[1:])) < 1e-14


@pytest.mark.parametrize("shape", [(520, 300), (3, 70_000)])
def test_a_long_matrix_is_stepped_as_a_short_one(shape):
    """By slices, of which each comes out as by itself, but for the last digit."""
    rows = shape[0] // 3

    def run(shape, part):
        param = gaussian(*shape, dtype=torch.float32)[part].clone().requires_grad_()
        optimizer = Chain([param], [Rotated(AdamDirection(), max_precond_dim=0)], lr=0.01)
        for t in range(3):
            param.grad = gaussian(*shape, seed=t, dtype=torch.float32)[part].clone()
            optimizer.step()
        return param.detach()

    whole = run(shape, slice(None))
    assert whole.numel() > 1 << 17
    assert (whole[rows : 2 * rows] - run(shape, slice(rows, 2 * rows))).abs().max() < 1e-6


def test_lion_rotated_steps_in_the_rotated_axes():
    """Each entry of the step, in the basis, is the learning rate, up or down."""
    param = gaussian(5, 4).requires_grad_()
    optimizer = Chain([param], [Rotated(LionDirection(), precondition_frequency=2)], lr=0.01)
    for t in range(9):
        before = param.detach().clone()
        bases = {name: value.clone() for name, value in optimizer.state[param].items() if "basis" in name}
        param.grad = gaussian(5, 4, seed=t)
        optimizer.step()
        if t:
            inside = bases["left_basis"].mT @ (param.detach() - before) @ bases["right_basis"]
            assert (inside.abs() - 0.01).abs().max() < 1e-13


def test_velocities_turn_with_the_basis():
    """m, rotated back, is the average of the gradients whatever the bases have been."""
    param = gaussian(5, 4).requires_grad_()
    optimizer = optimizers.SOAP([param], betas=(0.9, 0.95), precondition_frequency=2)
    average = torch.zeros(5, 4, dtype=torch.float64)
    for t in range(12):
        param.grad = gaussian(5, 4, seed=t)
        optimizer.step()
        average = 0.9 * average + 0.1 * param.grad if t else average
    state = optimizer.state[param]
    assert (state["left_basis"] @ state["exp_avg"] @ state["right_basis"].mT - average).abs().max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_it_computes_in_single_precision_at_least(dtype):
    """The authors' code takes float32 alone."""
    ends, optimizer = path(lambda p: optimizers.SOAP(p, lr=0.02, precondition_frequency=2), ((5, 5),), 12, dtype)
    exact, _ = path(lambda p: optimizers.SOAP(p, lr=0.02, precondition_frequency=2), ((5, 5),), 12)
    assert ends[0].dtype == dtype
    (state,) = optimizer.state.values()
    assert state["left_basis"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (
        apart([ends[0].double()], exact) < {torch.bfloat16: 0.2, torch.float32: 1e-4, torch.float64: 1e-15}[dtype]
    )


def test_it_goes_on_from_a_checkpoint_bit_for_bit():
    """Bases and averages are in the state, and what the optimizer is made with is in the groups."""

    def steps(optimizer, param, times):
        for t in times:
            param.grad = gaussian(6, 4, seed=t)
            optimizer.step()

    param = gaussian(6, 4).requires_grad_()
    optimizer = optimizers.SOAP([param], lr=0.01, precondition_frequency=3)
    steps(optimizer, param, range(7))
    again = param.detach().clone().requires_grad_()
    other = optimizers.SOAP([again])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (optimizer, param), (other, again):
        steps(*each, range(7, 12))
    assert torch.equal(param, again)


def test_its_repr_names_the_direction_in_it():
    assert "Rotated(AdamDirection(betas=(0.95, 0.95)" in repr(optimizers.SOAP([torch.zeros(2, 2)]))


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("inner", [3, optimizers.Lookahead(2), Rotated(AdamDirection()), AdamDirection])
def test_what_is_no_elementwise_direction_is_refused(inner):
    with pytest.raises(TypeError, match="Rotated takes an elementwise direction"):
        Rotated(inner)


def test_complex_numbers_are_refused():
    param = torch.ones(2, 3, dtype=torch.complex64, requires_grad=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="complex"):
        optimizers.SOAP([param]).step()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must lie in"),
        ({"shampoo_beta": 1.0}, ValueError, "shampoo_beta must lie in"),
        ({"precondition_frequency": 0}, ValueError, "precondition_frequency must lie in"),
        ({"first_step": 1}, TypeError, "first_step must be True or False"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        optimizers.SOAP([torch.zeros(2, 2)], **options)
