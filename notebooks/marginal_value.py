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
# # The marginal value of adaptive methods: what was run
#
# The experiments behind the chapter on Wilson, Roelofs, Stern, Srebro & Recht (2017). The claims that they decide
# were fixed before the run, in `book/claims/marginal_value.yaml`. The first three experiments are exact: float64,
# full batch. The last one trains networks.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, more of it
seeds = [0, 1, 2]  # of the constructed problems and of the grid; the retrained networks have seeds of their own
device = "cpu"
out = "marginal_value.json"  # where the record goes, relative to the working directory

# %%
import math

import torch
from torch.nn import functional as F

from experiments import data, models, records
from optimizers import SGD, Adagrad, Adam, RMSprop

SETTINGS = {  # the first learning rates of the grids are powers of √10
    "quick": {"dataset": "digits", "hidden": 32, "examples": 1150, "validation": 287, "batch": 50, "epochs": 4},
    "standard": {
        "dataset": "mnist",
        "hidden": 64,
        "examples": 5000,
        "validation": 5000,
        "batch": 100,
        "epochs": 20,
    },
    "paper": {
        "dataset": "mnist",
        "hidden": 256,
        "examples": 50000,
        "validation": 10000,
        "batch": 100,
        "epochs": 30,
    },
}[scale]
record = records.new("marginal_value", scale, {"seeds": seeds, "device": device, **SETTINGS})
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1 · One example, two weights
#
# $\tfrac12(x^\top\theta - 1)^2$ with $x = (2, \tfrac12)$: the solutions are a line. From 0, SGD should go along
# $x$, Adam along the diagonal.


# %%
def fit(make, gradient, start, steps, decay=1.0):
    """θ_0, …, θ_T under a full-batch gradient; the learning rate is multiplied by `decay` after each step."""
    theta = start.clone().requires_grad_()
    optimizer = make([theta])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    path = [theta.detach().clone()]
    for _ in range(steps):
        theta.grad = gradient(theta.detach())
        optimizer.step()
        schedule.step()
        path.append(theta.detach().clone())
    return path


RULES = {  # how to make it, and the decay of the learning rate
    "SGD": (lambda p: SGD(p, lr=0.5), 1.0),
    "Momentum": (lambda p: SGD(p, lr=0.3, momentum=0.9), 1.0),
    "Adam": (lambda p: Adam(p, lr=0.02, eps=1e-12), 0.985),
    "RMSprop": (lambda p: RMSprop(p, lr=0.01, eps=1e-12), 0.985),
    "Adagrad": (lambda p: Adagrad(p, lr=0.1, eps=1e-12), 1.0),
}
x = torch.tensor([2.0, 0.5])
ends = {"SGD": x / (x @ x), "Adam": x.sign() / x.abs().sum()}
for name, make in (("SGD", lambda p: SGD(p, lr=0.02)), ("Adam", RULES["Adam"][0])):
    path = fit(make, lambda theta: (x @ theta - 1) * x, torch.zeros(2), 1200, RULES[name][1])
    record.metric(f"one.{name}", (path[-1] - ends[name]).abs().max())
    for i in (0, 1):
        record.curve(f"one/{name}/θ{i + 1}", range(101), [[p[i].item() for p in path[:101]]], "step", f"θ{i + 1}")
    print(f"{name:5s} ends at ({path[-1][0]:.4f}, {path[-1][1]:.4f})")

# %% [markdown]
# ## 2 · The construction
#
# Label ±1; features: the label, two ones, and a block of five for each example of its own, in which one is set if
# the label is +1 and all five if it is −1. All seeds are one parameter of shape (seeds, d).


# %%
def problem(positive, negative):
    """X of shape (seeds, n, 3 + 5 n) and y of shape (seeds, n), the examples in an order of the seed's own."""
    n = positive + negative
    labels = torch.cat([torch.ones(positive), -torch.ones(negative)])
    y = torch.stack([labels[torch.randperm(n, generator=torch.Generator().manual_seed(seed))] for seed in seeds])
    private = (torch.arange(5) == 0) | (y[..., None] < 0)  # (seeds, n, 5)
    blocks = torch.einsum("snk,nm->snmk", private.double(), torch.eye(n)).flatten(2)
    return torch.cat([y[..., None], torch.ones(len(seeds), n, 2), blocks], dim=2), y


def solve(name, features, y, steps=1200):
    """Where the rule ends from 0, shape (seeds, d)."""
    make, decay = RULES[name] if isinstance(name, str) else name

    def gradient(theta):
        residual = torch.einsum("snd,sd->sn", features, theta) - y
        return torch.einsum("snd,sn->sd", features, residual) / y.shape[1]

    return fit(make, gradient, torch.zeros(features.shape[0], features.shape[2]), steps, decay)[-1]


def new_labels(share, count=2000):
    generators = [torch.Generator().manual_seed(100 + seed) for seed in seeds]
    return torch.stack([torch.where(torch.rand(count, generator=g) < share, 1.0, -1.0) for g in generators])


def error_rate(theta, labels, turn=None):
    """Share of errors on new examples. Of their own blocks no weight was learned, so only three features count."""
    points = torch.zeros(*labels.shape, theta.shape[1])
    points[..., 0], points[..., 1:3] = labels, 1.0
    points = points if turn is None else points @ turn
    return (torch.einsum("smd,sd->sm", points, theta) * labels <= 0).double().mean(1)


features, y = problem(36, 24)
sign = torch.einsum("snd,sn->sd", features, y).sign()
gram = torch.einsum("snd,smd->snm", features, features)
shortest = torch.einsum("snd,sn->sd", features, torch.linalg.solve(gram, y))
labels = new_labels(0.6)
negatives = (labels < 0).double().mean(1)
record.metric("error.negatives", negatives)
record.metric("lemma.c", (torch.einsum("snd,sd->sn", features, sign) * y).mean())
for name in RULES:
    theta = solve(name, features, y)
    record.metric(f"error.{name}", error_rate(theta, labels))
    loss = 0.5 * (torch.einsum("snd,sd->sn", features, theta) - y).square().mean(1)
    record.metric(f"training_loss.{name}", loss)
    if name in ("SGD", "Momentum"):
        record.metric(f"minimum_norm.{name}", (theta - shortest).abs().amax(1))
    else:
        record.metric(f"lemma.{name}", (theta - sign / 4).abs().amax(1))
        record.metric(f"excess.{name}", error_rate(theta, labels) - negatives)
    print(f"{name:9s} training loss {loss.max():.0e}, test error {error_rate(theta, labels).mean():.4f}")
print(f"share of negatives {negatives.mean():.4f}")

balanced, balanced_y = problem(31, 29)
record.metric("half.Adam", error_rate(solve("Adam", balanced, balanced_y), new_labels(0.51)))
record.metric("half.SGD", error_rate(solve("SGD", balanced, balanced_y), new_labels(0.51)))

# %% [markdown]
# ## 3 · Turn the features, or enlarge ε
#
# A rotation changes neither lengths nor angles between examples. It is applied a little at a time: $e^{sA}$ with a
# random skew-symmetric $A$.

# %%
d = features.shape[2]
noise = torch.randn(d, d, generator=torch.Generator().manual_seed(7))
skew = (noise - noise.T) / math.sqrt(d)
amounts = [0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
errors = {"Adam": [], "SGD": []}
for amount in amounts:
    turn = torch.linalg.matrix_exp(amount * skew)
    for name, values in errors.items():
        if name == "Adam" or amount == 1.0:
            values.append(error_rate(solve(name, features @ turn, y, 500), labels, turn))
record.curve("rotation/Adam", amounts, torch.stack(errors["Adam"], 1).tolist(), "amount of rotation", "test error")
record.metric("rotation.Adam", errors["Adam"][-1])
record.metric("rotation.SGD", errors["SGD"][-1])
record.metric("rotation.excess", errors["Adam"][-1] - negatives)

epsilons = [10.0**k for k in range(-8, 3)]
by_epsilon = []
for eps in epsilons:
    # Where ε rules, the step is α m / ε: the learning rate grows with it.
    lr, decay = (0.02, 0.98) if eps < 1e-4 else (0.02 + 0.5 * eps, 1.0)
    rule = (lambda p, lr=lr, eps=eps: Adam(p, lr=lr, eps=eps), decay)
    by_epsilon.append(error_rate(solve(rule, features, y, 500), labels))
record.curve("epsilon/Adam", epsilons, torch.stack(by_epsilon, 1).tolist(), "ε", "test error")
record.metric("epsilon.Adam", by_epsilon[8])  # ε = 1
record.metric("epsilon.excess", by_epsilon[8] - negatives)
print("rotated:", " ".join(f"{e.mean():.3f}" for e in errors["Adam"]))
print("ε:      ", " ".join(f"{e.mean():.3f}" for e in by_epsilon))

# %% [markdown]
# ## 4 · Networks
#
# Every learning rate is a parameter group, all seeds of it are one tensor, so that one optimizer trains them all.

# %%
torch.set_default_dtype(torch.float32)
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
inputs, hidden, classes = dataset.x_train[0].numel(), SETTINGS["hidden"], dataset.classes
examples, validation, batch = SETTINGS["examples"], SETTINGS["validation"], SETTINGS["batch"]
x_all, y_all = dataset.images("train", device).flatten(1), dataset.labels("train", device)
x_train, y_train = x_all[:examples], y_all[:examples]
x_val, y_val = x_all[examples : examples + validation], y_all[examples : examples + validation]
x_test, y_test = dataset.images("test", device).flatten(1), dataset.labels("test", device)
ARMS = {  # how to make it, and the first of six learning rates
    "Momentum": (lambda groups: SGD(groups, momentum=0.9), -4),
    "Adam": (lambda groups: Adam(groups), -6),
    "RMSprop": (lambda groups: RMSprop(groups), -7),
    "Adagrad": (lambda groups: Adagrad(groups), -4),
    "Adam, ε = 0.01": (lambda groups: Adam(groups, eps=1e-2), -6),
}


def initial(run_seeds):
    """The flattened weights of one network per seed, shape (seeds, n)."""
    nets = [models.mlp(inputs, (hidden,), classes, seed=seed) for seed in run_seeds]
    flat = [torch.nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets]
    return torch.stack(flat).to(device)


def scores(theta, x):
    """theta of shape (rates, seeds, n), x of (seeds, b, inputs) -> (rates, seeds, b, classes)."""
    w1, b1, w2, b2 = theta.split([hidden * inputs, hidden, classes * hidden, classes], dim=-1)
    w1, w2 = w1.unflatten(-1, (hidden, inputs)), w2.unflatten(-1, (classes, hidden))
    h = (torch.einsum("rsif,sbf->rsbi", w1, x) + b1.unsqueeze(-2)).relu()
    return torch.einsum("rsoi,rsbi->rsbo", w2, h) + b2.unsqueeze(-2)


def cross_entropy(logits, y):
    each = F.cross_entropy(logits.flatten(0, 2), y.expand(logits.shape[:-1]).flatten(), reduction="none")
    return each.view(logits.shape[:-1]).mean(-1)


def train(make, lrs, run_seeds):
    """Train one network per learning rate and seed; returns the weights, shape (rates, seeds, n)."""
    start = initial(run_seeds)
    groups = [{"params": [start.clone().requires_grad_()], "lr": lr} for lr in lrs]
    thetas = [group["params"][0] for group in groups]
    optimizer = make(groups)
    per_epoch = examples // batch
    total = SETTINGS["epochs"] * per_epoch
    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / total)))
    generators = [torch.Generator().manual_seed(seed) for seed in run_seeds]
    for step in range(total):
        if step % per_epoch == 0:
            order = torch.stack([torch.randperm(examples, generator=g) for g in generators]).to(device)
        indices = order[:, step % per_epoch * batch :][:, :batch]
        optimizer.zero_grad()
        cross_entropy(scores(torch.stack(thetas), x_train[indices]), y_train[indices]).sum().backward()
        optimizer.step()
        cosine.step()
    return torch.stack(thetas).detach()


@torch.no_grad()
def evaluate(theta, x, y):
    """Loss (infinite where a run diverged) and share of errors, each of shape (rates, seeds)."""
    logits = torch.cat([scores(theta, part.expand(theta.shape[1], *part.shape)) for part in x.split(500)], dim=2)
    return cross_entropy(logits, y).double().nan_to_num(nan=math.inf), (logits.argmax(-1) != y).double().mean(-1)


# %%
fresh = range(1000, 1012)
error = {}
for name, (make, first) in ARMS.items():
    lrs = [10 ** (k / 2) for k in range(first, first + 6)]
    tried, _ = evaluate(train(make, lrs, seeds), x_val, y_val)
    best = lrs[int(tried.mean(1).argmin())]
    theta = train(make, [best], fresh)
    train_loss, (test_loss, wrong) = evaluate(theta, x_train, y_train)[0], evaluate(theta, x_test, y_test)
    key = name.replace("Adam, ε = 0.01", "Adam_eps")
    error[key] = 100 * wrong[0]
    record.metric(f"networks.{key}.lr", best)
    record.metric(f"networks.{key}.training_loss", train_loss[0])
    record.metric(f"networks.{key}.test_loss", test_loss[0])
    record.metric(f"networks.{key}.error", error[key])
    record.curve(f"networks/{name}", lrs, tried.T.tolist(), "α", "validation loss")
    print(f"{name:15s} best α = {best:.4f}: training loss {train_loss.mean():.4f}", end=", ")
    print(f"test error {error[key].mean():.2f} %")
    if name == "Momentum":
        start_loss, _ = evaluate(initial(fresh)[None], x_train, y_train)
        record.metric("networks.sgd_over_start", train_loss[0] / start_loss[0])
    else:
        record.metric(f"networks.difference.{key}", error[key] - error["Momentum"])

# %%
path_of_record = records.write(record, out)
