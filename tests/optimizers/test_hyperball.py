"""Hyperball: matrices stay on their sphere and turn by the learning rate (Wen et al. 2026)."""

import math

import numpy as np
import pytest
import torch

from optimizers import SGD, AdamW, CautiousWeightDecay, Hyperball, LearningRateDropout, Lion


def hyperball_adam(theta, gradient, t, eta, memory, lr, betas=(0.9, 0.999), eps=1e-8, hyperball=True):
    """R Normalize(W − η R Normalize(u)), R = ‖W_0‖, for Adam's u."""
    m = memory["m"] = betas[0] * memory.get("m", 0.0) + (1 - betas[0]) * gradient
    v = memory["v"] = betas[1] * memory.get("v", 0.0) + (1 - betas[1]) * gradient**2
    u = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    if not hyperball:
        return theta - lr * eta * u
    radius = memory.setdefault("radius", np.linalg.norm(theta))
    turned = theta - lr * eta * radius * u / np.linalg.norm(u)
    return radius * turned / np.linalg.norm(turned)


def make(params, **options):
    return AdamW(params, **{"lr": 0.02, "weight_decay": 0.0, "extensions": [Hyperball()], **options})


@pytest.mark.parametrize("fused", [False, True])
def test_equals_the_paper(fused):
    random = np.random.default_rng(0)
    starts = [random.standard_normal(shape) for shape in ((3, 4), (5, 2, 3), (6,), ())]
    params = [torch.tensor(start).requires_grad_() for start in starts]
    groups = [{"lr": 0.02}, {"lr": 0.1}, *[{"lr": 0.1, "hyperball": False}] * 2]
    optimizer = make([{"params": [p], **g} for p, g in zip(params, groups, strict=True)], fused=fused)
    thetas, memories = starts, [{} for _ in starts]
    for t in range(1, 51):
        eta = 1 / t
        for i, (param, group) in enumerate(zip(params, groups, strict=True)):
            noise = random.standard_normal(thetas[i].shape)
            param.grad = 2.0 * param.detach() + torch.tensor(noise)
            optimizer.param_groups[i]["lr"] = group["lr"] * eta
            thetas[i] = hyperball_adam(thetas[i], 2.0 * thetas[i] + noise, t, eta, memories[i], **group)
        optimizer.step()
        for param, theta in zip(params, thetas, strict=True):
            # R is kept in float32
            assert np.abs(param.detach().numpy() - theta).max() <= 1e-6, t


def test_norms_are_of_the_whole_tensor(whole):
    whole(make, hyperball_adam, tolerance=1e-5, lr=0.3)


def test_it_is_sound(sound):
    def apart(groups, **options):
        each = [{**g, "params": [p], "hyperball": p.dim() > 1} for g in groups for p in g["params"]]
        return make(each, **options)

    sound(apart, {"lr": 0.01})


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_norm_stays_and_the_step_has_a_length(fused, dtype):
    """Perpendicular updates turn a matrix by arctan(lr) each, and rounding does not add up."""
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(30, 20, generator=random, dtype=dtype).requires_grad_()
    norm = theta.detach().norm().item()
    optimizer = SGD([theta], lr=0.05, extensions=[Hyperball()], fused=fused)
    for t in range(200):
        before = theta.detach().double().clone()
        gradient = 10.0 ** (t % 5) * torch.randn(30, 20, generator=random, dtype=torch.float64)
        gradient -= (gradient * before).sum() / before.square().sum() * before
        theta.grad = gradient.to(dtype)
        optimizer.step()
        after = theta.detach().double()
        assert after.norm().item() == pytest.approx(norm, rel=2e-7)
        cosine = ((before * after).sum() / before.norm() / after.norm()).item()
        assert math.acos(cosine) == pytest.approx(math.atan(0.05), rel=1e-5)
    assert optimizer.state[theta]["radius"].item() == pytest.approx(norm, rel=1e-7)


@pytest.mark.parametrize("fused", [False, True])
def test_a_factor_on_the_update_changes_nothing(fused):
    ends = []
    for factor in (1.0, 1e-6, 1e6):
        random = torch.Generator().manual_seed(0)
        theta = torch.randn(5, 4, generator=random, dtype=torch.float64).requires_grad_()
        optimizer = SGD([theta], lr=0.05, momentum=0.9, extensions=[Hyperball()], fused=fused)
        for _ in range(10):
            theta.grad = factor * torch.randn(5, 4, generator=random, dtype=torch.float64)
            optimizer.step()
        ends.append(theta.detach())
    assert max((ends[0] - end).abs().max() for end in ends) < 1e-12


@pytest.mark.parametrize("fused", [False, True])
def test_what_has_no_sphere_makes_the_optimizers_own_steps(fused):
    def end(extensions):
        params = [torch.zeros(3, 2), torch.zeros(1, 1)]
        optimizer = Lion([p.requires_grad_() for p in params], lr=0.125, extensions=extensions, fused=fused)
        for t in range(4):
            for param in params:
                param.grad = torch.full_like(param, 1.0 - t)
            optimizer.step()
        return [param.detach() for param in params]

    assert all(map(torch.equal, end([Hyperball()]), end([])))


@pytest.mark.parametrize("fused", [False, True])
def test_a_vector_is_refused_before_anything_moves(fused):
    params = [torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = SGD([{"params": p} for p in params], lr=0.1, extensions=[Hyperball()], fused=fused)
    for param in params:
        param.grad = torch.arange(float(param.numel())).view(param.shape)
    with pytest.raises(RuntimeError, match=r"Hyperball cannot step .* shape \(3,\).* hyperball=False"):
        optimizer.step()
    assert all((param == 1).all() for param in params)
    optimizer.param_groups[1]["hyperball"] = False
    optimizer.step()
    assert not any((param == 1).all() for param in params)


@pytest.mark.parametrize("fused", [False, True])
def test_without_an_update_nothing_moves(fused):
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    theta = start.clone().requires_grad_()
    optimizer = SGD([theta], lr=0.1, extensions=[Hyperball()], fused=fused)
    for lr, gradient in [(0.0, 0.0), (0.1, 0.0), (0.0, 1.0)]:
        optimizer.param_groups[0]["lr"] = lr
        theta.grad = torch.full((3, 4), gradient)
        optimizer.step()
        assert torch.equal(theta, start)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_to_the_very_centre_is_not_made(fused):
    """W − R W/‖W‖ = 0 has no direction."""
    theta = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    optimizer = SGD([theta], lr=1.0, extensions=[Hyperball()], fused=fused)
    theta.grad = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    optimizer.step()
    assert torch.isfinite(theta).all()


def test_dropout_of_the_rate_comes_before_it():
    theta = torch.ones(100, 100, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([theta], lr=0.1, extensions=[Hyperball(), LearningRateDropout(0.5)])
    theta.grad = torch.randn(100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    optimizer.step()
    assert theta.detach().norm().item() == pytest.approx(100, rel=1e-7)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda e: AdamW([torch.zeros(1, 1)], extensions=e), "DecoupledWeightDecay"),
        (lambda e: SGD([torch.zeros(1)], weight_decay=0.1, extensions=e), "L2"),
        (lambda e: SGD([torch.zeros(1)], extensions=[CautiousWeightDecay(0.1), *e]), "CautiousWeightDecay"),
    ],
)
def test_decay_is_refused(build, name):
    with pytest.raises(ValueError, match=rf"{name} decays .* beside Hyperball, which keeps the norm .*: set"):
        build([Hyperball()])
    build([])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("size", [1e-155, 1e-100, 1e100, 1e160])
def test_an_update_of_any_size_leaves_the_norm(size, fused):
    """Its square may be too large for a number; then nothing moves."""
    param = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    param.grad = size * torch.tensor([[1.0, -1.0], [2.0, 3.0]], dtype=torch.float64)
    SGD([param], lr=0.1, extensions=[Hyperball()], fused=fused).step()
    assert param.norm().item() == pytest.approx(2, rel=1e-12)
    assert torch.equal(param.detach(), torch.ones(2, 2).double()) is (size == 1e160)


def test_wrong_values_are_refused():
    with pytest.raises(TypeError, match="hyperball must be True or False, got 2"):
        Hyperball(2)
    with pytest.raises(TypeError, match="hyperball of parameter group 1 must be True or False"):
        SGD([{"params": torch.ones(1)}, {"params": torch.ones(1), "hyperball": "no"}], extensions=[Hyperball()])


def test_a_group_that_decays_is_refused_before_anything_moves() -> None:
    params = [torch.ones(2, 2, requires_grad=True) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}]
    optimizer = AdamW(groups, lr=0.1, weight_decay=0.0, extensions=[Hyperball()])
    for param in params:
        param.grad = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    match = "parameter group 1: DecoupledWeightDecay decays .* beside Hyperball, .*: set weight_decay=0"
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    assert all(torch.equal(param, torch.ones(2, 2)) for param in params)
    optimizer.param_groups[1]["hyperball"] = False
    optimizer.step()
    assert not any(torch.equal(param, torch.ones(2, 2)) for param in params)
