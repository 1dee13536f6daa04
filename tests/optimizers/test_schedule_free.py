"""Schedule-Free: equal to the authors' code, and what a quadratic says of it (Defazio et al. 2024)."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from optimizers import (
    SGD,
    SGDW,
    Adam,
    AdamW,
    Average,
    Chain,
    DecoupledWeightDecay,
    Hyperball,
    Kahan,
    Lion,
    Lookahead,
    ScheduleFree,
    StateDtype,
)
from optimizers.adam import AdamDirection
from optimizers.engine.compiled.compiler import find


def authors(y, gradient, t, memory, lr, beta, decay=0.0, warmup=0, r=0.0, power=2.0, beta2=None, eps=1e-8):
    """The authors' two sequences, over SGD or, with β₂, over RMSprop as in their AdamW; returns y."""
    alpha = lr * min(1.0, t / warmup if warmup else 1.0)
    memory["lr_max"] = max(memory.get("lr_max", 0.0), alpha)
    weight = t**r * memory["lr_max"] ** power
    memory["sum"] = memory.get("sum", 0.0) + weight
    c = weight / memory["sum"]
    z = memory.get("z", y)
    if beta2 is not None:
        v = memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
        gradient = gradient / (np.sqrt(v / (1 - beta2**t)) + eps)
    gradient = gradient + decay * y
    memory["z"] = z - alpha * gradient
    return y + c * (z - y) + alpha * (beta * (1 - c) - 1) * gradient


SETTINGS = [
    {"beta": 0.9},
    {"beta": 0.5, "warmup": 20},
    {"beta": 0.98, "warmup": 7, "r": 1.5, "power": 1.0},
    {"beta": 1.0, "power": 0.0, "decay": 0.2},
    {"beta": 0.9, "warmup": 5, "decay": 0.1},
]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_equals_the_authors_code(setting, rule, fused):
    beta, decay = setting["beta"], setting.get("decay", 0.0)
    stage = ScheduleFree(beta, setting.get("warmup", 0), setting.get("r", 0.0), setting.get("power", 2.0))
    random = np.random.default_rng(0)
    theta = random.standard_normal(300)
    param, memory = nn.Parameter(torch.tensor(theta)), {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if rule == "sgd":
            optimizer = Chain([param], [DecoupledWeightDecay(decay)], lr=0.1, extensions=[stage], fused=fused)
        else:
            optimizer = AdamW([param], 0.1, betas=(0.0, 0.99), weight_decay=decay, extensions=[stage], fused=fused)
        assert find() is None or not fused or "Execution: compiled" in repr(optimizer)
        for t in range(1, 201):
            gradient = 0.3 * theta + random.standard_normal(300)
            beta2 = 0.99 if rule == "adamw" else None
            theta = authors(theta, gradient, t, memory, 0.1, beta2=beta2, **setting)
            param.grad = torch.tensor(gradient)
            optimizer.step()
    # The numbers are kept in float32; what is a count is exact.
    tolerance = 1e-12 if not setting.get("warmup") else 3e-7
    assert np.abs(param.detach().numpy() - theta).max() < tolerance
    with optimizer.averaged():
        x = theta + (1 - 1 / beta) * (memory["z"] - theta)
        assert np.abs(param.detach().numpy() - x).max() < tolerance
    assert "compiled" not in repr(optimizer) or optimizer.source()


def test_two_sequences_are_the_three_of_the_paper():
    """Equations 3–5 in float32, over 500 noisy steps of RMSprop: y and x differ by rounding alone."""
    random = np.random.default_rng(0)
    start = random.standard_normal(1000).astype(np.float32)
    x, z, v = start.copy(), start.copy(), np.zeros_like(start)
    param = nn.Parameter(torch.tensor(start))
    optimizer = AdamW([param], 2.5e-3, betas=(0.0, 0.999), weight_decay=0.1, extensions=[ScheduleFree(0.9)])
    for t in range(1, 501):
        y = np.float32(0.1) * z + np.float32(0.9) * x
        assert np.abs(param.detach().numpy() - y).max() < 1e-5
        noise = random.standard_normal(1000).astype(np.float32)
        g = y + noise
        param.grad = param.detach() + torch.tensor(noise)
        v = np.float32(0.999) * v + np.float32(1e-3) * g * g
        z = z - np.float32(2.5e-3) * (
            g / (np.sqrt(v / np.float32(1 - 0.999**t)) + np.float32(1e-8)) + np.float32(0.1) * y
        )
        x = (1 - np.float32(1 / t)) * x + np.float32(1 / t) * z
        optimizer.step()
    optimizer.eval()
    assert np.abs(param.detach().numpy() - x).max() < 1e-5


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_without_momentum_keeps_no_average_beside_it(amsgrad, fused):
    """At β₁ = 0 m_t is the gradient: the authors' two states, z and v, suffice, and not a bit of a step changes."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(40, 3)) for _ in range(2)]
    params[1].data.copy_(params[0].data)
    settings = {"betas": (0.0, 0.99), "amsgrad": amsgrad, "weight_decay": 0.1, "fused": fused}
    lean = AdamW(params[:1], 1e-2, extensions=[ScheduleFree(0.9)], **settings)
    (direction,) = (stage for stage in lean._stages if isinstance(stage, AdamDirection))
    full = AdamW(params[1:], 1e-2, extensions=[ScheduleFree(0.9)], **settings)
    (other,) = (stage for stage in full._stages if isinstance(stage, AdamDirection))
    other.keeps_copy = True
    for _ in range(5):
        for param in params:
            param.grad = torch.sin(3 * param.detach())
        lean.step()
        full.step()
    assert torch.equal(*params)
    assert set(full.state[params[1]]) - set(lean.state[params[0]]) == {"exp_avg"}
    assert direction.preconditioner(lean.state[params[0]], 5, direction.hyper).shape == (40, 3)
    # torch.optim's checkpoints have it, and so has what takes part in no average.
    plain = AdamW([params[0]], 1e-2, betas=(0.0, 0.99))
    plain.step()
    assert "exp_avg" in plain.state[params[0]]


def test_momentum_beside_it_is_remembered():
    param = nn.Parameter(torch.ones(3))
    optimizer = AdamW([param], 1e-2, betas=(0.5, 0.99), extensions=[ScheduleFree(0.9)])
    param.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(optimizer.state[param]["exp_avg"], torch.full((3,), 0.5))


# ---------------------------------------------------------------------- a noisy quadratic

T = 1000


def expected_loss(make, curvature, schedule=None):
    """E [a x²/2] · 10³ after T steps from 10 under noise of variance 1, exactly: all is linear in start and noise.

    The first coordinate has the start and no noise, each other one the noise of one step alone; squares add up.
    """
    param = nn.Parameter(torch.zeros(T + 1, dtype=torch.float64))
    with torch.no_grad():
        param[0] = 10.0
    optimizer = make([param])
    rate = optimizer.param_groups[0]["lr"]
    for t in range(T):
        if schedule:
            optimizer.param_groups[0]["lr"] = rate * schedule(t / T)
        param.grad = curvature * param.detach()
        param.grad[t + 1] += 1.0
        optimizer.step()
    with optimizer.averaged():
        return 500 * curvature * param.detach().square().sum().item()


def oracle(lr, curvature, beta):
    """The same by the recursion of y's and z's means and covariances, for arrays of lr."""
    y = z = np.full_like(lr, 10.0)
    yy = yz = zz = np.zeros_like(lr)
    for t in range(1, T + 1):
        c = 1 / t
        e = (1 - beta * (1 - c)) * lr
        a, b, d = 1 - c - e * curvature, c, -lr * curvature
        y, z = a * y + b * z, d * y + z
        yy, yz, zz = (
            a**2 * yy + 2 * a * b * yz + b**2 * zz + e**2,
            a * d * yy + (a + b * d) * yz + b * zz + e * lr,
            d**2 * yy + 2 * d * yz + zz + lr**2,
        )
    p, q = 1 / beta, 1 - 1 / beta
    return 500 * curvature * ((p * y + q * z) ** 2 + p * p * yy + 2 * p * q * yz + q * q * zz)


# Tuned learning rates of each row, and what they reach; the best that any estimate can is 1/(2aT): .5 and 10.
ROWS = [
    ("constant", 1, 0.00643, 1.74),
    ("constant", 0.05, 0.0688, 19.8),
    ("cosine", 1, 0.01445, 0.92),
    ("cosine", 0.05, 0.1612, 14.8),
    ("linear", 1, 0.01428, 0.87),
    ("linear", 0.05, 0.1607, 13.3),
    ("polyak", 1, 0.99, 0.50),
    ("polyak", 0.05, 4.85, 9.98),
]
SCHEDULES = {"constant": None, "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2, "linear": lambda x: 1 - x}


@pytest.mark.parametrize(("row", "curvature", "lr", "loss"), ROWS)
def test_what_schedules_and_the_mean_of_all_iterates_reach(row, curvature, lr, loss):
    """The mean of all iterates (β = 0) reaches the floor; no schedule does."""
    if row == "polyak":
        reached = expected_loss(lambda p: SGD(p, lr=lr, extensions=[Average(None)]), curvature)
    else:
        reached = expected_loss(lambda p: SGD(p, lr=lr), curvature, SCHEDULES[row])
    assert reached == pytest.approx(loss, rel=0.01)


@pytest.mark.parametrize(("curvature", "cosine"), [(1.0, 0.92), (0.05, 14.8)])
@pytest.mark.parametrize("beta", [0.9, 0.98, 1.0])
def test_what_schedule_free_reaches(beta, curvature, cosine):
    """Tuned finely it beats cosine, but the loss has many minima over lr: the start is forgotten just then."""
    rates = np.geomspace(1e-3, 0.5 / curvature, 4000)
    losses = oracle(rates, curvature, beta)
    best = losses.argmin()
    lr = float(rates[best])
    reached = expected_loss(lambda p: SGD(p, lr=lr, extensions=[ScheduleFree(beta)]), curvature)
    assert reached == pytest.approx(losses[best], rel=1e-6)
    assert 1 / (2 * curvature * T) * 1e3 < reached < cosine
    if curvature == 1.0:
        minima = (losses[1:-1] < losses[:-2]) & (losses[1:-1] < losses[2:])
        assert minima.sum() >= 4
        assert reached == pytest.approx({0.9: 0.608, 0.98: 0.611, 1.0: 0.612}[beta], rel=0.01)


@pytest.mark.parametrize(
    ("beta", "within", "end"), [(0.5, 4.0, 4.0), (0.9, 15.24, 19.8), (0.98, 22.3, 93.0)], ids=str
)
def test_the_largest_stable_learning_rate(beta, within, end):
    """Over 3000 steps, a product lr · a up to near 2/(1 − β) ends small, but z first grows far.

    `within`: up to which z stays below 10⁶; `end`: up to which the end is below the start.
    """
    products = torch.tensor([within * 0.99, within * 1.01, end * 0.99, end * 1.01], dtype=torch.float64)
    param = nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = SGD([param], lr=1.0, extensions=[ScheduleFree(beta)], fused=False)
    largest = torch.zeros(4, dtype=torch.float64)
    for _ in range(3000):
        param.grad = products * param.detach()
        optimizer.step()
        largest = largest.maximum(optimizer.state[param]["z"].abs())
    assert largest[0] < 1e6 < largest[1]
    assert abs(param[2].item()) < 1 < abs(param[3].item())
    assert end <= 2 / (1 - beta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_looks_at_the_average_move_nothing(dtype):
    """(The authors' code goes there and back by arithmetic: an entry in 200 moves in its last place.)"""
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(10_000, generator=generator).to(dtype))
    optimizer = AdamW([param], 0.01, extensions=[ScheduleFree()])
    for _ in range(20):
        param.grad = torch.randn(10_000, generator=generator).to(dtype)
        optimizer.step()
    before, z = param.detach().clone(), optimizer.state[param]["z"].clone()
    for _ in range(100):
        optimizer.eval()
        assert not torch.equal(param, before)
        optimizer.train()
    assert torch.equal(param, before)
    assert torch.equal(optimizer.state[param]["z"], z)


# ---------------------------------------------------------------------- numbers, mixes, what is refused


@pytest.mark.parametrize("fused", [False, True])
def test_the_weights_stay_exact_in_a_long_run(fused):
    """After a million steps of one rate the next has the weight 10⁻⁶, though numbers are kept in float32."""
    param = nn.Parameter(torch.zeros(2))
    optimizer = SGD([param], lr=0.3, extensions=[ScheduleFree()], fused=fused)
    param.grad = torch.zeros(2)
    optimizer.step()
    assert optimizer.state[param]["weight_sum"].item() == 1
    with torch.no_grad():
        optimizer.state[param]["weight_sum"].fill_(1e6)
        optimizer.state[param]["step"].fill_(1e6)
    for _ in range(100):
        optimizer.step()
    assert optimizer.state[param]["weight_sum"].item() == 1e6 + 100


def test_a_rate_that_rises_gives_earlier_steps_less_weight(descend):
    param = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = SGD([param], lr=0.0, extensions=[ScheduleFree()])
    for lr, weight in ((0.0, 1), (0.1, 1), (0.1, 2), (0.2, 1.5), (0.4, 1.375)):
        optimizer.param_groups[0]["lr"] = lr
        param.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        assert optimizer.state[param]["weight_sum"].item() == pytest.approx(weight, rel=1e-6)
        assert param.isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda p, e: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, extensions=e),
        lambda p, e: SGDW(p, lr=0.1, momentum=0.9, weight_decay=0.1, extensions=e),
        lambda p, e: Lion(p, lr=0.1, weight_decay=0.1, extensions=e),
    ],
)
def test_the_first_step_is_the_directions_own(make):
    """c_1 = 1: x_1 = z_1 = y_1 less the update; y_2 is the same."""
    plain, averaged = nn.Parameter(torch.linspace(-1, 1, 5)), nn.Parameter(torch.linspace(-1, 1, 5))
    for param, extensions in ((plain, []), (averaged, [ScheduleFree()])):
        optimizer = make([param], extensions)
        param.grad = torch.linspace(1, 2, 5)
        optimizer.step()
    assert torch.allclose(plain, averaged, atol=1e-7)


@pytest.mark.parametrize("fused", [False, True])
def test_bfloat16_weights_with_kahans_sum_and_z_in_float32(fused):
    """They end where float32 weights do; with z in bfloat16, whose places are 2⁻⁸ apart, it would stand still."""
    ends = {}
    for dtype, stages in (
        (torch.float32, []),
        (torch.bfloat16, [Kahan(), StateDtype(torch.float32)]),
        (torch.bfloat16, [Kahan()]),
    ):
        param = nn.Parameter(torch.linspace(1, 2, 64).to(dtype))
        optimizer = SGD([param], lr=1e-3, extensions=[ScheduleFree(), *stages], fused=fused)
        for _ in range(200):
            param.grad = torch.ones_like(param)
            optimizer.step()
        with optimizer.averaged():
            ends[dtype, len(stages)] = (param.detach().float() - torch.linspace(1, 2, 64)).mean().item()
    exact, kept, lost = ends.values()
    assert exact == pytest.approx(-0.1005, rel=1e-3)
    assert kept == pytest.approx(exact, abs=2e-3)
    assert abs(lost) < 0.02


@pytest.mark.parametrize("fused", [False, True])
def test_a_rate_that_falls_is_refused_before_anything_moves(fused):
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.2}]
    optimizer = AdamW(groups, lr=0.1, extensions=[ScheduleFree()], fused=fused)

    def step(other=optimizer, mine=params):
        for param in mine:
            param.grad = torch.ones_like(param)
        other.step()

    step()
    optimizer.param_groups[1]["lr"] = 0.3
    step()
    before = copy.deepcopy([params, optimizer.state_dict()])
    optimizer.param_groups[1]["lr"] = 0.29
    with pytest.raises(
        ValueError, match=r"parameter group 1: 0\.29 is below an earlier one \(0\.3\).*ScheduleFree"
    ):
        step()
    assert all(torch.equal(x, y) for x, y in zip(params, before[0], strict=True))
    assert all(s["step"] == 2 for s in optimizer.state_dict()["state"].values())
    other = AdamW(copy.deepcopy(groups), lr=0.1, extensions=[ScheduleFree()], fused=fused)
    other.load_state_dict(before[1])
    other.param_groups[0]["lr"] = 0.01
    with pytest.raises(ValueError, match=r"parameter group 0: 0\.01 is below an earlier one \(0\.1\)"):
        step(other, [param for group in other.param_groups for param in group["params"]])
    optimizer.param_groups[1]["lr"] = 0.3
    step()


def test_a_rate_in_a_tensor_that_falls_is_refused():
    param = nn.Parameter(torch.ones(3))
    rate = torch.tensor(0.1)
    optimizer = SGD([param], lr=rate, extensions=[ScheduleFree()])
    param.grad = torch.ones(3)
    for _ in range(3):
        optimizer.step()
    rate.mul_(0.5)
    with pytest.raises(ValueError, match="is below an earlier one"):
        optimizer.step()


def test_its_own_warm_up_is_no_fall_and_a_scheduler_may_warm_up():
    param = nn.Parameter(torch.ones(3))
    optimizer = SGD([param], lr=0.1, extensions=[ScheduleFree(warmup_steps=5)])
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    for _ in range(10):
        param.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
    assert optimizer.state[param]["lr_max"].item() == pytest.approx(0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    scheduler.step()
    with pytest.raises(ValueError, match="take the scheduler away"):
        optimizer.step()


@pytest.mark.parametrize("other", [Lookahead(), Average(), Hyperball()], ids=lambda stage: type(stage).__name__)
def test_what_moves_the_iterates_or_averages_them_too_is_refused(other):
    for stages in ([ScheduleFree(), other], [other, ScheduleFree()]):
        with pytest.raises(ValueError, match=f"ScheduleFree and {type(other).__name__} do not go together: "):
            Adam([nn.Parameter(torch.ones(1))], extensions=stages)


@pytest.mark.parametrize(
    ("hyper", "name"),
    [({"beta": 0.0}, "beta"), ({"beta": 1.1}, "beta"), ({"warmup_steps": -1}, "warmup_steps"), ({"r": -1.0}, "r")],
)
def test_numbers_out_of_range(hyper, name):
    with pytest.raises(ValueError, match=f"^{name} must lie in"):
        ScheduleFree(**hyper)
