"""Two processes train to the weights of one: DDP, FSDP2 (`fully_shard`) and ZeRO-1, noise and masks included."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import optimizers
from optimizers import (
    MARS,
    SAM,
    Average,
    Cautious,
    Chain,
    ClipNorm,
    GradientDropout,
    GradientNoise,
    LearningRateDropout,
    Lookahead,
    ScheduleFree,
)

STEPS = 5
EXTENSIONS: dict[str, tuple[Any, ...]] = {
    "plain": (),
    "all": (GradientNoise(0.1), GradientDropout(0.8), LearningRateDropout(0.6), Lookahead(2), ClipNorm(0.5)),
    # Noise only to the last place of float32: shards differ in what is left over when vectors are full.
    "compiled": (GradientDropout(0.8), LearningRateDropout(0.6), Lookahead(2), ClipNorm(0.5)),
    # ZeRO's optimizers see their own gradients only, of which there is no global norm.
    "unclipped": (GradientNoise(0.1), GradientDropout(0.8), LearningRateDropout(0.6), Lookahead(2)),
    "schedule-free": (ScheduleFree(0.8, warmup_steps=2), SAM(0.1)),
    "sums": (MARS(beta=0.5), Cautious()),
    "averaged": (Average(0.7), SAM(0.1), ClipNorm(0.5)),
}
CASES = [(name, mix) for name in optimizers.list() for mix in ("plain", "all")]
CASES += [(name, "compiled") for name in ("adam", "lamb", "nadam", "prodigy", "radamw", "sgdw")]
CASES += [("adamw", "sums")]
CASES += [(name, mix) for name in ("adamw", "sgd") for mix in ("schedule-free", "averaged")]
OTHERS = [("adam", "unclipped"), ("sgd", "unclipped")]  # for other ways of making optimizers


class Model(nn.Module):
    """Odd sizes: five rows are split 3 and 2, and of one row the second process has none."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


def settings(name: str, mix: str, params: list[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    options: dict[str, Any] = {"momentum": 0.9} if name in ("sgd", "sgdw", "rmsprop") else {}
    if name == "soap":
        # Of five axes a first gradient of rank 3 leaves two open: rounding would choose them.
        options = {"max_precond_dim": 3}
    groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}]
    if name == "muon":  # vectors are AdamW's
        flat = [(p[1] if isinstance(p, tuple) else p).dim() < 2 for p in params]
        groups[1:] = [
            {
                "params": [p for p, vector in zip(params[1:], flat[1:], strict=True) if not vector],
                "weight_decay": 0.1,
            },
            {"params": [p for p, vector in zip(params[1:], flat[1:], strict=True) if vector], "weight_decay": 0.1},
        ]
        groups[2]["direction"] = "adamw"
    return groups, {"lr": 0.05, "extensions": EXTENSIONS[mix], "fused": mix == "compiled", **options}


def make(name: str, mix: str, model: nn.Module, named: bool = False) -> Chain:
    groups, options = settings(name, mix, list(model.named_parameters() if named else model.parameters()))
    return optimizers.create(name, groups, **options)


def zero(name: str, mix: str, model: nn.Module) -> ZeroRedundancyOptimizer:
    """The second group comes later."""
    groups, options = settings(name, mix, list(model.parameters()))
    rule = {"adam": optimizers.Adam, "sgd": optimizers.SGD}[name]
    optimizer = ZeroRedundancyOptimizer(groups[:1], rule, **options)
    optimizer.add_param_group(groups[1])
    return optimizer


class PerParameter:
    """As optimizer-in-backward has it: one optimizer per parameter, with names or without."""

    def __init__(self, name: str, mix: str, model: nn.Module, named: bool) -> None:
        groups, options = settings(name, mix, list(model.named_parameters() if named else model.parameters()))
        each = [{**group, "params": [param]} for group in groups for param in group["params"]]
        self.optimizers = [optimizers.create(name, [group], **options) for group in each]

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def train(model: nn.Module, optimizer: Any, rank: int, processes: int, steps: range = range(STEPS)) -> None:
    """Every process has its share of each batch; the mean of their gradients is that of the whole batch."""
    for t in steps:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        mine = x[rank::processes]

        def loss(mine: Tensor = mine) -> Tensor:
            optimizer.zero_grad()
            value: Tensor = (model(mine) - mine.sum(1, keepdim=True)).square().mean()
            value.backward()
            return value

        if not isinstance(optimizer, Chain):
            loss()
            optimizer.step()
            continue
        optimizer.step(loss)
        with optimizer.averaged(), torch.no_grad():
            model(mine)
        if isinstance(model, FSDPModule):
            model.reshard()


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


PLACEMENTS = {"replicated": Replicate(), "rows": Shard(0), "columns": Shard(1), "summands": Partial()}
PLACED = [
    (fused, clip, param, grad)
    for fused in (False, True)
    for clip in (False, True)
    for param in ("replicated", "rows", "columns")
    for grad in PLACEMENTS
]


def clipped_sgd(params: list[Any], clip: bool, fused: bool) -> Chain:
    return optimizers.SGD(params, 0.1, momentum=0.9, extensions=[ClipNorm(1.5)] * clip, fused=fused)


def placed(mesh: Any) -> dict[Any, Any]:
    """Where DTensors lead whose gradients, and then state, are placed otherwise than they; what is refused."""
    ends: dict[Any, Any] = {}
    numbers = torch.arange(15.0, dtype=torch.float64).view(5, 3) / 10
    for fused, clip, param_at, grad_at in PLACED:
        param = nn.Parameter(distribute_tensor(numbers.clone(), mesh, [PLACEMENTS[param_at]]))
        optimizer = clipped_sgd([param], clip, fused)
        for t in range(3):
            # Of summands each process holds half of what the gradient is.
            if grad_at == "summands":
                param.grad = DTensor.from_local((numbers - t) / 2, mesh, [Partial()])
            else:
                param.grad = distribute_tensor(numbers - t, mesh, [PLACEMENTS[grad_at]])
            optimizer.step()
            assert param.placements == (PLACEMENTS[param_at],)
            state = optimizer.state[param]
            other = [Replicate() if param_at == "rows" else Shard(0)]
            state["momentum_buffer"] = state["momentum_buffer"].redistribute(mesh, other)
        ends[fused, clip, param_at, grad_at] = whole(param)
    for name, param, grad in (
        ("plain gradient", distribute_tensor(numbers, mesh, [Replicate()]), numbers.clone()),
        ("placed gradient", numbers.clone(), distribute_tensor(numbers, mesh, [Replicate()])),
        ("summands", *(DTensor.from_local(numbers.clone(), mesh, [Partial()]) for _ in range(2))),
    ):
        for fused in (False, True):
            first = nn.Parameter(torch.ones(2))
            first.grad = torch.ones(2)
            optimizer = clipped_sgd([first, nn.Parameter(param)], False, fused)
            optimizer.param_groups[0]["params"][1].grad = grad
            try:
                optimizer.step()
            except RuntimeError as error:
                ends[name, fused] = str(error), first.tolist()
    return ends


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    init = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init, timedelta(minutes=4), world_size=2, rank=rank)
    mesh = init_device_mesh("cpu", (2,))
    ends, checkpoint = {}, {}
    for name, mix in CASES:
        copies = DistributedDataParallel(Model())
        train(copies, make(name, mix, copies), rank, 2)
        shards = Model()
        fully_shard(shards, mesh=mesh)
        optimizer = make(name, mix, shards)
        train(shards, optimizer, rank, 2)
        assert bool(optimizer.source()) is (mix == "compiled")
        ends[name, mix] = {
            "ddp": [whole(p) for p in copies.parameters()],
            "fsdp": [whole(p) for p in shards.parameters()],
            "local": [tuple(p.to_local().shape) for p in shards.parameters()],
        }
        checkpoint[f"{name}-{mix}"] = dict(
            zip(("model", "optimizer"), get_state_dict(shards, optimizer), strict=True)
        )
    dcp.save(checkpoint, checkpoint_id=folder / "checkpoint")
    torch.save(placed(mesh), folder / f"{rank}-placed.pt")
    for name, mix in OTHERS:
        ends[name, mix] = {}
        copies = DistributedDataParallel(Model())
        optimizer = zero(name, mix, copies)
        train(copies, optimizer, rank, 2)
        ends[name, mix]["zero"] = [whole(p) for p in copies.parameters()]
        optimizer.consolidate_state_dict()
        if rank == 0:
            state = optimizer.state_dict()
            for group in state["param_groups"]:
                del group["extensions"]  # ZeRO takes all arguments for hyper-parameters
            ends[name, mix]["state"] = state
        for named in (False, True):
            shards = Model()
            fully_shard(shards, mesh=mesh)
            train(shards, PerParameter(name, mix, shards, named), rank, 2)
            ends[name, mix]["each", named] = [whole(p) for p in shards.parameters()]
            copies = DistributedDataParallel(Model())
            train(copies, make(name, mix, copies, named), rank, 2)
            ends[name, mix]["ddp", named] = [whole(p) for p in copies.parameters()]
    torch.save(ends, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind, once for all tests."""
    folder = tmp_path_factory.mktemp("distributed")
    root = Path(optimizers.__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(2)]
    workers = [subprocess.Popen(c, cwd=root, env=env, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        errors = [worker.communicate(timeout=280)[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    finally:
        for worker in workers:
            worker.kill()
    return folder


@pytest.fixture(scope="module")
def ends(folder: Path) -> list[Any]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_gradient_comes_to_its_parameters_placements(folder: Path, rank: int) -> None:
    """Summands are added, shards gathered or cut; what ClipNorm sees, too. Replicas stay alike."""
    ends = torch.load(folder / f"{rank}-placed.pt", weights_only=True)
    numbers = torch.arange(15.0, dtype=torch.float64).view(5, 3) / 10
    for clip in (False, True):
        param = nn.Parameter(numbers.clone())
        optimizer = clipped_sgd([param], clip, False)
        for t in range(3):
            param.grad = numbers - t
            optimizer.step()
        for case in [case for case in PLACED if case[1] is clip]:
            torch.testing.assert_close(ends[case], param.detach(), rtol=0, atol=1e-12, msg=str(case))


def test_what_is_placed_on_one_side_only_is_refused(folder: Path) -> None:
    for rank in (0, 1):
        ends = torch.load(folder / f"{rank}-placed.pt", weights_only=True)
        for fused in (False, True):
            for name, says in (
                ("plain gradient", "a DTensor, is a plain tensor: distribute it, too"),
                ("placed gradient", "is a DTensor, the parameter is not"),
                ("summands", "is a sum spread over processes"),
            ):
                message, first = ends[name, fused]
                assert says in message
                assert first == [1.0, 1.0]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_train_to_the_weights_of_one(ends: list[Any], case: tuple[str, str], way: str) -> None:
    model = Model()
    train(model, make(*case, model), 0, 1)
    for rank in range(2):
        for ours, expected in zip(ends[rank][case][way], model.parameters(), strict=True):
            assert (ours - expected).abs().max() < 1e-12
    assert [a == b for a, b in zip(ends[0][case]["local"], ends[1][case]["local"], strict=True)] == [False] * 4
    assert all(torch.equal(a, b) for a, b in zip(ends[0][case][way], ends[1][case][way], strict=True))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_process_goes_on_from_the_checkpoint_of_two(folder: Path, case: tuple[str, str]) -> None:
    """A sharded checkpoint is loaded whole, and training goes on as if one process had made all steps."""
    model, plain = Model(), Model()
    other = make(*case, plain)
    train(plain, other, 0, 1)
    optimizer = make(*case, model)
    weights, state = get_state_dict(model, optimizer)
    loaded = {"-".join(case): {"model": weights, "optimizer": state}}
    dcp.load(loaded, checkpoint_id=folder / "checkpoint")
    loaded = loaded["-".join(case)]
    set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    for ours, expected in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert ours.keys() == expected.keys()
        assert all(torch.allclose(ours[key], expected[key], rtol=0, atol=1e-12) for key in ours)
    for both in ((model, optimizer), (plain, other)):
        train(*both, 0, 1, range(STEPS, STEPS + 3))
    for ours, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours - expected).abs().max() < 1e-12


@pytest.mark.parametrize("case", OTHERS, ids="-".join)
def test_other_ways_of_making_optimizers_train_to_the_same_weights(ends: list[Any], case: tuple[str, str]) -> None:
    """ZeRO-1; and a sharded model with an optimizer per parameter, and a replicated one, with names and without."""
    weights = {}
    for named in (False, True):
        model = Model()
        train(model, make(*case, model, named), 0, 1)
        weights[named] = values = list(model.parameters())
        for rank in range(2):
            for way in [("each", named), ("ddp", named), *([] if named else ["zero"])]:
                for ours, expected in zip(ends[rank][case][way], values, strict=True):
                    assert (ours - expected).abs().max() < 1e-12, way
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(weights[False], weights[True], strict=True))


@pytest.mark.parametrize("case", OTHERS, ids="-".join)
def test_one_process_goes_on_from_the_checkpoint_of_zero(ends: list[Any], case: tuple[str, str]) -> None:
    model, plain = Model(), Model()
    other = make(*case, plain)
    train(plain, other, 0, 1)
    optimizer = make(*case, model)
    state = ends[0][case]["state"]
    assert [state["state"][i]["index"] for i in range(4)] == [0, 1, 2, 3]
    optimizer.load_state_dict(state)
    with torch.no_grad():
        for param, start in zip(model.parameters(), ends[0][case]["zero"], strict=True):
            param.copy_(start)
    for both in ((model, optimizer), (plain, other)):
        train(*both, 0, 1, range(STEPS, STEPS + 3))
    for ours, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours - expected).abs().max() < 1e-12


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
