"""Tensors that are not what they seem: a step brings them into order, or refuses them by name before any moves."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import optimizers
from optimizers import SGD, Adam, Chain, ClipNorm, GradientNoise

BOTH = pytest.mark.parametrize("fused", [False, True], ids=["eager", "compiled"])
MODES = ["eager", "compiled", "differentiable", "hogwild", "mixed"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What fused=True cannot compile it says once, which is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def adam(params: list[Tensor], mode: str, **options: Any) -> Adam:
    """Adam in one of the modes; "mixed" has a group of each parameter, every other one compiled."""
    groups: Any = params
    if mode == "mixed":
        groups = [{"params": [param], "fused": i % 2 == 0} for i, param in enumerate(params)]
    flags = {"fused": mode == "compiled", "differentiable": mode == "differentiable"}
    optimizer = Adam(groups, 0.1, **({} if mode == "mixed" else flags), **options)
    return optimizer.share_memory() if mode == "hogwild" else optimizer  # type: ignore[return-value]


# ---------------------------------------------------------------------- lazily conjugated and negated

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "conj": lambda z: z.conj(),
    "adjoint": lambda z: z.mH,
    "imag of conj": lambda z: z.conj().imag,  # real, and negated lazily
    "negated": torch._neg_view,
}


@BOTH
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("rule", [SGD, Adam])
def test_a_lazy_view_steps_as_the_tensor_that_it_stands_for(
    rule: Any, view: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizers.engine.eager.SLICE", 4)
    start = torch.randn(4, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    lazy = nn.Parameter(VIEWS[view](start.clone()))
    assert lazy.is_conj() or lazy.is_neg()
    plain = nn.Parameter(lazy.detach().resolve_conj().resolve_neg().clone())
    ours, other = rule([lazy], 0.1, fused=fused), rule([plain], 0.1, fused=False)
    for t in range(3):
        for optimizer, param in ((ours, lazy), (other, plain)):
            optimizer.zero_grad()
            (param.abs() ** 2 * (1 + t)).sum().backward()
            optimizer.step()
    assert torch.allclose(lazy, plain, rtol=0, atol=1e-12)
    assert (plain.detach() - VIEWS[view](start)).abs().min() > 0.01


@BOTH
def test_state_may_become_a_lazy_view(fused: bool) -> None:
    ends = []
    for lazy in (False, True):
        param = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
        optimizer = SGD([param], 0.1, momentum=0.9, fused=fused)
        for _ in range(3):
            param.grad = torch.tensor([1 - 1j, 2 + 1j])
            optimizer.step()
            state = optimizer.state[param]
            if lazy:
                state["momentum_buffer"] = state["momentum_buffer"].resolve_conj().conj().resolve_conj().conj()
        ends.append(param.detach())
    assert torch.equal(*ends)


def test_a_lazy_view_steps_differentiably() -> None:
    """Where it leads depends on where it began and on the gradient, as in the sum of both."""
    z, grad = torch.tensor([1 + 2j], requires_grad=True), torch.tensor([1 + 1j], requires_grad=True)
    param = (z * 1).conj()
    optimizer = SGD([torch.zeros(1)], 0.1, differentiable=True)
    optimizer.param_groups[0]["params"][0] = param
    param.grad = grad
    optimizer.step()
    assert torch.allclose(param, torch.tensor([0.9 - 2.1j]))
    param.real.sum().backward()
    assert torch.allclose(z.grad, torch.ones(1, dtype=torch.complex64))
    assert torch.allclose(grad.grad, torch.tensor([-0.1 + 0j]))


# ---------------------------------------------------------------------- other classes


class Named(Tensor):
    """A class that only adds a name: its memory is what it says."""


@BOTH
@pytest.mark.parametrize("what", ["gradient", "state"])
def test_a_class_that_adds_only_a_name_is_no_obstacle(what: str, fused: bool) -> None:
    ends = []
    for named in (False, True):
        param = nn.Parameter(torch.ones(3))
        optimizer = Adam([param], 0.1, fused=fused)
        for t in range(3):
            grad = torch.tensor([1.0, 2.0, t])
            param.grad = grad.as_subclass(Named) if named and what == "gradient" else grad
            optimizer.step()
            if named and what == "state":
                state = optimizer.state[param]
                state["exp_avg"] = state["exp_avg"].as_subclass(Named)
        ends.append(param.detach())
    assert torch.allclose(*ends, rtol=1e-6)


def test_a_parameter_of_two_tensors_is_stepped_as_both() -> None:
    pair = nn.Parameter(TwoTensor(torch.ones(3), torch.zeros(3)))
    optimizer = Adam([pair], 0.1, fused=True)
    for _ in range(3):
        pair.grad = TwoTensor(torch.ones(3), -torch.ones(3))
        optimizer.step()
    assert torch.allclose(pair.a, torch.full((3,), 0.7))
    assert torch.allclose(pair.b, torch.full((3,), 0.3))


# ---------------------------------------------------------------------- what is refused


def freed(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


def fake() -> Tensor:
    return FakeTensorMode().from_tensor(torch.ones(3, 5))


def give(param: Tensor, grad: Tensor) -> None:
    """A gradient that torch would not let one assign."""
    right, param.data, param.grad = param.data, torch.empty_like(grad), None
    param.grad = grad
    param.data = right


REFUSED: dict[str, tuple[Callable[[Tensor, dict[str, Any]], Any], str]] = {
    "gradient of another shape": (lambda p, s: give(p, torch.ones(5)), r"gradient has the shape \(5,\)"),
    "gradient that broadcasts": (lambda p, s: give(p, torch.ones(1, 5)), r"gradient has the shape \(1, 5\)"),
    "complex gradient": (lambda p, s: give(p, torch.ones(3, 5) * 1j), "its gradient is of torch.complex64"),
    "gradient without memory": (lambda p, s: freed(p.grad), "its gradient has no memory"),
    "fake gradient": (lambda p, s: setattr(p, "grad", fake()), "its gradient has no memory of its own.*FakeTensor"),
    "functional gradient": (
        lambda p, s: setattr(p, "grad", torch._to_functional_tensor(torch.ones(3, 5))),
        "its gradient has no memory",
    ),
    "gradient of two": (
        lambda p, s: setattr(p, "grad", TwoTensor(torch.ones(3, 5), torch.ones(3, 5))),
        "its gradient has no memory of its own.*TwoTensor",
    ),
    "parameter without memory": (lambda p, s: freed(p), "the parameter has no memory"),
    "parameter expanded": (lambda p, s: setattr(p, "data", torch.ones(5).expand(3, 5)), "coordinates that share"),
    "parameter of overlapping rows": (
        lambda p, s: setattr(p, "data", torch.ones(9).as_strided((3, 5), (2, 1))),
        "coordinates that share memory",
    ),
    "parameter of another shape": (lambda p, s: setattr(p, "data", torch.ones(5)), r"its parameter \(5,\)"),
    "state of another shape": (lambda p, s: s.update(exp_avg=torch.ones(5)), r"exp_avg has the shape \(5,\)"),
    "state elsewhere": (lambda p, s: s.update(exp_avg=torch.ones(3, 5, device="meta")), "exp_avg has the device"),
    "state of whole numbers": (lambda p, s: s.update(exp_avg=torch.ones(3, 5).int()), "exp_avg is of torch.int32"),
    "state without memory": (lambda p, s: freed(s["exp_avg"]), "exp_avg has no memory"),
    "sparse rows as state": (
        lambda p, s: s.update(exp_avg=torch.ones(3, 5).to_sparse_csr()),
        "exp_avg has the layout torch.sparse_csr",
    ),
    "fake state": (lambda p, s: s.update(exp_avg=fake()), "exp_avg has no memory of its own"),
    "a list as state": (lambda p, s: s.update(exp_avg=[1.0]), r"state\['exp_avg'\].*must be a tensor, got \[1.0\]"),
    "None as state": (lambda p, s: s.update(exp_avg=None), r"state\['exp_avg'\].*must be a tensor, got None"),
    "state that is the parameter": (lambda p, s: s.update(exp_avg=p.data), "and its state .* share memory"),
    "state that is other state": (lambda p, s: s.update(exp_avg=s["exp_avg_sq"]), "and its state .* share memory"),
    "a plain number for a count": (lambda p, s: s.update(step=1), r"state\['step'\].* tensor of one number, got 1"),
    "two counts": (lambda p, s: s.update(step=torch.ones(2)), r"state\['step'\].* tensor of one number"),
    "a count without a value": (
        lambda p, s: s.update(step=torch.ones((), device="meta")),
        r"state\['step'\].* tensor of one number",
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trick", REFUSED)
def test_what_cannot_be_stepped_is_refused_before_anything_moves(trick: str, mode: str) -> None:
    shapes = ((4,), (3, 5), (2,))
    params: list[Any] = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    if mode == "differentiable":
        params = [param.detach() for param in params]
    optimizer = adam(params, mode)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    change, says = REFUSED[trick]
    change(params[1], optimizer.state[params[1]])
    others = [params[0], params[2]]
    kept = [param.detach().clone() for param in others]
    with pytest.raises(RuntimeError, match=says):
        optimizer.step()
    for param, before in zip(others, kept, strict=True):
        assert torch.equal(param.detach(), before)
        assert optimizer.state[param]["step"] == 2
    if "count" not in trick:
        assert optimizer.state[params[1]]["step"] == 2


def test_a_leaf_that_needs_its_gradient_cannot_step_differentiably() -> None:
    """Torch refuses this, too, though only when it comes to that parameter."""
    leaf = torch.ones(3, requires_grad=True)
    for wrong in (leaf, leaf[:2]):
        params = [torch.ones(3), torch.ones(3)]
        optimizer = adam(params, "differentiable")
        optimizer.param_groups[0]["params"][1] = wrong
        params[0].grad, wrong.grad = torch.ones(3), torch.ones_like(wrong)
        with pytest.raises(RuntimeError, match="is a leaf that requires grad"):
            optimizer.step()
        assert torch.equal(params[0], torch.ones(3))
        assert not optimizer.state


@pytest.mark.parametrize("layout", ["csr", "mkldnn", "jagged"])
@BOTH
def test_parameters_of_other_layouts_are_refused(layout: str, fused: bool) -> None:
    make: dict[str, Callable[[], Tensor]] = {
        "csr": lambda: torch.ones(3, 5).to_sparse_csr(),
        "mkldnn": lambda: torch.ones(3, 5).to_mkldnn(),
        "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    }
    first, odd = nn.Parameter(torch.ones(4)), make[layout]().requires_grad_()
    optimizer = SGD([first, odd], 0.1, fused=fused)
    first.grad, odd.grad = torch.ones(4), odd.detach().clone()
    with pytest.raises(RuntimeError, match=r"has the layout torch\.\w+: a step needs strided"):
        optimizer.step()
    assert torch.equal(first.detach(), torch.ones(4))


def test_hogwild_needs_parameters_of_their_own_memory() -> None:
    for param in (torch.ones(3, dtype=torch.complex64).conj(), torch.ones(3, device="meta")):
        with pytest.raises(ValueError, match="on the CPU"):
            SGD([nn.Parameter(param)]).share_memory()


@pytest.mark.parametrize("mode", MODES)
def test_state_that_only_lies_oddly_is_stepped(mode: str) -> None:
    """Expanded, sparse (as torch's SGD keeps a velocity), of another precision, another order in memory."""
    forms: list[Callable[[Tensor], Tensor]] = [
        lambda t: t,
        lambda t: t[:1, :1].expand(3, 5),
        lambda t: t.to_sparse(),
        lambda t: t.double(),
        lambda t: t.t().contiguous().t(),
        lambda t: t.double().t().contiguous().t(),
        lambda t: torch._neg_view(-t),
        lambda t: nn.Parameter(t),
    ]
    ends = []
    for form in forms:
        param: Any = nn.Parameter(torch.ones(3, 5))
        param = param.detach() if mode == "differentiable" else param
        optimizer = adam([param], mode)
        for _ in range(3):
            param.grad = torch.ones(3, 5)
            optimizer.step()
            optimizer.state[param]["exp_avg"] = form(optimizer.state[param]["exp_avg"].detach())
        ends.append(param.detach())
    assert all(torch.allclose(end, ends[0], rtol=0, atol=1e-6) for end in ends[1:])
    assert torch.allclose(ends[0], torch.full((3, 5), 0.7))


# ---------------------------------------------------------------------- memory in common

Tie = Callable[[Tensor], list[Tensor]]
TIES: dict[str, Tie] = {
    "the same": lambda w: [w[:40_000], w[:40_000]],
    "partly": lambda w: [w[:40_000], w[10_000:50_000]],
    "within": lambda w: [w, w[100:20_000], w[50_000:]],
    "none": lambda w: [w[:30_000], w[30_000:]],
}


def oracle(params: list[Tensor], rule: Any, grads: Callable[[int, int], float], options: dict[str, Any]) -> None:
    """Torch's loop over tensors, one after the other."""
    optimizer = rule(params, 0.01, foreach=False, **options)
    for t in range(3):
        for i, param in enumerate(params):
            param.grad = torch.full_like(param, grads(t, i))
        optimizer.step()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("rule", ["SGD", "Adam"])
@pytest.mark.parametrize("fused", [False, True, None])
def test_parameters_that_share_memory_step_one_after_the_other(
    rule: str, tie: str, groups: int, fused: bool | None
) -> None:
    options = {"momentum": 0.9} if rule == "SGD" else {}
    ends = []
    for ours in (False, True):
        whole = torch.linspace(-1, 1, 80_000)
        params = [nn.Parameter(part) for part in TIES[tie](whole)]

        def grads(t: int, i: int) -> float:
            return 1.0 + t - 3.0 * i

        if ours:
            split: Any = params if groups == 1 else [{"params": params[:1]}, {"params": params[1:]}]
            optimizer = getattr(optimizers, rule)(split, 0.01, fused=fused, **options)
            for t in range(3):
                for i, param in enumerate(params):
                    param.grad = torch.full_like(param, grads(t, i))
                optimizer.step()
            assert bool(optimizer.source()) is (tie == "none" and fused is not False)
        else:
            oracle(list(params), getattr(torch.optim, rule), grads, options)
        ends.append(whole)
    assert torch.allclose(*ends, rtol=0, atol=1e-6)


@BOTH
def test_memory_that_comes_to_be_shared_is_noticed(fused: bool) -> None:
    """`.data` of one parameter becomes another's, in mid-run; both are stepped in their order from then on."""
    whole = torch.zeros(6)
    params = [nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))]
    optimizer = SGD([{"params": params[:2]}, {"params": params[2:]}], 1.0, momentum=0.5, fused=fused)
    for t in range(4):
        if t == 2:
            params[0].data = params[2].data = whole
        for i, param in enumerate(params):
            param.grad = torch.full((6,), float(i + 1))
        optimizer.step()
    velocities = [1.0, 1.5, 1.75, 1.875]
    assert torch.allclose(whole, torch.full((6,), -sum(velocities[2:]) * (1 + 3)))
    assert torch.allclose(params[1].detach(), torch.full((6,), -sum(velocities) * 2))


@BOTH
def test_gradients_that_are_views_of_parameters(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the parameter itself, in its place or shifted by one, and of one that has moved before or moves after."""
    monkeypatch.setattr("optimizers.engine.eager.SLICE", 4)
    start = torch.arange(1.0, 21.0)
    whole = start.clone()
    a, b = nn.Parameter(whole[:10]), nn.Parameter(torch.full((10,), 2.0))
    optimizer = SGD([a, b], 0.5, fused=fused)
    a.grad, b.grad = a.detach(), a.detach()
    optimizer.step()
    assert torch.equal(a.detach(), start[:10] / 2)
    assert torch.equal(b.detach(), 2 - start[:10] / 4)  # a has moved before
    optimizer = SGD([b, a], 0.5, fused=fused)
    before = a.detach().clone()
    a.grad, b.grad = whole[1:11], a.detach()
    b.data.fill_(2.0)
    expected = before - whole[1:11] / 2
    optimizer.step()
    assert torch.equal(a.detach(), expected)
    assert torch.equal(b.detach(), 2 - before / 2)


@BOTH
def test_one_gradient_of_two_parameters_is_read_by_both(fused: bool) -> None:
    params = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    params[0].grad = params[1].grad = torch.ones(3)
    optimizer = SGD(params, 1.0, fused=fused)
    optimizer.step()
    assert all(torch.equal(param.detach(), -torch.ones(3)) for param in params)
    assert bool(optimizer.source()) is fused


@BOTH
def test_state_of_two_parameters_in_one_memory_is_torchs(fused: bool) -> None:
    ends = []
    for make in (
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=False),
        lambda p: SGD(p, 0.1, momentum=0.9, fused=fused),
    ):
        params = [nn.Parameter(torch.ones(50)) for _ in range(2)]
        optimizer: Any = make(params)
        for t in range(4):
            for i, param in enumerate(params):
                param.grad = torch.full((50,), 1.0 + i + t)
            optimizer.step()
            velocity = optimizer.state[params[0]]["momentum_buffer"]
            optimizer.state[params[1]]["momentum_buffer"] = velocity
        ends.append(torch.stack([param.detach() for param in params]))
    assert torch.allclose(*ends, rtol=1e-6)


def test_a_refusal_in_a_later_group_leaves_all_extensions_alone() -> None:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    optimizer: Chain = Adam([{"params": [p]} for p in params], 0.1, extensions=[ClipNorm(1.0), GradientNoise()])
    params[0].grad, params[1].grad = torch.ones(3), freed(torch.ones(2))
    with pytest.raises(RuntimeError, match="has no memory"):
        optimizer.step()
    assert torch.equal(params[0].detach(), torch.ones(3))
    assert not optimizer.state


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_eager_parameter_that_comes_to_lie_in_a_compiled_ones_memory(momentum: float) -> None:
    """In mid-run, in another group: from then on both are stepped one after the other, in the groups' order."""
    ends = []
    for fused in (False, True):
        whole = torch.arange(12.0)
        first, second = nn.Parameter(torch.zeros(4)), nn.Parameter(whole[:6])
        optimizer = SGD(
            [{"params": [first], "fused": False}, {"params": [second], "fused": fused}], 0.5, momentum=momentum
        )
        for t in range(5):
            if t == 2:
                first.data = whole[2:6]
            first.grad, second.grad = first.detach() * 2, second.detach() * 1.0
            if t > 2:
                first.grad = first.detach()  # which the second one's step must not have changed yet
            optimizer.step()
        ends.append(whole)
    torch.testing.assert_close(*ends)


def test_what_a_compiled_group_steps_eagerly_is_checked_at_every_step() -> None:
    sparse, dense = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(3))
    optimizer = optimizers.Adagrad([sparse, dense], 0.1, fused=True)
    for t in range(3):
        sparse.grad, dense.grad = torch.ones(4, 2).to_sparse(1), torch.ones(3)
        if t == 2:
            optimizer.state[sparse]["sum"].data = torch.ones(4, 3)
            with pytest.raises(RuntimeError, match=r"sum has the shape \(4, 3\)"):
                optimizer.step()
        else:
            optimizer.step()
    assert optimizer.state[dense]["step"] == 2


@pytest.fixture
def alone() -> Iterator[Any]:
    """A group of one process."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@BOTH
@pytest.mark.parametrize("what", ["gradient", "state", "both"])
def test_a_result_that_is_on_its_way_is_waited_for(what: str, fused: bool, alone: Any) -> None:
    """A functional collective gives a tensor whose own address is 0."""
    ends = []
    for late in (False, True):

        def given(tensor: Tensor, part: str, late: bool = late) -> Tensor:
            wanted = late and what in (part, "both")
            return collectives.all_reduce(tensor.clone(), "sum", alone) if wanted else tensor

        params = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(3))]
        optimizer = Adam(params, 0.1, fused=fused, extensions=[ClipNorm(1.0)])
        for t in range(4):
            for param in params:
                param.grad = given(torch.full_like(param, 1.0 + t), "gradient")
                assert (param.grad.data_ptr() == 0) is (late and what != "state")
                for name in ("exp_avg", "exp_avg_sq") if t == 2 else ():
                    optimizer.state[param][name] = given(optimizer.state[param][name], "state")
            optimizer.step()
        ends.append(torch.cat([param.detach() for param in params]))
        assert bool(optimizer.source()) is fused
    assert torch.equal(*ends)
