"""Parameter groups that users ask for."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from .engine import check

# Layers whose parameters are a scale and a shift of what is already normalized.
NORMS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm, SyncBatchNorm and InstanceNorm of every dimension
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
CONVOLUTIONS = (nn.modules.conv._ConvNd,)
# What a last layer is called, in lower case, by those who write models.
HEADS = {
    "classifier",
    "embed_out",
    "head",
    "lm_head",
    "logits",
    "output_layer",
    "output_projection",
    "qa_outputs",
    "score",
    "to_logits",
    "unembed",
}
# How a layer is called, or a parameter, that consists of several square matrices, one below the other.
FUSED = {
    3: {"c_attn", "in_proj", "in_proj_weight", "qkv", "qkv_proj", "query_key_value", "to_qkv", "w_qkv", "wqkv"},
    2: {"key_value", "kv", "kv_proj", "to_kv", "w_kv", "wkv"},
}
GATES = {3: (nn.GRU, nn.GRUCell), 4: (nn.LSTM, nn.LSTMCell)}  # each of which has a matrix, one below the other

Owners = list[tuple[str, nn.Module, str]]  # of a parameter: the modules that have it, with their and its own name


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: weights, which decay, and biases and normalization layers, which do not.

    A bias is a parameter with ``bias`` in its own name (as ``in_proj_bias``) or with fewer than two dimensions.
    Parameters that need no gradient are left out; one that several modules share is taken once,
    under its first name, and decays unless one of them is a normalization layer.

    Args:
        model: any module.
        weight_decay: coefficient of the decay of the first group, in [0, ∞).

    Returns:
        Groups with ``params`` (pairs of name and parameter, as `named_parameters` gives them) and ``weight_decay``:
        first what decays, then what does not; an empty group is left out.

    Raises:
        TypeError, ValueError: `weight_decay` is of the wrong kind or out of its range; the model has no parameter.

    Example:
        ``AdamW(weight_decay_groups(model, 0.1), lr=1e-3)``
    """
    check("weight_decay", weight_decay, "[0, inf)")
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, param, owners in _trained(model):
        groups[_decays(name, param, owners)].append((name, param))
    return [
        {"params": params, "weight_decay": weight_decay if decays else 0.0}
        for decays, params in groups.items()
        if params
    ]


def muon_groups(
    model: nn.Module,
    lr: float | Tensor = 0.02,
    adamw_lr: float | Tensor = 3e-4,
    weight_decay: float = 0.01,
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-10,
    split_qkv: bool = True,
    muon: Sequence[str] = (),
    adamw: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Parameter groups for :class:`optimizers.Muon`: the matrices between hidden layers, and all else for AdamW.

    Muon steps a parameter that has two dimensions, or is the filters of a convolution, both sides of the matrix
    being larger than 1, unless it is

    - of an embedding (`nn.Embedding`, `nn.EmbeddingBag`), or of a layer that shares its weight with one;
    - of a head: a layer whose own name is ``head``, ``lm_head``, ``classifier``, ``score``, … (`HEADS`); if there
      is none, and no embedding's weight is shared, the last layer with a matrix for its ``weight``. (Where that
      layer is one of several alike, in blocks that differ by their number alone, the model has no head.)
    - of a normalization layer;
    - called ``…bias…``, ``…embed…``, ``…token…`` or ``…position…``, as tables are that are no layer's weight;
    - the filters of a depthwise convolution, each of which is a vector;
    - complex.

    A parameter made of several matrices, one below the other, is orthogonalized one by one, as ``blocks`` says: the
    groups of a convolution, the gates of `nn.LSTM`, `nn.GRU` and their cells, and unless ``split_qkv=False`` the
    queries, keys and values of attention: the parameters or layers called ``in_proj_weight``, ``qkv``, ``c_attn``,
    ``Wqkv``, … (`FUSED`) with three times as many rows as columns (``kv``: twice).

    Whatever has fewer than two dimensions, is a bias or of a normalization layer, does not decay. Parameters that
    need no gradient are left out; one that several modules share is taken once, under its first name.

    Args:
        model: any module.
        lr, adamw_lr: learning rates of Muon and AdamW. A scheduler scales both.
        weight_decay: λ of all that decays, in [0, ∞).
        betas, eps: AdamW's.
        split_qkv: False to take the queries', keys' and values' matrices as one.
        muon, adamw: patterns of names, as ``"blocks.*.experts.*"``, of parameters to be stepped by the one or the
            other whatever the above says; `adamw` is looked at first.

    Returns:
        Groups with ``params`` (pairs of name and parameter), ``direction``, ``lr``, ``weight_decay``, and
        ``blocks`` or ``betas`` and ``eps``.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range; the model has no parameter; a
            pattern is no parameter's name, or gives Muon a vector.

    Example:
        ``Muon(muon_groups(model, lr=0.02, adamw_lr=3e-4))``
    """
    for name, value in ("lr", lr), ("adamw_lr", adamw_lr), ("weight_decay", weight_decay):
        check(name, value, "[0, inf)")
    trained = _trained(model)
    overrides = {False: _named("adamw", adamw, trained), True: _named("muon", muon, trained)}
    ends = _ends(model)
    groups: dict[tuple[bool, int, bool], list[Any]] = defaultdict(list)
    for name, param, owners in trained:
        chosen = next((choice for choice, names in overrides.items() if name in names), None)
        if chosen and param.dim() < 2:
            raise ValueError(f"{name} is no matrix, but a pattern of muon={muon!r} gives it to Muon")
        is_hidden = id(param) not in ends and _is_matrix(param, owners) if chosen is None else chosen
        blocks = _blocks(param, owners, split_qkv) if is_hidden else 1
        groups[is_hidden, blocks, _decays(name, param, owners)].append((name, param))
    adam = {"direction": "adamw", "lr": adamw_lr, "betas": betas, "eps": eps}
    return [
        {
            "params": groups[key],
            **({"direction": "muon", "lr": lr, "blocks": key[1]} if key[0] else adam),
            "weight_decay": weight_decay if key[2] else 0.0,
        }
        for key in sorted(groups, key=lambda key: (not key[0], key[1], not key[2]))
    ]


def _trained(model: nn.Module) -> list[tuple[str, Tensor, Owners]]:
    """The parameters that need a gradient, each once, with their names and owners."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    owners: dict[int, Owners] = defaultdict(list)
    for path, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            owners[id(param)].append((path, module, name))
    trained: list[tuple[str, Tensor, Owners]] = [
        (name, param, owners[id(param)]) for name, param in model.named_parameters() if param.requires_grad
    ]
    if not trained:
        raise ValueError(f"{type(model).__name__} has no parameter that needs a gradient")
    return trained


def _decays(name: str, param: Tensor, owners: Owners) -> bool:
    is_bias = "bias" in name.rsplit(".", 1)[-1] or param.dim() < 2
    return not (is_bias or any(isinstance(module, NORMS) for _, module, _ in owners))


def _named(keyword: str, patterns: Sequence[str], trained: list[tuple[str, Tensor, Owners]]) -> set[str]:
    """The parameters whose names fit one of the patterns."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    names = {pattern: [name for name, _, _ in trained if fnmatchcase(name, pattern)] for pattern in patterns}
    if unused := [pattern for pattern in patterns if not names[pattern]]:
        raise ValueError(f"{keyword}: {unused[0]!r} is no name of a parameter that needs a gradient")
    return {name for found in names.values() for name in found}


def _ends(model: nn.Module) -> set[int]:
    """The ids of the parameters of embeddings and heads."""
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.dim() >= 2
    }
    # (A layer's parameters may be what its weight is computed from: `torch.nn.utils.parametrizations`.)
    tables = [module for module in layers.values() if isinstance(module, EMBEDDINGS)]
    embeddings = {id(param) for module in tables for param in module.parameters()}
    others = {path: module for path, module in layers.items() if not isinstance(module, (*EMBEDDINGS, *NORMS))}
    heads = [p for p, module in others.items() if _own(p) in HEADS or id(module.weight) in embeddings]
    linear = {path: module for path, module in others.items() if module.weight.dim() == 2}
    if not heads and linear:
        alike = Counter(_kind(path, module) for path, module in linear.items())
        last = list(linear)[-1]
        heads = [last] if alike[_kind(last, linear[last])] == 1 else []
    return embeddings | {id(param) for path in heads for param in layers[path].parameters()}


def _own(path: str) -> str:
    return path.rpartition(".")[2].lower()


def _kind(path: str, module: nn.Module) -> tuple[str, Any]:
    """What layers have in common that are the same one of several blocks: all but the blocks' numbers."""
    above, _, own = path.rpartition(".")
    return f"{re.sub(r'[0-9]+', '#', above)}.{own}", module.weight.shape


def _is_matrix(param: Tensor, owners: Owners) -> bool:
    """Whether a parameter is a matrix, or several, between two layers of neurons."""
    for _, module, name in owners:
        if isinstance(module, (*NORMS, *EMBEDDINGS)) or re.search("bias|embed|token|position", name):
            return False
        if isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels:
            return False
    filters = any(isinstance(module, CONVOLUTIONS) for _, module, _ in owners)
    several = (param.dim() == 2 or filters) and min(len(param), param.shape[1:].numel()) > 1
    return several and not param.is_complex()


def _blocks(param: Tensor, owners: Owners, split_qkv: bool) -> int:
    """The number of matrices that stand one below the other in a parameter."""
    path, module, name = owners[0]
    if isinstance(module, CONVOLUTIONS):
        return module.groups
    if gates := [n for n, layers in GATES.items() if isinstance(module, layers)]:
        return 1 if "_hr_" in name else gates[0]  # the former is an LSTM's projection
    called = {name.lower(), _own(path)} if name == "weight" else {name.lower()}
    fused = [n for n, names in FUSED.items() if called & names and len(param) == n * param.shape[1:].numel()]
    return fused[0] if fused and split_qkv else 1
