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
# # The reference's benchmark: what was run
#
# The 18 runs behind the reference's seven figures, with the papers' rules, shuffled batches, validation in
# evaluation mode and several seeds. Then what the reference did not do: every optimizer with the same budget of
# learning rates, and the controls that tell an effect of a method from an effect of its learning rate.
#
# Every run writes a record of its own as it ends, so that a notebook that was stopped goes on where it was.

# %% tags=["parameters"]
scale = (
    "quick"  # quick: digits · standard: CIFAR-10 and MNIST on a CPU · paper: the reference's arguments, on a GPU
)
seeds = [0, 1, 2]
device = "cpu"
threads = 2  # runs side by side, each on a thread of its own
out = "benchmark.json"  # where the record goes, relative to the working directory

# %%
import math
import statistics

from experiments import benchmark, data, mixes, records, tuning
from experiments.runs import Settings, fastest_precision

SETTINGS = {
    "quick": {
        "datasets": {"digits": {"num_epochs": 10, "num_train": 1437, "num_val": 180}},
        "tuning": {"num_epochs": 5, "num_train": 1437, "num_val": 180},
        "targets": {"digits": 0.5},
        "fresh_seeds": 5,
    },
    "standard": {
        "datasets": {
            "cifar10": {"num_epochs": 10, "num_train": 4096, "num_val": 512},
            "mnist": {"num_epochs": 15, "num_train": 60000, "num_val": 2048},
        },
        "tuning": {"num_epochs": 4, "num_train": 30000, "num_val": 2048},
        "targets": {"cifar10": 1.5, "mnist": 0.1},
        "fresh_seeds": 10,
    },
    "paper": {
        "datasets": {
            "cifar10": {"num_epochs": 30, "num_train": 50000, "num_val": 2048, "lr_schedule": True},
            "mnist": {"num_epochs": 30, "num_train": 50000, "num_val": 2048, "lr_schedule": True},
        },
        "tuning": {"num_epochs": 5, "num_train": 50000, "num_val": 2048},
        "targets": {"cifar10": 0.5, "mnist": 0.02},
        "fresh_seeds": 10,
    },
}[scale]
HEADLINE, *_ = SETTINGS["datasets"]  # what the statements about the figures rest on
*_, SMALL = SETTINGS["datasets"]  # where learning rates are tuned
# The CNN trains in the precision that is fastest on this machine; the others are too small to gain from it.
precision = fastest_precision(device) if HEADLINE == "cifar10" else "float32"
record = records.new(
    "benchmark", scale, {"seeds": seeds, "device": device, "precision": precision, **SETTINGS}, precision=precision
)
folder = records.local_path("benchmark", scale).with_suffix("")


def settings(dataset, **changes):
    own = {"precision": precision if dataset == "cifar10" else "float32"}
    return Settings(dataset, device=device, **{**own, **changes})


def run(arms):
    """(metrics, curves, milliseconds per step) of every arm: a mix, settings, seeds, a learning rate or None."""
    todo = [benchmark.jobs(mixes.parse(text), chosen, seeds, [lr]) for text, chosen, seeds, lr in arms]
    found = iter(benchmark.run_all([job for arm in todo for job in arm], folder, processes=threads))
    parts = [[next(found) for job in arm] for arm in todo]
    return [(*benchmark.merge(part), statistics.median(map(benchmark.milliseconds, part))) for part in parts]


# %% [markdown]
# ## 1 · The 18 runs
#
# At the reference's learning rate, 0.001 for all.

# %%
results, times = {}, {}
for dataset, sizes in SETTINGS["datasets"].items():
    chosen = settings(dataset, **sizes)
    record.uses(data.load(dataset))
    arms = run([(name, chosen, seeds, None) for name in benchmark.LABELS])
    per_epoch = chosen.steps / chosen.num_epochs
    results[dataset] = {name: metrics for name, (metrics, _, _) in zip(benchmark.LABELS, arms, strict=True)}
    times[dataset] = {name: round(ms, 3) for name, (_, _, ms) in zip(benchmark.LABELS, arms, strict=True)}
    for name, (metrics, curves, _) in zip(benchmark.LABELS, arms, strict=True):
        for key, values in metrics.items():
            record.metric(f"{dataset}.{name}.{key}", values)
        reached = benchmark.steps_to(curves["train_loss"], SETTINGS["targets"][dataset], per_epoch)
        record.metric(f"{dataset}.{name}.steps_to_target", reached)
        for key, curve in curves.items():
            record.curve(f"{dataset}/{name}/{key}", curve["x"], curve["seeds"], curve["xlabel"], curve["ylabel"])
        loss, accuracy = (
            statistics.fmean(v) if None not in v else math.nan
            for v in (metrics["train_loss"], metrics["val_accuracy"])
        )
        print(f"{dataset:8s} {benchmark.LABELS[name]:24s} training loss {loss:.4f}   accuracy {accuracy:.3f}")
# Times are no result: two equal runs differ in them.
record.provenance["milliseconds_per_step"] = times

# %% [markdown]
# ## 2 · What the reference's figures say
#
# Each statement as a ratio of training losses, in its natural logarithm, seed by seed: −0.1 is about ten percent
# less. `final` is the last epoch, `early` the first half of the epochs.


# %%
def compare(name, first, second, when):
    key = {"final": "train_loss", "early": "early_train_loss"}[when]
    a, b = (results[HEADLINE][arm][key] for arm in (first, second))
    record.metric(f"claims.{name}_{when}", benchmark.log_ratio(a, b))


compare("momentum_over_sgd", "momentum", "sgd", "final")
compare("nesterov_over_sgd", "nesterov", "sgd", "final")
compare("sgdw_over_sgd", "sgdw", "sgd", "final")
compare("nesterov_over_momentum", "nesterov", "momentum", "early")
compare("rmsprop_over_adam", "rmsprop", "adam", "early")
compare("adam_l2_over_adam", "adam_l2", "adam", "final")
compare("adamw_over_adam", "adamw", "adam", "final")
compare("radam_over_adam", "radam", "adam", "early")
compare("radamw_over_adam", "radamw", "adam", "early")
compare("nadam_over_adam", "nadam", "adam", "final")
compare("adam_lr_dropout_over_adam", "adam_lr_dropout", "adam", "early")
compare("radam_lr_dropout_over_radam", "radam_lr_dropout", "radam", "early")
compare("gradient_noise_over_adam", "gradient_noise_adam", "adam", "final")
compare("gradient_dropout_over_adam", "gradient_dropout_adam", "adam", "final")
compare("lookahead_momentum_over_momentum", "lookahead_momentum", "momentum", "final")
compare("lookahead_adam_over_adam", "lookahead_adam", "adam", "final")
start = math.log(data.load(HEADLINE).classes)
record.metric(
    "claims.adam_over_start",
    [loss / start if loss is not None else None for loss in results[HEADLINE]["adam"]["train_loss"]],
)

# %% [markdown]
# ## 3 · Controls
#
# Each method beside the plain rule with the learning rate that the method amounts to: learning-rate dropout keeps
# half of every step, Lookahead with α = ½ goes half of the way, momentum 0.99 moves a hundred times as far in the
# end, and RAdam starts like a warm-up. The last one is Adam in the other precision, on the network of the figures.
# Ratios of final training losses as above.

# %%
CONTROLS = {  # name: the method; the control; what changes in the control's settings
    "lr_dropout": ("adam_lr_dropout", "adam(lr=0.0005)", {}),
    "radam_lr_dropout": ("radam_lr_dropout", "radam(lr=0.0005)", {}),
    "lookahead_adam": ("lookahead_adam", "adam(lr=0.0005)", {}),
    "lookahead_momentum": ("lookahead_momentum", "momentum(lr=0.0005)", {}),
    "momentum": ("momentum", "sgd(lr=0.1)", {}),
    "radam": ("radam", "adam", {"lr_schedule": False, "warmup": 2000}),
    "gradient_noise": ("gradient_noise_adam", "adam+gradient_noise(eta=0.0003)", {}),
    "gradient_dropout": ("gradient_dropout_adam", "adam", {}),
    "precision": ("adam", "adam", {"precision": "float32" if precision == "bfloat16" else "bfloat16"}),
}
for dataset, sizes in SETTINGS["datasets"].items():
    names = [name for name in CONTROLS if dataset == HEADLINE or name != "precision"]
    arms = run([(CONTROLS[n][1], settings(dataset, **{**sizes, **CONTROLS[n][2]}), seeds, None) for n in names])
    for name, (metrics, _, _) in zip(names, arms, strict=True):
        method, control, _ = CONTROLS[name]
        ratios = benchmark.log_ratio(results[dataset][method]["train_loss"], metrics["train_loss"])
        record.metric(f"controls.{dataset}.{name}.log_ratio", ratios)
        record.metric(f"controls.{dataset}.{name}.control_loss", metrics["train_loss"])
        record.metric(f"controls.{dataset}.{name}.control_accuracy", metrics["val_accuracy"])
        if dataset == HEADLINE:
            record.metric(f"claims.{name}_over_control", ratios)
        mean = statistics.fmean(ratios) if None not in ratios else math.nan
        print(f"{dataset:8s} {name:20s} {method:24s} against {control:32s} {mean:+.3f}")

# %% [markdown]
# ## 4 · Every optimizer with its own learning rate
#
# Seven learning rates each, spaced by √10; the grid moves until the best is not at its end. Chosen by validation
# loss, then run again with fresh seeds and judged on other validation images. Networks that are only used for
# tuning share their batches.

# %%
budget, tuning_seeds = 7, [1000, 1001, 1002]
fresh = list(range(100, 100 + SETTINGS["fresh_seeds"]))
search = settings(SMALL, shared_batches=True, **SETTINGS["tuning"])
final = settings(SMALL, fresh_val=True, **SETTINGS["tuning"])
grids = tuning.tune(
    mixes.parse(", ".join(benchmark.LABELS)), search, tuning_seeds, folder, budget=budget, processes=threads
)
TARGETS = [2.0, 1.5, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08]
chosen = {name: tuning.best(grid) for name, grid in grids.items()}
arms = run([(name, final, fresh, tuning.rate(power)) for name, (power, _) in chosen.items()])
losses = {name: metrics["val_loss"] for name, (metrics, _, _) in zip(chosen, arms, strict=True)}
for (name, grid), (metrics, curves, _) in zip(grids.items(), arms, strict=True):
    power, at_edge = chosen[name]
    record.metric(f"tuned.{name}.lr", tuning.rate(power))
    record.metric(f"tuned.{name}.at_edge", int(at_edge))
    for key in ("train_loss", "val_loss", "val_accuracy"):
        record.metric(f"tuned.{name}.{key}", metrics[key])
    tried = [list(seed) for seed in zip(*grid.values(), strict=True)]
    record.curve(f"lr/{name}", [tuning.rate(k) for k in grid], tried, "learning rate", "validation loss")
    curve = curves["train_loss"]
    steps = [x * final.steps / final.num_epochs for x in curve["x"]]
    record.curve(f"profile/{name}", steps, tuning.profile(curve, TARGETS), "step", "share of targets reached")
    print(f"{benchmark.LABELS[name]:24s} best of {len(grid)} learning rates: {tuning.rate(power)}")
for name, (rank, low, high) in tuning.ranks(losses).items():
    record.metric(f"tuned.{name}.rank", rank)
    record.metric(f"tuned.{name}.rank_low", low)
    record.metric(f"tuned.{name}.rank_high", high)

# %%
path_of_record = records.write(record, out)
