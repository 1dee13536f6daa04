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
# # Adam: what was run
#
# The experiments behind the chapter on Adam (Kingma & Ba 2015). The claims that they decide stand in
# `book/claims/adam.yaml`. The first three experiments are exact: float64, no data, no luck. The last three train
# networks, every optimizer with the same grid of learning rates.

# %% tags=["parameters"]
scale = "quick"  # quick: embedded digits · standard: MNIST on a CPU · paper: MNIST, the paper's own network
seeds = [0, 1, 2]  # fresh seeds for the reported runs; learning rates are chosen with another one
device = "cpu"
out = "adam.json"  # where the record goes, relative to the working directory

# %%
import functools
import math

import torch

from experiments import data, problems, records, stacked, training
from optimizers import SGD, Adagrad, Adam, Chain, RMSprop
from optimizers.adam import AdamDirection

SETTINGS = {
    "quick": {"dataset": "digits", "hidden": [64], "epochs": 6, "bias_epochs": 3},
    "standard": {"dataset": "mnist", "hidden": [64], "epochs": 10, "bias_epochs": 1},
    "paper": {"dataset": "mnist", "hidden": [1000, 1000], "epochs": 45, "bias_epochs": 1},
}[scale]
record = records.new("adam", scale, {"seeds": seeds, "device": device, **SETTINGS})


# %% [markdown]
# ## The rule without its correction
#
# The control of three experiments: Adam with $\hat m_t$ and $\hat v_t$ replaced by $m_t$ and $v_t$. A stage of
# one's own is a class with one function.


# %%
class Uncorrected(AdamDirection):
    """Adam's direction with the bias correction left out."""

    state = ("exp_avg", "exp_avg_sq")

    @staticmethod
    def update(grad, exp_avg, exp_avg_sq, betas, eps):
        beta1, beta2 = betas
        exp_avg = beta1 * exp_avg + (1 - beta1) * grad
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
        return exp_avg / (exp_avg_sq.sqrt() + eps), exp_avg, exp_avg_sq


def steps(stage, *sequences, silence=0):
    """The length of every step, in units of the learning rate, on sequences of gradients side by side.

    Before them comes a silence of so many gradients of 0. Of those all averages stay 0, and only t counts.
    """
    theta = torch.zeros(len(sequences), dtype=torch.float64, requires_grad=True)
    optimizer = Chain([theta], [stage], lr=1.0)
    if silence:
        theta.grad = torch.zeros_like(theta)
        optimizer.step()
        optimizer.state[theta]["step"].fill_(silence)
    lengths = []
    for gradient in torch.tensor(sequences, dtype=torch.float64).T.contiguous():
        before = theta.detach().clone()
        theta.grad = gradient
        optimizer.step()
        lengths.append((theta.detach() - before).abs())
    return torch.stack(lengths, 1).tolist()


# %% [markdown]
# ## 1 · The first step, and the longest one
#
# The first step should have length α whatever the gradient; the longest possible one should be
# $\alpha(1-\beta_1)/\sqrt{1-\beta_2}$, reached by a gradient that was zero for a long time. Two kinds of sequences
# try to exceed that: random ones with heavy tails and long silences, and one that grows by the factor
# $\beta_2/\beta_1$ each step, which the Cauchy–Schwarz inequality singles out.

# %%
exact = {"eps": 1e-16}  # ε → 0, as in the paper's analysis (§2.1)
bound = (1 - 0.9) / math.sqrt(1 - 0.999)
first = [length for (length,) in steps(AdamDirection(**exact), *([10.0**k] for k in range(-6, 7)))]
[[uncorrected]] = steps(Uncorrected(**exact), [1.0])
record.metric("first_step.worst_deviation", max(abs(length - 1) for length in first))
record.metric("first_step.uncorrected", uncorrected)

silent = [0.0] * 299 + [1.0]
rising = [(0.999 / 0.9) ** k for k in range(300)]
sparse, growing = (lengths[-1] for lengths in steps(AdamDirection(**exact), silent, rising, silence=9700))
record.metric("sparse_step.length", sparse)
record.metric("sparse_step.bound", bound)

noisy = []
for seed in seeds:
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** (3 * torch.randn(2000, generator=generator, dtype=torch.float64))
    present = torch.rand(2000, generator=generator, dtype=torch.float64) < 0.05
    noisy.append((size * present).tolist())
worst = [max(lengths) / bound for lengths in steps(AdamDirection(**exact), *noisy)]
record.metric("sparse_step.random_over_bound", worst)
record.metric("sparse_step.growing", growing)
record.metric("sparse_step.growing_over_bound", growing / bound)
record.metric("sparse_step.cauchy_schwarz", bound / math.sqrt(1 - 0.9**2 / 0.999))
print(f"first step: 1 to within {max(abs(length - 1) for length in first):.0e}")
print(f"without the correction: {uncorrected:.4f}")
print(f"after 9,999 zeros: {sparse:.5f}; the paper's bound: {bound:.5f}")
print(f"a growing gradient: {growing:.4f}")

# %% [markdown]
# ## 2 · The start without the correction
#
# A constant gradient. With the correction every step has length α; without it
# $\alpha(1-\beta_1^t)/\sqrt{1-\beta_2^t}$, which first grows.

# %%


def key(beta2):
    """`beta2_999` for 0.999: the name of its metrics."""
    return f"beta2_{str(beta2)[2:]}"


horizon = 400
record.curve(
    "startup/corrected", list(range(1, 201)), steps(AdamDirection(**exact), [1.0] * 200), "step", "length / α"
)
for beta2 in (0.99, 0.999, 0.9999):
    [lengths] = steps(Uncorrected((0.9, beta2), 1e-16), [1.0] * horizon)
    record.curve(f"startup/{beta2}", list(range(1, 201)), [lengths[:200]], "step", "length / α")
    record.metric(f"startup.{key(beta2)}.longest", max(lengths))
    record.metric(f"startup.{key(beta2)}.longest_at", lengths.index(max(lengths)) + 1)
    print(f"β₂ = {beta2}: up to {max(lengths):.2f} α, at step {lengths.index(max(lengths)) + 1}")

# %% [markdown]
# ## 3 · Multiply the loss by a constant
#
# The book's quadratic, 100 steps. The path should not change, until $\sqrt{v}$ comes near ε.


# %%
@functools.cache
def path(loss_scale, eps, steps=100):
    bowl = problems.Quadratic()
    theta = bowl.initial().requires_grad_()
    optimizer = Adam([theta], lr=0.01, eps=eps)
    points = [theta.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        (loss_scale * bowl.loss(theta)).backward()
        optimizer.step()
        points.append(theta.detach().clone())
    return torch.stack(points)


def deviation(loss_scale, eps):
    """Largest distance between corresponding points of the two paths, in units of θ."""
    return (path(loss_scale, eps) - path(1.0, eps)).abs().max().item()


for name, loss_scale, eps in [
    ("up", 1e6, 1e-8),
    ("down", 1e-6, 1e-16),
    ("down_default_eps", 1e-6, 1e-8),
    ("down_tiny_default_eps", 1e-9, 1e-8),
]:
    record.metric(f"invariance.{name}", deviation(loss_scale, eps))
    print(f"loss × {loss_scale:.0e}, ε = {eps:.0e}: the path moves by {deviation(loss_scale, eps):.0e}")
exponents = list(range(-10, 7))
record.curve(
    "invariance/default_eps", exponents, [[deviation(10.0**k, 1e-8) for k in exponents]], "log10 scale", "deviation"
)

# %% [markdown]
# ## 4 · Training
#
# Logistic regression with $\alpha_t = \alpha/\sqrt t$ (§6.1) and a network with one hidden layer, or at paper scale
# two of 1,000, at constant α (§6.2). Every optimizer has the same number of learning rates, spaced by $\sqrt{10}$
# around its customary one; where the best is at an end, the grid is extended. They are compared by the
# training loss at the end, as in the paper, with fresh seeds.

# %%
dataset = data.load(SETTINGS["dataset"])
record.uses(dataset)
HIDDEN = {"logistic": (), "mlp": tuple(SETTINGS["hidden"])}
DECAY = {"logistic": "1/√t", "mlp": None}
OPTIMIZERS = {  # how to make it, and the middle of its grid (a power of √10) on each model
    "SGD": (lambda p, **own: SGD(p, **own), {"logistic": 1, "mlp": -1}),
    "Nesterov": (lambda p, **own: SGD(p, momentum=0.9, nesterov=True, **own), {"logistic": 0, "mlp": -2}),
    "Adagrad": (lambda p, **own: Adagrad(p, **own), {"logistic": -1, "mlp": -2}),
    "RMSprop": (lambda p, **own: RMSprop(p, alpha=0.9, **own), {"logistic": -1, "mlp": -4}),
    "Adam": (lambda p, **own: Adam(p, **own), {"logistic": -1, "mlp": -4}),
}


def inverse_sqrt(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) ** -0.5)


def train(model, make, rates, run_seeds, epochs):
    """By learning rate a history for every seed; all these networks are trained at once."""
    return stacked.train_grid(
        make,
        rates,
        run_seeds,
        dataset,
        hidden=HIDDEN[model],
        epochs=epochs,
        device=device,
        schedule=inverse_sqrt if DECAY[model] else None,
    )


def final_loss(history):
    """Mean mini-batch loss of the last epoch; infinite for a run that diverged."""
    if history.diverged:
        return math.inf
    per_epoch = len(history.train_loss) // SETTINGS["epochs"]
    return sum(history.train_loss[-per_epoch:]) / per_epoch


def tune(model, name, tuning_seed=1000, points=5):
    """The best learning rate, as a power of √10, and the loss at each one tried."""
    make, middles = OPTIMIZERS[name]
    middle, losses = middles[model], {}
    todo = list(range(middle - points // 2, middle + points // 2 + 1))
    while todo:
        runs = train(model, make, [10 ** (k / 2) for k in todo], [tuning_seed], SETTINGS["epochs"])
        losses |= {k: final_loss(run) for k, (run,) in zip(todo, runs.values(), strict=True)}
        best = min(losses, key=losses.__getitem__)
        todo = [k for k in (best - 1, best + 1) if k not in losses and abs(k - middle) <= 6]
    return best, dict(sorted(losses.items()))


# %%
loss = {}
for model in HIDDEN:
    for name, (make, _) in OPTIMIZERS.items():
        best, tried = tune(model, name)
        (runs,) = train(model, make, [10 ** (best / 2)], seeds, SETTINGS["epochs"]).values()
        loss[model, name] = [final_loss(run) for run in runs]
        record.metric(f"{model}.{name}.lr", 10 ** (best / 2))
        record.metric(f"{model}.{name}.final_loss", loss[model, name])
        x = training.downsample(runs[0].train_loss, 100)[0]
        ys = [training.downsample(run.train_loss, 100)[1] for run in runs]
        record.curve(f"{model}/{name}", x, ys, "step", "training loss")
        record.curve(
            f"{model}_lr/{name}", [10 ** (k / 2) for k in tried], [list(tried.values())], "α", "final loss"
        )
        print(f"{model:9s} {name:9s} α = {10 ** (best / 2):7.4f}   tried {len(tried)}")
    for other in OPTIMIZERS:
        if other != "Adam":
            pairs = zip(loss[model, "Adam"], loss[model, other], strict=True)
            # ln of the ratio: −0.1 is ten percent lower, and the interval cannot promise less than no loss
            record.metric(f"{model}.adam_over_{other.lower()}", [math.log(a / b) for a, b in pairs])
    record.metric(f"{model}.adam_final_over_start", [x / math.log(dataset.classes) for x in loss[model, "Adam"]])

# %% [markdown]
# ## 5 · Training without the correction
#
# The same network at learning rates spaced by 2. A run counts as stable when no mini-batch loss exceeds 1.25 times
# the one at the start. How much smaller must α be without the correction, and is the best run with it the
# better one?

# %%
exponents = list(range(-15, -1))


def stable_and_losses(stage, beta2):
    """For every seed, the largest stable learning rate, as a power of 2, and the final loss at every one."""
    rates, make = [2.0**k for k in exponents], lambda p, **own: Chain(p, [stage((0.9, beta2), 1e-8)], **own)
    results = []
    for histories in zip(*train("mlp", make, rates, seeds, SETTINGS["bias_epochs"]).values(), strict=True):
        largest, losses = None, []
        for k, history in zip(exponents, histories, strict=True):
            fifth = history.train_loss[-(len(history.train_loss) // 5) :]
            losses.append(math.inf if history.diverged else sum(fifth) / len(fifth))
            if not history.diverged and max(history.train_loss) <= 1.25 * history.train_loss[0]:
                largest = k
        results.append((largest, losses))
    return results


for beta2 in (0.99, 0.9999):
    runs = {stage: stable_and_losses(stage, beta2) for stage in (AdamDirection, Uncorrected)}
    pairs = list(zip(runs[AdamDirection], runs[Uncorrected], strict=True))
    halvings = [a[0] - b[0] for a, b in pairs]
    record.metric(f"bias.{key(beta2)}.stable_halvings", halvings)
    record.metric(f"bias.{key(beta2)}.best_loss", [math.log(min(a[1]) / min(b[1])) for a, b in pairs])
    if beta2 == 0.9999:
        record.metric("bias.trained_over_start", [min(a[1]) / math.log(dataset.classes) for a, _ in pairs])
    for stage, label in ((AdamDirection, "with"), (Uncorrected, "without")):
        ys = [losses for _, losses in runs[stage]]
        record.curve(f"bias_{label}/{beta2}", [2.0**k for k in exponents], ys, "α", "final loss")
    print(f"β₂ = {beta2}: without the correction the largest stable α is halved {halvings} times")

# %%
path_of_record = records.write(record, out)
