"""Training algorithms, found by name."""

from jaxeff.train.algorithms.base import ALGORITHMS, Algorithm, Task, Trained
from jaxeff.train.algorithms.bptt import BPTT
from jaxeff.train.algorithms.constrained import Constrained
from jaxeff.train.algorithms.fptt import FPTT, TruncatedBPTT
from jaxeff.train.algorithms.parts import PartwiseAlgorithm

__all__ = [
    "ALGORITHMS",
    "BPTT",
    "FPTT",
    "Algorithm",
    "Constrained",
    "PartwiseAlgorithm",
    "Task",
    "Trained",
    "TruncatedBPTT",
]
