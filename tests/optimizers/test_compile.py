"""torch.compile around a step: one break and the same numbers; what else is there is compiled as ever."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import optimizers
from optimizers import Adam, GradientDropout, GradientNoise, Lookahead

CASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "eager": lambda params: Adam(params, fused=False),
    "compiled": lambda params: Adam(params, fused=True),
    "capturable": lambda params: Adam(params, capturable=True),
    "random": lambda params: Adam(params, extensions=[GradientNoise(0.1), GradientDropout(0.8), Lookahead(2)]),
    "another rule": lambda params: optimizers.RAdamW(params, nesterov=True),
}
each = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Training:
    """A small model, its steps and the graphs that torch.compile makes of them."""

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer]) -> None:
        optimizers.new_run()
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        with torch.no_grad():
            for param in self.model.parameters():
                param.copy_(torch.randn(param.shape, generator=generator))
        self.x = torch.randn(8, 3, generator=generator)
        self.optimizer = make(self.model.parameters())
        self.graphs: list[list[str]] = []

    def backend(self, module: Any, inputs: Any) -> Any:
        self.graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return module.forward

    def backward(self) -> None:
        self.model(self.x).square().mean().backward()

    def step(self) -> None:
        self.optimizer.step()

    def whole(self) -> None:
        loss = self.model(self.x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def weights(self) -> list[Tensor]:
        return [param.detach().clone() for param in self.model.parameters()]


def trained(make: Any, steps: int = 4) -> list[Tensor]:
    training = Training(make)
    for _ in range(steps):
        training.whole()
    return training.weights


@each
def test_a_step_is_one_break(make: Any) -> None:
    training = Training(make)
    step = torch.compile(training.step, backend=training.backend)
    for _ in range(4):
        training.backward()
        step()
        training.optimizer.zero_grad()
    assert sum(counters["graph_break"].values()) == 1
    assert training.graphs == []
    assert all(map(torch.equal, training.weights, trained(make)))


@each
def test_the_method_itself(make: Any) -> None:
    training = Training(make)
    step = torch.compile(training.optimizer.step, backend=training.backend)
    for _ in range(4):
        training.backward()
        step()
        training.optimizer.zero_grad()
    assert training.graphs == []
    assert all(map(torch.equal, training.weights, trained(make)))


@each
def test_a_whole_training_step(make: Any) -> None:
    """The model is compiled; breaks are those that torch has anyway, at `backward`, and at most one of ours."""
    training = Training(make)
    whole = torch.compile(training.whole, backend=training.backend)
    for _ in range(4):
        whole()
    assert sum(counters["graph_break"].values()) <= 2
    (graph,) = training.graphs
    assert any("linear" in target for target in graph)
    assert all(map(torch.equal, training.weights, trained(make)))


def test_a_compiled_model_in_a_closure_stays_compiled() -> None:
    training = Training(CASES["eager"])
    calls: list[int] = []

    def backend(module: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            calls.append(1)
            return module(*args)

        return run

    model = torch.compile(training.model, backend=backend)

    def closure() -> float:
        training.optimizer.zero_grad()
        loss = model(training.x).square().mean()
        loss.backward()
        return loss.item()

    for _ in range(4):
        training.optimizer.step(closure)
    assert len(calls) == 4
    assert all(map(torch.equal, training.weights, trained(CASES["eager"])))


def test_hooks_and_schedulers_are_not_passed_by() -> None:
    training = Training(CASES["eager"])
    scheduler = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.5)
    fired: list[str] = []
    training.optimizer.register_step_pre_hook(lambda *_: fired.append("before"))
    training.optimizer.register_step_post_hook(lambda *_: fired.append("after"))
    step = torch.compile(training.step, backend=training.backend)
    for _ in range(3):
        training.backward()
        step()
        scheduler.step()
    assert fired == ["before", "after"] * 3
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 8)
