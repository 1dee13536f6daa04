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
# # An overview of gradient descent: what was run
#
# The experiments behind the first chapter, on the survey by Ruder (2016). The claims that they decide stand in
# `book/claims/overview.yaml`. The first four experiments are exact: float64, no data, no luck. The last one
# fits a logistic regression to sparse features.

# %% tags=["parameters"]
scale = "quick"  # quick, standard and paper differ in the size of the sparse problem; nothing is downloaded
seeds = [0, 1, 2]  # of the sparse problem; its learning rates are chosen on another one
device = "cpu"
out = "overview.json"  # where the record goes, relative to the working directory

# %%
import math

import numpy as np
import torch
from torch.nn import functional as F

from experiments import problems, records
from optimizers import SGD, Adadelta, Adagrad, Adam, RMSprop
from optimizers.adagrad import AdagradDirection
from optimizers.adam import AdamDirection
from optimizers.rmsprop import RMSpropDirection

SETTINGS = {
    "quick": {"features": 500, "examples": 1000, "batch": 20, "epochs": 16},
    "standard": {"features": 2000, "examples": 4000, "batch": 20, "epochs": 16},
    "paper": {"features": 4000, "examples": 8000, "batch": 20, "epochs": 16},
}[scale]
record = records.new("overview", scale, {"seeds": seeds, "device": device, **SETTINGS})
torch.set_default_dtype(torch.float64)


def follow(make, gradient, start, steps):
    """θ_0, …, θ_T of the optimizer that `make` makes, under the full gradient; shape (steps + 1, *start)."""
    theta = start.clone().requires_grad_()
    optimizer = make([theta])
    path = [start.clone()]
    for _ in range(steps):
        theta.grad = gradient(theta.detach())
        optimizer.step()
        path.append(theta.detach().clone())
    return torch.stack(path)


def descend(lr, gradient, start, steps):
    return follow(lambda params: SGD(params, lr=lr), gradient, start, steps)


# %% [markdown]
# ## 1 · The learning rate on the bowl
#
# Three paths, and the number of steps until the loss has fallen ten-thousandfold for good, at many learning rates.

# %%
bowl = problems.Quadratic()
low, high = bowl.eigenvalues.tolist()
LIMIT, BEST = 2 / high, 2 / (low + high)
for name, lr in (("slow", 0.02), ("best", BEST), ("limit", 1.01 * LIMIT)):
    path = descend(lr, bowl.gradient, bowl.initial(), 30)
    for i in (0, 1):
        record.curve(f"bowl/{name}/θ{i + 1}", range(31), [path[:, i]], "step", f"θ{i + 1}")


def bowl_losses(lrs, steps):
    """The loss at every step, shape (steps + 1, learning rates): a column per learning rate, which multiplies its
    gradient instead, as that is the same for plain descent."""
    alpha = torch.as_tensor(lrs)
    start = bowl.initial()[:, None].expand(2, len(alpha))
    return bowl.loss(descend(1.0, lambda theta: alpha * bowl.eigenvalues[:, None] * theta, start, steps).mT)


def steps_until(losses, factor=1e-4):
    """The first step from which on the loss stays below `factor` times the first one; nan if there is none."""
    above = (losses >= factor * losses[0]).nonzero()
    last = int(above[-1])
    return last + 1 if last + 1 < len(losses) else math.nan


grid = np.concatenate([np.geomspace(0.005, 0.06, 24), np.linspace(0.064, 0.1, 28)[:-1]]).tolist()
*sweep, slow, best, below, above = bowl_losses([*grid, 0.02, BEST, 0.999 * LIMIT, 1.001 * LIMIT], 1500).T
record.curve("bowl/steps", grid, [list(map(steps_until, sweep))], "learning rate α", "steps")
record.metric("bowl.steps.slow", steps_until(slow))
record.metric("bowl.steps.best", steps_until(best))
record.metric("bowl.limit.below", below[-1] / below[0])
record.metric("bowl.limit.above", above[-1] / above[0])
path = descend(BEST, bowl.gradient, bowl.initial(), 40)
record.metric("bowl.rate", (path[-1] / path[-2]).abs().max())
print(f"steps at α = 0.02 and 2/21: {record.get('bowl.steps.slow')}, {record.get('bowl.steps.best')}")

# %% [markdown]
# ## 2 · What is guaranteed?
#
# The gradient of $|\theta|^{3/2}$ falls so slowly that every constant learning rate ends in a swing of half-width
# $\tfrac{9}{16}\alpha^2$. The double well has minima at (0, ±1) and a saddle between them.

# %%
STEPS = 2000
record.metric("guarantee.bowl", bowl_losses(np.linspace(0.1, 0.99, 20) * LIMIT, STEPS)[-1].max())

rates = torch.logspace(-2, 0, 20)
swing = descend(1.0, lambda x: rates * 1.5 * x.sign() * x.abs().sqrt(), torch.ones(20), STEPS)[-1].abs()
record.metric("guarantee.power", (swing / rates**2).min())
record.metric("guarantee.power_largest", (swing / rates**2).max())


def well(theta):
    x, y = theta
    return torch.stack([x, y**3 - y])


for name, y0 in (("well", 0.0), ("well_beside", 1e-12)):
    x, y = descend(0.1, well, torch.tensor([1.0, y0]), STEPS)[-1]
    record.metric(f"guarantee.{name}", torch.hypot(x, y.abs() - 1))
print("left over:", record.metrics["guarantee"])

# %% [markdown]
# ## 3 · The saddle
#
# $x^2 - y^2$ from (1, y₀) at α = 0.01. The rules are elementwise, so all y₀ go at once, as the columns of one
# parameter of shape (2, starts).

# %%
ALPHA = 0.01
RULES = {
    "SGD": lambda p, lr=ALPHA: SGD(p, lr=lr),
    "Momentum": lambda p, lr=ALPHA: SGD(p, lr=lr, momentum=0.9),
    "Nesterov": lambda p, lr=ALPHA: SGD(p, lr=lr, momentum=0.9, nesterov=True),
    "Adagrad": lambda p, lr=ALPHA: Adagrad(p, lr=lr),
    "RMSprop": lambda p, lr=ALPHA: RMSprop(p, lr=lr, alpha=0.9),
    "Adadelta": lambda p: Adadelta(p, lr=1.0, rho=0.95),
    "Adam": lambda p, lr=ALPHA: Adam(p, lr=lr),
}
SLOPE = torch.tensor([[2.0], [-2.0]])  # the gradient is (2x, −2y)


def first_outside(y):
    """The first step at which |y| > 1, of a path of shape (steps, columns); nan where there is none."""
    outside = y.abs() > 1
    return torch.where(outside.any(0), outside.double().argmax(0).double(), math.nan)


starts = [10.0**-k for k in range(1, 13)] + [0.0]
start = torch.stack([torch.ones(len(starts)), torch.tensor(starts)])
points = sorted({int(t) for t in np.geomspace(1, 1500, 90).round()})
counts = {}
for name, make in RULES.items():
    y = follow(make, lambda theta: SLOPE * theta, start, 1500)[:, 1]
    counts[name] = first_outside(y).tolist()
    record.curve(f"saddle/steps/{name}", starts[:-1], [counts[name][:-1]], "y₀", "steps until |y| > 1")
    record.curve(f"saddle/path/{name}", points, [y[points, 5].abs()], "step", "|y|")
    for place, key in ((2, "near"), (5, "nearer"), (8, "nearest")):  # y₀ = 10⁻³, 10⁻⁶, 10⁻⁹
        record.metric(f"saddle.steps.{name}.{key}", counts[name][place])
    print(f"{name:9s}", *(f"{count:6.0f}" for count in counts[name]))

formula = [math.ceil(math.log(1 / y0) / math.log(1 + 2 * ALPHA)) for y0 in starts[:-1]]
record.metric("escape.formula", max(abs(a - b) for a, b in zip(counts["SGD"], formula, strict=False)))
record.metric("escape.from_zero", sum(not math.isnan(row[-1]) for row in counts.values()))
for name in RULES:
    record.metric(f"escape.{name.lower()}", counts[name][5] / counts[name][2])
for place, key in ((2, "near"), (5, "nearer")):
    fastest = min(counts[name][place] for name in ("SGD", "Momentum", "Nesterov"))
    for name in ("Adagrad", "RMSprop", "Adadelta"):
        record.metric(f"saddle.{key}.{name.lower()}", counts[name][place] / fastest)
tenth = first_outside(follow(lambda p: Adagrad(p, lr=0.1), lambda theta: SLOPE * theta, start, 300)[:, 1])
record.metric("saddle.adagrad_tenfold", tenth[5])

# %% [markdown]
# ## 4 · The saddle turned
#
# The same function in coordinates turned by an angle, from y₀ = 10⁻⁶; a column per angle.

# %%
angles = torch.linspace(0, 45, 10)
c, s = torch.deg2rad(angles).cos(), torch.deg2rad(angles).sin()


def into(x, y):
    """From the saddle's own coordinates to the turned ones, in which the rule works."""
    return torch.stack([c * x - s * y, s * x + c * y])


def back(theta):
    return c * theta[..., 0, :] + s * theta[..., 1, :], c * theta[..., 1, :] - s * theta[..., 0, :]


def turned_gradient(theta):
    x, y = back(theta)
    return into(2 * x, -2 * y)


for name, make in RULES.items():
    path = follow(make, turned_gradient, into(torch.ones(10), torch.full((10,), 1e-6)), 2000)
    steps = first_outside(back(path)[1])
    record.curve(f"turned/steps/{name}", angles, [steps], "angle (degrees)", "steps until |y| > 1")
    record.metric(f"turned.{name}", steps[-1])
    print(f"{name:9s}", *(f"{count:6.0f}" for count in steps.tolist()))

# %% [markdown]
# ## 5 · Sparse features
#
# Feature j is present with probability 1/j; the label is drawn from a logistic model with standard normal weights.
# All learning rates and data sets go at once: θ has the shape (data sets, learning rates, features). The first
# two data sets are for choosing the learning rates, the others are reported.

# %%
torch.set_default_dtype(torch.float32)
TUNING = (1000, 1001)
d, n, B = SETTINGS["features"], SETTINGS["examples"], SETTINGS["batch"]
generators = [torch.Generator().manual_seed(seed) for seed in (*TUNING, *seeds)]
presence = 1 / torch.arange(1, d + 1)


def draw(function, *shape):
    return torch.stack([function(*shape, generator=generator) for generator in generators]).to(device)


def label(x):
    """Labels in {0, 1} of examples x, shape (data sets, examples)."""
    return (draw(torch.rand, n) < torch.einsum("snd,sd->sn", x, weights).sigmoid()).float()


weights = draw(torch.randn, d)
present = (draw(torch.rand, n, d) < presence.to(device)).float()
dense = draw(torch.randn, n, d) * presence.to(device).sqrt()
rotation = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(7)))[0].to(device)
labels = label(present)
DATA = {"sparse": (present, labels), "rotated": (present @ rotation, labels), "dense": (dense, label(dense))}


# The package's rules, as functions of the gradient, what is remembered, and the number of the step; they return the
# direction and what is to be remembered.
def sgd(grad, state, t):
    return (grad,)


def sgd_decay(grad, state, t):
    return (grad / math.sqrt(t),)


def adagrad(grad, state, t):
    return AdagradDirection.update(grad, *state, t, lr_decay=0.0, eps=1e-10)


def rmsprop(grad, state, t):
    return RMSpropDirection.update(grad, *state, None, None, t, 0.9, 1e-8, 0.0, False)[:2]


def adam(grad, state, t):
    return AdamDirection.update(grad, *state, None, t, (0.9, 0.999), 1e-8, False, False)[:3]


ARMS = {  # the rule, how many tensors it remembers, and the first of eight learning rates as a power of √10
    "SGD": (sgd, 0, -2),
    "SGD_decay": (sgd_decay, 0, 0),
    "Adagrad": (adagrad, 1, -4),
    "RMSprop": (rmsprop, 1, -7),
    "Adam": (adam, 2, -7),
}
UPDATES = SETTINGS["epochs"] * (n // B)
POINTS = sorted({int(t) for t in np.geomspace(20, UPDATES, 48).round()})


@torch.inference_mode()
def train(arm, x, y):
    """The training loss at `POINTS` updates, shape (points, data sets, learning rates), and the learning rates.

    Its unit is the loss of guessing, with the share of ones as the probability of each label.
    """
    rule, remembered, first = ARMS[arm]
    lrs = [10 ** (k / 2) for k in range(first, first + 8)]
    alpha = torch.tensor(lrs, device=device)[:, None]
    theta = torch.zeros(len(x), len(lrs), d, device=device)
    state = [torch.zeros_like(theta) for _ in range(remembered)]
    orders = [torch.Generator().manual_seed(100 + i) for i in range(len(x))]
    rows = torch.arange(len(x), device=device)[:, None]
    losses = []
    for t in range(UPDATES):
        if t % (n // B) == 0:
            order = torch.stack([torch.randperm(n, generator=g) for g in orders]).to(device)
        index = order[:, t % (n // B) * B :][:, :B]
        part = x[rows, index]
        residual = (theta @ part.mT).sigmoid() - y.gather(1, index)[:, None]
        direction, *state = rule(residual @ part / B, state, t + 1)
        theta = theta - alpha * direction
        if t + 1 in POINTS:
            scores = theta @ x.mT
            losses.append((F.softplus(scores) - scores * y[:, None]).mean(-1))
    share = y.mean(1, keepdim=True)
    guessing = F.binary_cross_entropy(share, share, reduction="none")
    return (torch.stack(losses) / guessing).cpu().nan_to_num(math.inf), lrs


tried, shown = slice(len(TUNING)), slice(len(TUNING), None)
epochs = [t * B / n for t in POINTS]
updates, ends, paths, rates, interior = {}, {}, {}, {}, True
for kind, (x, y) in DATA.items():
    for arm in ARMS if kind == "sparse" else ("SGD", "SGD_decay", "Adagrad"):
        losses, rates[arm] = train(arm, x, y)
        reached = losses < 1 / 3
        first = torch.where(reached.any(0), torch.tensor(POINTS)[reached.int().argmax(0)].double(), math.inf)
        end = losses[-1]
        # The fewest updates; where two learning rates need equally many, the lower loss in the end.
        order = [(a.item(), b.item()) for a, b in zip(first[tried].mean(0), end[tried].mean(0), strict=True)]
        fastest, lowest = order.index(min(order)), int(end[tried].mean(0).argmin())
        if kind == "sparse":
            interior &= min(fastest, lowest) > 0 and max(fastest, lowest) < len(order) - 1
        updates[kind, arm] = first[shown, fastest]
        paths[kind, arm] = losses[:, shown, fastest]
        ends[kind, arm] = {"all": end[shown], "best": end[shown, lowest]}
        record.metric(f"{kind}.epochs.{arm}", updates[kind, arm] * B / n)
        record.metric(f"{kind}.lr.{arm}", rates[arm][fastest])
        record.curve(f"{kind}/path/{arm}", epochs, paths[kind, arm].T, "epoch", "training loss ÷ guessing")
        record.curve(f"{kind}/lr/{arm}", rates[arm], end[shown], "learning rate α", "training loss ÷ guessing")
        print(f"{kind:8s}{arm:10s} to ⅓ of guessing at α = {rates[arm][fastest]:.4f}, epochs:", end=" ")
        print(*(f"{u * B / n:.2f}" for u in updates[kind, arm].tolist()), end=" · ")
        print(f"least loss at α = {rates[arm][lowest]:.4f}:", *(f"{e:.3f}" for e in end[shown, lowest].tolist()))
record.metric("sparse.interior", float(interior))


# %%
for kind in DATA:
    for other in ("SGD", "SGD_decay"):
        ratio = (updates[kind, "Adagrad"] / updates[kind, other]).log()
        record.metric(f"{kind}.adagrad_over_{other.lower()}", ratio)
        print(f"{kind}: ln(updates of Adagrad ÷ {other}):", *(f"{r:.2f}" for r in ratio.tolist()))
record.metric("rotated.sgd_difference", (paths["rotated", "SGD"] - paths["sparse", "SGD"]).abs().max())

defaults = []
for arm, lr in (("Adagrad", 0.01), ("RMSprop", 0.001), ("Adam", 0.001)):
    place = int(np.abs(np.log(np.array(rates[arm]) / lr)).argmin())
    defaults.append((ends["sparse", arm]["all"][:, place] / ends["sparse", "SGD"]["best"]).log())
    record.metric(f"sparse.default.{arm}", defaults[-1])
    record.metric(f"sparse.tuned.{arm}", (ends["sparse", arm]["best"] / ends["sparse", "SGD"]["best"]).log())
    print(
        f"{arm} at {rates[arm][place]:.3f}: ln(final loss ÷ SGD's best):",
        *(f"{r:.2f}" for r in defaults[-1].tolist()),
    )
record.metric("sparse.default.best", torch.stack(defaults).amin(0))

# %%
path_of_record = records.write(record, out)
