"""AdamW and SGDW: equal to torch's AdamW, and the two conventions of decay of Loshchilov and Hutter (2019)."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import optimizers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3, "maximize": True},
        {"amsgrad": True},
        {"weight_decay": 0.0},
    ],
)
@pytest.mark.parametrize(
    "second", [{"lr": 0.05, "weight_decay": 0.2, "betas": (0.5, 0.9)}, {"lr": 0.05, "amsgrad": True}]
)
def test_adamw_equals_torch(same_as_torch, options, second):
    same_as_torch(optimizers.AdamW, torch.optim.AdamW, second, lr=0.02, **options)


def adamw(theta, gradient, t, eta, memory, lr, weight_decay=1e-2, betas=(0.9, 0.999)):
    """Algorithm 2 of the paper, line 12: the multiplier η_t scales both terms, α the first alone."""
    beta1, beta2 = betas
    m = memory["m"] = beta1 * memory.get("m", 0.0) + (1 - beta1) * gradient
    v = memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
    direction = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + 1e-8)
    return theta - eta * (lr * direction + weight_decay * theta)


def sgdw(theta, gradient, t, eta, memory, lr, weight_decay=1e-5, momentum=0.9, nesterov=False):
    """Algorithm 1 of the paper, lines 8 and 9; with Nesterov's momentum at the look-ahead point."""
    m = memory["m"] = momentum * memory.get("m", 0.0) + eta * lr * gradient
    step = eta * lr * gradient + momentum * m if nesterov else m
    return theta - step - eta * weight_decay * theta


def test_adamw_with_the_papers_decay(follows):
    groups = [{"lr": 0.05}, {"lr": 0.01, "weight_decay": 0.1, "betas": (0.6, 0.9)}]
    follows(lambda p: optimizers.AdamW(p, decay="schedule"), adamw, groups)


def test_sgdw(follows):
    groups = [
        {"lr": 0.05, "weight_decay": 0.02},
        {"lr": 0.01},
        {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.5, "nesterov": True},
        {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.0},
    ]
    follows(lambda p: optimizers.SGDW(p, momentum=0.9), sgdw, groups)


def test_sgdw_with_torchs_decay(follows):
    def oracle(theta, gradient, t, eta, memory, lr, weight_decay):
        return sgdw(theta, gradient, t, eta, memory, lr, lr * weight_decay)

    follows(lambda p: optimizers.SGDW(p, momentum=0.9, decay="lr"), oracle, [{"lr": 0.05, "weight_decay": 0.2}])


def test_without_momentum_l2_is_decoupled_decay_times_lr(descend):
    # Proposition 1
    gradients = np.random.default_rng(0).standard_normal(50)
    coupled = descend(lambda p: optimizers.SGD(p, lr=0.1, weight_decay=0.3), gradients, 1.0)
    decoupled = descend(lambda p: optimizers.SGDW(p, lr=0.1, weight_decay=0.03), gradients, 1.0)
    assert decoupled == pytest.approx(coupled, abs=1e-14)


def test_the_decay_does_not_depend_on_the_gradients_scale():
    # Pure noise of scale s from w₀ = 1: AdamW decays to (1 − α λ)ᵀ whatever s, Adam with L2 to exp(−α λ T / s).
    lr, decay, steps, many = 3e-3, 0.1, 1000, 2000
    mean = {}
    for name, scale in (("AdamW", 0.1), ("AdamW", 10.0), ("Adam", 1.0), ("Adam", 10.0)):
        random = torch.Generator().manual_seed(0)
        w = torch.ones(many, requires_grad=True)
        optimizer = getattr(optimizers, name)([w], lr=lr, weight_decay=decay)
        for _ in range(steps):
            w.grad = scale * torch.randn(many, generator=random)
            optimizer.step()
        mean[name, scale] = w.mean().item()
    exact = (1 - lr * decay) ** steps
    assert mean["AdamW", 0.1] == pytest.approx(exact, rel=0.01)
    assert mean["AdamW", 10.0] == pytest.approx(exact, rel=0.01)
    assert mean["Adam", 1.0] == pytest.approx(math.exp(-lr * decay * steps), rel=0.01)
    assert mean["Adam", 10.0] == pytest.approx(math.exp(-lr * decay * steps / 10), rel=0.01)


def decayed(make, schedule=None, steps=6, start=None, state=None):
    """Where decay alone takes the number 1, and the optimizer."""
    theta = torch.tensor(1.0 if start is None else start, dtype=torch.float64, requires_grad=True)
    optimizer = make([theta])
    if state is not None:
        optimizer.load_state_dict(state)
    scheduler = schedule(optimizer) if schedule else None
    for _ in range(steps):
        theta.grad = torch.zeros((), dtype=torch.float64)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return theta.item(), optimizer


class TestTheBaseOfTheSchedule:
    """η_t = α_t / α: α is what a scheduler calls `initial_lr`, else the group's learning rate at construction."""

    @staticmethod
    def make(params, lr=0.5):
        return optimizers.AdamW(params, lr=lr, weight_decay=0.1, decay="schedule")

    def test_without_a_schedule_the_learning_rate_does_not_matter(self):
        for lr in (1e-6, 0.5, 10.0):
            assert decayed(lambda p, lr=lr: self.make(p, lr))[0] == pytest.approx(0.9**6, abs=1e-15)

    def test_a_scheduler_multiplies_it(self):
        value, _ = decayed(self.make, lambda o: LambdaLR(o, lambda t: 1 / (1 + t)))
        assert value == pytest.approx(math.prod(1 - 0.1 / (1 + t) for t in range(6)), abs=1e-15)

    def test_a_learning_rate_set_by_hand_multiplies_it(self):
        _, optimizer = decayed(self.make, steps=1)
        optimizer.param_groups[0]["lr"] = 0.25
        theta = optimizer.param_groups[0]["params"][0]
        before = theta.item()
        optimizer.step()
        assert theta.item() == pytest.approx(before * 0.95, abs=1e-15)

    def test_a_first_step_at_lr_zero_does_nothing_and_spoils_nothing(self):
        # torch.distributed.checkpoint makes such a step to create the state.
        theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        optimizer = self.make([theta])
        theta.grad = torch.zeros((), dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        assert theta.item() == 1.0
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step()
        assert theta.item() == pytest.approx(0.9, abs=1e-15)

    def test_a_base_of_zero_counts_as_one(self):
        assert decayed(lambda p: self.make(p, 0.0))[0] == 1.0

    def test_it_survives_a_checkpoint_and_a_copy(self):
        value, optimizer = decayed(self.make, steps=1)
        optimizer.param_groups[0]["lr"] = 0.05
        state = copy.deepcopy(optimizer.state_dict())
        resumed, _ = decayed(lambda p: self.make(p, 99.0), steps=1, start=value, state=state)
        assert resumed == pytest.approx(0.9 * 0.99, abs=1e-15)
        assert copy.deepcopy(optimizer).param_groups[0]["base_lr"] == 0.5

    def test_every_group_has_its_own(self):
        params = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(3)]
        optimizer = self.make([{"params": params[:1]}, {"params": params[1:2], "lr": 0.01}])
        scheduler = CosineAnnealingLR(optimizer, 4)
        for _ in range(2):
            for param in params[:2]:
                param.grad = torch.zeros((), dtype=torch.float64)
            optimizer.step()
            scheduler.step()
        optimizer.add_param_group({"params": params[2:], "lr": 3.0})
        params[2].grad = torch.zeros((), dtype=torch.float64)
        optimizer.step()
        etas = [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(3)]
        expected = math.prod(1 - 0.1 * eta for eta in etas)
        assert [p.item() for p in params] == pytest.approx([expected, expected, 0.9], abs=1e-15)

    def test_with_the_learning_rate_in_a_tensor(self):
        value, _ = decayed(
            lambda p: self.make(p, torch.tensor(0.5, dtype=torch.float64)),
            lambda o: LambdaLR(o, lambda t: 1 / (1 + t)),
        )
        assert value == pytest.approx(math.prod(1 - 0.1 / (1 + t) for t in range(6)), abs=1e-15)


def test_a_wrong_convention_is_refused():
    with pytest.raises(ValueError, match=r"decay must be one of \['lr', 'schedule'\], got 'both'"):
        optimizers.AdamW([torch.zeros(1)], decay="both")
