"""Every optimizer of the book, any mix of them, as one real `torch.optim.Optimizer`."""

import sys

from .adabelief import AdaBelief
from .adabound import AdaBound, AdaBoundW, AMSBound, AMSBoundW
from .adadelta import Adadelta
from .adagrad import Adagrad
from .adam import Adam, Adamax
from .adamw import SGDW, AdamW
from .ademamix import AdEMAMix
from .adopt import ADOPT
from .aggmo import AggMo
from .amsgrad import AMSGrad
from .clipping import ClipNorm, ClipValue
from .engine import Chain, Place, Stage, chain, identity, new_run, stage
from .gradient_noise import GradientNoise
from .groups import weight_decay_groups
from .hogwild import run_hogwild
from .lion import Lion
from .lookahead import Lookahead
from .lr_dropout import GradientDropout, LearningRateDropout
from .momentum import SGD
from .nadam import NAdam, NAdamW
from .radam import RAdam, RAdamW
from .registry import create, recipes
from .registry import list as list  # not in __all__: it would hide the built-in
from .rmsprop import RMSprop
from .rounding import Kahan, StateDtype, StochasticRounding
from .schedules import wsd
from .signum import Signum
from .weight_decay import L2, DecoupledWeightDecay

# By these names, of before there was an engine, pickles and users' own stages know what is in them.
sys.modules.update({module.__name__.replace(".engine", ""): module for module in (chain, identity, stage)})

__all__ = [
    "ADOPT",
    "L2",
    "SGD",
    "SGDW",
    "AMSBound",
    "AMSBoundW",
    "AMSGrad",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaBoundW",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "AggMo",
    "Chain",
    "ClipNorm",
    "ClipValue",
    "DecoupledWeightDecay",
    "GradientDropout",
    "GradientNoise",
    "Kahan",
    "LearningRateDropout",
    "Lion",
    "Lookahead",
    "NAdam",
    "NAdamW",
    "Place",
    "RAdam",
    "RAdamW",
    "RMSprop",
    "Signum",
    "Stage",
    "StateDtype",
    "StochasticRounding",
    "create",
    "new_run",
    "recipes",
    "run_hogwild",
    "weight_decay_groups",
    "wsd",
]
