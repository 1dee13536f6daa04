# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Curriculum learning: what was run
#
# The experiments behind the chapter on Koenecke & Gajewar (2019). The claims that they decide were fixed before the
# run, in `book/claims/curriculum.yaml`. The paper's revenue data are private. So the first two experiments are
# exact, on the linear model of the theory, and the third trains LSTMs on synthetic quarterly series, with the
# controls of Wu, Dyer & Neyshabur (2021).

# %% tags=["parameters"]
scale = "quick"  # quick: 16 units, a short training · standard: 32 units · paper: longer, more series
seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # of the reported runs; learning rates are chosen with others
device = "cpu"
out = "curriculum.json"  # where the record goes, relative to the working directory

# %%
import itertools
import math
from typing import NamedTuple

import torch

from experiments import records
from optimizers import SGD, Adam

SETTINGS = {
    "quick": {"units": 16, "series": 200, "batch": 32, "updates": 150},
    "standard": {"units": 32, "series": 200, "batch": 32, "updates": 1500},
    "paper": {"units": 32, "series": 500, "batch": 64, "updates": 10000},
}[scale]
record = records.new("curriculum", scale, {"seeds": seeds, "device": device, **SETTINGS})

# %% [markdown]
# ## 1 · One step on an example of a given difficulty
#
# $y = x^\top w^* \pm \sqrt\Psi$ with standard normal $x$ in ten dimensions. How much nearer to $w^*$ does one step
# of SGD on $(x^\top w - y)^2$ come, on average? The step is the package's, on 300,000 examples per seed at once.

# %%
DIMENSIONS, RATE, SQUARED, EXAMPLES = 10, 0.01, 10.25, 300_000
DIFFICULTIES = [0.0, 0.25, 1.0, 4.0, 9.0]


def expected_decrease(squared, difficulty, lr, d):
    return 4 * lr * squared - 4 * lr**2 * ((d + 2) * squared + difficulty * d)


offset = torch.zeros(DIMENSIONS, dtype=torch.float64)
offset[:2] = torch.tensor([SQUARED / 2, SQUARED / 2], dtype=torch.float64).sqrt()
decrease = {difficulty: [] for difficulty in DIFFICULTIES}
for seed in seeds[:5]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(EXAMPLES, DIMENSIONS, generator=generator, dtype=torch.float64)
    sign = torch.where(torch.rand(EXAMPLES, generator=generator) < 0.5, 1.0, -1.0).double()
    for difficulty in DIFFICULTIES:
        w = offset.repeat(EXAMPLES, 1).requires_grad_()  # w* is the origin
        residual = x @ offset - sign * math.sqrt(difficulty)
        w.grad = 2 * residual[:, None] * x
        SGD([w], lr=RATE).step()
        decrease[difficulty].append((SQUARED - w.detach().square().sum(1).mean()).item())
for difficulty, values in decrease.items():
    theory = expected_decrease(SQUARED, difficulty, RATE, DIMENSIONS)
    key = f"psi{difficulty:g}".replace(".", "")
    record.metric(f"step.{key}.decrease", values)
    record.metric(f"step.{key}.theory", theory)
    record.metric(f"step.{key}.ratio", [value / theory for value in values])
    print(f"Ψ = {difficulty:4.2f}: decrease {sum(values) / len(values):.4f}, theory {theory:.4f}")
rows = torch.tensor([decrease[difficulty] for difficulty in DIFFICULTIES], dtype=torch.float64)
record.curve("step/decrease", DIFFICULTIES, rows.T.tolist(), "Ψ", "decrease")
record.metric("step.largest_rise", (rows[1:] - rows[:-1]).amax(0))

# %% [markdown]
# ## 2 · A whole course of steps
#
# In expectation the squared distance obeys a recursion, so every order of the same examples can be followed
# exactly. A third of them has each of three difficulties. The recursion is checked against the package once.

# %%
NOISES = [0.05, 0.2, 0.8]
START = 1.0


def follow(difficulties, rates):
    """Expected squared distance from w*, from the start on."""
    squared = [START]
    for difficulty, lr in zip(difficulties, rates, strict=True):
        squared.append(squared[-1] - expected_decrease(squared[-1], difficulty, lr, DIMENSIONS))
    return squared


def orders(steps):
    """The same difficulties in three orders; `random` has their mean at every step, as the recursion is linear."""
    easy = [noise**2 for noise in NOISES for _ in range(steps // 3)]
    return {"easy": easy, "hard": easy[::-1], "random": [sum(easy) / steps] * steps}


def schedule(name, steps):
    return [0.02 if name == "constant" else 0.02 * (1 + math.cos(math.pi * t / steps)) for t in range(steps)]


for steps, name in itertools.product((60, 600), ("constant", "cosine")):
    ends = {}
    for order, difficulties in orders(steps).items():
        path = follow(difficulties, schedule(name, steps))
        ends[order] = path[-1]
        thin = range(0, steps + 1, max(1, steps // 150))
        record.curve(f"order/{name}_{steps}/{order}", thin, [[path[t] for t in thin]], "step", "squared distance")
        record.metric(f"order.{name}_{steps}.{order}", path[-1])
    for order in ("easy", "hard"):
        record.metric(f"order.{name}_{steps}.{order}_over_random", math.log(ends[order] / ends["random"]))
    print(f"{name:8s} {steps:4d} steps:", ", ".join(f"{order} {value:.5f}" for order, value in ends.items()))

# %%
steps, runs = 60, 20000
generator = torch.Generator().manual_seed(0)
w = torch.zeros(runs, DIMENSIONS, dtype=torch.float64)
w[:, 0] = math.sqrt(START)
w.requires_grad_()
optimizer = SGD([w], lr=0.02)
for difficulty in orders(steps)["easy"]:
    x = torch.randn(runs, DIMENSIONS, generator=generator, dtype=torch.float64)
    noise = torch.randn(runs, generator=generator, dtype=torch.float64) * math.sqrt(difficulty)
    w.grad = 2 * ((x * w.detach()).sum(1) - noise)[:, None] * x
    optimizer.step()
simulated = w.detach().square().sum(1).mean() / record.get("order.constant_60.easy")
record.metric("order.simulated_over_recursion", simulated)
print(f"simulated ÷ recursion: {simulated:.4f}")

# %% [markdown]
# ## 3 · Forecasts of synthetic quarterly series
#
# Each series has a trend, a season and noise on the logarithm, at one of the three levels, which is its difficulty.
# An LSTM reads twelve quarters and forecasts the next four. The last four quarters are the test, the four before
# them choose the learning rate.

# %%
torch.set_default_dtype(torch.float32)
QUARTERS, PAST, AHEAD = 40, 12, 4
UNITS, BATCH, SERIES = SETTINGS["units"], SETTINGS["batch"], SETTINGS["series"]


class Data(NamedTuple):
    past: torch.Tensor  # (examples, PAST), logarithms less their mean
    future: torch.Tensor  # (examples, AHEAD), less the same mean
    difficulty: torch.Tensor  # (examples,)


def windows(seed):
    """Training, validation and test examples of one draw of the series."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=generator)

    time = torch.arange(QUARTERS)
    trend = uniform(-0.02, 0.05, SERIES, 1) * time
    season = uniform(-0.4, 0.4, SERIES, 4)[:, time % 4]
    level = torch.tensor(NOISES)[torch.randint(3, (SERIES, 1), generator=generator)]
    logs = trend + season + level * torch.randn(SERIES, QUARTERS, generator=generator)

    def cut(first, last):
        """All windows whose last target quarter is in first … last."""
        parts = [logs[:, end - PAST - AHEAD : end] for end in range(first, last + 1)]
        both = torch.cat(parts)
        mean = both[:, :PAST].mean(1, keepdim=True)
        return Data(both[:, :PAST] - mean, both[:, PAST:] - mean, level[:, 0].repeat(len(parts)))

    return cut(PAST + AHEAD, QUARTERS - 2 * AHEAD), cut(QUARTERS - AHEAD, QUARTERS - AHEAD), cut(QUARTERS, QUARTERS)


class Run(NamedTuple):
    order: str
    lr: float
    seed: int


ORDERS = ("plain", "random", "easy", "hard")  # plain: all examples from the first update on


def ranking(order, difficulty, generator):
    """The examples in the order in which they join the pool; ties in random order."""
    shuffled = torch.randperm(len(difficulty), generator=generator)
    if order in ("plain", "random"):
        return shuffled
    return shuffled[difficulty[shuffled].argsort(stable=True, descending=order == "hard")]


def pool(order, step, updates, examples):
    """How many of them are in the pool: 4 % at first, 1.9 times as many every twelfth of the updates."""
    if order == "plain":
        return examples
    return min(examples, int(0.04 * examples * 1.9 ** (step * 12 // updates)))


def forecast(parameters, past):
    """past of shape (runs, batch, PAST) -> (runs, batch, AHEAD): an LSTM, one per run, and a linear layer."""
    into, recurrent, bias, outward, shift = parameters
    hidden = past.new_zeros(*past.shape[:2], UNITS)
    cell = hidden
    for t in range(PAST):
        gates = torch.baddbmm(bias, hidden, recurrent) + past[..., t : t + 1] * into
        i, f, g, o = gates.chunk(4, dim=-1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
    return torch.baddbmm(shift, hidden, outward)


def initial(seed):
    """As torch's LSTM: everything uniform in ±1/√units. One tensor per parameter."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, 4 * UNITS), (UNITS, 4 * UNITS), (1, 4 * UNITS), (UNITS, AHEAD), (1, AHEAD))
    return [(2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(UNITS) for shape in shapes]


def train(runs, updates):
    """The trained parameters, each of shape (runs, …). All runs are one batched network; a rate is a group."""
    runs_of = {lr: [i for i, run in enumerate(runs) if run.lr == lr] for lr in sorted({run.lr for run in runs})}
    placed = [i for members in runs_of.values() for i in members]
    groups = []
    for lr, members in runs_of.items():
        stacked = zip(*(initial(runs[i].seed) for i in members), strict=True)
        groups.append({"params": [torch.stack(p).to(device).requires_grad_() for p in stacked], "lr": lr})
    optimizer = Adam(groups)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / updates)))
    generators = [torch.Generator().manual_seed(1000 + runs[i].seed) for i in placed]
    sets = [training_sets[runs[i].seed] for i in placed]
    ranks = [ranking(runs[i].order, s.difficulty, g) for i, s, g in zip(placed, sets, generators, strict=True)]
    for step in range(updates):
        chosen = [
            rank[torch.randint(pool(runs[i].order, step, updates, len(rank)), (BATCH,), generator=g)]
            for i, rank, g in zip(placed, ranks, generators, strict=True)
        ]
        past = torch.stack([s.past[c] for s, c in zip(sets, chosen, strict=True)]).to(device)
        future = torch.stack([s.future[c] for s, c in zip(sets, chosen, strict=True)]).to(device)
        optimizer.zero_grad()
        parameters = [torch.cat(parts) for parts in zip(*(group["params"] for group in groups), strict=True)]
        (forecast(parameters, past) - future).square().mean((1, 2)).sum().backward()
        optimizer.step()
        decay.step()
    back = torch.tensor(placed).argsort().to(device)
    together = [torch.cat(parts) for parts in zip(*(group["params"] for group in groups), strict=True)]
    return [parameter.detach()[back] for parameter in together]


@torch.no_grad()
def errors(parameters, sets):
    """Mean absolute difference of logarithms in percent, over the series of each run's own set.

    For small errors it is the percentage error. For large ones it is fairer: half is as wrong as double, while the
    mean absolute percentage error rewards forecasts that are too low.
    """
    past = torch.stack([s.past for s in sets]).to(device)
    future = torch.stack([s.future for s in sets]).to(device)
    return 100 * (forecast(parameters, past) - future).abs().double().mean((1, 2))


# %%
chosen_with, GRID = [100, 101], [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
cut = {seed: windows(seed) for seed in [*chosen_with, *seeds]}
training_sets = {seed: parts[0] for seed, parts in cut.items()}
for budget, updates in (("full", SETTINGS["updates"]), ("tenth", SETTINGS["updates"] // 10)):
    tries = [Run(order, lr, seed) for order in ORDERS for lr in GRID for seed in chosen_with]
    tried = errors(train(tries, updates), [cut[run.seed][1] for run in tries])
    tried = tried.view(len(ORDERS), len(GRID), len(chosen_with)).mean(2)
    best = {order: GRID[int(row.argmin())] for order, row in zip(ORDERS, tried, strict=True)}
    reported = [Run(order, best[order], seed) for order in ORDERS for seed in seeds]
    ends = errors(train(reported, updates), [cut[run.seed][2] for run in reported]).view(len(ORDERS), len(seeds))
    error = dict(zip(ORDERS, ends, strict=True))
    tests = [cut[seed][2] for seed in seeds]
    naive = [
        100 * (s.past[:, -AHEAD:] - s.future).abs().double().mean() for s in tests
    ]  # the same quarter last year
    for order in ORDERS:
        record.metric(f"forecast.{budget}.{order}.error", error[order])
        record.metric(f"forecast.{budget}.{order}.lr", best[order])
        print(f"{budget:5s} {order:6s} α = {best[order]:5.3f}: error {error[order].mean():.2f} %")
    for one, other in (("easy", "plain"), ("easy", "random"), ("hard", "random"), ("random", "plain")):
        record.metric(f"forecast.{budget}.{one}_over_{other}", (error[one] / error[other]).log())
    record.metric(f"forecast.{budget}.plain_over_naive", (error["plain"] / torch.stack(naive)).log())
record.metric("forecast.naive.error", torch.stack(naive))

# %% [markdown]
# The paper's own data: nobody outside can have them, so there is nothing to measure.

# %%
record.metric("revenue.series_at_hand", 0)
record.metric("revenue.improvement", math.nan)

# %%
path_of_record = records.write(record, out)
