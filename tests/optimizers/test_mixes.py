"""Every rule of a longer reach, or newer, with every extension: in any mix, what torch expects of an optimizer."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers import (
    ADOPT,
    ASAM,
    LAMB,
    MARS,
    SAM,
    SOAP,
    AdaBelief,
    Adafactor,
    AdEMAMix,
    Average,
    Cautious,
    CautiousWeightDecay,
    Chain,
    ClipNorm,
    GradientDropout,
    GradientNoise,
    Hyperball,
    Kahan,
    LearningRateDropout,
    Lion,
    Lookahead,
    Muon,
    Prodigy,
    Rotated,
    ScheduleFree,
    Shampoo,
    Signum,
    Stage,
    StateDtype,
    StochasticRounding,
)
from optimizers.lion import LionDirection

Make = Callable[..., Chain]
RULES: dict[str, Make] = {
    "lion": Lion,
    "signum": Signum,
    "adopt": ADOPT,
    "ademamix": AdEMAMix,
    "adabelief": AdaBelief,
    "lamb": lambda p, **o: LAMB(p, weight_decay=0.0, **o),
    "adafactor": lambda p, **o: Adafactor(p, momentum=0.5, **o),
    "prodigy": lambda p, **o: Prodigy(p, d0=1e-3, **o),
    "muon": lambda p, **o: Muon(p, weight_decay=0.0, **o),
    "normuon": lambda p, **o: Muon(p, weight_decay=0.0, row_beta=0.9, **o),
    "shampoo": lambda p, **o: Shampoo(p, momentum=0.5, graft="adam", **o),
    "soap": lambda p, **o: SOAP(p, weight_decay=0.0, precondition_frequency=2, **o),
    "soap-lion": lambda p, **o: Chain(p, [Rotated(LionDirection(), precondition_frequency=2)], **o),
}
MATRICES = ("adafactor", "muon", "normuon", "shampoo", "soap", "soap-lion")
EXTENSIONS: dict[str, Callable[[], Stage]] = {
    "schedule-free": ScheduleFree,
    "sam": SAM,
    "asam": ASAM,
    "cautious": Cautious,
    "cautious-decay": CautiousWeightDecay,
    "mars": lambda: MARS(beta=0.9),
    "average": Average,
    "hyperball": Hyperball,
    "stochastic-rounding": StochasticRounding,
    "kahan": Kahan,
    "state-dtype": StateDtype,
    "lookahead": lambda: Lookahead(2),
    "lookahead-reset": lambda: Lookahead(2, 0.5, "reset"),
    "lookahead-average": lambda: Lookahead(2, 0.5, "average"),
    "noise": lambda: GradientNoise(0.1),
    "lr-dropout": lambda: LearningRateDropout(0.5),
    "gradient-dropout": lambda: GradientDropout(0.5),
    "clip": lambda: ClipNorm(0.5),
}
SETS: dict[str, tuple[str, ...]] = {
    "none": (),
    **{name: (name,) for name in EXTENSIONS},
    # All that may mix, as far as they do not exclude one another
    "free": ("schedule-free", "sam", "cautious", "mars", "stochastic-rounding", "state-dtype", "noise", "clip"),
    "sphere": ("hyperball", "lookahead", "asam", "cautious", "mars", "kahan", "state-dtype", "gradient-dropout"),
    "averaged": ("average", "cautious", "cautious-decay", "mars", "kahan", "lr-dropout"),
}
IN_16_BITS = ("none", "stochastic-rounding", "kahan", "state-dtype", "free", "sphere")
# To compile takes a second and more.
COMPILED = {"none": tuple(RULES), "free": ("lamb", "soap-lion"), "sphere": ("muon",), "averaged": ("prodigy",)}
CASES = {
    " ".join((rule, mix, str(dtype).removeprefix("torch."), "fused" * fused)): (rule, mix, dtype, fused)
    for rule in RULES
    for mix in SETS
    for dtype in (torch.float32, torch.bfloat16)
    for fused in (False, True)
    if (mix in IN_16_BITS or dtype == torch.float32) and (not fused or rule in COMPILED.get(mix, ()))
}


class Case:
    """A rule in a mix, and a path of it: noisy gradients for two matrices, and a vector in a group of its own."""

    pull = 0.1  # of the parameters towards 0

    def __init__(self, rule: str, mix: str, fused: bool) -> None:
        self.rule, self.fused, self.mix = rule, fused, SETS[mix]

    def make(self, params: Sequence[Tensor], **options: Any) -> Chain:
        optimizers.new_run()
        vectors: dict[str, Any] = {"params": list(params[2:])}
        if "muon" in self.rule:
            vectors["direction"] = "adamw"
        if "hyperball" in self.mix:
            vectors["hyperball"] = False
        given = {"lr": 1.0 if self.rule == "prodigy" else 0.01, "fused": self.fused, **options}
        extensions = [EXTENSIONS[name]() for name in self.mix]
        return RULES[self.rule]([{"params": list(params[:2])}, vectors], extensions=extensions, **given)

    def run(self, optimizer: Chain, params: Sequence[Tensor], steps: range, sign: int = 1) -> list[Tensor]:
        path = []
        for t in steps:

            def closure(t: int = t) -> float:
                for i, param in enumerate(params):
                    # Some coordinates have the gradient 0, and the vector has none at every third step.
                    noise = normal(param.shape, 100 * t + i) * (normal(param.shape, i) > -1)
                    gradient = sign * (noise + self.pull * param.detach())
                    param.grad = None if i == 2 and t % 3 == 1 else gradient.to(param.dtype)
                return 0.0

            optimizer.step(closure)
            path += [param.detach().clone() for param in params]
        return path


def normal(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [nn.Parameter(normal(shape, 7 + i).to(dtype)) for i, shape in enumerate(((4, 3), (3, 2, 2), (5,)))]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else a == b)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("label", CASES)
def test_a_mix_is_an_optimizer(label: str) -> None:
    """It stays finite, goes on exactly from a checkpoint, a copy and a pickle, and compiled as eagerly; it
    maximizes by the negated gradients."""
    rule, mix, dtype, fused = CASES[label]
    case, params = Case(rule, mix, fused), parameters(dtype)
    if mix in ("lookahead-reset", "lookahead-average") and rule in set(MATRICES) - {"muon", "normuon"}:
        with pytest.raises(ValueError, match=r"inner='\w+' needs a velocity, but [A-Z]\w+\(.*\) has none"):
            case.make(params)
        return
    optimizer = case.make(params)
    path = case.run(optimizer, params, range(3))
    assert all(tensor.isfinite().all() for tensor in path)
    assert dtype != torch.float32 or not any(map(torch.equal, path[-3:], parameters()))

    torch.save([params, optimizer.state_dict()], file := io.BytesIO())
    file.seek(0)
    again, state = torch.load(file)
    resumed = case.make(again)
    resumed.load_state_dict(state)
    assert same(resumed.state_dict(), optimizer.state_dict())
    twins = [(resumed, again), copy.deepcopy((optimizer, params)), pickle.loads(pickle.dumps((optimizer, params)))]
    rest = case.run(optimizer, params, range(3, 6))
    for twin, its in twins:
        assert same(case.run(twin, its, range(3, 6)), rest)
        assert same(twin.state_dict(), optimizer.state_dict())

    if fused and dtype == torch.float32:
        assert "Execution: compiled" in repr(optimizer)
        others = parameters(dtype)
        eager = case.run(Case(rule, mix, False).make(others), others, range(6))
        apart = max((a - b).abs().max().item() for a, b in zip(path + rest, eager, strict=True))
        assert apart < 2e-6

    case.pull = 0.0  # SAM, too, is given the same gradients with the other sign
    ends = []
    for sign in (1, -1):
        its = parameters(dtype)
        ends.append(case.run(case.make(its, maximize=sign < 0), its, range(3), sign))
    assert same(*ends)


TOGETHER = {
    ("schedule-free", "average"): "its parameters lie between the iterates and their average",
    ("schedule-free", "lookahead"): "its parameters lie between the iterates and their average",
    ("schedule-free", "hyperball"): "the average of weights on a sphere",
    ("average", "lookahead"): "each say where to evaluate",
    ("kahan", "stochastic-rounding"): "Kahan makes up for a rounding to nearest",
    ("hyperball", "cautious-decay"): "which keeps the norm that decay would change",
}


@pytest.mark.parametrize("pair", TOGETHER, ids=" and ".join)
def test_what_does_not_mix_is_refused_by_name(pair: tuple[str, str]) -> None:
    stages = [EXTENSIONS[name]() for name in pair]
    for extensions in (stages, stages[::-1]):
        with pytest.raises(ValueError, match=TOGETHER[pair]) as error:
            optimizers.AdamW([torch.zeros(2, 2)], weight_decay=0.0, extensions=extensions)
        assert all(type(stage).__name__ in str(error.value) for stage in stages)
