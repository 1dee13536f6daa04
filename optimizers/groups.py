"""Parameter groups that users ask for."""

from typing import Any

from torch import nn

from .engine import check

# Layers whose parameters are a scale and a shift of what is already normalized.
NORMS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm, SyncBatchNorm and InstanceNorm of every dimension
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


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
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(False)}
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, param in model.named_parameters():
        if param.requires_grad:
            is_bias = "bias" in name.rsplit(".", 1)[-1] or param.dim() < 2
            groups[not (is_bias or id(param) in norms)].append((name, param))
    if not groups[True] and not groups[False]:
        raise ValueError(f"{type(model).__name__} has no parameter that needs a gradient")
    return [
        {"params": params, "weight_decay": weight_decay if decays else 0.0}
        for decays, params in groups.items()
        if params
    ]
