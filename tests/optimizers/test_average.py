"""Averages of the iterates: equal to torch's AveragedModel, and to their definitions."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optimizers import SGD, Adam, Average


def iterates(stage, fused, steps=30):
    """The parameter after each step, and where it is evaluated then."""
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(50, generator=generator, dtype=torch.float64))
    optimizer = Adam([param], lr=0.1, extensions=[stage], fused=fused)
    path = []
    for _ in range(steps):
        param.grad = param.detach() + torch.randn(50, generator=generator, dtype=torch.float64)
        optimizer.step()
        theta = param.detach().clone()
        with optimizer.averaged():
            path.append((theta.numpy(), param.detach().clone().numpy()))
        assert torch.equal(param, theta)
    return path


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("stage", "weights"),
    [
        (Average(None), lambda n: np.full(n, 1 / n)),
        (Average(0.9, debias=True), lambda n: 0.1 * 0.9 ** np.arange(n)[::-1] / (1 - 0.9**n)),
        (Average(0.9), lambda n: np.array([0.9 ** (n - 1), *(0.1 * 0.9 ** np.arange(n - 1)[::-1])])),
    ],
    ids=["polyak", "debiased", "ema"],
)
def test_equals_its_definition(stage, weights, fused):
    path = iterates(stage, fused)
    for n in range(1, len(path) + 1):
        mean = sum(w * theta for w, (theta, _) in zip(weights(n), path[:n], strict=True))
        assert np.abs(path[n - 1][1] - mean).max() < 1e-14, n


@pytest.mark.parametrize(
    ("stage", "options"),
    [(Average(0.9), {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}), (Average(None), {})],
    ids=["ema", "polyak"],
)
def test_equals_torchs_averaged_model(stage, options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, extensions=[stage])
    averaged = AveragedModel(model, **options)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(16, 4, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(model)
    x = torch.randn(16, 4, dtype=torch.float64)
    assert (model(x) - averaged(x)).abs().max() > 1e-4
    with optimizer.averaged():
        assert (model(x) - averaged(x)).abs().max() < 1e-14


def test_it_begins_where_it_is_added():
    """A checkpoint without one goes on: the mean is that of the iterates from there on."""
    params = [nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    optimizer, other = SGD(params[:1], lr=0.1), SGD(params[1:], lr=0.1, extensions=[Average(None)])
    for _ in range(5):
        params[0].grad = params[0].detach().clone()
        optimizer.step()
    with torch.no_grad():
        params[1].copy_(params[0])
    other.load_state_dict(optimizer.state_dict())
    after = []
    for _ in range(3):
        params[1].grad = params[1].detach().clone()
        other.step()
        after.append(params[1].detach().clone())
    with other.averaged():
        assert torch.allclose(params[1], sum(after) / 3, rtol=1e-15)


def test_at_decay_0_nothing_is_remembered():
    param = nn.Parameter(torch.ones(3))
    optimizer = SGD([param], lr=0.1, extensions=[Average(0.0)])
    param.grad = torch.ones(3)
    optimizer.step()
    before = param.detach().clone()
    with optimizer.averaged():
        assert torch.equal(param, before)
    assert "average" not in optimizer.state[param]


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
        Average(decay)
