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
# # AMSGrad: what was run
#
# The experiments behind the chapter on AMSGrad (Reddi, Kale & Kumar 2018). The claims that they decide stand in
# `book/claims/amsgrad.yaml`. The first five experiments are exact: float64, no data. The last one trains networks.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, longer
seeds = [0, 1, 2, 3, 4]  # fresh seeds for the reported runs; α and β₂ are chosen with another one
device = "cpu"
out = "amsgrad.json"  # where the record goes, relative to the working directory

# %%
import functools
import math
from itertools import pairwise

import torch

from experiments import data, problems, records, stacked, training
from optimizers import Adam, AMSGrad, Chain
from optimizers.adam import AdamDirection
from optimizers.amsgrad import AMSGradDirection

SETTINGS = {
    "quick": {"dataset": "digits", "epochs": 2, "synthetic_periods": 200},
    "standard": {"dataset": "mnist", "epochs": 5, "synthetic_periods": 2000},
    "paper": {"dataset": "mnist", "epochs": 40, "synthetic_periods": 10000},
}[scale]
record = records.new("amsgrad", scale, {"seeds": seeds, "device": device, **SETTINGS})


# %% [markdown]
# ## The paper's Adam
#
# It corrects no bias, so that AMSGrad differs from it by the maximum alone.


# %%
class Uncorrected(AdamDirection):
    """Adam's direction as in Reddi et al.: the bias correction left out."""

    state = ("exp_avg", "exp_avg_sq")

    @staticmethod
    def update(grad, exp_avg, exp_avg_sq, betas, eps):
        exp_avg = betas[0] * exp_avg + (1 - betas[0]) * grad
        exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * grad**2
        return exp_avg / (exp_avg_sq.sqrt() + eps), exp_avg, exp_avg_sq


# %% [markdown]
# ## Three rules in one loop
#
# The losses of the first experiments are linear, $f_t(x) = g_t x$ on $[-1, 1]$, so the gradients do not depend on
# where an optimizer is, and neither do its averages. One call of the package's AMSGrad then serves two rules: it
# returns its direction and, with $m_t$ and $v_t$, Adam's, $m_t/\sqrt{v_t}$ (the paper's Adam corrects no bias).
# A stage is a pure function on tensors: many problems, starting points and decay rates are one tensor.


# %%
def play(gradients, beta1, beta2, alpha=0.5, start=0.0, sgd=False):
    """x after each step and the regret against −1 up to it, for Adam, AMSGrad and perhaps SGD: (T, rules, ...).

    `gradients` has shape (T, ...); the learning rate is α/√t.
    """
    m = v = largest = torch.zeros(gradients.shape[1:], dtype=torch.float64)
    x = torch.zeros(2 + sgd, *m.shape, dtype=torch.float64) + start
    path, losses = [], []
    for t, g in enumerate(gradients, 1):
        losses.append(g * (x + 1))  # f_t(x_t) − f_t(−1)
        direction, m, v, largest = AMSGradDirection.update(g, m, v, largest, (beta1, beta2), 0.0, False)
        directions = [m / v.sqrt(), direction, g]
        x = (x - alpha / math.sqrt(t) * torch.stack(directions[: 2 + sgd])).clamp(-1, 1)
        path.append(x)
    return torch.stack(path), torch.stack(losses).cumsum(0)


def periodic(first, other, period, steps):
    """`first` at t = 1, 1 + period, …, and `other` else; `first` of any shape (...) -> (steps, ...)."""
    first = torch.as_tensor(first, dtype=torch.float64)
    large = (torch.arange(steps) % period == 0).reshape(-1, *[1] * first.ndim)
    return torch.where(large, first, torch.full_like(first, other))


def log_steps(steps, points=80):
    """About `points` step numbers from 1 to `steps`, evenly spaced on a logarithmic axis."""
    return sorted({round(steps ** (i / (points - 1))) for i in range(points)})


# %% [markdown]
# ## 1 · Theorem 1
#
# $f_t(x) = Cx$ if $t \bmod 3 = 1$, else $-x$; $\beta_1 = 0$, $\beta_2 = 1/(1+C^2)$, $\alpha_t = \alpha/\sqrt t$.
# The best point is −1. A band of nine starting points; then other values of $C$.

# %%
steps = 9_000  # a multiple of the period
starts = torch.linspace(-1, 1, 9, dtype=torch.float64)
others = torch.tensor([2.5, 3, 4, 6], dtype=torch.float64)  # from x = 1
constants = torch.cat([torch.full_like(starts, 3), others])
starts = torch.cat([starts, torch.ones_like(others)])
whole, whole_regret = play(periodic(constants, -1, 3, steps), 0.0, 1 / (1 + constants**2), start=starts, sgd=True)
path, regret = whole[..., :9], whole_regret[..., :9]
shown = log_steps(steps)
for i, name in enumerate(("adam", "amsgrad", "sgd")):
    record.curve(f"theorem1/{name}", shown, path[[t - 1 for t in shown], i].T.tolist(), "step t", "x")
record.metric("theorem1.adam_x", path[-1, 0].min())
record.metric("theorem1.amsgrad_x", path[-1, 1].max())
record.metric("theorem1.sgd_x", path[-1, 2].max())
for i, name in enumerate(("adam", "amsgrad", "sgd")):
    record.metric(f"theorem1.{name}_regret", regret[-1, i, -1] / steps)  # from x = 1
t = torch.arange(1, steps + 1, dtype=torch.float64)
bound = (2 / 0.5 + 0.5 / math.sqrt(0.9)) * 3 * t.sqrt()  # (D²/2α + α/√(1 − β₂)) G √T with D = 2, G = 3
record.metric("theorem1.regret_over_bound", (regret[:, 1].amax(1) / bound).max())
record.metric("theorem1.adam_regret_over_bound", (regret[:, 0].amax(1) / bound).max())

deviation = (whole_regret[-1, 0, 9:] / steps - 2 * (others - 2) / 3).abs().max()
record.metric("theorem1.worst_deviation", deviation)
print(
    f"Adam ends at {path[-1, 0].min():+.4f}, AMSGrad at {path[-1, 1].max():+.4f}, SGD at {path[-1, 2].max():+.4f}"
)
print(f"average regret of Adam, C = 2.5 to 6: within {deviation:.4f} of 2(C − 2)/3")

# %% [markdown]
# ## 2 · Every other β₂
#
# Once $v$ is periodic, Adam drifts by $-\alpha_t D$ in each period, where $D$ is the sum of the gradients, each
# divided by the $\sqrt v$ of its step. Where $D$ changes its sign, Adam should change its mind.


# %%
def period_sum(constant, beta2, period=3, other=-1.0):
    """D(β₂), the equation of the chapter with the large gradient `constant` and β₁ = 0."""
    geometric = (1 - beta2**period) / (1 - beta2)
    total = 0.0
    for j in range(period):
        v = other**2 + (constant**2 - other**2) * beta2**j / geometric
        total += (constant if j == 0 else other) / math.sqrt(v)
    return total


def critical(constant, period=3):
    """The β₂ above which D is positive, and Adam right; by bisection."""
    low, high = 1e-9, 1 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if period_sum(constant, middle, period) < 0 else (low, middle)
    return low


constants = torch.tensor([2.1, 2.5, 3, 5], dtype=torch.float64)
beta2s = torch.linspace(0.005, 0.995, 100, dtype=torch.float64)
many = constants[:, None].expand(4, 100)
path, _ = play(periodic(many, -1, 3, 6000), 0.0, beta2s, alpha=1.0)
ends = path[-1]  # (rules, constants, β₂)
for i, constant in enumerate(constants.tolist()):
    name = f"C{constant:g}".replace(".", "_")
    record.curve(f"boundary/{name}", beta2s, ends[0, i : i + 1].tolist(), "β₂", "x")
    crossing = beta2s[ends[0, i] > 0].max() + 0.005  # half the spacing of the grid
    record.metric(f"boundary.{name}.measured", crossing)
    record.metric(f"boundary.{name}.predicted", critical(constant))
    print(f"C = {constant}: Adam goes the wrong way up to β₂ = {crossing:.2f}, predicted {critical(constant):.3f}")
record.curve("boundary/amsgrad", beta2s, ends[1].tolist(), "β₂", "x")
record.metric("boundary.amsgrad_x", ends[1].max())

# %% [markdown]
# ## 3 · A rare large gradient on the bowl
#
# The book's quadratic plus a slope in $\theta_1$ that averages to zero: +100 once in 101 steps, −1 otherwise. The
# minimum of the mean is at 0. Adam, with bias correction, at many β₂, and AMSGrad.

# %%
beta2s = 1 - 10 ** -torch.linspace(0.5, 4, 29, dtype=torch.float64)
bowl = problems.Quadratic()
slopes = periodic(100.0, -1, 101, 60 * 101)
last = []
for rule in (AdamDirection, AMSGradDirection):
    theta = bowl.initial().expand(29, 2)
    betas = (0.0, beta2s[:, None])
    m = v = largest = torch.zeros_like(theta)
    visited = []
    for t, slope in enumerate(slopes, 1):
        g = bowl.gradient(theta) + torch.stack([slope, torch.zeros_like(slope)])
        if rule is AdamDirection:
            direction, m, v, _ = rule.update(g, m, v, None, t, betas, 1e-8, False, False)
        else:
            direction, m, v, largest = rule.update(g, m, v, largest, betas, 1e-8, False)
        theta = theta - 2 / math.sqrt(t) * direction
        visited.append(theta[:, 0])
    last.append(torch.stack(visited[-101:]).mean(0))  # over the last period
for name, ends in zip(("adam", "amsgrad"), last, strict=True):
    record.curve(f"bowl/{name}", 1 / (1 - beta2s), [ends], "memory 1/(1 − β₂), steps", "θ₁ at the end")
place = {beta2: (beta2s - beta2).abs().argmin() for beta2 in (0.9, 0.99, 0.999)}
for beta2, i in place.items():
    record.metric(f"bowl.adam_{str(beta2)[2:]}", last[0][i])
record.metric("bowl.amsgrad_worst", last[1].abs().max())
print("Adam ends at", {beta2: round(last[0][i].item(), 3) for beta2, i in place.items()})
print(f"AMSGrad at most {last[1].abs().max():.4f} from the minimum")

# %% [markdown]
# ## 4 · The synthetic experiment of the paper
#
# 1010 at $t \bmod 101 = 1$, else −10; at random: 1010 with probability 0.01. $\beta_1 = 0.9$, $\beta_2 = 0.99$, and
# $\beta_2 = 0.999$ as a control.

# %%
steps = 101 * SETTINGS["synthetic_periods"]
generator = torch.Generator().manual_seed(seeds[0])
random = torch.where(torch.rand(steps, 20, generator=generator) < 0.01, 1010.0, -10.0).double()
gradients = torch.cat([periodic([1010.0, 1010.0], -10, 101, steps), random], 1)
beta2 = torch.tensor([0.99, 0.999] + 20 * [0.99], dtype=torch.float64)
path, regret = play(gradients, 0.9, beta2)
shown = log_steps(steps)
for i, name in enumerate(("adam", "amsgrad")):
    points = path[[t - 1 for t in shown], i]
    record.curve(f"synthetic/{name}", shown, points[:, :1].T.tolist(), "step t", "x")
    record.curve(f"synthetic_random/{name}", shown, points[:, 2:].T.tolist(), "step t", "x")
    record.metric(f"synthetic.{name}_x", path[-1, i, 0])
    record.metric(f"synthetic.{name}_x_999", path[-1, i, 1])
    record.metric(f"synthetic.random_{name}_x", path[-1, i, 2:])
    record.metric(f"synthetic.{name}_regret", regret[-1, i, 0] / steps)
    print(f"{name:8s} periodic {path[-1, i, 0]:+.3f}, at β₂ = 0.999 {path[-1, i, 1]:+.3f}, ", end="")
    print(f"random {path[-1, i, 2:].min():+.3f} to {path[-1, i, 2:].max():+.3f}")


# %% [markdown]
# ## 5 · Does the step size stay down?
#
# A first gradient of 1, then $10^{-3}$ for ever; $\beta_1 = 0$. What counts is the effective learning rate, the
# length of the step over the size of the gradient.


# %%
def effective_rates(direction):
    """Step length over gradient, where `direction(gradient, state, step)` gives the step and the next state."""
    state, rates = [torch.zeros(1, dtype=torch.float64)] * 3, []
    for t in range(1, 3001):
        gradient = torch.tensor([1.0 if t == 1 else 1e-3], dtype=torch.float64)
        step, *state = direction(gradient, state, t)
        rates.append((step / gradient).item())
    return rates


betas = (0.0, 0.999)
for name, rates in (
    ("amsgrad", effective_rates(lambda g, state, t: AMSGradDirection.update(g, *state, betas, 0.0, False))),
    ("torch", effective_rates(lambda g, state, t: AdamDirection.update(g, *state, t, betas, 0.0, True, False))),
    ("adam", effective_rates(lambda g, state, t: Uncorrected.update(g, *state[:2], betas, 0.0))),
):
    shown = log_steps(3000)
    record.curve(f"rate/{name}", shown, [[rates[t - 1] for t in shown]], "step t", "step length ÷ gradient")
    record.metric(f"rate.{name}_growth", max(after / before - 1 for before, after in pairwise(rates)))
    record.metric(f"rate.{name}_total", rates[-1] / rates[0])
    print(f"{name:8s} from step 1 to step 3,000 the effective rate grows by the factor {rates[-1] / rates[0]:.2f}")


# %% [markdown]
# ## 6 · Training
#
# Logistic regression with α/√t and a network with 100 hidden units at constant α. α and $\beta_2$ are chosen by the
# training loss at the end, the grid of α extended where the best is at its end; then fresh seeds.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
HIDDEN = {"logistic": (), "mlp": (100,)}
MIDDLE = {"logistic": -3, "mlp": -5}  # of the grid of learning rates, a power of √10
RULES = {
    "amsgrad": lambda p, beta2, **own: AMSGrad(p, betas=(0.9, beta2), **own),
    "adam": lambda p, beta2, **own: Chain(p, [Uncorrected((0.9, beta2), 1e-8)], **own),
    "corrected": lambda p, beta2, **own: Adam(p, betas=(0.9, beta2), **own),
}


def inverse_sqrt(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) ** -0.5)


def train(model, rule, exponents, beta2, run_seeds):
    """For every learning rate, a power of √10, a history for every seed; all these networks are trained at once."""
    runs = stacked.train_grid(
        functools.partial(RULES[rule], beta2=beta2),
        [10 ** (k / 2) for k in exponents],
        run_seeds,
        dataset,
        hidden=HIDDEN[model],
        epochs=SETTINGS["epochs"],
        device=device,
        schedule=inverse_sqrt if model == "logistic" else None,
    )
    return list(runs.values())


def final_loss(history):
    """Mean mini-batch loss of the last epoch; infinite for a run that diverged."""
    if history.diverged:
        return math.inf
    per_epoch = len(history.train_loss) // SETTINGS["epochs"]
    return sum(history.train_loss[-per_epoch:]) / per_epoch


def tune(model, rule, beta2, tuning_seed=1000):
    """The loss at each learning rate tried, as a power of √10: three, and on until the best is inside."""
    middle = MIDDLE[model]
    losses, todo = {}, [middle - 1, middle, middle + 1]
    while todo:
        runs = train(model, rule, todo, beta2, [tuning_seed])
        losses |= {k: final_loss(run) for k, (run,) in zip(todo, runs, strict=True)}
        best = min(losses, key=losses.__getitem__)
        todo = [k for k in (best - 1, best + 1) if k not in losses and abs(k - middle) <= 5]
    return dict(sorted(losses.items()))


# %%
for model in HIDDEN:
    runs = {}
    for rule in RULES:
        tried = {beta2: tune(model, rule, beta2) for beta2 in (0.99, 0.999)}
        loss, beta2, best = min((loss, beta2, k) for beta2 in tried for k, loss in tried[beta2].items())
        (runs[rule],) = train(model, rule, [best], beta2, seeds)
        record.metric(f"{model}.{rule}_lr", 10 ** (best / 2))
        record.metric(f"{model}.{rule}_beta2", beta2)
        x = training.downsample(runs[rule][0].train_loss, 30)[0]
        ys = [training.downsample(run.train_loss, 30)[1] for run in runs[rule]]
        record.curve(f"{model}/{rule}", x, ys, "step", "training loss")
        print(f"{model:9s} {rule:10s} α = {10 ** (best / 2):.4f}, β₂ = {beta2}")
    # ln of the ratio: −0.1 is ten percent lower, and the interval cannot promise less than no loss
    for name, other in (("", "adam"), ("_corrected", "corrected")):
        pairs = list(zip(runs["amsgrad"], runs[other], strict=True))
        record.metric(f"{model}.train{name}", [math.log(final_loss(a) / final_loss(b)) for a, b in pairs])
        record.metric(
            f"{model}.test{name}", [math.log(a.epoch[-1]["test_loss"] / b.epoch[-1]["test_loss"]) for a, b in pairs]
        )
    record.metric(
        f"{model}.amsgrad_final_over_start",
        [final_loss(run) / math.log(dataset.classes) for run in runs["amsgrad"]],
    )

# %%
path_of_record = records.write(record, out)
