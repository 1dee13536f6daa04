"""Packed runs are the runs that they would be alone; what a GPU adds is checked as far as a CPU can."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import optimizers
from experiments import mixes, models, packed, runs, training
from experiments.packed import Flat, Step
from experiments.runs import Settings
from experiments.training import History

CPU = torch.device("cpu")
# 136 examples in batches of 32: the last one is smaller.
CNN = {"dataset": "digits", "model": "cnn", "num_epochs": 2, "num_train": 136, "num_val": 40, "batch_size": 32}
MLP = {**CNN, "model": "mlp", "num_epochs": 3, "num_train": 500}
NOISY = [name for name in optimizers.recipes if "dropout" in name or "noise" in name]
MIX = "radamw(nesterov=True)+gradient_noise+lr_dropout(0.5)+lookahead(inner='average')"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads wait for each other longer than such small networks take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alone(text: str, settings: Settings, seed: int, **options: Any) -> History:
    """The run as `runs.train` makes it, eagerly."""
    (mix,) = mixes.parse(text)
    build = lambda params, **given: mix.build(params, **{**given, "fused": False, **options})  # noqa: E731
    return runs.train(build, settings, (seed,), stack=False)[0]


def together(texts: list[str], settings: Settings, width: int = 2) -> list[History]:
    """One run of every mix, with the seeds 0, 1, …, side by side."""
    builds = [mixes.parse(text)[0].build for text in texts]
    tasks = [lambda b=b, s=s: packed.work(b, settings, s)[1] for s, b in enumerate(builds)]
    found = dict(ended for ended in packed.side_by_side(one_more(tasks), width, CPU, settings.precision) if ended)
    for result in found.values():
        if isinstance(result, Exception):
            raise result
    return [found[task] for task in tasks]


def one_more(tasks: list[Any]) -> Callable[[int], Any]:
    waiting: Iterator[Any] = iter(tasks)
    return lambda running: next(waiting, None)


def assert_alike(ours: History, theirs: History, rel: float) -> None:
    assert ours.diverged == theirs.diverged
    assert ours.train_loss == pytest.approx(theirs.train_loss, rel=rel)
    assert len(ours.epoch) == len(theirs.epoch)
    for one, other in zip(ours.epoch, theirs.epoch, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=rel)
        assert one["test_loss"] == pytest.approx(other["test_loss"], rel=rel)
        assert one["test_accuracy"] == pytest.approx(other["test_accuracy"], abs=1.5 / 40)


def flat_alone(text: str, settings: Settings, seed: int) -> History:
    """`training.train` itself on the flat network with the same optimizer: the same draws, and the same bits."""
    (mix,) = mixes.parse(text)
    ds = runs.dataset(settings)
    model = Flat(runs.network(settings, ds, seed))
    optimizer = mix.build([model.flat], seed=seed, capturable=True, fused=False)
    return training.train(
        model,
        optimizer,
        ds,
        epochs=settings.num_epochs,
        batch_size=settings.batch_size,
        seed=seed,
        schedule=settings.schedule(),
        precision=settings.precision,
        progress=False,
    )


def test_a_flat_network_computes_what_the_network_did() -> None:
    for net in (models.cnn(1, 8, seed=3), models.mlp(64, (32, 16), seed=3)):
        x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        expected = net(x)
        expected.square().sum().backward()
        before = {name: parameter.grad for name, parameter in net.named_parameters()}
        total = sum(parameter.numel() for parameter in net.parameters())
        flat = Flat(net)
        assert [(name, p.shape) for name, p in flat.named_parameters()] == [("flat", (1, total))]
        logits = flat(x)
        torch.testing.assert_close(logits, expected)
        logits.square().sum().backward()
        assert flat.flat.grad is not None
        pieces = flat.flat.grad[0].split([g.numel() for g in before.values() if g is not None])
        for piece, grad in zip(pieces, before.values(), strict=True):
            assert grad is not None
            stored = grad.permute(0, 2, 3, 1) if grad.dim() == 4 else grad
            torch.testing.assert_close(piece, stored.flatten(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", training.PRECISIONS)
def test_every_recipe_packed_is_training_itself(precision: str) -> None:
    """Bit for bit what `training.train` makes of the flat network, three runs taking turns."""
    settings = Settings(**{**MLP, "lr_schedule": True, "precision": precision})  # type: ignore[arg-type]
    texts = [*optimizers.recipes, MIX, "adam+clip_norm(0.1)"] if precision == "float32" else ["adam", MIX]
    for seed, (text, ours) in enumerate(zip(texts, together(texts, settings, width=3), strict=True)):
        theirs = flat_alone(text, settings, seed)
        assert ours.train_loss == theirs.train_loss, text
        assert ours.epoch == theirs.epoch, text


def test_the_network_with_convolutions_is_training_itself() -> None:
    settings = Settings(**CNN)  # type: ignore[arg-type]
    texts = ["adam", MIX, "lookahead_momentum"]
    for seed, (text, ours) in enumerate(zip(texts, together(texts, settings), strict=True)):
        theirs = flat_alone(text, settings, seed)
        assert (ours.train_loss, ours.epoch) == (theirs.train_loss, theirs.epoch), text


def test_packed_is_the_run_of_the_benchmark_to_within_rounding() -> None:
    """With its count on the device, 1 − β₂ᵗ is a float32, rounded by 6e-5 of it at t = 1; masks are other draws."""
    settings = Settings(**MLP)  # type: ignore[arg-type]
    plain = [name for name in optimizers.recipes if name not in NOISY]
    for seed, (text, ours) in enumerate(zip(plain, together(plain, settings, width=4), strict=True)):
        assert_alike(ours, alone(text, settings, seed), rel=5e-4)
    for text, ours in zip(NOISY, together(NOISY, settings), strict=True):
        theirs = alone(text, settings, NOISY.index(text))
        assert ours.train_loss[0] == pytest.approx(theirs.train_loss[0], rel=1e-5)
        assert ours.epoch[-1]["train_loss"] == pytest.approx(theirs.epoch[-1]["train_loss"], rel=0.1)


@pytest.mark.parametrize("kind", [MLP, CNN], ids=["mlp", "cnn"])
def test_a_network_that_is_not_flat_is_the_run_with_its_noise_and_masks(kind: dict[str, Any]) -> None:
    settings = Settings(**kind)
    for text in (MIX, "adam+clip_norm(0.1)"):
        (mix,) = mixes.parse(text)
        task = lambda: packed.work(mix.build, settings, 3, flat=False)[1]  # noqa: B023, E731
        (ended,) = filter(None, packed.side_by_side(one_more([task]), 1, CPU, "float32"))
        theirs = alone(text, settings, 3, capturable=True)
        assert isinstance(ended[1], History)
        assert (ended[1].train_loss, ended[1].epoch) == (theirs.train_loss, theirs.epoch), "bit for bit"


@pytest.mark.parametrize("changes", [{"warmup": 12}, {"lr_schedule": True, "num_epochs": 9}], ids=str)
def test_schedules_reach_the_rate_on_the_device(changes: dict[str, Any]) -> None:
    # A plateau: the loss rises at every epoch, so that patience ends after six more.
    settings = Settings(**{**MLP, "num_train": 64, **changes})  # type: ignore[arg-type]
    text = "sgd(0.01, maximize=True)" if settings.lr_schedule else "adamw(lr=0.01, decay='schedule')"
    (ours,) = together([text], settings)
    assert_alike(ours, alone(text, settings, 0), rel=2e-4)
    assert_alike(ours, flat_alone(text, settings, 0), rel=2e-5)
    constant = alone(text, Settings(**{**MLP, "num_train": 64, "num_epochs": settings.num_epochs}), 0)  # type: ignore[arg-type]
    assert abs(ours.train_loss[-1] / constant.train_loss[-1] - 1) > 1e-2, "the schedule matters here"


def test_a_run_that_diverges_ends_as_it_does_alone_and_leaves_the_others() -> None:
    settings = Settings(**{**MLP, "num_train": 500, "batch_size": 5})  # type: ignore[arg-type]
    texts = ["sgd(1e30)", "adam"]
    burst, fine = together(texts, settings)
    theirs = alone("sgd(1e30)", settings, 0)
    assert burst.diverged
    assert len(burst.train_loss) == len(theirs.train_loss)
    assert not math.isfinite(burst.train_loss[-1])
    assert burst.epoch == []
    assert_alike(fine, alone("adam", settings, 1), rel=1e-4)


def test_what_fails_does_not_stop_the_others() -> None:
    settings = Settings(**MLP)  # type: ignore[arg-type]
    (mix,) = mixes.parse("adam")

    def bad() -> Any:
        raise torch.OutOfMemoryError("out of memory")

    tasks = [bad, lambda: packed.work(mix.build, settings, 0)[1], lambda: packed.work(mix.build, settings, 1)[1]]
    found = dict(ended for ended in packed.side_by_side(one_more(tasks), 2, CPU, "float32") if ended)
    assert isinstance(found[bad], torch.OutOfMemoryError)
    assert [len(found[task].epoch) for task in tasks[1:]] == [3, 3]


def test_global_state_is_as_it_was_even_if_left_in_the_middle() -> None:
    settings = Settings(**MLP)  # type: ignore[arg-type]
    state = torch.get_rng_state()
    (mix,) = mixes.parse("adam")
    rounds = packed.side_by_side(lambda running: lambda: packed.work(mix.build, settings, 0)[1], 2, CPU, "float32")
    assert next(rounds) is None
    assert torch.are_deterministic_algorithms_enabled()
    rounds.close()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_no_more_run_at_once_than_there_is_room_for() -> None:
    alive: set[int] = set()
    most: list[int] = []

    def task(name: int) -> Any:
        def make() -> Any:
            alive.add(name)
            for _ in range(name):
                most.append(len(alive))
                yield
            alive.remove(name)
            return History()

        return make

    tasks = [task(name) for name in (3, 1, 4, 1 + 4, 9)]
    asked: list[int] = []
    waiting = one_more(tasks)

    def more(running: int) -> Any:
        asked.append(running)
        return waiting(running)

    ended = [each[0] for each in packed.side_by_side(more, 2, CPU, "float32") if each]
    assert sorted(map(tasks.index, ended)) == [0, 1, 2, 3, 4]
    assert max(most) == 2
    assert set(asked) <= {0, 1}


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A capture as a GPU makes it, but that its replay runs the step: warm-up steps that leave their marks, too."""
    captured: list[int] = []

    def graph(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        captured.append(1)
        for _ in range(packed.WARM_UP):
            step()
        return step

    monkeypatch.setattr(packed, "_graph", graph)
    return captured


def captured_steps(text: str, count: int) -> tuple[list[Tensor], Step]:
    """Losses and the parameter after some steps of two sizes of batch."""
    settings = Settings(**{**CNN, "batch_size": 16})  # type: ignore[arg-type]
    ds = runs.dataset(settings)
    model = Flat(runs.network(settings, ds, 0))
    optimizer = mixes.parse(text)[0].build([model.flat], capturable=True, fused=False)
    step = Step(model, optimizer, "float32", capture=True)
    x, y, *_ = training.resident(ds, CPU, training.layout(model))
    losses = [step(x, y, torch.arange(k, k + (16 if k % 3 else 9))).clone() for k in range(count)]
    return [*losses, model.flat.detach(), *model.buffers()], step


@pytest.mark.parametrize("text", ["adam", "nadam", "amsbound", MIX, "sgd(0.1, momentum=0.9)", "aggmo"])
def test_warming_up_for_a_capture_leaves_no_trace(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, running means, state and counts are what they were: five steps are five steps."""
    captured = stand_in(monkeypatch)
    ours, _ = captured_steps(text, 5)
    assert len(captured) == 2, "one graph for each size of batch"
    monkeypatch.setattr(packed, "_graph", lambda step: step)
    theirs, _ = captured_steps(text, 5)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_where_a_capture_fails_the_step_is_eager_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fails(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        calls.append(1)
        step()
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(packed, "_graph", fails)
    with pytest.warns(UserWarning, match="not captured but made eagerly: operation not permitted when stream"):
        ours, step = captured_steps("adam", 5)
    assert step.failure == "operation not permitted when stream is capturing"
    assert len(calls) == 1, "it is not tried again for another size"
    monkeypatch.setattr(packed, "_graph", lambda step: step)
    theirs, _ = captured_steps("adam", 5)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_a_long_row_is_stepped_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `Flat` counts on: a parameter of a single row, however long, takes one pass of every operation."""
    calls: list[torch.Size] = []
    update = optimizers.adam.AdamDirection.update

    def counted(grad: Tensor, **given: Any) -> Any:
        calls.append(grad.shape)
        return update(grad, **given)

    monkeypatch.setattr(optimizers.adam.AdamDirection, "update", staticmethod(counted))
    parameter = torch.zeros(1, 300_000, requires_grad=True)
    parameter.grad = torch.ones_like(parameter)
    optimizers.Adam([parameter], fused=False).step()
    assert calls == [(1, 300_000)]


class NothingRead(TorchDispatchMode):
    """Refuses what a graph cannot capture: reading a device's value, and copies between it and the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, Tensor)]
        if func.overloadpacket.__name__ in ("_to_copy", "copy_"):
            assert len({tensor.device.type for tensor in tensors}) == 1, f"{func} between devices"
        return result


READERS = ("adafactor", "shampoo", "soap")
CAPTURED = [name for name in optimizers.list() if name not in READERS]


@pytest.mark.parametrize("name", READERS)
def test_who_must_read_its_count_cannot_be_captured(name: str) -> None:
    """It does something else at every so many steps, or at a learning rate of 0."""
    parameter = torch.zeros(4, 500, device="meta", requires_grad=True)
    optimizer = optimizers.create(name, [parameter], capturable=True)
    parameter.grad = torch.zeros(4, 500, device="meta")
    with pytest.raises(RuntimeError, match=r"reads its count at every step: .* capturable=False"):
        optimizer.step()


@pytest.mark.parametrize(
    "text", [*optimizers.recipes, *CAPTURED, MIX, "adam+clip_norm(1.0)", "adam+clip_value(0.1)"]
)
def test_a_capturable_step_reads_nothing_back(text: str) -> None:
    """On the meta device, whose values nobody can read: a step with its rate on the device asks for none."""
    (mix,) = mixes.parse(text)
    parameter = torch.zeros(1, 500, device="meta", requires_grad=True)
    optimizer = mix.build([parameter], capturable=True)
    (group,) = optimizer.param_groups
    group["lr"] = torch.tensor(0.1, device="meta")
    parameter.grad = torch.zeros(1, 500, device="meta")
    optimizer.step()
    with NothingRead():
        for _ in range(2):
            optimizer.step()


def test_throughput_counts_the_steps_of_all() -> None:
    settings = Settings(**{**MLP, "batch_size": 16})  # type: ignore[arg-type]
    assert packed.throughput(mixes.parse("adam")[0].build, settings, width=2, turns=1) > 0
