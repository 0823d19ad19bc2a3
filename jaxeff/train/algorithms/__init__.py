"""Training algorithms, found by name."""

from jaxeff.train.algorithms.affine import AffineVAE
from jaxeff.train.algorithms.base import ALGORITHMS, Algorithm, Task
from jaxeff.train.algorithms.bptt import BPTT
from jaxeff.train.algorithms.constrained import Constrained
from jaxeff.train.algorithms.distill import Distillation
from jaxeff.train.algorithms.early_exits import EarlyExits
from jaxeff.train.algorithms.fptt import FPTT, TruncatedBPTT
from jaxeff.train.algorithms.hybrid import BPTTWithoutFold, Hybrid
from jaxeff.train.algorithms.partwise import PartwiseAlgorithm
from jaxeff.train.algorithms.sandwich import Sandwich
from jaxeff.train.algorithms.stateful_losses import OneSidedSaddle, SelfAdaptiveTraining, Tracking

__all__ = [
    "ALGORITHMS",
    "AffineVAE",
    "BPTT",
    "BPTTWithoutFold",
    "EarlyExits",
    "Hybrid",
    "FPTT",
    "Algorithm",
    "Constrained",
    "Distillation",
    "OneSidedSaddle",
    "PartwiseAlgorithm",
    "Sandwich",
    "SelfAdaptiveTraining",
    "Task",
    "Tracking",
    "TruncatedBPTT",
]
