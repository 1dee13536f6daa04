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
# # ADADELTA: what was run
#
# The experiments behind the chapter on Adagrad (Duchi, Hazan & Singer 2011) and ADADELTA (Zeiler 2012). The claims
# that they decide stand in `book/claims/adadelta.yaml`. The first four experiments are exact: float64, no data, no
# luck. The last one trains networks on the grids of the paper.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, the paper's own network
seeds = [0, 1, 2]
device = "cpu"
out = "adadelta.json"  # where the record goes, relative to the working directory

# %%
import functools
import math

import torch

from experiments import data, problems, records, stacked
from optimizers import SGD, Adadelta, Adagrad
from optimizers.adadelta import AdadeltaDirection
from optimizers.adagrad import AdagradDirection
from optimizers.rmsprop import RMSpropDirection

SETTINGS = {
    "quick": {"dataset": "digits", "hidden": [32], "epochs": 10, "bounce": 10_000},
    "standard": {"dataset": "mnist", "hidden": [64], "epochs": 6, "bounce": 100_000},
    "paper": {"dataset": "mnist", "hidden": [500, 300], "epochs": 6, "bounce": 1_000_000},
}[scale]
record = records.new("adadelta", scale, {"seeds": seeds, "device": device, **SETTINGS})
RHO, EPS = 0.95, 1e-6  # of the paper's experiments (§4.1)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


# The package's rules as functions: how far a step goes, and what it remembers.
def adagrad(g, memory, step):
    d, total = AdagradDirection.update(g, *memory, step, 0.0, 0.0)
    return d, [total]


def windowed(g, memory, step):
    """Idea 1 of the paper alone, which is RMSprop: a window in place of the sum."""
    d, v, _, _ = RMSpropDirection.update(g, *memory, None, None, step, RHO, 1e-8, 0.0, False)
    return d, [v]


def adadelta(g, memory, step, rho=RHO, eps=EPS):
    d, *memory = AdadeltaDirection.update(g, *memory, rho, eps)
    return d, memory


MEMORY = {adagrad: 1, windowed: 1, adadelta: 2}


def follow(rule, gradient, start, steps, lr=1.0, **options):
    """θ_1, …, θ_T of shape (steps, *start.shape), and what the rule remembers at the end."""
    theta, memory, path = start, [torch.zeros_like(start)] * MEMORY[rule], []
    for t in range(1, steps + 1):
        d, memory = rule(gradient(theta, t), memory, t, **options)
        theta = theta - lr * d
        path.append(theta)
    return torch.stack(path), memory


def spaced(steps, points=150):
    """About `points` step numbers from 1 to `steps`, at equal distances on a logarithmic axis."""
    return sorted({round(steps ** (i / (points - 1))) for i in range(points)})


# %% [markdown]
# ## 1 · A slope
#
# The gradient is 1 for ever, or with one gradient of 1,000 among them. The steps of Adagrad fall, those of
# ADADELTA grow as the chapter's closed form says.

# %%
SHOCK, HORIZON = 1000, 10_000
ones, none = torch.ones(2, dtype=torch.float64), vector(0.0, 0.0)


def slope(theta, t):
    return vector(1.0, 1000.0) if t == SHOCK else ones


for rule, lr in ((adagrad, 0.1), (windowed, 0.01), (adadelta, 1.0)):
    path, _ = follow(rule, slope, none, HORIZON, lr)
    lengths = -torch.diff(path, dim=0, prepend=none[None])  # of shape (steps, 2): without the shock, and with it
    name = rule.__name__
    record.metric(f"slope.{name}", lengths[-1, 0] / lengths[0, 0])
    record.metric(f"slope.{name}_distance", -path[-1, 0])
    record.metric(f"shock.{name}_at", lengths[SHOCK - 1, 1] / lengths[SHOCK - 2, 1])
    record.metric(f"shock.{name}_after", lengths[SHOCK, 1] / lengths[SHOCK - 2, 1])
    late = (lengths[SHOCK:, 1] >= 0.5 * lengths[SHOCK - 2, 1]).nonzero()
    record.metric(f"shock.{name}_half", late[0].item() + 1 if len(late) else math.nan)
    shown = spaced(HORIZON)
    record.curve(f"slope/{name}", shown, [[lengths[t - 1, 0] for t in shown]], "step t", "length of the step")
    near = range(900, 3001, 15)
    near = sorted({*near, SHOCK - 1, SHOCK, SHOCK + 1})
    record.curve(f"shock/{name}", near, [[lengths[t - 1, 1] for t in near]], "step t", "length of the step")
    print(f"{name:9s} last step ÷ first: {lengths[-1, 0] / lengths[0, 0]:.4f}")
    if rule is adadelta:
        growth = (1 - RHO) * EPS * torch.cumsum(1 / (1 - RHO ** torch.arange(1, HORIZON + 1).double()), 0)
        closed = (growth - EPS + EPS / (1 - RHO)).sqrt()
        record.metric("slope.closed_form", (lengths[:, 0] / closed - 1).abs().max())
        print(f"          off the closed form by at most {(lengths[:, 0] / closed - 1).abs().max():.0e}")

# %% [markdown]
# ## 2 · The first step, and the speed
#
# The first step should be $\sqrt{\varepsilon/(1-\rho)}$ whatever the gradient. How many steps does it take to come
# from 1 to 0.1 on $\theta^2/2$?

# %%
gradients = vector(*(10.0**k for k in range(0, 7)))
first, _ = follow(adadelta, lambda theta, t: gradients, torch.zeros_like(gradients), 1)
expected = math.sqrt(EPS / (1 - RHO))
record.metric("first_step.length", -first[0, -1])
record.metric("first_step.worst", (-first[0] / expected - 1).abs().max())
print(f"first step {-first[0, -1].item():.6f}, √(ε/(1 − ρ)) = {expected:.6f}")

epsilons = vector(1e-2, 1e-4, 1e-6, 1e-8)
speed, _ = follow(adadelta, lambda theta, t: theta, torch.ones_like(epsilons), 3000, eps=epsilons)
needed = [(speed[:, i].abs() < 0.1).nonzero()[0].item() + 1 for i in range(len(epsilons))]
shown = spaced(3000)
for i, k in enumerate((2, 4, 6, 8)):
    record.metric(f"speed.eps{k}", needed[i])
    record.curve(f"speed/1e-{k}", [0, *shown], [[1.0, *(speed[t - 1, i] for t in shown)]], "step t", "θ")
record.metric("speed.ratio", needed[-1] / needed[0])
print("steps to |θ| < 0.1:", dict(zip(("1e-2", "1e-4", "1e-6", "1e-8"), needed, strict=True)))

# %% [markdown]
# ## 3 · Another unit of the loss, another unit of the parameter
#
# $\theta^4/4$ from 1, 500 steps. The loss is multiplied by 1,000; then the parameter is $z = \theta/100$. The
# control has an ε for each root.


# %%
def two_epsilons(g, memory, step, numerator, denominator):
    """Algorithm 1 with an ε for each root; no optimizer of the package, as it is no optimizer of anyone's."""
    v, u = memory
    v = RHO * v + (1 - RHO) * g**2
    d = (u + numerator).sqrt() / (v + denominator).sqrt() * g
    return d, [v, RHO * u + (1 - RHO) * d**2]


MEMORY[two_epsilons] = 2
one, steps = vector(1.0), 500
base, _ = follow(adadelta, lambda theta, t: theta**3, one, steps)
louder, _ = follow(adadelta, lambda theta, t: 1000 * theta**3, one, steps)
record.metric("scale.loss", (louder - base).abs().max())
record.curve("units/base", range(0, steps + 1, 5), [[1.0, *base[4::5, 0]]], "step t", "θ")


def in_unit(c, rule=adadelta, **options):
    """The path of c z, where z = θ/c is what the rule moves."""
    z, _ = follow(rule, lambda z, t: c * (c * z) ** 3, one / c, steps, **options)
    return c * z


for c in (0.01, 0.1, 10.0, 100.0):
    shared = in_unit(c)
    record.curve(f"units/{c:g}", range(0, steps + 1, 5), [[1.0, *shared[4::5, 0]]], "step t", "θ")
    print(f"c = {c:6.2f}: one ε, apart by {(shared - base).abs().max():.3f}")
matched = in_unit(100.0, two_epsilons, numerator=EPS / 100.0**2, denominator=EPS * 100.0**2)
record.metric("units.shared", (in_unit(100.0) - base).abs().max())
record.metric("units.matched", (matched - base).abs().max())
print(f"c = 100, an ε for each root: {(matched - base).abs().max():.0e}; loss × 1,000: ", end="")
print(f"{(louder - base).abs().max():.0e}")

# %% [markdown]
# ## 4 · The end
#
# The bowl without noise, and other curvatures. Where ε dominates both roots, the rule is gradient descent with a
# learning rate of 1, which is stable for curvatures below 2.

# %%
bowl = problems.Quadratic()
path, (v, u) = follow(adadelta, lambda theta, t: bowl.gradient(theta), bowl.initial(), 10_000)
rates = ((u + EPS) / (v + EPS)).sqrt()
for i, name in enumerate(("flat", "steep")):
    record.metric(f"end.rate_{name}", rates[i])
    record.metric(f"end.distance_{name}", path[-1, i].abs())
    print(f"{name:5s} effective learning rate {rates[i]:.4f}, distance {path[-1, i].abs():.1e}")

horizon = SETTINGS["bounce"]
epsilons = vector(1e-2, 1e-4, 1e-6)[:, None]
path, _ = follow(
    adadelta, lambda theta, t: bowl.gradient(theta), bowl.initial().expand(3, 2), horizon, eps=epsilons
)
shown = spaced(horizon)
for i, k in enumerate((2, 4, 6)):
    # Neighboring points lie on either side: the larger of the two is the amplitude.
    amplitude = torch.maximum(path[:-1, i, 1].abs(), path[1:, i, 1].abs())
    record.curve(f"end/1e-{k}", shown[:-1], [[amplitude[t - 1] for t in shown[:-1]]], "step t", "|θ₂|")
    theory = math.sqrt(10.0**-k * (1 / 4 - 1 / 20**2) * horizon)
    record.metric(f"end.law_eps{k}", path[-1, i, 1].abs() / theory)
    record.metric(f"end.amplitude_eps{k}", path[-1, i, 1].abs())
    print(f"ε = 1e-{k}: |θ₂| = {path[-1, i, 1].abs():.3f}, {path[-1, i, 1].abs() / theory:.3f} of √(ε(¼ − 1/h²)t)")

curvatures = torch.linspace(1.8, 2.2, 5, dtype=torch.float64)
settled, _ = follow(adadelta, lambda theta, t: curvatures * theta, torch.ones_like(curvatures), horizon)
stays = curvatures[settled[-1].abs() > 1e-6]
record.metric("end.largest_stable", curvatures[settled[-1].abs() <= 1e-6].max())
record.metric("end.smallest_unstable", stays.min() if len(stays) else math.nan)
print("settled:", dict(zip([f"{h:.1f}" for h in curvatures], settled[-1].abs().tolist(), strict=True)))

# %% [markdown]
# ## 5 · The grids of the paper
#
# Tables 1 and 2: the test error at every setting, three networks at once.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
guessing = 1 - 1 / dataset.classes


def errors(make, rates):
    """By learning rate the test error after every epoch, a list per seed; that of guessing from a divergence on."""
    epochs, hidden = SETTINGS["epochs"], tuple(SETTINGS["hidden"])
    options = {"hidden": hidden, "epochs": epochs, "batch_size": 100, "device": device}
    found = {}
    for rate, histories in stacked.train_grid(make, rates, seeds, dataset, **options).items():
        lines = [[1 - epoch["test_accuracy"] for epoch in history.epoch] for history in histories]
        found[rate] = [line + [guessing] * (epochs - len(line)) for line in lines]
    return found


RATES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
RATED = {
    "sgd": lambda p, **own: SGD(p, **own),
    "momentum": lambda p, **own: SGD(p, momentum=0.9, **own),
    "adagrad": lambda p, **own: Adagrad(p, **own),
}
grids = {name: errors(make, RATES) for name, make in RATED.items()}
EPSILONS, RHOS = [1e-8, 1e-6, 1e-4, 1e-2], [0.9, 0.95, 0.99]
grids["adadelta"] = {
    (eps, rho): errors(functools.partial(Adadelta, rho=rho, eps=eps), [1.0])[1.0]
    for rho in RHOS
    for eps in EPSILONS
}


def final(runs):
    return [line[-1] for line in runs]


best = {}
for name, grid in grids.items():
    by_seed = list(zip(*(final(runs) for runs in grid.values()), strict=True))  # (seeds, settings)
    record.metric(f"sensitivity.{name}.ratio", [max(line) / min(line) for line in by_seed])
    record.metric(f"sensitivity.{name}.best", [min(line) for line in by_seed])
    record.metric(f"sensitivity.{name}.worst", [max(line) for line in by_seed])
    setting = min(grid, key=lambda key, grid=grid: sum(final(grid[key])))
    best[name] = final(grid[setting])
    epochs = range(1, SETTINGS["epochs"] + 1)
    record.curve(f"training/{name}", epochs, grid[setting], "epoch", "test error")
    if name == "adadelta":
        record.metric("sensitivity.adadelta.eps", setting[0])
        record.metric("sensitivity.adadelta.rho", setting[1])
        record.metric("sensitivity.adadelta.papers", final(grid[EPS, RHO]))
        for rho in RHOS:
            lines = list(zip(*(final(grid[eps, rho]) for eps in EPSILONS), strict=True))
            record.curve(f"sensitivity/adadelta_{rho}", EPSILONS, lines, "ε", "test error")
    else:
        record.metric(f"sensitivity.{name}.lr", setting)
        windows = [[max(line[i : i + 4]) / min(line[i : i + 4]) for i in (0, 1)] for line in by_seed]
        record.metric(f"sensitivity.{name}.three_decades", [min(pair) for pair in windows])
        record.curve(f"sensitivity/{name}", RATES, by_seed, "α", "test error")
    print(f"{name:9s} best {setting}: {best[name]}, largest ÷ smallest", end=" ")
    print([f"{max(line) / min(line):.1f}" for line in by_seed])
record.metric(
    "sensitivity.momentum_over_adadelta",
    [math.log(a / b) for a, b in zip(best["momentum"], best["adadelta"], strict=True)],
)

# %%
path_of_record = records.write(record, out)
