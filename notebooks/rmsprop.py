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
# # RMSprop: what was run
#
# The experiments behind the chapter on RMSprop (Tieleman & Hinton 2012, lecture 6e). The claims that they decide
# stand in `book/claims/rmsprop.yaml`. The first three experiments are exact: float64, no data. The last one trains
# networks.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: some of MNIST on a CPU · paper: all of MNIST
seeds = [0, 1, 2]  # of the reported runs; learning rates are chosen with another one
device = "cpu"
out = "rmsprop.json"  # where the record goes, relative to the working directory

# %%
import dataclasses
import math

import torch

from experiments import data, problems, records, stacked, training
from optimizers import SGD, RMSprop
from optimizers.adam import AdamDirection
from optimizers.rmsprop import RMSpropDirection

SETTINGS = {  # epochs with mini-batches of 16, and steps with full batches
    "quick": {"dataset": "digits", "examples": 1437, "hidden": [32], "epochs": 2, "steps": 20},
    "standard": {"dataset": "mnist", "examples": 2000, "hidden": [64], "epochs": 8, "steps": 100},
    "paper": {"dataset": "mnist", "examples": 60_000, "hidden": [500, 300], "epochs": 8, "steps": 400},
}[scale]
record = records.new("rmsprop", scale, {"seeds": seeds, "device": device, **SETTINGS})


def step(g, v, beta2, eps=0.0):
    """The package's rule: the direction, and the new average of squares."""
    d, v, _, _ = RMSpropDirection.update(g, v, None, None, 1, beta2, eps, 0.0, False)
    return d, v


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def key(beta2):
    """`b90` for 0.9: the name of its metrics."""
    return "b" + f"{beta2:.6f}"[2:].rstrip("0").ljust(2, "0")


# %% [markdown]
# ## 1 · The lecture's example
#
# Nine gradients of 0.1 and one of −0.9. All decay rates are one tensor. With a decay rate of 0 only the sign is
# left, which is rprop without its changes of step size.

# %%
CYCLE = [0.1] * 9 + [-0.9]
BETAS = [0.0, 0.5, 0.9, 0.95, 0.99, 0.999]
beta2 = vector(*BETAS)
theta = v = torch.zeros_like(beta2)
path = [theta]
for t in range(12_000):  # as long as the longest window needs to fill
    d, v = step(torch.full_like(beta2, CYCLE[t % 10]), v, beta2)
    theta = theta - d
    path.append(theta)
path = torch.stack(path)
drift = path[-1] - path[-11]
record.metric("drift.sgd", abs(sum(CYCLE)))
for i, b in enumerate(BETAS):
    record.metric("drift.sign" if b == 0 else f"drift.{key(b)}", drift[i])
    if b > 0:
        record.metric(f"drift.law_{key(b)}", drift[i] / (-20 / 3 * (1 - b)))
    print(f"β₂ = {b:5.3f}: {drift[i]:8.4f} α per ten mini-batches")

shown = range(0, 101)  # the running averages have filled: the last hundred of them
begin = len(path) - 1 - 100
plain = [0.0]
for t in range(100):
    plain.append(plain[-1] - CYCLE[(begin + t) % 10])
record.curve("example/sgd", shown, [plain], "mini-batch", "θ ÷ α")
for i, b in enumerate(BETAS):
    if b in (0.0, 0.9, 0.99):
        line = (path[begin:, i] - path[begin, i]).tolist()
        record.curve(f"example/{b}", shown, [line], "mini-batch", "θ ÷ α")

# %% [markdown]
# The same ten gradients in an order that is drawn anew for each ten, or drawn with replacement: two
# thousand weights and 1,500 mini-batches after the averages have filled, for each seed.

# %%
FINE = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998]
pool = vector(*CYCLE)


def movement(order, b, seed, weights=2000, cycles=150):
    """Mean movement per ten mini-batches, in units of α."""
    generator = torch.Generator().manual_seed(seed)
    v, moved = torch.full((weights,), 0.09, dtype=torch.float64), 0.0  # the average of the squares
    filling = math.ceil(0.5 / (1 - b))
    for cycle in range(filling + cycles):
        if order == "shuffled":
            picks = torch.rand(10, weights, generator=generator).argsort(0)
        else:
            picks = torch.randint(10, (10, weights), generator=generator)
        for g in pool[picks]:
            d, v = step(g, v, b)
            moved -= d.sum().item() / weights if cycle >= filling else 0.0
    return moved / cycles


one_minus = [1 - b for b in FINE]
beta2 = vector(*FINE)
v, last = torch.zeros_like(beta2), torch.zeros_like(beta2)
for t in range(6000):
    d, v = step(torch.full_like(beta2, CYCLE[t % 10]), v, beta2)
    last = last - d if t >= 5990 else last
record.curve("drift/cyclic", one_minus, [(-last).tolist()], "1 − β₂", "movement in ten ÷ α")
rough = [b for b in FINE if b in (0.5, 0.8, 0.9, 0.95, 0.98)]  # beyond, the noise is larger than the drift
for order in ("shuffled", "replaced"):
    moved = [[movement(order, b, seed) for b in rough] for seed in seeds]
    lines = [[-m for m in line] for line in moved]
    record.curve(f"drift/{order}", [1 - b for b in rough], lines, "1 − β₂", "movement in ten ÷ α")
    record.metric(f"drift.{order}_b90", [line[rough.index(0.9)] for line in moved])
    record.metric(f"drift.{order}_b98", [line[rough.index(0.98)] for line in moved])
    print(f"{order}: β₂ = 0.9", [round(line[rough.index(0.9)], 3) for line in moved])

# %% [markdown]
# ## 2 · The start
#
# On a slope the steps should have the length α. How much farther does the weight get because the average starts at
# zero? The control is the average with its bias corrected, which is Adam without momentum.

# %%
excess = []
for b in FINE:
    v, total = torch.zeros(1, dtype=torch.float64), 0.0
    for t in range(1, 20 * math.ceil(1 / (1 - b))):
        d, v = step(torch.ones(1, dtype=torch.float64), v, b)
        total += d.item() - 1
        if t == 1:
            record.metric(f"start.first_{key(b)}", d.item())
    excess.append(total)
    record.metric(f"start.excess_{key(b)}", total)
    law = 2 * math.log(2) / (1 - b) - 1.4604 / math.sqrt(1 - b)
    record.metric(f"start.law_{key(b)}", total / law)
record.curve("start/excess", one_minus, [excess], "1 − β₂", "excess distance ÷ α")
m = v = torch.zeros(1, dtype=torch.float64)
corrected = 0.0
for t in range(1, 1001):
    d, m, v, _ = AdamDirection.update(
        torch.ones(1, dtype=torch.float64), m, v, None, t, (0.0, 0.99), 0.0, False, False
    )
    corrected = max(corrected, abs(d.item() - 1))
record.metric("start.corrected", corrected)
print("excess distance:", {b: round(e, 1) for b, e in zip(FINE, excess, strict=True)})

# %% [markdown]
# ## 3 · Magnitudes
#
# The bowl; the loss, or one coordinate's gradient, multiplied by a constant.

# %%
bowl = problems.Quadratic()


def on_bowl(factor, eps=0.0):
    theta, v, points = bowl.initial(), torch.zeros(2, dtype=torch.float64), []
    for _ in range(200):
        d, v = step(factor * bowl.gradient(theta), v, 0.9, eps)
        theta = theta - 0.05 * d
        points.append(theta)
    return torch.stack(points)


base = on_bowl(vector(1.0, 1.0))
record.metric("magnitude.loss", (on_bowl(vector(1e6, 1e6)) - base).abs().max())
record.metric("magnitude.coordinate", (on_bowl(vector(1e6, 1.0)) - base).abs().max())
record.metric("magnitude.down_default_eps", (on_bowl(vector(1e-8, 1e-8), 1e-8) - base).abs().max())
print(f"loss × 10⁶: {record.get('magnitude.loss'):.0e}, one coordinate: {record.get('magnitude.coordinate'):.0e}")

# %% [markdown]
# ## 4 · Networks
#
# Mini-batches of 16, and full batches. One stack holds the network that chooses the learning rate and those that
# are reported. Grids have a factor of √10 between their points, and are extended where the best is at an end.

# %%
whole = data.load(SETTINGS["dataset"])
record.uses(whole)
few = SETTINGS["examples"]  # the test images are not needed
dataset = dataclasses.replace(
    whole,
    x_train=whole.x_train[:few],
    y_train=whole.y_train[:few],
    x_test=whole.x_test[:10],
    y_test=whole.y_test[:10],
)
features, guessing = dataset.x_train[0].numel(), math.log(dataset.classes)
TUNING = 1000
ARMS = {  # how to make it, and the middle of its grid as a power of √10
    "sgd": (lambda p, **own: SGD(p, **own), -1),
    "sgd_momentum": (lambda p, **own: SGD(p, momentum=0.9, **own), -3),
    "sign": (lambda p, **own: RMSprop(p, alpha=0.0, eps=1e-12, **own), -5),
    "rprop": (lambda p, lr: torch.optim.Rprop(p, lr=lr), -4),
    "rmsprop": (lambda p, **own: RMSprop(p, alpha=0.9, **own), -4),
    "rmsprop_momentum": (lambda p, **own: RMSprop(p, alpha=0.9, momentum=0.9, **own), -6),
}


def train(name, powers, full):
    """By learning rate, a power of √10, the loss at every step, one list per network, the tuning one first."""
    make, options = ARMS[name][0], {
        "epochs": SETTINGS["steps"] if full else SETTINGS["epochs"],
        "batch_size": few if full else 16,
        "shared_batches": full,
        "device": device,
    }  # fmt: skip
    networks, hidden = [TUNING, *seeds], tuple(SETTINGS["hidden"])
    if name == "rprop":  # torch's own has one learning rate for all
        runs = []
        for power in powers:
            net = stacked.StackedMLP(networks, features, hidden, dataset.classes).to(device)
            runs.append(stacked.train(net, make(net.parameters(), lr=10 ** (power / 2)), dataset, **options))
    else:
        rates = [10 ** (power / 2) for power in powers]
        runs = stacked.train_grid(make, rates, networks, dataset, hidden=hidden, **options).values()
    return {power: [history.train_loss for history in run] for power, run in zip(powers, runs, strict=True)}


def final(losses, full):
    """Mean loss of the last epoch; with full batches, of the last step."""
    part = 1 if full else math.ceil(few / 16)
    value = sum(losses[-part:]) / part
    return value if math.isfinite(value) else math.inf


def tuned(name, full):
    """The runs at the learning rate that was best for the tuning network, and that rate."""
    middle, runs = ARMS[name][1], {}
    todo = [middle - 1, middle, middle + 1]
    while todo:
        runs |= train(name, todo, full)
        best = min(runs, key=lambda k: final(runs[k][0], full))
        todo = [k for k in (best - 1, best + 1) if k not in runs and abs(k - middle) <= 6]
    return runs[best][1:], 10 ** (best / 2)


loss = {}
for group, arms in (("small", list(ARMS)), ("full", ["sign", "rprop", "rmsprop"])):
    for name in arms:
        runs, lr = tuned(name, group == "full")
        loss[group, name] = [final(run, group == "full") for run in runs]
        x = training.downsample(runs[0], 40)[0]  # so few that single mini-batches do not hide the rules
        lines = [training.downsample(run, 40)[1] for run in runs]
        record.curve(f"{group}/{name}", x, lines, "step", "training loss")
        record.metric(f"{group}.{name}.lr", lr)
        record.metric(f"{group}.{name}.loss", loss[group, name])
        print(f"{group:5s} {name:17s} α = {lr:.5f}", [round(x, 4) for x in loss[group, name]])


def log_ratio(one, other):
    return [math.log(a / b) for a, b in zip(one, other, strict=True)]


for group in ("small", "full"):
    for name in ("sign", "rprop"):
        record.metric(f"{group}.{name}_over_rmsprop", log_ratio(loss[group, name], loss[group, "rmsprop"]))
record.metric("full.rprop_over_guessing", [math.log(x / guessing) for x in loss["full", "rprop"]])
gain = {name: log_ratio(loss["small", f"{name}_momentum"], loss["small", name]) for name in ("sgd", "rmsprop")}
record.metric("momentum.sgd_gain", gain["sgd"])
record.metric("momentum.rmsprop_gain", gain["rmsprop"])
record.metric("momentum.difference", [a - b for a, b in zip(gain["rmsprop"], gain["sgd"], strict=True)])
print("momentum:", {name: [round(x, 2) for x in values] for name, values in gain.items()})

# %%
path_of_record = records.write(record, out)
