"""Each extension against the paper's equations in float64, with random numbers of an independent generator."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import optimizers
from optimizers import (
    SGD,
    Adam,
    AdamW,
    ClipNorm,
    ClipValue,
    GradientDropout,
    GradientNoise,
    LearningRateDropout,
    Lookahead,
    RMSprop,
)

Array = NDArray[np.float64]
SHAPES = ((3, 4), (5,), ())
STEPS = 12


def mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """lowbias32 in NumPy's unsigned arithmetic."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def uniform(seed: int, index: int, step: int, shape: Sequence[int], stream: int) -> Array:
    """Uniform numbers in [0, 1) for every coordinate of a parameter, row by row."""
    key = np.array([seed % 2**32], np.uint32)
    for word in (seed >> 32, index, step, stream):
        key = mix(key) + np.uint32((word + 0x9E3779B9) % 2**32)
    low = np.arange(math.prod(shape), dtype=np.uint32)
    drawn = mix(mix(low ^ mix(key)) + key)
    return ((drawn >> np.uint32(8)) / 2**24).reshape(tuple(shape))


def normal(seed: int, index: int, step: int, shape: Sequence[int]) -> Array:
    u, v = (uniform(seed, index, step, shape, stream) for stream in (0, 1))
    result: Array = np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v)
    return result


def starts() -> list[Array]:
    generator = np.random.default_rng(0)
    return [np.asarray(generator.standard_normal(shape)) for shape in SHAPES]


def gradients(t: int) -> list[Array]:
    generator = np.random.default_rng(t)
    return [np.asarray(generator.standard_normal(shape)) for shape in SHAPES]


def trajectory(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Iterator[list[Array]]:
    """What the package does, step by step."""
    params = [nn.Parameter(torch.tensor(start)) for start in starts()]
    optimizer = make(params)
    for t in range(1, STEPS + 1):
        for param, grad in zip(params, gradients(t), strict=True):
            param.grad = torch.tensor(grad)
        optimizer.step()
        yield [param.detach().numpy().copy() for param in params]


def adam(m: Array, v: Array, g: Array, t: int) -> tuple[Array, Array, Array]:
    """Adam's direction with the usual constants."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return m, v, m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def check(
    make: Any, step: Callable[[int, int, Array, Array, dict[str, Any]], Array], tolerance: float = 1e-12
) -> None:
    """`step(t, index, theta, gradient, memory)` is the oracle; `memory` starts empty for every parameter."""
    thetas, memories = starts(), [{} for _ in SHAPES]
    for t, ours in enumerate(trajectory(make), start=1):
        for i, grad in enumerate(gradients(t)):
            thetas[i] = step(t, i, thetas[i], grad, memories[i])
            assert np.abs(ours[i] - thetas[i]).max() < tolerance, (t, i)


# ---------------------------------------------------------------------- gradient noise


@pytest.mark.parametrize(("eta", "gamma", "seed"), [(0.3, 0.55, 0), (1.0, 0.0, 2**40 + 9), (0.01, 2.0, 2**63 - 1)])
def test_gradient_noise(eta: float, gamma: float, seed: int) -> None:
    def step(t: int, i: int, theta: Array, g: Array, memory: dict[str, Any]) -> Array:
        variance = eta / (1 + (t - 1)) ** gamma  # the paper's t is 0 at the first step
        return theta - 0.1 * (g + math.sqrt(variance) * normal(seed, i, t, theta.shape))

    # The noise is float32: its cosine and logarithm are right to about 1e-6.
    check(lambda p: SGD(p, lr=0.1, extensions=[GradientNoise(eta, gamma, seed)]), step, 5e-6)


def test_gradient_noise_reaches_both_moments_of_adam() -> None:
    def step(t: int, i: int, theta: Array, g: Array, memory: dict[str, Any]) -> Array:
        g = g + math.sqrt(0.5 / t**0.55) * normal(4, i, t, theta.shape)
        memory["m"], memory["v"], d = adam(memory.get("m", 0.0 * g), memory.get("v", 0.0 * g), g, t)
        return theta - 0.01 * d

    check(lambda p: Adam(p, lr=0.01, extensions=[GradientNoise(0.5, seed=4)]), step, 5e-6)


def test_two_parameters_of_one_shape_get_different_noise() -> None:
    params = [nn.Parameter(torch.zeros(100)) for _ in range(2)]
    for param in params:
        param.grad = torch.zeros(100)
    SGD(params, lr=1.0, extensions=[GradientNoise(1.0), LearningRateDropout(0.999)]).step()
    assert abs(torch.corrcoef(torch.stack([p.detach() for p in params]))[0, 1]) < 0.5
    assert (params[0] == params[1]).sum() <= 2


# ---------------------------------------------------------------------- dropout


@pytest.mark.parametrize("keep", [0.5, 0.9, 1e-3])
def test_learning_rate_dropout_masks_what_would_move_the_parameter(keep: float) -> None:
    """The moments see the whole gradient, the decay is masked, and nothing is rescaled."""

    def step(t: int, i: int, theta: Array, g: Array, memory: dict[str, Any]) -> Array:
        memory["m"], memory["v"], d = adam(memory.get("m", 0.0 * g), memory.get("v", 0.0 * g), g, t)
        mask = uniform(6, i, t, theta.shape, 3) < keep
        return theta - mask * (0.01 * d + 0.01 * 0.1 * theta)

    check(lambda p: AdamW(p, lr=0.01, weight_decay=0.1, extensions=[LearningRateDropout(keep, 6)]), step)


def test_learning_rate_dropout_leaves_the_parameter_bit_for_bit_even_at_infinity() -> None:
    param = nn.Parameter(torch.full((1000,), 1 / 3))
    param.grad = torch.full((1000,), math.inf)
    SGD([param], lr=0.1, extensions=[LearningRateDropout(0.5)]).step()
    kept = torch.tensor(uniform(0, 0, 1, (1000,), 3) < 0.5)
    assert torch.equal(torch.isinf(param), kept)
    assert torch.equal(param[~kept], torch.full((1000,), 1 / 3)[~kept])


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_gradient_dropout_shows_the_moments_zeros(keep: float) -> None:
    def step(t: int, i: int, theta: Array, g: Array, memory: dict[str, Any]) -> Array:
        g = g * (uniform(6, i, t, theta.shape, 2) < keep) + 0.1 * theta  # L2 is added after the mask
        memory["m"], memory["v"], d = adam(memory.get("m", 0.0 * g), memory.get("v", 0.0 * g), g, t)
        return theta - 0.01 * d

    check(lambda p: Adam(p, lr=0.01, weight_decay=0.1, extensions=[GradientDropout(keep, 6)]), step)


@pytest.mark.parametrize(
    ("extension", "of_adam", "of_momentum"),
    [
        (LearningRateDropout(0.5), 0.5, 0.5),
        (LearningRateDropout(0.9), 0.9, 0.9),
        (GradientDropout(0.5), math.sqrt(0.5), 0.5),
        (GradientDropout(0.9), math.sqrt(0.9), 0.9),
    ],
    ids=repr,
)
def test_mean_step_under_a_constant_gradient(extension: Any, of_adam: float, of_momentum: float) -> None:
    """Dropping the learning rate scales every step by p; dropping gradients scales Adam's by √p."""
    steps, size = 400, 2000
    for make, expected in [
        (lambda p: Adam(p, lr=1e-3, extensions=[extension]), of_adam * steps),
        (lambda p: SGD(p, lr=1e-3, momentum=0.9, extensions=[extension]), of_momentum * 10 * (steps - 9)),
    ]:
        param = nn.Parameter(torch.zeros(size))
        param.grad = torch.ones(size)
        optimizer = make([param])
        for _ in range(steps):
            optimizer.step()
        assert -1e3 * param.detach().mean().item() == pytest.approx(expected, rel=0.01)


def test_the_masks_of_the_two_dropouts_are_independent() -> None:
    param = nn.Parameter(torch.zeros(100_000))
    param.grad = torch.ones_like(param)
    SGD([param], lr=1.0, extensions=[LearningRateDropout(0.5), GradientDropout(0.5)]).step()
    assert (param != 0).double().mean().item() == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 1e5))


# ---------------------------------------------------------------------- the order in the gradient's place


def test_clipping_noise_dropout_and_decay_come_in_this_order() -> None:
    def step(t: int, i: int, theta: Array, g: Array, memory: dict[str, Any]) -> Array:
        norm = math.sqrt(sum((one**2).sum() for one in gradients(t)))
        g = np.clip(g * min(1, 2.0 / (norm + 1e-6)), -0.5, 0.5)
        g = g + math.sqrt(0.3 / t**0.55) * normal(0, i, t, theta.shape)
        g = g * (uniform(0, i, t, theta.shape, 2) < 0.7)
        return theta - 0.1 * (g + 0.2 * theta)

    every = [GradientDropout(0.7), ClipValue(0.5), GradientNoise(0.3), ClipNorm(2.0)]
    for extensions in (every, every[::-1]):
        check(lambda p, extensions=extensions: SGD(p, lr=0.1, weight_decay=0.2, extensions=extensions), step, 5e-6)


# ---------------------------------------------------------------------- clipping


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e6])
def test_clip_norm_is_torchs(norm_type: float, max_norm: float) -> None:
    params = [nn.Parameter(torch.tensor(start)) for start in starts()]
    ours = [nn.Parameter(torch.tensor(start)) for start in starts()]
    theirs = torch.optim.SGD(params, lr=0.1)
    optimizer = SGD(
        [{"params": ours[:1]}, {"params": ours[1:]}], lr=0.1, extensions=[ClipNorm(max_norm, norm_type)]
    )
    for t in range(STEPS):
        for p, q, grad in zip(params, ours, gradients(t), strict=True):
            p.grad, q.grad = torch.tensor(grad), torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type)
        theirs.step()
        optimizer.step()
        assert all(torch.equal(torch.tensor(g), q.grad) for g, q in zip(gradients(t), ours, strict=True))
    # torch's SGD rounds once where two operations round twice.
    assert all(torch.allclose(p, q, rtol=0, atol=1e-14) for p, q in zip(params, ours, strict=True))


def test_clip_norm_of_a_group_uses_the_norm_of_all() -> None:
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    optimizer = SGD(
        [{"params": params[:1], "clip_norm_max_norm": math.inf}, {"params": params[1:]}],
        lr=1.0,
        extensions=[ClipNorm(1.0)],
    )
    params[0].grad, params[1].grad = torch.tensor([30.0]), torch.tensor([40.0])
    optimizer.step()
    assert params[0].item() == -30.0
    assert params[1].item() == pytest.approx(-40 / 50)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_the_norm_of_a_complex_gradient_is_that_of_its_parts(norm_type: float) -> None:
    pair = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    number = nn.Parameter(torch.zeros(2, dtype=torch.complex128))
    pair.grad = torch.tensor([[3.0, -4.0], [1.0, 2.0]], dtype=torch.float64)
    number.grad = torch.view_as_complex(pair.grad.clone())
    for param in (pair, number):
        optimizers.SGD([param], 1.0, extensions=[ClipNorm(1.0, norm_type)]).step()
    torch.testing.assert_close(torch.view_as_real(number.detach()), pair.detach(), rtol=0, atol=1e-15)


def test_clip_value_is_torchs() -> None:
    params = [nn.Parameter(torch.tensor(start)) for start in starts()]
    ours = [nn.Parameter(torch.tensor(start)) for start in starts()]
    theirs, optimizer = torch.optim.Adam(params), Adam(ours, extensions=[ClipValue(0.3)])
    for t in range(STEPS):
        for p, q, grad in zip(params, ours, gradients(t), strict=True):
            p.grad, q.grad = torch.tensor(grad), torch.tensor(grad)
        torch.nn.utils.clip_grad_value_(params, 0.3)
        theirs.step()
        optimizer.step()
    assert all(torch.allclose(p, q, rtol=0, atol=1e-12) for p, q in zip(params, ours, strict=True))


@pytest.mark.parametrize("neutral", [ClipNorm(math.inf), ClipNorm(1e9), ClipValue(math.inf)], ids=repr)
def test_clipping_that_clips_nothing_changes_nothing(neutral: Any) -> None:
    ends = [list(trajectory(lambda p, e=e: Adam(p, extensions=e)))[-1] for e in ([], [neutral])]
    assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True))


# ---------------------------------------------------------------------- Lookahead


def momentum_sgd(memory: dict[str, Any], g: Array) -> Array:
    memory["b"] = 0.9 * memory.get("b", 0.0) + g
    return 0.1 * memory["b"]


@pytest.mark.parametrize("inner", ["keep", "reset", "average"])
@pytest.mark.parametrize(("k", "alpha"), [(1, 0.3), (3, 0.5), (5, 0.8)])
def test_lookahead(inner: str, k: int, alpha: float) -> None:
    def step(t: int, i: int, theta: Array, g: Array, memory: dict[str, Any]) -> Array:
        slow = memory.setdefault("slow", theta)  # φ_0 = θ_0
        theta = theta - momentum_sgd(memory, g)
        if t % k == 0:
            theta = memory["slow"] = slow + alpha * (theta - slow)
            if inner == "reset":
                memory["b"] = 0.0 * g
            if inner == "average":
                slow_b = memory.get("slow_b", 0.0)
                memory["b"] = memory["slow_b"] = slow_b + alpha * (memory["b"] - slow_b)
        return theta

    check(lambda p: SGD(p, lr=0.1, momentum=0.9, extensions=[Lookahead(k, alpha, inner)]), step)


def test_lookahead_with_one_step_is_sgd_with_a_smaller_rate() -> None:
    ends = [
        list(trajectory(make))[-1]
        for make in (lambda p: SGD(p, lr=0.1, extensions=[Lookahead(1, 0.3)]), lambda p: SGD(p, lr=0.03))
    ]
    assert all(np.allclose(a, b, rtol=0, atol=1e-14) for a, b in zip(*ends, strict=True))


def routed(name: str, params: list[Any]) -> list[Any]:
    """Groups that the optimizer takes: Muon has vectors and numbers stepped by AdamW."""
    vectors = [param for param in params if param.dim() < 2]
    matrices = [{"params": [param for param in params if param.dim() >= 2]}]
    return (
        [*matrices[: len(params) - len(vectors)], {"params": vectors, "direction": "adamw"}]
        if name == "muon"
        else params
    )


@pytest.mark.parametrize("name", optimizers.list())
@pytest.mark.parametrize("inner", ["reset", "average"])
def test_the_inner_state_of_every_optimizer(name: str, inner: str) -> None:
    """After a sync the velocity is what it should be; optimizers without one say so."""
    momentum = {"momentum": 0.9} if name in ("sgd", "sgdw", "rmsprop") else {}
    params = [nn.Parameter(torch.tensor(start)) for start in starts()]
    if name in ("adadelta", "adafactor", "adagrad", "shampoo", "soap"):
        with pytest.raises(ValueError, match=f"inner='{inner}' needs a velocity, but [A-Z][a-z]+.* has none"):
            optimizers.create(name, params, extensions=[Lookahead(2, 0.5, inner)])
        return
    again = [nn.Parameter(torch.tensor(s)) for s in starts()]
    optimizer = optimizers.create(name, routed(name, params), extensions=[Lookahead(2, 0.5, inner)], **momentum)
    plain = optimizers.create(name, routed(name, again), **momentum)
    for t in range(2):
        for p, q, grad in zip(params, again, gradients(t), strict=True):
            p.grad, q.grad = torch.tensor(grad), torch.tensor(grad)
        optimizer.step()
        plain.step()
    for p, q in zip(params, again, strict=True):
        state, other = optimizer.state[p], plain.state[q]
        velocities = [k for k in other if k.startswith("momentum_buffer") or k in ("exp_avg", "exp_avg_slow")]
        assert velocities
        for key in other:
            expected = other[key] * ((0 if inner == "reset" else 0.5) if key in velocities else 1)
            assert torch.allclose(state[key], expected, rtol=0, atol=1e-14), key
            assert (f"slow_{key}" in state) == (inner == "average" and key in velocities)


@pytest.mark.parametrize("make", [lambda p, e: SGD(p, extensions=e), lambda p, e: RMSprop(p, extensions=e)])
def test_inner_needs_a_velocity_in_use(make: Any) -> None:
    with pytest.raises(ValueError, match=r"inner='reset' needs a velocity, but"):
        make([nn.Parameter(torch.zeros(1))], [Lookahead(inner="reset")])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("inner", ["reset", "average"])
def test_a_group_that_keeps_no_velocity_is_stepped_as_with_keep(inner: str, fused: bool) -> None:
    def path(inner: str) -> list[Tensor]:
        params = [nn.Parameter(torch.full((3,), value, dtype=torch.float64)) for value in (1.0, 2.0)]
        groups = [{"params": params[:1]}, {"params": params[1:], "momentum": 0.0}]
        optimizer = SGD(groups, lr=0.1, momentum=0.9, extensions=[Lookahead(2, 0.5, inner)], fused=fused)
        for _ in range(5):
            for param in params:
                param.grad = param.detach().clone()
            optimizer.step()
        return [param.detach() for param in params]

    (with_velocity, without), (kept, plain) = path(inner), path("keep")
    assert torch.equal(without, plain)
    assert not torch.equal(with_velocity, kept)


def test_slow_weights_are_there_for_evaluation() -> None:
    params = [nn.Parameter(torch.tensor(start)) for start in starts()]
    optimizer = Adam(params[:2], lr=0.1, extensions=[Lookahead(5, 0.5)])
    optimizer.add_param_group({"params": params[2:], "lookahead_k": None})
    with Lookahead.slow_weights(optimizer):  # none yet
        assert all(np.array_equal(p.detach(), start) for p, start in zip(params, starts(), strict=True))
    for t in range(7):
        for param, grad in zip(params, gradients(t), strict=True):
            param.grad = torch.tensor(grad)
        optimizer.step()
    fast = [p.detach().clone() for p in params]
    with torch.no_grad(), Lookahead.slow_weights(optimizer):
        assert not torch.is_grad_enabled()
    with Lookahead.slow_weights(optimizer):
        assert torch.is_grad_enabled()
        assert all(torch.equal(p, optimizer.state[p]["slow_param"]) for p in params[:2])
        assert not any(torch.equal(p, q) for p, q in zip(params[:2], fast[:2], strict=True))
        assert torch.equal(params[2], fast[2])
    assert all(torch.equal(p, q) for p, q in zip(params, fast, strict=True))
    with suppress(ZeroDivisionError), Lookahead.slow_weights(optimizer):
        raise ZeroDivisionError
    assert all(torch.equal(p, q) for p, q in zip(params, fast, strict=True))
    with pytest.raises(ValueError, match="SGD has no Lookahead"), Lookahead.slow_weights(SGD(params)):
        pass


def test_one_stage_can_serve_two_optimizers() -> None:
    stage = Lookahead(2, 0.5, "average")
    params = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    pair = SGD(params[:1], momentum=0.9, extensions=[stage]), Adam(params[1:], extensions=[stage])
    for param, optimizer in zip(params, pair, strict=True):
        param.grad = torch.ones(1)
        optimizer.step()
    assert "slow_momentum_buffer" in pair[0].state[params[0]]
    assert "slow_exp_avg" in pair[1].state[params[1]]


@pytest.mark.parametrize("neutral", [Lookahead(3, 1.0), Lookahead(math.inf), Lookahead(None)], ids=repr)
@pytest.mark.parametrize("name", optimizers.list())
def test_each_way_to_switch_lookahead_off(name: str, neutral: Lookahead) -> None:
    ends = [
        list(trajectory(lambda p, e=e: optimizers.create(name, routed(name, p), extensions=e)))[-1]
        for e in ([], [neutral])
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True))


def test_derivatives_pass_through_lookahead() -> None:
    """At α = 0 the second step goes back to φ_0 = θ_0, whose derivative with respect to itself is 1."""
    start = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    param = start.clone()
    optimizer = SGD([param], 0.0, extensions=[Lookahead(2)], differentiable=True)
    for _ in range(2):
        param.grad = torch.ones_like(start)
        optimizer.step()
    assert torch.autograd.grad(param, start)[0].item() == 1.0


def test_derivatives_pass_through_the_norm() -> None:
    """∂(u·(−g/‖g‖))/∂g = −u/‖g‖ + g (u·g)/‖g‖³."""
    grad = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    param = torch.zeros(2, dtype=torch.float64)
    param.grad = grad
    SGD([param], 1.0, extensions=[ClipNorm(1.0)], differentiable=True).step()
    (derivative,) = torch.autograd.grad(param @ torch.tensor([1.0, 2.0], dtype=torch.float64), grad)
    assert (derivative - torch.tensor([0.064, -0.048], dtype=torch.float64)).abs().max() < 1e-6
