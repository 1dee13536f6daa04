"""Every optimizer of the book, any mix of them, as one real `torch.optim.Optimizer`."""

import sys

from .adabelief import AdaBelief
from .adabound import AdaBound, AdaBoundW, AMSBound, AMSBoundW
from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam, Adamax
from .adamw import SGDW, AdamW
from .ademamix import AdEMAMix
from .adopt import ADOPT
from .aggmo import AggMo
from .amsgrad import AMSGrad
from .average import Average
from .cautious import Cautious, CautiousWeightDecay
from .clipping import ClipNorm, ClipValue
from .engine import Chain, Place, Stage, chain, identity, new_run, stage
from .gradient_noise import GradientNoise
from .groups import muon_groups, weight_decay_groups
from .hogwild import run_hogwild
from .hyperball import Hyperball
from .lamb import LAMB
from .lion import Lion
from .lookahead import Lookahead
from .lr_dropout import GradientDropout, LearningRateDropout
from .mars import MARS
from .momentum import SGD
from .muon import Muon
from .nadam import NAdam, NAdamW
from .prodigy import Prodigy
from .radam import RAdam, RAdamW
from .registry import create, recipes
from .registry import list as list  # not in __all__: it would hide the built-in
from .rmsprop import RMSprop
from .rounding import Kahan, StateDtype, StochasticRounding
from .sam import ASAM, SAM
from .schedule_free import ScheduleFree
from .schedules import wsd
from .shampoo import Shampoo
from .signum import Signum
from .soap import SOAP, Rotated
from .weight_decay import L2, DecoupledWeightDecay

# By these names, of before there was an engine, pickles and users' own stages know what is in them.
sys.modules.update({module.__name__.replace(".engine", ""): module for module in (chain, identity, stage)})

__all__ = [
    "ADOPT",
    "ASAM",
    "L2",
    "LAMB",
    "MARS",
    "SAM",
    "SGD",
    "SGDW",
    "SOAP",
    "AMSBound",
    "AMSBoundW",
    "AMSGrad",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaBoundW",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "AggMo",
    "Average",
    "Cautious",
    "CautiousWeightDecay",
    "Chain",
    "ClipNorm",
    "ClipValue",
    "DecoupledWeightDecay",
    "GradientDropout",
    "GradientNoise",
    "Hyperball",
    "Kahan",
    "LearningRateDropout",
    "Lion",
    "Lookahead",
    "Muon",
    "NAdam",
    "NAdamW",
    "Place",
    "Prodigy",
    "RAdam",
    "RAdamW",
    "RMSprop",
    "Rotated",
    "ScheduleFree",
    "Shampoo",
    "Signum",
    "Stage",
    "StateDtype",
    "StochasticRounding",
    "create",
    "muon_groups",
    "new_run",
    "recipes",
    "run_hogwild",
    "weight_decay_groups",
    "wsd",
]
