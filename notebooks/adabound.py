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
# # AdaBound: what was run
#
# The experiments behind the chapter on AdaBound (Luo, Xiong, Liu and Sun 2019). The claims that they decide stand
# in `book/claims/adabound.yaml`. The first four experiments are exact: float64, no data. The last one trains
# networks.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: CIFAR-10 on a GPU
seeds = [0, 1, 2, 3, 4]  # fresh seeds for the reported runs; learning rates are chosen with others
device = "cpu"
out = "adabound.json"  # where the record goes, relative to the working directory

# %%
import functools
import math

import numpy as np
import torch

from experiments import data, models, problems, records, stacked, training
from optimizers import SGD, AdaBound, Adam, RAdam
from optimizers.adabound import AdaBoundStep, rate_bounds

SETTINGS = {  # at paper scale the network is the book's CNN
    "quick": {"dataset": "digits", "hidden": 32, "epochs": 8, "batch": 64, "sequences": 100},
    "standard": {"dataset": "mnist", "hidden": 32, "epochs": 2, "batch": 128, "sequences": 1000},
    "paper": {"dataset": "cifar10", "hidden": None, "epochs": 30, "batch": 128, "sequences": 1000},
}[scale]
record = records.new("adabound", scale, {"seeds": seeds, "device": device, **SETTINGS})


def log_steps(steps, points=80):
    """About `points` step numbers from 1 to `steps`, evenly spaced on a logarithmic axis."""
    return sorted({round(steps ** (i / (points - 1))) for i in range(points)})


# %% [markdown]
# ## 1 · What rates do when the gradients are gone
#
# The bowl, α = 0.1. Once the gradients vanish, $v_t$ decays by $\beta_2$ per step and the rate grows by
# $1/\sqrt{\beta_2}$. Averaged gradients are stable along curvature $h$ up to the rate
# $2(1+\beta_1)/((1-\beta_1)h)$, which is 1.9 for $h = 20$.


# %%
def adam_rate(square, group, t):
    """Adam's rate of every coordinate from its v after step t; both may be tensors."""
    beta1, beta2 = group["betas"]
    return group["lr"] * (1 - beta2**t) ** 0.5 / (1 - beta1**t) / (square.sqrt() + group["eps"])


bowl = problems.Quadratic()


def descend(make, steps, problem=bowl):
    """θ and v after each step; each of shape (steps, coordinates), and the optimizer's group."""
    theta = problem.initial().requires_grad_()
    optimizer, path, squares = make([theta]), [], []
    for _ in range(steps):
        theta.grad = problem.gradient(theta.detach())
        optimizer.step()
        path.append(theta.detach().clone())
        squares.append(optimizer.state[theta].get("exp_avg_sq", theta.detach()).clone())
    return torch.stack(path), torch.stack(squares), optimizer.param_groups[0]


steps = 10_000
t = torch.arange(1, steps + 1, dtype=torch.float64)
shown = torch.arange(50, steps + 1, 50) - 1
bounds = [rate_bounds(0.1, 1e-3, step) for step in t.tolist()]
lows, highs = (torch.tensor(side, dtype=torch.float64) for side in zip(*bounds, strict=True))
for name, make in (("radam", lambda p: RAdam(p, lr=0.1)), ("adabound", lambda p: AdaBound(p, lr=0.1))):
    path, squares, group = descend(make, steps)
    loss, rate = bowl.loss(path), adam_rate(squares[:, 1], group, t)
    lowest = int(loss.argmin())
    record.metric(f"bowl.{name}_return", loss[lowest:].max())
    record.metric(f"bowl.{name}_lowest_at", lowest + 1)
    record.curve(f"bowl/{name}", shown + 1, [loss[shown]], "step", "loss")
    used = torch.minimum(torch.maximum(rate, lows), highs) if name == "adabound" else rate
    record.curve(f"bowl/{name}_rate", shown + 1, [used[shown]], "step", "learning rate of θ₂")
    print(f"{name:9s} lowest loss at step {lowest + 1}, then as high as {loss[lowest:].max():.2g}")
    if name == "radam":
        record.metric("bowl.doubling", rate[5999 + 1386] / rate[5999])  # 1386 ≈ 2 ln 2 / (1 − β₂)
        record.metric("bowl.passes", int((rate > 1.9).nonzero()[0]) + 1)

# %% [markdown]
# ## 2 · Adam at first, within the bounds always
#
# With ε = 0, as the two rules add it in different places.

# %%
free, held = (
    descend(make, 1000)[0] for make in (lambda p: Adam(p, lr=0.1, eps=0.0), lambda p: AdaBound(p, lr=0.1, eps=0.0))
)
record.metric("start.difference", (free - held)[:100].abs().max())
parts = int(((free - held).abs().amax(1) > 1e-6 * free.abs().amax(1)).nonzero()[0]) + 1
record.metric("start.parts_at", parts)
print(f"AdaBound leaves Adam's path on the bowl at step {parts}")

generator = torch.Generator().manual_seed(seeds[0])
sizes = torch.logspace(-12, 6, 19, dtype=torch.float64)
theta = torch.zeros(19, dtype=torch.float64, requires_grad=True)
optimizer = AdaBound([theta], betas=(0.0, 0.999))
excess = 0.0
for t in range(1, 3001):
    with torch.no_grad():
        theta.zero_()  # so that the step is not lost in the rounding of θ
    theta.grad = sizes * (0.1 + torch.rand(19, generator=generator, dtype=torch.float64))
    optimizer.step()
    rate = -theta.detach() / theta.grad
    low, high = rate_bounds(0.1, 1e-3, t)
    excess = max(excess, (low / rate - 1).max().item(), (rate / high - 1).max().item())
    if t == 3000:
        record.metric("bounds.reached", [rate.min().item() / low, rate.max().item() / high])
record.metric("bounds.excess", max(excess, 0.0))
for t in (1, 10, 100, 1000, 1200, 10_000):
    for side, bound in zip(("low", "high"), rate_bounds(0.1, 1e-3, t), strict=True):
        record.metric(f"bounds.{side}_{t}", bound)

# %% [markdown]
# ## 3 · The limit of a large γ
#
# ½x² from 1: AdaBound against averaged gradients at the constant rate α* = 0.1, and that against torch's kind of
# momentum, at α* and at α*(1 − β₁).


# %%

# %%
line = problems.Quadratic((1.0,), (1.0,))
x, m, averaged = 1.0, 0.0, []
for _ in range(200):
    m = 0.9 * m + 0.1 * x
    x -= 0.1 * m
    averaged.append(x)


def gap(make):
    """Largest distance from the averaged gradients."""
    path = descend(make, 200, line)[0][:, 0]
    return (path - torch.tensor(averaged, dtype=torch.float64)).abs().max().item()


exponents = range(-3, 9)
gaps = [gap(lambda p, k=k: AdaBound(p, gamma=10.0**k)) for k in exponents]
record.curve("limit/averaged", [10.0**k for k in exponents], [gaps], "γ", "largest distance")
for k in (-3, 0, 2, 4, 8):
    record.metric(f"limit.g{k}".replace("-", "m"), gaps[k + 3])
record.metric("limit.exponent", math.log10(gaps[-1] / gaps[5]) / 6)  # from γ = 10² to 10⁸
for name, lr in (("same", 0.1), ("tenth", 0.01)):
    record.metric(f"limit.sgd_{name}", gap(lambda p, lr=lr: SGD(p, lr=lr, momentum=0.9)))
print("distance from averaged gradients:")
print(*(f"γ = 1e{k}: {far:.2g}" for k, far in zip(exponents, gaps, strict=True)))

# %% [markdown]
# ## 4 · The stochastic problem
#
# $Cx$ with probability $2/(C+1)$, else $-x$; the gradients do not depend on x. The paper's Algorithm 2: no bias
# correction (β₁ is 0, and that of $v$ is divided out), and the clipped rate is divided by √t. The package's
# function takes tensors for γ, so that one call serves γ = 1, the default, and Adam, the limit of γ → 0.

# %%
C, alpha, beta2, count = 10.0, 0.1, 0.5, SETTINGS["sequences"]
generator = torch.Generator().manual_seed(seeds[0])
gammas = torch.tensor([1e-200, 1e-3, 1.0], dtype=torch.float64)[:, None]
names = ("adam", "adabound_default", "adabound", "sgd")
x, m, v = torch.zeros(4, count, dtype=torch.float64), *torch.zeros(2, count, dtype=torch.float64)
at, path = log_steps(20_000), []
for t in range(1, 20_001):
    g = torch.where(torch.rand(count, generator=generator, dtype=torch.float64) < 2 / (C + 1), C, -1.0)
    lr = alpha / math.sqrt(1 - beta2**t)
    bounded, _, v, _ = AdaBoundStep.update(g, m, v, None, t, lr, 1.0, (0.0, beta2), 1.0, gammas, 0.0, False)
    x = (x - torch.cat([bounded, alpha * g[None]]) / math.sqrt(t)).clamp(-1, 1)
    if t in (3000, 20_000):
        for name, row in zip(names, x, strict=True):
            record.metric(f"problem.{name}_{t}", row)
        print(f"t = {t}:", *(f"{name} {row.mean():+.3f}" for name, row in zip(names, x, strict=True)))
    if t in at:
        path.append(x[:, :20])
for name, rows in zip(names, torch.stack(path, -1), strict=True):
    record.curve(f"problem/{name}", at, rows.tolist(), "step t", "x")

# %% [markdown]
# ## 5 · Training
#
# L2 penalty $5\cdot10^{-4}$, α divided by 10 after three quarters, as in the authors' runs on CIFAR-10. Every
# setting is trained once for all seeds: the first two choose learning rates, by the training loss at the end; the
# others are reported. The authors' runs had 78,200 steps at γ = 10⁻³; ours have T, and γ is 10⁻³ · 78,200/T.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
choosing = [1000, 1001]
per_epoch = math.ceil(len(dataset.y_train) / SETTINGS["batch"])
total = per_epoch * SETTINGS["epochs"]
gamma = 1e-3 * 78_200 / total
record.metric("training.steps", total)
record.metric("training.gamma", gamma)


def drop(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 if t < 0.75 * total else 0.1)


watched = log_steps(total, 40)


def watch(optimizer, final_lr, rows):
    """Adam's rate over all weights, after some of the steps: three quantiles, and the shares beyond the bounds."""
    group = optimizer.param_groups[0]
    t = int(optimizer.state[group["params"][0]]["step"])
    if t not in watched:
        return
    squares = torch.cat([optimizer.state[p]["exp_avg_sq"].flatten() for p in group["params"]]).double()
    rate = adam_rate(squares, {**group, "lr": group["initial_lr"]}, t)  # a schedule moves rate and bounds alike
    low, high = rate_bounds(final_lr, gamma, t)
    quantiles = np.quantile(rate.cpu().numpy(), [0.01, 0.5, 0.99]).tolist()
    rows.append([*quantiles, (rate < low).double().mean().item(), (rate > high).double().mean().item()])


def train(make, final_lr=None, rows=None):
    """One history for every seed: the two that choose, then the reported ones; `rows` takes what `watch` sees."""
    options = {"epochs": SETTINGS["epochs"], "batch_size": SETTINGS["batch"], "device": device, "schedule": drop}

    def made(net):
        optimizer = make(net.to(device).parameters())
        if rows is not None:
            optimizer.register_step_post_hook(lambda optimizer, *_: watch(optimizer, final_lr, rows))
        return optimizer

    if scale != "paper":  # all networks at once
        shape = dataset.x_train[0].numel(), (SETTINGS["hidden"],), dataset.classes
        net = stacked.StackedMLP([*choosing, *seeds], *shape)
        return stacked.train(net, made(net), dataset, **options)
    nets = [models.cnn(3, 32, dataset.classes, seed=seed) for seed in (*choosing, *seeds)]
    return [
        training.train(net, made(net), dataset, seed=seed, progress=False, **options)
        for net, seed in zip(nets, (*choosing, *seeds), strict=True)
    ]


def train_all(make, rates):
    """`train` at every learning rate, all networks at once."""
    if scale == "paper":
        return {lr: train(functools.partial(make, lr=lr)) for lr in rates}
    options = {"epochs": SETTINGS["epochs"], "batch_size": SETTINGS["batch"], "device": device, "schedule": drop}
    run_seeds, hidden = [*choosing, *seeds], (SETTINGS["hidden"],)
    return stacked.train_grid(make, rates, run_seeds, dataset, hidden=hidden, **options)


def loss_of(history, part):
    """Mean mini-batch loss over a slice of the steps; infinite for a run that diverged."""
    return math.inf if history.diverged else float(np.mean(history.train_loss[part]))


def errors(histories):
    """Final test error in percent of the reported seeds; that of guessing where a run diverged."""
    return [
        100 * (1 - (1 / dataset.classes if h.diverged else h.epoch[-1]["test_accuracy"])) for h in histories[2:]
    ]


def best(runs):
    """The setting with the lowest training loss at the end, on the seeds that choose."""
    return min(runs, key=lambda key: sum(loss_of(h, slice(-per_epoch, None)) for h in runs[key][:2]))


# %%
FIVE = (0.01, 0.03, 0.1, 0.3, 1.0)  # α of SGD and α* of AdaBound, for the question how much they matter
TENTH = {0.01: 0.001, 0.03: 0.003, 0.1: 0.01, 0.3: 0.03, 1.0: 0.1, 3.0: 0.3}  # α* → α*(1 − β₁)
seen = {}
sgd = train_all(functools.partial(SGD, momentum=0.9, weight_decay=5e-4), (0.001, 0.003, *FIVE))
adam = {}
for lr in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2):
    adam[lr] = train(lambda p, lr=lr: Adam(p, lr, weight_decay=5e-4), 0.1, seen.setdefault(("adam", lr), []))
best_sgd, best_adam = best(sgd), best(adam)
adabound = {}
for star in TENTH:
    rule = {"lr": best_adam, "final_lr": star, "weight_decay": 5e-4}
    rows = seen.setdefault(("adabound", star), [])
    adabound[star] = train(lambda p, rule=rule: AdaBound(p, gamma=gamma, **rule), star, rows)
best_star = best(adabound)
slow = train(lambda p: AdaBound(p, best_adam, final_lr=best_star, weight_decay=5e-4))  # the default γ
record.metric("training.sgd_lr", best_sgd)
record.metric("training.adam_lr", best_adam)
record.metric("training.final_lr", best_star)

# %% [markdown]
# Quantiles of Adam's rate over all weights at its default α, and the shares beyond the bounds in AdaBound's run.

# %%
rows = seen["adam", 1e-3][: len(watched)]  # at paper scale of the first network
for i, name in enumerate(("low", "middle", "high")):
    record.curve(f"rates/{name}", watched, [[row[i] for row in rows]], "step t", "Adam's rate")
record.metric("rates.decades", math.log10(rows[-1][2] / rows[-1][0]))
held = seen["adabound", best_star][: len(watched)]
for i, name in ((3, "below"), (4, "above")):
    record.curve(f"rates/{name}", watched, [[row[i] for row in held]], "step t", "share of the weights")
record.metric("rates.below", held[-1][3])
record.metric("rates.above", held[-1][4])
print(f"1 % to 99 % of Adam's rates: {record.get('rates.decades'):.1f} decades")

# %%
arms = {"sgd": sgd[best_sgd], "adam": adam[best_adam], "adabound": adabound[best_star]}
arms |= {"damped": sgd[TENTH[best_star]], "untuned": adabound[0.1], "slow": slow}
early = {name: [loss_of(h, slice(0, total // 20)) for h in runs[2:]] for name, runs in arms.items()}
error = {name: errors(runs) for name, runs in arms.items()}
for name, runs in arms.items():
    record.metric(f"training.{name}.error", error[name])
    record.metric(f"training.{name}.early_loss", early[name])
    record.metric(f"training.{name}.loss", [loss_of(h, slice(-per_epoch, None)) for h in runs[2:]])
    whole = [h.train_loss + [math.nan] * (total - len(h.train_loss)) for h in runs[2:]]  # a diverged run ends early
    lines = [training.downsample(losses, 40) for losses in whole]
    record.curve(f"training/{name}", lines[0][0], [line[1] for line in lines], "step", "training loss")
    print(f"{name:9s} early loss {np.mean(early[name]):.3f}, final test error {np.mean(error[name]):.2f} %")


def minus(one, other):
    return [a - b for a, b in zip(one, other, strict=True)]


record.metric("training.early", [math.log(a / b) for a, b in zip(early["adabound"], early["sgd"], strict=True)])
record.metric(
    "training.early_damped", [math.log(a / b) for a, b in zip(early["adabound"], early["damped"], strict=True)]
)
record.metric("training.gap_adam", minus(error["adam"], error["sgd"]))
record.metric("training.gap_adabound", minus(error["adabound"], error["sgd"]))
record.metric("training.gap_damped", minus(error["damped"], error["sgd"]))
record.metric("training.over_adam", minus(error["adabound"], error["adam"]))
record.metric("training.over_damped", minus(error["adabound"], error["damped"]))

spread = {}
tenth = {star: sgd[TENTH[star]] for star in FIVE}
for name, runs in (("sgd", sgd), ("adabound", adabound), ("damped", tenth)):
    columns = list(zip(*(errors(runs[x]) for x in FIVE), strict=True))
    record.curve(f"sensitivity/{name}", FIVE, columns, "α or α*", "test error (%)")
    spread[name] = [max(column) - min(column) for column in columns]
    record.metric(f"sensitivity.{name}", spread[name])
record.metric("sensitivity.over_sgd", minus(spread["adabound"], spread["sgd"]))
record.metric("sensitivity.over_damped", minus(spread["adabound"], spread["damped"]))
print("spread of test errors:", *(f"{name} {np.mean(values):.2f}" for name, values in spread.items()))

# %%
path_of_record = records.write(record, out)
