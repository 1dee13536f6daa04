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
# # Gradient noise: what was run
#
# The experiments behind the chapter on gradient noise (Neelakantan et al. 2015). The claims that they decide stand
# in `book/claims/gradient_noise.yaml`. The first three experiments are exact, up to the sample: float64, no data.
# The last one trains deep and narrow networks.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, the paper's η
seeds = [0, 1, 2]  # initial weights, order of the mini-batches, and coordinates of the noise
device = "cpu"
out = "gradient_noise.json"  # where the record goes, relative to the working directory

# %%
import itertools
import math

import torch
from torch.nn import functional as F

from experiments import data, problems, records
from experiments.training import downsample
from optimizers import SGD, Adam, AdamW, ClipNorm, GradientNoise

SETTINGS = {
    "quick": {"dataset": "digits", "depth": 10, "width": 32, "batch": 32, "steps": 1200, "eta": 0.1},
    "standard": {"dataset": "mnist", "depth": 20, "width": 50, "batch": 50, "steps": 24000, "eta": 0.02},
    "paper": {"dataset": "mnist", "depth": 20, "width": 50, "batch": 100, "steps": 60000, "eta": 0.01},
}[scale]
GAMMA = 0.55
record = records.new("gradient_noise", scale, {"seeds": seeds, "device": device, "gamma": GAMMA, **SETTINGS})

# %% [markdown]
# ## 1 · The noise, and the walk of the weights
#
# Coordinates without a gradient, so that all they see is noise. SGD should spread them with the variance
# $\alpha^2 \sum_t \sigma_t^2$; Adam should not see the size of the noise at all.


# %%
def variance(eta, steps):
    """σ_1², …, σ_steps² in the book's count, where the first step is t = 1; shape (steps,)."""
    return eta * torch.arange(1, steps + 1, dtype=torch.float64) ** -GAMMA


def walk(rule, eta, steps, coordinates, **options):
    """Deviation at 100 times, (seeds, 100), and the variance of some steps ÷ α; noise is all that is seen."""
    theta = torch.zeros(len(seeds), coordinates, dtype=torch.float64, requires_grad=True)
    optimizer = rule([theta], lr=0.1, extensions=[GradientNoise(eta, GAMMA)], fused=True, **options)
    theta.grad = torch.zeros_like(theta)
    spread, moved = [], {}
    for t in range(1, steps + 1):
        before = theta.detach().clone() if t in (1, 10, 100, 1000) else None
        optimizer.step()
        if before is not None:
            moved[t] = ((theta.detach() - before) / 0.1).var(1)
        if t % (steps // 100) == 0:
            spread.append(theta.detach().square().mean(1).sqrt())
    return torch.stack(spread, 1), moved


steps, times = 4000, range(40, 4001, 40)
spread, moved = walk(SGD, 0.03, steps, 20_000)
_, early = walk(SGD, 0.03, 100, 200_000)  # a larger sample where it is cheap
for t, squared in (moved | early).items():
    record.metric(f"walk.schedule_t{t}", squared / variance(0.03, steps)[t - 1])
predicted = 0.1 * variance(0.03, steps).cumsum(0).sqrt()
record.metric("walk.predicted", predicted[-1])
record.metric("walk.integral", 0.1 * math.sqrt(0.03 * steps ** (1 - GAMMA) / (1 - GAMMA)))
record.metric("walk.measured", spread[:, -1])
record.metric("walk.ratio", spread[:, -1] / predicted[-1])
record.curve("walk/SGD, η = 0.03", times, spread, "step", "deviation of the weights")
record.curve("walk/predicted 0.03", times, [predicted[39::40]], "step", "deviation of the weights")
print(f"after {steps} steps: predicted {predicted[-1]:.4f}, measured {spread[:, -1].mean():.4f}")

spread, _ = walk(SGD, 0.01, steps, 1000)
record.curve("walk/SGD, η = 0.01", times, spread, "step", "deviation of the weights")
record.curve("walk/predicted 0.01", times, [predicted[39::40] / math.sqrt(3)], "step", "deviation of the weights")
adam = {eta: walk(Adam, eta, steps, 1000, eps=1e-16)[0] for eta in (0.01, 1.0)}
record.metric("walk.adam_eta", adam[1.0][:, -1] / adam[0.01][:, -1])
record.metric("walk.adam_measured", adam[1.0][:, -1])
record.metric("walk.adam_over_root", adam[1.0][:, -1] / (0.1 * math.sqrt(steps)))
record.curve("walk/Adam", times, adam[1.0], "step", "deviation of the weights")
print(f"Adam, whatever η: {adam[1.0][:, -1].mean():.2f}, 0.1·√{steps} = {0.1 * math.sqrt(steps):.2f}")

# %% [markdown]
# ## 2 · A network of two weights
#
# $f = \tfrac12(1 - w_1 w_2)^2$ from $(0, 0)$, where the gradient is zero and the loss is not. Copies are rows of
# one parameter, each with noise of its own.

# %%
LR, ETA = 0.1, 1e-4


def two_weights(make, copies, steps):
    """Paths from (0, 0), shape (steps + 1, copies, 2)."""
    w = torch.zeros(copies, 2, dtype=torch.float64, requires_grad=True)
    optimizer = make([w])
    points = [w.detach().clone()]
    for _ in range(steps):
        product = w.detach().prod(1, keepdim=True)
        w.grad = -(1 - product) * w.detach().flip(1)
        optimizer.step()
        points.append(w.detach().clone())
    return torch.stack(points)


RULES = {
    "SGD": lambda p: SGD(p, lr=LR),
    "momentum": lambda p: SGD(p, lr=LR, momentum=0.9),
    "Adam": lambda p: Adam(p, lr=LR),
    "AdamW": lambda p: AdamW(p, lr=LR, weight_decay=0.1),
}
record.metric("two.without", max(two_weights(make, 1, 1000).abs().max().item() for make in RULES.values()))
points = two_weights(lambda p: SGD(p, lr=LR, extensions=[GradientNoise(ETA, GAMMA)]), 4000, 150)
along = (points[..., 0] + points[..., 1]) / math.sqrt(2)
early = 30  # steps during which w₁ w₂ is far below 1 and the equations are linear
grown = (LR**2 * variance(ETA, early) * (1 + LR) ** (2 * torch.arange(early - 1, -1, -1))).sum()
record.metric("two.variance", along[early].var() / grown)
loss = 0.5 * (1 - points.prod(2)) ** 2
escape = (loss < 0.05).double().argmax(0) + 1.0
record.metric("two.freed", (loss[-1] < 0.05).double().mean())
record.metric("two.escape_steps", escape.median())
shown = two_weights(lambda p: SGD(p, lr=LR, extensions=[GradientNoise(0.1, GAMMA)]), 8, 80)  # noise to be seen
for i in range(8):
    for j in (0, 1):
        record.curve(f"two/{i}/w{j + 1}", range(81), [shown[:, i, j]], "step", f"w{j + 1}")
print(f"without noise |w| ≤ {record.get('two.without')}; with it {record.get('two.freed'):.1%} are freed")
print(f"half by step {escape.median():.0f}; early variance over prediction {record.get('two.variance'):.3f}")

# %% [markdown]
# ## 3 · What it costs in a bowl
#
# The running quadratic, 2,000 copies: noise keeps the loss up, by $\alpha\sigma_t^2/(2(2-\alpha h))$ per direction.

# %%
bowl, lr, horizon = problems.Quadratic(), 0.05, 2000
h = bowl.eigenvalues
theta = bowl.initial().repeat(2000, 1).requires_grad_()
optimizer = SGD([theta], lr=lr, extensions=[GradientNoise(0.3, GAMMA)])
losses = []
for _ in range(horizon):
    theta.grad = bowl.gradient(theta.detach())
    optimizer.step()
    losses.append(bowl.loss(theta.detach()).mean())
floor = (lr * variance(0.3, horizon)[:, None] / (2 * (2 - lr * h))).sum(1)
record.metric("bowl.ratio", torch.stack(losses[horizon // 2 :]).mean() / floor[horizon // 2 :].mean())
x, y = downsample([loss.item() for loss in losses])
record.curve("bowl/noise", x, [y], "step", "loss")
record.curve("bowl/predicted", x, [downsample(floor.tolist())[1]], "step", "loss")
plain, quiet = bowl.initial(), []
for _ in range(horizon):
    plain = plain - lr * bowl.gradient(plain)
    quiet.append(bowl.loss(plain).item())
record.curve("bowl/quiet", range(1, 201), [quiet[:200]], "step", "loss")
print(f"second half of the run: loss over prediction {record.get('bowl.ratio'):.3f}")

# %% [markdown]
# ## 4 · Deep and narrow networks
#
# An arm is an initialization and an η. Arms with the same η are a parameter group, and their networks, one per arm
# and seed, are one tensor per layer: one optimizer trains all at once. Mini-batches are the seed's, gradients are
# clipped by each network's own norm.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
images, labels = dataset.images("train", device).flatten(1), dataset.labels("train", device)
x_test, y_test = dataset.images("test", device).flatten(1), dataset.labels("test", device)
depth, width, batch, eta = (SETTINGS[key] for key in ("depth", "width", "batch", "eta"))
widths = [images.shape[1], *[width] * depth, dataset.classes]
INNER = range(2, 2 * depth, 2)  # the weights between hidden layers
SCALE = math.sqrt(2 / width)  # the deviation at which a layer of `width` ReLUs keeps the size of its signal
ARMS = {  # η, and the deviation of the initial weights as a function of the number of inputs
    "zero": (0.0, lambda fan_in: 0.0),
    "simple": (0.0, lambda fan_in: 0.1),
    "good": (0.0, lambda fan_in: math.sqrt(2 / fan_in)),
    "once": (0.0, lambda fan_in: SCALE),
    "once_6": (0.0, lambda fan_in: 0.6 * SCALE),
    "zero_noise": (eta, lambda fan_in: 0.0),
    "simple_noise": (eta, lambda fan_in: 0.1),
    "good_noise": (eta, lambda fan_in: math.sqrt(2 / fan_in)),
    "zero_half": (eta / 2, lambda fan_in: 0.0),
    "zero_double": (2 * eta, lambda fan_in: 0.0),
}


def initial(deviations):
    """The layers of some arms: weights (arms, seeds, out, in) and biases (arms, seeds, 1, out), in turn."""
    layers = []
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        generators = [torch.Generator().manual_seed(1000 * seed + number) for seed in seeds]
        normal = torch.stack([torch.randn(fan_out, fan_in, generator=g) for g in generators])
        layers.append(torch.stack([deviation(fan_in) * normal for deviation in deviations]))
        layers.append(torch.zeros(len(deviations), len(seeds), 1, fan_out))
    return [layer.to(device).requires_grad_() for layer in layers]


def scores(layers, x):
    """Images (seeds, b, inputs), or (b, inputs) for all, to logits (arms, seeds, b, classes)."""
    h = None
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        if h is None:
            h = torch.einsum("asoi,sbi->asbo", weight, x.expand(len(seeds), *x.shape[-2:])) + bias
        else:
            h = torch.matmul(h.relu(), weight.transpose(-1, -2)) + bias
    return h


def clip(layers, max_norm=10.0):
    """Clip the gradient of every network by its own norm."""
    norm = sum(p.grad.square().sum((-2, -1), keepdim=True) for p in layers).sqrt()
    factor = ClipNorm.update(torch.ones_like(norm), norm, max_norm)
    for p in layers:
        p.grad *= factor


@torch.no_grad()
def accuracy(layers, count=2000):
    """Share of the first test images that are classified rightly, shape (arms, seeds)."""
    x, y = x_test[:count], y_test[:count]
    predicted = torch.cat([scores(layers, part).argmax(-1) for part in x.split(500)], dim=-1)
    return (predicted == y).double().mean(-1).cpu()


def spread_of(layers):
    """Root mean square of the weights between hidden layers, (arms, seeds), in units of √(2/n)."""
    squares = [layers[i].detach().square().mean((-2, -1)) for i in INNER]
    return torch.stack(squares).mean(0).sqrt().double().cpu() / SCALE


def train(layers, optimizer, steps, points=0):
    """Train all arms; returns the losses (steps, arms, seeds) and, at `points` times, accuracies and spreads.

    The optimizer's groups have the layers' memory, each that of some arms, in order. Gradients are the layers'.
    """
    ends = itertools.accumulate([0, *(len(group["params"][0]) for group in optimizer.param_groups)])
    parts = [slice(start, end) for start, end in itertools.pairwise(ends)]
    generators = [torch.Generator().manual_seed(100 + seed) for seed in seeds]
    losses, seen = [], []
    for t in range(1, steps + 1):
        drawn = torch.stack([torch.randint(len(labels), (batch,), generator=g) for g in generators]).to(device)
        y = labels[drawn]
        for layer in layers:
            layer.grad = None
        logits = scores(layers, images[drawn])
        each = F.cross_entropy(logits.flatten(0, 2), y.expand(logits.shape[:-1]).flatten(), reduction="none")
        means = each.view(logits.shape[:-1]).mean(-1)
        means.sum().backward()
        clip(layers)
        for group, part in zip(optimizer.param_groups, parts, strict=True):
            for param, layer in zip(group["params"], layers, strict=True):
                param.grad = layer.grad[part]
        optimizer.step()
        losses.append(means.detach().cpu())
        if points and t % (steps // points) == 0:
            seen.append((t, accuracy(layers), spread_of(layers)))
    return torch.stack(losses), seen


# %% [markdown]
# ### Zero weights, no noise, four rules

# %%
frequencies = torch.bincount(labels).double() / len(labels)
entropy = -(frequencies * frequencies.log()).sum()
record.metric("stuck.entropy", entropy)
rules = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.01, momentum=0.9),
    "Adam": lambda p: Adam(p, lr=1e-3),
    "AdamW": lambda p: AdamW(p, lr=1e-3, weight_decay=0.01),
}
largest = {}
for name, make in rules.items():
    layers = initial([ARMS["zero"][1]])
    losses, _ = train(layers, make(layers), 200 if name == "SGD" else 50)
    largest[name] = torch.stack([p.detach().abs().amax((0, 2, 3)) for p in layers[:-1]]).amax(0)
    if name == "SGD":
        record.metric("stuck.largest", largest[name])
        with torch.no_grad():
            predicted = scores(layers, x_test[:2000]).argmax(-1)[0]
        record.metric("stuck.classes", [len(row.unique()) for row in predicted])
        record.metric("stuck.accuracy", accuracy(layers)[0])
        record.metric("stuck.loss", losses[100:].double().mean((0, 1)))
        record.metric("stuck.last_bias", layers[-1].detach().abs().amax((0, 2, 3)))
    print(f"{name:8s} largest weight or hidden bias {largest[name].max():.0e}")
record.metric("stuck.others", torch.stack([row for name, row in largest.items() if name != "SGD"]).amax(0))

# %% [markdown]
# ### All arms

# %%
POINTS = 50
by_eta = {}
for noise_eta, deviation in ARMS.values():
    by_eta.setdefault(noise_eta, []).append(deviation)
layers = initial([deviation for deviations in by_eta.values() for deviation in deviations])
pieces = zip(*(layer.detach().split([len(arms) for arms in by_eta.values()]) for layer in layers), strict=True)
options = [{"params": list(p), "gradient_noise_eta": e} for p, e in zip(pieces, by_eta, strict=True)]
optimizer = SGD(options, lr=0.1, extensions=[GradientNoise(eta, GAMMA)], fused=device == "cpu")
losses, seen = train(layers, optimizer, SETTINGS["steps"], POINTS)
times = [t for t, _, _ in seen]
right, sizes = torch.stack([a for _, a, _ in seen]), torch.stack([s for _, _, s in seen])  # (times, arms, seeds)
final = dict(zip(ARMS, right[-POINTS // 10 :].mean(0), strict=True))  # over the last tenth of the run
record.metric("network.critical_step", (2 * (1 - GAMMA) / (width * 0.1**2 * eta)) ** (1 / (1 - GAMMA)))
for i, name in enumerate(ARMS):
    record.metric(f"accuracy.{name}", final[name])
    record.metric(f"spread.{name}", sizes[-1, i])
    record.curve(f"accuracy/{name}", times, right[:, i].T, "step", "test accuracy")
    record.curve(f"spread/{name}", times, sizes[:, i].T, "step", "deviation of the hidden weights ÷ √(2/n)")
    # Learning has begun when a tenth of the loss of the class frequencies is gone, on average over 20 steps.
    begun = losses[:, i].double().unfold(0, 20, 1).mean(-1) < 0.9 * entropy
    onset = [int(column.double().argmax()) + 20 if column.any() else None for column in begun.T]
    record.metric(f"onset.step.{name}", onset)
    near = [None if t is None else min(range(len(times)), key=lambda k, t=t: abs(times[k] - t)) for t in onset]
    record.metric(f"onset.spread.{name}", [None if k is None else sizes[k, i, s] for s, k in enumerate(near)])
    print(f"{name:13s} accuracy", " ".join(f"{a:.3f}" for a in final[name]), end="  ")
    print(f"spread {sizes[-1, i].mean():.2f}  learning begins at {onset}")
walked = 0.1 * variance(eta, SETTINGS["steps"]).cumsum(0).sqrt() / SCALE
record.curve("spread/walk", times, [walked[[t - 1 for t in times]]], "step", "deviation of the walk ÷ √(2/n)")
record.metric("network.walked", walked[-1])
record.metric("gain.simple", final["simple_noise"] - final["simple"])
record.metric("gain.good", final["good_noise"] - final["good"])
record.metric("gain.over_draw", final["zero_noise"] - final["once"])

# %%
path_of_record = records.write(record, out)
