"""Cautious steps and decay: the papers' rules, and what the mask and the rescaling do (Liang et al. 2024)."""

import math

import numpy as np
import pytest
import torch

import optimizers
from optimizers import (
    SGD,
    AdamW,
    Cautious,
    CautiousWeightDecay,
    Chain,
    LearningRateDropout,
    Lion,
    RMSprop,
    Signum,
)


def adam(gradient, t, memory, betas=(0.9, 0.999), eps=1e-8):
    m = memory["m"] = betas[0] * memory.get("m", 0.0) + (1 - betas[0]) * gradient
    v = memory["v"] = betas[1] * memory.get("v", 0.0) + (1 - betas[1]) * gradient**2
    return m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)


def cautious_adamw(
    theta, gradient, t, eta, memory, lr, weight_decay=0.1, cautious_rescale="mean", cautious_eps=None
):  # fmt: skip
    """θ − η s [u g > 0] u − η λ θ."""
    u = adam(gradient, t, memory)
    mask = u * gradient > 0
    scale = {
        "mean": lambda eps: 1 / max(mask.mean(), 1e-3 if eps is None else eps),
        "count": lambda eps: mask.size / (mask.sum() + (1 if eps is None else eps)),
        "none": lambda eps: 1.0,
        "off": lambda eps: 1.0,
    }[cautious_rescale](cautious_eps)
    masked = u if cautious_rescale == "off" else mask * u
    return theta - lr * eta * (scale * masked + weight_decay * theta)


def make(params, **options):
    return AdamW(params, **{"lr": 0.02, "weight_decay": 0.1, "extensions": [Cautious()], **options})


GROUPS = [
    {"lr": 0.02},
    {"lr": 0.02, "cautious_rescale": "count", "weight_decay": 0.3},
    {"lr": 0.02, "cautious_rescale": "count", "cautious_eps": 1e-8},
    {"lr": 0.02, "cautious_rescale": "none"},
    {"lr": 0.02, "cautious_rescale": "off"},
    {"lr": 0.02, "cautious_eps": 0.7},
]


@pytest.mark.parametrize("fused", [False, True])
def test_equals_the_paper(follows, fused):
    follows(lambda p: make(p, fused=fused), cautious_adamw, GROUPS)


@pytest.mark.parametrize("rescale", ["mean", "count"])
def test_coordinates_are_counted_in_the_whole_tensor(whole, rescale):
    whole(make, cautious_adamw, lr=0.5, cautious_rescale=rescale)


def test_it_is_sound(sound):
    sound(make, {"lr": 0.01, "cautious_rescale": "count"})


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("rescale", "size", "kept", "scale"),
    [
        ("count", 1, 1, 0.5),
        ("mean", 1, 1, 1.0),
        ("count", 10, 10, 0.909),
        ("mean", 10, 10, 1.0),
        ("count", 500, 250, 1.992),
        ("count", 1000, 500, 1.996),
        ("mean", 1000, 500, 2.0),
        ("none", 1000, 500, 1.0),
        ("mean", 2000, 1, 1000.0),
        ("mean", 10, 0, 0.0),
    ],
)
def test_the_scale(rescale, size, kept, scale, fused):
    """A velocity of 10 everywhere, and a gradient that agrees in `kept` coordinates: they move by 9 + 1 times s."""
    theta = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([theta], lr=0.0, momentum=1.0, extensions=[Cautious(rescale)], fused=fused)
    theta.grad = torch.full_like(theta, 10.0)
    optimizer.step()  # with rate 0
    assert torch.equal(theta, torch.zeros_like(theta))
    optimizer.param_groups[0]["lr"] = 1.0
    theta.grad = torch.where(torch.arange(size) < kept, 1.0, -1.0).double()
    optimizer.step()
    assert theta.detach()[:kept] / -11.0 == pytest.approx(torch.full((kept,), scale).double(), rel=1e-3)
    assert torch.equal(theta.detach()[kept:], torch.zeros(size - kept).double())


@pytest.mark.parametrize(
    ("beta", "share", "growth", "greed"),
    [(0.9, 0.6436, 1.37, 2.0), (0.95, 0.6011, 1.40, 2.6), (0.99, 0.5451, 1.42, 5.1)],
)
def test_on_noise_alone(beta, share, growth, greed):
    """The share that moves is ½ + asin(√(1 − β²))/π; at an unchanged rate the step is larger, and greedier."""
    size, steps = 20_000, int(8 / (1 - beta))
    theta, plain = (torch.zeros(size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    settings = {"lr": 1.0, "momentum": beta, "dampening": beta}
    both = [SGD([theta], **settings, extensions=[Cautious()]), SGD([plain], **settings)]
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        theta.grad = torch.randn(size, generator=random, dtype=torch.float64)
        plain.grad = theta.grad
        before = theta.detach().clone(), plain.detach().clone()
        for optimizer in both:
            optimizer.step()
    u, v = before[0] - theta.detach(), before[1] - plain.detach()
    assert (u != 0).double().mean().item() == pytest.approx(share, abs=0.012)
    assert share == pytest.approx(0.5 + math.asin(math.sqrt(1 - beta**2)) / math.pi, abs=1e-4)
    assert (u.norm() / v.norm()).item() == pytest.approx(growth, abs=0.03)
    assert (u @ theta.grad / (v @ theta.grad)).item() == pytest.approx(greed, rel=0.1)


def steps_needed(lr, extensions):
    """Of a heavy ball of momentum .95 to f < 10⁻⁶ on a quadratic of 20 dimensions and condition 10³."""
    curvature = torch.logspace(-3, 0, 20, dtype=torch.float64)
    theta = torch.ones(20, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([theta], lr=lr, momentum=0.95, extensions=extensions, fused=False)
    steps = 0
    while (curvature * theta.detach() ** 2).sum() >= 2e-6:
        theta.grad = curvature * theta.detach()
        optimizer.step()
        steps += 1
    return steps


def test_all_of_the_gain_on_a_quadratic_is_the_rescaling():
    rates = (0.05, 0.2, 0.5)
    plain = [steps_needed(lr, []) for lr in rates]
    masked = [steps_needed(lr, [Cautious("none")]) for lr in rates]
    cautious = [steps_needed(lr, [Cautious()]) for lr in rates]
    assert plain == [3106, 740, 277]
    assert masked == [3106, 740, 261]
    assert masked == pytest.approx(plain, rel=0.06)
    # (These depend on the last digits: a mask flips where a velocity passes 0.)
    assert cautious == pytest.approx([1611, 198, 100], rel=0.05)


@pytest.mark.parametrize("fused", [False, True])
def test_no_step_goes_up_the_gradient(fused):
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(50, generator=random, dtype=torch.float64).requires_grad_()
    optimizer = Lion([theta], lr=0.1, extensions=[Cautious()], fused=fused)
    for _ in range(20):
        before = theta.detach().clone()
        theta.grad = torch.randn(50, generator=random, dtype=torch.float64)
        optimizer.step()
        assert ((before - theta.detach()) * theta.grad >= 0).all()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rescale", ["mean", "count"])
def test_an_empty_tensor_has_nothing_to_count(rescale, fused):
    theta = torch.zeros(0, requires_grad=True)
    optimizer = SGD([theta], momentum=0.9, extensions=[Cautious(rescale)], fused=fused)
    theta.grad = torch.zeros(0)
    optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_small_numbers_have_a_sign_and_nan_is_not_masked(fused):
    theta = torch.zeros(3, requires_grad=True)
    optimizer = SGD([theta], lr=1.0, momentum=0.9, extensions=[Cautious("none")], fused=fused)
    theta.grad = torch.tensor([1e-25, math.nan, math.inf])  # 1e-25² is 0 in float32
    optimizer.step()
    assert theta[0].item() == pytest.approx(-1e-25)
    assert theta[1].isnan()
    assert theta[2].item() == -math.inf


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda e: SGD([torch.zeros(1)], extensions=e), "Momentum"),
        (lambda e: RMSprop([torch.zeros(1)], extensions=e), "RMSpropDirection"),
        (lambda e: optimizers.Adagrad([torch.zeros(1)], extensions=e), "Adagrad"),
        (lambda e: optimizers.Adadelta([torch.zeros(1)], extensions=e), "Adadelta"),
        (lambda e: Signum([torch.zeros(1)], momentum=0.0, extensions=e), "SignDirection"),
        (lambda e: AdamW([torch.zeros(1)], betas=(0.0, 0.99), extensions=e), "AdamDirection"),
        (lambda e: Lion([torch.zeros(1)], betas=(0.0, 0.99), extensions=e), "LionDirection"),
        (lambda e: Chain([torch.zeros(1)], [], lr=0.1, extensions=e), "a chain without a direction"),
    ],
)
def test_where_the_mask_would_always_be_one_it_is_refused(build, name):
    with pytest.raises(ValueError, match=rf"Cautious .* and with {name}.* every one: .* Give it momentum"):
        build([Cautious()])
    build([])


@pytest.mark.parametrize("name", [n for n in optimizers.list() if n not in ("adadelta", "adagrad")])
def test_whatever_remembers_can_be_cautious(name):
    momentum = {"momentum": 0.9} if name in ("sgd", "sgdw", "rmsprop") else {}
    optimizers.create(name, [torch.zeros(1)], extensions=[Cautious()], **momentum)


def test_it_is_masked_by_dropout_as_well():
    theta = torch.zeros(10_000, requires_grad=True)
    optimizer = SGD([theta], lr=1.0, momentum=0.9, extensions=[Cautious(), LearningRateDropout(0.5)])
    theta.grad = torch.ones(10_000)
    optimizer.step()
    assert (theta != 0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert set(theta.unique().tolist()) == {0.0, -1.0}


# ---------------------------------------------------------------------- cautious weight decay


def cautious_decay(theta, gradient, t, eta, memory, lr, cautious_weight_decay=0.2):
    """θ − η (u + λ [u θ > 0] θ)."""
    u = adam(gradient, t, memory)
    return theta - lr * eta * (u + cautious_weight_decay * (u * theta > 0) * theta)


def make_decay(params, **options):
    given = {"lr": 0.02, "weight_decay": 0.0, "extensions": [CautiousWeightDecay(0.2)], **options}
    return AdamW(params, **given)


@pytest.mark.parametrize("fused", [False, True])
def test_decay_equals_the_paper(follows, fused):
    groups = [{"lr": 0.02}, {"lr": 0.01, "cautious_weight_decay": 0.9}, {"lr": 0.1, "cautious_weight_decay": 0.0}]
    follows(lambda p: make_decay(p, fused=fused), cautious_decay, groups)


def test_decay_is_sound(sound):
    sound(make_decay, {"lr": 0.01, "cautious_weight_decay": 0.5})


@pytest.mark.parametrize("fused", [False, True])
def test_where_a_step_leads_away_from_zero_there_is_no_decay(fused):
    theta = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = SGD([theta], lr=0.5, extensions=[CautiousWeightDecay(0.1)], fused=fused)
    theta.grad = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 0.0], dtype=torch.float64)
    optimizer.step()
    assert theta.tolist() == pytest.approx([0.45, 1.5, -1.5, -0.45, -0.5, 1.0], abs=1e-15)


def test_the_minimum_stays_where_it_is(descend):
    """On (x − 1)²/2, from either side; plain decay ends at 1 / (1 + λ)."""

    def gradient(x, t):
        return x - 1.0

    for start in (0.0, 3.0):
        for stage, end in (CautiousWeightDecay(0.5), 1.0), (optimizers.DecoupledWeightDecay(0.5), 1 / 1.5):
            path = descend(lambda p, e=stage: Chain(p, [], lr=0.1, extensions=[e]), gradient, start, 400)
            assert path[-1] == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda e: AdamW([torch.zeros(1)], extensions=e), "DecoupledWeightDecay"),
        (lambda e: SGD([torch.zeros(1)], weight_decay=0.1, extensions=e), "L2"),
        (lambda e: optimizers.LAMB([torch.zeros(1)], extensions=e), "TrustRatio"),
        (lambda e: optimizers.Prodigy([torch.zeros(1)], weight_decay=0.1, extensions=e), "ProdigyDirection"),
    ],
)
def test_two_decays_are_refused(build, name):
    with pytest.raises(ValueError, match=rf"{name} decays .* beside CautiousWeightDecay, .*: set weight_decay=0"):
        build([CautiousWeightDecay(0.1)])
    build([])


@pytest.mark.parametrize(
    ("stage", "options", "error", "match"),
    [
        (Cautious, {"rescale": "sum"}, ValueError, r"rescale must be one of \['mean', 'count', 'none', 'off'\]"),
        (Cautious, {"eps": 0.0}, ValueError, r"eps must lie in \(0, inf\), got 0.0"),
        (CautiousWeightDecay, {"weight_decay": -1.0}, ValueError, r"weight_decay must lie in \[0, inf\)"),
    ],
)
def test_wrong_values_are_refused(stage, options, error, match):
    with pytest.raises(error, match=match):
        stage(**options)
