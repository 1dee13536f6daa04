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
# # Nadam: what was run
#
# The experiments behind the chapter on Nadam (Dozat 2016). The claims that they decide stand in
# `book/claims/nadam.yaml`. The first four experiments are exact: float64, no data. The last one trains an
# autoencoder.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, ten epochs
seeds = [0, 1, 2]  # reported; learning rates are chosen with another one
device = "cpu"
out = "nadam.json"  # where the record goes, relative to the working directory

# %%
import math
from itertools import pairwise

import torch

from experiments import data, problems, records, stacked
from optimizers import SGD, Adam, NAdam
from optimizers.adam import nesterov_average
from optimizers.nadam import scheduled_momentum

SETTINGS = {
    "quick": {"dataset": "digits", "hidden": [32, 8], "epochs": 8},
    "standard": {"dataset": "mnist", "hidden": [128, 32], "epochs": 2},
    "paper": {"dataset": "mnist", "hidden": [256, 64], "epochs": 10},
}[scale]
record = records.new("nadam", scale, {"seeds": seeds, "device": device, **SETTINGS})
ADAMS = {
    "adam": lambda p, **own: Adam(p, **own),
    "adam_half": lambda p, **own: Adam(p, betas=(0.5, 0.999), **own),
    "nadam": lambda p, **own: NAdam(p, **own),
    "nadam_constant": lambda p, **own: NAdam(p, momentum_decay=None, **own),
}

# %% [markdown]
# ## 1 · Without the denominator
#
# $\bar m_t$ uncorrected and undivided, as the direction on the book's bowl, against PyTorch's Nesterov momentum.


# %%
def averaged_path(numerator, mu=0.9, lr=0.02, steps=200):
    """θ after each step in the direction `numerator(g, m)`, where m = μ m + (1 − μ) g."""
    bowl = problems.Quadratic()
    theta, m, points = bowl.initial(), torch.zeros(2, dtype=torch.float64), []
    for _ in range(steps):
        g = bowl.gradient(theta)
        m = mu * m + (1 - mu) * g
        theta = theta - lr * numerator(g, m)
        points.append(theta)
    return torch.stack(points)


def torch_path(mu=0.9, lr=0.02, steps=200):
    bowl = problems.Quadratic()
    theta = bowl.initial().requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=(1 - mu) * lr, momentum=mu, nesterov=True)
    points = []
    for _ in range(steps):
        theta.grad = bowl.gradient(theta.detach())
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


nesterov = torch_path()
record.metric(
    "nesterov.difference", (averaged_path(lambda g, m: nesterov_average(g, m, 0.9, 0.9)) - nesterov).abs().max()
)
record.metric("nesterov.classical_difference", (averaged_path(lambda g, m: m) - nesterov).abs().max())
print(f"Nesterov's average: {record.get('nesterov.difference'):.0e} from PyTorch's path, ", end="")
print(f"Adam's: {record.get('nesterov.classical_difference'):.2f}")

# %% [markdown]
# ## 2 · A gradient that turns
#
# +1 for forty steps, then −1. The squares are all 1, so the update is the numerator itself.


# %%
def updates(make, gradients):
    """θ_{t−1} − θ_t for each gradient, at α = 1 and ε = 0."""
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer, lengths = make([theta], lr=1.0, eps=0.0), []
    for gradient in gradients:
        before = theta.item()
        theta.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        lengths.append(before - theta.item())
    return lengths


for name in ("adam", "nadam_constant"):
    line = updates(ADAMS[name], [1.0] * 40 + [-1.0] * 20)
    record.curve(f"turn/{name}", list(range(-2, 18)), [line[37:57]], "steps after the turn", "update ÷ α")
    record.metric(f"turn.{name}", next(k for k, u in enumerate(line[40:], 1) if u < 0))
    print(f"{name:15s} turns at the gradient number {record.get(f'turn.{name}')} after the change")

# %% [markdown]
# ## 3 · A constant gradient
#
# An average that is corrected for its start moves by α at every step.

# %%
for name, label in (("adam", "adam"), ("nadam", "schedule"), ("nadam_constant", "constant")):
    line = updates(ADAMS[name], [1.0] * 200)
    record.curve(f"weight/{label}", list(range(1, 201)), [line], "step t", "length ÷ α")
    for t in (1, 2, 3, 5, 10, 50):
        record.metric(f"weight.{label}_{t}", line[t - 1])
    print(f"{label:9s}", [round(line[t - 1], 3) for t in (1, 2, 3, 5, 10, 50)])
for t in (1, 250, 1000, 2500, 10000):
    record.metric(f"momentum.mu_{t}", scheduled_momentum(0.9, t, 4e-3))
steps = sorted({round(50000 ** (i / 99)) for i in range(100)})
record.curve("momentum/mu", steps, [[scheduled_momentum(0.9, t, 4e-3) for t in steps]], "step t", "μ")

# %% [markdown]
# ## 4 · The bowl
#
# The loss, from ten starting points as far from the minimum as the book's, at α = 0.1.

# %%
bowl = problems.Quadratic()
angle = torch.linspace(0, math.pi, 11, dtype=torch.float64)[:-1] + 0.1
starts = math.hypot(4, 1.5) * torch.stack([angle.cos(), angle.sin()], 1)
for name, make in ADAMS.items():
    theta = starts.clone().requires_grad_()
    optimizer, losses = make([theta], lr=0.1), []
    for _ in range(200):
        losses.append(bowl.loss(theta.detach()))
        theta.grad = bowl.gradient(theta.detach())
        optimizer.step()
    lines = torch.stack(losses, 1)
    record.curve(f"bowl/{name}", list(range(0, 200, 3)), lines[:, ::3].tolist(), "step t", "loss")
    # the whole tail counts: a path that oscillates may pass the minimum long before it stays there
    tail = lines[:, 100:].mean(1).log()
    record.metric(f"bowl.{name}", tail)
    print(f"{name:15s} mean log loss of the second hundred steps {tail.mean():.2f}")

# %% [markdown]
# ## 5 · An autoencoder
#
# Fully connected, ReLU, squared error on pixels in [−1, 1]. The rules act on each coordinate alone, so one
# optimizer trains four networks at once: one to choose the learning rate by, three to report.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
images, test = (dataset.images(split, device).flatten(1) for split in ("train", "test"))
widths = [images.shape[1], *SETTINGS["hidden"], *SETTINGS["hidden"][-2::-1], images.shape[1]]
RULES = {
    **ADAMS,
    "nesterov": lambda p, **own: SGD(p, momentum=0.9, nesterov=True, **own),
}
MIDDLE = {"nesterov": 1}  # of the grid of learning rates, a power of √10
all_seeds = [1000, *seeds]


def networks(rates=1):
    """Xavier-normal weights of shape (rates × seeds, in, out) and biases of shape (rates × seeds, 1, out)."""
    generators = [torch.Generator().manual_seed(seed) for seed in all_seeds]
    parameters = []
    for fan_in, fan_out in pairwise(widths):
        deviation = math.sqrt(2 / (fan_in + fan_out))
        weight = torch.stack([deviation * torch.randn(fan_in, fan_out, generator=g) for g in generators])
        parameters += [weight.repeat(rates, 1, 1).to(device).requires_grad_()]
        parameters += [torch.zeros(rates * len(all_seeds), 1, fan_out, device=device, requires_grad=True)]
    return parameters


def squared_error(parameters, x):
    """Mean squared error of each network on its own batch x of shape (seeds, N, pixels)."""
    h = x
    for i in range(0, len(parameters), 2):
        h = torch.baddbmm(parameters[i + 1], h if i == 0 else h.relu(), parameters[i])
    return (h - x).square().mean((1, 2))


def train(rule, exponents, batch=128):
    """By learning rate, a power of √10: training losses (steps, seeds), and the test losses at the end (seeds,)."""
    parameters, seen = networks(len(exponents)), (len(exponents), 1, 1)
    rates = stacked.Rates([10 ** (k / 2) for k in exponents for _ in all_seeds])
    optimizer = RULES[rule](parameters, lr=1.0, extensions=[rates])
    orders = [torch.Generator().manual_seed(seed) for seed in all_seeds]
    losses = []
    for _ in range(SETTINGS["epochs"]):
        order = torch.stack([torch.randperm(len(images), generator=g) for g in orders])
        for index in order.split(batch, 1):
            optimizer.zero_grad()
            loss = squared_error(parameters, images[index.to(device)].repeat(seen))
            loss.sum().backward()
            optimizer.step()
            losses.append(loss.detach())
    with torch.inference_mode():
        end = squared_error(parameters, test.expand(len(parameters[0]), -1, -1))
    columns = (found.split(len(all_seeds), -1) for found in (torch.stack(losses).cpu(), end.cpu()))
    return dict(zip(exponents, zip(*columns, strict=True), strict=True))


def final(losses):
    """Mean loss of the last epoch, for each seed; infinite where a run diverged."""
    return losses[-(len(losses) // SETTINGS["epochs"]) :].mean(0).nan_to_num(math.inf, math.inf)


final_loss, test_loss = {}, {}
for rule in RULES:
    middle = MIDDLE.get(rule, -5)
    runs, todo = {}, [middle - 1, middle, middle + 1]
    while todo:
        runs |= train(rule, todo)
        best = min(runs, key=lambda k: final(runs[k][0])[0])
        todo = [k for k in (best - 1, best + 1) if k not in runs and abs(k - middle) <= 5]
    losses, end = runs[best]
    final_loss[rule], test_loss[rule] = final(losses)[1:], end[1:]
    record.metric(f"training.{rule}_lr", 10 ** (best / 2))
    record.metric(f"training.{rule}_loss", final_loss[rule])
    points = min(60, len(losses) // 4)
    blocks = torch.tensor_split(losses[:, 1:], points)
    x = [float(b.double().mean()) for b in torch.tensor_split(torch.arange(1.0, len(losses) + 1), points)]
    record.curve(
        f"training/{rule}", x, torch.stack([b.mean(0) for b in blocks], 1).tolist(), "step", "training loss"
    )
    print(f"{rule:15s} α = {10 ** (best / 2):.4f}, training loss {final_loss[rule].mean():.4f}")

for other in ("adam", "adam_half", "nadam_constant", "nesterov"):
    record.metric(f"training.over_{other}", (final_loss["nadam"] / final_loss[other]).log())
    record.metric(f"training.test_over_{other}", (test_loss["nadam"] / test_loss[other]).log())
start = squared_error(networks(), images.expand(len(all_seeds), -1, -1)).detach().cpu()
record.metric("training.nadam_final_over_start", final_loss["nadam"] / start[1:])

# %%
path_of_record = records.write(record, out)
