"""Training algorithms, found by name."""

from jaxeff.train.algorithms.base import ALGORITHMS, Algorithm
from jaxeff.train.algorithms.bptt import BPTT

__all__ = ["ALGORITHMS", "BPTT", "Algorithm"]
