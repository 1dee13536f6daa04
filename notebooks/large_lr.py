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
# # A large learning rate at first: what was run
#
# The experiments behind the chapter on Li, Wei & Ma (2019). The claims that they decide were fixed before the run,
# in `book/claims/large_lr.yaml`. The first experiment is exact: neurons that nothing moves but the noise. The
# second one trains a network on a single cluster. The third is the paper's experiment with patches on images, as
# its authors' code has it, at the size that the scale allows.

# %% tags=["parameters"]
scale = "quick"  # quick: digits · standard: part of CIFAR-10 on a CPU · paper: the authors' own set-up
seeds = [0, 1, 2, 3, 4]
device = "cpu"
out = "large_lr.json"  # where the record goes, relative to the working directory

# %%
import math

import torch
from torch import nn
from torch.nn import functional as F

from experiments import data, records, training
from optimizers import SGD, GradientNoise

SETTINGS = {
    "quick": {
        "dataset": "digits",
        "network": "mlp",
        "width": 128,
        "examples": 500,
        "batch": 100,
        "epochs": 32,
        "patch": 3,
        "difference": 1.5,
        "lr": 1.5,
    },
    "standard": {
        "dataset": "cifar10",
        "network": "mlp",
        "width": 256,
        "examples": 2500,
        "batch": 64,
        "epochs": 30,
        "patch": 7,
        "difference": 1.0,
        "lr": 0.5,
    },
    "paper": {
        "dataset": "cifar10",
        "network": "wide_resnet",
        "width": 10,
        "examples": 50000,
        "batch": 128,
        "epochs": 60,
        "patch": 7,
        "difference": 0.1,
        "lr": 0.1,
    },
}[scale]
record = records.new("large_lr", scale, {"seeds": seeds, "device": device, **SETTINGS})

# %% [markdown]
# ## 1 · What noise leaves of a kink
#
# A neuron with weights $w$ sees a cluster $z - \zeta$, $z$, $z + \zeta$; its *contrast* is the second difference
# of its output. A loss $\tfrac12\lVert w - \bar w\rVert^2$ holds it at a place where its kink cuts through the
# cluster, and gradient noise of deviation 1 shakes it, as much as the learning rate lets it. Kinks that lie there
# by chance are subtracted: they are what a neuron held at 0 sees under the same noise. Whatever the noise, a pair
# of neurons of opposite weights passes a linear pattern.

# %%
RADIUS, SLOPE = 0.2, 1.0  # z = (1, 0), ζ = (0, r), and w̄ = (0, 1): a kink of half-width r
RATES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
NEURONS, STEPS, LOOKS = 4000, 120, range(70, 121, 2)
start = torch.tensor([0.0, SLOPE], dtype=torch.float64)
cluster = torch.tensor([[1.0, 0.0], [1.0, RADIUS], [1.0, -RADIUS]], dtype=torch.float64)


def contrast(outputs):
    """Second difference over z, z + ζ, z − ζ in the last dimension."""
    return outputs[..., 1] + outputs[..., 2] - 2 * outputs[..., 0]


def smoothed(x):
    """E[relu(x + n)] for a standard normal n."""
    x = torch.as_tensor(x, dtype=torch.float64)
    return x * torch.special.ndtr(x) + (-0.5 * x**2).exp() / math.sqrt(2 * math.pi)


def visible(tau, radius=RADIUS, slope=SLOPE):
    """Averaged over noise of deviation tau: the contrast of a neuron at (0, slope), less that of one at 0."""
    wide = tau * math.sqrt(1 + radius**2)
    edge = slope * radius / wide
    return wide * (smoothed(edge) + smoothed(-edge) - 2 * smoothed(0.0))


def spread(lr, step):
    """Variance after `step` steps from a fixed start, at curvature 1 and noise 1."""
    return lr**2 * (1 - (1 - lr) ** (2 * step)) / (1 - (1 - lr) ** 2)


variance = {lr: [] for lr in RATES}
seen = {lr: [] for lr in RATES}
linear = {lr: [] for lr in RATES}
for seed in seeds:
    groups = [{"params": [start.repeat(NEURONS, 1).requires_grad_()], "lr": lr} for lr in RATES]
    optimizer = SGD(groups, extensions=[GradientNoise(eta=1.0, gamma=0.0, seed=seed)], fused=True)
    looks = {lr: [] for lr in RATES}
    for step in range(1, STEPS + 1):
        for group in groups:
            (w,) = group["params"]
            w.grad = w.detach() - start
        optimizer.step()
        if step in LOOKS:
            for group in groups:
                w = group["params"][0].detach()
                pair = (w[:, 1].relu() - (-w[:, 1]).relu()).mean()  # along ζ / r
                mean = (contrast((w @ cluster.T).relu()) - contrast(((w - start) @ cluster.T).relu())).mean()
                looks[group["lr"]].append((w.var(0).mean() / spread(group["lr"], step), mean, pair))
    for lr, rows in looks.items():
        ratio, mean, pair = torch.tensor(rows).mean(0).tolist()
        variance[lr].append(ratio)
        seen[lr].append(mean / RADIUS)
        linear[lr].append(pair)


def share_seen(lr):
    """The formula, at the same steps as the looks: a small learning rate has not come to rest by then."""
    return torch.stack([visible(math.sqrt(spread(lr, step))) for step in LOOKS]).mean().item() / RADIUS


expected = {lr: share_seen(lr) for lr in RATES}
for lr in RATES:
    key = f"{lr:g}".replace(".", "")
    record.metric(f"spread.lr{key}", variance[lr])
    record.metric(f"hidden.lr{key}.seen", seen[lr])
    record.metric(f"hidden.lr{key}.ratio", [value / expected[lr] for value in seen[lr]])
    record.metric(f"hidden.lr{key}.linear", linear[lr])
    ratio, share = (sum(values[lr]) / len(seeds) for values in (variance, seen))
    print(f"α = {lr:5.3f}: variance ÷ formula {ratio:.3f}, contrast {share:.3f} (formula: {expected[lr]:.3f})")
record.curve("hidden/contrast", RATES, torch.tensor([seen[lr] for lr in RATES]).T.tolist(), "α", "share seen")
record.curve("hidden/linear", RATES, torch.tensor([linear[lr] for lr in RATES]).T.tolist(), "α", "share seen")
fine = [10 ** (k / 20) for k in range(-52, 1)]
theory = [share_seen(lr) for lr in fine]
record.curve("hidden/theory", fine, [theory], "α", "share seen")

# %% [markdown]
# The slope of the averaged contrast with respect to $\bar w$, at $\bar w = 0$: a network that is shaken feels no
# gradient towards seeing the cluster. A frozen one does.

# %%
w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
tau = 0.5
wide = tau * math.sqrt(1 + RADIUS**2)
up, down = w[0] + RADIUS * w[1], w[0] - RADIUS * w[1]
averaged = wide * (smoothed(up / wide) + smoothed(down / wide)) - 2 * tau * smoothed(w[0] / tau)
(slope,) = torch.autograd.grad(averaged, w)
record.metric("hidden.slope_at_zero", slope.abs().max())

# %% [markdown]
# ## 2 · One cluster, learned with and without noise
#
# Two classes, $z$ against $z \pm \zeta$, in a two-layer network whose second layer is fixed at $\pm\sqrt{100/m}$.
# Weight decay and noise are in balance at the initial spread of the weights, so that the noise renews the kinks
# without making them more or fewer. After half of the steps the learning rate, and with it the noise, falls to a
# tenth.

# %%
GAIN, DECAY, INITIAL, LR, RATIO, PHASE = 100.0, 0.01, 0.3, 0.1, 0.1, 100
SIDE = 0.1
WIDTHS = {200: seeds, 20000: seeds[:3]}  # the seeds of each: a wide network differs little from seed to seed
points = torch.tensor([[1.0, 0.0], [1.0, SIDE], [1.0, -SIDE]])
classes, share = torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([0.5, 0.25, 0.25])
eta = INITIAL**2 * DECAY * (2 - LR * DECAY) / LR  # makes the spread at rest INITIAL


def learn_cluster(width, repeats, noisy):
    """Half the contrast at every step, a path for each seed; all networks are one parameter (seeds, width, 2)."""
    generators = [torch.Generator().manual_seed(seed) for seed in repeats]
    half = torch.stack([torch.randn(width // 2, 2, generator=g) for g in generators]) * INITIAL
    weights = torch.cat([half, half], 1).requires_grad_()  # opposite outer weights: the output starts at 0
    outer = math.sqrt(GAIN / width) * torch.cat([torch.ones(width // 2), -torch.ones(width // 2)])
    extensions = [GradientNoise(eta=eta, gamma=0.0)] if noisy else []
    optimizer = SGD([weights], lr=LR, weight_decay=DECAY, extensions=extensions, fused=True)
    anneal = torch.optim.lr_scheduler.MultiStepLR(optimizer, [PHASE], gamma=RATIO)
    path = []
    for _ in range(2 * PHASE):
        outputs = outer @ (weights @ points.T).relu()
        path.append(0.5 * contrast(outputs.detach()))
        optimizer.zero_grad()
        (share * F.softplus(-classes * outputs)).sum().backward()
        optimizer.step()
        anneal.step()
    return torch.stack(path, 1).tolist()


for width, repeats in WIDTHS.items():
    paths = {noisy: learn_cluster(width, repeats, noisy) for noisy in (True, False)}
    for noisy, name in ((True, "noise"), (False, "none")):
        x, _ = training.downsample(paths[noisy][0], 100)
        lines = [training.downsample(path, 100)[1] for path in paths[noisy]]
        record.curve(f"cluster/{width}/{name}", x, lines, "step", "contrast")
    # Averages over 25 steps: single ones are noisy.
    before = {noisy: [sum(path[PHASE - 25 : PHASE]) / 25 for path in paths[noisy]] for noisy in paths}
    after = [sum(path[-25:]) / 25 for path in paths[True]]
    record.metric(f"cluster.m{width}.noise", before[True])
    record.metric(f"cluster.m{width}.none", before[False])
    record.metric(f"cluster.m{width}.ratio", [a / b for a, b in zip(before[True], before[False], strict=True)])
    record.metric(f"cluster.m{width}.annealed", [b / a for a, b in zip(before[True], after, strict=True)])
    print(f"m = {width:5d}: contrast with noise {sum(before[True]) / len(repeats):.3f}", end=", ")
    print(f"without {sum(before[False]) / len(repeats):.3f}, after annealing {sum(after) / len(repeats):.3f}")

# %% [markdown]
# ## 3 · Patches on images
#
# The recipe of the authors' code: four fifths of the images are altered. Of these, four fifths get the patch $z
# \pm \zeta_c$ of their class $c$ in the middle, and one fifth becomes nothing but a patch, $z \pm
# 1.75\,u\,\zeta_c$ with $u$ uniform in [0, 1] on black. Which images are altered is fixed, the rest is drawn anew
# in every epoch.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
TRAIN = SETTINGS["examples"]
images, test_images = dataset.images("train"), dataset.images("test")
center, scale_ = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
images, test_images = ((x - center) / scale_ for x in (images[:TRAIN], test_images))
labels, test_labels = dataset.labels("train")[:TRAIN], dataset.labels("test")
channels, size = images.shape[1], images.shape[2]
PATCH, EPOCHS, BATCH = SETTINGS["patch"], SETTINGS["epochs"], SETTINGS["batch"]
edge = int(size / 2 - PATCH / 2)
middle = slice(edge, edge + PATCH)


class Patches:
    """z, and ζ for each class, of one seed; and the images that they alter."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.z = 1.25 * torch.randn(channels, PATCH, PATCH, generator=self.generator)
        shape = (dataset.classes, channels, PATCH, PATCH)
        self.zeta = SETTINGS["difference"] * (2 * torch.rand(shape, generator=self.generator) - 1)
        self.altered = torch.rand(TRAIN, generator=self.generator) < 0.8

    def draw(self, classes, factor):
        sign = torch.where(torch.rand(len(classes), generator=self.generator) < 0.5, 1.0, -1.0)
        return self.z + (sign * factor)[:, None, None, None] * self.zeta[classes]

    def alter(self, x, y, altered):
        only = torch.rand(len(y), generator=self.generator) < 0.2
        u = 1.75 * torch.rand(len(y), generator=self.generator)
        patch = self.draw(y, torch.where(only, u, torch.ones_like(u)))
        x = torch.where((altered & only)[:, None, None, None], 0.0, x)
        x[..., middle, middle] = torch.where(altered[:, None, None, None], patch, x[..., middle, middle])
        return x

    def alone(self, count=1000):
        """Patches on black, with their classes."""
        y = torch.randint(dataset.classes, (count,), generator=self.generator)
        x = torch.zeros(count, channels, size, size)
        x[..., middle, middle] = self.draw(y, 1.75 * torch.rand(count, generator=self.generator))
        return x, y


# %%
class ActivationNoise(nn.Module):
    """Normal noise on pre-activations, the same for all images and channels, as in the authors' code.

    In a layer without places (batch, features), it is drawn for every feature.
    """

    def __init__(self):
        super().__init__()
        self.level = 0.0

    def forward(self, x):
        if not self.training or self.level == 0.0:
            return x
        return x + self.level * torch.randn(x.shape[2:] if x.dim() == 4 else x.shape[1:]).to(x)


class Block(nn.Module):
    """The residual block of wide residual networks, batch normalization first."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(inside), ActivationNoise(), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            *(nn.BatchNorm2d(outside), ActivationNoise(), nn.ReLU()),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
        )
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if inside != outside else None

    def forward(self, x):
        h = self.first(x)
        return self.body(h) + (x if self.shortcut is None else self.shortcut(h))


def wide_resnet(k):
    """WRN-16-k, initialized as the authors do."""
    widths = [16, 16 * k, 32 * k, 64 * k]
    layers = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False)]
    for i in range(3):
        layers += [Block(widths[i], widths[i + 1], 1 + (i > 0)), Block(widths[i + 1], widths[i + 1], 1)]
    layers += [nn.BatchNorm2d(widths[3]), ActivationNoise(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(widths[3], dataset.classes))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return net


def mlp(width):
    """Two hidden layers with batch normalization."""
    layers, inside = [nn.Flatten()], channels * size * size
    for _ in range(2):
        layers += [nn.Linear(inside, width), nn.BatchNorm1d(width), ActivationNoise(), nn.ReLU()]
        inside = width
    return nn.Sequential(*layers, nn.Linear(width, dataset.classes))


class OnlyOne(nn.Module):
    """A network as a stack of one."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x[0])[None]


class Stack(nn.Module):
    """Some `mlp` side by side: images (n, batch, …) to logits (n, batch, classes).

    To batch normalization they are one layer of n times the width, as it looks at every feature by itself.
    """

    def __init__(self, nets):
        super().__init__()
        layers = list(zip(*([m for m in net if isinstance(m, nn.Linear)] for net in nets), strict=True))
        self.weights = nn.ParameterList(torch.stack([layer.weight.detach() for layer in row]) for row in layers)
        self.biases = nn.ParameterList(torch.stack([layer.bias.detach()[None] for layer in row]) for row in layers)
        widths = [len(nets) * row[0].out_features for row in layers[:-1]]
        self.between = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(w), ActivationNoise(), nn.ReLU()) for w in widths)

    def forward(self, x):
        *hidden, last = zip(self.weights, self.biases, strict=True)
        h = x.flatten(2)
        for (weight, bias), between in zip(hidden, self.between, strict=True):
            h = torch.baddbmm(bias, h, weight.mT)
            h = between(h.transpose(0, 1).flatten(1)).unflatten(1, (len(weight), -1)).transpose(0, 1)
        return torch.baddbmm(last[1], h, last[0].mT)


def networks(run_seeds):
    """From images (n, batch, …) to logits (n, batch, classes): a network for every seed, one if it is large."""
    made = []
    for seed in run_seeds:
        with training.deterministic(seed, torch.device(device), "float32"):
            made.append((wide_resnet if SETTINGS["network"] == "wide_resnet" else mlp)(SETTINGS["width"]))
    return Stack(made).to(device) if SETTINGS["network"] == "mlp" else OnlyOne(*made).to(device)


RATIO_OF_RATES = 0.04  # 0.004 ÷ 0.1, the authors' small learning rate and their large one
ARMS = {  # first learning rate ÷ the large one, activation noise in the first half, patches or not
    "large": (1.0, 0.0, True),
    "small": (RATIO_OF_RATES, 0.0, True),
    "noise": (RATIO_OF_RATES, 0.4, True),
    "large_plain": (1.0, 0.0, False),
    "small_plain": (RATIO_OF_RATES, 0.0, False),
}
LOOK_AT = sorted({round(EPOCHS * k / 10) for k in range(1, 11)})
HALF = EPOCHS // 2


@torch.no_grad()
def accuracy(net, x, y):
    """Share of images that are classified rightly, per network: x of shape (n, images, …), y (n, images)."""
    net.eval()
    parts = zip(x.split(1000, 1), y.split(1000, 1), strict=True)
    right = sum((net(images.to(device)).argmax(-1) == wanted.to(device)).sum(1) for images, wanted in parts)
    return (right.double() / y.shape[1]).tolist()


def train(arm, run_seeds):
    """Accuracies on the unaltered test images and on patches alone, after the epochs of LOOK_AT, for every seed."""
    first, level, patched = ARMS[arm]
    patches = [Patches(seed) for seed in run_seeds]
    altered = [each.altered & patched for each in patches]
    only, only_labels = map(torch.stack, zip(*(each.alone() for each in patches), strict=True))
    test = [part.expand(len(run_seeds), *part.shape) for part in (test_images, test_labels)]
    orders = [torch.Generator().manual_seed(seed) for seed in run_seeds]
    looks = []
    net = networks(run_seeds)
    with training.deterministic(run_seeds[0], torch.device(device), "float32"):
        optimizer = SGD(net.parameters(), lr=first * SETTINGS["lr"], momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [HALF] if first == 1.0 else [], RATIO_OF_RATES)
        noises = [module for module in net.modules() if isinstance(module, ActivationNoise)]
        for epoch in range(EPOCHS):
            for module in noises:
                module.level = level if epoch < HALF else 0.0
            net.train()
            order = torch.stack([torch.randperm(TRAIN, generator=g) for g in orders])
            for chosen in order[:, : TRAIN // BATCH * BATCH].split(BATCH, 1):
                y = labels[chosen]
                each = zip(patches, chosen, altered, strict=True)
                x = torch.stack([p.alter(images[c], labels[c], a[c]) for p, c, a in each])
                optimizer.zero_grad()
                logits = net(x.to(device))
                loss = F.cross_entropy(logits.flatten(0, 1), y.flatten().to(device))
                (len(run_seeds) * loss).backward()
                optimizer.step()
            schedule.step()
            if epoch + 1 in LOOK_AT:
                looks.append((accuracy(net, *test), accuracy(net, only, only_labels)))
        training.report(f"{arm}, seeds {run_seeds}", EPOCHS, EPOCHS, float(loss.detach()))
    clean, alone = (list(zip(*rows, strict=True)) for rows in zip(*looks, strict=True))
    return list(zip(clean, alone, strict=True))


# %%
together = [seeds] if SETTINGS["network"] == "mlp" else [[seed] for seed in seeds]
runs = {arm: [run for some in together for run in train(arm, some)] for arm in ARMS}
before = LOOK_AT.index(HALF)  # the last look at the large learning rate
final, patch_end = {}, {}
for arm, results in runs.items():
    clean, alone = zip(*results, strict=True)
    record.curve(f"patch/{arm}/clean", LOOK_AT, clean, "epoch", "accuracy on clean images")
    final[arm] = [row[-1] for row in clean]
    record.metric(f"patch.{arm}.clean", final[arm])
    record.metric(f"patch.{arm}.clean_before", [row[before] for row in clean])
    if ARMS[arm][2]:
        record.curve(f"patch/{arm}/alone", LOOK_AT, alone, "epoch", "accuracy on patches alone")
        record.metric(f"patch.{arm}.alone_early", [row[before // 2] for row in alone])
        record.metric(f"patch.{arm}.alone_before", [row[before] for row in alone])
        record.metric(f"patch.{arm}.alone", [row[-1] for row in alone])
    print(f"{arm:12s} clean {sum(final[arm]) / len(seeds):.4f}", end="")
    print(f"   patches alone {sum(row[before] for row in alone) / len(seeds):.3f}", end="")
    print(f" → {sum(row[-1] for row in alone) / len(seeds):.3f}")


def minus(one, other):
    return [a - b for a, b in zip(one, other, strict=True)]


gap = minus(final["large"], final["small"])
plain = minus(final["large_plain"], final["small_plain"])
record.metric("patch.gap", gap)
record.metric("patch.gap_plain", plain)
record.metric("patch.gap_by_patch", minus(gap, plain))
gain = minus(final["noise"], final["small"])
record.metric("patch.noise_gain", gain)
record.metric("patch.noise_over_half", minus(gain, [0.5 * d for d in gap]))

# %%
path_of_record = records.write(record, out)
