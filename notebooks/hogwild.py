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
#   races: [real.two, real.difference, real.overlap, real.lost, real.*_delay, real/two, real/delay]
# ---

# %% [markdown]
# # Hogwild: what was run
#
# The experiments behind the chapter on Hogwild (Recht, Ré, Wright & Niu 2011). The claims that they decide stand in
# `book/claims/hogwild.yaml`. The first four are free of chance beyond their seeds. In the last one, two processes
# really write to the same memory, in an order that no seed decides: its numbers differ a little from run to run.

# %% tags=["parameters"]
scale = "quick"  # all data are synthetic; the larger scales take more seeds, steps and processes' work
seeds = [0, 1, 2, 3, 4]
device = "cpu"  # Hogwild is about the memory of processors
out = "hogwild.json"  # where the record goes, relative to the working directory

# %%
import math
import os
import time

import numpy as np
import scipy.sparse
import torch
from torch import nn
from torch.nn import functional as F

from experiments import problems, records
from optimizers import SGD, run_hogwild

SETTINGS = {
    "quick": {
        **{"steps": 3000, "wide_seeds": 2, "chains": 40, "lags": [0, 1], "square_chains": 4000},
        **{"examples": 1000, "epochs": 4},
    },
    "standard": {
        **{"steps": 15000, "wide_seeds": 5, "chains": 400, "lags": [0, 1, 2, 4], "square_chains": 40000},
        **{"examples": 20000, "epochs": 5},
    },
    "paper": {
        **{"steps": 15000, "wide_seeds": 5, "chains": 400, "lags": [0, 1, 2, 4], "square_chains": 40000},
        **{"examples": 100000, "epochs": 10},
    },
}[scale]
PROCESSES = 2
record = records.new("hogwild", scale, {"seeds": seeds, "device": device, "processes": PROCESSES, **SETTINGS})

# %% [markdown]
# ## 1 · The bowl, with a delay
#
# Every gradient is that of the parameters τ steps ago. Along a curvature $h$ this is stable as long as
# $\alpha h < 2\sin(\pi/(4\tau + 2))$.


# %%
def late_descent(lr, tau, steps):
    """The loss of the book's quadratic after every step; what is older than the start is the start."""
    bowl = problems.Quadratic()
    theta = bowl.initial().requires_grad_()
    optimizer = SGD([theta], lr=lr)
    past = [theta.detach().clone()]
    for _ in range(steps):
        theta.grad = bowl.gradient(past[max(0, len(past) - 1 - tau)])
        optimizer.step()
        past.append(theta.detach().clone())
    return bowl.loss(torch.stack(past)).tolist()


for tau in (0, 1, 3, 4):
    record.curve(f"bowl/{tau}", range(101), [late_descent(0.02, tau, 100)], "step", "loss")
limits = {tau: 2 * math.sin(math.pi / (4 * tau + 2)) / 20 for tau in (0, 1, 3, 4, 16)}
right = True
for tau, limit in limits.items():
    record.metric(f"bowl.limit.tau{tau}", limit)
    below, above = (late_descent(limit * f, tau, 1500)[-1] for f in (0.95, 1.05))
    right &= below < 1 < above
    print(f"τ = {tau:2d}: largest α {limit:.5f}; stable below it, and not above: {below < 1 < above}")
record.metric("bowl.agrees", int(right))

# %% [markdown]
# ## 2 · Delay on least squares
#
# Example $t$ has the features $a_t$: Ω blocks of $n/\Omega$ coordinates, in each of which one is
# $\pm1/\sqrt\Omega$. The weights are written as distances from the solution, and they start at 1. All delays and
# seeds are one parameter.


# %%
def draw(n, active, steps, run_seeds):
    """Coordinates and signs of the examples, each of shape (steps, seeds, Ω)."""
    places, signs = [], []
    for seed in run_seeds:
        generator = torch.Generator().manual_seed(seed)
        within = torch.randint(n // active, (steps, active), generator=generator)
        places.append(within + torch.arange(active) * (n // active))
        signs.append(torch.randint(2, (steps, active), generator=generator).double() * 2 - 1)
    return torch.stack(places, 1), torch.stack(signs, 1)


def late_steps(n, active, lr, taus, steps, run_seeds, points):
    """Mean square of the weights ÷ that at the start, after the steps in `points`: (points, taus, seeds)."""
    places, signs = draw(n, active, steps, run_seeds)
    rows, columns = torch.arange(len(taus)), torch.arange(len(run_seeds))
    theta = torch.ones(len(taus), len(run_seeds), n, dtype=torch.float64, requires_grad=True)
    theta.grad = torch.zeros_like(theta)
    optimizer = SGD([theta], lr=lr)
    length = max(taus) + 1
    past = theta.detach().repeat(length, 1, 1, 1)  # what is older than the start is the start
    lateness, found, points = torch.tensor(taus), [], set(points)
    if 0 in points:
        found.append(theta.detach().square().mean(-1))
    for t in range(steps):
        at, a = places[t], signs[t] / active**0.5
        then = (t - lateness) % length
        where = (rows[:, None, None], columns[None, :, None], at)
        if active == n:
            seen = past[then, rows]
            theta.grad = a * (a * seen).sum(-1, keepdim=True)
            optimizer.step()
        else:
            seen = past[(then[:, None, None], *where)]
            theta.grad[where] = a * (a * seen).sum(-1, keepdim=True)
            optimizer.step()
            theta.grad[where] = 0.0
        past[(t + 1) % length] = theta.detach()
        if t + 1 in points:
            found.append(theta.detach().square().mean(-1))
    return torch.stack(found)


def expected(n, lr, taus, steps):
    """The same quantity's expectation, exactly: (steps + 1, taus)."""
    result = np.empty((steps + 1, len(taus)))
    for column, tau in enumerate(taus):
        mean, response = np.ones(steps + 1), np.ones(steps + 1)
        for t in range(1, steps + 1):
            mean[t] = mean[t - 1] - lr / n * mean[max(0, t - 1 - tau)]
            response[t] = response[t - 1] - lr / n * (response[t - 1 - tau] if t > tau else 0.0)
        squares = response**2 * lr**2 * (1 / n - 1 / n**2)
        square, late = result[:, column], np.empty(steps)
        square[0] = 1.0
        for t in range(1, steps + 1):
            late[t - 1] = square[max(0, t - 1 - tau)]
            square[t] = mean[t] ** 2 + squares[:t][::-1] @ late[:t]
    return result


def delay_limit(n, lr):
    """The delay at which the mean square stops falling, for large n."""
    return n / lr * (2 * math.atan(2 / lr) - math.pi / 2)


STEPS, TAUS = SETTINGS["steps"], (0, 8, 16, 32, 64, 128, 256)
points = sorted({round(STEPS * k / 50) for k in range(51)} | {5000})
arms = {
    "sparse": (1000, 4, 1.0, TAUS, seeds),
    "wide": (1000, 1000, 1.0, (0, 16, 64, 256), seeds[: SETTINGS["wide_seeds"]]),
    "narrow": (16, 16, 1.0, (0, 4, 8, 16, 32, 64), seeds),
    "slow": (16, 16, 0.2, (0, 4, 8, 16, 32, 64), seeds),
}
losses = {}
for name, (n, active, lr, taus, run_seeds) in arms.items():
    length = points if n > 16 else range(0, 601, 12)
    values = late_steps(n, active, lr, taus, max(length), run_seeds, length)
    for column, tau in enumerate(taus):
        losses[name, tau] = dict(zip(length, values[:, column].tolist(), strict=True))
        record.curve(f"{name}/{tau}", length, values[:, column].T, "step", "loss ÷ loss at the start")
        at_end = losses[name, tau][5000 if n > 16 else 600]
        record.metric(f"delay.{name}.tau{tau}", at_end)
        print(f"{name:6s} τ = {tau:3d}: {np.mean(at_end):.3g}")

for name in ("sparse", "wide"):
    late, serial = losses[name, 64][5000], losses[name, 0][5000]
    record.metric(f"delay.{name}_64", [a / b for a, b in zip(late, serial, strict=True)])
record.metric("delay.narrow_16", [math.log(x) for x in losses["narrow", 16][600]])
record.metric("delay.slow_64", [math.log(x) for x in losses["slow", 64][600]])

exact = expected(1000, 1.0, TAUS, 5000)
for column, tau in enumerate(TAUS):
    record.metric(f"delay.expected.tau{tau}", exact[5000, column])
lags = (0, 4, 8, 16, 32, 64, 96, 128, 192, 256)
record.curve("expected/end", lags, [expected(1000, 1.0, lags, 5000)[5000]], "τ", "loss ÷ loss at the start")
record.curve("measured/end", TAUS, np.array([losses["sparse", tau][5000] for tau in TAUS]).T, "τ", "loss")
wide = arms["wide"][3]
record.curve("measured_wide/end", wide, np.array([losses["wide", tau][5000] for tau in wide]).T, "τ", "loss")
record.metric("delay.expected_ratio", exact[5000, TAUS.index(64)] / exact[5000, 0])
enough = expected(1000, 1.0, [64], 6000)[:, 0] <= exact[5000, 0]
record.metric("delay.steps_64", int(enough.argmax()) / 5000)
print(f"steps with τ = 64 ÷ steps without, for the same loss: {record.get('delay.steps_64'):.4f}")
for name, (n, lr) in {"sparse": (1000, 1.0), "narrow": (16, 1.0), "slow": (16, 0.2)}.items():
    record.metric(f"delay.limit.{name}", delay_limit(n, lr))
    print(f"{name:6s} largest delay {delay_limit(n, lr):.1f}")

# %% [markdown]
# ## 3 · The three statistics
#
# Ω, Δ and ρ of what was drawn: 5,000 examples of the sparse problem, and of the two dense ones.


# %%
def statistics(places, n):
    """Ω, Δ and ρ of terms given by the coordinates that they see, shape (terms, Ω)."""
    terms, active = places.shape
    index = (np.repeat(np.arange(terms), active), places.reshape(-1))
    sees = scipy.sparse.csr_matrix((np.ones(terms * active, dtype=np.int32), index), shape=(terms, n))
    meets = (sees @ sees.T).getnnz(axis=1)
    return int(sees.getnnz(axis=1).max()), float(sees.getnnz(axis=0).max() / terms), float(meets.max() / terms)


def bracket(tau, rho, omega, delta, square=4):
    """1 + 6ρτ + 4τ²Ω√Δ, by which delay lowers the learning rate; in the number of steps the 4 is a 6."""
    return 1 + 6 * rho * tau + square * tau**2 * omega * delta**0.5


for name, (n, active) in {"sparse": (1000, 4), "dense": (16, 16)}.items():
    omega, delta, rho = statistics(draw(n, active, 5000 if n > 16 else 200, [0])[0][:, 0].numpy(), n)
    for key, value in {"omega": omega, "delta": delta, "rho": rho}.items():
        record.metric(f"statistics.{name}.{key}", value)
    for tau in (1, 8, 64):
        record.metric(f"statistics.{name}.bracket{tau}", bracket(tau, rho, omega, delta))
    print(f"{name}: Ω = {omega}, Δ = {delta:.4f}, ρ = {rho:.4f}", end="; ")
    print(f"bracket at τ = 64: {bracket(64, rho, omega, delta):,.0f}")

# %% [markdown]
# ## 4 · Proposition 4.1
#
# Eight weights in [−1, 1], every pair of them is a term $\tfrac12\sum_{v\in e}(\theta_v - y_{e,v})^2$ with
# $y = \pm1$, so every constant is known. The variant of §4: one random coordinate of a random term, times |e|.

# %%
N, PAIRS = 8, torch.combinations(torch.arange(8))
OMEGA, DELTA, RHO = statistics(PAIRS.numpy(), N)
L = C = 7 / 28  # each weight is in 7 of the 28 pairs
M = math.sqrt(2 * 2**2)  # two coordinates, each of a slope of at most 2
half = torch.tensor([1.0, -1.0] * 28, dtype=torch.float64)
Y = half[torch.randperm(56, generator=torch.Generator().manual_seed(0))].view(28, 2)
BEST = torch.zeros(N, dtype=torch.float64).index_add_(0, PAIRS.flatten(), Y.flatten()) / 7
START = -torch.ones(N, dtype=torch.float64)
fall = 0.5 * C * (START - BEST).square().sum().item()
D0, EPSILON, SAFETY = (START - BEST).square().sum().item(), fall / 4, 0.9


def proposition(tau):
    """The learning rate and the number of steps, as the paper has them (with its two different constants)."""
    lr = SAFETY * EPSILON * C / (2 * L * M**2 * OMEGA * bracket(tau, RHO, OMEGA, DELTA))
    steps = 2 * L * M**2 * OMEGA * bracket(tau, RHO, OMEGA, DELTA, 6) * math.log(L * D0 / EPSILON)
    return lr, math.ceil(steps / (C**2 * SAFETY * EPSILON))


def chains(tau, every):
    """Loss above the minimum ÷ ε after every so many steps, mean over the chains: (points, seeds); largest |θ|."""
    lr, steps = proposition(tau)
    shape = (len(seeds), SETTINGS["chains"])
    theta = START.expand(*shape, N).clone().requires_grad_()
    theta.grad = torch.zeros_like(theta)
    optimizer = SGD([theta], lr=lr)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    past, found, largest = [theta.detach().clone()] * (tau + 1), [], 0.0
    size = (every, SETTINGS["chains"])
    flat = (torch.arange(shape[0])[:, None] * shape[1] + torch.arange(shape[1])) * N
    for first in range(0, steps, every):
        term = torch.stack([torch.randint(28, size, generator=g) for g in generators], 1)
        side = torch.stack([torch.randint(2, size, generator=g) for g in generators], 1)
        v, y = flat + PAIRS[term, side], Y[term, side]
        for t in range(min(every, steps - first)):
            theta.grad.view(-1)[v[t]] = 2 * (past[0].view(-1)[v[t]] - y[t])
            optimizer.step()
            theta.grad.view(-1)[v[t]] = 0.0
            past = [*past[1:], theta.detach().clone()]
        above = 0.5 * C * (theta.detach() - BEST).square().sum(-1).mean(-1)
        found.append((above / EPSILON).tolist())
        largest = max(largest, theta.detach().abs().max().item())
    return np.array(found), largest


for tau in SETTINGS["lags"]:
    lr, steps = proposition(tau)
    every = math.ceil(steps / 190)
    path, largest = chains(tau, every)
    first = [every * (int(np.argmax(line <= 1)) + 1) for line in path.T]
    record.metric(f"steps.excess.tau{tau}", path[-1])
    record.metric(f"steps.bound.tau{tau}", steps)
    record.metric(f"steps.needed.tau{tau}", first)
    record.metric(f"steps.slack.tau{tau}", [steps / s for s in first])
    record.metric(f"steps.lr.tau{tau}", lr)
    record.metric(f"steps.largest.tau{tau}", largest)
    record.curve(f"steps/{tau}", [every * (i + 1) for i in range(len(path))], path.T, "step", "excess ÷ ε")
    print(f"τ = {tau}: α = {lr:.5f}, {steps} steps, excess {path[-1].mean():.4f} ε", end=", ")
    print(f"within ε after {np.mean(first):.0f}")
for key, value in {"omega": OMEGA, "delta": DELTA, "rho": RHO, "fall": fall, "epsilon": EPSILON}.items():
    record.metric(f"steps.constants.{key}", value)

# %% [markdown]
# ## 5 · Backoff
#
# $f_t(\theta) = \tfrac12(\theta - c_t)^2$ with standard normal $c_t$. Here the tuned 1/k step is the running mean,
# and its mean square is $1/k$; in the terms of §5, $c = 2$ and $B = \tfrac12$ to first order in α.


# %%
def paper_constant(beta):
    """Steps of the backoff to reach ε ÷ those of the tuned 1/k step, by the bound of §5."""
    return np.log(2 / beta) / (2 * (1 - beta))


betas = np.linspace(0.05, 0.95, 181)
fine = np.linspace(0.05, 0.95, 90001)
record.metric("backoff.best_beta", fine[paper_constant(fine).argmin()])
record.metric("backoff.bound", paper_constant(fine).min())
shown = betas[::2]
record.curve("constant/paper", shown, [paper_constant(shown)], "β", "constant")
record.curve("constant/limit", shown, [(1 - shown / 2) * paper_constant(shown)], "β", "constant")
record.curve("constant/exact", shown, [np.log(2 / shown - 1) / (2 * (1 - shown))], "β", "constant")
record.metric("backoff.limit_at_37", (1 - 0.37 / 2) * paper_constant(0.37))
record.metric("backoff.exact_at_37", math.log(2 / 0.37 - 1) / (2 * (1 - 0.37)))


def backoff_run(beta, first_lr, epochs, chains):
    """Total steps, and mean square per seed, after every epoch; SGD of the package, all chains one parameter."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal():
        return torch.stack([torch.randn(chains, generator=g, dtype=torch.float64) for g in generators])

    theta = (first_lr**0.5 * normal()).requires_grad_()
    optimizer = SGD([theta], lr=first_lr)
    total, totals, squares = 0, [], []
    for epoch in range(epochs):
        lr = optimizer.param_groups[0]["lr"] = first_lr * beta**epoch
        length = round(math.log(2 / beta) / (2 * lr))
        for _ in range(length):
            theta.grad = theta.detach() - normal()
            optimizer.step()
        total += length
        totals.append(total)
        squares.append(theta.detach().square().mean(1).tolist())
    return np.array(totals), np.array(squares).T


totals, squares = backoff_run(0.37, 0.2, 7, SETTINGS["square_chains"] // 4)
record.curve("backoff/measured", totals, squares, "step", "mean square")
record.metric("backoff.exponent", [np.polyfit(np.log(totals[2:]), np.log(line[2:]), 1)[0] for line in squares])
record.metric("backoff.constant", squares[:, -1] * totals[-1])
print("backoff: steps × mean square after each epoch", (totals * squares.mean(0)).round(2).tolist())


# %% [markdown]
# The recursion $a_k = (1 - c\,\alpha_k)\,a_{k-1} + c\,B\,\alpha_k^2$ with $c = 1$, $B = 1$: the tuned step has
# $4/k$. Then the curvature is a fifth of the believed one.


# %%
def recursion(rates):
    """a after every step, from 1."""
    a, path = 1.0, np.empty(len(rates))
    for k, lr in enumerate(rates.tolist()):
        a = (1 - lr) * a + lr**2
        path[k] = a
    return path


def backoff_rates(first_lr, length, epochs, beta=0.37):
    """Learning rates of all steps, and the number of steps at the end of every epoch."""
    lengths = [round(length / beta**epoch) for epoch in range(epochs)]
    rates = np.repeat([first_lr * beta**epoch for epoch in range(epochs)], lengths)
    return rates, np.cumsum(lengths)


def exponent(k, a):
    return float(np.polyfit(np.log(k), np.log(a), 1)[0])


K = np.arange(1, 200_001)
log2 = math.log(2 / 0.37)
guess = 0.2  # the true curvature ÷ the believed one
seen = np.unique(np.geomspace(10, len(K), 150).round().astype(int)) - 1
runs = {"tuned": 2 / (K + 1), "wrong": 2 * guess / 2 / (K + 1)}  # Θ/(c k) with Θ = 2 and Θ = 1/5
paths = {name: recursion(rates) for name, rates in runs.items()}
for name, path in paths.items():
    record.curve(f"recursion/{name}", K[seen], [path[seen]], "step", "a")
for name, (first_lr, length) in {
    "right": (0.2, log2 / 0.2),
    "patient": (0.2 * guess, log2 / (0.2 * guess) / guess),
    "impatient": (0.2, guess * log2 / 0.2),
}.items():
    rates, ends = backoff_rates(first_lr, length, 9 if name != "patient" else 7)
    path = recursion(rates)
    paths[name] = (ends, path[ends - 1])
    record.curve(f"recursion/{name}", ends, [path[ends - 1]], "step", "a")
record.metric("robust.tuned", float(paths["tuned"][-1] * K[-1] / 4))
record.metric("robust.one_over_k", exponent(K[20_000:], paths["wrong"][20_000:]))
for name in ("right", "patient"):
    ends, values = paths[name]
    record.metric(f"robust.constant.{name}", float(ends[-1] * values[-1] / 4))
record.metric("robust.patient", record.get("robust.constant.patient") / record.get("robust.constant.right"))
record.metric("robust.impatient", exponent(*(item[-5:] for item in paths["impatient"])))
record.metric("robust.impatient_theory", -guess * (1 + math.log(2) / -math.log(0.37)))
large = recursion(2 * 5 / 2 / (K + 1).clip(10))  # the curvature is five times the believed one: Θ = 5
record.metric("robust.underestimated", float(large[-1] * K[-1] / 4))
print(f"1/k step, curvature overestimated: exponent {record.get('robust.one_over_k'):.3f}")
print(f"backoff, long epochs: {record.get('robust.patient'):.2f} times the constant; short: ", end="")
print(f"exponent {record.get('robust.impatient'):.3f}")

# %% [markdown]
# ## 6 · Two processes
#
# Logistic regression: an example has one feature on in each of ten blocks of a hundred. A second parameter, the
# tally, gets the gradient −1 wherever the weights get one, at a learning rate of 1: it counts the additions.
# Nothing that depends on the order of the processes is printed, so that this page comes out the same again.

# %%
FEATURES, ACTIVE, BATCH, POINTS, PATIENCE = 1000, 10, 20, 20, 60
STEPS_IN_ALL = SETTINGS["examples"] // BATCH * SETTINGS["epochs"]


def examples(seed):
    """Coordinates of shape (examples, 10), and labels that follow a hidden weight vector."""
    generator = torch.Generator().manual_seed(seed)
    within = torch.randint(FEATURES // ACTIVE, (SETTINGS["examples"], ACTIVE), generator=generator)
    x = within + torch.arange(ACTIVE) * (FEATURES // ACTIVE)
    hidden = torch.randn(FEATURES, generator=generator)
    y = (torch.rand(len(x), generator=generator) < torch.sigmoid(hidden[x].sum(1))).float()
    return x, y


def batches_of(seed):
    """The batches of all epochs, in order: (steps, batch)."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(SETTINGS["examples"], generator=generator) for _ in range(SETTINGS["epochs"])]
    return torch.cat(orders).view(-1, BATCH)


def loss_of(weight, x, y):
    return F.binary_cross_entropy_with_logits(weight[x].sum((1, 2)), y)


def work(rank, model, tally, optimizer, x, y, batches, log):
    """Make every second step (or every one, alone), when all processes are there."""
    processes = len(log["ready"])
    log["ready"][rank] = 1
    end = time.monotonic() + PATIENCE
    while log["ready"].sum() < processes:
        if time.monotonic() > end or os.getppid() != log["parent"]:
            return
        time.sleep(1e-3)
    step = optimizer.state[model.weight]["step"]
    log["times"][rank, 0] = time.monotonic()
    mine = batches[rank::processes]
    for i, batch in enumerate(mine):
        before = step.item()
        rows = x[batch]
        model.zero_grad()
        F.binary_cross_entropy_with_logits(model(rows).squeeze(1), y[batch]).backward()
        ones = torch.full((rows.numel(), 1), -1.0)
        tally.grad = torch.sparse_coo_tensor(rows.view(1, -1), ones, tally.shape, check_invariants=False)
        optimizer.step()
        log["delay"][rank, i] = step.item() - before - 1
        if rank == 0 and (i + 1) % (len(mine) // POINTS) == 0:
            with torch.no_grad():
                log["loss"][(i + 1) // (len(mine) // POINTS) - 1] = loss_of(model.weight, x, y)
    log["times"][rank, 1] = time.monotonic()


def train(x, y, batches, processes):
    """Final loss, and a log of what happened; the workers are forked, and so see the functions of this notebook."""
    model = nn.EmbeddingBag(FEATURES, 1, mode="sum", sparse=True)
    nn.init.zeros_(model.weight)
    model.share_memory()
    tally = nn.Parameter(torch.zeros(FEATURES, 1))
    groups = [{"params": [model.weight], "lr": 1.0}, {"params": [tally], "lr": 1.0}]
    optimizer = SGD(groups).share_memory()
    log = {
        "ready": torch.zeros(processes),
        "times": torch.zeros(processes, 2, dtype=torch.float64),
        "delay": torch.zeros(processes, len(batches) // processes),
        "loss": torch.zeros(POINTS),
    }
    log = {name: tensor.share_memory_() for name, tensor in log.items()} | {"parent": os.getpid()}
    run_hogwild(
        work, model, tally, optimizer, x, y, batches, log, processes=processes, start_method="fork", timeout=1800
    )
    log["lost"] = 1 - tally.sum().item() / (batches.numel() * ACTIVE)
    return loss_of(model.weight.detach(), x, y).item(), log


# %%
results = {key: [] for key in ("one", "two", "other", "overlap", "lost", "mean_delay", "largest_delay")}
curves, delays, seconds = {"one": [], "two": []}, [], {"one": 0.0, "two": 0.0}
for seed in seeds:
    x, y = examples(seed)
    batches = batches_of(seed)
    for name, order, processes in (
        ("one", batches, 1),
        ("other", batches.flip(0), 1),
        ("two", batches, PROCESSES),
    ):
        loss, log = train(x, y, order, processes)
        results[name].append(loss)
        if name in curves:
            curves[name].append([math.log(2), *log["loss"].tolist()])
            seconds[name] += (log["times"][:, 1].max() - log["times"][:, 0].min()).item()
    spans = log["times"][:, 1] - log["times"][:, 0]
    both = log["times"][:, 1].min() - log["times"][:, 0].max()
    results["overlap"].append((both / spans.min()).item())
    results["lost"].append(log["lost"])
    results["mean_delay"].append(log["delay"].mean().item())
    results["largest_delay"].append(log["delay"].max().item())
    delays.append([(log["delay"] == d).double().mean().item() for d in range(6)])
for key, values in results.items():
    record.metric(f"real.{key}", values)
for name, other in (("difference", "two"), ("order", "other")):
    record.metric(f"real.{name}", [abs(a / b - 1) for a, b in zip(results[other], results["one"], strict=True)])
record.metric("real.learned", [math.log(value / math.log(2)) for value in results["one"]])
record.metric("real.steps", STEPS_IN_ALL)
axis = [round(STEPS_IN_ALL * k / POINTS) for k in range(POINTS + 1)]
for name, lines in curves.items():
    record.curve(f"real/{name}", axis, lines, "step", "training loss")
record.curve("real/delay", range(6), delays, "delay", "share of the steps")
record.provenance["wall_clock"] = {name: round(value, 2) for name, value in seconds.items()}
for seed, one, two in zip(seeds, results["one"], results["two"], strict=True):
    print(f"seed {seed}: one process {one:.4f}, two ÷ one {two / one:.1f}")

# %%
path_of_record = records.write(record, out)
