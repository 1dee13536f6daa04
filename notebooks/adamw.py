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
# # AdamW: what was run
#
# The experiments behind the chapter on decoupled weight decay (Loshchilov & Hutter 2019). The claims that they
# decide stand in `book/claims/adamw.yaml`. The first three experiments are exact, or nearly so: float64, no data.
# The last ones train a grid of networks at once.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, more of it
seeds = [0, 1, 2, 3, 4, 5]  # of the grid and of the noise; the retrained networks have seeds of their own
device = "cpu"
out = "adamw.json"  # where the record goes, relative to the working directory

# %%
import math

import torch
from torch.nn import functional as F

from experiments import data, models, problems, records
from optimizers import SGD, SGDW, Adam, AdamW, Chain, Place, Stage
from optimizers.weight_decay import DecoupledWeightDecay

SETTINGS = {  # the grids begin at α = 2^alpha, λ' = 10^(l2 / 2) for Adam, λ = 10^(decay / 2) for AdamW; so many α
    "quick": {
        **{"dataset": "digits", "hidden": 32, "examples": 128, "validation": 1309, "batch": 32, "epochs": 25},
        **{"alpha": -8, "alphas": 6, "l2": -8, "decay": -7},
    },
    "standard": {
        **{"dataset": "mnist", "hidden": 64, "examples": 500, "validation": 5000, "batch": 50, "epochs": 40},
        **{"alpha": -13, "alphas": 9, "l2": -8, "decay": -9},
    },
    "paper": {
        **{"dataset": "mnist", "hidden": 256, "examples": 10000, "validation": 10000, "batch": 128, "epochs": 60},
        **{"alpha": -13, "alphas": 8, "l2": -9, "decay": -10},
    },
}[scale]
record = records.new("adamw", scale, {"seeds": seeds, "device": device, **SETTINGS})

# %% [markdown]
# ## 1 · On the bowl: SGD's penalty is decay, Adam's cancels
#
# With plain SGD the L2 penalty with $\lambda' = \lambda/\alpha$ and decay by $\lambda$ should give one path, noise
# or not. On the bowl, of curvatures $h$, the penalty multiplies the gradient of each coordinate by the constant
# $1 + \lambda'/h_i$, and Adam does not see constants: its path should be the one without a penalty.


# %%
def path(make, steps=100, noise=0.0):
    """θ_0, …, θ_T on the bowl, shape (T + 1, 2)."""
    bowl = problems.Quadratic()
    generator = torch.Generator().manual_seed(0)
    theta = bowl.initial().requires_grad_()
    optimizer = make([theta])
    points = [theta.detach().clone()]
    for _ in range(steps):
        kick = noise * torch.randn(2, generator=generator, dtype=torch.float64)
        theta.grad = bowl.gradient(theta.detach()) + kick
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


def apart(one, other):
    """Largest distance between corresponding points, in units of θ."""
    return (one - other).abs().max().item()


lr, penalty = 0.02, 3.0
coupled = path(lambda p: SGD(p, lr=lr, weight_decay=penalty), noise=1.0)
decoupled = path(lambda p: SGDW(p, lr=lr, weight_decay=lr * penalty), noise=1.0)
record.metric("sgd.deviation", apart(coupled, decoupled))
print(f"SGD with L2 and SGDW are {apart(coupled, decoupled):.0e} apart")

adam = {"lr": 0.05, "eps": 1e-16}
plain = path(lambda p: Adam(p, **adam))
with_l2 = {c: path(lambda p, c=c: Adam(p, weight_decay=c, **adam)) for c in (0.1, 1.0, 10.0)}
record.metric("bowl.adam_l2", max(apart(plain, points) for points in with_l2.values()))
with_decay = path(lambda p: AdamW(p, weight_decay=0.01, decay="schedule", **adam))
record.metric("bowl.adamw", apart(plain, with_decay))
record.metric("bowl.sgd_l2", apart(path(lambda p: SGD(p, lr=lr)), path(lambda p: SGD(p, lr=lr, weight_decay=10.0))))
for name in ("bowl.adam_l2", "bowl.adamw", "bowl.sgd_l2"):
    print(f"{name}: the path moves by {record.get(name):.1e}")

steps = list(range(0, 101))
for strength in (0.0, 1.0, 10.0):
    for name, rule, options in [
        ("Adam", Adam, {**adam, "weight_decay": strength}),
        ("AdamW", AdamW, {**adam, "weight_decay": 0.01 * strength, "decay": "schedule"}),
    ]:
        points = path(lambda p, rule=rule, options=options: rule(p, **options))
        record.curve(f"bowl/{name}/{strength:g}", steps, [points[:, 0].tolist()], "step", "θ₁")

# %% [markdown]
# ## 2 · A weight that sees only noise
#
# Gradients $s\,n_t$ with normal $n_t$: the loss has no wish for this weight, so a regularizer should take it to 0.
# AdamW should leave $(1-\alpha\lambda')^T$ of it on average, whatever $s$; Adam with L2 about
# $\exp(-\alpha\lambda' T/s)$.

# %%
deviations = torch.tensor([[0.1], [1.0], [10.0]], dtype=torch.float64)
lr, penalty, horizon, weights = 1e-3, 0.1, 3000, 200
every = horizon // 100


def noisy(make):
    """Mean weight per seed, deviation and time: shape (seeds, 3, 101). All seeds are one tensor."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    w = torch.ones(len(seeds), 3, weights, dtype=torch.float64, requires_grad=True)
    optimizer = make([w])
    means = [w.detach().mean(-1)]
    for step in range(1, horizon + 1):
        noise = [torch.randn(3, weights, generator=g, dtype=torch.float64) for g in generators]
        w.grad = deviations * torch.stack(noise)
        optimizer.step()
        if step % every == 0:
            means.append(w.detach().mean(-1))
    return torch.stack(means, -1)


means = {
    "adam_l2": noisy(lambda p: Adam(p, lr=lr, weight_decay=penalty)),
    "adamw": noisy(lambda p: AdamW(p, lr=lr, weight_decay=lr * penalty, decay="schedule")),
}
for name, mean in means.items():
    for i, deviation in enumerate(("small", "unit", "large")):
        record.metric(f"noise.{name}.{deviation}", mean[:, i, -1])
        record.curve(f"noise/{name}/{deviation}", range(0, horizon + 1, every), mean[:, i], "step", "mean weight")
    print(f"{name:8s} mean weight at s = 0.1, 1, 10:", "  ".join(f"{x:.4f}" for x in mean[:, :, -1].mean(0)))

exact = (1 - lr * penalty) ** horizon
shrunk = {s: math.exp(-lr * penalty * horizon / s) for s in (0.1, 1.0, 10.0)}
record.metric("noise.exact", exact)
record.metric("noise.predicted_small", shrunk[0.1])
record.metric("noise.predicted_large", shrunk[10.0])
record.metric("noise.adamw_worst", (means["adamw"][:, :, -1] / exact - 1).abs().amax(1))
record.metric("noise.l2_large_error", means["adam_l2"][:, 2, -1] / shrunk[10.0] - 1)
record.metric("noise.l2_large_over_unit", means["adam_l2"][:, 2, -1] / means["adam_l2"][:, 1, -1])
print(f"closed forms: AdamW {exact:.4f}; Adam with L2", "  ".join(f"{x:.4f}" for x in shrunk.values()))

# %% [markdown]
# And a weight that sees only signal: under a constant gradient Adam's direction is ±1, so that decay by λ should
# stop the weight at $\alpha/\lambda$, however small or large the gradient is.

# %%
w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
optimizer = AdamW([w], lr=0.01, weight_decay=0.02, decay="schedule")
for _ in range(2000):
    w.grad = torch.full_like(w, -3.0)
    optimizer.step()
record.metric("constant.limit", w.item())
record.metric("constant.predicted", 0.01 / 0.02)
print(f"constant gradient: the weight stops at {w.item():.6f}")

# %% [markdown]
# ## 3 · A fixed preconditioner
#
# Decay by λ against the penalty $c\,\lVert\theta\odot\sqrt s\rVert^2$, with $c = \lambda/(2\alpha)$ as the
# derivation has it, and with one more division by α.


# %%
class Preconditioner(Stage):
    """d_t = g_t / s, with s a number of the parameter group."""

    place = Place.DIRECTION
    ranges = {"s": "(0, inf)"}

    def __init__(self, s=1.0):
        super().__init__(s=s)

    @staticmethod
    def update(grad, s):
        return grad / s


def preconditioned(coefficient, decay, lr=0.03, s=(1.0, 4.0)):
    bowl = problems.Quadratic()
    thetas = [x.reshape(1).clone().requires_grad_() for x in bowl.initial()]
    groups = [{"params": [theta], "s": scale} for theta, scale in zip(thetas, s, strict=True)]
    stages = [Preconditioner(), DecoupledWeightDecay(decay, "schedule")]
    optimizer = Chain(groups, stages, lr=lr)
    points = []
    for _ in range(100):
        optimizer.zero_grad()
        theta = torch.cat(thetas)
        scaled = theta * torch.tensor(s, dtype=torch.float64).sqrt()
        (bowl.loss(theta) + coefficient * (scaled**2).sum()).backward()
        optimizer.step()
        points.append(torch.cat(thetas).detach().clone())
    return torch.stack(points)


lr, decay = 0.03, 0.01
reference = preconditioned(0.0, decay)
record.metric("fixed.derived", apart(reference, preconditioned(decay / (2 * lr), 0.0)))
record.metric("fixed.printed", apart(reference, preconditioned(decay / lr / (2 * lr), 0.0)))
print(
    f"λ/(2α): {record.get('fixed.derived'):.0e} apart;  λ'/(2α), λ' = λ/α: {record.get('fixed.printed'):.2f} apart"
)

# %% [markdown]
# ## 4 · A grid of learning rates and decays
#
# Networks with one hidden layer on a small training set. Every cell of the grid is a parameter group with its own
# learning rate and decay; all seeds of a cell are one tensor, so a grid is trained at once. The cosine schedule
# multiplies the learning rate of both methods, and AdamW's decay with it.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
features, hidden, classes = dataset.x_train[0].numel(), SETTINGS["hidden"], dataset.classes
examples, validation, batch = SETTINGS["examples"], SETTINGS["validation"], SETTINGS["batch"]
x_all, y_all = dataset.images("train", device).flatten(1), dataset.labels("train", device)
x_train, y_train = x_all[:examples], y_all[:examples]
x_val, y_val = x_all[examples : examples + validation], y_all[examples : examples + validation]
x_test, y_test = dataset.images("test", device).flatten(1), dataset.labels("test", device)
GRIDS = {
    "adam_l2": (lambda groups: Adam(groups), SETTINGS["alpha"], SETTINGS["l2"]),
    "adamw": (lambda groups: AdamW(groups, decay="schedule"), SETTINGS["alpha"], SETTINGS["decay"]),
}


def initial(run_seeds):
    """The flattened weights of one network per seed, shape (seeds, n)."""
    nets = [models.mlp(features, (hidden,), classes, seed=seed) for seed in run_seeds]
    flat = [torch.nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets]
    return torch.stack(flat).to(device)


def logits(theta, x):
    """theta of shape (cells, seeds, n), x of (seeds, b, features) -> (cells, seeds, b, classes)."""
    sizes = [hidden * features, hidden, classes * hidden, classes]
    w1, b1, w2, b2 = theta.split(sizes, dim=-1)
    w1, w2 = w1.unflatten(-1, (hidden, features)), w2.unflatten(-1, (classes, hidden))
    h = torch.einsum("csif,sbf->csbi", w1, x) + b1.unsqueeze(-2)
    return torch.einsum("csoi,csbi->csbo", w2, h.relu()) + b2.unsqueeze(-2)


def cross_entropy(theta, x, y):
    """Mean loss per cell and seed."""
    scores = logits(theta, x)
    each = F.cross_entropy(scores.flatten(0, 2), y.expand(scores.shape[:-1]).flatten(), reduction="none")
    return each.view(scores.shape[:-1]).mean(-1)


def train(make, cells, run_seeds):
    """Train one network per cell (α, decay) and seed; returns the weights, shape (cells, seeds, n)."""
    start = initial(run_seeds)
    groups = [{"params": [start.clone().requires_grad_()], "lr": lr, "weight_decay": decay} for lr, decay in cells]
    thetas = [group["params"][0] for group in groups]
    optimizer = make(groups)
    total = SETTINGS["epochs"] * (examples // batch)
    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / total)))
    generators = [torch.Generator().manual_seed(seed) for seed in run_seeds]
    for _ in range(SETTINGS["epochs"]):
        order = torch.stack([torch.randperm(examples, generator=g) for g in generators]).to(device)
        for indices in order[:, : examples // batch * batch].split(batch, dim=1):
            optimizer.zero_grad()
            cross_entropy(torch.stack(thetas), x_train[indices], y_train[indices]).sum().backward()
            optimizer.step()
            cosine.step()
    return torch.stack(thetas).detach()


@torch.no_grad()
def evaluate(theta, x, y):
    """Loss and share of errors per cell and seed."""
    networks = theta.shape[1]
    x = x.expand(networks, *x.shape)
    parts = [logits(theta, piece) for piece in x.split(500, dim=1)]
    scores = torch.cat(parts, dim=2)
    each = F.cross_entropy(scores.flatten(0, 2), y.expand(scores.shape[:-1]).flatten(), reduction="none")
    return each.view(scores.shape[:-1]).mean(-1), (scores.argmax(-1) != y).double().mean(-1)


# %%
def correlation(grid, cells=10):
    """Of log α and log λ among the best cells of a grid of losses, shape (decays, αs)."""
    best = grid.flatten().argsort()[:cells]
    return torch.corrcoef(torch.stack([best % grid.shape[1], best // grid.shape[1]]).double())[0, 1].item()


def slope(grid, columns=3):
    """How log λ of the best decay grows with log α, over the α at which the best decay does best."""
    x = grid.amin(0).argsort()[:columns].double()
    y = grid.argmin(0)[x.long()].double()
    steps = ((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()
    return steps.item() * math.log(10) / 2 / math.log(2)  # a row is half a decade, a column a factor of 2


def mean_of(key):
    return torch.tensor(record.get(key)).mean()


# %%
columns, rows = SETTINGS["alphas"], 6
chosen, without = {}, {}
for name, (make, first_alpha, first_decay) in GRIDS.items():
    alphas = [2.0**k for k in range(first_alpha, first_alpha + columns)]
    decays = [10 ** (k / 2) for k in range(first_decay, first_decay + rows)]
    cells = [(alpha, decay) for decay in [0.0, *decays] for alpha in alphas]
    loss, _ = evaluate(train(make, cells, seeds), x_val, y_val)
    loss = loss.double().nan_to_num(nan=math.inf).view(1 + rows, columns, len(seeds))  # decay × α × seeds
    best = int(loss[1:].mean(-1).argmin())
    chosen[name] = (alphas[best % columns], decays[best // columns])
    without[name] = (alphas[int(loss[0].mean(-1).argmin())], 0.0)
    record.metric(f"grid.{name}.alpha", chosen[name][0])
    record.metric(f"grid.{name}.decay", chosen[name][1])
    record.metric(f"grid.{name}.correlation", [correlation(grid) for grid in loss[1:].unbind(-1)])
    record.metric(f"grid.{name}.slope", [slope(grid) for grid in loss[1:].unbind(-1)])
    for i, decay in enumerate([0.0, *decays]):
        record.curve(f"grid/{name}/{decay:.2e}", alphas, loss[i].T.tolist(), "α", "validation loss")
    print(f"{name}: best at α = {chosen[name][0]:.1e} and decay {chosen[name][1]:.1e}", end="; ")
    print(f"correlation {mean_of(f'grid.{name}.correlation'):+.2f}, slope {mean_of(f'grid.{name}.slope'):+.2f}")
    for decay, row in zip([0.0, *decays], loss.mean(-1).tolist(), strict=True):
        print(f"{decay:8.1e}", " ".join(f"{x:7.3f}" for x in row))

# %% [markdown]
# ## 5 · The best cells, again
#
# Each method at its best cell, and without any decay, with fresh seeds, on the test set.

# %%
fresh = range(1000, 1016)
arms = {name: (GRIDS[name][0], chosen[name]) for name in GRIDS} | {"none": (GRIDS["adamw"][0], without["adamw"])}
test_loss, test_error = {}, {}
for name, (make, cell) in arms.items():
    loss, error = evaluate(train(make, [cell], fresh), x_test, y_test)
    test_loss[name], test_error[name] = loss[0].double(), 100 * error[0]
    record.metric(f"fresh.{name}.loss", test_loss[name])
    record.metric(f"fresh.{name}.error", test_error[name])
    print(f"{name:8s} test loss {test_loss[name].mean():.4f}, test error {test_error[name].mean():.2f} %")
record.metric("fresh.loss_ratio", (test_loss["adamw"] / test_loss["adam_l2"]).log())
record.metric("fresh.error_difference", test_error["adamw"] - test_error["adam_l2"])
record.metric("fresh.decay_helps", (test_loss["adamw"] / test_loss["none"]).log())

# %%
path_of_record = records.write(record, out)
