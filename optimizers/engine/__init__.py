"""The machine behind the rules: what a rule's module imports, and nothing that knows a paper."""

from .chain import Chain, Options
from .composition import Partition
from .identity import new_run
from .products import symmetric
from .random import SEED, bits, normal, uniform
from .stage import Place, Stage, select
from .validation import check, plain

__all__ = [
    "SEED",
    "Chain",
    "Options",
    "Partition",
    "Place",
    "Stage",
    "bits",
    "check",
    "new_run",
    "normal",
    "plain",
    "select",
    "symmetric",
    "uniform",
]
