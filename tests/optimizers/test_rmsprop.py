"""RMSprop: equal to torch's, and the lecture's own example (Tieleman and Hinton, 2012)."""

import numpy as np
import pytest
import torch

import optimizers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 0.9, "weight_decay": 0.05, "maximize": True},
        {"centered": True, "eps": 1e-4},
        {"momentum": 0.9, "lr": 0.005},
        {"momentum": 0.8, "centered": True, "weight_decay": 0.05, "eps": 1e-4, "lr": 0.005},
    ],
)
@pytest.mark.parametrize(
    "second",
    [
        {"lr": 0.003, "weight_decay": 0.1, "alpha": 0.95},
        {"lr": 0.003, "centered": True, "momentum": 0.5, "eps": 1e-3},
        {"lr": 0.003, "centered": False, "momentum": 0.0},
    ],
)
def test_equals_torch(same_as_torch, options, second):
    same_as_torch(optimizers.RMSprop, torch.optim.RMSprop, second, **options)


def test_only_the_state_in_use_is_kept():
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = optimizers.RMSprop(
        [{"params": params[0]}, {"params": params[1], "centered": True, "momentum": 0.9}]
    )
    for param in params:
        param.grad = torch.ones(2)
    optimizer.step()
    assert set(optimizer.state[params[0]]) == {"step", "square_avg"}
    assert set(optimizer.state[params[1]]) == {"step", "square_avg", "grad_avg", "momentum_buffer"}


def test_nesterov_is_sgds_of_the_quotients(follows):
    def oracle(theta, gradient, t, eta, memory, lr, momentum=0.9, alpha=0.99):
        memory["square"] = alpha * memory.get("square", 0.0) + (1 - alpha) * gradient**2
        quotient = gradient / (np.sqrt(memory["square"]) + 1e-8)
        memory["velocity"] = momentum * memory.get("velocity", 0.0) + quotient
        return theta - lr * eta * (quotient + momentum * memory["velocity"])

    def make(groups):
        return optimizers.RMSprop(groups, momentum=0.9, nesterov=True)

    follows(make, oracle, [{"lr": 0.01}, {"lr": 0.002, "momentum": 0.5, "alpha": 0.9}])


def test_a_constant_gradient_has_variance_zero_not_nan(descend):
    values = descend(lambda p: optimizers.RMSprop(p, lr=1e-9, alpha=0.5, centered=True, eps=1e-2), [0.1] * 200)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
def test_the_first_step_is_not_corrected_for_the_bias(descend, decay):
    (step,) = descend(lambda p: optimizers.RMSprop(p, lr=1.0, alpha=decay), [5.0])
    assert step == pytest.approx(-1 / np.sqrt(1 - decay), rel=1e-6)


@pytest.mark.parametrize(
    ("decay", "drift"), [(0.5, -4.27), (0.9, -0.680), (0.95, -0.335), (0.99, -0.0667), (0.999, -0.0067)]
)
def test_the_lectures_example_drifts_by_one_minus_the_decay(descend, decay, drift):
    # Nine gradients of 0.1, then one of −0.9: rprop moves by −8 per cycle, and a weight should stay where it is.
    cycles = 20 + round(8 / (1 - decay)) // 10
    values = descend(lambda p: optimizers.RMSprop(p, lr=1.0, alpha=decay, eps=0.0), ([0.1] * 9 + [-0.9]) * cycles)
    assert values[-1] - values[-11] == pytest.approx(drift, rel=0.01)


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="nesterov needs momentum above 0, got momentum=0"):
        optimizers.RMSprop([torch.zeros(1)], nesterov=True)
