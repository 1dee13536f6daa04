"""SAM and ASAM: equal to the code that everyone uses, and what they do in a valley (Foret et al. 2021)."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from optimizers import ASAM, SAM, SGD, AdamW, Average, ClipNorm, GradientNoise, Lookahead, ScheduleFree


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in ((4, 3), (4,), ())]

    def loss(t):
        g = torch.Generator().manual_seed(t)
        x = torch.randn(8, 3, generator=g, dtype=dtype)
        return ((x @ params[0].mT + params[1]).tanh().sum(1) * params[2] - x.sum(1)).square().mean()

    return params, loss


def closure_of(optimizer, loss, t, log=None):
    def closure():
        optimizer.zero_grad()
        value = loss(t)
        value.backward()
        if log is not None:
            log.append(value.item())
        return value

    return closure


def oracle(params, loss, t, rhos, adaptive):
    """davda54's rule: the gradients at θ + e, with one norm over all parameters."""
    grads = torch.autograd.grad(loss(t), params)
    scale = [p.detach().abs() if adaptive else 1.0 for p in params]
    norm = torch.stack([(s * g).norm() for s, g in zip(scale, grads, strict=True)]).norm()
    old = [p.detach().clone() for p in params]
    with torch.no_grad():
        for param, grad, rho in zip(params, grads, rhos, strict=True):
            param.add_((param.square() if adaptive else 1.0) * grad * (rho / (norm + 1e-12)))
    there = torch.autograd.grad(loss(t), params)
    with torch.no_grad():
        for param, before in zip(params, old, strict=True):
            param.copy_(before)
    return there


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rule", [SGD, AdamW])
@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_the_usual_code(adaptive, rule, fused):
    (ours, our_loss), (theirs, their_loss) = problem(), problem()
    stage = (ASAM if adaptive else SAM)(0.3)
    groups = [{"params": ours[:1]}, {"params": ours[1:], "sam_rho": 0.1}]
    optimizer = rule(groups, lr=0.02, extensions=[stage], fused=fused)
    base = rule(theirs, lr=0.02, fused=fused)
    places = [param.data_ptr() for param in ours]
    for t in range(20):
        for param, grad in zip(theirs, oracle(theirs, their_loss, t, (0.3, 0.1, 0.1), adaptive), strict=True):
            param.grad = grad
        first, log = their_loss(t).item(), []
        base.step()
        returned = optimizer.step(closure_of(optimizer, our_loss, t, log))
        assert len(log) == 2
        assert returned.item() == log[0] == pytest.approx(first, rel=1e-12)
        assert log[1] > log[0]
        assert all((x - y).abs().max() < 1e-12 for x, y in zip(ours, theirs, strict=True))
    assert places == [param.data_ptr() for param in ours]


@pytest.mark.parametrize(
    ("rate", "amplitude"), [(0.1, 0.0026316), (0.5, 0.0166667), (1.0, 0.05), (1.5, 0.15)], ids=str
)
def test_on_a_parabola_it_ends_in_a_cycle(rate, amplitude):
    """x ← (1 − a) x − a ρ sign x: a 2-cycle of a ρ / (2 − a)."""
    param = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    optimizer = SGD([param], lr=rate, extensions=[SAM(0.05)])
    values = [
        (optimizer.step(closure_of(optimizer, lambda t: param.square() / 2, 0)), param.item())[1]
        for _ in range(400)
    ]
    radius = 0.05 * amplitude / (amplitude + 1e-12)  # as the rule guards against a norm of 0
    assert abs(values[-1]) == pytest.approx(rate * radius / (2 - rate), abs=1e-15)
    assert abs(values[-1]) == pytest.approx(amplitude, rel=2e-5)
    assert values[-1] == pytest.approx(-values[-2], abs=1e-15)


class Unnormalized(SAM):
    @staticmethod
    def ascent(grad: Tensor, param: Tensor, norm: Tensor, rho: float) -> Tensor:
        return rho * grad


@pytest.mark.parametrize(
    ("extensions", "flat"),
    [([], False), ([Unnormalized(0.2)], False), ([SAM(0.2)], True)],
    ids=["gd", "unnormalized", "sam"],
)
def test_it_walks_along_a_valley_to_where_it_is_flat(extensions, flat):
    """(uv − 1)²/2 from (4, 0.3): the sharpness u² + v² ends near its least, 2, only if the way is normalized."""
    param = nn.Parameter(torch.tensor([4.0, 0.3], dtype=torch.float64))
    optimizer = SGD([param], lr=0.01, extensions=extensions, fused=False)

    def closure():
        u, v = param.tolist()
        param.grad = torch.tensor([(u * v - 1) * v, (u * v - 1) * u], dtype=torch.float64)
        return (u * v - 1) ** 2 / 2

    for _ in range(4000):
        optimizer.step(closure)
    sharpness = param.detach().square().sum().item()
    assert sharpness < 2.1 if flat else sharpness > 15


def test_of_a_scaled_layer_asam_makes_the_scaled_step():
    """Its e scales with the parameter: f(c θ/c) has the same gradients times c, at points c times as far."""
    ways = []
    for c in (1.0, 10.0):
        param = nn.Parameter(c * torch.linspace(-1, 2, 5, dtype=torch.float64))
        optimizer = SGD([param], lr=0.0, extensions=[ASAM(0.5)])
        at = []

        def closure(param=param, at=at, c=c):
            param.grad = torch.cos(param.detach() / c) / c
            at.append(param.detach() / c)
            return 0.0

        optimizer.step(closure)
        ways.append(at[1] - at[0])
    assert torch.allclose(*ways, rtol=1e-9)
    assert ways[0].norm() > 0.1


# ---------------------------------------------------------------------- what becomes of the parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_the_parameters_are_where_they_were_for_the_base_step(dtype):
    param = nn.Parameter(torch.linspace(-1, 1, 1000).to(dtype))
    start, place = param.detach().clone(), param.data_ptr()
    optimizer = SGD([param], lr=0.0, extensions=[SAM(0.3)])
    at = []

    def closure():
        at.append(param.detach().clone())
        param.grad = torch.linspace(-1, 3, 1000).to(dtype)
        return 0.0

    optimizer.step(closure)
    assert torch.equal(param, start)
    assert param.data_ptr() == place
    assert not torch.equal(at[1], start)
    assert (at[1] - start).norm().item() == pytest.approx(0.3, rel=1e-2)


def test_a_complex_parameter_climbs_as_two_real_ones():
    real = nn.Parameter(torch.linspace(-1, 2, 6, dtype=torch.float64).view(3, 2))
    number = nn.Parameter(torch.view_as_complex(real.detach().clone()))
    for param in (real, number):
        optimizer = SGD([param], lr=0.1, extensions=[ASAM(0.5)])
        for t in range(5):

            def loss(t, param=param):
                x = torch.view_as_real(param) if param.is_complex() else param
                return (x.sin() * torch.arange(6.0).view(3, 2)).sum()

            optimizer.step(closure_of(optimizer, loss, t))
    assert torch.allclose(real, torch.view_as_real(number), rtol=1e-12)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_closure_that_fails_leaves_the_parameters_as_they_were(failing):
    params, loss = problem()
    optimizer = SGD(params, lr=0.1, extensions=[SAM(0.5), Average(0.9)])
    before, calls = copy.deepcopy(params), []

    def closure():
        calls.append(1)
        if len(calls) == failing:
            raise ZeroDivisionError
        return closure_of(optimizer, loss, 0)()

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert all(torch.equal(x, y) for x, y in zip(params, before, strict=True))
    assert not optimizer.state


def test_parameters_without_a_gradient_and_sparse_ones():
    table = nn.Embedding(5, 3, sparse=True)
    other = nn.Parameter(torch.ones(2))
    optimizer = SGD([*table.parameters(), other], lr=0.1, extensions=[SAM(0.5)])
    before, at = table.weight.detach().clone(), []

    def closure():
        optimizer.zero_grad()
        at.append(table.weight.detach().clone())
        loss = table(torch.tensor([1, 3, 3])).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    grad = torch.tensor([0.0, 1, 0, 2, 0])[:, None].expand(5, 3)
    assert torch.allclose(at[1] - at[0], 0.5 * grad / grad.norm(), atol=1e-6)
    assert torch.allclose(table.weight, before - 0.1 * grad)
    assert torch.equal(other, torch.ones(2))


def test_maximize_climbs_down():
    ends = []
    for maximize in (False, True):
        params, loss = problem()
        optimizer = SGD(params, lr=0.1, maximize=maximize, extensions=[SAM(0.5)])
        for t in range(3):
            sign = -1 if maximize else 1
            optimizer.step(closure_of(optimizer, lambda t, loss=loss, sign=sign: sign * loss(t), t))
        ends.append(params)
    assert all(torch.allclose(x, y, rtol=1e-12) for x, y in zip(*ends, strict=True))


def test_at_rho_0_the_loss_is_evaluated_once():
    ends, log = [], []
    for extensions in ([], [SAM(0.0)], [GradientNoise(0.0), SAM(0.0), ClipNorm(math.inf)]):
        params, loss = problem()
        optimizer = AdamW(params, lr=0.1, extensions=extensions)
        for t in range(3):
            optimizer.step(closure_of(optimizer, loss, t, log))
        ends.append(params)
    assert len(log) == 9
    assert all(torch.equal(x, y) for end in ends[1:] for x, y in zip(ends[0], end, strict=True))


@pytest.mark.parametrize("inner", [ScheduleFree(), Lookahead(2), Average(0.9)], ids=repr)
def test_it_goes_with_points_of_evaluation(inner):
    params, loss = problem(torch.float32)
    optimizer = AdamW(params, lr=0.1, extensions=[SAM(0.1), inner])
    start = loss(0).item()
    for t in range(50):
        optimizer.step(closure_of(optimizer, loss, t))
    with optimizer.averaged():
        assert loss(0).item() < start


# ---------------------------------------------------------------------- what is refused


def test_a_step_without_a_closure_is_refused():
    params, loss = problem()
    optimizer = SGD(params, lr=0.1, extensions=[SAM()])
    loss(0).backward()
    before = copy.deepcopy(params)
    with pytest.raises(RuntimeError, match=r"SAM takes two gradients in a step: call optimizer.step\(closure\)"):
        optimizer.step()
    assert all(torch.equal(x, y) for x, y in zip(params, before, strict=True))
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()  # nothing moves, as when torch.distributed.checkpoint has the state made
    assert all(torch.equal(x, y) for x, y in zip(params, before, strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_is_refused(fused):
    params, loss = problem(torch.float32)
    optimizer = SGD(params, lr=0.1, extensions=[ASAM()], fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss(0)).backward()
    with pytest.raises(RuntimeError, match=r"ASAM takes two gradients in a step.*GradScaler"):
        scaler.step(optimizer)


def test_two_of_them_are_refused():
    with pytest.raises(ValueError, match="sam_rho belongs to both SAM and ASAM: use one"):
        SGD(problem()[0], extensions=[SAM(), ASAM()])


def test_what_others_see_meanwhile_does_not_move():
    params, _ = problem()
    optimizer = SGD([p.detach().clone().requires_grad_() for p in params], lr=0.1, extensions=[SAM()])
    optimizer.share_memory()
    with pytest.raises(RuntimeError, match=r"SAM moves the parameters away and back.*share_memory\(\)"):
        optimizer.step(lambda: 0.0)
    optimizer = SGD(params, lr=0.1, extensions=[SAM()], differentiable=True)
    with pytest.raises(RuntimeError, match=r"SAM moves the parameters away and back.*differentiable=True"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize("stage", [SAM, ASAM])
def test_a_rho_out_of_range(stage):
    with pytest.raises(ValueError, match=r"rho must lie in \[0, inf\)"):
        stage(-0.1)
    params, loss = problem()
    optimizer = SGD(params, lr=0.1, extensions=[stage()])
    optimizer.param_groups[0]["sam_rho"] = "large"
    with pytest.raises(TypeError, match="sam_rho of parameter group 0 must be a number"):
        optimizer.step(closure_of(optimizer, loss, 0))
