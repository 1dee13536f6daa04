"""Prodigy: equal to the authors' code, and what it finds out about how far away a solution is."""

import copy
import math

import numpy as np
import pytest
import torch

import optimizers
from optimizers import Prodigy


class Oracle:
    """Algorithm 4 as the authors' code has it, in float64, for all parameters at once."""

    def __init__(
        self, thetas, betas=(0.9, 0.999), beta3=None, eps=1e-8, weight_decay=0.0, decouple=True,
        use_bias_correction=False, safeguard_warmup=False, d0=1e-6, d_coef=1.0, growth_rate=math.inf,
    ):  # fmt: skip
        self.betas, self.beta3 = betas, math.sqrt(betas[1]) if beta3 is None else beta3
        self.eps, self.decay, self.decouple = eps, weight_decay, decouple
        self.correct, self.safeguard = use_bias_correction, safeguard_warmup
        self.d0, self.coefficient, self.growth = d0, d_coef, growth_rate
        self.d = self.largest = d0
        self.r, self.k = 0.0, 0
        self.theta = [theta.copy() for theta in thetas]
        self.first = [theta.copy() for theta in thetas]
        self.m, self.v, self.s = ([0.0 * theta for theta in thetas] for _ in range(3))

    def step(self, gradients, lr=1.0, left_out=()):
        (b1, b2), d, k = self.betas, self.d, self.k
        self.k += 1
        rate = d * lr * (math.sqrt(1 - b2 ** (k + 1)) / (1 - b1 ** (k + 1)) if self.correct else 1.0)
        r, norm = self.beta3 * self.r, 0.0
        members = [i for i in range(len(self.theta)) if i not in left_out and lr > 0]
        for i in members:
            g = gradients[i] + (0.0 if self.decouple else self.decay * self.theta[i])
            r += d / self.d0 * rate * np.sum(g * (self.first[i] - self.theta[i]))
            self.m[i] = b1 * self.m[i] + d * (1 - b1) * g
            self.v[i] = b2 * self.v[i] + d**2 * (1 - b2) * g**2
            self.s[i] = self.beta3 * self.s[i] + d / self.d0 * (d if self.safeguard else rate) * g
            norm += np.abs(self.s[i]).sum()
        if norm == 0:
            return
        self.r, estimate = r, self.coefficient * r / norm
        if self.d == self.d0:
            self.d = max(self.d, estimate)
        self.largest = max(self.largest, estimate)
        self.d = min(self.largest, self.d * self.growth)
        for i in members:
            if self.decouple:
                self.theta[i] = self.theta[i] - self.decay * rate * self.theta[i]
            self.theta[i] = self.theta[i] - rate * self.m[i] / (np.sqrt(self.v[i]) + self.d * self.eps)


def starts(shapes=((5,), (2, 3), ())):
    random = np.random.default_rng(0)
    return [random.standard_normal(shape) + 2.0 for shape in shapes]


def check(rates=lambda t: 1.0, shapes=((5,), (2, 3), ()), steps=50, fused=False, **settings):
    """Steps on a quadratic with a little noise, in two groups; d is rounded to float32 between steps."""
    random = np.random.default_rng(1)
    oracle = Oracle(starts(shapes), **settings)
    params = [torch.tensor(start).requires_grad_() for start in oracle.theta]
    optimizer = Prodigy([{"params": params[:1]}, {"params": params[1:]}], fused=fused, **settings)
    for t in range(1, steps + 1):
        noise = [0.1 * random.standard_normal(theta.shape) for theta in oracle.theta]
        for param, extra in zip(params, noise, strict=True):
            param.grad = param.detach() + torch.tensor(extra)
        for group in optimizer.param_groups:
            group["lr"] = rates(t)
        oracle.step([theta + extra for theta, extra in zip(oracle.theta, noise, strict=True)], rates(t))
        optimizer.step()
        assert optimizer.d == pytest.approx(oracle.d, rel=1e-6), t
        for param, theta in zip(params, oracle.theta, strict=True):
            assert np.linalg.norm(param.detach().numpy() - theta) < 5e-5 * (np.linalg.norm(theta) + 1), t
    assert oracle.d > 100 * oracle.d0
    return optimizer


SETTINGS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decouple": False},
    {"use_bias_correction": True},
    {"safeguard_warmup": True},
    {"betas": (0.8, 0.99), "eps": 1e-3},
    {"betas": (0.0, 0.99)},
    {"d_coef": 0.5, "beta3": 0.9, "d0": 1e-4},
    {"growth_rate": 1.5, "d0": 1e-4},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_equals_the_authors_code(settings, fused):
    optimizer = check(fused=fused, **settings)
    assert f"Execution: {'compiled' if fused else 'eager'}" in repr(optimizer)


@pytest.mark.parametrize("safeguard_warmup", [False, True])
def test_under_a_schedule_that_begins_and_ends_at_zero(safeguard_warmup):
    def rate(t):
        return min((t - 1) / 10, 1.0) * max(0.0, (45 - t) / 45)

    check(rate, safeguard_warmup=safeguard_warmup)


@pytest.mark.parametrize("fused", [False, True])
def test_sums_are_over_all_of_all_tensors(fused):
    check(shapes=((1024, 512), (3, 4), (5,)), steps=12, fused=fused, d0=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_group_with_rate_zero_is_left_out(fused):
    oracle = Oracle(starts())
    params = [torch.tensor(start).requires_grad_() for start in oracle.theta]
    optimizer = Prodigy([{"params": params[:1]}, {"params": params[1:], "lr": 0.0}], fused=fused)
    for t in range(30):
        for param in params:
            param.grad = param.detach().clone()
        if t == 20:
            optimizer.param_groups[1]["lr"] = 1.0
        oracle.step([theta.copy() for theta in oracle.theta], left_out=(1, 2) if t < 20 else ())
        optimizer.step()
        for param, theta in zip(params, oracle.theta, strict=True):
            assert np.abs(param.detach().numpy() - theta).max() < 1e-4, t


@pytest.mark.parametrize("fused", [False, True])
def test_two_rates_are_refused(fused):
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = Prodigy([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}], fused=fused)
    for param in params:
        param.grad = torch.ones(2)
    match = r"Prodigy has one learning rate .* lr of parameter group 0 1.0, and of parameter group 1 0.5:"
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    assert all(torch.equal(param, torch.ones(2)) for param in params)
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert not torch.equal(params[0], torch.ones(2))


def test_a_checkpoint_of_two_rates_is_loaded_whole_and_refused_by_the_step():
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = Prodigy([{"params": params[:1]}, {"params": params[1:], "lr": 0.0}])
    for param in params:
        param.grad = torch.ones(2)
    optimizer.step()
    checkpoint = copy.deepcopy(optimizer.state_dict())
    checkpoint["param_groups"][1]["lr"] = 0.5
    optimizer.load_state_dict(checkpoint)
    assert optimizer.state_dict()["state"].keys() == {0, 1}
    with pytest.raises(ValueError, match="Prodigy has one learning rate"):
        optimizer.step()
    optimizer.param_groups[1]["lr"] = 1.0
    optimizer.step()


@pytest.mark.parametrize("fused", [(False, False), (True, True), (True, False), (False, True)])
def test_the_first_group_decides_however_it_is_stepped(fused):
    ends = []
    for coefs, each in (((2.0, 0.5), fused), ((2.0, 2.0), (False, False))):
        params = [torch.linspace(1, 2 + i, 6, requires_grad=True) for i in range(2)]
        groups = [{"params": [p], "d_coef": c, "fused": f} for p, c, f in zip(params, coefs, each, strict=True)]
        optimizer = Prodigy(groups, d0=1e-3)
        for _ in range(4):
            for param in params:
                param.grad = param.detach().clone()
            optimizer.step()
        ends.append(optimizer.d)
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
    assert ends[0] > 2e-3


def descent(scale=1.0, d0=1e-6, steps=400, eps=1e-8, factor=1.0):
    """‖x − x*‖₁ from 0; the path, and d after each step."""
    goal = scale * torch.linspace(1, 5, 10, dtype=torch.float64)
    x = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = Prodigy([x], d0=d0, eps=eps)
    path, estimates = [], []
    for _ in range(steps):
        x.grad = factor * (x.detach() - goal).sign()
        optimizer.step()
        path.append(x.detach().clone())
        estimates.append(optimizer.d)
    return torch.stack(path), estimates


def test_d_grows_geometrically_to_less_than_the_distance():
    """About 2.5 steps per factor of 10 of d₀, to between .8 and 1.1 where the distance is 5."""
    expected = {1e-8: (3.9e-5, 18, 1.06), 1e-6: (3.9e-3, 13, 0.94), 1e-4: (0.39, 8, 0.83), 1e-2: (0.89, 3, 0.89)}
    needed = []
    for d0, (tenth, steps, final) in expected.items():
        _, d = descent(d0=d0)
        assert d[9] == pytest.approx(tenth, rel=0.015)
        needed.append(sum(one <= 0.1 for one in d))
        assert needed[-1] == steps
        assert d[-1] == pytest.approx(final, abs=0.006)
        assert 0.8 < d[-1] < 1.1
        assert d == sorted(d)
        assert d[-1] <= 5
    assert np.diff(needed).tolist() == [-5, -5, -5]


def test_a_factor_on_the_loss_changes_nothing():
    plain, _ = descent(eps=1e-300)
    scaled, _ = descent(eps=1e-300, factor=1000.0)
    assert (plain - scaled).abs().max() < 1e-4
    twice, _ = descent(eps=1e-300, factor=1024.0)  # without rounding
    assert (plain - twice).abs().max() < 4e-14


def test_d_scales_with_the_distance():
    (_, near), (_, far) = descent(), descent(scale=100.0, steps=400)
    assert near[-1] == pytest.approx(0.94, abs=0.006)
    assert far[-1] == pytest.approx(106, rel=0.15)


@pytest.mark.parametrize("fused", [False, True])
def test_it_goes_on_from_a_checkpoint_bit_for_bit_and_maximizes(fused):
    def make(params, **options):
        groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}]
        return Prodigy(groups, fused=fused, **options)

    def run(optimizer, params, steps, sign=1):
        for t in steps:
            for i, param in enumerate(params):
                random = torch.Generator().manual_seed(100 * t + i)
                noise = torch.randn(param.shape, generator=random, dtype=param.dtype)
                param.grad = sign * (param.detach() + 0.1 * noise)
            optimizer.step()
        return [param.detach().clone() for param in params]

    params = [torch.tensor(start).requires_grad_() for start in starts()]
    optimizer = make(params)
    run(optimizer, params, range(12))
    again = [param.detach().clone().requires_grad_() for param in params]
    other = make(again)
    assert other.d == 1e-6
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.d == optimizer.d > 1e-6
    ends = run(optimizer, params, range(12, 20)), run(other, again, range(12, 20))
    assert all(map(torch.equal, *ends))
    up = [torch.tensor(start).requires_grad_() for start in starts()]
    assert all(map(torch.equal, run(make(up, maximize=True), up, range(20), sign=-1), ends[0]))


def test_eager_and_compiled_steps_agree_in_float32():
    ends = []
    for fused in (False, True):
        random = torch.Generator().manual_seed(0)
        theta = torch.randn(300, 500, generator=random).requires_grad_()
        optimizer = Prodigy([theta], d0=1e-4, fused=fused)
        for _ in range(20):
            theta.grad = theta.detach() + 0.1 * torch.randn(300, 500, generator=random)
            optimizer.step()
        ends.append((theta.detach(), optimizer.d))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-4)
    assert (ends[0][0] - ends[1][0]).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"d0": 0.0}, ValueError, r"d0 must lie in \(0, inf\), got 0.0"),
        ({"growth_rate": 0.5}, ValueError, r"growth_rate must lie in \[1, inf\], got 0.5"),
        ({"beta3": 1.0}, ValueError, r"beta3 must lie in \[0, 1\), got 1.0"),
        ({"betas": (0.9,)}, TypeError, "betas must be two numbers"),
        ({"decouple": "yes"}, TypeError, "decouple must be True or False"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        Prodigy([torch.zeros(1)], **options)


def test_d_is_the_estimate_before_the_first_step():
    assert optimizers.create("prodigy", [torch.zeros(1)], d0=1e-4).d == 1e-4
