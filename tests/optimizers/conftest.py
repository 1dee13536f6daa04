"""What the tests of the update rules share: one small problem, torch as the judge, and oracles in NumPy."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import optimizers

STEPS = 50
TOLERANCE = 1e-12

Build = Callable[..., Optimizer]
Trajectory = list[list[Tensor]]


def multiplier(t: int) -> float:
    """The schedule η_t: never constant, and it goes up as well as down."""
    return (1 + 0.5 * math.sin(t)) / (1 + 0.05 * t)


class Problem:
    """Noisy gradients of a quadratic for float64 and complex parameters of several shapes, in two groups.

    Some coordinates get the gradient 0 always, and some parameters no gradient at some steps.
    """

    shapes = ((5,), (2, 3), (), (4, 1), (3,))

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.start = [self.normal(shape, i == 4) for i, shape in enumerate(self.shapes)]
        self.start[0][:2] = 0
        self.noise = [[self.normal(p.shape, p.is_complex()) for p in self.start] for _ in range(STEPS)]
        for noise in self.noise:
            noise[0][:2] = 0

    def normal(self, shape: Sequence[int], is_complex: bool) -> Tensor:
        dtype = torch.complex128 if is_complex else torch.float64
        return torch.randn(tuple(shape), generator=self.random, dtype=dtype)

    def parameters(self) -> list[Tensor]:
        return [p.clone().requires_grad_() for p in self.start]

    def build(self, make: Build, params: list[Tensor], second: dict[str, Any], **options: Any) -> Optimizer:
        return make([{"params": params[:2]}, {"params": params[2:], **second}], **options)

    def run(
        self, optimizer: Optimizer, params: list[Tensor], steps: range, after: Callable[[int], None]
    ) -> Trajectory:
        """Step; returns the parameters after every step. What is to be maximized is concave: nothing diverges."""
        curvature = -2.0 if optimizer.param_groups[0]["maximize"] else 2.0
        trajectory = []
        for t in steps:
            for i, (param, noise) in enumerate(zip(params, self.noise[t], strict=True)):
                param.grad = None if (t + i) % 7 == 3 else curvature * param.detach() + noise
            optimizer.step()
            after(t)
            trajectory.append([param.detach().clone() for param in params])
        return trajectory


def largest_difference(a: Trajectory, b: Trajectory) -> float:
    assert len(a) == len(b) > 0
    assert all(torch.isfinite(torch.view_as_real(x) if x.is_complex() else x).all() for row in a for x in row)
    return max(
        (x - y).abs().max().item() for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True)
    )


@pytest.fixture(autouse=True)
def a_run_of_its_own() -> None:
    """What a test draws does not depend on optimizers that others made and never stepped."""
    optimizers.new_run()


@pytest.fixture
def same_as_torch() -> Callable[..., None]:
    """`same_as_torch(ours, theirs, second, **options)`: both make the same steps, and continue each other's."""

    def scheduled(make: Build, second: dict[str, Any], options: dict[str, Any]) -> Trajectory:
        problem = Problem()
        params = problem.parameters()
        optimizer = problem.build(make, params, second, **options)
        scheduler = LambdaLR(optimizer, multiplier)
        return problem.run(optimizer, params, range(STEPS), lambda t: scheduler.step())

    def first_ten(
        make: Build, second: dict[str, Any], options: dict[str, Any]
    ) -> tuple[Any, list[Tensor], Trajectory]:
        problem = Problem()
        params = problem.parameters()
        optimizer = problem.build(make, params, second, **options)
        head = problem.run(optimizer, params, range(10), lambda t: None)
        state, end = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
        rest = problem.run(optimizer, params, range(10, STEPS), lambda t: None)
        return state, end, head + rest

    def continued(make: Build, state: Any, start: list[Tensor]) -> Trajectory:
        """From a checkpoint alone: the optimizer is made with its defaults, which the checkpoint replaces."""
        problem = Problem()
        params = [p.clone().requires_grad_() for p in start]
        optimizer = problem.build(make, params, {})
        optimizer.load_state_dict(copy.deepcopy(state))
        return problem.run(optimizer, params, range(10, STEPS), lambda t: None)

    def same(ours: Build, theirs: Build, second: dict[str, Any], **options: Any) -> None:
        expected = scheduled(theirs, second, options)
        assert largest_difference(scheduled(ours, second, options), expected) <= TOLERANCE

        state, end, whole = first_ten(theirs, second, options)
        assert largest_difference(continued(ours, state, end), whole[10:]) <= TOLERANCE
        expected = continued(theirs, state, end)
        state, end, _ = first_ten(ours, second, options)
        assert largest_difference(continued(theirs, state, end), expected) <= TOLERANCE

    return same


@pytest.fixture
def follows() -> Callable[..., None]:
    """`follows(make, oracle, groups)`: the optimizer makes the oracle's steps in each of the groups.

    A group is a dict of hyper-parameters for the optimizer's group and, by the same names, for the oracle, which is
    called as ``oracle(theta, gradient, t, eta, memory, lr=…, …)`` and returns the new theta: `lr` is the learning
    rate before the schedule, `eta` the schedule's multiplier, and `memory` a dict that starts empty.
    """

    def follows(
        make: Build, oracle: Callable[..., Any], groups: Sequence[dict[str, Any]], steps: int = STEPS
    ) -> None:
        random = np.random.default_rng(0)
        starts = [random.standard_normal(6) for _ in groups]
        noise = random.standard_normal((steps, len(groups), 6))
        params = [torch.tensor(start).requires_grad_() for start in starts]
        optimizer = make([{"params": [p], **group} for p, group in zip(params, groups, strict=True)])
        scheduler = LambdaLR(optimizer, multiplier)
        thetas, memories = list(starts), [{} for _ in groups]
        for t in range(1, steps + 1):
            for i, (param, group) in enumerate(zip(params, groups, strict=True)):
                param.grad = 2.0 * param.detach() + torch.tensor(noise[t - 1, i])
                gradient = 2.0 * thetas[i] + noise[t - 1, i]
                thetas[i] = oracle(thetas[i], gradient, t, multiplier(t - 1), memories[i], **group)
            optimizer.step()
            scheduler.step()
            for param, theta in zip(params, thetas, strict=True):
                assert np.abs(param.detach().numpy() - theta).max() <= TOLERANCE, t

    return follows


@pytest.fixture
def descend() -> Callable[..., list[float]]:
    """`descend(make, gradients, start)`: one float64 number, given these gradients; its value after every step."""

    def descend(
        make: Build, gradients: Sequence[float] | Callable[[float, int], float], start: float = 0.0, steps: int = 0
    ) -> list[float]:
        theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        optimizer = make([theta])
        values = []
        for t in range(steps or len(gradients)):  # type: ignore[arg-type]
            gradient = gradients(theta.item(), t + 1) if callable(gradients) else gradients[t]
            theta.grad = torch.tensor(gradient, dtype=torch.float64)
            optimizer.step()
            values.append(theta.item())
        return values

    return descend


@pytest.fixture
def whole() -> Callable[..., None]:
    """`whole(make, oracle, **group)`: what is stepped in slices makes the oracle's steps, eagerly and compiled.

    The first slice of one is unlike the others, so that what is summed over a slice alone is something else.
    """

    def whole(make: Build, oracle: Callable[..., Any], tolerance: float = TOLERANCE, **group: Any) -> None:
        for fused in (False, True):
            random = np.random.default_rng(0)
            starts = [random.standard_normal(shape) for shape in ((1024, 512), (3, 4))]
            starts[0][:100] *= 10
            params = [torch.tensor(start).requires_grad_() for start in starts]
            optimizer = make([{"params": params, **group}], fused=fused)
            thetas, memories = starts, [{} for _ in starts]
            for t in range(1, 4):
                for i, param in enumerate(params):
                    noise = random.standard_normal(thetas[i].shape) * 10.0 ** -(t % 3)
                    param.grad = 2.0 * param.detach() + torch.tensor(noise)
                    thetas[i] = oracle(thetas[i], 2.0 * thetas[i] + noise, t, 1.0, memories[i], **group)
                optimizer.step()
                for param, theta in zip(params, thetas, strict=True):
                    assert np.abs(param.detach().numpy() - theta).max() <= tolerance, (fused, t)
            assert f"Execution: {'compiled' if fused else 'eager'}" in repr(optimizer)

    return whole


@pytest.fixture
def sound() -> Callable[..., None]:
    """`sound(make, second)`: eager and compiled steps agree, go on from a checkpoint bit for bit, and maximize.

    The parameters are in two groups; `second` is what the second one has for itself.
    """

    def sound(make: Build, second: dict[str, Any], tolerance: float = TOLERANCE) -> None:
        ends = []
        for fused in (False, True):
            problem = Problem()

            def build(params: list[Tensor], problem: Problem = problem, fused: bool = fused, **options: Any) -> Any:
                optimizers.new_run()
                return problem.build(make, params, second, fused=fused, **options)

            params = problem.parameters()
            optimizer = build(params)
            problem.run(optimizer, params, range(10), lambda t: None)
            again = [param.detach().clone().requires_grad_() for param in params]
            other = build(again)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            rest, twin = (
                problem.run(o, p, range(10, 20), lambda t: None) for o, p in ((optimizer, params), (other, again))
            )
            assert largest_difference(rest, twin) == 0
            ends.append(rest)

            descending, ascending = problem.parameters(), problem.parameters()
            down, up = build(descending), build(ascending, maximize=True)
            for t in range(5):
                for i, (p, q) in enumerate(zip(descending, ascending, strict=True)):
                    p.grad = 2.0 * p.detach() + problem.noise[t][i]
                    q.grad = -p.grad
                down.step()
                up.step()
                assert all(torch.equal(p, q) for p, q in zip(descending, ascending, strict=True))
        assert largest_difference(*ends) <= tolerance

    return sound
