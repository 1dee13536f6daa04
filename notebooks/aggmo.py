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
# # AggMo: what was run
#
# The experiments behind the chapter on aggregated momentum (Lucas, Sun, Zemel and Grosse 2019). The claims that
# they decide stand in `book/claims/aggmo.yaml`. The first four experiments are exact: float64, no data, no luck.
# The last one trains autoencoders, all of them at once.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, the paper's own network
seeds = [0, 1, 2]  # fresh seeds for the reported runs; learning rates are chosen with another one
device = "cpu"
out = "aggmo.json"  # where the record goes, relative to the working directory

# %%
import itertools
import math

import numpy as np
import torch
from torch.nn import functional as F

from experiments import data, problems, records
from optimizers import SGD, AggMo

DEEP = [1000, 500, 250, 30, 250, 500, 1000]
SETTINGS = {
    "quick": {"dataset": "digits", "pool": 1, "widths": [32, 16, 8, 16, 32], "updates": 500, "batch": 40},
    "standard": {"dataset": "mnist", "pool": 2, "widths": [64, 32, 16, 32, 64], "updates": 5000, "batch": 100},
    "paper": {"dataset": "mnist", "pool": 1, "widths": DEEP, "updates": 50000, "batch": 200},
}[scale]
record = records.new("aggmo", scale, {"seeds": seeds, "device": device, **SETTINGS})

# %% [markdown]
# ## 1 · One formula for all momenta
#
# AggMo with a weight of its own for every velocity (the paper's equation 4): classical momentum is one velocity,
# Nesterov's is $\beta = (0, \mu)$ with the weights $(1, \mu)$, AggMo has the weights $1/K$. Unused places have
# weight 0, so that all methods fit into one tensor. The package's own optimizers confirm it.

# %%
DAMPING = (0.0, 0.9, 0.99, 0.999)
METHODS = {f"momentum_{mu}": ((mu,), (1.0,)) for mu in DAMPING[1:]}
METHODS |= {f"nesterov_{mu}": ((0.0, mu), (1.0, mu)) for mu in DAMPING[1:]}
METHODS |= {f"aggmo_{k}": (DAMPING[:k], (1 / k,) * k) for k in (2, 3, 4)}
METHODS |= {"same_speed": ((1 - 1 / 37,), (1.0,))}  # classical, as fast on a slope as aggmo_3


def places(methods, dtype=torch.float64):
    """β and the weights of each velocity, of shape (4, methods)."""
    rows = [[(*part, 0.0, 0.0, 0.0, 0.0)[:4] for part in METHODS[name]] for name in methods]
    return torch.tensor(rows, dtype=dtype).permute(1, 2, 0)


def step(grad, velocities, betas, weights):
    """d_t = Σᵢ wᵢ v⁽ⁱ⁾ with v⁽ⁱ⁾ ← β⁽ⁱ⁾ v⁽ⁱ⁾ + g; changes the velocities, of shape (4, …), in place."""
    velocities.mul_(betas).add_(grad)
    return (weights * velocities).sum(0)


curvatures = torch.logspace(-4, 0, 30, dtype=torch.float64)
start = torch.stack(
    [torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
)


def packaged(make, steps=200):
    """θ_1, …, θ_steps of an optimizer of the package; shape (steps, seeds, 30)."""
    theta = start.clone().requires_grad_()
    optimizer, points = make([theta]), []
    for _ in range(steps):
        theta.grad = curvatures * theta.detach()
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


def general(betas, weights, steps=200, alpha=1.0):
    theta, velocities = start.clone(), torch.zeros(len(betas), *start.shape, dtype=torch.float64)
    betas, weights = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (betas, weights))
    points = []
    for _ in range(steps):
        theta = theta - alpha * step(curvatures * theta, velocities, betas, weights)
        points.append(theta)
    return torch.stack(points)


def apart(one, other):
    """Largest distance of a coordinate, at any step."""
    return (one - other).abs().max().item()


nesterov = packaged(lambda p: SGD(p, lr=1.0, momentum=0.99, nesterov=True))
record.metric("nesterov.worst", apart(nesterov, general((0.0, 0.99), (1.0, 0.99))))
record.metric("nesterov.aggmo_worst", apart(packaged(lambda p: AggMo(p, lr=1.0)), general(*METHODS["aggmo_3"])))
classical = packaged(lambda p: SGD(p, lr=1.0, momentum=0.9))
record.metric("nesterov.momentum_worst", apart(classical, general(*METHODS["momentum_0.9"])))
for mu in (0.9, 0.999):
    exact = packaged(lambda p, mu=mu: SGD(p, lr=1.0, momentum=mu, nesterov=True))
    relative = apart(exact, general((0.0, mu), (1.0, 1.0))) / start.abs().max().item()
    record.metric(f"nesterov.equal_{str(mu)[2:]}", relative)
    print(f"Nesterov, μ = {mu}: equal learning rates are off by {relative:.4f} of the start")
print(f"Nesterov as AggMo: off by {record.get('nesterov.worst'):.0e}")

# %% [markdown]
# ## 2 · The running quadratic
#
# At α = 0.05, from the book's start, both coordinates.

# %%
bowl = problems.Quadratic()
OPENING = ["momentum_0.9", "momentum_0.99", "nesterov_0.99", "aggmo_3"]
betas, weights = (x[..., None] for x in places(OPENING))
theta = bowl.initial().expand(len(OPENING), 2)
velocities = torch.zeros(4, *theta.shape, dtype=torch.float64)
path = [theta]
for _ in range(2000):
    theta = theta - 0.05 * step(bowl.gradient(theta), velocities, betas, weights)
    path.append(theta)
path = torch.stack(path)
for name, points in zip(OPENING, path.unbind(1), strict=True):
    for i, coordinate in enumerate(("flat", "steep")):
        record.curve(f"bowl_{coordinate}/{name}", list(range(151)), [points[:151, i]], "step", "θ")
    loss = bowl.loss(points)
    late = (loss >= 1e-4 * loss[0]).nonzero().max().item() + 1
    record.metric(f"bowl.{name.replace('0.', '')}_steps", late)
    print(f"{name:14s} {late:5d} steps to a ten-thousandth of the loss")

# %% [markdown]
# ## 3 · Steps to a millionth, with the largest β in common

# %%
ROWS = [(100, 1.0), (1000, 0.33), (1000, 0.1), (10000, 0.33), (10000, 1.0)]


names = ["momentum_0.9", "momentum_0.99", "momentum_0.999", "nesterov_0.99", "aggmo_3", "aggmo_4", "same_speed"]
betas, weights = (x[:, None, :, None] for x in places(names))  # (4, 1, names, 1)
alpha = torch.tensor([a for _, a in ROWS], dtype=torch.float64)[:, None, None]
lam = torch.tensor([[1.0, k**-0.5, 1 / k] for k, _ in ROWS], dtype=torch.float64)[:, None]  # (rows, 1, 3)
theta = torch.ones(len(ROWS), len(names), 3, dtype=torch.float64)
velocities = torch.zeros(4, *theta.shape, dtype=torch.float64)
late, lowest = torch.zeros(theta.shape[:2], dtype=torch.int64), torch.zeros(theta.shape[:2], dtype=torch.float64)
for t in range(1, 15001):
    theta = theta - alpha * step(lam * theta, velocities, betas, weights)
    late[(lam * theta**2).sum(-1) >= 1e-6 * lam.sum(-1)] = t
    lowest = torch.minimum(lowest, theta[..., 0])

table = [dict(zip(names, (row + 1).tolist(), strict=True)) for row in late]
for i, ((kappa, a), row) in enumerate(zip(ROWS, table, strict=True)):
    for name in names:
        record.metric(f"steps.row{i}.{name.replace('0.', '')}", row[name])
    print(f"κ = {kappa}, α = {a}:", row)
for name, low in zip(names, lowest[1].tolist(), strict=True):
    record.metric(f"steps.lowest_{'aggmo' if name == 'aggmo_3' else name.replace('0.', '')}", low)
record.metric("steps.worst_ratio_99", max(row["aggmo_3"] / row["momentum_0.99"] for row in table))
record.metric("steps.worst_ratio_999", max(row["aggmo_4"] / row["momentum_0.999"] for row in table))
record.metric("steps.best_same_speed", min(row["aggmo_3"] / row["same_speed"] for row in table))
record.metric("steps.worst_same_speed", max(row["aggmo_3"] / row["same_speed"] for row in table))

# %% [markdown]
# ## 4 · The rate, by curvature and by condition number
#
# The step is linear in (θ, v⁽¹⁾ … v⁽⁴⁾): its matrix is read off by feeding it the unit vectors.


# %%
def rate(name, h):
    """The asymptotic factor per step where α times the curvature is `h`; the shape of `h`."""
    betas, weights = (x[:, :, None] for x in places([name]))  # (4, 1, 1)
    h = torch.as_tensor(h, dtype=torch.float64).flatten()[:, None]
    unit = torch.eye(5, dtype=torch.float64).expand(len(h), 5, 5)  # each column a state (θ, v⁽¹⁾, …, v⁽⁴⁾)
    theta, velocities = unit[:, 0], unit[:, 1:].transpose(0, 1).clone()
    theta = theta - step(h * theta, velocities, betas, weights)
    matrix = torch.cat([theta[:, None], velocities.transpose(0, 1)], 1)
    used = [0, *(1 + i for i in range(4) if weights[i] != 0)]  # what θ does not depend on must not count
    return torch.linalg.eigvals(matrix[:, used][:, :, used]).abs().amax(-1)


h = np.logspace(-4, math.log10(4), 200)
for name in ("momentum_0.9", "momentum_0.99", "nesterov_0.99", "aggmo_3"):
    factor = rate(name, h).numpy()
    needed = np.where(factor < 1, -1 / np.log(np.clip(factor, 1e-3, 1 - 1e-9)), np.nan)
    record.curve(f"rate/{name}", h, [needed], "α λ", "steps to shrink by the factor e")
for name in ("momentum_0.99", "nesterov_0.99", "aggmo_3"):
    fine = np.linspace(0.5, 4, 3501)
    record.metric(f"limit.{name.replace('0.', '')}", fine[np.argmax(rate(name, fine).numpy() >= 1)])

conditions = [10**k for k in range(1, 8)]
alphas = np.geomspace(0.05, 3.99, 300)


def best_speed(name, kappa):
    """−ln of the worst factor over 13 curvatures from 1/κ to 1, at the best of 300 learning rates."""
    lam = np.geomspace(1 / kappa, 1, 13)
    worst = rate(name, np.outer(alphas, lam)).view(300, 13).amax(1)
    return -math.log(worst.min().item())


speeds = {
    n: [best_speed(n, k) for k in conditions] for n in ("momentum_0.9", "momentum_0.99", "nesterov_0.99", "aggmo_3")
}
speeds["tuned"] = [-math.log((math.sqrt(k) - 1) / (math.sqrt(k) + 1)) for k in conditions]
for name, line in speeds.items():
    record.curve(f"condition/{name}", conditions, [[1 / v for v in line]], "κ", "steps to shrink by the factor e")
    print(f"{name:14s}", *(f"{math.exp(-v):.5f}" for v in line))
triples = list(zip(speeds["momentum_0.9"], speeds["momentum_0.99"], speeds["aggmo_3"], strict=True))
record.metric("rates.slower_than_both", sum(c < min(a, b) * (1 - 1e-9) for a, b, c in triples))
record.metric("rates.faster_than_both", sum(c > max(a, b) * (1 + 1e-9) for a, b, c in triples))
over = [a / b for a, b in zip(speeds["aggmo_3"], speeds["nesterov_0.99"], strict=True)]
for kappa, ratio in zip(conditions, over, strict=True):
    record.metric(f"rates.over_nesterov_k{kappa}", ratio)
record.metric("rates.over_nesterov_large", min(over[4:]))
for kappa, a, b in zip(conditions, speeds["tuned"], speeds["aggmo_3"], strict=True):
    record.metric(f"rates.tuned_over_aggmo_k{kappa}", a / b)
record.metric(
    "rates.tuned_over_aggmo_least", min(a / b for a, b in zip(speeds["tuned"], speeds["aggmo_3"], strict=True))
)
print("AggMo ÷ Nesterov:", *(f"{x:.2f}" for x in over))

# %% [markdown]
# ## 5 · Autoencoders
#
# ReLU units, cross-entropy, α divided by ten for the last fifth, constant coefficients. All methods, learning rates
# and seeds are trained at once: every layer is one tensor with a run per row.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
images = F.avg_pool2d((dataset.images("train", device) + 1) / 2, SETTINGS["pool"]).flatten(1)
widths = [images.shape[1], *SETTINGS["widths"], images.shape[1]]
UPDATES, BATCH = SETTINGS["updates"], SETTINGS["batch"]
# The paper tunes β among 0.9, 0.99 and 0.999, and K among 2, 3 and 4; quick scale has the first two of each.
ARMS = [name for name in METHODS if scale != "quick" or name not in ("momentum_0.999", "nesterov_0.999", "aggmo_4")]
ALPHAS = [10 ** (k / 2) for k in range(-7 if scale == "quick" else -10, 0)]


def initial(seed):
    """Glorot's normal weights (in, out) and zero biases of one run."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        deviation = math.sqrt(2 / (fan_in + fan_out))
        layers += [deviation * torch.randn(fan_in, fan_out, generator=generator), torch.zeros(1, fan_out)]
    return layers


def logits(params, x):
    """The reconstructions before the last sigmoid: (runs, batch, pixels) to the same."""
    for i in range(0, len(params), 2):
        x = torch.baddbmm(params[i + 1], x.relu() if i else x, params[i])
    return x


def errors(params, part=1000):
    """Squared error per image, summed over the pixels: the mean over the first 5,000 training images, per run."""
    total = 0.0
    with torch.inference_mode():
        for x in images[:5000].split(part):
            x = x.expand(len(params[0]), -1, -1)
            total = total + (logits(params, x).sigmoid() - x).square().sum(-1).sum(-1)
    return (total / len(images[:5000])).cpu()


def train(runs, points):
    """Train runs (method, α, seed) side by side; squared error at `points` updates, of shape (runs, points)."""
    columns = [initial(seed) for _, _, seed in runs]
    params = [torch.stack(layer).to(device).requires_grad_() for layer in zip(*columns, strict=True)]
    velocities = [torch.zeros(4, *param.shape, device=device) for param in params]
    betas, weights = (x[..., None, None].to(device) for x in places([name for name, _, _ in runs], torch.float32))
    alpha = torch.tensor([alpha for _, alpha, _ in runs], device=device)[:, None, None]
    orders = {seed: torch.Generator().manual_seed(seed) for seed in {seed for _, _, seed in runs}}
    curve = []
    for t in range(UPDATES):
        batch = {seed: torch.randint(len(images), (BATCH,), generator=order) for seed, order in orders.items()}
        x = images[torch.stack([batch[seed] for _, _, seed in runs]).to(device)]
        loss = F.binary_cross_entropy_with_logits(logits(params, x), x, reduction="none").sum(-1).mean(-1)
        grads = torch.autograd.grad(loss.sum(), params)
        now = alpha if t < UPDATES - UPDATES // 5 else alpha / 10
        with torch.no_grad():
            for param, grad, velocity in zip(params, grads, velocities, strict=True):
                param -= now * step(grad, velocity, betas, weights)
        if t + 1 in points:
            curve.append(errors(params))
    return torch.stack(curve, 1)


def train_all(runs, points, size=40):
    """As `train`, but at most `size` runs at a time, for the memory's sake."""
    return torch.cat([train(runs[i : i + size], points) for i in range(0, len(runs), size)])


mean_image = (images - images.mean(0)).square().sum(1).mean().item()
tuning = [(name, alpha, 1000) for name in ARMS for alpha in ALPHAS]
ends = train_all(tuning, [UPDATES]).nan_to_num(math.inf).view(len(ARMS), len(ALPHAS))
best, stable, least = {}, {}, {}
for name, row in zip(ARMS, ends, strict=True):
    best[name], least[name] = ALPHAS[int(row.argmin())], row.min().item()
    stable[name] = max((a for a, e in zip(ALPHAS, row.tolist(), strict=True) if e < 0.6 * mean_image), default=0.0)
    record.curve(f"autoencoder_lr/{name}", ALPHAS, [row.clamp(max=1e6)], "α", "squared error")
    print(f"{name:16s} α = {best[name]:.4f}, stable up to {stable[name]:.4f}, squared error {least[name]:.3f}")

# %%
steps = sorted({max(1, round(UPDATES * k / 20)) for k in range(21)})
curves = train_all([(name, best[name], seed) for name in ARMS for seed in seeds], steps)
paths = dict(zip(ARMS, curves.view(len(ARMS), len(seeds), -1).tolist(), strict=True))
final = {name: [path[-1] for path in runs] for name, runs in paths.items()}


def compare(one, other):
    """ln of the ratio of the final errors, per seed."""
    return [math.log(a / b) for a, b in zip(final[one], final[other], strict=True)]


def tuned(kind):
    """The best coefficient of one kind, by the tuning seed."""
    return min((name for name in ARMS if name.startswith(kind)), key=least.__getitem__)


for name in ARMS:
    key = name.replace("0.", "")
    record.metric(f"autoencoder.error.{key}", final[name])
    record.metric(f"autoencoder.lr.{key}", best[name])
    record.metric(f"stable.{key}", stable[name])
    record.curve(f"autoencoder/{name}", steps, paths[name], "update", "squared error per image")
    print(f"{name:16s}", *(f"{error:7.3f}" for error in final[name]))
record.metric("autoencoder.mean_image", mean_image)
record.metric("autoencoder.learned", [math.log(min(row) / mean_image) for row in zip(*final.values(), strict=True)])
record.metric("autoencoder.best_k", int(tuned("aggmo")[-1]))
record.metric("autoencoder.over_momentum", compare(tuned("aggmo"), tuned("momentum")))
record.metric("autoencoder.over_nesterov", compare(tuned("aggmo"), tuned("nesterov")))
record.metric("autoencoder.default_over_momentum", compare("aggmo_3", "momentum_0.9"))
record.metric("autoencoder.default_over_nesterov", compare("aggmo_3", "nesterov_0.9"))
record.metric("autoencoder.default_over_same_speed", compare("aggmo_3", "same_speed"))
for kind in ("momentum", "nesterov"):  # without a stable run there is nothing to compare with
    other = stable[f"{kind}_0.99"]
    record.metric(f"stable.over_{kind}", stable["aggmo_3"] / other if other else math.nan)

# %%
path_of_record = records.write(record, out)
