"""Torch's own inputs for the optimizers that we have, too: `optim_db`, in cases like those of its test_optim.py.

What differs from torch stands on the page "Which implementation equals which".
"""

import copy
import io
import sys
import types
import unittest
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

import optimizers


def torchs_cases() -> dict[str, Any]:
    """`optim_db`, by name. Its module needs a package for expected texts, which these cases do not."""
    texts = types.ModuleType("expecttest")
    texts.TestCase = unittest.TestCase  # type: ignore[attr-defined]
    stands_in = sys.modules.setdefault("expecttest", texts) is texts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_optimizers import optim_db
    if stands_in:
        del sys.modules["expecttest"]
    # Importing it makes assignments to torch.backends errors, in other tests, too.
    torch.backends.__allow_nonbracketed_mutation_flag = True
    # (torch's Muon takes matrices only, and no flags: test_muon compares the two.)
    return {info.name: info for info in optim_db if hasattr(optimizers, info.name) and info.name != "Muon"}


CASES = torchs_cases()
BOTH = pytest.mark.parametrize("fused", [False, True], ids=["eager", "compiled"])
NAMES = pytest.mark.parametrize("name", CASES)
# Adafactor's ε is a pair; it refuses complex matrices, and torch's divides by the number of elements, also if 0.
WITHOUT_ADAFACTOR = pytest.mark.parametrize("name", [name for name in CASES if name != "Adafactor"])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what fused=True cannot compile
        yield


def inputs(name: str) -> list[dict[str, Any]]:
    """The keyword arguments of torch's configurations; capturable ones need a GPU there, and not here."""
    return [each.kwargs for each in CASES[name].optim_inputs_func("cpu")]


def ours(name: str, params: Any, fused: bool, **options: Any) -> Optimizer:
    return getattr(optimizers, name)(params, fused=fused, **copy.deepcopy(options))


def theirs(name: str, params: Any, **options: Any) -> Optimizer:
    return getattr(torch.optim, name)(params, foreach=False, **copy.deepcopy(options))


def parameters(dtype: torch.dtype = torch.float32, shapes: Any = ((10, 5), (10,), ())) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def gradients(params: list[Any], t: int) -> None:
    generator = torch.Generator().manual_seed(1 + t)
    for param in params:
        like = torch.promote_types(param.dtype, torch.float32)
        param.grad = torch.randn(param.shape, generator=generator, dtype=like).to(param.dtype)


def run(optimizer: Optimizer, params: list[Any], steps: Any = range(6)) -> list[Tensor]:
    for t in steps:
        gradients(params, t)
        optimizer.step()
    return [param.detach().clone() for param in params]


def same(found: list[Tensor], expected: list[Tensor], **tolerance: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 1e-5, "atol": 1e-5}))


@BOTH
@NAMES
def test_every_input_makes_torchs_steps(name: str, fused: bool) -> None:
    for options in inputs(name):
        params, others = parameters(), parameters()
        optimizer = ours(name, params, fused, **options)
        same(run(optimizer, params), run(theirs(name, others, **options), others))
        assert bool(optimizer.source()) is fused


@BOTH
@NAMES
def test_groups_with_their_own_values(name: str, fused: bool) -> None:
    for options in inputs(name):
        decay = {"weight_decay": 0.1} if "weight_decay" in options else {}
        both = []
        for make in (lambda p, o=options: ours(name, p, fused, **o), lambda p, o=options: theirs(name, p, **o)):
            params = parameters()
            both.append(run(make([{"params": params[:1], "lr": 0.02}, {"params": params[1:], **decay}]), params))
        same(*both)


@BOTH
@pytest.mark.parametrize("contiguous", [True, False])
@NAMES
def test_a_loop_goes_in_the_right_direction(name: str, contiguous: bool, fused: bool) -> None:
    """With each of the schedulers that torch tries the optimizer with, and with none."""
    generator = torch.Generator().manual_seed(0)
    for options in inputs(name):
        for schedulers in [(), *CASES[name].scheduler_inputs]:
            weight, bias = parameters(shapes=((10, 5), (10,)))
            if not contiguous:
                weight = nn.Parameter(torch.randn(10, 5, 2, generator=generator)[..., 0])
                bias = nn.Parameter(torch.randn(10, 2, generator=generator)[..., 0])
            x = torch.randn(5, generator=generator)
            optimizer = ours(name, [weight, bias], fused, **options)
            made = [make(optimizer) for make in schedulers]
            sign = -1 if options.get("maximize") else 1

            def closure(weight: Tensor = weight, bias: Tensor = bias, x: Tensor = x, sign: int = sign) -> Tensor:
                weight.grad = bias.grad = None
                loss = (weight.mv(x) + bias).pow(2).sum()
                loss.backward()
                return sign * loss.detach()

            losses = []
            for _ in range(20):
                losses.append(float(optimizer.step(closure)))  # type: ignore[arg-type]
                for each in made:
                    each.step(torch.tensor(losses[-1])) if isinstance(each, ReduceLROnPlateau) else each.step()
            assert losses[-1] < losses[0] or losses[0] == 0, (options, losses)


@BOTH
@WITHOUT_ADAFACTOR
def test_parameters_of_several_precisions_in_one_group(name: str, fused: bool) -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    shapes = ((4,), (3, 2))
    options = {"eps": 1e-3} if "eps" in optimizers.create(name, parameters()).defaults else {}
    params = [param for dtype in dtypes for param in parameters(dtype, shapes)]
    others = [nn.Parameter(param.detach().double()) for param in params]
    optimizer = ours(name, params, fused, **options)
    for t in range(4):
        gradients(params, t)
        for param, other in zip(params, others, strict=True):
            other.grad = param.grad.double()
        optimizer.step()
        if t == 0:
            judge = theirs(name, others, **options)
        judge.step()
    for param, other in zip(params, others, strict=True):
        eps = torch.finfo(param.dtype).eps
        torch.testing.assert_close(param.double(), other, rtol=0, atol=40 * eps)


@BOTH
@WITHOUT_ADAFACTOR
def test_complex_parameters(name: str, fused: bool) -> None:
    for options in inputs(name):
        params, others = (parameters(torch.complex64, ((5, 2), (3,))) for _ in range(2))
        same(run(ours(name, params, fused, **options), params), run(theirs(name, others, **options), others))


@BOTH
@NAMES
def test_older_checkpoints_are_loaded(name: str, fused: bool) -> None:
    """Without the flags that came later, and with a plain number for the count."""
    for options in inputs(name):
        params, others = parameters(), parameters()
        other = theirs(name, others, **options)
        run(other, others, range(3))
        saved = copy.deepcopy(other.state_dict())
        flags = [flag for flag in CASES[name].not_og_supported_flags if not options.get(flag)]
        for group in saved["param_groups"]:
            for flag in flags:
                group.pop(flag, None)
        for state in saved["state"].values():
            if "step" in state:
                state["step"] = state["step"].item()
        optimizer = ours(name, params, fused, **options)
        optimizer.load_state_dict(saved)
        for param, origin in zip(params, others, strict=True):
            param.data.copy_(origin.detach())
        same(run(optimizer, params, range(3, 6)), run(other, others, range(3, 6)))


@BOTH
@NAMES
def test_what_is_saved_is_loaded_with_weights_only(name: str, fused: bool) -> None:
    for options in inputs(name):
        params = parameters()
        optimizer = ours(name, params, fused, **options)
        run(optimizer, params)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        others = [nn.Parameter(param.detach().clone()) for param in params]
        again = ours(name, others, fused, **options)
        again.load_state_dict(loaded)
        for key, state in optimizer.state_dict()["state"].items():
            assert state, "a state that is not empty"
            for entry, tensor in state.items():
                assert torch.equal(tensor, again.state_dict()["state"][key][entry])
        same(run(again, others, range(6, 9)), run(optimizer, params, range(6, 9)), rtol=0, atol=0)


@BOTH
@NAMES
def test_a_named_optimizer_loads_an_unnamed_ones_state_and_the_reverse(name: str, fused: bool) -> None:
    for named in (False, True):
        params, others = parameters(), parameters()
        pairs = [(f"p{i}", param) for i, param in enumerate(params)]
        optimizer = ours(name, pairs if named else params, fused)
        run(optimizer, params, range(3))
        pairs = [(f"q{i}", param) for i, param in enumerate(others)]
        other = ours(name, others if named else pairs, fused)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for param, origin in zip(others, params, strict=True):
            param.data.copy_(origin.detach())
        same(run(other, others, [3]), run(optimizer, params, [3]), rtol=0, atol=0)


@BOTH
@NAMES
def test_without_gradients_nothing_moves(name: str, fused: bool) -> None:
    for options in inputs(name):
        params = parameters()
        before = [param.detach().clone() for param in params]
        optimizer = ours(name, params, fused, **options)
        optimizer.step()
        assert not optimizer.state
        same([param.detach() for param in params], before, rtol=0, atol=0)
        if not optimizer.defaults["weight_decay"]:
            for param in params:
                param.grad = torch.zeros_like(param)
            optimizer.step()
            same([param.detach() for param in params], before, rtol=0, atol=0)


@BOTH
@WITHOUT_ADAFACTOR
def test_a_parameter_without_elements(name: str, fused: bool) -> None:
    for options in inputs(name):
        params, others = (parameters(shapes=((0,), (2, 0), (3,))) for _ in range(2))
        same(run(ours(name, params, fused, **options), params), run(theirs(name, others, **options), others))


@BOTH
@pytest.mark.parametrize("shape", [(), (1,)])
@NAMES
def test_a_learning_rate_in_a_tensor(name: str, shape: tuple[int, ...], fused: bool) -> None:
    for options in inputs(name):
        lr = options.get("lr", 0.01)
        given = {**options, "lr": lr if isinstance(lr, Tensor) else torch.full(shape, lr)}
        params, others = parameters(), parameters()
        expected = run(theirs(name, others, **{**options, "lr": float(lr)}), others)
        same(run(ours(name, params, fused, **given), params), expected)


@NAMES
def test_every_global_flag_can_be_given(name: str) -> None:
    for options in inputs(name):
        for flag in ("foreach", "differentiable", "fused"):
            params, others = parameters(), parameters()
            if flag == "differentiable":
                params = [param.detach() for param in params]
            optimizer = getattr(optimizers, name)(params, **{flag: True}, **options)
            same(run(optimizer, params), run(theirs(name, others, **options), others))


@NAMES
def test_the_step_can_be_differentiated(name: str) -> None:
    """With respect to where it began and to each gradient, as finite differences have it."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    for options in inputs(name):

        def end(start: Tensor, *grads: Tensor, options: dict[str, Any] = options) -> Tensor:
            param = start.clone()
            optimizer = getattr(optimizers, name)([torch.zeros(1)], differentiable=True, **copy.deepcopy(options))
            optimizer.param_groups[0]["params"][0] = param
            for grad in grads:
                param.grad = grad
                optimizer.step()
            return param

        assert torch.autograd.gradcheck(end, given, atol=1e-5)


@BOTH
@pytest.mark.parametrize("name", [name for name, info in CASES.items() if info.supports_sparse])
def test_rosenbrock_with_sparse_gradients(name: str, fused: bool) -> None:
    """Along one coordinate at a time, with the settings and the schedulers that torch tries."""
    options, schedulers = CASES[name].metadata_for_sparse
    for make in (None, *schedulers):
        ends = []
        for build in (lambda p: theirs(name, p, **options), lambda p: ours(name, p, fused, **options)):
            for is_sparse in (True, False):
                param = nn.Parameter(torch.tensor([1.5, 1.5], dtype=torch.float64))
                optimizer = build([param])
                made = [make(optimizer)] if make else []
                for t in range(60):
                    x, y = param.detach()
                    grad = torch.stack([-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2)])
                    grad[t % 2] = 0
                    index = torch.tensor([[1 - t % 2]])
                    sparse = torch.sparse_coo_tensor(index, grad[index[0]], (2,), check_invariants=True)
                    param.grad = sparse if is_sparse else grad
                    optimizer.step()
                    for each in made:
                        loss = torch.tensor(1.0)
                        each.step(loss) if isinstance(each, ReduceLROnPlateau) else each.step()
                ends.append(param.detach())
        same(ends[1:], ends[:1] * 3, rtol=1e-9, atol=1e-12)


@NAMES
def test_a_parameter_without_data(name: str) -> None:
    """On the meta device, where large models are sized; a captured step's numbers are there, too."""
    for options in inputs(name):
        param = nn.Parameter(torch.ones(3, device="meta"))
        param.grad = torch.ones(3, device="meta")
        optimizer = getattr(optimizers, name)([param], **options)
        for _ in range(2):
            optimizer.step()
        assert all(t.is_meta for key, t in optimizer.state[param].items() if t.dim() > 0)


# What torch refuses and means something here: `foreach` changes nothing, and any number may be a tensor.
ALLOWED = (
    "lr as Tensor doesn't work with foreach & not capturable",
    "betas must be either both floats or both Tensors",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True",
)


@WITHOUT_ADAFACTOR
def test_what_torch_refuses_is_refused_with_the_same_type(name: str) -> None:
    for case in CASES[name].optim_error_inputs_func("cpu", torch.float32):
        given = case.optimizer_error_input
        params = given.params if given.params is not None else parameters()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if given.desc in ALLOWED:
                getattr(optimizers, name)(params, **given.kwargs)
            elif given.kwargs:  # our texts name the argument and its range
                with pytest.raises(case.error_type, match=f"({'|'.join(given.kwargs)}).* must .*got"):
                    getattr(optimizers, name)(params, **given.kwargs)
            else:  # torch's own base class
                with pytest.raises(case.error_type, match=case.error_regex):
                    getattr(optimizers, name)(params, **given.kwargs)
