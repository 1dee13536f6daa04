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
# # Large scale: what was run
#
# The experiments behind the chapter on Bottou, Curtis and Nocedal (2018). The claims that they decide stand in
# `book/claims/large_scale.yaml`. The first five experiments are about quadratics with normal noise, in float64, and
# have exact answers to be compared with. The last two are about data, and sample them with replacement, as the
# theory does.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: as standard, more of everything
seeds = [0, 1, 2]  # of the noise, of the synthetic examples, and of the mini-batches
device = "cpu"
out = "large_scale.json"  # where the record goes, relative to the working directory

# %%
import math

import numpy as np
import torch
from torch.nn import functional as F

from experiments import data, problems, records
from optimizers import SGD

SETTINGS = {  # runs: simulated per seed · examples, features: logistic regression · images, steps: softmax
    "quick": {"runs": 1000, "examples": 2000, "features": 30, "dataset": "digits", "images": 1437, "steps": 1500},
    "standard": {
        "runs": 20000,
        "examples": 50000,
        "features": 100,
        "dataset": "mnist",
        "images": 10000,
        "steps": 20000,
    },
    "paper": {
        "runs": 100000,
        "examples": 400000,
        "features": 200,
        "dataset": "mnist",
        "images": 60000,
        "steps": 100000,
    },
}[scale]
PASSES, BATCH = 50, 10
record = records.new("large_scale", scale, {"seeds": seeds, "device": device, "passes": PASSES, **SETTINGS})

# %% [markdown]
# ## Quadratics with noise
#
# The loss ½ Σ h θ², its gradient with independent normal noise. All arms of an experiment see the same noise.


# %%
def simulate(rates, h, start, steps, runs, deviations=None):
    """SGD with the package; yields t and θ, (arms, seeds, runs, len(h)), for t = 0, 1, …, steps.

    `rates` and `deviations` (of the noise) hold a function of t for every arm; the latter are 1 by default. All
    arms are one parameter: the gradient is multiplied by the learning rate, as the step is linear in the gradient.
    """
    deviations = deviations or [lambda t: 1.0] * len(rates)
    h, start = (torch.as_tensor(x, dtype=torch.float64) for x in (h, start))
    theta = start.repeat(len(rates), len(seeds), runs, 1).requires_grad_()
    value = theta.detach()
    optimizer = SGD([theta], lr=1.0)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    yield 0, value
    for t in range(1, steps + 1):
        noise = torch.stack([torch.randn(runs, len(h), generator=g) for g in generators]).double()
        alpha, deviation = (
            torch.tensor([of(t) for of in arms], dtype=torch.float64)[:, None, None, None]
            for arms in (rates, deviations)
        )
        theta.grad = alpha * torch.addcmul(h * value, deviation, noise)
        optimizer.step()
        yield t, value


def gap(theta, h):
    """The mean of ½ Σ h θ² over the runs, one number per seed."""
    return 0.5 * (torch.as_tensor(h, dtype=torch.float64) * theta.square()).sum(-1).mean(1)


def expected(rates, h, start, variances):
    """The expected ½ h θ² at t = 0, 1, …, exactly: E[θ²] ← (1 − αh)² E[θ²] + α² × the variance of the noise."""
    s = [start**2]
    for alpha, variance in zip(rates, variances, strict=True):
        s.append((1 - alpha * h) ** 2 * s[-1] + alpha**2 * variance)
    return 0.5 * h * np.array(s)


def exponent(x, ys):
    """The slope of ln y against ln x, one per row of `ys`."""
    return np.polyfit(np.log(x), np.log(np.asarray(ys)).T, 1)[0]


def constant(alpha):
    return lambda t: alpha


# %% [markdown]
# ## 1 · The bowl, with noise
#
# The book's running quadratic; noise of variance 1 in both coordinates. $M = 2$, $L = 20$, $\ell = 1$.

# %%
bowl = problems.Quadratic()
h_bowl = bowl.eigenvalues
arms = {
    "fixed": constant(0.05),
    "quarter": constant(0.0125),
    "diminishing": lambda t: 2 / (39 + t),
}
places = sorted({round(10 ** (k / 20)) for k in range(64)})  # 1 to about 1,400
lines = {name: [] for name in arms}
for t, values in simulate(list(arms.values()), h_bowl, bowl.initial(), places[-1], 400):
    if t in places:
        for line, value in zip(lines.values(), values, strict=True):
            line.append(gap(value, h_bowl))
for name, line in lines.items():
    record.curve(f"bowl/{name}", places, torch.stack(line, 1), "step", "expected loss")
exact = (bowl.initial().numpy()[:, None] * (1 - 0.05 * h_bowl.numpy()[:, None]) ** np.array(places)) ** 2
without = 0.5 * h_bowl.numpy() @ exact
seen = without > 1e-6  # what is below would only stretch the axis
record.curve("bowl/full", np.array(places)[seen], [without[seen]], "step", "loss without noise")

# The theorem's bound, at every step: M = 2, unbiased gradients with noise of constant variance.
low, high = h_bowl.tolist()
excess = []
for alpha in (0.05, 0.025, 0.0125, 0.00625):
    steps = np.arange(1, 2001)
    path = sum(
        expected([alpha] * 2000, h, x, [1.0] * 2000)
        for h, x in zip(h_bowl.tolist(), bowl.initial().tolist(), strict=True)
    )
    floor = alpha * high * 2 / (2 * low)
    bound = floor + (1 - alpha * low) ** steps * (path[0] - floor)
    excess.append((path[1:] / bound).max())
    if alpha == 0.05:
        record.metric("bound.loose", bound[-1] / path[-1])
        record.metric("bound.floor", path[-1])
record.metric("bound.largest", max(excess))
print("bowl: largest expected gap ÷ bound", *(f"{x:.4f}" for x in excess))

# %% [markdown]
# ## 2 · The floor of a fixed step
#
# One curvature, $h = 1$, noise of variance 1. The gap is averaged over the steps after it has settled.

# %%
ALPHAS = [0.2, 0.1, 0.05, 0.025]
SETTLED, LAST = 200, 600  # (1 − 0.025)^(2 · 200) is 4e-5
sums = [0.0] * len(ALPHAS)
paths = [[] for _ in ALPHAS]
early = sorted({round(10 ** (k / 20)) for k in range(53)})  # 1 to 400
for t, values in simulate([constant(a) for a in ALPHAS], [1.0], [1.0], LAST, 4 * SETTINGS["runs"]):
    gaps = [gap(value, [1.0]) for value in values]
    for i, now in enumerate(gaps):
        sums[i] = sums[i] + now * (t > SETTLED) / (LAST - SETTLED)
        if t in early:
            paths[i].append(now)
for alpha, total, path in zip(ALPHAS, sums, paths, strict=True):
    key = f"a{round(1000 * alpha):04d}"
    record.metric(f"floor.gap.{key}", total)
    record.metric(f"floor.over_exact.{key}", total / (alpha / (2 * (2 - alpha))))
    record.curve(f"floor/{alpha}", early, torch.stack(path, 1), "step", "gap")
    print(f"α = {alpha}: gap {total.mean():.4f}, exact {alpha / (2 * (2 - alpha)):.4f}, bound {alpha / 2:.4f}")
record.curve("floor/measured", ALPHAS, torch.stack(sums, 1), "α", "gap")
record.metric("floor.halving", sums[2] / sums[3])
record.metric("floor.over_bound", max((s / (a / 2)).max() for s, a in zip(sums, ALPHAS, strict=True)))

# %% [markdown]
# ## 3 · Diminishing steps, and averaged iterates
#
# $\alpha_k = \beta/(4 + k)$ with β = 2, and with β = 0.2, which is below $1/\ell = 1$. The mean of the iterates
# $\theta_0, \dots, \theta_{k-1}$ with a fixed step, and with one that falls like $t^{-2/3}$.

# %%
STEPS = 10_000
rates = {
    "large": lambda t: 2 / (4 + t),
    "small": lambda t: 0.2 / (4 + t),
    "best": lambda t: 1 / (4 + t),
    "fixed": constant(0.1),
    "decaying": lambda t: t ** (-2 / 3),
}
AVERAGED = ("fixed", "decaying")
places = sorted({round(10 ** (k / 20)) for k in range(81)})
lines = {name: [] for name in rates}
means = {name: torch.zeros(len(seeds), SETTINGS["runs"], 1, dtype=torch.float64) for name in AVERAGED}
for t, values in simulate(list(rates.values()), [1.0], [1.0], STEPS, SETTINGS["runs"]):
    now = dict(zip(rates, values, strict=True))
    if t in places:
        for name, line in lines.items():
            line.append(gap(means[name] if name in AVERAGED else now[name], [1.0]))
    for name, mean in means.items():
        mean += (now[name] - mean) / (t + 1)
k = np.array(places)
for name, line in lines.items():
    lines[name] = torch.stack(line, 1)
    where = "averaging" if name in AVERAGED else "diminishing"
    record.curve(f"{where}/{name}", places, lines[name], "step k", "gap")
    late = k >= (1000 if name in AVERAGED else 100)
    slopes = exponent(k[late], lines[name][:, torch.from_numpy(late)])
    record.metric(f"{where}.slope.{name}", slopes)
    record.metric(f"{where}.last.{name}", lines[name][:, -1])
    print(f"{name:9s} exponent {slopes.mean():.3f}, gap at the end {lines[name][:, -1].mean():.2e}")

steps = np.arange(1, STEPS + 1)
for name in ("large", "small", "best"):
    path = expected([rates[name](t) for t in steps], 1.0, 1.0, np.ones(STEPS))
    scaled = path[:-1] * (4 + steps)  # the paper's w_k is θ_{k−1}
    record.curve(f"diminishing/{name}_exact", places, [path[places]], "step k", "expected gap")
    if name == "large":
        record.metric("diminishing.largest", scaled.max())
        for at in (100, 1000, 10000):
            record.metric(f"diminishing.scaled.k{at}", scaled[at - 1])
        print("β = 2: (γ + k) × expected gap", *(f"{scaled[at - 1]:.4f}" for at in (100, 1000, 10000)))
        worst = (lines[name].mean(0).numpy() / path[places] - 1)[k >= 10]
        record.metric("diminishing.simulated_over_exact", np.abs(worst).max())

# %% [markdown]
# ## 4 · Growing batches
#
# A batch of $n_t$ examples has noise of variance $1/n_t$. It grows as in the paper's corollary 5.2,
# $n_t = \lceil \tau^{t-1} \rceil$, at a fixed α = 0.2.

# %%
GROWTHS = {"g100": 1.0, "g110": 1.1, "g125": 1.25, "g200": 2.0}
ALPHA, LAST = 0.2, 80
sizes = {name: [math.ceil(tau**t - 1e-9) for t in range(LAST)] for name, tau in GROWTHS.items()}
every = list(range(LAST + 1))
lines = {name: [] for name in GROWTHS}
deviations = [lambda t, n=n: n[t - 1] ** -0.5 for n in sizes.values()]
for _, values in simulate([constant(ALPHA)] * 4, [1.0], [1.0], LAST, 4 * SETTINGS["runs"], deviations):
    for line, value in zip(lines.values(), values, strict=True):
        line.append(gap(value, [1.0]))
for name, tau in GROWTHS.items():
    line = torch.stack(lines[name], 1).numpy()
    used = np.cumsum(np.array(sizes[name], dtype=float))
    record.curve(f"batches/{name}", every, line, "step", "gap")
    record.curve(f"batches/{name}_work", used, line[:, 1:], "gradients evaluated", "gap")
    if tau > 1:
        late = np.arange(20, LAST + 1)
        rate = np.polyfit(late, np.log(line[:, late]).T, 1)[0]
        record.metric(f"batches.rate_over_exact.{name}", rate / math.log(max(1 / tau, (1 - ALPHA) ** 2)))
        record.metric(f"batches.work.{name}", exponent(used[-30:], line[:, -30:]))
        record.metric(f"batches.scaled.{name}", line[:, -1] * used[-1])
        print(f"growth {tau}: factor per step {np.exp(rate.mean()):.4f}", end=", exponent in gradients ")
        print(
            f"{exponent(used[-30:], line[:, -30:]).mean():.3f}, gap × gradients {line[:, -1].mean() * used[-1]:.3g}"
        )
# Three ways to the same limit ½ / N: the gap times the number N of gradients.
limits = {
    "best": [STEPS * x for x in record.get("diminishing.last.best")],
    "averaged": [STEPS * x for x in record.get("averaging.last.fixed")],
    "batches": record.get("batches.scaled.g125"),
}
for name, values in limits.items():
    record.metric(f"limit.{name}", values)
    print(f"gap × gradients, {name}: {np.mean(values):.3f}")

# %% [markdown]
# ## 5 · Passes over the data: SGD and a batch method
#
# Logistic regression. The features have variances from 1 to $10^{-3}$; every seed has its own examples. All
# learning rates and seeds go at once, as rows of one tensor: the gradient of a run is multiplied by its learning
# rate, which is the same thing, because the step is linear in the gradient. One more problem serves to choose.

# %%
n, d = SETTINGS["examples"], SETTINGS["features"]
deviation = torch.logspace(0, -1.5, d, dtype=torch.float64)
every_seed = [*seeds, 1000]  # the last one is for choosing learning rates


def examples(seed, count):
    """Features (count, d) times the label, ±1, which the loss depends on; and the weights that drew the labels."""
    generator = torch.Generator().manual_seed(seed)
    planted = torch.randn(d, dtype=torch.float64, generator=generator)
    x = deviation * torch.randn(count, d, dtype=torch.float64, generator=generator)
    positive = torch.rand(count, dtype=torch.float64, generator=generator) < (x @ planted).sigmoid()
    return x * torch.where(positive, 1.0, -1.0)[:, None], planted


problems_of = [examples(seed, 2 * n) for seed in every_seed]
both, planted = (torch.stack(part).to(device) for part in zip(*problems_of, strict=True))
train, test = both[:, :n].contiguous(), both[:, n:].contiguous()  # (problems, n, d)
penalty = 1 / n


def loss(theta, x, penalty=0.0):
    """Mean logistic loss of theta (…, problems, d) on x (problems, n, d), plus the penalty; (…, problems)."""
    margins = torch.einsum("pnd,...pd->...pn", x, theta)
    return F.softplus(-margins).mean(-1) + 0.5 * penalty * theta.square().sum(-1)


def newton():
    """The minimum of the training loss, (problems, d)."""
    theta = torch.zeros(len(train), d, dtype=torch.float64, device=device)
    for _ in range(30):
        p = torch.einsum("pnd,pd->pn", train, theta).neg().sigmoid()
        gradient = penalty * theta - torch.einsum("pnd,pn->pd", train, p) / n
        hessian = torch.einsum("pnd,pn,pne->pde", train, p * (1 - p), train) / n
        hessian += penalty * torch.eye(d, dtype=torch.float64, device=device)
        theta = theta - torch.linalg.solve(hessian, gradient)
    return theta, hessian


minimum, hessian = newton()
least, least_test = loss(minimum, train, penalty), loss(planted, test)
spectrum = torch.linalg.eigvalsh(hessian)
record.metric("passes.condition", (spectrum[:, -1] / spectrum[:, 0])[:-1])
start_gap = loss(torch.zeros_like(minimum), train, penalty) - least


def stochastic(rates, falling):
    """SGD on mini-batches drawn with replacement: the gaps (points, rows, problems), and those on new examples.

    A row has the learning rate `rates`, or where `falling` is 1 that divided by 1 + the number of passes so far.
    """
    rates, falling = (torch.tensor(v, dtype=torch.float64, device=device)[:, None, None] for v in (rates, falling))
    theta = torch.zeros(len(rates), len(train), d, dtype=torch.float64, device=device, requires_grad=True)
    optimizer = SGD([theta], lr=1.0)
    generator = torch.Generator().manual_seed(0)
    rows, value = torch.arange(len(train), device=device)[:, None], theta.detach()
    gaps, tests = [], []
    for t in range(PASSES * n // BATCH + 1):
        if t * BATCH in CHECKS:
            gaps.append(loss(value, train, penalty) - least)
            tests.append(loss(value, test) - least_test)
        batch = train[rows, torch.randint(n, (len(train), BATCH), generator=generator).to(device)]
        share = torch.einsum("pbd,rpd->rpb", batch, value).neg().sigmoid()
        gradient = penalty * value - torch.einsum("pbd,rpb->rpd", batch, share) / BATCH
        theta.grad = rates / (1 + falling * (t * BATCH / n)) * gradient
        optimizer.step()
    return torch.stack(gaps).nan_to_num(math.inf), torch.stack(tests).nan_to_num(math.inf)


POINTS = sorted({round(10 ** (k / 8), 3) for k in range(-8, 13)} | {1.0, 2.0, 5.0, 20.0, 50.0})
POINTS = [0.1, *(p for p in POINTS if 0.1 < p <= PASSES)]
CHECKS = [round(p * n / BATCH) * BATCH for p in POINTS]
RATES = [2.0**k for k in range(-9, 3)]
sgd, sgd_test = stochastic(RATES * 2, [0.0] * len(RATES) + [1.0] * len(RATES))
first, last = POINTS.index(1.0), POINTS.index(50.0)
tuning = sgd[:, :, -1]  # on the problem that serves to choose
chosen = {
    "sgd": int(tuning[first, : len(RATES)].argmin()),
    "sgd_tuned": int(tuning[last, : len(RATES)].argmin()),
    "falling": len(RATES) + int(tuning[last, len(RATES) :].argmin()),
}


def batch_method():
    """L-BFGS on each problem: the gaps, training and new examples, after k evaluations of the full gradient."""
    gaps, tests = [], []
    for i in range(len(seeds)):
        theta = torch.zeros(d, dtype=torch.float64, device=device, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [theta],
            max_iter=200,
            max_eval=PASSES + 1,
            tolerance_grad=0,
            tolerance_change=0,
            history_size=10,
            line_search_fn="strong_wolfe",
        )
        seen = []

        def closure(i=i, theta=theta, optimizer=optimizer, seen=seen):
            optimizer.zero_grad()
            value = loss(theta[None], train[i : i + 1], penalty)[0]
            value.backward()
            with torch.no_grad():
                on_new = loss(theta[None], test[i : i + 1])[0] - least_test[i]
            now = (value.item() - least[i].item(), on_new.item())
            seen.append(min(seen[-1], now) if seen else now)  # a line search may look farther than it goes
            return value

        optimizer.step(closure)
        seen = (seen + [seen[-1]] * PASSES)[1 : PASSES + 1]
        gaps.append([on_train for on_train, _ in seen])
        tests.append([on_new for _, on_new in seen])
    return np.array(gaps).clip(1e-16), np.array(tests)


lbfgs, lbfgs_test = batch_method()


def full_gradient(rates):
    """Gradient descent on the whole training set, one step per pass: the gaps (passes, rates, problems)."""
    alpha = torch.tensor(rates, dtype=torch.float64, device=device)[:, None, None]
    theta = torch.zeros(len(rates), len(train), d, dtype=torch.float64, device=device, requires_grad=True)
    optimizer = SGD([theta], lr=1.0)
    gaps = []
    for _ in range(PASSES):
        (gradient,) = torch.autograd.grad(loss(theta, train, penalty).sum(), theta)
        theta.grad = alpha * gradient
        optimizer.step()
        gaps.append(loss(theta.detach(), train, penalty) - least)
    return torch.stack(gaps)


whole = full_gradient([2.0**k for k in range(-2, 6)]).nan_to_num(math.inf)
whole = whole[:, int(whole[-1, :, -1].argmin()), :-1].T.cpu().numpy()

# %%
axis = list(range(1, PASSES + 1))
AXES = ("passes over the data", "training loss − minimum"), ("passes over the data", "loss on new examples − best")
record.curve("passes/lbfgs", axis, lbfgs, *AXES[0])
record.curve("passes/lbfgs_test", axis, lbfgs_test, *AXES[1])
record.curve("passes/full", axis, whole, *AXES[0])
for name, row in chosen.items():
    line, test_line = sgd[:, row, :-1].T.cpu().numpy(), sgd_test[:, row, :-1].T.cpu().numpy()
    record.curve(f"passes/{name}", POINTS, line, *AXES[0])
    record.curve(f"passes/{name}_test", POINTS, test_line, *AXES[1])
    record.metric(f"passes.lr.{name}", RATES[row % len(RATES)])
    record.metric(f"passes.gap.{name}_1", line[:, first])
    record.metric(f"passes.gap.{name}_50", line[:, last])
    record.metric(f"passes.new.{name}_50", test_line[:, last])
    overtaken = [
        next((p for p in axis if lbfgs[i, p - 1] < np.interp(p, POINTS, line[i])), math.inf)
        for i in range(len(seeds))
    ]
    record.metric(f"passes.overtaken.{name}", overtaken)
    record.metric(f"passes.after_1{'' if name == 'sgd' else '_' + name}", np.log(line[:, first] / lbfgs[:, 0]))
    record.metric(f"passes.after_50{'' if name == 'sgd' else '_' + name}", np.log(line[:, last] / lbfgs[:, -1]))
    print(f"{name:9s} α = {RATES[row % len(RATES)]}: after 1 pass {line[:, first].mean():.1e}", end=", ")
    print(f"after 50 {line[:, last].mean():.1e}, new examples {test_line[:, last].mean():.2e}", end=", ")
    print("overtaken after", *overtaken)
record.metric("passes.new.lbfgs_50", lbfgs_test[:, -1])
enough = [1 + int(np.argmax(line < 1.1 * line[-1])) for line in lbfgs_test]
record.metric("passes.enough", enough)  # the new examples gain no more than a tenth from the passes after that
record.metric("passes.estimation", d / (2 * n))
record.metric("passes.gap.lbfgs_1", lbfgs[:, 0])
record.metric("passes.gap.lbfgs_50", lbfgs[:, -1])
record.metric("passes.gap.full_50", whole[:, -1])
record.metric("passes.descended", np.log(lbfgs[:, -1] / start_gap[:-1].cpu().numpy()))
print(f"L-BFGS    after 1 pass {lbfgs[:, 0].mean():.1e}, after 50 {lbfgs[:, -1].mean():.1e}", end=", ")
print(f"new examples {lbfgs_test[:, -1].mean():.2e} (d/2n = {d / (2 * n):.2e}), enough after", *enough)
print(f"gradient descent after 50 {whole[:, -1].mean():.1e}; condition {record.get('passes.condition')}")

# %% [markdown]
# ## 6 · The floor on images
#
# Softmax regression with the penalty ½ λ' ‖θ‖², λ' = 0.01, on images with a constant feature, scaled to a mean
# square length of 1. The minimum is found by L-BFGS in float64; SGD starts there, so that all it does is noise.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
m = SETTINGS["images"]
x = dataset.images("train", device)[:m].flatten(1).double()
x = torch.cat([x, torch.ones(m, 1, dtype=x.dtype, device=device)], 1)
x = x / x.square().sum(1).mean().sqrt()  # mean square length 1
y = dataset.labels("train", device)[:m]
targets = F.one_hot(y, dataset.classes).double()
DECAY = 0.01


def objective(theta):
    """The penalized loss of theta (…, features, classes); (…)."""
    logits = torch.einsum("nf,...fc->...nc", x, theta)
    fit = logits.logsumexp(-1) - (logits * targets).sum(-1)
    return fit.mean(-1) + 0.5 * DECAY * theta.square().sum((-1, -2))


theta = torch.zeros(x.shape[1], dataset.classes, dtype=x.dtype, device=device, requires_grad=True)
optimizer = torch.optim.LBFGS(
    [theta],
    max_iter=1000,
    max_eval=2000,
    tolerance_grad=1e-10,
    tolerance_change=0,
    history_size=20,
    line_search_fn="strong_wolfe",
)


def closure():
    optimizer.zero_grad()
    value = objective(theta)
    value.backward()
    return value


optimizer.step(closure)
best = theta.detach()
bottom = objective(best)
record.metric("softmax.gradient_at_minimum", theta.grad.abs().max())
# The Hessian of the softmax loss is at most ½ XᵀX / n, in every class.
largest = 0.5 * torch.linalg.eigvalsh(x.T @ x / m)[-1].item() + DECAY
record.metric("softmax.curvature", largest)
residual = (x @ best).softmax(-1) - targets
trace = ((x.square().sum(1) * residual.square().sum(1)).mean() - (x.T @ residual / m).square().sum()).item()
record.metric("softmax.trace", trace)

LARGEST = 0.5 / largest
SIZES = [1, 4, 16]
CASES = [(LARGEST / 2**k, b) for k in range(4) for b in SIZES]


def wander(points):
    """Mini-batches with replacement from the minimum: the gap at `points` steps, (points, cases, seeds)."""
    theta = best.expand(len(CASES), len(seeds), *best.shape).clone()
    theta = theta.float().requires_grad_()
    optimizer = SGD([theta], lr=1.0)
    alpha = torch.tensor([a for a, _ in CASES], device=device)[:, None, None, None]
    # A smaller batch is the first examples of the largest one. (cases, batch)
    weight = torch.stack([(torch.arange(max(SIZES)) < b).float() / b for _, b in CASES]).to(device)
    x32, value = x.float(), theta.detach()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    gaps = []
    for t in range(1, SETTINGS["steps"] + 1):
        batch = torch.stack([torch.randint(m, (max(SIZES),), generator=g) for g in generators]).to(device)
        images, wanted = x32[batch], targets[batch].float()
        share = torch.einsum("sbf,rsfc->rsbc", images, value).softmax(-1) - wanted
        share *= weight[:, None, :, None]
        theta.grad = alpha * (DECAY * value + torch.einsum("sbf,rsbc->rsfc", images, share))
        optimizer.step()
        if t in points:
            gaps.append(objective(value.double()) - bottom)
    return torch.stack(gaps)


STEPS = SETTINGS["steps"]
points = [round(STEPS * k / 100) for k in range(1, 101)]
gaps = wander(set(points)).cpu().numpy()
floors = gaps[50:].mean(0)  # (cases, seeds)
for i, (alpha, b) in enumerate(CASES):
    print(f"α = {alpha:.4f}, batch {b:2d}: floor {floors[i].mean():.2e}, ÷ α tr C / 4b", end=" ")
    print(f"{floors[i].mean() / (alpha * trace / (4 * b)):.3f}")
table = floors.reshape(4, len(SIZES), len(seeds))
alphas = [LARGEST / 2**k for k in range(4)]
for j, b in enumerate(SIZES):
    record.curve(f"softmax/b{b}", alphas, table[:, j].T, "α", "gap")
    record.curve(f"softmax/b{b}_path", points, gaps[:, j].T, "step", "gap at the largest α")
record.metric("softmax.slope_in_lr", exponent(alphas, table[:, 1].T))
record.metric("softmax.slope_in_batch", exponent(SIZES, table[1].T))
record.metric("softmax.over_prediction_largest", table[0, 1] / (alphas[0] * trace / (4 * SIZES[1])))
record.metric("softmax.over_prediction_smallest", table[3, 1] / (alphas[3] * trace / (4 * SIZES[1])))
record.metric("softmax.bound_over_floor", largest * alphas[3] * trace / SIZES[1] / (2 * DECAY) / table[3, 1])
smallest = gaps[:, 3 * len(SIZES) + 1].mean(1)
record.metric("softmax.settled", smallest[75:].mean() / smallest[50:75].mean())
record.metric("softmax.condition", largest / DECAY)
record.metric("softmax.twice_condition", 2 * largest / DECAY)
for name in ("slope_in_lr", "slope_in_batch", "settled", "bound_over_floor", "condition", "gradient_at_minimum"):
    print(f"{name}: {np.mean(record.get(f'softmax.{name}')):.3g}")

# %%
path_of_record = records.write(record, out)
