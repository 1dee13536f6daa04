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
# # SAM: what was run
#
# The experiments behind the chapter on sharpness-aware minimization (Foret et al. 2021). The claims that they
# decide stand in `book/claims/sam.yaml`. The first four are exact, in float64: a parabola, a valley of minima
# (two), and a small smooth network. The last one trains networks on images, some of them wrongly labeled.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: CIFAR-10, for a GPU
seeds = [0, 1, 2, 3, 4]
device = "cpu"
out = "sam.json"  # where the record goes, relative to the working directory

# %%
import itertools
import math

import torch
from torch.nn import functional as F

from experiments import data, records, stacked
from optimizers import ASAM, SAM, SGD

SETTINGS = {
    "quick": {
        **{"dataset": "digits", "train": 1000, "validation": 437, "hidden": [64], "epochs": 10, "batch": 50},
        **{"rates": [0.03, 0.1, 0.3], "radii": [0.05, 0.1, 0.2], "decays": [0.0003, 0.001, 0.003]},
    },
    "standard": {
        **{"dataset": "mnist", "train": 2500, "validation": 5000, "hidden": [100], "epochs": 24, "batch": 100},
        **{"rates": [0.01, 0.03, 0.1, 0.3], "radii": [0.05, 0.1, 0.2, 0.5], "decays": [0.0003, 0.001, 0.003, 0.01]},
    },
    "paper": {
        **{"dataset": "cifar10", "train": 40000, "validation": 10000, "hidden": [512, 512], "epochs": 60},
        **{"batch": 125, "rates": [0.003, 0.01, 0.03, 0.1], "radii": [0.02, 0.05, 0.1, 0.2, 0.5]},
        **{"decays": [0.0001, 0.0003, 0.001, 0.003, 0.01]},
    },
}[scale]
SETTINGS |= {"noise": 0.4, "late": 0.2, "looks": 10}
record = records.new("sam", scale, {"seeds": seeds, "device": device, **SETTINGS})

# %% [markdown]
# ## 1 · A parabola: the cycle
#
# $f = \theta^2/2$, ρ = 0.05, 400 steps from 0.3, by the package's optimizer. The rule adds $10^{-12}$ to the norm,
# and the amplitude is smaller than the formula's by just that.

# %%
RADIUS = 0.05


def on_a_parabola(rate, extensions, steps=400):
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([theta], lr=rate, extensions=extensions)

    def closure():
        optimizer.zero_grad()
        loss = theta.square() / 2
        loss.backward()
        return loss

    path = [theta.item()]
    for _ in range(steps):
        optimizer.step(closure)
        path.append(theta.item())
    return path


off, flips = [], []
for rate in (0.1, 0.5, 1.0, 1.5):
    path = on_a_parabola(rate, [SAM(RADIUS)])
    predicted = rate * RADIUS / (2 - rate)
    off.append(abs(abs(path[-1]) - predicted))
    flips.append(abs(path[-1] + path[-2]))
    record.metric(f"cycle.amplitude.a{rate:g}".replace("0.", "0").replace("1.", "1"), abs(path[-1]))
    print(f"αh = {rate}: {abs(path[-1]):.7f}, predicted {predicted:.7f}")
record.metric("cycle.off", max(off))
record.metric("cycle.flips", max(flips))
record.metric("cycle.plain", max(abs(on_a_parabola(rate, [])[-1]) for rate in (0.1, 0.5, 1.0, 1.5)))

# %% [markdown]
# ## 2 · A valley of minima
#
# $f = (uv - 1)^2/2$ from (4, 0.3) at α = 0.01, $10^5$ steps. On the valley, $uv = 1$, the sharpness is $u^2 + v^2$.
# The steps are written out for two numbers, which Python does faster than tensors of two; the package's optimizer
# makes the first thousand again.

# %%
START, ALPHA, STEPS = (4.0, 0.3), 0.01, 100_000
kept = sorted({round(STEPS * k / 150) for k in range(151)} | {round(10 ** (k / 25)) for k in range(126)})


def normalized(g, w, rho):
    """SAM's e."""
    norm = math.hypot(*g)
    return [SAM.ascent(x, y, norm, rho) for x, y in zip(g, w, strict=True)]


def unnormalized(g, w, rho):
    return [rho * x for x in g]


def relative(g, w, rho):
    """ASAM's e."""
    norm = math.hypot(g[0] * w[0], g[1] * w[1])
    return [rho / (norm + 1e-12) * y * y * x for x, y in zip(g, w, strict=True)]


def descend(climb, rho):
    """The points after the steps in `kept`, shape (kept, 2)."""
    u, v = START
    points, marks = [], set(kept)
    for t in range(STEPS + 1):
        if t in marks:
            points.append((u, v))
        r = u * v - 1
        e, f = climb((r * v, r * u), (u, v), rho) if rho else (0.0, 0.0)
        there = (u + e) * (v + f) - 1
        u, v = u - ALPHA * there * (v + f), v - ALPHA * there * (u + e)
    return torch.tensor(points, dtype=torch.float64)


ARMS = {
    "gd": (normalized, 0.0),
    "sam_005": (normalized, 0.05),
    "sam_01": (normalized, 0.1),
    "sam_02": (normalized, 0.2),
    "unnormalized": (unnormalized, 0.2),
    "asam": (relative, 0.05),
}
ways = {name: descend(*arm) for name, arm in ARMS.items()}
at = [kept.index(round(STEPS * k / 150)) for k in range(151)]
for name, way in ways.items():
    sharpness = way.square().sum(-1)
    record.metric(f"valley.{name}", sharpness[-1])
    record.metric(f"valley.u.{name}", way[-1, 0])
    record.metric(f"valley.v.{name}", way[-1, 1])
    record.curve(f"valley/{name}", [kept[i] for i in at], [sharpness[at]], "step", "sharpness u² + v²")
    u, v = way[:: -(-len(way) // 150)].T
    record.curve(f"path/{name}", u, [v], "u", "v")
    print(f"{name:13s} ends at ({way[-1, 0]:.4f}, {way[-1, 1]:.4f}), sharpness {sharpness[-1]:.3f}")

# Where gradient flow, which keeps u² − v², meets the valley: there (u² + v²)² = (u² − v²)² + 4.
record.metric("valley.entry", math.hypot(START[0] ** 2 - START[1] ** 2, 2))

# %% [markdown]
# The package's optimizer itself, for 1,000 steps: the same path.

# %%
apart = 0.0
for name, stage in (("sam_005", SAM(0.05)), ("asam", ASAM(0.05))):
    theta = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([theta], lr=ALPHA, extensions=[stage])

    def closure(optimizer=optimizer, theta=theta):
        optimizer.zero_grad()
        loss = (theta.prod() - 1).square() / 2
        loss.backward()
        return loss

    for t in range(1, 1001):
        optimizer.step(closure)
        if t in kept:
            apart = max(apart, (theta.detach() - ways[name][kept.index(t)]).abs().max().item())
record.metric("valley.package_apart", apart)
print(f"the package's steps are within {apart:.0e} of these paths")

# %% [markdown]
# ## 3 · How fast it walks
#
# On the valley the difference $q = u^2 - v^2$ decays by the share $2\alpha\rho^2\,(2/(2 - \alpha h))^2$ per step,
# where $h$ is the sharpness. It is measured between two steps, and divided by $2\alpha\rho^2$ and by the mean
# of the whole.


# %%
def speed(way, first, last):
    """The rate at which u² − v² decays between two steps, and the mean of (2/(2 − αh))² over these."""
    q = way[:, 0].square() - way[:, 1].square()
    one, two = kept.index(first), kept.index(last)
    times = torch.tensor(kept[one : two + 1], dtype=torch.float64)
    factor = (2 / (2 - ALPHA * way[one : two + 1].square().sum(-1))).square()
    return (q[one] / q[two]).log().item() / (last - first), torch.trapezoid(factor, times).item() / (last - first)


for name, first, last in (("sam_005", 2000, 60_000), ("sam_01", 2000, 20_000), ("sam_02", 1000, 4000)):
    measured, factor = speed(ways[name], first, last)
    leading = 2 * ALPHA * ARMS[name][1] ** 2
    record.metric(f"drift.leading.{name}", measured / leading)
    record.metric(f"drift.cycle.{name}", measured / (leading * factor))
    print(f"{name}: {measured / leading:.4f} of 2αρ², {measured / (leading * factor):.4f} with the cycle's factor")

# %% [markdown]
# ## 4 · To first order, a penalty on the norm of the gradient
#
# A network of tanh units in float64. The gradient at $\theta + e$, against that of $f + \rho\lVert\nabla f\rVert$,
# which is $g + \rho Hg/\lVert g\rVert$: what is left is of second order, so that it falls by 4 when ρ is halved.

# %%
random = torch.Generator().manual_seed(seeds[0])
inputs, targets = (torch.randn(50, n, generator=random, dtype=torch.float64) for n in (5, 1))
weights = [torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((5, 20), (20, 1))]


def gradient(params, penalty=0.0):
    params = [param.detach().requires_grad_() for param in params]
    loss = ((inputs @ params[0]).tanh() @ params[1] - targets).square().mean()
    grads = torch.autograd.grad(loss, params, create_graph=penalty > 0)
    if penalty:
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        more = torch.autograd.grad(penalty * norm, params)
        grads = [grad.detach() + extra for grad, extra in zip(grads, more, strict=True)]
    return grads


def remainder(rho):
    """‖∇f(θ + e) − ∇(f + ρ‖∇f‖)‖, and the same without the penalty."""
    here = gradient(weights)
    norm = torch.cat([grad.flatten() for grad in here]).norm()
    there = gradient([w + SAM.ascent(g, w, norm, rho) for w, g in zip(weights, here, strict=True)])
    return [
        torch.cat([(x - y).flatten() for x, y in zip(there, other, strict=True)]).norm().item()
        for other in (gradient(weights, rho), here)
    ]


sizes = [2.0**-k for k in range(1, 12)]
second, first = zip(*map(remainder, sizes), strict=True)
record.curve("penalty/second", sizes, [second], "ρ", "distance of the gradients")
record.curve("penalty/first", sizes, [first], "ρ", "distance of the gradients")
record.metric("penalty.halving", second[-2] / second[-1])
record.metric("penalty.halving_without", first[-2] / first[-1])
record.metric("penalty.left_at_005", remainder(0.05)[0] / remainder(0.05)[1])
print(f"halving ρ: {second[-2] / second[-1]:.3f} times less; without the penalty {first[-2] / first[-1]:.3f}")

# %% [markdown]
# ## 5 · Networks on images
#
# All runs of an arm, learning rates and radii and seeds, are trained side by side as one stack of networks. What is
# a norm of all parameters for one network is then one number for each. SGD with momentum 0.9, the learning rate
# falls linearly to 0. Labels are right, or a share of the training labels is replaced by one of the wrong ones.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
images = dataset.images("train", device).flatten(1)
truth, classes = dataset.labels("train", device), dataset.classes
N, BATCH, EPOCHS = SETTINGS["train"], SETTINGS["batch"], SETTINGS["epochs"]
x, x_validation = images[:N], images[N : N + SETTINGS["validation"]]
y, y_validation = truth[:N], truth[N : N + SETTINGS["validation"]]
x_test, y_test = dataset.images("test", device).flatten(1), dataset.labels("test", device)
HELD_OUT = {"validation": (x_validation, y_validation), "test": (x_test, y_test)}


def given_labels(seed, share):
    """The training labels with a share of them wrong."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    wrong = torch.rand(N, generator=generator) < share
    shift = torch.randint(1, classes, (N,), generator=generator)
    return torch.where(wrong.to(device), (y + shift.to(device)) % classes, y)


def losses(model, batch, labels):
    """The mean loss of each network, on one batch for each."""
    each = F.cross_entropy(model(batch).flatten(0, 1), labels.flatten(), reduction="none")
    return each.view(len(labels), -1).mean(1)


def lengths(tensors):
    """The norm of each network's own part, shaped so that it multiplies a tensor of the stack: (n, 1, 1)."""
    return sum(t.square().sum((1, 2), keepdim=True) for t in tensors).sqrt()


def gradients(model, batch, labels, graph=False):
    return torch.autograd.grad(losses(model, batch, labels).sum(), list(model.parameters()), create_graph=graph)


def sharp(kind, model, batch, labels, rho, random=None):
    """The gradient that a step of this kind takes."""
    params = list(model.parameters())
    if kind == "sgd":
        return gradients(model, batch, labels)
    if kind == "penalty":
        grads = gradients(model, batch, labels, graph=True)
        more = torch.autograd.grad((rho * lengths(grads)).sum(), params)
        return [grad.detach() + extra for grad, extra in zip(grads, more, strict=True)]
    if kind == "random":
        grads = [torch.randn(p.shape, generator=random, device=device) for p in params]
    else:
        grads = gradients(model, batch, labels)
    norm = lengths([SAM.length(g, p.detach()) for g, p in zip(grads, params, strict=True)])
    with torch.no_grad():
        before = [p.clone() for p in params]
        for p, g in zip(params, grads, strict=True):
            p.add_(SAM.ascent(g, p, norm, rho))
    grads = gradients(model, batch, labels)
    with torch.no_grad():
        for p, old in zip(params, before, strict=True):
            p.copy_(old)
    return grads


def train(kind, runs, share, epochs=EPOCHS, looks=SETTINGS["looks"]):
    """Train a stack of (α, ρ, λ', seed), with so many looks at it; the model, its labels, errors (looks, runs)."""
    rates, radii, decays, of_seed = zip(*runs, strict=True)
    model = stacked.StackedMLP(of_seed, x.shape[1], tuple(SETTINGS["hidden"]), classes).to(device)
    optimizer = SGD(model.parameters(), lr=1.0, momentum=0.9, extensions=[stacked.Rates(rates)])
    labels = torch.stack([given_labels(seed, share) for seed in of_seed])
    random = torch.Generator(device).manual_seed(0)
    rho, decay = (torch.tensor(of, device=device)[:, None, None] for of in (radii, decays))
    batches = N // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (epochs * batches))
    errors = {"epoch": [], "validation": [], "test": []}
    orders = {seed: torch.Generator().manual_seed(seed) for seed in set(of_seed)}
    for epoch in range(epochs):
        now = "sgd" if kind == "late" and epoch < round((1 - SETTINGS["late"]) * epochs) else kind
        order = {seed: torch.randperm(N, generator=generator) for seed, generator in orders.items()}
        order = torch.stack([order[seed] for seed in of_seed]).to(device)
        for chosen in order[:, : batches * BATCH].split(BATCH, dim=1):
            grads = sharp(now, model, x[chosen], labels.gather(1, chosen), rho, random)
            for param, grad in zip(model.parameters(), grads, strict=True):
                param.grad = grad + decay * param.detach()
            optimizer.step()
            schedule.step()
        if epoch + 1 in {round(epochs * k / looks) for k in range(1, looks + 1)}:
            errors["epoch"].append(epoch + 1)
            for name, (inputs, answers) in HELD_OUT.items():
                errors[name].append([100 - 100 * share for share, _ in stacked.evaluate(model, inputs, answers)])
    return model, labels, errors


def sharpness(model, labels, examples=1000, rounds=20):
    """The largest curvature of each network's training loss, on so many examples: power iteration."""
    params, batch, labels = list(model.parameters()), x[:examples].expand(len(labels), -1, -1), labels[:, :examples]
    grads = gradients(model, batch, labels, graph=True)
    random = torch.Generator(device).manual_seed(1)
    vector = [torch.randn(p.shape, generator=random, device=device) for p in params]
    for _ in range(rounds):
        norm = lengths(vector)
        vector = torch.autograd.grad(grads, params, [v / norm for v in vector], retain_graph=True)
    return lengths(vector).flatten()


def rise(model, labels, rho=0.1, examples=1000):
    """How far the training loss rises on the way that SAM climbs, on so many examples."""
    params, batch, labels = list(model.parameters()), x[:examples].expand(len(labels), -1, -1), labels[:, :examples]
    grads = gradients(model, batch, labels)
    norm = lengths(grads)
    with torch.no_grad():
        here = losses(model, batch, labels)
        for p, g in zip(params, grads, strict=True):
            p.add_(SAM.ascent(g, p, norm, rho))
        return losses(model, batch, labels) - here


# %% [markdown]
# First, that this loop is the package's rule: a single network by `SGD(extensions=[SAM(ρ)])` and a closure.

# %%
few = [(0.03, 0.1, 0.0, seeds[0]), (0.03, 0.5, 0.0, seeds[0] + 1)]
pair = stacked.StackedMLP([run[-1] for run in few], x.shape[1], tuple(SETTINGS["hidden"]), classes)
ours = stacked.StackedMLP([seeds[0]], x.shape[1], tuple(SETTINGS["hidden"]), classes)
both = SGD(pair.parameters(), lr=0.03, momentum=0.9)
alone = SGD(ours.parameters(), lr=0.03, momentum=0.9, extensions=[SAM(0.1)])
apart = 0.0
for t in range(20):
    batch, target = (of[t * 20 : t * 20 + 20].cpu() for of in (x, y))

    def closure(batch=batch, target=target):
        alone.zero_grad()
        loss = losses(ours, batch[None], target[None]).sum()
        loss.backward()
        return loss

    alone.step(closure)
    radii = torch.tensor([0.1, 0.5])[:, None, None]
    grads = sharp("sam", pair, batch.expand(2, -1, -1), target.expand(2, -1), radii)
    for param, grad in zip(pair.parameters(), grads, strict=True):
        param.grad = grad
    both.step()
    for one, two in zip(ours.parameters(), pair.parameters(), strict=True):
        apart = max(apart, (one[0] - two[0]).abs().max().item())
record.metric("network.package_apart", apart)
print(f"after 20 steps within {apart:.0e} of the package's SAM")

# %% [markdown]
# Each arm's numbers are chosen by the validation error, with right labels, of one run from a seed of its own: α for
# SGD and for SGD twice as long; α and ρ for SAM; α and, from as many runs, the weight decay for SGD with it. The
# rest have SAM's α and ρ. Under wrong labels SGD and SAM are run with what was chosen for right ones, too.

# %%
TUNING = 1000
RATES = SETTINGS["rates"]
pairs = {
    "sgd": [(rate, 0.0, 0.0) for rate in RATES],
    "twice": [(rate, 0.0, 0.0) for rate in RATES],
    "sam": [(rate, radius, 0.0) for rate, radius in itertools.product(RATES, SETTINGS["radii"])],
    "decay": [(rate, 0.0, decay) for rate, decay in itertools.product(RATES, SETTINGS["decays"])],
}


def length(arm):
    return (2 if arm == "twice" else 1) * EPOCHS


def choose(arm, share):
    """The settings with the least validation error at the end, the first of equals; and all errors."""
    kind = "sam" if arm == "sam" else "sgd"
    errors = train(kind, [(*pair, TUNING) for pair in pairs[arm]], share, length(arm), looks=1)[2]["validation"][0]
    return pairs[arm][errors.index(min(errors))], errors


def run(name, kind, arm, chosen, labels, share):
    """An arm from the seeds that are reported, into the record."""
    model, given, errors = train(kind, [(*chosen, seed) for seed in seeds], share, length(arm))
    with torch.inference_mode():
        answers, wrong = model(x).argmax(2), given != y
    record.metric(f"{labels}.error.{name}", errors["test"][-1])
    record.metric(f"{labels}.fit.{name}", 100 * (answers == given).float().mean(1))
    if share:
        taken = [100 * (a == g)[w].float().mean().item() for a, g, w in zip(answers, given, wrong, strict=True)]
        record.metric(f"{labels}.taken.{name}", taken)
    record.metric(f"{labels}.curvature.{name}", sharpness(model, given))
    record.metric(f"{labels}.rise.{name}", rise(model, given))  # the last: it moves the networks
    # By the validation error, at which of the looks one would have stopped.
    looks = torch.tensor(errors["validation"]).argmin(0)
    stopped = torch.tensor(errors["test"], dtype=torch.float64).gather(0, looks[None])[0]
    record.metric(f"{labels}.stopped.{name}", stopped)
    times = [epoch / length(arm) for epoch in errors["epoch"]]
    record.curve(
        f"{labels}/{name}", times, list(zip(*errors["test"], strict=True)), "share of the run", "test error, %"
    )
    print(
        f"{labels} {name:9s}",
        *(f"{error:6.2f}" for error in errors["test"][-1]),
        " stopped",
        *(f"{e:6.2f}" for e in stopped),
    )


def over(labels, one, other, what="error", than="error"):
    """ln of the ratio, seed by seed."""
    both = zip(record.get(f"{labels}.{what}.{one}"), record.get(f"{labels}.{than}.{other}"), strict=True)
    return [math.log(a / b) if a and b else math.nan for a, b in both]


chosen = {}
for labels, share in (("clean", 0.0), ("noisy", SETTINGS["noise"])):
    earlier, chosen = chosen, {}
    for arm in pairs:
        chosen[arm], errors = choose(arm, share)
        for name, value in zip(("alpha", "rho", "decay"), chosen[arm], strict=True):
            record.metric(f"{labels}.chosen.{arm}.{name}", value)
        of_rate = len(errors) // len(RATES)
        for i in range(len(RATES)):
            record.metric(f"{labels}.tuning.{arm}.rate_{i}", min(errors[i * of_rate : (i + 1) * of_rate]))
        print(labels, arm, chosen[arm], [round(error, 2) for error in errors])
    for arm in ("sgd", "sam"):
        if earlier:
            run(f"{arm}_as_clean", arm, arm, earlier[arm], labels, share)
    for arm, kind in {"sgd": "sgd", "sam": "sam", "twice": "sgd", "decay": "sgd"}.items():
        run(arm, kind, arm, chosen[arm], labels, share)
    for kind in ("penalty", "late", "random"):
        run(kind, kind, kind, chosen["sam"], labels, share)
    for other in ("sgd", "twice", "decay", "penalty", "late", "random"):
        record.metric(f"{labels}.sam_over.{other}", over(labels, "sam", other))
    record.metric(f"{labels}.sam_over.stopped", over(labels, "sam", "sgd", than="stopped"))
    for what in ("curvature", "rise"):
        record.metric(f"{labels}.flatter.{what}", over(labels, "sam", "sgd", what, what))
    record.metric(f"{labels}.late_over_sgd", over(labels, "late", "sgd"))
record.metric("noisy.sam_over.as_clean", over("noisy", "sam_as_clean", "sgd_as_clean"))
record.metric("noisy.sam_over.stopped_as_clean", over("noisy", "sam_as_clean", "sgd_as_clean", than="stopped"))
record.metric("noisy.overfits", over("noisy", "sgd_as_clean", "sgd_as_clean", than="stopped"))

# %%
path_of_record = records.write(record, out)
