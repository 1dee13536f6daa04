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
# # Lookahead: what was run
#
# The experiments behind the chapter on Lookahead (Zhang, Lucas, Hinton & Ba 2019). The claims that they decide
# stand in `book/claims/lookahead.yaml`. The first three experiments are about a noisy quadratic, whose theory is
# exact. The last one trains networks. α is the learning rate of the inner optimizer, `slow` the step size of the
# slow weights (the paper's α).

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, more of it
seeds = [0, 1, 2, 3]  # of the noise and of the grid; the retrained networks have seeds of their own
device = "cpu"
out = "lookahead.json"  # where the record goes, relative to the working directory

# %%
import math

import numpy as np
import torch
from torch.nn import functional as F

from experiments import data, models, problems, records, stacked
from optimizers import SGD, Adam, Lookahead

SETTINGS = {  # the middles of the grids, powers of √10, stand under "sgd" and "adam"
    "quick": {
        **{"dataset": "digits", "hidden": 32, "examples": 1150, "validation": 287, "batch": 50, "epochs": 5},
        **{"sgd": -2, "adam": -4},
    },
    "standard": {
        **{"dataset": "mnist", "hidden": 64, "examples": 10000, "validation": 5000, "batch": 100, "epochs": 8},
        **{"sgd": -3, "adam": -5},
    },
    "paper": {
        **{"dataset": "mnist", "hidden": 256, "examples": 50000, "validation": 10000, "batch": 100, "epochs": 20},
        **{"sgd": -3, "adam": -5},
    },
}[scale]
record = records.new("lookahead", scale, {"seeds": seeds, "device": device, **SETTINGS})

# %% [markdown]
# ## 1 · The bowl, at a learning rate that oscillates
#
# The steep coordinate of the book's quadratic, without noise and with noise in the gradient.


# %%
def steep(extensions, noise, lr=0.095, steps=60):
    """θ₂ after every step."""
    bowl = problems.Quadratic()
    generator = torch.Generator().manual_seed(0)
    theta = bowl.initial().requires_grad_()
    optimizer = SGD([theta], lr=lr, extensions=extensions)
    values = [theta[1].item()]
    for _ in range(steps):
        target = noise * torch.randn(2, generator=generator, dtype=torch.float64)
        theta.grad = bowl.gradient(theta.detach() - target)
        optimizer.step()
        values.append(theta[1].item())
    return values


for name, noise in (("exact", 0.0), ("noisy", 0.2)):
    record.curve(f"bowl/SGD/{name}", range(61), [steep([], noise)], "step", "θ₂")
    fast = steep([Lookahead(5, 0.5)], noise)
    record.curve(f"bowl/Lookahead/{name}", range(61), [fast], "step", "θ₂")
    record.curve(f"bowl/slow/{name}", range(0, 61, 5), [fast[::5]], "step", "θ₂")

limit = {"SGD": 2 / 20, "Lookahead": (1 + 3**0.2) / 20}  # |1 − 20 α| < 1, and (20 α − 1)^5 < 3
for name, extensions in (("SGD", []), ("Lookahead", [Lookahead(5, 0.5)])):
    below, above = (abs(steep(extensions, 0.0, limit[name] * f, 300)[-1]) for f in (0.99, 1.01))
    record.metric(f"stability.{name}.limit", limit[name])
    record.metric(f"stability.{name}.below", below)
    record.metric(f"stability.{name}.above", above)
    print(f"{name:9s} largest α {limit[name]:.4f}: |θ₂| after 300 steps {below:.1e} below it, {above:.1e} above")

# %% [markdown]
# ## 2 · The variance at rest
#
# $f_t(\theta) = \tfrac12(\theta - c_t)^2$ with $c_t$ standard normal. Many chains as one parameter.


# %%
def sgd_variance(lr):
    return lr / (2 - lr)


def variance_ratio(lr, k, slow):
    """Proposition 2, as the paper has it."""
    q = 1 - lr
    top = slow**2 * (1 - q ** (2 * k))
    return top / (top + 2 * slow * (1 - slow) * (1 - q**k))


def measured_variance(lr, k, slow, chains=2000, settle=20, syncs=60):
    """Mean square after a sync, divided by SGD's variance: one number per seed. All chains are one parameter."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal():
        return torch.stack([torch.randn(chains, generator=g, dtype=torch.float64) for g in generators])

    theta = (sgd_variance(lr) * variance_ratio(lr, k, slow)) ** 0.5 * normal()  # near rest, so that it settles soon
    theta.requires_grad_()
    optimizer = SGD([theta], lr=lr, extensions=[Lookahead(k, slow)])
    squares = []
    for sync in range(settle + syncs):
        for _ in range(k):
            theta.grad = theta.detach() - normal()
            optimizer.step()
        if sync >= settle:
            squares.append(theta.detach().square().mean(1))
    return (torch.stack(squares).mean(0) / sgd_variance(lr)).tolist()


settings = [(0.1, 5, 0.5), (0.5, 5, 0.5), (0.1, 20, 0.5), (0.1, 5, 0.8), (1.5, 5, 0.5)]
ratios = np.array([measured_variance(*setting) for setting in settings])
formula = np.array([variance_ratio(*setting) for setting in settings])
for (lr, k, slow), row, exact in zip(settings, ratios, formula, strict=True):
    print(f"α = {lr}, k = {k:2d}, slow = {slow}: measured {row.mean():.4f}, formula {exact:.4f}")
record.metric("variance.worst", np.abs(ratios / formula[:, None] - 1).max(0))
record.metric("variance.ratio", ratios[0])
record.metric("variance.formula", formula[0])
record.metric("variance.control", [ratio - 1 for ratio in measured_variance(0.1, 5, 1.0)])

slows = np.linspace(0.05, 1, 39)
few = [0.2, 0.5, 0.8, 1.0]
for lr in (0.1, 0.5, 1.5):
    points = np.array([measured_variance(lr, 5, slow, chains=500) for slow in few]).T
    record.curve(f"variance/formula/{lr}", slows, [variance_ratio(lr, 5, slows)], "slow step size", "ratio")
    record.curve(f"variance/measured/{lr}", few, points, "slow step size", "ratio")

# %% [markdown]
# ## 3 · Its price
#
# One curvature: how fast the mean shrinks per step, against the variance at rest. SGD may choose the learning rate
# that has Lookahead's variance. Then a hundred curvatures, from the exact recursions of mean and variance.

# %%
lr, k, slow = 0.1, 5, 0.5
variance = sgd_variance(lr) * variance_ratio(lr, k, slow)
rival = 2 * variance / (1 + variance)  # the α with α / (2 − α) = variance
shrink = {"Lookahead": (1 - slow + slow * (1 - lr) ** k) ** (1 / k), "SGD": 1 - rival, "same": 1 - lr}
for name, value in (("variance", variance), ("rival", rival), *shrink.items()):
    record.metric(f"single.{name}", value)
record.metric("single.advantage", shrink["SGD"] - shrink["Lookahead"])
print(f"variance {variance:.5f}: Lookahead × {shrink['Lookahead']:.4f} per step", end=", ")
print(f"SGD at α = {rival:.4f} × {shrink['SGD']:.4f}")

curves = {"SGD": (1, 1.0), "k = 5, ½": (5, 0.5), "k = 20, ½": (20, 0.5)}
rates = np.geomspace(0.01, 0.9, 60)
for name, (k, slow) in curves.items():
    q = 1 - rates
    speed = -np.log(1 - slow + slow * q**k) / k
    at_rest = sgd_variance(rates) * variance_ratio(rates, k, slow)
    record.curve(f"price/{name}", at_rest, [speed], "variance at rest", "speed")

# %%
curvatures = 1 / np.arange(1, 101)


def expected_loss(lr, steps, k=1, slow=1.0):
    """½ Σ h (mean² + variance) after so many steps from θ = 1, for every learning rate of a vector."""
    with np.errstate(over="ignore", invalid="ignore"):
        q = 1 - lr[:, None] * curvatures
        rest = lr[:, None] * curvatures / (2 - lr[:, None] * curvatures)
        factor = 1 - slow + slow * q**k
        kick = slow**2 * rest * (1 - q ** (2 * k))
        powers = factor ** (2 * (steps // k))
        variance = kick * (1 - powers) / (1 - factor**2)
        loss = 0.5 * (curvatures * (powers + variance)).sum(1)
    return np.where(np.isfinite(loss), loss, np.inf)


rates = np.geomspace(3e-3, 1.99, 600)
for steps in (200, 1000, 5000):
    best = {}
    for name, (k, slow) in {"SGD": (1, 1.0), "Lookahead": (5, 0.5), "Lookahead20": (20, 0.5)}.items():
        loss = expected_loss(rates, steps, k, slow)
        best[name] = rates[loss.argmin()]
        record.metric(f"spectrum.T{steps}.{name}", loss.min())
        record.metric(f"spectrum.T{steps}.{name}_lr", best[name])
        if steps == 1000:
            shown = slice(None, None, 6)
            record.curve(f"spectrum/{name}", rates[shown], [loss[shown]], "α", "expected loss")
    record.metric(
        f"spectrum.T{steps}.ratio",
        record.get(f"spectrum.T{steps}.Lookahead") / record.get(f"spectrum.T{steps}.SGD"),
    )
    far = {
        n: expected_loss(np.array([3 * best[n], best[n]]), steps, *s)
        for n, s in (("SGD", ()), ("Lookahead", (5, 0.5)))
    }
    record.metric(
        f"spectrum.T{steps}.robust",
        math.log(far["Lookahead"][0] / far["Lookahead"][1]) - math.log(far["SGD"][0] / far["SGD"][1]),
    )
    values = "  ".join(f"{name} {record.get(f'spectrum.T{steps}.{name}'):.5f}" for name in best)
    print(f"T = {steps}: {values}")
half = np.array([0.5])
record.metric("spectrum.same_lr.SGD", expected_loss(half, 1000)[0])
record.metric("spectrum.same_lr.Lookahead", expected_loss(half, 1000, 5, 0.5)[0])

# %% [markdown]
# ## 4 · Networks at six learning rates
#
# All learning rates and seeds are one tensor, so that one optimizer trains them all.
# Each run ends with a sync, so what is evaluated are the slow weights.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
features, hidden, classes = dataset.x_train[0].numel(), SETTINGS["hidden"], dataset.classes
examples, validation, batch = SETTINGS["examples"], SETTINGS["validation"], SETTINGS["batch"]
x_all, y_all = dataset.images("train", device).flatten(1), dataset.labels("train", device)
x_train, y_train = x_all[:examples], y_all[:examples]
x_val, y_val = x_all[examples : examples + validation], y_all[examples : examples + validation]
x_test, y_test = dataset.images("test", device).flatten(1), dataset.labels("test", device)
INNER = {
    "SGD": (lambda p, **own: SGD(p, momentum=0.9, **own), SETTINGS["sgd"]),
    "Adam": (lambda p, **own: Adam(p, **own), SETTINGS["adam"]),
}
SCHEDULES = {"constant": lambda t: 1.0, "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t))}


def initial(run_seeds):
    """The flattened weights of one network per seed, shape (seeds, n)."""
    nets = [models.mlp(features, (hidden,), classes, seed=seed) for seed in run_seeds]
    flat = [torch.nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets]
    return torch.stack(flat).to(device)


def losses(theta, x, y):
    """Mean cross-entropy: theta of shape (rates, seeds, n), x of (seeds, b, features) -> (rates, seeds)."""
    w1, b1, w2, b2 = theta.split([hidden * features, hidden, classes * hidden, classes], dim=-1)
    w1, w2 = w1.unflatten(-1, (hidden, features)), w2.unflatten(-1, (classes, hidden))
    h = (torch.einsum("rsif,sbf->rsbi", w1, x) + b1.unsqueeze(-2)).relu()
    scores = torch.einsum("rsoi,rsbi->rsbo", w2, h) + b2.unsqueeze(-2)
    each = F.cross_entropy(scores.flatten(0, 2), y.expand(scores.shape[:-1]).flatten(), reduction="none")
    return each.view(scores.shape[:-1]).mean(-1)


def train(make, extensions, lrs, run_seeds, schedule):
    """Train one network per learning rate and seed; returns the weights, shape (rates, seeds, n)."""
    start = initial(run_seeds)
    theta = start.repeat(len(lrs), 1, 1).requires_grad_()
    optimizer = make([theta], lr=1.0, extensions=[stacked.Rates(lrs), *extensions])
    per_epoch = examples // batch
    total = SETTINGS["epochs"] * per_epoch // 5 * 5
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: SCHEDULES[schedule](t / total))
    generators = [torch.Generator().manual_seed(seed) for seed in run_seeds]
    for step in range(total):
        if step % per_epoch == 0:
            order = torch.stack([torch.randperm(examples, generator=g) for g in generators]).to(device)
        indices = order[:, step % per_epoch * batch :][:, :batch]
        optimizer.zero_grad()
        losses(theta, x_train[indices], y_train[indices]).sum().backward()
        optimizer.step()
        scheduler.step()
    return theta.detach()


@torch.no_grad()
def evaluate(theta, x, y):
    """Loss on a whole split, as float64 of shape (rates, seeds); infinite where a run diverged."""
    pieces = zip(x.split(500), y.split(500), strict=True)
    sums = [len(b) * losses(theta, a.expand(theta.shape[1], *a.shape), b).double() for a, b in pieces]
    return (sum(sums) / len(y)).nan_to_num(nan=math.inf)


# %%
fresh = [1000 + seed for seed in range(8)]
start_loss = evaluate(initial(seeds)[None], x_train, y_train)[0]
for schedule in SCHEDULES:
    for inner, (make, middle) in INNER.items():
        lrs = [10 ** (k / 2) for k in range(middle - 2, middle + 4)]
        regret, test = {}, {}
        for name, extensions in ((inner, []), (f"Lookahead({inner})", [Lookahead(5, 0.5)])):
            theta = train(make, extensions, lrs, seeds, schedule)
            train_loss, val_loss = evaluate(theta, x_train, y_train), evaluate(theta, x_val, y_val)
            lowest = int(train_loss.mean(1).argmin())
            beside = [i for i in (lowest - 1, lowest + 1) if 0 <= i < len(lrs)]
            regret[name] = (train_loss[beside] / train_loss[lowest]).log().clamp(max=10).mean(0)
            best = lrs[int(val_loss.mean(1).argmin())]
            theta = train(make, extensions, [best], fresh, schedule)
            test[name] = evaluate(theta, x_test, y_test)[0]
            key = f"{schedule}.{'lookahead' if extensions else 'plain'}.{inner}"
            record.metric(f"{key}.lr", best)
            record.metric(f"{key}.test_loss", test[name])
            record.metric(f"{key}.regret", regret[name])
            record.curve(f"{schedule}/{name}", lrs, train_loss.T.tolist(), "α", "final training loss")
            print(f"{schedule:8s} {name:15s} best α = {best:.4f}, test loss {test[name].mean():.4f}", end="; ")
            print("training loss", " ".join(f"{x:.3g}" for x in train_loss.mean(1).tolist()))
            if not extensions and schedule == "constant":
                record.metric(f"trained.{inner}_over_start", train_loss[lowest] / start_loss)
        with_it, without = (value for value in reversed(test.values()))
        record.metric(f"improves.{schedule}.{inner}", (with_it / without).log())
        difference = regret[f"Lookahead({inner})"] - regret[inner]
        record.metric(f"robust.{inner}" if schedule == "constant" else f"robust_cosine.{inner}", difference)

# %%
path_of_record = records.write(record, out)
