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
# # AdaBound and SGD: what was run
#
# The experiments behind the chapter on Savarese (2019), a report on AdaBound. The claims that they decide stand in
# `book/claims/adabound_sgd.yaml`. The first four experiments are exact: float64, no data. The last one trains
# networks.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: CIFAR-10 on a GPU
seeds = [0, 1, 2, 3, 4]  # fresh seeds for the reported runs; learning rates are chosen with others
device = "cpu"
out = "adabound_sgd.json"  # where the record goes, relative to the working directory

# %%
import functools
import math
from fractions import Fraction

import numpy as np
import torch

from experiments import data, models, problems, records, stacked, training
from optimizers import SGD, AdaBound, Adam, Chain, Place, Stage
from optimizers.adabound import AdaBoundStep, rate_bounds
from optimizers.weight_decay import L2

SETTINGS = {  # at paper scale the network is the book's CNN
    "quick": {"dataset": "digits", "hidden": 32, "epochs": 6, "batch": 64, "sequences": 100},
    "standard": {"dataset": "mnist", "hidden": 32, "epochs": 2, "batch": 128, "sequences": 2000},
    "paper": {"dataset": "cifar10", "hidden": None, "epochs": 30, "batch": 128, "sequences": 2000},
}[scale]
record = records.new("adabound_sgd", scale, {"seeds": seeds, "device": device, **SETTINGS})

# %% [markdown]
# ## 1 · Slow for as long as you like
#
# $Cx$ with probability $2/(C+1)$, else $-x$, whose mean is $x$. The rule is Algorithm 2 of Luo et al.: no bias
# correction, a step divided by √t. The package's function takes tensors for γ, so that one call serves all γ, one
# per row. γ = 10⁻²⁰⁰ leaves no bound but (0, 10²⁰⁰): Adam.

# %%
C, alpha, beta2, count = 10.0, 0.1, 0.5, SETTINGS["sequences"]
horizons = (30, 100, 300, 1000)


def slow_gamma(K):
    """The theorem's γ: no rate is clipped in the first K steps."""
    return min(alpha / (C - alpha), math.sqrt(1 - beta2) / alpha) / K


gammas = [1e-200, *map(slow_gamma, horizons), 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0]
tensor = torch.tensor(gammas, dtype=torch.float64)[:, None]
generator = torch.Generator().manual_seed(seeds[0])
x, v = torch.zeros(len(gammas), count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
none = torch.zeros(count, dtype=torch.float64)
steps = 10_000
at = sorted({round(steps ** (i / 79)) for i in range(80)})
regret, means, apart, path = torch.zeros_like(x), [], [], []
worst = torch.zeros(len(gammas), dtype=torch.float64)  # largest mean regret ÷ √t, which is what a bound is on
for t in range(1, steps + 1):
    g = torch.where(torch.rand(count, generator=generator, dtype=torch.float64) < 2 / (C + 1), C, -1.0)
    regret += g * (x + 1)  # f_t(x_t) − f_t(−1)
    worst = torch.maximum(worst, regret.amax(1) / math.sqrt(t))
    lr = alpha / math.sqrt(1 - beta2**t)
    step, _, v, _ = AdaBoundStep.update(g, none, v, None, t, lr, 1.0, (0.0, beta2), 1.0, tensor, 0.0, False)
    x = (x - step / math.sqrt(t)).clamp(-1, 1)
    means.append(x.mean(1))
    apart.append((x[4] - x[0]).abs().max())  # K = 1,000 against Adam
    if t in at:
        path.append(means[-1])
means = torch.stack(means, 1)
record.metric("slow.gamma", gammas[4])
record.metric("slow.difference", torch.stack(apart[:1000]).max())
record.metric("slow.difference_after", torch.stack(apart[1000:]).max())
record.metric("slow.least_mean", means[4, :1000].min())
record.metric("slow.mean_1000", means[4, 999])
record.metric("slow.mean_3000", means[4, 2999])
record.metric("slow.turned", x[4])
record.metric("slow.adam", x[0])
record.metric("slow.one", x[10])
for name, row in (("adam", 0), ("K30", 1), ("K100", 2), ("K300", 3), ("K1000", 4)):
    record.curve(f"slow/{name}", at, [[float(values[row]) for values in path]], "step t", "mean x")
crossing = [int((row < 0).nonzero()[0]) + 1 for row in means[1:5]]
for K, where in zip(horizons, crossing, strict=True):
    record.metric(f"slow.crossing_{K}", where)
record.metric("slow.exponent", np.polyfit(np.log(horizons), np.log(crossing), 1)[0])
print("mean x crosses 0 at", dict(zip(horizons, crossing, strict=True)))
print(f"K = 1,000: {means[4, 999]:+.3f} at 1,000, {means[4, 2999]:+.3f} at 3,000, {x[4].mean():+.3f} at 10,000")

# %% [markdown]
# ## 2 · The condition of the proof
#
# $\eta_l(t-1)/\eta_u(t) \ge \sqrt{1-1/t}$. The two sides differ by about $(\tfrac12 - 2/\gamma)/t$, so they are
# compared as $\gamma^2 t c \ge \gamma(2t-1) + 1$ with $c = \sqrt{t(t-1)} - (t-1)$, which is the same (the chapter
# shows it) and loses no digits.

# %%
t = torch.arange(2, 2_000_001, dtype=torch.float64)
c = (t - 1).sqrt() / (t.sqrt() + (t - 1).sqrt())


def violated(gamma):
    """Share of the steps from 2 to 2,000,000 at which the condition is violated."""
    return (gamma**2 * t * c < gamma * (2 * t - 1) + 1).double().mean().item()


tried = (1e-3, 0.01, 0.1, 1.0, 2.0, 3.0, 3.5, 4.0, 5.0, 10.0, 100.0, 1e4)
shares = {gamma: violated(gamma) for gamma in tried}
record.metric("condition.default", shares[1e-3])
record.metric("condition.at_3_5", shares[3.5])
record.metric("condition.at_4", shares[4.0])
record.metric("condition.least", min(shares.values()))
low, high, t, c = 1.0, 10.0, t[:200_000], c[:200_000]
for _ in range(40):
    middle = (low + high) / 2
    low, high = (middle, high) if violated(middle) > 0 else (low, middle)
record.metric("condition.threshold", high)
print(f"γ = 10⁻³ violates it at {shares[1e-3]:.0%} of the steps; none is left from γ = {high:.6f} on")

shown = sorted({round(2 * 1000 ** (i / 99)) for i in range(100)})
for gamma in (2.0, 3.0, 4.0, 6.0, 20.0):
    margins = []
    for s in shown:
        ratio = rate_bounds(1.0, gamma, s - 1)[0] / rate_bounds(1.0, gamma, s)[1]
        margins.append(s * (ratio / math.sqrt(1 - 1 / s) - 1))
    record.curve(f"condition/{gamma:g}", shown, [margins], "step t", "t (left side ÷ right side − 1)")

# %% [markdown]
# ## 3 · The repaired bound
#
# $t/\eta_l(t) - (t-1)/\eta_u(t-1)$ by the package's bounds in exact fractions, at 200 steps from 1 to 2,000,000.

# %%
largest = []
for gamma in tried:
    exact, values = Fraction(gamma), []
    for s in sorted({round(2_000_000 ** (i / 199)) for i in range(200)}):
        before = (s - 1) / rate_bounds(Fraction(1), exact, s - 1)[1] if s > 1 else 0
        values.append(s / rate_bounds(Fraction(1), exact, s)[0] - before)
    largest.append(max(values))
    if gamma in (1e-3, 0.1, 1.0, 10.0, 100.0):
        name = f"{gamma:g}".replace(".", "_")
        record.metric(f"regret.m_{name}", float(largest[-1]))
for name, constant in (("ratio", 3), ("sharp", 1)):
    quotients = [m / (constant + 2 / Fraction(gamma)) for m, gamma in zip(largest, tried, strict=True)]
    record.metric(f"regret.m_{name}", float(max(quotients)))
    record.metric(f"regret.m_{name}_excess", float(max(quotients) - 1))  # below 0, also where it rounds to 0

rows = list(range(5, len(gammas)))  # 10⁻⁵ to 10³
ours = [(1 + 2 / gammas[i]) * 4 + (1 + 1 / gammas[i]) * C**2 for i in rows]
corollary = [5 * (1 + 1 / gammas[i]) * (4 + C**2) for i in rows]
measured = worst[rows].tolist()
record.metric("regret.over_ours", max(m / b for m, b in zip(measured, ours, strict=True)))
record.metric("regret.over_corollary", max(m / b for m, b in zip(measured, corollary, strict=True)))
for name, values in (("measured", measured), ("ours", ours), ("corollary", corollary)):
    record.curve(f"regret/{name}", [gammas[i] for i in rows], [values], "γ", "regret ÷ √t")
print("largest regret ÷ √t:", *(f"γ = {gammas[i]:g}: {m:.1f}" for i, m in zip(rows, measured, strict=True)))

# %% [markdown]
# ## 4 · Four kinds of damped momentum
#
# ½x² from 1, α = 0.1, μ = 0.9, 200 steps. CSGD is not in the package: a stage makes it.


# %%
class CSGD(Stage):
    """The average of gradients, corrected for its start at zero."""

    place = Place.DIRECTION
    ranges = {"momentum": "[0, 1)"}
    state = ("exp_avg",)
    velocity = state

    def __init__(self, momentum=0.9):
        super().__init__(momentum=momentum)

    @staticmethod
    def update(grad, exp_avg, step, momentum):
        exp_avg = momentum * exp_avg + (1 - momentum) * grad
        return exp_avg / (1 - momentum**step), exp_avg


def descend(make, problem, steps):
    """θ after each step, shape (steps, coordinates)."""
    theta = problem.initial().requires_grad_()
    optimizer, path = make([theta]), []
    for _ in range(steps):
        theta.grad = problem.gradient(theta.detach())
        optimizer.step()
        path.append(theta.detach().clone())
    return torch.stack(path)


KINDS = {
    "limit": lambda p: AdaBound(p, final_lr=0.1, gamma=1e12),
    "tenth": lambda p: SGD(p, lr=0.01, momentum=0.9),
    "csgd": lambda p: Chain(p, [CSGD()], lr=0.1),
    "dampening": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.9),
    "undamped": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "adabound": lambda p: AdaBound(p, lr=0.1),
}
line = problems.Quadratic((1.0,), (1.0,))
paths = {name: descend(make, line, 200) for name, make in KINDS.items()}
for name in ("tenth", "csgd", "dampening", "undamped"):
    gap = (paths[name] - paths["limit"]).abs()
    record.metric(f"damped.{name}_largest", gap.max())
    record.metric(f"damped.{name}_last", gap[-1, 0])
gap = (paths["dampening"] - paths["csgd"]).abs()
record.metric("damped.between_largest", gap.max())
record.metric("damped.between_last", gap[-1, 0])
bowl = problems.Quadratic()
for name, make in KINDS.items():
    losses = bowl.loss(descend(make, bowl, 150))
    record.curve(f"bowl/{name}", range(1, 151), [losses], "step", "loss")
    print(f"{name:10s} loss on the bowl after 150 steps {losses[-1]:.1e}")

# %% [markdown]
# ## 5 · Training
#
# L2 penalty $5\cdot10^{-4}$, α divided by 10 after three quarters. Every setting is trained once for all seeds: the
# first two choose learning rates, by the training loss at the end; the others are reported. AdaBound and CSGD
# choose α* from the same four values. The report's runs had 78,200 steps; ours have T, and γ is multiplied by
# 78,200/T.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
choosing = [1000, 1001]
per_epoch = math.ceil(len(dataset.y_train) / SETTINGS["batch"])
total = per_epoch * SETTINGS["epochs"]
longer = 78_200 / total
record.metric("csgd.steps", total)
record.metric("csgd.gamma", 1e-3 * longer)


def drop(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 if t < 0.75 * total else 0.1)


def train(make):
    """One history for every seed: the two that choose, then the reported ones."""
    options = {"epochs": SETTINGS["epochs"], "batch_size": SETTINGS["batch"], "device": device, "schedule": drop}
    if scale != "paper":  # all networks at once
        shape = dataset.x_train[0].numel(), (SETTINGS["hidden"],), dataset.classes
        net = stacked.StackedMLP([*choosing, *seeds], *shape).to(device)
        return stacked.train(net, make(net.parameters()), dataset, **options)
    histories = []
    for seed in (*choosing, *seeds):
        net = models.cnn(3, 32, dataset.classes, seed=seed).to(device)
        optimizer = make(net.parameters())
        histories.append(training.train(net, optimizer, dataset, seed=seed, progress=False, **options))
    return histories


def train_all(make, rates):
    """`train` at every learning rate, all networks at once."""
    if scale == "paper":
        return {lr: train(functools.partial(make, lr=lr)) for lr in rates}
    options = {"epochs": SETTINGS["epochs"], "batch_size": SETTINGS["batch"], "device": device, "schedule": drop}
    run_seeds, hidden = [*choosing, *seeds], (SETTINGS["hidden"],)
    return stacked.train_grid(make, rates, run_seeds, dataset, hidden=hidden, **options)


def end_loss(history):
    """Mean mini-batch loss of the last epoch; infinite for a run that diverged."""
    return math.inf if history.diverged else float(np.mean(history.train_loss[-per_epoch:]))


def best(runs):
    """The setting with the lowest loss at the end, on the seeds that choose."""
    return min(runs, key=lambda key: sum(end_loss(h) for h in runs[key][:2]))


DECAY = 5e-4
adam_lr = best(train_all(functools.partial(Adam, weight_decay=DECAY), (3e-4, 1e-3, 1e-2, 3e-2)))


def bounded(star, gamma):
    return train(lambda p: AdaBound(p, adam_lr, final_lr=star, gamma=gamma, weight_decay=DECAY))


STARS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
adabound = {star: bounded(star, 1e-3 * longer) for star in STARS}
csgd = train_all(lambda p, **own: Chain(p, [L2(DECAY), CSGD()], **own), STARS)
star, csgd_lr = best(adabound), best(csgd)
arms = {
    "adabound": adabound[star],
    "csgd": csgd[csgd_lr],
    "csgd_same": csgd[star],
    "tenth": train(lambda p: SGD(p, 0.1 * star, momentum=0.9, weight_decay=DECAY)),
    "undamped": train(lambda p: SGD(p, star, momentum=0.9, weight_decay=DECAY)),
    "tiny": bounded(star, 1e-10 * longer),
    "large": bounded(star, 100.0),
}
record.metric("csgd.adam_lr", adam_lr)
record.metric("csgd.final_lr", star)
record.metric("csgd.csgd_lr", csgd_lr)
error, final = {}, {}
for name, runs in arms.items():
    reported = runs[2:]
    # a run that diverged has the error of guessing
    right = [1 / dataset.classes if h.diverged else h.epoch[-1]["test_accuracy"] for h in reported]
    error[name] = [100 * (1 - share) for share in right]
    final[name] = [end_loss(h) for h in reported]
    record.metric(f"csgd.{name}.error", error[name])
    record.metric(f"csgd.{name}.loss", final[name])
    record.metric(f"csgd.{name}.spread", float(np.std(error[name], ddof=1)))
    whole = [h.train_loss + [math.nan] * (total - len(h.train_loss)) for h in reported]  # a diverged run ends early
    lines = [training.downsample(losses, 40) for losses in whole]
    record.curve(f"training/{name}", lines[0][0], [line[1] for line in lines], "step", "training loss")
    print(f"{name:9s} test error {np.mean(error[name]):6.2f} ± {np.std(error[name], ddof=1):.2f} %")
start = [h.train_loss[0] for h in arms["adabound"][2:]]
record.metric("csgd.learned", [a / b for a, b in zip(final["adabound"], start, strict=True)])


def minus(one, other):
    return [a - b for a, b in zip(error[one], error[other], strict=True)]


record.metric("csgd.over_adabound", minus("csgd", "adabound"))
record.metric("csgd.over_tenth", minus("csgd", "tenth"))
record.metric("csgd.tenth_over_adabound", minus("tenth", "adabound"))
record.metric("csgd.undamped_over_adabound", minus("undamped", "adabound"))
record.metric("csgd.large_gamma", minus("large", "adabound"))
record.metric("csgd.tiny_gamma", minus("tiny", "adabound"))

# %%
path_of_record = records.write(record, out)
