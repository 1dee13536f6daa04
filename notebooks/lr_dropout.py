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
# # Learning-rate dropout: what was run
#
# The experiments behind the chapter on learning-rate dropout (Lin et al. 2019). The claims that they decide stand
# in `book/claims/lr_dropout.yaml`. The first three experiments are exact, up to the sample: float64, no data. The
# last one trains networks.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, more of it
seeds = [0, 1, 2]  # of the masks, and of the grid of learning rates; the retrained networks have seeds of their own
device = "cpu"
out = "lr_dropout.json"  # where the record goes, relative to the working directory

# %%
import itertools
import math

import torch
from torch.nn import functional as F

from experiments import data, models, problems, records
from optimizers import SGD, Adam, GradientDropout, GradientNoise, LearningRateDropout

SETTINGS = {  # the grids begin at α = 2^adam and α = 2^momentum
    "quick": {
        **{"dataset": "digits", "hidden": 32, "examples": 128, "validation": 1309, "batch": 32, "epochs": 40},
        **{"adam": -10, "momentum": -9, "fresh": 8},
    },
    "standard": {
        **{"dataset": "mnist", "hidden": 64, "examples": 2000, "validation": 5000, "batch": 50, "epochs": 40},
        **{"adam": -12, "momentum": -11, "fresh": 8},
    },
    "paper": {
        **{"dataset": "mnist", "hidden": 256, "examples": 50000, "validation": 10000, "batch": 128, "epochs": 200},
        **{"adam": -13, "momentum": -11, "fresh": 8},
    },
}[scale]
P = 0.5
record = records.new("lr_dropout", scale, {"seeds": seeds, "device": device, "p": P, **SETTINGS})

# %% [markdown]
# ## 1 · A constant gradient
#
# How long is the mean step, in units of the whole one? Learning-rate dropout should make p of it. Gradient dropout
# should make p of it for momentum, and √p for Adam, whose root of the mean square shrinks, too.


# %%
def mean_step(rule, extension, **options):
    """Mean step per seed over steps 1,001 to 3,000, over that of the rule without dropout."""
    params = [torch.zeros(500, dtype=torch.float64, requires_grad=True) for _ in seeds]
    for p in params:
        p.grad = torch.full_like(p, -3.0)
    extensions = [] if extension is None else [extension]
    optimizer = rule(
        params, lr=0.01, extensions=extensions, fused=True, **options
    )  # every parameter has its own mask
    for t in range(3000):
        if t == 1000:
            before = [p.detach().clone() for p in params]
        optimizer.step()
    return torch.stack([(p.detach() - b).mean() / 2000 for p, b in zip(params, before, strict=True)])


for name, rule, options in (("adam", Adam, {}), ("momentum", SGD, {"momentum": 0.9})):
    whole = mean_step(rule, None, **options)
    for keep, kind in itertools.product((0.5, 0.9), ("lrd", "gradient")):
        extension = LearningRateDropout(keep) if kind == "lrd" else GradientDropout(keep)
        share = mean_step(rule, extension, **options) / whole
        record.metric(f"constant.{name}_{kind}_{str(keep)[2:]}", share)
        print(f"{name:8s} {kind:8s} p = {keep}: {share.mean():.4f} of the whole step (√p = {math.sqrt(keep):.4f})")

# %% [markdown]
# ## 2 · Two saddles
#
# $f = xy$ from $(1, 1)$ and $f = x^2 - y^2$ from $(1, 0)$: plain descent goes straight into the saddle and stays.
# The two functions are one, but for a turn by 45° and a factor of two. 1,000 runs are the rows of one parameter.

# %%
LR, STEPS = 0.05, 400
SADDLES = {  # start, gradient, and the distance from the line that leads into the saddle
    "turned": ((1.0, 1.0), lambda z: z.flip(1), lambda z: (z[..., 0] - z[..., 1]).abs() / math.sqrt(2)),
    "axis": ((1.0, 0.0), lambda z: z * torch.tensor([2.0, -2.0], dtype=torch.float64), lambda z: z[..., 1].abs()),
}


def paths(saddle, extensions, copies=1000, steps=STEPS):
    """Points of all runs, shape (steps + 1, copies, 2)."""
    start, gradient, _ = SADDLES[saddle]
    z = torch.tensor(start, dtype=torch.float64).repeat(copies, 1).requires_grad_()
    optimizer = SGD([z], lr=LR, extensions=extensions)
    points = [z.detach().clone()]
    for _ in range(steps):
        z.grad = gradient(z.detach())
        optimizer.step()
        points.append(z.detach().clone())
    return torch.stack(points)


ways = {
    "plain": [],
    "5": [LearningRateDropout(0.5)],
    "9": [LearningRateDropout(0.9)],
    "noise": [GradientNoise(1e-4)],
}
left = {}
for (saddle, (_, _, distance)), (way, extensions) in itertools.product(SADDLES.items(), ways.items()):
    points = paths(saddle, extensions, 1 if way == "plain" else 1000)
    far = distance(points) > 1
    left[saddle, way] = far.any(0).double().mean()
    if way != "plain":
        record.metric(f"saddle.{saddle}_{way}", left[saddle, way])
    if far.any():
        steps = far.double().argmax(0)[far.any(0)].double()
        record.metric(f"saddle.steps.{saddle}_{way}", steps.median())
    for i in range(1 if way == "plain" else 6):
        end = int(far[:, i].double().argmax()) if far[:, i].any() else STEPS  # drawn until it has left
        for j, axis in enumerate("xy"):
            line = points[: end + 1 : 1 + end // 100, i, j]
            record.curve(f"saddle/{saddle}/{way}/{i}/{axis}", range(len(line)), [line], "point", axis)
    if (saddle, way) == ("turned", "5"):
        # The mean square of x − y, by the recursion for the two mean squares.
        w, u, p = 0.0, 4.0, 0.5
        for _ in range(30):
            grow, mix = LR**2 * p * (1 + p) / 2, LR**2 * p * (1 - p) / 2
            w, u = (1 + 2 * LR * p + grow) * w + mix * u, (1 - 2 * LR * p + grow) * u + mix * w
        record.metric("saddle.mean_square", (points[30, :, 0] - points[30, :, 1]).square().mean() / w)
    print(f"{saddle:7s} {way:6s} {left[saddle, way]:.1%} leave")
record.metric("saddle.plain", max(left["turned", "plain"], left["axis", "plain"]))

# %% [markdown]
# ## 3 · The bowl, and one step on a quadratic
#
# On the bowl each coordinate moves with probability p: the mean loss should fall like that of a descent that makes
# only p of its steps. The control is the learning rate p α. On a random quadratic, all 2⁸ masks of one step are
# tried.

# %%
bowl, best = problems.Quadratic(), 2 / 21
h = bowl.eigenvalues


def descent(alpha, keep, copies=4000, steps=120):
    """Mean loss after each step."""
    theta = bowl.initial().repeat(copies if keep < 1 else 1, 1).requires_grad_()
    optimizer = SGD([theta], lr=alpha, extensions=[LearningRateDropout(keep)])
    losses = [bowl.loss(theta.detach()).mean().item()]
    for _ in range(steps):
        theta.grad = bowl.gradient(theta.detach())
        optimizer.step()
        losses.append(bowl.loss(theta.detach()).mean().item())
    return losses


curves = {"α": descent(best, 1.0), "α, dropout": descent(best, P), "p α": descent(P * best, 1.0)}
factor = 1 - P + P * (1 - best * h) ** 2
exact = [(0.5 * h * factor**t * bowl.initial() ** 2).sum().item() for t in range(121)]
record.metric("bowl.ratio", curves["α, dropout"][20] / exact[20])
for name, losses in curves.items():
    record.curve(f"bowl/{name}", range(121), [losses], "step", "mean loss")
    below = next(t for t, loss in enumerate(losses) if loss < 1e-3 * losses[0])
    record.metric(f"bowl.steps.{ {'α': 'whole', 'α, dropout': 'dropout', 'p α': 'scaled'}[name] }", below)

generator = torch.Generator().manual_seed(0)
root = torch.randn(8, 8, dtype=torch.float64, generator=generator)
hessian, theta = root @ root.T, torch.randn(8, dtype=torch.float64, generator=generator)
gradient, alpha = hessian @ theta, 0.02
masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)), dtype=torch.float64)
chance = (P**masks * (1 - P) ** (1 - masks)).prod(1)


def quadratic(point):
    return 0.5 * torch.einsum("...i,ij,...j->...", point, hessian, point)


with_dropout = (chance * quadratic(theta - alpha * masks * gradient)).sum() - quadratic(theta)
scaled = quadratic(theta - P * alpha * gradient) - quadratic(theta)
gap = alpha**2 * P * (1 - P) / 2 * (hessian.diagonal() * gradient**2).sum()
record.metric("quadratic.gap_error", ((with_dropout - scaled) / gap - 1).abs())
record.metric("quadratic.dropout_over_scaled", with_dropout / scaled)
print(f"one step: mean change {with_dropout:.3f} with dropout, {scaled:.3f} at p α")

# %% [markdown]
# ## 4 · Networks: a grid of learning rates
#
# Every learning rate is a parameter group, and all seeds of it are one tensor, so one optimizer trains a grid. The
# learning rate falls to a tenth after half of the run and again after three quarters, as in the authors' code.
# Neighbors in the grid differ by a factor of two, which is 1/p: the control, p α without dropout, is in the grid.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
inputs, hidden, classes = dataset.x_train[0].numel(), SETTINGS["hidden"], dataset.classes
examples, validation, batch = SETTINGS["examples"], SETTINGS["validation"], SETTINGS["batch"]
x_all, y_all = dataset.images("train", device).flatten(1), dataset.labels("train", device)
x_train, y_train = x_all[:examples], y_all[:examples]
x_val, y_val = x_all[examples : examples + validation], y_all[examples : examples + validation]
x_test, y_test = dataset.images("test", device).flatten(1), dataset.labels("test", device)
ARMS = {
    "adam": lambda groups: Adam(groups),
    "adam_lrd": lambda groups: Adam(groups, extensions=[LearningRateDropout(P)]),
    "adam_gradient": lambda groups: Adam(groups, extensions=[GradientDropout(P)]),
    "momentum": lambda groups: SGD(groups, momentum=0.9),
    "momentum_lrd": lambda groups: SGD(groups, momentum=0.9, extensions=[LearningRateDropout(P)]),
}
GRIDS = {name: [2.0**k for k in range(SETTINGS[name], SETTINGS[name] + 10)] for name in ("adam", "momentum")}


def scores(theta, x):
    """theta of shape (rates, seeds, n), x of (seeds, b, inputs) -> (rates, seeds, b, classes)."""
    w1, b1, w2, b2 = theta.split([hidden * inputs, hidden, classes * hidden, classes], dim=-1)
    w1, w2 = w1.unflatten(-1, (hidden, inputs)), w2.unflatten(-1, (classes, hidden))
    h = (torch.einsum("rsif,sbf->rsbi", w1, x) + b1.unsqueeze(-2)).relu()
    return torch.einsum("rsoi,rsbi->rsbo", w2, h) + b2.unsqueeze(-2)


def cross_entropy(logits, y):
    each = F.cross_entropy(logits.flatten(0, 2), y.expand(logits.shape[:-1]).flatten(), reduction="none")
    return each.view(logits.shape[:-1]).mean(-1)


@torch.no_grad()
def evaluate(thetas, x, y):
    """Mean loss (infinite where a run diverged) and share of errors, each of shape (rates, seeds)."""
    theta = torch.stack([p.detach() for p in thetas])
    parts = [scores(theta, part.expand(theta.shape[1], *part.shape)) for part in x.split(500)]
    logits = torch.cat(parts, dim=2)
    wrong = (logits.argmax(-1) != y).double().mean(-1)
    return cross_entropy(logits, y).double().nan_to_num(nan=math.inf, posinf=math.inf), wrong


def train(make, lrs, run_seeds, watch=None, points=0):
    """Train one network per learning rate and seed.

    Returns the parameters at the end, the training losses at half time, and the losses on `watch` at `points`
    times.
    """
    nets = [models.mlp(inputs, (hidden,), classes, seed=seed) for seed in run_seeds]
    start = torch.stack([torch.nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets]).to(device)
    thetas = [start.clone().requires_grad_() for _ in lrs]
    optimizer = make([{"params": [theta], "lr": lr} for theta, lr in zip(thetas, lrs, strict=True)])
    per_epoch = examples // batch
    total = SETTINGS["epochs"] * per_epoch
    drops = torch.optim.lr_scheduler.MultiStepLR(optimizer, [total // 2, 3 * total // 4], 0.1)
    generators = [torch.Generator().manual_seed(seed) for seed in run_seeds]
    seen = []
    for step in range(total):
        if step == total // 2:
            half, _ = evaluate(thetas, x_train, y_train)
        if step % per_epoch == 0:
            order = torch.stack([torch.randperm(examples, generator=g) for g in generators]).to(device)
        indices = order[:, step % per_epoch * batch :][:, :batch]
        optimizer.zero_grad()
        cross_entropy(scores(torch.stack(thetas), x_train[indices]), y_train[indices]).sum().backward()
        optimizer.step()
        drops.step()
        if points and (step + 1) % (total // points) == 0:
            seen.append(evaluate(thetas, *watch)[0])
    return thetas, half.cpu(), torch.stack(seen, -1).cpu() if seen else None


# %%
training, validated = {}, {}
for arm, make in ARMS.items():
    lrs = GRIDS[arm.split("_")[0]]
    thetas, training[arm], _ = train(make, lrs, seeds)
    validated[arm] = evaluate(thetas, x_val, y_val)[0].cpu()
    record.curve(f"training/{arm}", lrs, training[arm].T, "α", "training loss at half time")
    record.curve(f"validation/{arm}", lrs, validated[arm].T, "α", "validation loss")
    print(f"{arm:14s} training", " ".join(f"{x:.3f}" for x in training[arm].mean(1)), end="  ")
    print("validation", " ".join(f"{x:.3f}" for x in validated[arm].mean(1)))


# %% [markdown]
# ### Faster?
#
# By the training loss at half time. And at which learning rate does the rule without dropout come to the same loss
# as dropout at α? By interpolation, for four of the five smallest learning rates, where a larger one is faster.


# %%
def ln(one, other):
    return (one / other).log()


worst = []
for name, lrs in GRIDS.items():
    plain, dropped = training[name], training[f"{name}_lrd"]
    i, j = int(plain.mean(1)[1:].argmin()) + 1, int(dropped.mean(1).argmin())
    record.metric(f"speed.{name}_lr", lrs[i])
    record.metric(f"speed.{name}_lrd_lr", lrs[j])
    record.metric(f"speed.{name}_same", ln(dropped[i], plain[i]))
    record.metric(f"speed.{name}_scaled", ln(dropped[i], plain[i - 1]))
    record.metric(f"speed.{name}_tuned", ln(dropped[j], plain[int(plain.mean(1).argmin())]))
    worst.append(ln(plain[i], math.log(classes)))
    shifts = []
    for s in range(len(seeds)):
        y, level = plain[:, s].log(), dropped[:, s].log()
        found = []
        for k in range(1, 5):
            below = [(y[m] - level[k]) / (y[m] - y[m + 1]) + m for m in range(4) if y[m] >= level[k] > y[m + 1]]
            found += [k - float(below[0])] if below else []
        shifts.append(sum(found) / len(found) if found else math.nan)
    record.metric(f"speed.{name}_shift", shifts)
    print(f"{name}: dropout acts like the learning rate divided by 2^{sum(shifts) / len(shifts):.2f}")
record.metric("speed.trained", torch.stack(worst).amax(0))

# %% [markdown]
# ### Less overfitting?
#
# Fresh seeds, test loss at the end. α is the best one with dropout by validation loss.

# %%
fresh = range(1000, 1000 + SETTINGS["fresh"])
POINTS = 40
for name, lrs in GRIDS.items():
    j = int(validated[f"{name}_lrd"].mean(1)[1:].argmin()) + 1
    k = int(validated[name].mean(1).argmin())
    cases = {f"{name}_lrd": ([lrs[j]], f"{name}_lrd"), name: ([lrs[j - 1], lrs[j], lrs[k]], name)}
    if name == "adam":
        cases["adam_gradient"] = ([lrs[int(validated["adam_gradient"].mean(1).argmin())]], "adam_gradient")
    results, steps = {}, SETTINGS["epochs"] * (examples // batch)
    for key, (rates, arm) in cases.items():
        thetas, _, seen = train(ARMS[arm], rates, fresh, (x_test, y_test), POINTS)
        _, wrong = evaluate(thetas, x_test, y_test)
        labels = ["scaled", "same", "tuned"] if len(rates) == 3 else [key]
        for row, label in enumerate(labels):
            results[label] = seen[row]
            label = label if label.startswith(name) else f"{name}_{label}"
            record.metric(f"test.{label}.lr", rates[row])
            record.metric(f"test.{label}.loss", seen[row, :, -1])
            record.metric(f"test.{label}.error", 100 * wrong[row])
            times = [(steps // POINTS) * (n + 1) for n in range(seen.shape[-1])]
            record.curve(f"test/{label}", times, seen[row], "step", "test loss")
            print(f"{label:14s} α = {rates[row]:.5f}: test loss {seen[row, :, -1].mean():.4f}", end=", ")
            print(f"error {100 * wrong[row].mean():.2f} %")
    end = {label: runs[:, -1] for label, runs in results.items()}
    record.metric(f"overfitting.{name}_same", ln(end[f"{name}_lrd"], end["same"]))
    record.metric(f"overfitting.{name}_scaled", ln(end[f"{name}_lrd"], end["scaled"]))
    record.metric(f"overfitting.{name}_tuned", ln(end[f"{name}_lrd"], end["tuned"]))
    if name == "adam":
        record.metric("overfitting.present", ln(end["same"], results["same"].amin(-1)))
        record.metric("overfitting.adam_gradient", ln(end["adam_gradient"], end["tuned"]))

# %%
path_of_record = records.write(record, out)
