"""Optimizers by name, the reference's configurations, and the groups for weight decay."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import optimizers
from optimizers import AdamW, Chain, weight_decay_groups


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3))]


def test_the_list_has_every_named_optimizer() -> None:
    assert optimizers.list() == sorted(optimizers.list())
    assert {
        "adabelief", "adabound", "adaboundw", "adadelta", "adagrad", "adam", "adamax", "adamw", "ademamix", "adopt",
        "aggmo", "amsbound", "amsboundw", "amsgrad", "lamb", "lion", "nadam", "nadamw", "prodigy", "radam",
        "radamw", "rmsprop", "sgd", "sgdw", "signum",
    } <= set(optimizers.list())  # fmt: skip


def test_create_makes_what_the_class_makes() -> None:
    for name in optimizers.list():
        for spelling in (name, name.upper()):
            optimizer = optimizers.create(spelling, parameters(), lr=0.25, maximize=True)
            assert type(optimizer).__name__.lower() == name
            assert type(optimizer) is getattr(optimizers, type(optimizer).__name__)
            assert (optimizer.defaults["lr"], optimizer.defaults["maximize"]) == (0.25, True)


@pytest.mark.parametrize(
    ("name", "near"), [("adamm", "adam"), ("Nadamw2", "nadamw"), ("rms_prop", "rmsprop"), ("sgdd", "sgd"), ("", "")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"no optimizer named {name!r}; did you mean '{near}.*Names: adabelief, "):
        optimizers.create(name, parameters())
    with pytest.raises(TypeError, match="name must be a string, got 3"):
        optimizers.create(3, parameters())  # type: ignore[arg-type]


def test_there_are_the_references_18_recipes() -> None:
    assert len(optimizers.recipes) == 18
    descriptions = set()
    for name, recipe in optimizers.recipes.items():
        params = parameters()
        optimizer = recipe(params)
        assert isinstance(optimizer, Chain)
        assert optimizer.defaults["lr"] == 1e-3
        descriptions.add(repr(optimizer))
        params[0].grad = torch.tensor([1.0, -2.0, 0.5])
        for _ in range(6):
            optimizer.step()
        assert not torch.equal(params[0], torch.ones(3)), name
        assert recipe(parameters(), lr=0.5).defaults["lr"] == 0.5
    assert len(descriptions) == 18


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("sgd", {"momentum": 0.0}),
        ("momentum", {"momentum": 0.99, "nesterov": False}),
        ("nesterov", {"momentum": 0.99, "nesterov": True}),
        ("sgdw", {"momentum": 0.99, "weight_decay": 1e-6, "decay": "schedule"}),
        ("momentum_lr_dropout", {"momentum": 0.99, "lr_dropout_keep": 0.5}),
        ("rmsprop", {"alpha": 0.9}),
        ("adam", {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "nesterov": False}),
        ("adam_l2", {"weight_decay": 1e-4}),
        ("adamw", {"weight_decay": 1e-4, "decay": "schedule"}),
        ("radamw", {"weight_decay": 1e-4, "decay": "schedule"}),
        ("adam_lr_dropout", {"lr_dropout_keep": 0.5}),
        ("radam", {"betas": (0.9, 0.999), "threshold": 5.0}),
        ("radam_lr_dropout", {"lr_dropout_keep": 0.5}),
        ("nadam", {"momentum_decay": 4e-3}),
        ("lookahead_adam", {"lookahead_k": 5, "lookahead_alpha": 0.5}),
        ("lookahead_momentum", {"momentum": 0.99, "lookahead_k": 5, "lookahead_alpha": 0.5}),
        ("gradient_noise_adam", {"gradient_noise_eta": 0.3, "gradient_noise_gamma": 0.55}),
        ("gradient_dropout_adam", {"gradient_dropout_keep": 0.9}),
    ],
)
def test_recipes_have_the_references_settings(recipe: str, expected: dict[str, Any]) -> None:
    assert optimizers.recipes[recipe](parameters()).defaults.items() >= expected.items()


def test_recipes_are_read_only() -> None:
    with pytest.raises(TypeError):
        optimizers.recipes["sgd"] = None  # type: ignore[index]


# ---------------------------------------------------------------------- weight decay


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.conv = nn.Conv1d(4, 4, 1)
        self.batch = nn.BatchNorm1d(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.layer = nn.LayerNorm((2, 4))  # of two dimensions, so that its shape does not give it away
        self.group, self.rms = nn.GroupNorm(2, 4), nn.RMSNorm((2, 4))
        self.recurrent = nn.LSTM(4, 4)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight


def test_biases_and_norms_do_not_decay() -> None:
    decaying, other = weight_decay_groups(Net(), 0.1)
    assert (decaying["weight_decay"], other["weight_decay"]) == (0.1, 0.0)
    assert [name for name, _ in decaying["params"]] == [
        "embed.weight",
        "conv.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "recurrent.weight_ih_l0",
        "recurrent.weight_hh_l0",
    ]
    assert [name for name, _ in other["params"]] == [
        "scale",
        "conv.bias",
        "batch.weight",
        "batch.bias",
        "attention.in_proj_bias",
        "attention.out_proj.bias",
        "layer.weight",
        "layer.bias",
        "group.weight",
        "group.bias",
        "rms.weight",
        "recurrent.bias_ih_l0",
        "recurrent.bias_hh_l0",
        "head.bias",
    ]


@pytest.mark.parametrize("name", optimizers.list())
def test_every_optimizer_takes_the_groups(name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    groups = weight_decay_groups(model, 0.1)
    if name == "muon":
        groups[1]["direction"] = "adamw"  # vectors
    options = {"d0": 0.01} if name == "prodigy" else {}  # by 1e-6, its own, decay may be less than the last place
    optimizer = optimizers.create(name, groups, lr=0.5, **options)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[1]["param_names"] == ["0.bias", "1.weight", "1.bias"]
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):  # ADOPT's first step moves nothing
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert moved == [True, False, False, False]


def test_edges_of_weight_decay_groups() -> None:
    assert [len(group["params"]) for group in weight_decay_groups(nn.LayerNorm(2), 0.1)] == [2]
    assert [group["weight_decay"] for group in weight_decay_groups(nn.Linear(2, 2, bias=False), 0.1)] == [0.1]
    tied = nn.Sequential(nn.LayerNorm((2, 2), bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    assert [group["weight_decay"] for group in weight_decay_groups(tied, 0.1)] == [0.0]
    AdamW(weight_decay_groups(nn.Linear(2, 2), 0.1))
    for wrong, error, match in [
        (-1.0, ValueError, r"weight_decay must lie in \[0, inf\), got -1.0"),
        (math.nan, ValueError, "got nan"),
        ("x", TypeError, "got 'x'"),
    ]:
        with pytest.raises(error, match=match):
            weight_decay_groups(nn.Linear(2, 2), wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got \["):
        weight_decay_groups([torch.ones(2)], 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ReLU has no parameter that needs a gradient"):
        weight_decay_groups(nn.ReLU(), 0.1)
