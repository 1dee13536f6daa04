"""Muon: equal to torch's and to its derivation, with the numbers that follow from it (Jordan et al. 2024)."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import optimizers
from optimizers.muon import JORDAN, MuonDirection
from optimizers.orthogonal import newton_schulz
from optimizers.polar_express import polar_express

from .matrices import apart, follow, gaussian, path, singular_values

SHAPES = ((24, 8), (8, 24), (20, 20), (7, 5), (3, 30))


@pytest.fixture(autouse=True)
def one_thread():
    """Small products in bfloat16 wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------------- torch's

OPTIONS = [
    {},
    {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
    {"momentum": 0.5, "weight_decay": 0.0, "ns_steps": 3, "adjust_lr_fn": "original"},
    {"ns_coefficients": (1.5, -0.5, 0.0), "eps": 1e-3, "weight_decay": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(options):
    """In the precision of torch's Newton and Schulz; their inputs, in float64, round to the same bfloat16."""
    ours, _ = path(lambda p: optimizers.Muon(p, lr=0.02, precision="bfloat16", **options), SHAPES)
    theirs, _ = path(lambda p: torch.optim.Muon(p, lr=0.02, **options), SHAPES)
    assert apart(ours, theirs) < 1e-13
    assert apart(ours, [gaussian(*shape, seed=i) for i, shape in enumerate(SHAPES)]) > 0.01


def test_in_float32_it_is_torch_s_but_for_rounding():
    for dtype, precision, near in ((torch.float32, "bfloat16", 2e-4), (torch.float32, "auto", 5e-3)):
        ours, _ = path(lambda p, how=precision: optimizers.Muon(p, lr=0.02, precision=how), SHAPES, dtype=dtype)
        theirs, _ = path(lambda p: torch.optim.Muon(p, lr=0.02), SHAPES, dtype=dtype)
        # 30 steps of 0.02; what is rounded to bfloat16 another way has 1/256 of a step
        assert apart(ours, theirs) < near


def test_each_continues_the_other_s_checkpoint():
    def ours(params):
        return optimizers.Muon(params, lr=0.02, precision="bfloat16")

    def theirs(params):
        return torch.optim.Muon(params, lr=0.02)

    for first in (ours, theirs):
        params, optimizer = path(first, SHAPES, steps=10)
        state = copy.deepcopy(optimizer.state_dict())
        ends = []
        for second in (ours, theirs):

            def make(params, make=second, state=state):
                optimizer = make(params)
                optimizer.load_state_dict(copy.deepcopy(state))
                return optimizer

            ends.append(path(make, SHAPES, steps=5, begin=10, params=params)[0])
        assert apart(*ends) < 1e-13


# ---------------------------------------------------------------------- the derivation


def muon(theta, gradient, t, eta, memory, lr, weight_decay=0.1, momentum=0.95, nesterov=True, scale="jordan"):
    """θ ← (1 − α λ) θ − α s U Vᵀ, where U S Vᵀ is the momentum; in NumPy."""
    m = memory["m"] = momentum * memory.get("m", 0.0) + (1 - momentum) * gradient
    u, _, vt = np.linalg.svd(momentum * m + (1 - momentum) * gradient if nesterov else m, full_matrices=False)
    rows, columns = gradient.shape
    s = max(1, rows / columns) ** 0.5 if scale == "jordan" else 0.2 * max(rows, columns) ** 0.5
    return (1 - lr * eta * weight_decay) * theta - lr * eta * s * (u @ vt)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.8, "nesterov": False, "scale": "moonlight"}, {"weight_decay": 0.5, "momentum": 0.0}],
)
def test_exact_it_is_the_steepest_step_in_the_spectral_norm(options):
    named = {"adjust_lr_fn" if name == "scale" else name: value for name, value in options.items()}
    ours, _ = path(lambda p: optimizers.Muon(p, lr=0.02, method="exact", **named), SHAPES)
    for i, (param, shape) in enumerate(zip(ours, SHAPES, strict=True)):
        assert np.abs(param.numpy() - follow(muon, shape, i, lr=0.02, **options)).max() < 1e-11


def test_no_other_direction_of_its_norm_goes_down_more():
    g = gaussian(12, 7)
    param = torch.zeros(12, 7, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.Muon([param], lr=1.0, weight_decay=0.0, method="exact", adjust_lr_fn="moonlight")
    param.grad = g.clone()
    optimizer.step()
    step = -param.detach() / (0.2 * math.sqrt(12))
    assert singular_values(step) == pytest.approx(torch.ones(7).double())
    # ⟨G, U Vᵀ⟩ is the sum of G's singular values
    assert (g * step).sum().item() == pytest.approx(singular_values(g).sum().item())
    for seed in range(200):
        other = gaussian(12, 7, seed=seed + 1)
        assert (g * other).sum() / singular_values(other).max() < (g * step).sum()


@pytest.mark.parametrize("method", ["exact", "newton_schulz", "polar_express"])
def test_what_the_gradient_does_not_see_stays(method):
    param = gaussian(6, 5).requires_grad_()
    before = param.detach().clone()
    optimizer = optimizers.Muon([param], lr=0.1, weight_decay=0.0, method=method)
    param.grad = torch.zeros(6, 5, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(param.detach(), before)
    param.grad = gaussian(6, 1) @ gaussian(1, 5, seed=1)
    optimizer.step()
    moved = singular_values(param.detach() - before)
    assert moved[0] > 0.05
    assert moved[1] < 1e-9


# ---------------------------------------------------------------------- Newton and Schulz


def five_steps(polynomials, s):
    for a, b, c in polynomials:
        s = a * s + b * s**3 + c * s**5
    return s


def test_where_jordan_s_polynomial_sends_singular_values():
    s = torch.linspace(0.003, 1, 200_001, dtype=torch.float64)
    ends = five_steps([JORDAN] * 5, s)
    assert [ends.min().item(), ends.max().item()] == pytest.approx([0.6818, 1.2024], abs=1e-3)
    assert five_steps([JORDAN] * 5, torch.linspace(0.00107, 0.003, 1001, dtype=torch.float64)).min() > 0.5
    # It does not converge: about its fixed point it moves away, on the other side.
    a, b, c = JORDAN
    fixed = math.sqrt((-b - math.sqrt(b**2 - 4 * c * (a - 1))) / (2 * c))
    assert fixed == pytest.approx(0.868, abs=1e-3)
    assert a + 3 * b * fixed**2 + 5 * c * fixed**4 == pytest.approx(-1.58, abs=5e-3)


@pytest.mark.parametrize(
    ("shape", "low", "high", "share", "rms"),
    [
        ((64, 32), 0.682, 1.133, 0.81, 0.84),
        ((128, 128), 0.0, 1.2, 0.86, 0.89),  # the least value of a square one may be anything
        ((64, 256), 0.682, 1.134, 0.85, 0.86),
    ],
)
def test_where_gaussian_matrices_end(shape, low, high, share, rms):
    """The interval of singular values; what is left of the steepest descent, and of an orthogonal matrix's size."""
    shares, sizes = [], []
    for seed in range(10):
        g = gaussian(*shape, seed=seed)
        end = newton_schulz(g, [JORDAN] * 5, 1e-7)
        values = singular_values(end)
        assert values.min() > low - 1e-3
        assert high - 0.06 < values.max() < high + 2e-3
        shares.append(((g * end).sum() / singular_values(g).sum()).item())
        sizes.append(end.square().mean().sqrt().item() * math.sqrt(max(shape)))
    assert np.mean(shares) == pytest.approx(share, abs=0.015)
    assert np.mean(sizes) == pytest.approx(rms, abs=0.015)


def test_the_polar_express_is_the_published_one():
    """Of five steps, the numbers of the record-keeping speed run; from 0.001 on, values end within 0.1411 of 1."""
    published = [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ]
    assert np.abs(np.array(polar_express(5)) - published).max() < 1e-12
    s = torch.linspace(0.001, 1, 200_001, dtype=torch.float64)
    ends = five_steps(polar_express(5), s)
    assert [ends.min().item(), ends.max().item()] == pytest.approx([0.859, 1.141], abs=1e-3)
    for polynomials, least in (
        ([JORDAN] * 5, 0.47),
        ([(1.5, -0.5, 0.0)] * 5, 0.0076),
        ([(1.5, -0.5, 0.0)] * 15, 0.417),
    ):
        assert five_steps(polynomials, s).min().item() == pytest.approx(least, rel=3e-3)
    # With more steps it converges, as Jordan's does not.
    assert (five_steps(polar_express(8), s) - 1).abs().max() < 1e-4


def test_a_factor_makes_no_difference():
    g = gaussian(64, 32, dtype=torch.float32)
    for polynomials in ([JORDAN] * 5, polar_express(5)):
        ends = [newton_schulz(scale * g, polynomials, 1e-7) for scale in (1.0, 1e-3)]
        assert (ends[0] - ends[1]).abs().max() < 3e-6


def test_the_average_and_the_sum_have_one_direction():
    """Moonlight's momentum m ← μ m + g is the average's over 1 − μ."""

    def moonlight(theta, gradient, t, eta, memory):
        m = memory["m"] = 0.95 * memory.get("m", 0.0) + gradient
        scale = 0.02 * eta * max(1, m.shape[0] / m.shape[1]) ** 0.5
        return theta - scale * newton_schulz(torch.tensor(m), [JORDAN] * 5, 1e-7).numpy()

    ours, _ = path(lambda p: optimizers.Muon(p, lr=0.02, weight_decay=0.0, nesterov=False), SHAPES)
    for i, (param, shape) in enumerate(zip(ours, SHAPES, strict=True)):
        assert np.abs(param.numpy() - follow(moonlight, shape, i)).max() < 1e-11


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_steps_do_not_depend_on_the_condition(condition):
    """On tr(Wᵀ H W)/2 from an orthogonal W: U Vᵀ of H W is W, so that all its singular values fall by lr a step."""
    q, _ = torch.linalg.qr(gaussian(10, 10))
    h = q @ torch.diag(torch.logspace(0, -math.log10(condition), 10, dtype=torch.float64)) @ q.mT
    w = torch.linalg.qr(gaussian(10, 10, seed=1))[0].requires_grad_()
    optimizer = optimizers.Muon([w], lr=0.02, weight_decay=0.0, momentum=0.0, nesterov=False, method="exact")
    steps = 0
    while singular_values(w.detach()).max() > 0.021:
        w.grad = h @ w.detach()
        optimizer.step()
        steps += 1
    assert steps == 49 == math.ceil((1 - 0.021) / 0.02)


# ---------------------------------------------------------------------- shapes


def test_filters_are_matrices_and_have_their_factor():
    """Of 64 × 4 × 3 × 3: √(64/36). (The authors' code takes the last two dimensions, 3 and 3, and so 1.)"""
    filters, flat = gaussian(64, 4, 3, 3).requires_grad_(), gaussian(64, 36, seed=0).requires_grad_()
    with torch.no_grad():
        flat.copy_(filters.flatten(1))
    optimizer = optimizers.Muon([filters, flat], lr=1.0, weight_decay=0.0, method="exact")
    before = flat.detach().clone()
    for t in range(3):
        flat.grad = gaussian(64, 36, seed=t)
        filters.grad = flat.grad.view(64, 4, 3, 3).clone(memory_format=torch.channels_last)
        optimizer.step()
        assert torch.equal(filters.detach().flatten(1), flat.detach())
        if t == 0:
            assert singular_values(flat.detach() - before) == pytest.approx(torch.full((36,), 8 / 6).double())


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express", "exact"])
@pytest.mark.parametrize("row_beta", [None, 0.9])
def test_blocks_are_matrices_by_themselves(method, row_beta):
    whole = gaussian(24, 8).requires_grad_()
    parts = [part.clone().requires_grad_() for part in whole.detach().chunk(3)]
    options = {"lr": 0.1, "method": method, "row_beta": row_beta}
    fused, apart_ = (
        optimizers.Muon([{"params": [whole], "blocks": 3}], **options),
        optimizers.Muon(parts, **options),
    )
    for t in range(5):
        whole.grad = gaussian(24, 8, seed=t) * torch.linspace(0.1, 3, 24, dtype=torch.float64)[:, None]
        for part, grad in zip(parts, whole.grad.chunk(3), strict=True):
            part.grad = grad.clone()
        fused.step()
        apart_.step()
    assert (whole.detach() - torch.cat([part.detach() for part in parts])).abs().max() < 1e-12
    other = gaussian(24, 8).requires_grad_()
    one = optimizers.Muon([other], **options)
    for t in range(5):
        other.grad = gaussian(24, 8, seed=t) * torch.linspace(0.1, 3, 24, dtype=torch.float64)[:, None]
        one.step()
    assert (whole - other).abs().max() > 0.01


def test_normuon_brings_rows_to_one_size():
    """In NumPy, with the exact U Vᵀ: v ← β v + (1 − β) mean of squares of a row; o / √v, as long as o."""
    param = gaussian(12, 5).requires_grad_()
    theta, v = param.detach().numpy().copy(), np.zeros((12, 1))
    optimizer = optimizers.Muon([param], lr=0.1, weight_decay=0.0, momentum=0.0, method="exact", row_beta=0.8)
    for t in range(10):
        g = gaussian(12, 5, seed=t) * torch.linspace(0.1, 3, 12, dtype=torch.float64)[:, None]
        param.grad = g
        optimizer.step()
        u, _, vt = np.linalg.svd(g.numpy(), full_matrices=False)
        o = (12 / 5) ** 0.5 * u @ vt
        v = 0.8 * v + 0.2 * (o**2).mean(1, keepdims=True)
        step = o / np.sqrt(v)
        theta -= 0.1 * step * np.linalg.norm(o) / np.linalg.norm(step)
        assert np.abs(param.detach().numpy() - theta).max() < 1e-9
    sizes = np.abs(o).mean(1), np.abs(step).mean(1)
    assert sizes[1].std() / sizes[1].mean() < 0.6 * sizes[0].std() / sizes[0].mean()


# ---------------------------------------------------------------------- with AdamW, in one optimizer


def test_a_group_for_adamw_is_stepped_by_adamw():
    """With its own learning rate, betas and eps, under one scheduler for both."""

    def run(make):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        matrices, others = [model[0].weight], [model[0].bias, *model[2].parameters()]
        stepped = make(matrices, others)
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in stepped]
        for t in range(10):
            model.zero_grad()
            model(gaussian(4, 6, seed=t)).square().sum().backward()
            for each in (*stepped, *schedulers):
                each.step()
        return list(model.parameters())

    adam = {"lr": 3e-3, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2}
    both = run(
        lambda matrices, others: [
            optimizers.Muon([{"params": matrices}, {"params": others, "direction": "adamw", **adam}], lr=0.02)
        ]
    )
    two = run(lambda matrices, others: [optimizers.Muon(matrices, lr=0.02), torch.optim.AdamW(others, **adam)])
    assert apart(both, two) < 1e-12


def test_a_group_for_adamw_has_adamw_s_eps():
    optimizer = optimizers.Muon(
        [{"params": [torch.zeros(2, 2)]}, {"params": [torch.zeros(2)], "direction": "adamw"}], eps=1e-3
    )
    assert [group["eps"] for group in optimizer.param_groups] == [1e-3, 1e-8]
    assert optimizer.param_groups[1]["betas"] == (0.9, 0.95)


def test_names_of_the_scale():
    for given, kept in ((None, "original"), ("jordan", "original"), ("moonlight", "match_rms_adamw")):
        assert MuonDirection(adjust_lr_fn=given).hyper["adjust_lr_fn"] == kept


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("shape", [(5,), ()])
def test_a_vector_is_refused_before_anything_moves(shape):
    params = [torch.ones(2, 3, requires_grad=True), torch.ones(shape, requires_grad=True)]
    optimizer = optimizers.Muon(params)
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"shape .* fewer than two .* AdamW.*muon_groups\(model\)"):
        optimizer.step()
    assert torch.equal(params[0].detach(), torch.ones(2, 3))
    assert not optimizer.state[params[0]]


def test_complex_numbers_are_refused():
    param = torch.ones(2, 3, dtype=torch.complex64, requires_grad=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="complex"):
        optimizers.Muon([param]).step()


@pytest.mark.parametrize("fused", [False, True])
def test_rows_that_are_not_blocks_are_refused_before_anything_moves(fused):
    params = [torch.ones(6, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)]
    optimizer = optimizers.Muon([{"params": param} for param in params], blocks=2, fused=fused)
    for blocks in (2, 3):  # also of a group that was stepped before
        ends = [param.detach().clone() for param in params]
        optimizer.param_groups[1]["blocks"] = blocks
        for param in params:
            param.grad = torch.ones_like(param)
        if blocks == 2:
            optimizer.step()
            continue
        with pytest.raises(RuntimeError, match=r"shape \(4, 3\): its 4 rows are not blocks=3 matrices of as many"):
            optimizer.step()
        assert all(map(torch.equal, params, ends))
        assert {state["step"].item() for state in optimizer.state.values()} == {1}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"momentum": 1.0}, ValueError, r"momentum must lie in \[0, 1\)"),
        ({"adjust_lr_fn": "rms"}, ValueError, "adjust_lr_fn must be one of"),
        ({"ns_coefficients": (1.5, -0.5)}, TypeError, "ns_coefficients must be three numbers"),
        ({"ns_steps": 0}, ValueError, "ns_steps must lie in"),
        ({"method": "svd"}, ValueError, "method must be one of"),
        ({"precision": "float16"}, ValueError, "precision must be one of"),
        ({"blocks": 0}, ValueError, "blocks must lie in"),
        ({"row_beta": 1.0}, ValueError, "row_beta must lie in"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must lie in"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        optimizers.Muon([torch.zeros(2, 2)], **options)


@pytest.mark.parametrize("shape", [(20, 70), (70, 20), (3, 10, 40)])
@pytest.mark.parametrize("polynomials", [[JORDAN] * 5, [JORDAN], [JORDAN] * 2, list(polar_express(5))])
def test_wide_matrices_come_out_as_others_do(shape: tuple[int, ...], polynomials: Any) -> None:
    """In factors of the shorter side, with singular values down to what single precision can hold."""
    random = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(*shape[:-2], n, n, generator=random, dtype=torch.float64))[0]
        for n in shape[-2:]
    )
    values = torch.logspace(0, -6, min(shape[-2:]), dtype=torch.float64)
    start = left[..., : len(values)] * values @ right.mT[..., : len(values), :]
    x = start / start.norm(dim=(-2, -1), keepdim=True)
    for a, b, c in polynomials:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    assert torch.allclose(newton_schulz(start, polynomials, 1e-7), x, rtol=0, atol=1e-10)
    assert torch.allclose(newton_schulz(start.float(), polynomials, 1e-7).double(), x, rtol=0, atol=2e-4)
