"""Training algorithms, found by name."""

from jaxeff.train.algorithms.affine import AffineVAE
from jaxeff.train.algorithms.base import ALGORITHMS, Algorithm, Task
from jaxeff.train.algorithms.bptt import BPTT
from jaxeff.train.algorithms.constrained import Constrained
from jaxeff.train.algorithms.distill import Distillation
from jaxeff.train.algorithms.early_exits import EarlyExits
from jaxeff.train.algorithms.folds import BPTTWithoutFold
from jaxeff.train.algorithms.fptt import FPTT, TruncatedBPTT
from jaxeff.train.algorithms.hybrid import Hybrid
from jaxeff.train.algorithms.partwise import PartwiseAlgorithm
from jaxeff.train.algorithms.sandwich import Sandwich
from jaxeff.train.algorithms.stateful_losses import (
    OneSidedSaddle,
    PretrainedObjective,
    SelfAdaptiveTraining,
)

__all__ = [
    "ALGORITHMS",
    "BPTT",
    "FPTT",
    "AffineVAE",
    "Algorithm",
    "BPTTWithoutFold",
    "Constrained",
    "Distillation",
    "EarlyExits",
    "Hybrid",
    "OneSidedSaddle",
    "PartwiseAlgorithm",
    "PretrainedObjective",
    "Sandwich",
    "SelfAdaptiveTraining",
    "Task",
    "TruncatedBPTT",
]
