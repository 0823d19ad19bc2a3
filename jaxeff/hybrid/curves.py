"""Accuracy against coverage of a base and an expert joined by query scores, in NumPy.

An input is queried where its score is above a threshold. Coverage is the share that the base
keeps. Everything is counted over the values that the scores really take: there is no grid, and
equal scores are kept or queried together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxeff.errors import DataError


class Curve(NamedTuple):
    """Points of a curve, from coverage 0 (threshold -inf) to coverage 1, one per distinct score.

    Attributes:
      threshold: inputs with a score above it are queried, ``[points]``.
      kept: number of inputs kept, ``[points]``.
      hits: number of inputs answered rightly, ``[points]``.
      examples: number of inputs.
    """

    threshold: np.ndarray
    kept: np.ndarray
    hits: np.ndarray
    examples: int

    @property
    def coverage(self) -> np.ndarray:
        """Share of the inputs that the base keeps."""
        return self.kept / self.examples

    @property
    def accuracy(self) -> np.ndarray:
        """Share of the inputs answered rightly."""
        return self.hits / self.examples

    def accuracy_at(self, coverage: float | np.ndarray) -> np.ndarray:
        """Returns the accuracy between the points, the mean over random orders of equal scores."""
        return np.interp(coverage, self.coverage, self.accuracy)

    @property
    def area(self) -> float:
        """Area under accuracy against coverage, the mean accuracy over all coverages."""
        return float(np.trapezoid(self.accuracy, self.coverage))


class Breakdown(NamedTuple):
    """One routing: ``accuracy = coverage * base_on_kept + (1 - coverage) * expert_on_queried``.

    The accuracy of a part that has no inputs is 0.
    """

    coverage: float
    accuracy: float
    base_on_kept: float
    expert_on_queried: float


class Shares(NamedTuple):
    """Shares of the inputs that both, only the base, or only the expert answers rightly."""

    both: float
    only_base: float
    only_expert: float

    @classmethod
    def of(cls, base_correct: np.ndarray, expert_correct: np.ndarray) -> Shares:
        """Returns the shares of booleans ``[examples]``."""
        b, g = _booleans(base_correct), _booleans(expert_correct)
        return cls(*(float(np.mean(part)) for part in (b & g, b & ~g, ~b & g)))


def _booleans(correct: np.ndarray) -> np.ndarray:
    return np.asarray(correct, bool)


def accuracy_coverage(
    scores: np.ndarray, base_correct: np.ndarray, expert_correct: np.ndarray
) -> Curve:
    """Returns the curve of query scores ``[examples]`` and who is right, ``[examples]``.

    Raises:
      DataError: no scores, or one is NaN.
    """
    scores = np.asarray(scores)
    if not scores.size or np.isnan(scores).any():
        raise DataError("query scores must be numbers, of at least one example")
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of every run of equal scores
    gain = _booleans(base_correct).astype(np.int64) - _booleans(expert_correct)
    hits = np.sum(_booleans(expert_correct)) + np.cumsum(gain[order])[last]
    return Curve(
        threshold=np.concatenate([[-np.inf], ranked[last]]),
        kept=np.concatenate([[0], np.flatnonzero(last) + 1]),
        hits=np.concatenate([[np.sum(_booleans(expert_correct))], hits]),
        examples=len(scores),
    )


def calibrated_threshold(scores: np.ndarray, coverage: float) -> float:
    """Returns the smallest threshold, among the scores, that keeps at least ``coverage``.

    Coverage 0 queries everything (-inf) and coverage 1 keeps everything, on other data too (inf).
    """
    if coverage <= 0:
        return -np.inf
    if coverage >= 1:
        return np.inf
    kept = np.arange(1, len(scores) + 1) / len(scores)
    return float(np.sort(scores)[np.searchsorted(kept, coverage)])


def breakdown(
    queried: np.ndarray, base_correct: np.ndarray, expert_correct: np.ndarray
) -> Breakdown:
    """Returns coverage and accuracies of a routing, booleans ``[examples]``."""
    queried, base, expert = map(_booleans, (queried, base_correct, expert_correct))

    def share(correct: np.ndarray, part: np.ndarray) -> float:
        return float(np.sum(correct & part) / max(np.sum(part), 1))

    return Breakdown(
        coverage=float(np.mean(~queried)),
        accuracy=float(np.mean(np.where(queried, expert, base))),
        base_on_kept=share(base, ~queried),
        expert_on_queried=share(expert, queried),
    )


def label_oracle(queries: np.ndarray | float, shares: Shares) -> np.ndarray:
    """Returns the best accuracy that any routing can have at shares of queries.

    With q queries: P(b or g right) - (p_g - q)_+ - (q - (1 - p_b))_+, where p_b and p_g are the
    shares that only the base and only the expert answers rightly.
    """
    q, either = np.asarray(queries), sum(shares)
    missed = np.maximum(0, shares.only_expert - q)
    return either - missed - np.maximum(0, q - (1 - shares.only_base))


def worst_case(queries: np.ndarray | float, shares: Shares) -> np.ndarray:
    """Returns the lowest accuracy that any routing can have at shares of queries.

    It is P(b and g right) + (p_b - q)_+ + (q - (1 - p_g))_+.
    """
    q = np.asarray(queries)
    kept = np.maximum(0, shares.only_base - q)
    return shares.both + kept + np.maximum(0, q - (1 - shares.only_expert))
