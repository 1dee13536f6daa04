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
# # Momentum: what was run
#
# The experiments behind the chapter on momentum (Sutskever, Martens, Dahl and Hinton 2013). The claims that they
# decide stand in `book/claims/momentum.yaml`. The first five experiments are exact: float64, no data, no luck. The
# last one trains autoencoders, all of them at once.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, the paper's own network
seeds = [0, 1, 2]  # fresh seeds for the reported runs; learning rates are chosen with another one
device = "cpu"
out = "momentum.json"  # where the record goes, relative to the working directory

# %%
import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from experiments import data, problems, records
from optimizers import SGD
from optimizers.momentum import Momentum

HALF = [64, 32, 16, 32, 64]  # layers between the pixels; on MNIST at half its resolution, 14 × 14
DEEP = [1000, 500, 250, 30, 250, 500, 1000]
SETTINGS = {
    "quick": {
        "dataset": "digits",
        "pool": 1,
        "widths": [32, 16, 8, 16, 32],
        "updates": 700,
        "batch": 40,
        "period": 8,
    },
    "standard": {"dataset": "mnist", "pool": 2, "widths": HALF, "updates": 8000, "batch": 100, "period": 40},
    "paper": {"dataset": "mnist", "pool": 1, "widths": DEEP, "updates": 50000, "batch": 200, "period": 250},
}[scale]
record = records.new("momentum", scale, {"seeds": seeds, "device": device, **SETTINGS})

# %% [markdown]
# ## 1 · How fast along one curvature?
#
# On a quadratic the step is linear in the pair (θ, b). Its matrix is read off the package's own function, by
# feeding it the two unit vectors; the largest modulus of an eigenvalue is the factor by which a step shrinks the
# distance. The learning rate times the curvature is all that matters; `h` is this product here.


# %%
def rate(h, mu, nesterov=False):
    """The asymptotic factor per step where α times the curvature is `h`; the shape of `h`."""
    h = torch.as_tensor(h, dtype=torch.float64)
    theta, velocity = torch.eye(2, dtype=torch.float64).expand(*h.shape, 2, 2).unbind(-2)
    direction, velocity = Momentum.update(h[..., None] * theta, velocity, 2, mu, 0.0, nesterov)
    a, b, c, d = *(theta - direction).unbind(-1), *velocity.unbind(-1)
    middle = (a + d) / 2  # the roots of z² − (a + d) z + (a d − b c)
    root = (middle**2 - (a * d - b * c)).to(torch.complex128).sqrt()
    return torch.maximum((middle + root).abs(), (middle - root).abs())


h = np.logspace(-4, math.log10(4), 200)
for mu in (0.9, 0.99):
    for name, nesterov in (("momentum", False), ("nesterov", True)):
        steps = -1 / np.log(rate(h, mu, nesterov).clamp(1e-3, 1 - 1e-9).numpy())
        stable = rate(h, mu, nesterov).numpy() < 1
        record.curve(
            f"rate/{name}_{mu}", h, [np.where(stable, steps, np.nan)], "α λ", "steps to shrink by the factor e"
        )
inside = h < 1.99
record.curve("rate/sgd", h[inside], [-1 / np.log(np.abs(1 - h[inside]))], "α λ", "steps to shrink by the factor e")

# %% [markdown]
# ## 2 · The square root of the condition number
#
# Curvatures 1 and 1/R. Every method takes its best learning rate. The paper prints the coefficient
# $(\sqrt R-1)/(\sqrt R+1)$; the control is its square.


# %%
def least_steps(R, mu):
    """Steps to shrink the error by the factor e, at the best of 4,000 learning rates."""
    alphas = torch.linspace(0, 2 * (1 + mu), 4002, dtype=torch.float64)[1:-1]
    worst = torch.maximum(rate(alphas, mu), rate(alphas / R, mu))
    return -1 / math.log(worst.min().item())


conditions = [10**k for k in range(2, 7)]
for name, power in (("printed", 1), ("squared", 2)):
    gains = [
        least_steps(R, 0.0) / least_steps(R, ((math.sqrt(R) - 1) / (math.sqrt(R) + 1)) ** power) for R in conditions
    ]
    for R, gain in zip(conditions, gains, strict=True):
        record.metric(f"acceleration.{name}.r{R}", gain / math.sqrt(R))
    if power == 1:
        record.metric("acceleration.exponent", np.polyfit(np.log(conditions), np.log(gains), 1)[0])
    record.curve(f"acceleration/{name}", conditions, [gains], "condition number R", "times fewer steps")
    print(name, *(f"R = {R:.0e}: {gain / math.sqrt(R):.3f} √R" for R, gain in zip(conditions, gains, strict=True)))

# %% [markdown]
# ## 3 · Nesterov's momentum is classical momentum with μ(1 − αh), where h is the curvature
#
# Ten curvatures, α = 1. The package keeps the look-ahead point $y_t = \theta_t + \mu v_t$; with $v_t = -\alpha b_t$
# the paper's $\theta_t$ is recovered from the buffer. The classical runs have a parameter group per curvature.

# %%
curvatures = torch.logspace(-4, 0, 30, dtype=torch.float64)


def descend(optimizer, params, curvature, steps):
    """Make `steps` steps on ½ Σ λ θ²; yields after each."""
    for _ in range(steps):
        for param, lam in zip(params, curvature, strict=True):
            param.grad = lam * param.detach()
        optimizer.step()
        yield


few = torch.logspace(-4, 0, 10, dtype=torch.float64)
# Shape (curvatures, seeds): a random start in each column.
start = torch.stack(
    [torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds], 1
)
ahead, plain = start.clone().requires_grad_(), start.clone().requires_grad_()
classical = [row.clone().requires_grad_() for row in start]
nesterov = SGD([ahead], lr=1.0, momentum=0.9, nesterov=True)
same = SGD([plain], lr=1.0, momentum=0.9)
own = [0.9 * (1 - lam.item()) for lam in few]
matched = SGD([{"params": [p], "momentum": mu} for p, mu in zip(classical, own, strict=True)], lr=1.0)
worst = apart = 0.0
for _ in zip(
    descend(nesterov, [ahead], [few[:, None]], 300),
    descend(matched, classical, few, 300),
    descend(same, [plain], [few[:, None]], 300),
    strict=True,
):
    theta = ahead.detach() + 0.9 * nesterov.state[ahead]["momentum_buffer"]
    worst = max(worst, (theta - torch.stack([p.detach() for p in classical])).abs().max().item())
    apart = max(apart, (theta - plain.detach()).abs().max().item())
record.metric("theorem.worst", worst)
record.metric("theorem.same_mu", apart)
print(f"apart by {worst:.0e} with μ(1 − αλ), by {apart:.2f} with μ")

# %% [markdown]
# ## 4 · Large μ on a quadratic, and a finish with a small one
#
# The package's function is elementwise, so all μ and all learning rates go at once, as the rows of one tensor.

# %%
MUS = (0.9, 0.99, 0.995, 0.999)


def losses(nesterov, mu, alpha, steps, finish=0):
    """½ Σ λ θ² after every step, from (1, …, 1); `mu` and `alpha` of shape (rows,) or one number; (steps, rows).

    In the last `finish` steps μ is 0.9.
    """
    mu, alpha = (torch.as_tensor(x, dtype=torch.float64).reshape(-1, 1) for x in (mu, alpha))
    theta = torch.ones(len(mu), 30, dtype=torch.float64)
    velocity = torch.zeros_like(theta)
    history = []
    for t in range(steps):
        now = torch.full_like(mu, 0.9) if t >= steps - finish else mu
        direction, velocity = Momentum.update(curvatures * theta, velocity, 2, now, 0.0, nesterov)
        theta = theta - alpha * direction
        history.append(0.5 * (curvatures * theta**2).sum(-1))
    return torch.stack(history)


path = {name: losses(name == "nesterov", MUS, 1.0, 1000) for name in ("momentum", "nesterov")}
every = list(range(4, 1000, 5))
for name, history in path.items():
    for mu, line in zip(MUS, history[every].T, strict=True):
        record.curve(f"quadratic/{name}_{mu}", [t + 1 for t in every], [line], "step", "loss")
for t in (300, 1000):
    gains = (path["momentum"] / path["nesterov"])[t - 1].tolist()
    for mu, gain in zip(MUS, gains, strict=True):
        record.metric(f"quadratic.t{t}.gain_at_{str(mu)[2:]}", gain)
    record.metric(f"quadratic.t{t}.least_gain", min(gains[1:]))
    print(
        f"after {t} steps, classical ÷ Nesterov:", *(f"{mu}: {g:.3g}  " for mu, g in zip(MUS, gains, strict=True))
    )


def least_loss(nesterov, mu, largest):
    """The loss after 300 steps at the best of 40 learning rates."""
    ends = losses(nesterov, [mu] * 40, np.geomspace(0.01, largest, 40), 300)[-1]
    return ends.nan_to_num(math.inf).min().item()


gains = [least_loss(False, mu, 3.9) / least_loss(True, mu, 1.33) for mu in MUS]
for mu, gain in zip(MUS, gains, strict=True):
    record.metric(f"quadratic.tuned_at_{str(mu)[2:]}", gain)
record.metric("quadratic.t300.least_gain_tuned", min(gains[1:]))
print("300 steps, each at its best α:", *(f"{mu}: {gain:.3g}  " for mu, gain in zip(MUS, gains, strict=True)))

for name, nesterov in (("classical", False), ("nesterov", True)):
    ends = {finish: losses(nesterov, (0.9, 0.99, 0.999), 1.0, 3000, finish)[-1].tolist() for finish in (0, 200)}
    record.metric(f"finish.{name}_without", ends[0][2])
    record.metric(f"finish.{name}_with", ends[200][2])
    record.metric(f"finish.{name}_gain", ends[0][2] / ends[200][2])
    record.metric(f"finish.{name}_always_9", ends[0][0])
    record.metric(f"finish.{name}_always_99", ends[0][1])
    print(
        f"{name}, μ = 0.999: {ends[0][2]:.2e}, with a finish {ends[200][2]:.2e}, μ = 0.9 all along {ends[0][0]:.2e}"
    )

# %% [markdown]
# ## 5 · The running quadratic
#
# Steepest descent at its best learning rate and momentum at its best pair, from the book's start.

# %%
bowl = problems.Quadratic()
low, high = bowl.eigenvalues.tolist()
root = math.sqrt(high / low)
best_mu = ((root - 1) / (root + 1)) ** 2
arms = {
    "sgd": {"lr": 2 / (low + high)},
    "momentum": {"lr": (2 / (math.sqrt(low) + math.sqrt(high))) ** 2, "momentum": best_mu},
    "momentum_0.99": {"lr": 2 / (low + high), "momentum": 0.99},
}
for name, options in arms.items():
    theta = bowl.initial().requires_grad_()
    optimizer = SGD([theta], **options)
    history = [bowl.loss(theta).item()]
    for _ in descend(optimizer, [theta], [bowl.eigenvalues], 1500):
        history.append(bowl.loss(theta.detach()).item())
    record.curve(f"bowl/{name}", list(range(151)), [history[:151]], "step", "loss")
    below = next((t for t, loss in enumerate(history) if max(history[t:]) < 1e-4 * history[0]), math.nan)
    record.metric(f"bowl.{name.replace('.', '')}_steps", below)
record.metric("bowl.best_mu", best_mu)

# %% [markdown]
# ## 6 · Autoencoders
#
# Sigmoid units, sparse initialization (15 incoming weights per unit, standard normal), cross-entropy, the schedule
# $\mu_t = \min(1 - 2^{-1-\log_2(\lfloor t/250\rfloor + 1)}, \mu_{\max})$, with a shorter period than 250 where the
# run is shorter: it comes to 0.9 after 4 periods and to 0.99 after 49. All arms, learning rates and seeds are
# trained at once: every layer is one tensor with a run per row, and the loss of a run is multiplied by its
# learning rate, which is the same thing, because momentum is linear in the gradient.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
images = F.avg_pool2d((dataset.images("train", device) + 1) / 2, SETTINGS["pool"]).flatten(1)
widths = [images.shape[1], *SETTINGS["widths"], images.shape[1]]
UPDATES, BATCH = SETTINGS["updates"], SETTINGS["batch"]
FINISH = UPDATES // 10


def sparse(seed, factor):
    """Weights (in, out) and biases of one run: 15 standard normal weights into each unit, zeros elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        chosen = torch.rand(fan_in, fan_out, generator=generator).argsort(0) < min(15, fan_in)
        layers += [factor * chosen * torch.randn(fan_in, fan_out, generator=generator), torch.zeros(1, fan_out)]
    return layers


def logits(params, x):
    """The reconstructions before the last sigmoid: (runs, batch, pixels) to the same."""
    for i in range(0, len(params), 2):
        x = torch.baddbmm(params[i + 1], x.sigmoid() if i else x, params[i])
    return x


def momentum(run, t):
    """μ of one run at update t, counted from 0."""
    if run.finish and t >= UPDATES - FINISH:
        return min(run.mu, 0.9)
    return min(1 - 0.5 / (t // SETTINGS["period"] + 1), run.mu) if run.schedule else run.mu


class Run(NamedTuple):
    mu: float  # the largest momentum
    nesterov: bool
    factor: float = 1.0  # multiplies the initial weights
    schedule: bool = True
    finish: bool = False  # the last tenth of the updates with μ = 0.9
    alpha: float = 0.0
    seed: int = 1000


def train(runs, points):
    """Train all runs side by side; the squared error per image at `points` updates, of shape (runs, points)."""
    columns = [sparse(run.seed, run.factor) for run in runs]
    params = [torch.stack(layer).to(device).requires_grad_() for layer in zip(*columns, strict=True)]
    buffers = [torch.zeros_like(param) for param in params]
    alpha = torch.tensor([run.alpha for run in runs], device=device)
    ahead = torch.tensor([run.nesterov for run in runs], device=device)[:, None, None]
    orders = {seed: torch.Generator().manual_seed(seed) for seed in {run.seed for run in runs}}
    curve = []
    for t in range(UPDATES):
        batch = {seed: torch.randint(len(images), (BATCH,), generator=order) for seed, order in orders.items()}
        x = images[torch.stack([batch[run.seed] for run in runs]).to(device)]
        loss = F.binary_cross_entropy_with_logits(logits(params, x), x, reduction="none").sum(-1).mean(-1)
        grads = torch.autograd.grad((alpha * loss).sum(), params)
        mu = torch.tensor([momentum(run, t) for run in runs], device=device)[:, None, None]
        with torch.no_grad():
            for param, grad, buffer in zip(params, grads, buffers, strict=True):
                _, new = Momentum.update(grad, buffer, 2, mu, 0.0, False)
                buffer.copy_(new)
                param -= torch.where(ahead, grad + mu * new, new)
        if t + 1 in points:
            curve.append(errors(params))
    return torch.stack(curve, 1)


def errors(params, part=1000):
    """Squared error per image, summed over the pixels: the mean over the first 5,000 training images, per run."""
    total = 0.0
    with torch.inference_mode():
        for x in images[:5000].split(part):
            x = x.expand(len(params[0]), -1, -1)
            total = total + (logits(params, x).sigmoid() - x).square().sum(-1).sum(-1)
    return (total / len(images[:5000])).cpu()


MUS = (0.9, 0.99, 0.999) if scale == "paper" else (0.9, 0.99)
FACTORS = (0.25, 4.0) if scale == "quick" else (0.25, 0.5, 2.0, 4.0)
cases = {"sgd": Run(0.0, False)}
cases |= {f"momentum_{mu}": Run(mu, False) for mu in MUS}
cases |= {f"nesterov_{mu}": Run(mu, True) for mu in MUS}
cases |= {"constant": Run(0.99, True, schedule=False)}
cases |= {f"scale_{factor}": Run(0.99, True, factor) for factor in FACTORS}
# A long slope is descended at the speed α / (1 − μ): every arm has the same grid of that.
SPEEDS = [10 ** (k / 2) for k in range(-4, 4)]


def train_all(runs, points, size=40):
    """As `train`, shape (runs, points), but at most `size` runs at a time, for the memory's sake."""
    return torch.cat([train(runs[i : i + size], points) for i in range(0, len(runs), size)])


tuning = [run._replace(alpha=speed * (1 - run.mu)) for run in cases.values() for speed in SPEEDS]
ends = train_all(tuning, [UPDATES]).nan_to_num(math.inf).view(len(cases), len(SPEEDS))
best = {name: SPEEDS[int(row.argmin())] * (1 - cases[name].mu) for name, row in zip(cases, ends, strict=True)}
for name, row in zip(cases, ends, strict=True):
    record.curve(f"autoencoder_lr/{name}", SPEEDS, [row], "α / (1 − μ)", "squared error")
    print(f"{name:16s} α = {best[name]:.4f}   squared error {row.min():.3f}")

# %%
reported = {name: [run._replace(alpha=best[name], seed=seed) for seed in seeds] for name, run in cases.items()}
reported["finish"] = [run._replace(finish=True) for run in reported["nesterov_0.99"]]
steps = sorted({max(1, round(UPDATES * k / 20)) for k in range(21)} | {UPDATES - FINISH, UPDATES})
curves = train_all([run for runs in reported.values() for run in runs], steps).view(len(reported), len(seeds), -1)
paths = dict(zip(reported, curves.tolist(), strict=True))
final = {name: [path[-1] for path in runs] for name, runs in paths.items()}


def compare(one, other):
    """ln of the ratio of the final errors, per seed."""
    return [math.log(a / b) for a, b in zip(final[one], final[other], strict=True)]


mean_image = (images - images.mean(0)).square().sum(1).mean().item()
record.metric("autoencoder.mean_image", mean_image)
for name in reported:
    key = name.replace("0.", "").replace(".", "_")
    record.metric(f"autoencoder.error.{key}", final[name])
    record.curve(f"autoencoder/{name}", steps, paths[name], "update", "squared error per image")
    if name in best:
        record.metric(f"autoencoder.lr.{key}", best[name])
record.metric("autoencoder.learned", [math.log(min(row) / mean_image) for row in zip(*final.values(), strict=True)])
record.metric("autoencoder.momentum_over_sgd", compare("nesterov_0.99", "sgd"))
record.metric("autoencoder.larger", compare("nesterov_0.99", "nesterov_0.9"))
record.metric("autoencoder.nesterov_over_classical", compare(f"nesterov_{MUS[-1]}", f"momentum_{MUS[-1]}"))
record.metric("autoencoder.schedule", compare("nesterov_0.99", "constant"))
record.metric("autoencoder.finish", compare("finish", "nesterov_0.99"))
record.metric("initialization.quarter", compare("scale_0.25", "nesterov_0.99"))
record.metric("initialization.four", compare("scale_4.0", "nesterov_0.99"))
for name, errors_of in final.items():
    print(f"{name:16s}", *(f"{error:7.3f}" for error in errors_of))

# %%
path_of_record = records.write(record, out)
