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
# # LAMB and Adafactor: what was run
#
# The experiments behind the chapter on LAMB (You et al. 2020) and Adafactor (Shazeer and Stern 2018). The claims
# that they decide stand in `book/claims/lamb.yaml`. The first six are exact, in float64; the last one trains a
# small language model with batches of two sizes.

# %% tags=["parameters"]
scale = "quick"  # quick: a Markov source · standard: tinyshakespeare on a CPU · paper: a larger model, for a GPU
seeds = [0, 1, 2]  # fresh seeds for the reported runs; learning rates are chosen with another one
device = "cpu"
out = "lamb.json"  # where the record goes, relative to the working directory

# %%
import math

import torch
from torch import nn

from experiments import language, models, records, text
from optimizers import LAMB, Adafactor, AdamW, weight_decay_groups, wsd

SMALL = {"layers": 2, "width": 64, "heads": 4, "context": 64}
SETTINGS = {
    "quick": {
        "dataset": "markov",
        "model": {"layers": 1, "width": 32, "heads": 2, "context": 16},
        "windows": 1280,
        "small": 16,
        "large": 256,
        "most": 3,
    },
    "standard": {
        "dataset": "tinyshakespeare",
        "model": SMALL,
        "windows": 4096,
        "small": 8,
        "large": 128,
        "most": 8,
    },
    "paper": {
        "dataset": "tinyshakespeare",
        "model": {"layers": 6, "width": 384, "heads": 6, "context": 256},
        "windows": 204_800,
        "small": 64,
        "large": 1024,
        "most": 8,
    },
}[scale]
SPACING = 2  # of the grid of learning rates; a square root of large ÷ small is two steps of it
settings = {key: value for key, value in SETTINGS.items() if key != "model"}
record = records.new(
    "lamb", scale, {"seeds": seeds, "device": device, **settings, **SETTINGS["model"], "spacing": SPACING}
)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(optimizer, theta, gradient):
    """One step; returns ‖θ_t − θ_{t−1}‖ / ‖θ_{t−1}‖."""
    before = theta.detach().clone()
    theta.grad = gradient
    optimizer.step()
    return ((theta.detach() - before).norm() / before.norm()).item()


# %% [markdown]
# ## 1 · How long is a step?
#
# LAMB's relative step over the learning rate, for gradients and weights of several sizes and three decays: five
# steps each. And Adam's first relative step for the same sizes of the weights.

# %%
ALPHA, worst = 0.01, 0.0
for weight_decay in (0.0, 0.01, 10.0):
    for size in (1e-3, 1.0, 1e3):
        theta = (size * gaussian(30, 20)).requires_grad_()
        optimizer = LAMB([theta], lr=ALPHA, weight_decay=weight_decay)
        for t, unit in enumerate((1, 1e-4, 1e4, 1, 1), 1):
            share = step(optimizer, theta, unit * gaussian(30, 20, seed=t)) / ALPHA
            worst = max(worst, abs(share - 1))
record.metric("step.worst", worst)
adam = []
for size in (1e-3, 1.0, 1e3):
    theta = (size * gaussian(30, 20)).requires_grad_()
    adam.append(step(AdamW([theta], lr=ALPHA, weight_decay=0.01), theta, gaussian(30, 20, seed=1)) / ALPHA)
record.metric("step.adamw_spread", max(adam) / min(adam))
print(f"LAMB: relative step ÷ α is within {worst:.1e} of 1; AdamW: {adam}")

# %% [markdown]
# ## 2 · Where the norm goes
#
# Gradients that are nothing but noise, β₁ = 0: at right angles to the weights, on average. Without decay the norm
# grows by √(1 + α²) per step. With decay it comes to rest, at an RMS of α / (2λ √(1 − α²/4)).


# %%
def norms(lr, weight_decay, steps, start=1.0, size=50_000):
    theta = (start * gaussian(size)).requires_grad_()
    optimizer = LAMB([theta], lr=lr, betas=(0.0, 0.999), weight_decay=weight_decay)
    random = torch.Generator().manual_seed(1)
    line = [theta.detach().square().mean().sqrt().item()]
    for _ in range(steps):
        step(optimizer, theta, torch.randn(size, generator=random, dtype=torch.float64))
        line.append(theta.detach().square().mean().sqrt().item())
    return line


for name, lr in (("small", 0.01), ("large", 0.1)):
    line = norms(lr, 0.0, 200)
    record.metric(f"growth.{name}", line[-1] / line[0])
    record.metric(f"growth.{name}_over_theory", line[-1] / line[0] / (1 + lr**2) ** 100)
    print(f"α = {lr}: the norm grows {line[-1] / line[0]:.5f} times, theory {(1 + lr**2) ** 100:.5f}")
LAMBDA, LR = 0.2, 0.2
rest = LR / (2 * LAMBDA * math.sqrt(1 - LR**2 / 4))
for name, start, weight_decay in (("above", 1.5, LAMBDA), ("below", 0.15, LAMBDA), ("free", 0.15, 0.0)):
    line = norms(LR, weight_decay, 500, start, size=20_000)
    shown = range(0, 501, 4)
    record.curve(f"norm/{name}", shown, [[line[t] for t in shown]], "step t", "RMS of the weights")
    if weight_decay:
        record.metric(f"rest.{name}_over_theory", sum(line[-200:]) / 200 / rest)
record.metric("rest.theory", rest)

# %% [markdown]
# ## 3 · A tensor that starts at zero
#
# The same gradient at every step, α = 0.01, ten coordinates.

# %%
lines = {}
for name, make in (("lamb", LAMB), ("adamw", AdamW)):
    theta = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = make([theta], lr=ALPHA, eps=0.0, weight_decay=0.0)
    line = [0.0]
    for _ in range(300):
        theta.grad = torch.ones(10, dtype=torch.float64)
        optimizer.step()
        line.append(theta.detach().norm().item())
    lines[name] = line
    record.curve(f"zero/{name}", range(1, 301, 2), [line[1::2]], "step t", "norm")
    record.metric(f"zero.{name}_tenfold", next(t for t in range(1, 301) if line[t] >= 9.999999 * line[1]) - 1)
first = ALPHA * math.sqrt(10)
steps = [b - a for a, b in zip(lines["lamb"], lines["lamb"][1:], strict=False)][:4]
for t, length in enumerate(steps, 1):
    record.metric(f"zero.step{t}", length)
expected = [first, ALPHA * first, ALPHA * (1 + ALPHA) * first, ALPHA * (1 + ALPHA) ** 2 * first]
record.metric("zero.worst", max(abs(a / b - 1) for a, b in zip(steps, expected, strict=True)))
print("steps", [f"{length:.3g}" for length in steps], "tenfold after", record.get("zero.lamb_tenfold"), "more")

# %% [markdown]
# ## 4 · What Adafactor remembers
#
# Numbers of state per parameter, counted on the small GPT after a step, and for the shapes of GPT-2 small. Then: is
# the product of row and column sums the nearest matrix of rank 1?


# %%
def state(make, model):
    """Numbers that an optimizer remembers of a model, without its step counts."""
    optimizer = make(model.parameters())
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    return sum(value.numel() for known in optimizer.state.values() for value in known.values() if value.numel() > 1)


model = models.gpt(65, **SMALL, seed=0)
parameters = sum(param.numel() for param in model.parameters())
sums = sum(sum(param.shape) for param in model.parameters())  # rows + columns; of a vector all
record.metric("memory.adamw", state(AdamW, model) / parameters)
record.metric("memory.adafactor", state(Adafactor, model) / parameters)
record.metric("memory.beyond_sums", state(Adafactor, model) - sums)
with torch.device("meta"):
    gpt2 = models.GPT(50_257, 12, 768, 12, 1024)
gpt2.head.weight = gpt2.embedding.weight  # as published
large = sum(param.numel() for param in gpt2.parameters())
record.metric("memory.gpt2_parameters", large)
record.metric("memory.gpt2_adamw_mb", 2 * 4 * large / 1e6)
record.metric("memory.gpt2_adafactor_mb", 4 * sum(sum(param.shape) for param in gpt2.parameters()) / 1e6)
print(f"per parameter: AdamW {record.get('memory.adamw'):.3f}, Adafactor {record.get('memory.adafactor'):.4f}")

# %%
rows, columns = gaussian(9, 1).abs() + 0.1, gaussian(1, 6, seed=1).abs() + 0.1
signs = gaussian(9, 6, seed=2).sign()
theta = torch.ones(9, 6, dtype=torch.float64, requires_grad=True)
theta.grad = signs * rows * columns
Adafactor([theta], lr=ALPHA).step()
record.metric("factors.sign", ((1 - theta.detach()) / ALPHA - signs).abs().max().item())

squared = gaussian(6, 4).square()
theta = torch.ones(6, 4, dtype=torch.float64, requires_grad=True)
optimizer = Adafactor([theta])
theta.grad = squared.sqrt()
optimizer.step()
known = optimizer.state[theta]
factored = known["row_var"] @ known["col_var"] / known["row_var"].mean()


def divergence(f):
    return (squared * (squared / f).log() - squared + f).sum().item()


rivals = [
    factored * (width * gaussian(6, 1, seed=s)).exp() * (width * gaussian(1, 4, seed=s + 5000)).exp()
    for s in range(2000)
    for width in [(0.01, 0.1, 0.5)[s % 3]]
]
u, s, v = torch.linalg.svd(squared)
least_squares = s[0] * u[:, :1].abs() @ v[:1].abs()
record.metric("factors.rivals", min(map(divergence, rivals)) / divergence(factored))
record.metric("factors.svd_divergence", divergence(least_squares) / divergence(factored))
record.metric("factors.svd_error", ((least_squares - squared).norm() / (factored - squared).norm()).item())
print(f"sign to {record.get('factors.sign'):.1e}; nearest rival {record.get('factors.rivals'):.6f} times as far")

# %% [markdown]
# ## 5 · Updates that are too large
#
# A thousand steps of Gaussian gradients, then gradients a hundred times as large: the average of squares is out of
# date. The RMS of Adafactor's update, in units of its learning rate, with the clip at d = 1 and without.

# %%
for name, d in (("clipped", 1.0), ("unclipped", math.inf)):
    theta = torch.ones(50, 40, dtype=torch.float64, requires_grad=True)
    optimizer = Adafactor([theta], lr=1e-6, d=d, floor="square", relative_step=False, scale_parameter=False)
    line = []
    for t in range(1, 1051):
        before = theta.detach().clone()
        theta.grad = (100 if t > 1000 else 1) * gaussian(50, 40, seed=t)
        optimizer.step()
        line.append(((theta.detach() - before).square().mean().sqrt() / 1e-6).item())
    record.curve(f"jump/{name}", range(951, 1051), [line[950:]], "step t", "RMS of the update ÷ learning rate")
    record.metric(f"jump.{name}", max(line))
record.metric("jump.theory", 1000**0.4)
print(f"the largest update: {record.get('jump.clipped'):.3f}, without the clip {record.get('jump.unclipped'):.2f}")

# %% [markdown]
# ## 6 · torch's learning rate of Adafactor
#
# The relative RMS step for lr = 1 and 0.1, on the same Gaussian gradients.

# %%
relative = {}
for lr in (1.0, 0.1):
    theta = torch.ones(50, 20, dtype=torch.float64, requires_grad=True)
    optimizer = Adafactor([theta], lr=lr)
    relative[lr] = [step(optimizer, theta, gaussian(50, 20, seed=t)) for t in range(1, 401)]
shown = sorted({round(400 ** (i / 60)) for i in range(61)})
for lr, name in ((1.0, "one"), (0.1, "tenth")):
    record.curve(f"cap/{name}", shown, [[relative[lr][t - 1] for t in shown]], "step t", "relative step")
    for t in (1, 10, 100, 400):
        record.metric(f"cap.{name}.t{t}", relative[lr][t - 1])
late = [abs(a / b - 1) for a, b in zip(relative[1.0][100:], relative[0.1][100:], strict=True)]
record.metric("cap.apart", max(late))
record.metric("cap.first", relative[1.0][0] / relative[0.1][0])
record.metric("cap.last_over_theory", relative[0.1][399] * math.sqrt(400))
print({lr: [f"{line[t - 1]:.4f}" for t in (1, 10, 100, 400)] for lr, line in relative.items()})

# %% [markdown]
# ## 7 · A language model, with small batches and with large ones
#
# All runs see the same number of windows. Warm-up over a tenth of the steps, then linearly to 0; gradients clipped
# to a global norm of 1; β = (0.9, 0.95) and λ = 0.1 for AdamW and LAMB, which differ in the ratio alone and in
# where the decay stands. Each arm's learning rate is chosen, with a seed of its own, on a grid with a factor of 2
# between its points that goes on until its best is not at an end (at quick scale it is three points).

# %%
dataset = text.load(SETTINGS["dataset"])
record.uses(dataset)
TUNING = 100
BETAS = (0.9, 0.95)
counts = torch.bincount(dataset.train.flatten().long(), minlength=dataset.symbols).double()
frequencies = counts[counts > 0] / counts.sum()
unigram = -(frequencies * frequencies.log()).sum().item()
record.metric("unigram", unigram)


def adamw(model, lr, betas=BETAS):
    return AdamW(weight_decay_groups(model, 0.1), lr=lr, betas=betas)


def lamb(model, lr):
    return LAMB(weight_decay_groups(model, 0.1), lr=lr, betas=BETAS)


def adafactor(model, lr):
    return Adafactor(weight_decay_groups(model, 0.1), lr=lr, floor="square", relative_step=False)


def untuned(model, lr):
    """The paper's own recipe: steps relative to the weights and to 1/√t, no schedule, nothing to choose."""
    return Adafactor(model.parameters(), lr=lr, floor="square")


# name: (rule, batch, starts with zero projections, power of 2 at which the search begins)
ARMS = {
    "adamw.small": (adamw, "small", False, -8),
    "lamb.small": (lamb, "small", False, -6),
    "adafactor.small": (adafactor, "small", False, -5),
    "adam0.small": (lambda model, lr: adamw(model, lr, (0.0, 0.95)), "small", False, -8),
    "adamw.large": (adamw, "large", False, -7),
    "lamb.large": (lamb, "large", False, -3),
    "adamw_zero.large": (adamw, "large", True, -7),
    "lamb_zero.large": (lamb, "large", True, -3),
}


def network(seed, zero=False):
    model = models.gpt(dataset.symbols, **SETTINGS["model"], seed=seed)
    for name, param in model.named_parameters():
        if zero and name.endswith(("proj.weight", "down.weight")):
            nn.init.zeros_(param)
    return model.to(device)


def course(make, lr, batch, seed, zero=False, scheduled=True, watch=None):
    """The test loss at the end, infinite for a run that diverged."""
    model = network(seed, zero)
    optimizer = make(model, lr)
    if watch is not None:
        watch(model, optimizer)
    total = SETTINGS["windows"] // SETTINGS[batch]
    run = language.train(
        model,
        optimizer,
        dataset,
        steps=total,
        batch_size=SETTINGS[batch],
        seed=seed,
        schedule=wsd(total, warmup=max(1, total // 10), decay=total - max(1, total // 10)) if scheduled else None,
        device=device,
        progress=False,
    )
    return math.inf if run.diverged else run.test_loss[total]


losses, rates = {}, {}
for arm, (make, batch, zero, middle) in ARMS.items():
    tried = {}
    todo = [middle - 1, middle, middle + 1]
    while todo:
        for power in todo:
            tried[power] = course(make, 2.0**power, batch, TUNING, zero)
        best = min(tried, key=lambda power: (tried[power], power))
        todo = [power for power in (best - 1, best + 1) if power not in tried and len(tried) < SETTINGS["most"]]
    powers = sorted(tried)
    finite = [tried[power] if tried[power] < 10 else math.inf for power in powers]
    record.curve(f"grid/{arm}", [2.0**power for power in powers], [finite], "learning rate α", "test loss")
    rates[arm] = 2.0**best
    losses[arm] = [course(make, rates[arm], batch, seed, zero) for seed in seeds]
    record.metric(f"rate.{arm}", rates[arm])
    record.metric(f"tried.{arm}", len(tried))
    record.metric(f"loss.{arm}", losses[arm])
    print(f"{arm:17s} α = {rates[arm]:.5f} of {len(tried)}: {[f'{loss:.3f}' for loss in losses[arm]]}")
losses["untuned.small"] = [course(untuned, 1e-2, "small", seed, scheduled=False) for seed in seeds]
record.metric("loss.untuned.small", losses["untuned.small"])


def difference(one, other):
    return [a - b for a, b in zip(losses[one], losses[other], strict=True)]


for name in ("lamb", "adamw"):
    record.metric(f"batch.{name}", difference(f"{name}.large", f"{name}.small"))
    record.metric(f"zero_network.{name}", difference(f"{name}_zero.large", f"{name}.large"))
    # The rule of the square root: from the small batch's rate to the large one's.
    ruled = rates[f"{name}.small"] * math.sqrt(SETTINGS["large"] / SETTINGS["small"])
    make = ARMS[f"{name}.large"][0]
    if ruled == rates[f"{name}.large"]:
        losses[f"{name}.ruled"] = losses[f"{name}.large"]
    else:
        losses[f"{name}.ruled"] = [course(make, ruled, "large", seed) for seed in seeds]
    record.metric(f"transfer.{name}", difference(f"{name}.ruled", f"{name}.large"))
    record.metric(f"transfer.{name}_rates", rates[f"{name}.large"] / rates[f"{name}.small"])
for batch in ("small", "large"):
    record.metric(f"ratio.{batch}", difference(f"lamb.{batch}", f"adamw.{batch}"))
record.metric("zero_network.together", difference("lamb_zero.large", "adamw_zero.large"))
record.metric("adafactor.tuned", difference("adafactor.small", "adamw.small"))
record.metric("adafactor.untuned", difference("untuned.small", "adamw.small"))
record.metric("adafactor.without_momentum", difference("adafactor.small", "adam0.small"))
record.metric("adafactor.momentum", difference("adam0.small", "adamw.small"))
worse = map(max, losses["lamb.small"], losses["adamw.small"])
record.metric("learned", [loss - unigram for loss in worse])

# %% [markdown]
# And the relative step of each tensor, with the large batches at the chosen rates: of what has the same name in
# several layers, of the first.


# %%
def watcher(lines):
    def watch(model, optimizer):
        named = {name.removeprefix("blocks."): param for name, param in model.named_parameters()}
        shown = {
            name.removeprefix("0.").removesuffix(".weight"): param
            for name, param in named.items()
            if not name[0].isdigit() or name[0] == "0"
        }
        before = {}

        def remember(*_):
            before.update({name: param.detach().clone() for name, param in shown.items()})

        def measure(*_):
            for name, param in shown.items():
                share = (param.detach() - before[name]).norm() / before[name].norm()
                lines.setdefault(name, []).append(share.item())

        optimizer.register_step_pre_hook(remember)
        optimizer.register_step_post_hook(measure)

    return watch


for name in ("adamw", "lamb"):
    lines = {}
    course(ARMS[f"{name}.large"][0], rates[f"{name}.large"], "large", seeds[0], watch=watcher(lines))
    count = len(lines["head"])
    shown = sorted({round(i * (count - 1) / min(count - 1, 99)) for i in range(min(count, 100))})
    for tensor, line in lines.items():
        record.curve(
            f"relative/{name}/{tensor}",
            [t + 1 for t in shown],
            [[line[t] for t in shown]],
            "step t",
            "relative step",
        )
    warm = max(1, count // 10) - 1  # the first step at the whole learning rate
    sizes = [line[warm] for line in lines.values()]
    record.metric(f"relative.{name}_spread", max(sizes) / min(sizes))
    record.metric(f"relative.{name}_largest", max(sizes))
    record.metric(f"relative.{name}_smallest", min(sizes))

# %%
path_of_record = records.write(record, out)
