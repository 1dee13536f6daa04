"""Which parameters Muon steps, and which AdamW: by what layer they are of, not by luck."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import optimizers
from optimizers import muon_groups


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(x)


class Transformer(nn.Module):
    def __init__(self, tied=False, head=True):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.position = nn.Parameter(torch.zeros(5, 8))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.RMSNorm(8)
        if head:
            self.unembedding = nn.Linear(8, 11, bias=False)
        if tied:
            self.unembedding.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        return self.unembedding(self.norm(x))


def routed(model, **options):
    """By parameter: Muon's blocks, or 0 for AdamW; None would be a parameter that is in no group, or in two."""
    found = {}
    for group in muon_groups(model, **options):
        for name, param in group["params"]:
            assert name not in found
            assert param is dict(model.named_parameters())[name]
            found[name] = group["blocks"] if group["direction"] == "muon" else 0
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    return found


def hidden(model, **options):
    return {name: blocks for name, blocks in routed(model, **options).items() if blocks}


BLOCKS = {
    f"blocks.{i}.{name}": blocks
    for i in range(2)
    for name, blocks in (("qkv.weight", 3), ("proj.weight", 1), ("mlp.0.weight", 1), ("mlp.2.weight", 1))
}


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"head": False}])
def test_of_a_transformer(options):
    """Tied, the last layer is an embedding; without a head, it is one of the blocks' layers, and hidden."""
    assert hidden(Transformer(**options)) == BLOCKS


def test_queries_keys_and_values_as_one():
    assert hidden(Transformer(), split_qkv=False) == dict.fromkeys(BLOCKS, 1)


def test_settings_of_the_groups():
    groups = muon_groups(Transformer(), lr=0.05, adamw_lr=1e-3, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-6)
    assert [{k: v for k, v in group.items() if k != "params"} for group in groups] == [
        {"direction": "muon", "lr": 0.05, "blocks": 1, "weight_decay": 0.2},
        {"direction": "muon", "lr": 0.05, "blocks": 3, "weight_decay": 0.2},
        {"direction": "adamw", "lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2},
        {"direction": "adamw", "lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.0},
    ]
    decaying, others = ([name for name, _ in group["params"]] for group in groups[2:])
    assert decaying == ["position", "embed.weight", "unembedding.weight"]
    assert len(others) == 2 * (2 + 1 + 2) + 1
    assert all("bias" in name or "norm" in name for name in others)


def test_of_a_network_of_convolutions():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),  # depthwise
        nn.Conv2d(8, 16, 3, groups=4),
        nn.GroupNorm(2, 16),
        nn.ConvTranspose2d(16, 4, 2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    assert hidden(model) == {"0.weight": 1, "3.weight": 4, "5.weight": 1, "7.weight": 1}


def test_of_torch_s_own_layers():
    model = nn.ModuleDict(
        {
            "words": nn.EmbeddingBag(9, 8),
            "encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False),
            "other": nn.MultiheadAttention(8, 2, kdim=6, vdim=4, add_bias_kv=True),
            "lstm": nn.LSTM(8, 12, proj_size=6),
            "gru": nn.GRU(6, 5),
            "rnn": nn.RNN(5, 4),
            "final": nn.Linear(4, 3),
        }
    )
    found = hidden(model)
    layer = {
        "self_attn.in_proj_weight": 3,
        "self_attn.out_proj.weight": 1,
        "linear1.weight": 1,
        "linear2.weight": 1,
    }
    assert found == {
        **{f"encoder.layers.{i}.{name}": blocks for i in range(2) for name, blocks in layer.items()},
        **{f"other.{name}_proj_weight": 1 for name in "qkv"},
        "other.out_proj.weight": 1,
        "lstm.weight_ih_l0": 4,
        "lstm.weight_hh_l0": 4,
        "lstm.weight_hr_l0": 1,
        "gru.weight_ih_l0": 3,
        "gru.weight_hh_l0": 3,
        "rnn.weight_ih_l0": 1,
        "rnn.weight_hh_l0": 1,
    }


class Named(nn.Module):
    """A layer under a name, in a block, and a hidden one behind it."""

    def __init__(self, name, layer):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.add_module(name, layer)
        self.hidden = nn.Linear(4, 5, bias=False)


@pytest.mark.parametrize("name", ["head", "lm_head", "classifier", "score", "LM_Head"])
def test_a_head_is_known_by_its_name(name):
    """And then the last layer is none."""
    assert hidden(Named(name, nn.Linear(4, 7))) == {"first.weight": 1, "hidden.weight": 1}


@pytest.mark.parametrize(
    ("name", "rows", "blocks"),
    [
        ("qkv", 12, 3),
        ("c_attn", 12, 3),
        ("Wqkv", 12, 3),
        ("in_proj", 12, 3),
        ("qkv", 8, 1),
        ("to_kv", 8, 2),
        ("mlp", 12, 1),
    ],
)
def test_fused_layers_are_known_by_name_and_shape(name, rows, blocks):
    assert hidden(Named(name, nn.Linear(4, rows)))[f"{name}.weight"] == blocks


def test_what_is_no_layer_s_matrix_goes_to_adamw():
    model = Named("layer", nn.Linear(4, 1))  # a vector in disguise
    model.register_parameter("class_token", nn.Parameter(torch.zeros(1, 4)))
    model.register_parameter("relative_position_bias_table", nn.Parameter(torch.zeros(9, 4)))
    model.register_parameter("experts", nn.Parameter(torch.zeros(3, 4, 4)))
    model.register_parameter("matrix", nn.Parameter(torch.zeros(4, 4)))
    model.register_parameter("number", nn.Parameter(torch.zeros(())))
    model.register_parameter("nothing", nn.Parameter(torch.zeros(0, 4)))
    assert hidden(model) == {"first.weight": 1, "matrix": 1}


def test_patterns_have_the_last_word():
    model = Transformer()
    assert hidden(model, muon="unembedding.weight", adamw=["blocks.0.*"]) == {
        **{name: blocks for name, blocks in BLOCKS.items() if "blocks.1" in name},
        "unembedding.weight": 1,
    }
    assert hidden(model, muon=["blocks.*.weight"], adamw=["*norm*", "blocks.0.*"]) == {
        name: blocks for name, blocks in BLOCKS.items() if "blocks.1" in name
    }


def test_what_needs_no_gradient_is_left_out():
    model = Transformer()
    model.blocks[0].requires_grad_(False)
    assert hidden(model) == {name: blocks for name, blocks in BLOCKS.items() if "blocks.1" in name}


def test_shared_layers_are_stepped_once():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)])
    model[1].weight = model[0].weight
    assert hidden(model) == {"0.weight": 1}


@pytest.mark.parametrize("tied", [False, True])
def test_it_trains_with_one_scheduler(tied):
    """Every parameter moves by its own optimizer's rule, and both learning rates fall together."""
    torch.manual_seed(0)
    model = Transformer(tied)
    optimizer = optimizers.Muon(muon_groups(model, lr=0.02, adamw_lr=3e-3))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, optimizers.wsd(40, 5, 10))
    tokens = torch.randint(11, (16, 6))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        scheduler.step()
        rates = {group["direction"]: group["lr"] for group in optimizer.param_groups}
        assert rates["muon"] == pytest.approx(0.02 / 3e-3 * rates["adamw"])
    assert losses[-1] < 0.75 * losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    state = {name: set(optimizer.state[p]) for name, p in model.named_parameters()}
    assert "momentum_buffer" in state["blocks.0.qkv.weight"]
    assert "exp_avg_sq" in state["embed.weight"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lr": -1.0}, ValueError, r"lr must lie in \[0, inf\)"),
        ({"adamw_lr": "3e-4"}, TypeError, "adamw_lr must be a number"),
        ({"weight_decay": float("nan")}, ValueError, "weight_decay must lie in"),
        ({"muon": ["blocks.9.*"]}, ValueError, "muon: 'blocks.9.*' is no name of a parameter"),
        ({"adamw": "lm_head"}, ValueError, "adamw: 'lm_head' is no name of a parameter"),
        ({"muon": ["*.bias"]}, ValueError, "blocks.0.norm.bias is no matrix"),
    ],
)
def test_wrong_values_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        muon_groups(Transformer(), **options)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got \[\]"):
        muon_groups([])
    with pytest.raises(ValueError, match="Identity has no parameter"):
        muon_groups(nn.Identity())


def test_layers_whose_weight_is_computed_and_complex_ones() -> None:
    norm = torch.nn.utils.parametrizations.weight_norm
    model = nn.ModuleDict(
        {
            "embed": norm(nn.Embedding(5, 4)),
            "first": norm(nn.Linear(4, 6)),
            "waves": nn.Linear(4, 4, dtype=torch.complex64),
            "head": norm(nn.Linear(6, 3)),
        }
    )
    (hidden, *others) = optimizers.muon_groups(model)
    assert [name for name, _ in hidden["params"]] == ["first.parametrizations.weight.original1"]
    assert {group["direction"] for group in others} == {"adamw"}


def test_a_cell_has_the_gates_of_its_layer() -> None:
    model = nn.ModuleList([nn.LSTMCell(3, 4), nn.GRUCell(3, 4), nn.RNNCell(3, 4), nn.LSTM(3, 4, proj_size=2)])
    blocks = {name: group.get("blocks") for group in muon_groups(model) for name, _ in group["params"]}
    assert [blocks[f"{i}.weight_hh"] for i in range(3)] == [4, 3, 1]
    assert (blocks["3.weight_hh_l0"], blocks["3.weight_hr_l0"]) == (4, 1)
