"""Accuracy against coverage of a base and an expert with query scores, in NumPy.

An input is queried where its score is above a threshold. Coverage is the fraction that the base
keeps. Curves have a point for every distinct score, without a grid; equal scores are kept or
queried together.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from jaxeff.arguments import require
from jaxeff.errors import DataError


class AccuracyCoverageCurve(NamedTuple):
    """Points of a curve, from coverage 0 (threshold -inf) to coverage 1, one per distinct score.

    Attributes:
      threshold: inputs with a score above it are queried, ``[points]``.
      kept: number of inputs kept, ``[points]``.
      hits: number of inputs answered correctly, ``[points]``.
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
        """Share of the inputs answered correctly."""
        return self.hits / self.examples

    def accuracy_at(self, coverage: float | np.ndarray) -> np.ndarray:
        """Returns the accuracy between the points, the mean over random orders of equal scores.

        Raises:
          ConfigError: a coverage outside [0, 1].
        """
        require("coverage", coverage, "[0, 1]")
        accuracy: np.ndarray = np.interp(coverage, self.coverage, self.accuracy)
        return accuracy

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
    """Shares of the inputs that both, only the base, or only the expert answers correctly."""

    both: float
    only_base: float
    only_expert: float

    @classmethod
    def of(cls, base_correct: np.ndarray, expert_correct: np.ndarray) -> Shares:
        """Returns the shares of booleans ``[examples]``."""
        b, g = _booleans(base_correct, expert_correct)
        return cls(*(float(np.mean(part)) for part in (b & g, b & ~g, ~b & g)))


def _booleans(*arrays: np.ndarray) -> list[np.ndarray]:
    """Converts arrays to booleans ``[examples]``; raises `DataError` if that is impossible."""
    converted = [np.asarray(each) for each in arrays]
    shapes = {each.shape for each in converted}
    if len(shapes) > 1 or converted[0].ndim != 1 or not converted[0].size:
        raise DataError(
            "who is right, and what is queried, must be given for each of the same examples, not "
            f"as {', '.join(str(each.shape) for each in converted)}"
        )
    if not all(np.isin(each, (0, 1)).all() for each in converted):
        raise DataError("who is right, and what is queried, must be true or false for each example")
    return [each.astype(bool) for each in converted]


def checked_scores(scores: np.ndarray) -> np.ndarray:
    """Returns query scores ``[..., examples]``; raises `DataError` if empty or NaN."""
    scores = np.asarray(scores)
    if not scores.size:
        raise DataError("there are no query scores to choose a threshold on")
    if scores.dtype.kind in "USO":
        raise DataError(f"query scores must be numbers, not {scores.dtype}")
    missing = np.isnan(scores)
    if missing.any():
        raise DataError(
            f"{int(missing.sum())} of {scores.size} query scores are NaN, the first that of "
            f"example {np.argwhere(missing)[0][-1]}; leave out examples without a score"
        )
    return scores


def accuracy_coverage(
    scores: np.ndarray, base_correct: np.ndarray, expert_correct: np.ndarray
) -> AccuracyCoverageCurve:
    """Returns the curve of query scores ``[examples]`` and who is right, ``[examples]``.

    Raises:
      DataError: no scores, one that is NaN, or not as many in all.
    """
    scores = checked_scores(scores)
    shapes = {np.shape(each) for each in (scores, base_correct, expert_correct)}
    if len(shapes) > 1 or scores.ndim != 1:
        raise DataError(f"scores and who is right must all be [examples], not {shapes}")
    base, expert = _booleans(base_correct, expert_correct)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of every run of equal scores
    gain = base.astype(np.int64) - expert
    hits = np.sum(expert) + np.cumsum(gain[order])[last]
    return AccuracyCoverageCurve(
        threshold=np.concatenate([[-np.inf], ranked[last]]),
        kept=np.concatenate([[0], np.flatnonzero(last) + 1]),
        hits=np.concatenate([[np.sum(expert)], hits]),
        examples=len(scores),
    )


def calibrated_threshold(scores: np.ndarray, coverage: float) -> float:
    """Returns the smallest threshold, among the scores, that keeps at least ``coverage``.

    Coverage 0 queries everything (-inf) and coverage 1 keeps everything, on other data too (inf).
    A coverage outside [0, 1] is clipped, with a warning.

    Raises:
      ConfigError: the coverage is not a number.
      DataError: no scores, or one that is NaN.
    """
    require("coverage", coverage, "[-inf, inf]")
    scores = checked_scores(scores)
    if not 0 <= coverage <= 1:
        what = "keeps everything" if coverage > 1 else "queries everything"
        warnings.warn(
            f"coverage is a share in [0, 1]; {coverage:g} {what}, as {min(max(coverage, 0), 1)} "
            "does",
            stacklevel=2,
        )
    if not 0 < coverage < 1:
        return np.inf if coverage > 0 else -np.inf
    kept = np.arange(1, len(scores) + 1) / len(scores)
    return float(np.sort(scores)[np.searchsorted(kept, coverage)])


def breakdown(
    queried: np.ndarray, base_correct: np.ndarray, expert_correct: np.ndarray
) -> Breakdown:
    """Returns coverage and accuracies of a routing, booleans ``[examples]``."""
    queried, base, expert = _booleans(queried, base_correct, expert_correct)

    def share(correct: np.ndarray, part: np.ndarray) -> float:
        return float(np.sum(correct & part) / max(np.sum(part), 1))

    return Breakdown(
        coverage=float(np.mean(~queried)),
        accuracy=float(np.mean(np.where(queried, expert, base))),
        base_on_kept=share(base, ~queried),
        expert_on_queried=share(expert, queried),
    )


def label_oracle(queries: np.ndarray | float, shares: Shares) -> np.ndarray:
    """Returns the highest accuracy of any routing at fractions of queries.

    With q queries: P(b or g right) - (p_g - q)_+ - (q - (1 - p_b))_+, where p_b and p_g are the
    shares that only the base and only the expert answers correctly.

    Raises:
      ConfigError: a share of queries outside [0, 1].
    """
    require("a share of queries", queries, "[0, 1]")
    q, either = np.asarray(queries), sum(shares)
    missed = np.maximum(0, shares.only_expert - q)
    return either - missed - np.maximum(0, q - (1 - shares.only_base))


def worst_case(queries: np.ndarray | float, shares: Shares) -> np.ndarray:
    """Returns the lowest accuracy of any routing at fractions of queries.

    It is P(b and g right) + (p_b - q)_+ + (q - (1 - p_g))_+.

    Raises:
      ConfigError: a share of queries outside [0, 1].
    """
    require("a share of queries", queries, "[0, 1]")
    q = np.asarray(queries)
    kept = np.maximum(0, shares.only_base - q)
    return shares.both + kept + np.maximum(0, q - (1 - shares.only_expert))
