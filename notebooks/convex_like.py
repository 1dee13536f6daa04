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
# # Why large networks behave like convex problems: what was run
#
# The experiments behind the chapter on Jiang (2019), which has none of its own as far as its abstract tells. The
# claims that they decide stand in `book/claims/convex_like.yaml`. All but the last experiment are in float64 and
# full batch.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, more of it
seeds = [0, 1, 2, 3, 4]  # of the problems and of the networks; the images take the first three
device = "cpu"
out = "convex_like.json"  # where the record goes, relative to the working directory

# %%
import math

import torch
from torch.nn import functional as F

from experiments import data, records, stacked
from optimizers import SGD, Adam

SETTINGS = {  # `hidden`: widths of the networks on images
    "quick": {
        "widths": [6, 16, 64, 256],
        "steps": 2000,
        "dataset": "digits",
        "images": 100,
        "hidden": [2, 4, 8, 16, 32],
        "batch": 50,
        "epochs": 150,
    },
    "standard": {
        "widths": [6, 16, 64, 256, 1024],
        "steps": 4000,
        "dataset": "mnist",
        "images": 1000,
        "hidden": [2, 4, 8, 16, 32, 64, 128],
        "batch": 100,
        "epochs": 300,
    },
    "paper": {
        "widths": [6, 16, 64, 256, 1024, 4096],
        "steps": 4000,
        "dataset": "mnist",
        "images": 1000,
        "hidden": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
        "batch": 100,
        "epochs": 600,
    },
}[scale]
record = records.new("convex_like", scale, {"seeds": seeds, "device": device, **SETTINGS})
torch.set_default_dtype(torch.float64)


def log_spaced(last, points=90):
    """Whole numbers from 0 to `last`, evenly spaced on a logarithmic axis from 1 on."""
    return sorted({0} | {round(last ** (i / (points - 1))) for i in range(points)})


# %% [markdown]
# ## 1 · One neuron, one example
#
# $z = \mathrm{SiLU}(\theta)$, loss $\tfrac12(z-1)^2$. The Jacobian is one number, $z'(\theta)$.


# %%
def silu(theta):
    gate = torch.sigmoid(theta)
    return theta * gate, gate * (1 + theta * (1 - gate))  # z, z′


low, high = -2.0, -1.0  # where z′ changes its sign, by bisection
for _ in range(60):
    middle = (low + high) / 2
    low, high = (low, middle) if silu(torch.tensor(middle))[1] > 0 else (middle, high)
record.metric("neuron.turn", high)
record.metric("neuron.solution_loss", 0.5 * (silu(torch.tensor(-high))[0] - 1) ** 2)
for name, start in (("left", -1.6), ("right", -1.0)):
    theta = torch.tensor([start], requires_grad=True)
    optimizer = SGD([theta], lr=1.0)
    path, losses, slopes = [], [], []
    for _ in range(2001):
        z, slope = silu(theta.detach())
        path.append(theta.item())
        losses.append(0.5 * (z.item() - 1) ** 2)
        slopes.append(abs(slope.item()))
        theta.grad = (z - 1) * slope
        optimizer.step()
    shown = log_spaced(2000)
    record.curve(f"neuron/{name}/θ", shown, [[path[t] for t in shown]], "step", "θ")
    record.curve(f"neuron/{name}/loss", shown, [[losses[t] for t in shown]], "step", "loss")
    record.metric(f"neuron.{name}.smallest_slope", min(slopes) if name == "left" else min(slopes[:100]))
    record.metric(f"neuron.{name}.lowest_loss", min(losses))
    record.metric(f"neuron.{name}.end", path[-1])
    print(f"from {start}: to θ = {path[-1]:.3f}, loss {losses[-1]:.4g}, least |J| {min(slopes):.2g}")

# %% [markdown]
# ## 2 · A network with its Jacobian
#
# 40 random unit vectors in five dimensions with labels ±1, and one hidden layer of tanh. One network for each seed,
# all of them in one tensor of shape (seeds, d): weights and biases of the hidden layer, then of the output.

# %%
EXAMPLES, INPUTS = 40, 5


def problem(run_seeds):
    """X of shape (seeds, n, 5) and y of shape (seeds, n)."""
    generators = [torch.Generator().manual_seed(seed) for seed in run_seeds]
    x = torch.stack([torch.randn(EXAMPLES, INPUTS, generator=g) for g in generators])
    y = torch.stack([torch.where(torch.rand(EXAMPLES, generator=g) < 0.5, 1.0, -1.0) for g in generators])
    return x / x.norm(dim=2, keepdim=True), y


def initial(run_seeds, width):
    """Arguments of tanh, and outputs, of order one at every width; biases zero."""
    thetas = []
    for seed in run_seeds:
        g = torch.Generator().manual_seed(1000 + seed)
        inner, outer = torch.randn(width * INPUTS, generator=g), torch.randn(width, generator=g)
        thetas.append(torch.cat([inner, torch.zeros(width), outer / math.sqrt(width), torch.zeros(1)]))
    return torch.stack(thetas)


def forward(theta, x):
    """The outputs z of shape (..., n), the hidden layer (..., n, width), and the output weights (..., 1, width)."""
    width = (theta.shape[-1] - 1) // (INPUTS + 2)
    inner, bias, outer, last = theta.split([width * INPUTS, width, width, 1], dim=-1)
    hidden = torch.tanh(x @ inner.unflatten(-1, (width, INPUTS)).mT + bias.unsqueeze(-2))
    return (hidden @ outer.unsqueeze(-1)).squeeze(-1) + last, hidden, outer.unsqueeze(-2)


def jacobian(theta, x):
    _, hidden, outer = forward(theta, x)
    # ∂z/∂(argument of tanh) = v (1 − tanh²)
    slope = outer * (1 - hidden.square())
    # J = (∂z/∂W, ∂z/∂b, ∂z/∂v, ∂z/∂a), one row for each example
    by_inner = (slope.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
    return torch.cat([by_inner, slope, hidden, torch.ones_like(hidden[..., :1])], dim=-1)


def gradient(theta, x, y):
    """Loss ½‖z − y‖² of shape (...), and its gradient Jᵀ(z − y) without J."""
    z, hidden, outer = forward(theta, x)
    residual = (z - y).unsqueeze(-1)
    signal = residual * outer * (1 - hidden.square())
    parts = [(signal.mT @ x).flatten(-2), signal.sum(-2), (hidden.mT @ residual).squeeze(-1), residual.sum(-2)]
    return 0.5 * residual.square().sum((-2, -1)), torch.cat(parts, dim=-1)


def shortfall(theta, x, y):
    """By how much ‖∇f‖ falls short of s_min‖z − y‖, relative, for each network; above 0 is a violation."""
    loss, grad = gradient(theta, x, y)
    bound = torch.linalg.svdvals(jacobian(theta, x))[..., -1] * (2 * loss).sqrt()
    return (bound / grad.norm(dim=-1) - 1).tolist()


shortfalls = []

# %% [markdown]
# ## 3 · Levenberg and Marquardt's method, and the rank
#
# It solves for the step that takes the residual away, so the conditioning of $J$ hardly matters to it.


# %%
def levenberg(theta, x, y, most=600):
    """θ after at most so many trial steps θ − Jᵀ(JJᵀ + δ)⁻¹(z − y), and the loss after each, (steps, seeds)."""
    damping = torch.full(theta.shape[:1], 1e-2)
    loss, history = gradient(theta, x, y)[0], []
    for _ in range(most):
        history.append(loss)
        if loss.max() < 1e-25:
            break
        J, residual = jacobian(theta, x), forward(theta, x)[0] - y
        weights = torch.linalg.solve(J @ J.mT + damping[:, None, None] * torch.eye(EXAMPLES), residual)
        trial = theta - (J.mT @ weights.unsqueeze(-1)).squeeze(-1)
        trial_loss = gradient(trial, x, y)[0]
        better = trial_loss < loss
        theta, loss = torch.where(better[:, None], trial, theta), torch.where(better, trial_loss, loss)
        damping = torch.where(better, damping / 3, damping * 2).clamp(1e-14, 1e10)
    return theta, torch.stack(history)


x, y = problem(seeds)
worst, stuck, wide, ranks, sizes, finals = [], 0, [], [], [2, 3, 4, 5, 6, 7, 8, 12, 20], []
for width in sizes:
    theta, history = levenberg(initial(seeds, width), x, y)
    rank, loss = torch.linalg.matrix_rank(jacobian(theta, x)), history[-1]
    stuck += int(((rank == EXAMPLES) & (loss > 1e-5)).sum())
    ranks.append(rank.tolist())
    finals.append(loss.tolist())
    record.metric(f"levenberg.w{width}.worst", loss.max())
    record.metric(f"levenberg.w{width}.best", loss.min())
    record.metric(f"levenberg.w{width}.rank", rank.max())
    if 7 * width + 1 >= EXAMPLES:
        worst.append(loss.max().item())
        wide += (rank == EXAMPLES).tolist()
        shortfalls += shortfall(initial(seeds, width), x, y)
    done = int((loss < 1e-5).sum())
    print(f"width {width:2d}, d = {7 * width + 1:3d}: rank up to {rank.max()}, {done} of {len(seeds)} below 10⁻⁵")
weights = [7 * width + 1 for width in sizes]
record.curve("levenberg/loss", weights, [list(run) for run in zip(*finals, strict=True)], "d", "final loss")
record.curve("levenberg/rank", weights, [list(run) for run in zip(*ranks, strict=True)], "d", "final rank of J")
record.metric("levenberg.full_rank_stuck", stuck)
record.metric("levenberg.wide_worst", max(worst))
narrow = [loss for d, run in zip(weights, finals, strict=True) if d < EXAMPLES for loss in run]
record.metric("levenberg.wide_runs", len(wide))
record.metric("levenberg.wide_full_rank", sum(wide))
record.metric("levenberg.narrow_runs", len(narrow))
record.metric("levenberg.narrow_reached", sum(loss < 1e-5 for loss in narrow))

# %% [markdown]
# ## 4 · A stationary point of a large network
#
# Newton's method finds where the gradient of a network with one neuron vanishes. Of what it finds from 60 starts we
# take the point of least loss, and split the neuron into twenty that share its output weight. The gradient still
# vanishes. Then the point is moved by a random 0.1 per weight.


# %%
def stationary(x, y, starts=60):
    """θ, shape (seeds, 8), of networks with one neuron at which the gradient is zero and the loss is not."""
    f = lambda theta, x, y: gradient(theta, x, y)[0]  # noqa: E731
    each = lambda function: torch.func.vmap(torch.func.vmap(function, in_dims=(0, None, None)))  # noqa: E731
    theta = 0.7 * initial(range(starts), 1).repeat(len(x), 1, 1)  # (seeds, starts, 8)
    for _ in range(60):
        grad, hessian = each(torch.func.grad(f))(theta, x, y), each(torch.func.hessian(f))(theta, x, y)
        damping = 1e-3 * grad.norm(dim=-1)[..., None, None] * torch.eye(theta.shape[-1])
        # Where weights have run off to infinity the matrix may be singular: `solve_ex` gives no error but nan.
        step = torch.linalg.solve_ex(hessian @ hessian + damping, hessian @ grad.unsqueeze(-1)).result
        theta = theta - step.squeeze(-1)
    loss, grad = gradient(theta, x[:, None], y[:, None])
    # There the gradient fades as well; those are not stationary points.
    found = (grad.norm(dim=-1) < 1e-12) & (theta.norm(dim=-1) < 20)
    return theta[torch.arange(len(x)), torch.where(found, loss, math.inf).argmin(1)]


small = stationary(x, y)
shares = torch.rand(20, generator=torch.Generator().manual_seed(5)) + 0.5
inner, bias, outer, last = small.split([INPUTS, 1, 1, 1], dim=1)
point = torch.cat([inner.repeat(1, 20), bias.repeat(1, 20), outer * shares / shares.sum(), last], dim=1)
near = point + 0.1 * torch.randn(point.shape, generator=torch.Generator().manual_seed(6))
loss, grad = gradient(point, x, y)
near_rank = torch.linalg.matrix_rank(jacobian(near, x))
record.metric("stationary.weights", point.shape[1])
record.metric("stationary.gradient", grad.norm(dim=1).max())
record.metric("stationary.loss", loss)
record.metric("stationary.rank", torch.linalg.matrix_rank(jacobian(point, x)).max())
record.metric("stationary.near_rank", near_rank.min())
smallest = torch.linalg.svdvals(jacobian(near, x))[:, -1]
record.metric("stationary.near_smallest.low", smallest.min())
record.metric("stationary.near_smallest.high", smallest.max())
shortfalls += shortfall(near, x, y)
print("loss", [f"{v:.2f}" for v in loss.tolist()], end=", ")
print("rank there", torch.linalg.matrix_rank(jacobian(point, x)).tolist(), "and near", near_rank.tolist())

# %% [markdown]
# ## 5 · Gradient descent, beside the convex problem with the same Jacobian
#
# Learning rate $1/s_{\max}^2$ at the start. Each network's loss is multiplied by its own learning rate, so that one
# optimizer with `lr=1` serves them all. The linearization needs no run: its residual after $t$ steps is
# $(I - \alpha JJ^\top)^t (z - y)$.


# %%
def descend(theta, x, y, rates, steps, at):
    """Gradient descent on each network; yields (t, θ) at the steps in `at`."""
    theta = theta.clone().requires_grad_()
    optimizer = SGD([theta], lr=1.0, fused=True)
    for t in range(steps + 1):
        if t in at:
            yield t, theta.detach().clone()
        theta.grad = rates[:, None] * gradient(theta.detach(), x, y)[1]
        optimizer.step()


shown, marks = log_spaced(SETTINGS["steps"]), (0, 1000, SETTINGS["steps"])
full, reached, start_ranks = [], [], []
for width in SETTINGS["widths"]:
    start = initial(seeds, width)
    J = jacobian(start, x)
    singular = torch.linalg.svdvals(J)
    rates = singular[:, 0] ** -2
    values, vectors = torch.linalg.eigh(J @ J.mT)
    along = (vectors.mT @ (forward(start, x)[0] - y).unsqueeze(-1)).squeeze(-1)
    curves = {"network": [], "linear": [], "smallest": [], "largest": [], "ratio": []}
    for t, theta in descend(start, x, y, rates, SETTINGS["steps"], set(shown) | set(marks)):
        loss, grad = gradient(theta, x, y)
        linear = 0.5 * (along * (1 - rates[:, None] * values) ** t).square().sum(1)
        if t in shown:
            curves["network"].append(loss.tolist())
            curves["linear"].append(linear.tolist())
            # Not to be slow, the singular values only at every fourth point, and not of the widest networks.
            if width <= 64 and shown.index(t) % 4 == 0:
                s = torch.linalg.svdvals(jacobian(theta, x))
                curves["smallest"].append((s[:, -1] ** 2).tolist())
                curves["largest"].append((s[:, 0] ** 2).tolist())
                curves["ratio"].append((grad.square().sum(1) / (2 * loss)).tolist())
                shortfalls += shortfall(theta, x, y)
        if t in marks:
            rank = torch.linalg.matrix_rank(jacobian(theta, x))
            full += (rank == EXAMPLES).tolist()
            start_ranks += (rank == EXAMPLES).tolist() if t == 0 else []
            shortfalls += shortfall(theta, x, y)
        if t == 1000:
            record.metric(f"descent.gap.w{width}", (loss / linear).log())
            change = (jacobian(theta, x) - J).norm(dim=(1, 2)) / J.norm(dim=(1, 2))
            record.metric(f"descent.change.w{width}", change)
    reached += (loss < 1e-5).tolist()
    for name, line in curves.items():
        if line:
            places = shown if len(line) == len(shown) else shown[::4]
            lines = [list(run) for run in zip(*line, strict=True)]
            record.curve(f"descent/w{width}/{name}", places, lines, "step", name)
    end = torch.linalg.svdvals(jacobian(theta, x))
    record.metric(f"descent.w{width}.final", loss)
    record.metric(f"descent.w{width}.linear_final", linear)
    record.metric(f"descent.w{width}.smallest_start", singular[:, -1])
    record.metric(f"descent.w{width}.smallest_end", end[:, -1])
    record.metric(f"descent.w{width}.condition", (singular[:, 0] / singular[:, -1]) ** 2)
    print(f"width {width:4d}: least singular value {singular[:, -1].min():.1e} at the start,", end=" ")
    print(f"loss below its linearization's in {int((loss < linear).sum())} of {len(seeds)}")
record.metric("descent.full_rank", sum(full) / len(full))
record.metric("descent.reached", sum(reached) / len(reached))
for width in (7, 8, 12, 20):  # and the widths of the third experiment
    start_ranks += (torch.linalg.matrix_rank(jacobian(initial(seeds, width), x)) == EXAMPLES).tolist()
record.metric("start.full_rank", sum(start_ranks) / len(start_ranks))
record.metric("start.count", len(start_ranks))
record.metric("polyak.violation", max(*shortfalls, 0.0))
record.metric("polyak.points", len(shortfalls))
print(f"the inequality at {len(shortfalls)} points: {sum(v > 1e-9 for v in shortfalls)} violations")
print(f"full rank at {sum(full)} of {len(full)}, and at {sum(start_ranks)} of {len(start_ranks)} random starts")

# %% [markdown]
# ## 6 · The same networks, the book's other rules
#
# Width 16. Each rule at the best of five learning rates, a factor of √10 apart, by its mean final loss.

# %%
width, steps = 16, 2000
start = initial(seeds, width)
largest = float((torch.linalg.svdvals(jacobian(start, x))[:, 0] ** 2).mean())
RULES = {  # how to make it, and the middle of five learning rates
    "SGD": (lambda p, **own: SGD(p, **own), 1 / largest),
    "Momentum": (lambda p, **own: SGD(p, momentum=0.99, **own), 0.1 / largest),
    "Adam": (lambda p, **own: Adam(p, **own), 0.01),
}
shown = log_spaced(steps)
for name, (make, middle) in RULES.items():
    lrs = [middle * 10 ** (k / 2) for k in (-2, -1, 0, 1, 2)]
    theta = start.repeat(len(lrs), 1, 1).requires_grad_()
    optimizer, losses = make([theta], lr=1.0, extensions=[stacked.Rates(lrs)], fused=True), []
    for _ in range(steps + 1):
        loss, theta.grad = gradient(theta.detach(), x, y)
        losses.append(loss)
        optimizer.step()
    mean = losses[-1].mean(1).nan_to_num(nan=math.inf)
    best = int(mean.argmin())
    lines = [[losses[t][best, i].item() for t in shown] for i in range(len(seeds))]
    record.curve(f"rules/{name}", shown, lines, "step", "loss")
    record.metric(f"rules.{name}.lr", lrs[best])
    record.metric(f"rules.{name}.edge", int(best in (0, 4)))
    record.metric(f"rules.{name}.final", losses[-1][best])
    done = int((losses[-1][best] < 1e-3).sum())
    print(f"{name:9s} best α = {lrs[best]:.2g}, below 10⁻³ in {done} of {len(seeds)}")
theta, history = levenberg(start, x, y, 200)
tail = [[max(v, 1e-30) for v in line] for line in history.T.tolist()]
record.curve("rules/Levenberg–Marquardt", range(len(history)), tail, "step", "loss")
record.metric("rules.Levenberg.steps", [next((t for t, v in enumerate(line) if v < 1e-5), None) for line in tail])
record.metric("rules.Levenberg.final", history[-1])

# %% [markdown]
# ## 7 · Images with random labels
#
# How wide must a network be to fit labels that mean nothing? One hidden layer of ReLU, ten outputs for each image,
# Adam with a learning rate that falls along a cosine from the best of four values.

# %%
torch.set_default_dtype(torch.float32)
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
count, inputs = SETTINGS["images"], dataset.x_train[0].numel()
outputs = count * dataset.classes
total = SETTINGS["epochs"] * math.ceil(count / SETTINGS["batch"])
images = dataset.images("train", device)[:count].flatten(1)


def fit(hidden, lrs, run_seeds):
    """Training errors of networks of one width on labels drawn from their seeds, all trained at once."""
    generators = [torch.Generator().manual_seed(seed) for seed in run_seeds]
    labels = torch.stack([torch.randint(dataset.classes, (count,), generator=g) for g in generators]).to(device)
    orders = [torch.Generator().manual_seed(seed) for seed in run_seeds]
    net = stacked.StackedMLP(run_seeds, inputs, (hidden,), dataset.classes).to(device)
    optimizer = Adam(net.parameters(), lr=1.0, extensions=[stacked.Rates(lrs)], fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for _ in range(SETTINGS["epochs"]):
        order = torch.stack([torch.randperm(count, generator=g) for g in orders]).to(device)
        for chosen in order.split(SETTINGS["batch"], dim=1):
            optimizer.zero_grad()
            logits, wanted = net(images[chosen]), labels.gather(1, chosen)
            (F.cross_entropy(logits.flatten(0, 1), wanted.flatten()) * len(lrs)).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return (net(images).argmax(2) != labels).double().mean(1).tolist()


RATES = [0.001, 0.003, 0.01, 0.03]
errors = []  # a list of runs for each width, at the learning rate that is best on labels of another draw
for hidden in SETTINGS["hidden"]:
    tried = fit(hidden, RATES, [1000] * len(RATES))
    lr = RATES[tried.index(min(tried))]
    errors.append(fit(hidden, [lr] * 3, seeds[:3]))
    print(f"width {hidden:3d}, α = {lr:g}: training error", *(f"{error:.3f}" for error in errors[-1]))
errors = [list(run) for run in zip(*errors, strict=True)]
weights = [hidden * (inputs + 1 + dataset.classes) + dataset.classes for hidden in SETTINGS["hidden"]]
record.curve("images/error", [d / outputs for d in weights], errors, "weights ÷ outputs", "training error")
enough = [i for i, d in enumerate(weights) if d >= outputs]
record.metric("images.wide_error", [max(line[i] for i in enough) for line in errors])
fits = [i for i in range(len(weights)) if all(line[i] == 0 for line in errors)]
record.metric("images.smallest_width", SETTINGS["hidden"][fits[0]] if fits else None)
record.metric("images.smallest_ratio", weights[fits[0]] / outputs if fits else None)
record.metric("images.outputs", outputs)

# %%
path_of_record = records.write(record, out)
