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
# # RAdam: what was run
#
# The experiments behind the chapter on RAdam (Liu et al. 2020). The claims that they decide stand in
# `book/claims/radam.yaml`. The first four experiments are about Gaussian gradients and the book's bowl, in float64;
# the last one trains networks.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, longer
seeds = [0, 1, 2]
device = "cpu"
out = "radam.json"  # where the record goes, relative to the working directory

# %%
import math

import torch

from experiments import data, models, problems, records, stacked, training
from optimizers import Adam, RAdam
from optimizers.adam import AdamDirection
from optimizers.radam import RAdamDirection, rectification, sma_length

SETTINGS = {
    "quick": {"dataset": "digits", "hidden": [64, 64], "epochs": 3, "beta2": 0.99, "spacing": 4},
    "standard": {"dataset": "mnist", "hidden": [64] * 4, "epochs": 8, "beta2": 0.999, "spacing": 2},
    "paper": {"dataset": "mnist", "hidden": [64] * 4, "epochs": 40, "beta2": 0.999, "spacing": 2},
}[scale]
record = records.new("radam", scale, {"seeds": seeds, "device": device, **SETTINGS})


def rectified(t, beta2=0.999):
    """The package's r_t where ρ_t > 4; 0 before that."""
    rho_t, rho_inf = sma_length(beta2, t)
    return float(rectification(rho_t, rho_inf, True)) if rho_t > 4 else 0.0


# %% [markdown]
# ## 1 · The variance of the adaptive learning rate
#
# $1/\sqrt{\hat v_t}$ for independent gradients from $N(0, 1)$, $\beta_2 = 0.999$, against the closed form and the
# first-order formula at the length $\rho_t$.


# %%
def closed_form(rho):
    """Var ψ for ψ⁻² a mean of ρ squares: ρ/(ρ − 2) − ρ/2 (Γ((ρ − 1)/2) / Γ(ρ/2))²."""
    return rho / (rho - 2) - rho / 2 * math.exp(2 * (math.lgamma((rho - 1) / 2) - math.lgamma(rho / 2)))


def first_order(rho):
    return rho / (2 * (rho - 2) * (rho - 4))


def simulate(seed, samples=600_000, until=200, fewer_after=10):
    """The sample variance of 1/√v̂_t at t = 1, …, `until`; beyond `fewer_after` a tenth of the samples suffices."""
    generator = torch.Generator().manual_seed(seed)
    v, variances = torch.zeros(samples, dtype=torch.float64), []
    for t in range(1, until + 1):
        if t == fewer_after + 1:
            v = v[: samples // 10].clone()
        g = torch.randn(len(v), dtype=torch.float64, generator=generator)
        v = 0.999 * v + 0.001 * g * g
        variances.append(((1 - 0.999**t) / v).sqrt().var().item())
    return variances


simulated = [simulate(seed) for seed in seeds]
steps = list(range(1, 201))
lengths = {t: sma_length(0.999, t)[0] for t in steps}
final = closed_form(sma_length(0.999, 1)[1])
record.curve("variance/simulated", steps, simulated, "step t", "variance")
record.curve("variance/closed", steps[2:], [[closed_form(lengths[t]) for t in steps[2:]]], "step t", "variance")
record.curve(
    "variance/first_order", steps[4:], [[first_order(lengths[t]) for t in steps[4:]]], "step t", "variance"
)
record.curve(
    "variance/rectified",
    steps[4:],
    [[rectified(t) ** 2 * line[t - 1] / final for t in steps[4:]] for line in simulated],
    "step t",
    "variance ÷ final",
)
for t in (5, 10, 50, 200):
    values = [line[t - 1] for line in simulated]
    record.metric(f"variance.t{t}.closed", [value / closed_form(lengths[t]) for value in values])
    record.metric(f"variance.t{t}.first_order", [first_order(lengths[t]) / value for value in values])
    record.metric(f"variance.t{t}.rectified", [rectified(t) ** 2 * value / final for value in values])
    print(f"t = {t:3d}: {values[0]:.5f}, closed form {closed_form(lengths[t]):.5f}, ", end="")
    print(f"first order {first_order(lengths[t]):.5f}")
record.metric("variance.first_step", [line[0] for line in simulated])

# %% [markdown]
# ## 2 · The factor, and warm-ups
#
# $r_t$ beside a linear warm-up over $2/(1-\beta_2)$ steps and an exponential one, and beside the factor that the
# closed form gives.

# %%
horizon = range(6, 20_001)
exponential = [1 - math.exp(-0.001 * t) for t in horizon]
linear = [min(1.0, t / 2000) for t in horizon]
factors = [rectified(t) for t in horizon]
differences = [abs(a - b) for a, b in zip(factors, exponential, strict=True)]
record.metric("warmup.r5", rectified(5))
record.metric("warmup.exponential", max(differences))
record.metric("warmup.exponential_at", horizon[differences.index(max(differences))])
record.metric("warmup.linear", max(abs(a - b) for a, b in zip(factors, linear, strict=True)))
exact = {t: math.sqrt(final / closed_form(sma_length(0.999, t)[0])) for t in range(3, 5001)}
record.metric("warmup.first_order_over_closed_at_5", rectified(5) / exact[5])
record.metric("warmup.first_order_over_closed_at_50", rectified(50) / exact[50])
shown = sorted({round(3 * (5000 / 3) ** (i / 99)) for i in range(100)})
record.curve("factor/closed", shown, [[exact[t] for t in shown]], "step t", "factor")
late = [t for t in shown if t >= 5]
record.curve("factor/rectified", late, [[rectified(t) for t in late]], "step t", "factor")
record.curve("factor/exponential", shown, [[1 - math.exp(-0.001 * t) for t in shown]], "step t", "factor")
record.curve("factor/linear", shown, [[min(1.0, t / 2000) for t in shown]], "step t", "factor")
for beta2 in (0.9, 0.98, 0.99, 0.999):
    first = next(t for t in range(1, 50) if sma_length(beta2, t)[0] > 4)
    record.metric(f"first_adaptive_step.beta2_{str(beta2)[2:]}", first)
print(f"|r_t − exponential| ≤ {max(differences):.3f}, |r_t − linear| ≤ {record.get('warmup.linear'):.3f}")

# %% [markdown]
# ## 3 · The length of the update
#
# Not of the learning rate: of $\hat m_t/\sqrt{\hat v_t}$, root mean square, on pure noise of standard deviation σ.

# %%
noise = torch.Generator().manual_seed(seeds[0])
curves = {"adam": [], "warmup": [], "radam_1": [], "radam_100": [], "radam_001": []}
states = {name: [torch.zeros(4_000, dtype=torch.float64)] * 2 for name in curves}
SIGMA = {"radam_100": 100.0, "radam_001": 0.01}
horizon = 1000
for t in range(1, horizon + 1):
    g = torch.randn(4_000, dtype=torch.float64, generator=noise)
    for name, line in curves.items():
        m, v = states[name]
        if name.startswith("radam"):
            d, m, v = RAdamDirection.update(SIGMA.get(name, 1.0) * g, m, v, t, (0.9, 0.999), 0.0, 4.0, False)
        elif name == "adam":
            d, m, v, _ = AdamDirection.update(g, m, v, None, t, (0.9, 0.999), 0.0, False, False)
        else:
            line.append(curves["adam"][-1] * min(1.0, t / 2000))
            continue
        states[name] = [m, v]
        line.append(d.square().mean().sqrt().item())
shown = sorted({round(horizon ** (i / 99)) for i in range(100)})
for name, line in curves.items():
    record.curve(f"update/{name}", shown, [[line[t - 1] for t in shown]], "step t", "rms length ÷ α")
record.metric("update.adam_first", curves["adam"][0])
record.metric("update.adam_late", curves["adam"][-1])
record.metric("update.adam_late_theory", math.sqrt(0.1 / 1.9))
record.metric("update.radam_first_100", curves["radam_100"][0])
record.metric("update.radam_rectified_first", curves["radam_1"][4])
print(f"Adam: {curves['adam'][0]:.3f} at t = 1, {curves['adam'][-1]:.3f} at t = {horizon}")

# %% [markdown]
# ## 4 · Multiply the loss by a constant
#
# The book's bowl, 60 steps at α = 0.01, ε = 10⁻¹⁶. Adam's path does not change. RAdam's first four steps are in
# the gradient's unit.


# %%
def path(make, loss_scale, steps=60):
    bowl = problems.Quadratic()
    theta = bowl.initial().requires_grad_()
    optimizer = make([theta])
    points = []
    for _ in range(steps):
        optimizer.zero_grad()
        (loss_scale * bowl.loss(theta)).backward()
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


RULES = {
    "adam": lambda p: Adam(p, lr=0.01, eps=1e-16),
    "radam": lambda p: RAdam(p, lr=0.01, eps=1e-16, threshold=4.0),
}
exponents = [-4, -2, -1, 0, 1, 2, 4]
for name, make in RULES.items():
    base = path(make, 1.0)
    far = [(path(make, 10.0**k) - base).abs().max().item() for k in exponents]
    record.curve(f"scale/{name}", [10.0**k for k in exponents], [far], "loss scale", "deviation")
    record.metric(f"scale.{name}_up", far[-1])
    record.metric(f"scale.{name}_down", far[0])
    print(f"{name:6s} loss × 10⁴: the path moves by {far[-1]:.1e}; × 10⁻⁴: by {far[0]:.1e}")

# %% [markdown]
# ## 5 · The learning rates at which a network trains
#
# Hidden layers of 64 ReLU units, two at quick scale and four at the others. Adam, RAdam, and Adam with an untuned
# linear warm-up.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
features = dataset.x_train[0].numel()
betas = (0.9, SETTINGS["beta2"])
ARMS = {
    "adam": lambda p, **own: Adam(p, betas=betas, **own),
    "radam": lambda p, **own: RAdam(p, betas=betas, threshold=4.0, **own),
    "warmup": lambda p, **own: Adam(p, betas=betas, **own),
}
rates = [2.0**-k for k in range(18, -1, -int(math.log2(SETTINGS["spacing"])))]
guessing = math.log(dataset.classes)


def linear_warmup(optimizer):
    length = 2 / (1 - betas[1])
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / length))


def final_loss(history):
    """Mean mini-batch loss of the last epoch; infinite for a run that diverged."""
    if history.diverged:
        return math.inf
    per_epoch = len(history.train_loss) // SETTINGS["epochs"]
    return sum(history.train_loss[-per_epoch:]) / per_epoch


ranges = {}
for arm in ARMS:
    runs = stacked.train_grid(
        ARMS[arm],
        rates,
        seeds,
        dataset,
        hidden=tuple(SETTINGS["hidden"]),
        epochs=SETTINGS["epochs"],
        device=device,
        schedule=linear_warmup if arm == "warmup" else None,
    )
    losses = [list(map(final_loss, of_seed)) for of_seed in zip(*runs.values(), strict=True)]
    record.curve(f"training/{arm}", rates, losses, "α", "final loss")
    ranges[arm] = [[lr for lr, loss in zip(rates, line, strict=True) if loss < guessing / 2] for line in losses]
    record.metric(f"training.{arm}_trains", [len(trains) for trains in ranges[arm]])
    record.metric(f"training.{arm}_best", [min(line) for line in losses])
    print(f"{arm:7s} trains at", [f"{min(r):g} to {max(r):g}" if r else "none" for r in ranges[arm]])


def compare(one, other, measure):
    """ln of the ratio of a property of two arms' ranges, one value per seed; null where a range is empty."""
    pairs = zip(ranges[one], ranges[other], strict=True)
    return [math.log(measure(a) / measure(b)) if a and b else math.nan for a, b in pairs]


def width(trains):
    return SETTINGS["spacing"] * max(trains) / min(trains)  # each point stands for its part of the grid


for other in ("adam", "warmup"):
    record.metric(f"training.wider_than_{other}", compare("radam", other, width))
    record.metric(f"training.largest_over_{other}", compare("radam", other, max))

# %% [markdown]
# And the scale of the loss on a network: a loss of $10^4$ times the usual one, at α = 2⁻⁶, where all train.


# %%
def scaled_loss(arm, loss_scale):
    net = models.mlp(features, tuple(SETTINGS["hidden"]), dataset.classes, seed=seeds[0])
    history = training.train(
        net,
        ARMS[arm](net.parameters(), lr=2.0**-6),
        dataset,
        epochs=SETTINGS["epochs"],
        seed=seeds[0],
        device=device,
        loss_scale=loss_scale,
        evaluate=False,
        progress=False,
    )
    return final_loss(history)


for arm in ("adam", "radam"):
    usual, scaled = (scaled_loss(arm, loss_scale) for loss_scale in (1.0, 1e4))
    record.metric(f"training.{arm}_usual", usual)
    record.metric(f"training.{arm}_scaled", scaled)
    print(f"{arm:6s} final loss {usual:.3f}, with the loss × 10⁴ {scaled:.3g}")

# %%
path_of_record = records.write(record, out)
