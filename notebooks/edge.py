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
# # The edge of stability: what was run
#
# The experiments behind the chapter on the edge of stability (Cohen et al. 2021, 2022). The claims that they decide
# stand in `book/claims/edge.yaml`. The first three experiments are exact, in float64. The others train small
# networks on all their examples at once and measure the largest eigenvalue of the Hessian on the way; all learning
# rates and seeds of a rule are trained side by side.

# %% tags=["parameters"]
scale = (
    "quick"  # quick: synthetic data, embedded digits · standard: the same and CIFAR-10, on a CPU · paper: larger
)
seeds = [0, 1, 2]
device = "cpu"
out = "edge.json"  # where the record goes, relative to the working directory

# %%
import math
from itertools import pairwise

import torch
from torch.nn import functional as F

from experiments import data, problems, records
from experiments.stacked import Rates
from optimizers import SGD, Adam

SETTINGS = {
    "quick": {
        "steps": 800,
        "points": 40,  # at which the sharpness is measured
        "flow_time": 40.0,
        "dataset": "digits",
        "pool": 1,
        "images": 120,
        "widths": [32, 32],
        "image_steps": 320,
        "image_rates": [0.6, 0.4, 0.04],
    },
    "standard": {
        "steps": 2000,
        "points": 80,
        "flow_time": 100.0,
        "dataset": "cifar10",
        "pool": 4,
        "images": 500,
        "widths": [64, 64],
        "image_steps": 2000,
        "image_rates": [0.1, 0.05, 0.02],
    },
    "paper": {
        "steps": 20000,
        "points": 200,
        "flow_time": 1000.0,
        "dataset": "cifar10",
        "pool": 1,
        "images": 5000,
        "widths": [200, 200],
        "image_steps": 10000,
        "image_rates": [0.04, 0.02, 0.005],
    },
}[scale]
record = records.new("edge", scale, {"seeds": seeds, "device": device, **SETTINGS})

# %% [markdown]
# ## 1 · The largest stable curvature of a quadratic
#
# ½ h θ² from θ = 1 at α = 1: stable if |θ| has not grown after 2,000 steps. Bisection between 0 and 100, all rules
# of the package. A moving average of gradients, as in Adam, is momentum with as much dampening.

# %%
RULES = {
    "gd": ({}, 2.0),
    "polyak": ({"momentum": 0.9}, 2 + 2 * 0.9),
    "nesterov": ({"momentum": 0.9, "nesterov": True}, (2 + 2 * 0.9) / (1 + 2 * 0.9)),
    "average": ({"momentum": 0.9, "dampening": 0.9}, (2 + 2 * 0.9) / (1 - 0.9)),
}


def stable(h, options, steps=2000):
    """Whether each curvature of `h`, of shape (n,), is stable at α = 1; shape (n,)."""
    theta = torch.ones_like(h).requires_grad_()
    optimizer = SGD([theta], lr=1.0, **options)
    for _ in range(steps):
        theta.grad = (h * theta.detach()).clamp(-1e100, 1e100)
        optimizer.step()
    return theta.detach().abs() <= 1


for name, (options, theory) in RULES.items():
    low, high = 0.0, 100.0
    for _ in range(3):  # each time to a hundredth of the interval
        grid = torch.linspace(low, high, 101, dtype=torch.float64)
        last = int(stable(grid, options).long().cumprod(0).sum()) - 1
        low, high = grid[last].item(), grid[last + 1].item()
    record.metric(f"threshold.{name}", (low + high) / 2)
    record.metric(f"threshold.{name}_over_theory", (low + high) / 2 / theory)
    print(f"{name:9s} stable up to α h = {low:.4f}, theory {theory:.4f}")

# %% [markdown]
# ## 2 · A loss with many minima
#
# ½ (uv − 1)² has its minima on a hyperbola, where the sharpness is u² + v². From (4, 0.3), all learning rates at
# once.


# %%
def descend(rates, steps=3000):
    """u, v of shape (n,) after that many steps of the package's SGD, and the loss along the path (steps + 1, n)."""
    u = torch.full((len(rates), 1), 4.0, dtype=torch.float64, requires_grad=True)
    v = torch.full((len(rates), 1), 0.3, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([u, v], lr=1.0, extensions=[Rates(rates)])
    losses = []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        loss = 0.5 * (u * v - 1).square().clamp(max=1e100)
        losses.append(loss.detach()[:, 0])
        if len(losses) <= steps:
            loss.sum().backward()
            optimizer.step()
    return u.detach()[:, 0], v.detach()[:, 0], torch.stack(losses)


shown = [0.1, 0.15, 0.2, 0.3]
grid = [0.005 * k for k in range(4, 56)]
u, v, losses = descend([*shown, *grid])
sharpness = torch.where(losses[-1] < 1e-20, u**2 + v**2, math.nan).tolist()
flow = math.sqrt((4**2 - 0.3**2) ** 2 + 4)  # the flow keeps u² − v², and (u² + v²)² = (u² − v²)² + 4 where uv = 1
record.metric("catapult.flow", flow)
for i, alpha in enumerate(shown):
    key = f"catapult.lr_{round(100 * alpha):02d}"
    record.metric(f"{key}.sharpness", sharpness[i])
    record.metric(f"{key}.over_edge", sharpness[i] * alpha / 2)
    record.metric(f"{key}.over_flow", sharpness[i] / flow)
    record.metric(f"{key}.loss", losses[-1, i].item())
    record.metric(f"{key}.highest", losses[:, i].max().item() / losses[0, i].item())
    record.curve(f"catapult/{alpha}", list(range(81)), [losses[:81, i].clamp(min=1e-30)], "step", "loss")
    print(f"α = {alpha}: sharpness {sharpness[i]:.3f}, 2/α = {2 / alpha:.2f}, loss {losses[-1, i]:.0e}")
record.curve("catapult/sharpness", grid, [sharpness[len(shown) :]], "α", "sharpness at the end")
record.metric("catapult.largest", max(a for a, s in zip(grid, sharpness[len(shown) :], strict=True) if s == s))

# %% [markdown]
# ## 3 · Adam on the bowl
#
# Adam's preconditioner is its own: where the gradient fades, the preconditioned sharpness h/(√v̂ + ε) grows. In a
# cycle of period two, θ = ±a with a = α (1 − β₁)/(2 (1 + β₁)), it is at the edge exactly; the second half
# starts there.

# %%
ALPHA, EDGE = 0.1, 38.0
bowl = problems.Quadratic()
theta = bowl.initial().requires_grad_()
optimizer = Adam([theta], lr=ALPHA, betas=(0.9, 0.99), eps=1e-300)
ratios, bowl_losses = [], []
for _ in range(3000):
    bowl_losses.append(bowl.loss(theta.detach()).item())
    theta.grad = bowl.gradient(theta.detach())
    optimizer.step()
    ratios.append((bowl.eigenvalues * optimizer.preconditioner(theta)).max().item() * ALPHA / EDGE)
late = torch.tensor(ratios[1500:])
record.metric("bowl.ratio", late.median().item())
record.metric("bowl.lowest", late.min().item())
record.metric("bowl.highest", late.max().item())
record.metric("bowl.loss", torch.tensor(bowl_losses[1500:]).median().item())
record.curve("bowl/ratio", list(range(0, 3000, 15)), [ratios[::15]], "step", "preconditioned sharpness × α/38")
record.curve("bowl/loss", list(range(0, 3000, 15)), [bowl_losses[::15]], "step", "loss")

amplitude = ALPHA * (1 - 0.9) / (2 * (1 + 0.9))
h = 20.0
theta = torch.full((1,), amplitude, dtype=torch.float64, requires_grad=True)
optimizer = Adam([theta], lr=ALPHA, betas=(0.9, 0.999), eps=0.0)
theta.grad = torch.zeros_like(theta)
optimizer.step()  # for the state to be there; then it is set to what it is on the cycle
with torch.no_grad():
    theta.fill_(amplitude)
state = optimizer.state[theta]
state["step"].fill_(10**6)  # both averages have forgotten their start
state["exp_avg"].fill_(-h * amplitude * (1 - 0.9) / (1 + 0.9))
state["exp_avg_sq"].fill_((h * amplitude) ** 2)
off = 0.0
for t in range(1, 51):
    theta.grad = h * theta.detach()
    optimizer.step()
    off = max(off, abs(theta.item() / amplitude - (-1) ** t))
record.metric("cycle.off", off)
record.metric("cycle.edge", (h * optimizer.preconditioner(theta)).item() * ALPHA / EDGE)
print(f"bowl: {late.median():.3f} of the edge ({late.min():.2f} to {late.max():.2f}); cycle off by {off:.0e}")

# %% [markdown]
# ## 4 · Networks, many at a time
#
# Every weight is one tensor with a run per row. A Hessian-vector product of the sum of all losses is then that of
# each run by itself, and so is a power iteration.


# %%
def network(widths, x, y, seed, dtype):
    """Weights (in, out) from N(0, 1/in) and biases, of one run."""
    generator = torch.Generator().manual_seed(1000 + seed)
    sizes = [x.shape[-1], *widths, y.shape[-1]]
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        weight = torch.randn(fan_in, fan_out, generator=generator, dtype=torch.float64) / math.sqrt(fan_in)
        layers += [weight.to(dtype), torch.zeros(1, fan_out, dtype=dtype)]
    return layers


def loss_of(params, x, y):
    """Half the squared error, summed over outputs, mean over examples: (runs, n, in), (runs, n, out) -> (runs,)."""
    for i in range(0, len(params), 2):
        x = torch.baddbmm(params[i + 1], x.tanh() if i else x, params[i])
    return 0.5 * (x - y).square().sum(-1).mean(-1)


def dot(a, b):
    """Inner products of two lists of tensors, run by run; (runs,)."""
    return sum((one * other).flatten(1).sum(1) for one, other in zip(a, b, strict=True))


def rows(factor):
    """(runs,) as it multiplies weights."""
    return factor[:, None, None]


class Probe:
    """The eigenvalue of D^½ H D^½ of largest modulus (D = 1 for H), by power iteration from the last vector on."""

    def __init__(self, params):
        generator = torch.Generator().manual_seed(7)
        self.vector = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in params]
        self.first = True

    def __call__(self, params, x, y, preconditioner=None):
        """Of shape (runs,)."""
        root = [d.sqrt() for d in preconditioner] if preconditioner else [torch.ones_like(p) for p in params]
        grads = torch.autograd.grad(loss_of(params, x, y).sum(), params, create_graph=True)
        for _ in range(60 if self.first else 12):
            # v ← v / ‖v‖
            norm = dot(self.vector, self.vector).sqrt()
            self.vector = [v / rows(norm) for v in self.vector]
            # D^½ H D^½ v, where H w is the gradient of ⟨g, w⟩
            inside = [r * v for r, v in zip(root, self.vector, strict=True)]
            product = torch.autograd.grad(grads, params, inside, retain_graph=True)
            product = [r * p for r, p in zip(root, product, strict=True)]
            # ⟨v, D^½ H D^½ v⟩, which comes to the eigenvalue
            value, self.vector = dot(self.vector, product), product
        self.first = False
        return value.detach()


def train(make, rates, widths, x, y, steps, every, dtype=torch.float64):
    """Train every rate with every seed; the runs are in the order of the rates, a seed after the other in each.

    `x` and `y` are (seeds, n, …). Returns the losses (steps, runs), and the sharpness and the preconditioned
    sharpness (None for a rule that has no preconditioner) at every `every`-th step.
    """
    columns = [network(widths, x, y, seed, dtype) for _ in rates for seed in seeds]
    params = [torch.stack(layer).to(device).requires_grad_() for layer in zip(*columns, strict=True)]
    x, y = (part.repeat(len(rates), 1, 1).to(device) for part in (x, y))
    optimizer = make(params, [rate for rate in rates for _ in seeds])
    probe, own = Probe(params), Probe(params)
    losses, sharp, preconditioned = [], [], []
    adaptive = isinstance(optimizer, Adam)
    for t in range(steps):
        if t % every == 0:
            sharp.append(probe(params, x, y))
        optimizer.zero_grad()
        loss = loss_of(params, x, y)
        loss.sum().backward()
        losses.append(loss.detach())
        if adaptive and t % every == 0 and t:
            preconditioned.append(own(params, x, y, [optimizer.preconditioner(p) for p in params]))
        optimizer.step()
    return [torch.stack(part).cpu().double() if part else None for part in (losses, sharp, preconditioned)]


def plain(params, rates, **options):
    return SGD(params, lr=1.0, extensions=[Rates(rates)], **options)


def summarize(name, losses, ratio, every):
    """Metrics of one rule at one rate: `losses` (steps, seeds), `ratio` = sharpness ÷ edge, (points, seeds).

    `ratio`, and `falls` (ln of the loss, last ÷ first hundredth), are those of the second half of the run; `rises`
    is the share of all steps at which the loss rises.
    """
    half, late = losses[len(losses) // 2 :], ratio[len(ratio) // 2 :]
    part = len(half) // 50
    record.metric(f"{name}.ratio", late.median(0).values.tolist())
    record.metric(f"{name}.highest", ratio.max(0).values.tolist())
    record.metric(f"{name}.rises", (losses[1:] > losses[:-1]).double().mean(0).tolist())
    record.metric(f"{name}.falls", (half[-part:].mean(0) / half[:part].mean(0)).log().tolist())
    record.metric(f"{name}.loss", losses[-1].tolist())
    for key in ("ratio", "highest", "rises", "falls", "loss"):
        print(f"{name + '.' + key:22s}", *(f"{value:8.3g}" for value in record.get(f"{name}.{key}")))


def curves(name, losses, ratio, every):
    """At most 200 points of both."""
    stride = -(-len(ratio) // 200)
    record.curve(
        f"{name}/sharpness", range(0, len(ratio) * every, stride * every), ratio[::stride].T, "step", "÷ edge"
    )
    thin = -(-len(losses) // 200)
    record.curve(f"{name}/loss", range(0, len(losses), thin), losses[::thin].T, "step", "loss")


def column(table, i):
    """The seeds of the i-th rate."""
    return table[:, i * len(seeds) : (i + 1) * len(seeds)]


# %% [markdown]
# ### The flow, and gradient descent at three learning rates
#
# 10 inputs, two layers of 32 tanh units, one output, 200 examples of sin 2x₁ + x₂x₃, float64. The flow is Runge and
# Kutta's of fourth order with a step of at most one over the sharpness, as the authors have it.

# %%
generators = [torch.Generator().manual_seed(seed) for seed in seeds]
x = torch.stack([torch.randn(200, 10, generator=generator, dtype=torch.float64) for generator in generators])
y = torch.sin(2 * x[..., :1]) + x[..., 1:2] * x[..., 2:3]
SMALL, STEPS = [32, 32], SETTINGS["steps"]
EVERY = STEPS // SETTINGS["points"]


def gradient_flow(until):
    """The sharpness (points, seeds) along the flow, and its times."""
    columns = [network(SMALL, x, y, seed, torch.float64) for seed in seeds]
    params = [torch.stack(layer).to(device).requires_grad_() for layer in zip(*columns, strict=True)]
    inputs, targets, probe = x.to(device), y.to(device), Probe(params)

    def slope(at):
        at = [p.detach().requires_grad_() for p in at]
        return torch.autograd.grad(loss_of(at, inputs, targets).sum(), at)

    def moved(by, direction):
        return [p - by * d for p, d in zip(params, direction, strict=True)]

    times, found, now, step = [], [], 0.0, 0.0
    for k in range(10**9):
        if k % 20 == 0:
            times.append(now)
            found.append(probe(params, inputs, targets))
            if now >= until:
                return times, torch.stack(found).cpu()
            step = min(0.2, 1 / found[-1].max().item())
        one = slope(params)
        two = slope(moved(step / 2, one))
        three = slope(moved(step / 2, two))
        four = slope(moved(step, three))
        mean = [(a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(one, two, three, four, strict=True)]
        params = [p.detach().requires_grad_() for p in moved(step, mean)]
        now += step


times, flow_sharpness = gradient_flow(SETTINGS["flow_time"])
stride = -(-len(times) // 200)
record.curve("flow/sharpness", times[::stride], flow_sharpness[::stride].T, "time", "sharpness")
record.metric("flow.highest", flow_sharpness.max(0).values.tolist())
record.metric("flow.grows", (flow_sharpness[-1] / flow_sharpness[0]).log().tolist())
record.metric("flow.rising", (flow_sharpness[1:] > flow_sharpness[:-1]).double().mean(0).tolist())
print("the flow's sharpness, from and to:", flow_sharpness[0].tolist(), flow_sharpness[-1].tolist())

# %%
GD_RATES = {"gd_40": 0.4, "gd_20": 0.2, "gd_04": 0.04}
losses, sharp, _ = train(plain, list(GD_RATES.values()), SMALL, x, y, STEPS, EVERY)
for i, (name, alpha) in enumerate(GD_RATES.items()):
    ratio = column(sharp, i) * alpha / 2
    summarize(name, column(losses, i), ratio, EVERY)
    curves(name, column(losses, i), ratio, EVERY)
    record.metric(f"{name}.flow_over_edge", (flow_sharpness.max(0).values * alpha / 2).tolist())

# %% [markdown]
# ### The probe against all eigenvalues
#
# The Hessian of an untrained network, whole.


# %%
def largest_eigenvalue(seed):
    flat = [layer[None] for layer in network(SMALL, x, y, seed, torch.float64)]
    sizes = [layer.numel() for layer in flat]

    def loss(vector):
        parts = [part.view(layer.shape) for part, layer in zip(vector.split(sizes), flat, strict=True)]
        i = seeds.index(seed)
        return loss_of(parts, x[i : i + 1], y[i : i + 1]).sum()

    hessian = torch.func.hessian(loss)(torch.cat([layer.flatten() for layer in flat]))
    return torch.linalg.eigvalsh(hessian)[-1].item()


wrong = abs(sharp[0, 0].item() / largest_eigenvalue(seeds[0]) - 1)
record.metric("probe.error", wrong)
print(f"power iteration is off by {wrong:.0e}")

# %% [markdown]
# ### Adam

# %%
ADAM_RATES = {"adam_50": 0.05, "adam_20": 0.02}
losses, sharp, preconditioned = train(
    lambda p, r: Adam(p, lr=1.0, extensions=[Rates(r)]), list(ADAM_RATES.values()), SMALL, x, y, STEPS, EVERY
)
for i, (name, alpha) in enumerate(ADAM_RATES.items()):
    ratio = column(preconditioned, i) * alpha / EDGE
    summarize(name, column(losses, i), ratio, EVERY)
    curves(name, column(losses, i), ratio, EVERY)
    raw = column(sharp, i)[1:]
    arrivals = [int((line >= 1).double().argmax()) for line in ratio.T]
    record.metric(f"{name}.advances", [math.log(raw[-1, j] / raw[k, j]) for j, k in enumerate(arrivals)])
    record.curve(f"{name}/raw", [EVERY * (k + 1) for k in range(len(raw))], raw.T, "step", "sharpness")

# %% [markdown]
# ### Images
#
# The first images of a data set, one-hot targets, float32, the same kind of network.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
count = SETTINGS["images"]
pixels = F.avg_pool2d(dataset.images("train", "cpu")[:count], SETTINGS["pool"]).flatten(1)
pixels = (pixels - pixels.mean(0)) / (pixels.std() + 1e-8)
targets = F.one_hot(dataset.y_train[:count].long(), dataset.classes).float()
x_images, y_images = (part.expand(len(seeds), -1, -1).contiguous() for part in (pixels, targets))
rates, image_steps = SETTINGS["image_rates"], SETTINGS["image_steps"]
every = image_steps // SETTINGS["points"]
losses, sharp, _ = train(plain, rates, SETTINGS["widths"], x_images, y_images, image_steps, every, torch.float32)
for i, (name, alpha) in enumerate(zip(("images_large", "images_middle", "images_small"), rates, strict=True)):
    ratio = column(sharp, i) * alpha / 2
    summarize(name, column(losses, i), ratio, every)
    curves(name, column(losses, i), ratio, every)
    record.metric(f"{name}.sharpest", column(sharp, i).max(0).values.tolist())
record.metric("images_large.flow_over_edge", (column(sharp, 2).max(0).values * rates[0] / 2).tolist())

# %%
path_of_record = records.write(record, out)
