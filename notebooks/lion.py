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
# # Lion: what was run
#
# The experiments behind the chapter on Lion (Chen et al. 2023). The claims that they decide stand in
# `book/claims/lion.yaml`. The first four are exact and in float64; the last one trains a small language model.

# %% tags=["parameters"]
scale = "quick"  # quick: a Markov source · standard: tinyshakespeare on a CPU · paper: a larger model, longer
seeds = [0, 1, 2]
device = "cpu"
out = "lion.json"  # where the record goes, relative to the working directory

# %%
import math

import torch
from scipy.optimize import minimize

from experiments import language, models, records, text
from optimizers import AdamW, Lion, Signum, weight_decay_groups, wsd

SETTINGS = {
    "quick": {
        **{"text": "markov", "steps": 100, "batches": [4, 16]},
        "model": {"layers": 1, "width": 32, "heads": 2, "context": 32},
    },
    "standard": {
        **{"text": "tinyshakespeare", "steps": 400, "batches": [4, 16]},
        "model": {"layers": 2, "width": 64, "heads": 4, "context": 64},
    },
    "paper": {
        **{"text": "tinyshakespeare", "steps": 5000, "batches": [16, 128]},
        "model": {"layers": 6, "width": 384, "heads": 6, "context": 256},
    },
}[scale]
SPACING = 2  # between neighboring learning rates
record = records.new("lion", scale, {"seeds": seeds, "device": device, **SETTINGS, "spacing": SPACING})

# %% [markdown]
# ## 1 · The cycle around a minimum
#
# On $x^2/2$ at a constant learning rate, from $x = 1$ and α = 0.01: the period in which the end of the path repeats
# itself, and how far it goes. In float64.


# %%
def path(make, start, steps):
    """θ_0, …, θ_steps, of shape (steps + 1, n), where every coordinate has the loss θ²/2."""
    theta = start.double().clone().requires_grad_()
    optimizer, points = make([theta]), [start.double().clone()]
    for _ in range(steps):
        theta.grad = theta.detach().clone()
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


def period(tail, longest=400):
    """The shortest period of a sequence, to 10⁻⁶; 0 if there is none up to `longest`."""
    same = (p for p in range(1, longest) if (tail[p:] - tail[:-p]).abs().max() < 1e-6)
    return next(same, 0)


RULES = {
    "lion": lambda p, lr: Lion(p, lr=lr),
    "lion_95": lambda p, lr: Lion(p, lr=lr, betas=(0.95, 0.98)),
    "signum_9": lambda p, lr: Signum(p, lr=lr, momentum=0.9),
    "signum_99": lambda p, lr: Signum(p, lr=lr, momentum=0.99),
    "sign": lambda p, lr: Signum(p, lr=lr, momentum=0.0),
}
for name, make in RULES.items():
    points = path(lambda p, make=make: make(p, 0.01), torch.ones(1), 3000)[:, 0] / 0.01
    record.metric(f"cycle.{name}.period", period(points[-1000:]))
    record.metric(f"cycle.{name}.amplitude", points[-1000:].abs().max())
    shown = list(range(0, 561, 4)) if name == "signum_99" else list(range(0, 181))
    record.curve(f"path/{name}", shown, [[points[t] for t in shown]], "step t", "θ ÷ α")
    print(f"{name:9s} period {record.get(f'cycle.{name}.period'):3d}", end=" ")
    print(f"amplitude {record.get(f'cycle.{name}.amplitude'):.2f} α")
for name in ("lion", "signum_99"):  # the cycle itself, step by step
    points = path(lambda p, make=RULES[name]: make(p, 0.01), torch.ones(1), 3000)[-61:, 0] / 0.01
    record.curve(f"cycle/{name}", range(61), [points], "step", "θ ÷ α")

# With a learning rate that is a power of two nothing is rounded: the sign of 0 is 0, and signSGD stops.
points = path(lambda p: RULES["sign"](p, 2.0**-7), torch.ones(1), 3000)[:, 0]
record.metric("cycle.sign_unrounded", points[-1000:].abs().max())

# %% [markdown]
# Which cycles can there be at all? The chapter derives it: one of period $2n$, $n$ even, exists where `holds`.
# Every start from 20 to 219 learning rates away, at α = 1, so that nothing is rounded in θ; and 100 starts off that
# grid.


# %%
def last_average(n, beta2):
    """m ÷ α at the end of n steps down, where they repeat themselves with the other sign."""
    return (1 - beta2**n) / (1 + beta2**n) / (1 - beta2) - n / 2


def holds(n, beta1, beta2):
    """Whether n steps down and n steps up repeat themselves (the chapter's inequality)."""
    return last_average(n, beta2) > (n / 2 - 1) * (beta2 / beta1 - 1)


PAIRS = {
    "lion": (0.9, 0.99),
    "lion_95": (0.95, 0.98),
    "signum_9": (0.9, 0.9),
    "signum_95": (0.95, 0.95),
    "signum_98": (0.98, 0.98),
    "signum_99": (0.99, 0.99),
}
starts = torch.cat([torch.arange(20.0, 220.0), 100 + torch.arange(100.0) / 100])
halves = range(2, 40, 2)
stays = 0
for name, betas in PAIRS.items():
    predicted = {2 * n for n in range(2, 200, 2) if holds(n, *betas)}
    points = path(lambda p, betas=betas: Lion(p, lr=1.0, betas=betas), starts, 6000)[-1200:]
    found = [period(points[:, i]) for i in range(200)]
    record.metric(f"cycles.{name}.outside", sum(p not in predicted for p in found))
    record.metric(f"cycles.{name}.longest_predicted", max(predicted))
    record.metric(f"cycles.{name}.longest", max(found))
    record.metric(f"cycles.{name}.kinds", len(set(found)))
    record.metric(f"cycles.{name}.kinds_predicted", len(predicted))
    periods = sorted(predicted | set(found))
    record.curve(f"cycles/{name}", periods, [[found.count(p) for p in periods]], "period", "starts that end in it")
    reach = points[:, 200:].abs().amax(0)
    record.metric(f"between.{name}.least", reach.min())
    record.metric(f"between.{name}.most", reach.max())
    print(f"{name:9s} {betas} predicted up to {max(predicted)}, found {sorted(set(found))};", end=" ")
    print(f"off the grid {reach.min():.2f} to {reach.max():.2f} α")

    # Put onto a cycle of every length, possible or not: is it still there after 50 periods?
    theta = torch.tensor([n / 2 for n in halves], dtype=torch.float64, requires_grad=True)
    optimizer = Lion([theta], lr=1.0, betas=betas)
    theta.grad = torch.zeros_like(theta)
    optimizer.step()  # makes the state, and moves nothing
    optimizer.state[theta]["exp_avg"].copy_(
        torch.tensor([-last_average(n, betas[1]) for n in halves], dtype=torch.float64)
    )
    there = []
    for _ in range(100 * max(halves)):
        theta.grad = theta.detach().clone()
        optimizer.step()
        there.append(theta.detach().clone())
    stays += sum((there[100 * n - 1][i].item() == n / 2) == holds(n, *betas) for i, n in enumerate(halves))
record.metric("cycles.agree", stays / (len(halves) * len(PAIRS)))
print(f"the inequality is right in {record.get('cycles.agree'):.0%} of {len(halves) * len(PAIRS)} cases")

# %% [markdown]
# ## 2 · The length of the step, the memory, and a parameter that is not seen again

# %%
lr = 2.0**-7
theta = torch.zeros(10_000, dtype=torch.float64, requires_grad=True)
optimizer, random, other = Lion([theta], lr=lr), torch.Generator().manual_seed(0), 0
for _ in range(50):
    before = theta.detach().clone()
    theta.grad = torch.randn(10_000, generator=random, dtype=torch.float64) * torch.logspace(-9, 9, 10_000)
    theta.grad[:1000] = 0.0
    optimizer.step()
    moved = (theta.detach() - before).abs()
    other += int(((moved != lr) & (moved != 0)).sum())
record.metric("step.other", other)


def state_elements(make):
    """Numbers that the optimizer keeps per parameter of the language model, the count of steps apart."""
    model = models.gpt(32, seed=0)
    optimizer = make(weight_decay_groups(model, 0.1))
    language.train(model, optimizer, text.load("markov"), steps=1, seed=0, progress=False)
    kept = sum(v.numel() for state in optimizer.state.values() for k, v in state.items() if k != "step")
    return kept / sum(p.numel() for p in model.parameters())


record.metric("memory.lion", state_elements(lambda groups: Lion(groups)))
record.metric("memory.adamw", state_elements(lambda groups: AdamW(groups)))
record.metric("memory.ratio", record.get("memory.lion") / record.get("memory.adamw"))


def after_one_gradient(make, steps, dtype):
    """|θ| ÷ α after one gradient of 1 and then none, step by step."""
    theta = torch.zeros(1, dtype=dtype, requires_grad=True)
    optimizer, far = make([theta]), []
    for t in range(steps):
        theta.grad = torch.full((1,), float(t == 0), dtype=dtype)
        optimizer.step()
        far.append(abs(theta.item()))
    return far


UNSEEN = 20_000
far = after_one_gradient(lambda p: Lion(p, lr=2.0**-7), UNSEEN, torch.float32)
record.metric("unseen.lion_moves", sum(a != b for a, b in zip([0.0, *far], far, strict=False)) / UNSEEN)
record.metric("unseen.lion", far[999] / 2.0**-7)
far = after_one_gradient(lambda p: AdamW(p, lr=2.0**-7, weight_decay=0.0), 1000, torch.float32)
record.metric("unseen.adamw", far[-1] / 2.0**-7)
print(record.metrics["step"], record.metrics["memory"], record.metrics["unseen"])

# %% [markdown]
# ## 3 · The box
#
# Gradients of mean ½ and deviation 1 push every weight to −1/λ = −10, from N(0, 30²).

# %%
LR, DECAY = 0.01, 0.1
final = {}
for dtype in (torch.float64, torch.float32):
    random = torch.Generator().manual_seed(0)
    start = 30 * torch.randn(1000, generator=random, dtype=torch.float64)
    theta = start.to(dtype, copy=True).requires_grad_()
    optimizer, excess, largest = Lion([theta], lr=LR, weight_decay=DECAY), [], [start.abs().max().item()]
    for t in range(1, 20_001):
        theta.grad = 0.5 + torch.randn(1000, generator=random, dtype=dtype)
        optimizer.step()
        if t % 100 == 0:
            now = theta.detach().abs().double()
            bound = 1 / DECAY + (start.abs() - 1 / DECAY).clamp(min=0) * (1 - LR * DECAY) ** t
            excess.append((now - bound).max().item())
            largest.append(now.max().item())
    final[dtype] = largest[-1]
    if dtype == torch.float64:
        # θ falls by α (1 + λθ) in every step: θ_t = −1/λ + (θ_0 + 1/λ)(1 − αλ)^t.
        law = (-1 / DECAY + (start + 1 / DECAY) * (1 - LR * DECAY) ** 1000).abs().max().item()
        record.metric("box.excess", max(excess))
        record.metric("box.start", largest[0])
        for t in (1000, 5000, 20_000):
            record.metric(f"box.t{t}", largest[t // 100])
        record.metric("box.t1000_over_law", largest[10] / law)
        record.curve("box/largest", range(0, 20_001, 200), [largest[::2]], "step t", "largest |θ|")
record.metric("box.single_precision", final[torch.float32])
print(record.metrics["box"])

# %% [markdown]
# ## 4 · What it minimizes
#
# A quadratic in 20 coordinates, not along its axes, whose minimum lies outside of the box
# $|\theta_i| \le 1/\lambda$: Lion with λ = 1 beside the minimum within the box (L-BFGS-B), and beside the
# nearest point of the box.

# %%
clipped, free, values = [], [], {"constant": [], "decayed": []}
for seed in seeds:
    random = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(20, 20, generator=random, dtype=torch.float64))
    H = Q @ torch.diag(torch.logspace(math.log10(0.05), 0, 20, dtype=torch.float64)) @ Q.T
    center = 3 * torch.randn(20, generator=random, dtype=torch.float64)

    def loss(x, H=H, center=center):
        away = torch.from_numpy(x) - center
        return (0.5 * away @ H @ away).item(), (H @ away).numpy()

    options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 10_000}
    within = minimize(loss, torch.zeros(20).numpy(), jac=True, bounds=[(-1, 1)] * 20, options=options).x
    within = torch.from_numpy(within)
    clipped.append((center.clamp(-1, 1) - within).abs().max())
    free.append((within.abs() > 1 - 1e-9).sum())
    for kind in values:
        theta = torch.zeros(20, dtype=torch.float64, requires_grad=True)
        optimizer = Lion([theta], lr=0.01, weight_decay=1.0)
        for t in range(4000):
            optimizer.param_groups[0]["lr"] = 0.01 * (1 - t / 4000 if kind == "decayed" else 1)
            theta.grad = H @ (theta.detach() - center)
            optimizer.step()
        values[kind].append((theta.detach() - within).abs().max())
record.metric("constrained.clipped", clipped)
record.metric("constrained.at_the_wall", free)
record.metric("constrained.constant", [v / 0.01 for v in values["constant"]])
record.metric("constrained.decayed", values["decayed"])
print(record.metrics["constrained"])

# %% [markdown]
# ## 5 · A language model
#
# AdamW, Signum and Lion at two sizes of batch, with the same number of steps and the same budget for each: three
# settings of the averages at one learning rate, then three more learning rates at the best of these, on a grid that
# moves to where its optimum is. A seed of its own for that, and fresh ones for the comparison. λ is 0.1 for AdamW
# and 0.4 for the two whose learning rate is about a quarter of AdamW's.

# %%
FAMILIES = {
    "adamw": (AdamW, "betas", [(0.9, 0.95), (0.8, 0.95), (0.6, 0.95)], 4e-3, {"weight_decay": 0.1}),
    "signum": (Signum, "momentum", [0.9, 0.8, 0.6], 1e-3, {"weight_decay": 0.4, "decoupled_weight_decay": True}),
    "lion": (Lion, "betas", [(0.9, 0.99), (0.8, 0.9), (0.6, 0.8)], 1e-3, {"weight_decay": 0.4}),
}
TUNING_SEED, BUDGET = 1000, 6
corpus = text.load(SETTINGS["text"])
record.uses(corpus)
known = corpus.entropy or 0.0  # what no model can go below
steps = SETTINGS["steps"]
counts = torch.bincount(corpus.train.flatten().long()).double()
letters = -(counts / counts.sum() * (counts / counts.sum()).log()).sum().item()  # what letter counts alone leave


def run(family, setting, lr, batch, seed):
    """One course of training, and its final loss, less what is known of the source."""
    rule, name, _, _, options = FAMILIES[family]
    decay = {k: v for k, v in options.items() if k != "weight_decay"}
    model = models.gpt(corpus.symbols, seed=seed, **SETTINGS["model"]).to(device)
    course = language.train(
        model,
        rule(weight_decay_groups(model, options["weight_decay"]), lr=lr, **{name: setting}, **decay),
        corpus,
        steps=steps,
        batch_size=batch,
        seed=seed,
        schedule=wsd(steps, 0.1, 0.9),
        device=device,
        progress=False,
    )
    return course, course.test_loss.get(steps, math.inf) - known


def tune(family, batch):
    """The best setting and learning rate, and what was tried: setting -> learning rate -> loss."""
    _, _, choices, middle, _ = FAMILIES[family]
    tried = {choice: {middle: run(family, choice, middle, batch, TUNING_SEED)[1]} for choice in choices}
    setting = min(choices, key=lambda choice: tried[choice][middle])
    grid = tried[setting]
    for _ in range(BUDGET - len(choices)):
        low, high, at = min(grid), max(grid), min(grid, key=grid.get)
        lr = low / SPACING if at / low < high / at or low == high else high * SPACING
        grid[lr] = run(family, setting, lr, batch, TUNING_SEED)[1]
    return setting, min(grid, key=grid.get), tried


every = max(1, steps // 50)
results, rates, still_open = {}, {}, 0
for size, batch in zip(("small", "large"), SETTINGS["batches"], strict=True):
    for family in FAMILIES:
        setting, lr, tried = tune(family, batch)
        grid = tried[setting]
        still_open += lr in (min(grid), max(grid))
        rates[size, family] = lr
        record.metric(f"tuning.{size}.{family}.rate", lr)
        record.metric(f"tuning.{size}.{family}.setting", str(setting))
        for i, choice in enumerate(FAMILIES[family][2]):
            record.metric(f"tuning.{size}.{family}.choice_{i}", tried[choice][FAMILIES[family][3]])
        record.curve(f"tuning/{size}/{family}", sorted(grid), [[grid[x] for x in sorted(grid)]], "α", "test loss")
        courses, losses = zip(*(run(family, setting, lr, batch, seed) for seed in seeds), strict=True)
        results[size, family] = losses
        record.metric(f"language.{size}.{family}", losses)
        means = [
            [sum(c.train_loss[i : i + every]) / every - known for i in range(0, steps - every + 1, every)]
            for c in courses
        ]
        record.curve(f"training/{size}/{family}", range(every, steps + 1, every), means, "step", "training loss")
        print(f"batch {batch:3d} {family:7s} {setting!s:12s} α = {lr:g}: {[round(x, 3) for x in losses]}")
    for one, other in (("lion", "adamw"), ("lion", "signum"), ("signum", "adamw")):
        pairs = zip(results[size, one], results[size, other], strict=True)
        record.metric(f"language.{size}.{one}_minus_{other}", [a - b for a, b in pairs])
    record.metric(f"tuning.{size}.adamw_over_lion", rates[size, "adamw"] / rates[size, "lion"])
record.metric("tuning.open", still_open)
pairs = zip(*(record.get(f"language.{size}.lion_minus_adamw") for size in ("small", "large")), strict=True)
record.metric("language.gain_grows", [small - large for small, large in pairs])
record.metric("language.letters", letters - known)
worst = max(results["small", "adamw"])
record.metric("language.learned", (worst + known) / letters)

# %%
path_of_record = records.write(record, out)
