"""Every optimizer of the book, any mix of them, as one real `torch.optim.Optimizer`."""

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
from .chain import Chain
from .clipping import ClipNorm, ClipValue
from .gradient_noise import GradientNoise
from .groups import weight_decay_groups
from .hogwild import run_hogwild
from .identity import new_run
from .lion import Lion
from .lookahead import Lookahead
from .lr_dropout import GradientDropout, LearningRateDropout
from .momentum import SGD
from .nadam import NAdam, NAdamW
from .radam import RAdam, RAdamW
from .registry import create, recipes
from .registry import list as list  # not in __all__: it would hide the built-in
from .rmsprop import RMSprop
from .schedules import wsd
from .signum import Signum
from .stage import Place, Stage
from .weight_decay import L2, DecoupledWeightDecay

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
    "create",
    "new_run",
    "recipes",
    "run_hogwild",
    "weight_decay_groups",
    "wsd",
]
