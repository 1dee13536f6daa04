"""Try optimizers on a problem of your own: the same budget for each, learning rates searched, fresh seeds.

Needs the extra ``study``. From the shell: ``python -m optimizers study problem.py --optimizers "adamw, muon"``.
"""

from .api import run
from .errors import ProblemError, StudyError
from .problem import Problem
from .protocol import Protocol

__all__ = ["Problem", "ProblemError", "Protocol", "StudyError", "run"]
