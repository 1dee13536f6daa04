"""AdaBound, AMSBound and their decoupled variants: equal to the authors' code, and the exact predictions."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

import optimizers
from optimizers.adabound import rate_bounds


def adabound(
    theta, gradient, t, eta, memory, lr, betas=(0.9, 0.999), final_lr=0.1, gamma=1e-3, amsbound=False,
    weight_decay=0.0, nesterov=False,
):  # fmt: skip
    """The authors' code (v. 2e928c3), line by line: the bounds follow the schedule."""
    beta1, beta2 = betas
    gradient = gradient + weight_decay * theta
    m = memory["m"] = beta1 * memory.get("m", 0.0) + (1 - beta1) * gradient
    v = memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
    if amsbound:
        v = memory["max"] = np.maximum(memory.get("max", 0.0), v)
    step_size = lr * eta * math.sqrt(1 - beta2**t) / (1 - beta1**t)
    lower = final_lr * eta * (1 - 1 / (gamma * t + 1))
    upper = final_lr * eta * (1 + 1 / (gamma * t))
    average = beta1 * m + (1 - beta1) * gradient if nesterov else m
    return theta - np.clip(step_size / (np.sqrt(v) + 1e-8), lower, upper) * average


GROUPS = [
    {"lr": 0.02},
    {"lr": 0.02, "gamma": 0.5, "final_lr": 0.03},
    {"lr": 0.01, "betas": (0.6, 0.9), "weight_decay": 0.3, "gamma": 0.1},
]


def test_adabound_equals_the_authors_code(follows):
    follows(optimizers.AdaBound, adabound, [*GROUPS, {"lr": 0.02, "gamma": 0.1, "amsbound": True}])


def test_amsbound_equals_the_authors_code(follows):
    follows(optimizers.AMSBound, lambda *args, **group: adabound(*args, **group, amsbound=True), GROUPS)


@pytest.mark.parametrize(("make", "amsbound"), [(optimizers.AdaBound, False), (optimizers.AMSBound, True)])
def test_nesterov(follows, make, amsbound):
    follows(
        lambda p: make(p, nesterov=True),
        lambda *args, **group: adabound(*args, **group, amsbound=amsbound, nesterov=True),
        GROUPS,
    )


@pytest.mark.parametrize("decay", ["lr", "schedule"])
@pytest.mark.parametrize(("make", "amsbound"), [(optimizers.AdaBoundW, False), (optimizers.AMSBoundW, True)])
def test_decoupled_decay(follows, make, amsbound, decay):
    def oracle(theta, gradient, t, eta, memory, lr, weight_decay=0.01, **group):
        step = adabound(theta, gradient, t, eta, memory, lr, amsbound=amsbound, **group)
        return step - (lr if decay == "lr" else 1.0) * eta * weight_decay * theta

    follows(lambda p: make(p, decay=decay), oracle, GROUPS)


def test_the_option_is_the_class(descend):
    gradients = np.random.default_rng(0).standard_normal(50)
    option = descend(lambda p: optimizers.AdaBound(p, amsbound=True), gradients)
    assert option == descend(lambda p: optimizers.AMSBound(p), gradients)


@pytest.mark.parametrize(
    ("t", "lower", "upper"),
    [(1, 1e-4, 100.1), (10, 0.00099, 10.1), (100, 0.0091, 1.1), (1000, 0.05, 0.2), (10_000, 0.0909, 0.11)],
)
def test_the_bounds(t, lower, upper):
    assert rate_bounds(0.1, 1e-3, t) == pytest.approx((lower, upper), rel=2e-3)


def test_every_rate_stays_inside_the_bounds():
    # With β₁ = 0 the step over the gradient is the rate itself.
    random = torch.Generator().manual_seed(0)
    scale = torch.logspace(-12, 6, 19, dtype=torch.float64)
    theta = torch.zeros(19, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.AdaBound([theta], betas=(0.0, 0.999), gamma=0.05)
    for t in range(1, 200):
        before = theta.detach().clone()
        theta.grad = scale * torch.randn(19, generator=random, dtype=torch.float64)
        optimizer.step()
        rate = (before - theta.detach()) / theta.grad
        lower, upper = 0.1 * (1 - 1 / (0.05 * t + 1)), 0.1 * (1 + 1 / (0.05 * t))
        assert (rate >= lower * (1 - 1e-6)).all()
        assert (rate <= upper * (1 + 1e-6)).all()
        assert rate.min().item() == pytest.approx(lower)
        assert rate.max().item() == pytest.approx(upper)


@pytest.mark.parametrize(("gamma", "difference"), [(1.0, 0.058), (1e2, 6.8e-4), (1e4, 6.9e-6), (1e8, 6.9e-10)])
def test_a_large_gamma_is_damped_momentum(descend, gamma, difference):
    bounded = descend(lambda p: optimizers.AdaBound(p, gamma=gamma), lambda x, t: x, 1.0, 200)
    x, m, damped = 1.0, 0.0, []
    for _ in range(200):
        m = 0.9 * m + 0.1 * x
        x -= 0.1 * m
        damped.append(x)
    gap = max(abs(a - b) for a, b in zip(bounded, damped, strict=True))
    assert gap == pytest.approx(difference, rel=0.015)  # known to two digits


def test_it_is_adam_until_the_bounds_bite(descend):
    # Savarese's construction: γ so small that no rate is clipped for t ≤ K.
    random = np.random.default_rng(0)
    gradients = np.where(random.random(1000) < 2 / 11, 10.0, -1.0)
    gamma = min(0.1 / (10 - 0.1), math.sqrt(0.5) / 0.1) / 1000
    assert gamma == pytest.approx(1.0101e-5, rel=1e-4)
    betas = (0.0, 0.5)
    bounded = descend(
        lambda p: optimizers.AdaBound(p, lr=0.1, betas=betas, final_lr=1.0, gamma=gamma, eps=0.0), gradients
    )
    free = descend(lambda p: optimizers.Adam(p, lr=0.1, betas=betas, eps=0.0), gradients)
    assert bounded == pytest.approx(free, abs=1e-12)


class TestSchedules:
    """The authors' code keeps first learning rates in a list: a new group is not stepped, a copy has no list."""

    @staticmethod
    def stepped(optimizer, theta, gradient=1.0):
        before = theta.item()
        theta.grad = torch.full_like(theta, gradient)
        optimizer.step()
        return before - theta.item()

    def number(self):
        return torch.tensor(0.0, dtype=torch.float64, requires_grad=True)

    def test_lr_zero_does_nothing_and_spoils_nothing(self):
        theta = self.number()
        optimizer = optimizers.AdaBound([theta], lr=0.0, eps=0.0)
        assert self.stepped(optimizer, theta) == 0.0
        theta, other = self.number(), self.number()
        one, two = optimizers.AdaBound([theta]), optimizers.AdaBound([other])
        one.param_groups[0]["lr"] = two.param_groups[0]["lr"] = 0.0
        assert self.stepped(one, theta) == self.stepped(two, other) == 0.0
        one.param_groups[0]["lr"] = 1e-3
        two.param_groups[0]["lr"] = 2e-3
        assert 2 * self.stepped(one, theta) == pytest.approx(self.stepped(two, other), rel=1e-12)

    def test_a_group_added_later_has_its_own_base(self):
        first, second, alone = self.number(), self.number(), self.number()
        optimizer = optimizers.AdaBound([first], lr=1e-3)
        scheduler = LambdaLR(optimizer, lambda t: 0.1)
        self.stepped(optimizer, first)
        scheduler.step()
        optimizer.add_param_group({"params": [second], "lr": 0.5})
        reference = optimizers.AdaBound([alone], lr=0.5)
        assert self.stepped(optimizer, second, 3.0) == self.stepped(reference, alone, 3.0) != 0.0

    def test_a_copy_and_a_resumed_one_go_on(self):
        theta = self.number()
        optimizer = optimizers.AdaBound([theta], gamma=10.0)
        self.stepped(optimizer, theta)
        optimizer.param_groups[0]["lr"] = 1e-4
        copied = copy.deepcopy(optimizer)
        other = theta.detach().clone().requires_grad_()
        resumed = optimizers.AdaBound([other], lr=7.0)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step = self.stepped(optimizer, theta)
        assert step == self.stepped(copied, copied.param_groups[0]["params"][0])
        assert step == self.stepped(resumed, other)


@pytest.mark.parametrize(("name", "value"), [("gamma", 0.0), ("final_lr", -0.1)])
def test_what_has_no_meaning_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        optimizers.AdaBound([torch.zeros(1)], **{name: value})
