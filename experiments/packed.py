"""Many training runs side by side on one GPU, so that it is full: the same runs, differently packed.

Alone, the reference's network leaves an H100 waiting for Python: a step is some hundred kernels of a few
microseconds each, and launching them takes longer than running them. Three things mend that. They change no step:

- A network's parameters are one tensor (`Flat`), so a rule takes some twenty kernels, not twenty per parameter.
  (Not for a rule that looks at more than a coordinate.)
- A whole step (forward, backward, optimizer) is captured once as a CUDA graph and then replayed (`Step`).
- Several runs take turns, each on a stream of its own (`side_by_side`): while one waits for the device, the others
  have steps in the queue, and their kernels fill the gaps of each other's. One process and one thread: processes
  would share the card by turns of milliseconds.

A run is `training.by_steps`, as everywhere. Only noise and masks, which are functions of a coordinate and its
parameter, are other draws: those of one long parameter.
"""

import time
import warnings
from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from experiments import runs, training
from experiments.runs import Settings
from experiments.training import History
from optimizers import Chain
from optimizers.engine.state import begin

WARM_UP = 3  # steps before a capture, in which libraries make their handles and workspaces
STEPS_A_TURN = 10  # where throughput is measured
Work = Generator[None, None, History]  # as `training.by_steps` makes it
Task = Callable[[], Work]


class Flat(nn.Module):
    """A network whose parameters are views of one, `flat`, of shape (1, n): a single row is never cut in slices.

    It takes over `net`, and computes what that did. Convolutions keep the layout that is fastest for them.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        named = dict(net.named_parameters())
        self.flat = nn.Parameter(torch.cat([_as_stored(p.detach()).flatten() for p in named.values()])[None])
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        for name in named:  # else they would be there twice
            place, _, last = name.rpartition(".")
            delattr(net.get_submodule(place), last)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.flat.view(-1).split([shape.numel() for shape in self.shapes.values()])  # type: ignore[no-untyped-call]
        views = {
            name: piece.view(shape) if len(shape) != 4 else piece.view(*_stored(shape)).permute(0, 3, 1, 2)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }
        logits: Tensor = torch.func.functional_call(self.net, views, (x,))
        return logits


def _stored(shape: torch.Size) -> tuple[int, ...]:
    """A convolution's shape in the order of its memory, channels last."""
    out, channels, height, width = shape
    return out, height, width, channels


def _as_stored(parameter: Tensor) -> Tensor:
    return parameter.permute(0, 2, 3, 1) if parameter.dim() == 4 else parameter


class Step:
    """One step of a network and its optimizer on some examples of a set, for `training.by_steps`.

    On a GPU it is a graph, one for every size of batch, captured when first needed; where a capture fails, the step
    is made eagerly from then on, and `failure` says why. The optimizer must be capturable. Its learning rate is
    that of `rates`, which a scheduler moves: a plain number, on the host.
    """

    def __init__(self, model: nn.Module, optimizer: Chain, precision: str, capture: bool) -> None:
        self.model, self.optimizer, self.precision, self.capture = model, optimizer, precision, capture
        self.failure = ""
        (group,) = optimizer.param_groups
        self.device = group["params"][0].device
        self.rates = torch.optim.SGD([torch.zeros(1)], lr=float(group["lr"]))
        self.shown = float(group["lr"])
        self.rate = group["lr"] = torch.tensor(self.shown, dtype=torch.float32, device=self.device)
        indices = optimizer._indices.of(0, group)
        for index, parameter in zip(indices, group["params"], strict=True):  # what a graph writes to must be there
            begin(optimizer.state[parameter], parameter, index, optimizer._active(group), group)
        self.replays: dict[int, tuple[Tensor, Callable[[], Tensor]]] = {}

    def scheduler(self, make: Callable[[torch.optim.Optimizer], LRScheduler] | None) -> LRScheduler | None:
        scheduler = make(self.rates) if make else None
        self.rates.step()  # it moves nothing; a scheduler wants to have seen it
        return scheduler

    def __call__(self, x: Tensor, y: Tensor, indices: Tensor) -> Tensor:
        rate = self.rates.param_groups[0]["lr"]
        if rate != self.shown:
            self.shown = rate
            self.rate.fill_(rate)
        if len(indices) not in self.replays:
            chosen = indices.clone()
            self.replays[len(indices)] = chosen, self._prepared(lambda: self._eager(x, y, chosen))
        chosen, replay = self.replays[len(indices)]
        chosen.copy_(indices)
        return replay()

    def _eager(self, x: Tensor, y: Tensor, indices: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with training.autocast(self.device, self.precision):
            loss = F.cross_entropy(self.model(x.index_select(0, indices)), y.index_select(0, indices))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def _prepared(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The step as a graph, if it can be one, with everything as it was before."""
        if not self.capture or self.failure:
            return step
        states = [tensor for state in self.optimizer.state.values() for tensor in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *states]
        kept = [tensor.detach().clone() for tensor in tensors]
        try:
            return _graph(step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.failure = " ".join(str(error).split())[:300] or type(error).__name__
            warnings.warn(f"the step is not captured but made eagerly: {self.failure}", stacklevel=2)
            return step
        finally:
            with torch.no_grad():
                for tensor, before in zip(tensors, kept, strict=True):
                    tensor.copy_(before)


def _graph(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A CUDA graph of a step, made on the current stream: so every run has library workspaces of its own."""
    for _ in range(WARM_UP):
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def work(
    build: Callable[..., Chain],
    settings: Settings,
    seed: int,
    *,
    flat: bool = True,
    capture: bool = True,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> tuple[Step, Work]:
    """The run that `runs.train` makes of these settings and this seed, for `side_by_side`, and its step.

    `build(params, seed=…, …)` makes the optimizer. A rule that looks at more than a coordinate must not be `flat`.
    """
    ds, device = runs.dataset(settings), torch.device(settings.device)
    net = runs.network(settings, ds, seed)
    model = (Flat(net) if flat else net.to(memory_format=training.layout(net))).to(device)  # type: ignore[call-overload]
    training.resident(ds, device, training.layout(model))
    if device.type == "cuda":  # the set is for all streams
        torch.cuda.synchronize(device)
    fused = None if device.type == "cuda" else False  # compiled where that is for a GPU
    optimizer = build(model.parameters(), seed=seed, capturable=True, fused=fused)
    step = Step(model, optimizer, settings.precision, capture and device.type == "cuda")
    return step, training.by_steps(
        model,
        step,
        ds,
        epochs=settings.num_epochs,
        batch_size=settings.batch_size,
        seed=seed,
        device=device,
        scheduler=step.scheduler(settings.schedule()),
        precision=settings.precision,
        progress=progress,
    )


def side_by_side(
    more: Callable[[int], Task | None], width: int, device: torch.device, precision: str
) -> Iterator[tuple[Task, History | Exception] | None]:
    """Run tasks, which make works, by turns, up to `width` at a time; yield each, as it ends, with what came of it.

    Where there is room, `more` is asked for a task, and told how many run; None is for none now. After every round
    of turns None is yielded: whoever stops there leaves the tasks that run unfinished.
    """
    lanes: dict[int, tuple[Task, Work]] = {}
    on_gpu = device.type == "cuda"
    streams = [torch.cuda.Stream(device) if on_gpu else None for _ in range(width)]  # type: ignore[no-untyped-call]

    def turn(lane: int, task: Task) -> History | Exception | None:
        """What came of the task, if it ended in this turn."""
        with torch.cuda.stream(streams[lane]):  # of None it does nothing
            try:
                if lane not in lanes:
                    lanes[lane] = task, task()
                next(lanes[lane][1])
                return None
            except StopIteration as end:
                history: History = end.value
                return history
            except Exception as error:  # of this task: the others go on
                return error

    with training.deterministic(0, device, precision):
        idle = False
        while not idle:
            idle = True
            for lane in range(width):
                task = lanes[lane][0] if lane in lanes else more(len(lanes))
                if task is None:
                    continue
                idle = False
                result = turn(lane, task)
                if result is not None:
                    lanes.pop(lane, None)
                    yield task, result
            yield None


def throughput(
    build: Callable[..., Chain], settings: Settings, width: int, *, capture: bool = True, turns: int = 5
) -> float:
    """Steps per second of `width` runs side by side, all of them captured before the clock starts."""
    device, started = torch.device(settings.device), 0

    def task() -> Work:
        step, _ = work(build, settings, 0, capture=capture)
        x, y, *_ = training.resident(runs.dataset(settings), device, training.layout(step.model))
        indices = torch.arange(settings.batch_size, device=device)
        step(x, y, indices)
        yield
        for _ in range(turns):
            for _ in range(STEPS_A_TURN):
                step(x, y, indices)
            yield
        return History()

    def more(running: int) -> Task | None:
        nonlocal started
        started += 1
        return task if started <= width else None

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    rounds = side_by_side(more, width, device, settings.precision)
    next(rounds)
    began = wait()
    for ended in rounds:
        if ended and isinstance(ended[1], Exception):
            raise ended[1]
    return width * turns * STEPS_A_TURN / (wait() - began)
