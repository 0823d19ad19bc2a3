"""Thresholds of cascades of several models, and the choice of models, on calibration data.

A cascade of m stages answers at the first stage whose score is not above its threshold, after
running all previous stages. Early-exit networks are the special case whose stages are segments of
one network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxeff.arguments import require
from jaxeff.errors import ConfigError, DataError
from jaxeff.hybrid.curves import Shares, accuracy_coverage, checked_scores, label_oracle
from jaxeff.hybrid.route import checked_thresholds

#: Largest number of combinations of thresholds.
LARGEST = 2**24


class OperatingPoint(NamedTuple):
    """Thresholds of a cascade and their results on the calibration data.

    Attributes:
      thresholds: one fewer than the stages.
      accuracy: share of the inputs answered correctly.
      price: mean cost of an input.
      reached: fraction of the inputs that reaches each stage.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    price: float
    reached: tuple[float, ...]


def follow(
    scores: np.ndarray,
    correct: np.ndarray,
    prices: Sequence[float],
    thresholds: Sequence[float],
) -> OperatingPoint:
    """Returns the operating point of thresholds, by direct evaluation.

    Args:
      scores: of each stage but the last, ``[stages - 1, examples]``.
      correct: whether each stage is right, ``[stages, examples]``.
      prices: of running each stage.
      thresholds: inputs with a score above, or a NaN score, are deferred, ``[stages - 1]``.

    Raises:
      ConfigError: a threshold that is NaN, a negative or NaN price, or a number of prices other
        than the number of stages.
    """
    thresholds = checked_thresholds(thresholds)
    require("a price", prices, "[0, inf)")
    scores, correct = np.asarray(scores), np.asarray(correct)
    if not len(correct) == len(prices) == len(scores) + 1 == len(thresholds) + 1:
        raise ConfigError(
            f"{len(correct)} stages need a price each, and scores and thresholds of all but the "
            f"last, not {len(prices)} prices, {len(scores)} scores and {len(thresholds)} thresholds"
        )
    examples = correct.shape[1]
    here = np.ones(examples, bool)
    hits, reached = 0, []
    for stage, right in enumerate(correct):
        reached.append(float(np.mean(here)))
        last = stage == len(correct) - 1
        leave = here if last else here & (scores[stage] <= thresholds[stage])
        hits += int(np.sum(right & leave))
        here = here & ~leave
    price = float(np.dot(prices, reached))
    return OperatingPoint(thresholds, hits / examples, price, tuple(reached))


class ThresholdTable:
    """Accuracy and price of every combination of candidate thresholds.

    Computed from a histogram of the examples over the stages' score bins by cumulative sums along
    each axis: exact for the candidates, at a cost independent of the number of examples.

    Args:
      scores: see `follow`, also for the next two.
      correct: whether each stage is right.
      prices: of the stages.
      candidates: thresholds tried per stage: the scores' quantiles, or all values if they are
        fewer, with minus and plus infinity.

    Raises:
      ConfigError: shapes that do not fit, too many combinations, or an impossible price.
      DataError: no examples, or a score that is NaN.
    """

    def __init__(
        self,
        scores: np.ndarray,
        correct: np.ndarray,
        prices: Sequence[float],
        candidates: int = 64,
    ):
        scores, correct = np.asarray(scores), np.asarray(correct, bool)
        stages, examples = correct.shape
        if scores.shape != (stages - 1, examples) or len(prices) != stages or stages < 2:
            raise ConfigError(
                f"{stages} stages of {examples} examples do not fit scores {scores.shape} and "
                f"{len(prices)} prices"
            )
        require("a price", prices, "[0, inf)")
        require("candidates", candidates, "[1, inf)")
        scores = checked_scores(scores)
        self.scores, self.correct, self.prices = scores, correct, tuple(prices)
        self.thresholds = [_candidates(values, candidates) for values in scores]
        shape = tuple(map(len, self.thresholds))
        if np.prod(shape, dtype=float) > LARGEST:
            raise ConfigError(
                f"{' x '.join(map(str, shape))} combinations of thresholds are too many; lower "
                "candidates"
            )
        # Index of the first threshold that does not defer an example.
        bins = [np.searchsorted(t, s) for t, s in zip(self.thresholds, scores, strict=True)]
        self.hits = np.zeros(shape, np.int64)
        self.price = np.full(shape, float(prices[0]))
        for stage in range(stages):
            axes = shape[: min(stage + 1, stages - 1)]
            spread = (*axes, *(1,) * (len(shape) - len(axes)))
            where = tuple(bins[: len(axes)])
            self.hits += self._counts(axes, where, correct[stage], stage).reshape(spread)
            if stage + 1 < stages:
                gone_on = self._counts(axes, where, np.ones(examples, bool), stage + 1)
                self.price += prices[stage + 1] * gone_on.reshape(spread) / examples

    @staticmethod
    def _counts(
        axes: tuple[int, ...], where: tuple[np.ndarray, ...], chosen: np.ndarray, passed: int
    ) -> np.ndarray:
        """Counts the ``chosen`` examples that ``passed`` stages defer and the next keeps."""
        counts = np.zeros(axes, np.int64)
        np.add.at(counts, where, chosen)
        for axis in range(len(axes)):
            if axis < passed:  # bins above the threshold
                above = np.flip(np.cumsum(np.flip(counts, axis), axis), axis)
                counts = above - counts
            else:
                counts = np.cumsum(counts, axis)
        return counts

    def best(self, *, price: float = 0.0, budget: float = np.inf) -> OperatingPoint:
        """Returns the thresholds of the highest accuracy less ``price`` times the mean price.

        Args:
          price: accuracy worth one unit of cost.
          budget: largest mean price.

        Raises:
          ConfigError: a negative or NaN price or budget.
          DataError: not even the first stage alone is within the budget.
        """
        require("price", price, "[0, inf)")
        require("budget", budget, "[0, inf]")
        value = self.hits / self.correct.shape[1] - price * self.price
        value = np.where(self.price <= budget, value, -np.inf)
        # The cheapest of equal values.
        order = np.lexsort((self.price.ravel(), -value.ravel()))
        if not np.isfinite(value.ravel()[order[0]]):
            raise DataError(
                f"a budget of {budget:.4g} is below the first stage's price {self.prices[0]:.4g}"
            )
        chosen = np.unravel_index(order[0], value.shape)
        thresholds = [t[i] for t, i in zip(self.thresholds, chosen, strict=True)]
        return follow(self.scores, self.correct, self.prices, thresholds)


def _candidates(scores: np.ndarray, number: int) -> np.ndarray:
    values = np.unique(scores)
    if len(values) > number:
        ranks = np.linspace(0, len(scores) - 1, number).round().astype(int)
        values = np.unique(np.sort(scores)[ranks])
    return np.concatenate([[-np.inf], values[:-1], [np.inf]])


class Pair(NamedTuple):
    """A base and an expert of a pool, and the accuracy that they reach within the budget."""

    base: int
    expert: int
    accuracy: float
    coverage: float


def best_pairs(
    correct: np.ndarray,
    prices: Sequence[float],
    budget: float,
    scores: np.ndarray | None = None,
) -> list[Pair]:
    """Ranks the pairs of a pool of models by hybrid accuracy within a mean price.

    The base runs on every input, and the expert on as many as the budget allows and accuracy gains.

    Args:
      correct: whether each model is right, ``[models, examples]``.
      prices: of running each model.
      budget: largest mean price of an input.
      scores: query scores of each model as a base, ``[models, examples]``: confidence, or a trained
        router's; None ranks by the accuracy of a perfect router.

    Returns:
      pairs, best first; a single model is a pair with itself at coverage 1.

    Raises:
      ConfigError: a negative or NaN budget, or a price that is not positive.
      DataError: every model costs more than the budget.
    """
    require("budget", budget, "[0, inf]")
    require("a price", prices, "(0, inf)")
    pairs = []
    for base, right in enumerate(correct):
        if prices[base] > budget:
            continue
        pairs.append(Pair(base, base, float(np.mean(right)), 1.0))
        for expert, expert_right in enumerate(correct):
            if expert == base:
                continue
            share = min(1.0, (budget - prices[base]) / prices[expert])
            if scores is None:
                shares = Shares.of(right, expert_right)
                queries = min(share, shares.only_expert)
                accuracy = float(label_oracle(queries, shares))
                pairs.append(Pair(base, expert, accuracy, 1 - queries))
            else:
                curve = accuracy_coverage(scores[base], right, expert_right)
                allowed = np.flatnonzero(1 - curve.coverage <= share + 1e-12)
                point = allowed[np.argmax(curve.accuracy[allowed])]
                accuracy = float(curve.accuracy[point])
                pairs.append(Pair(base, expert, accuracy, float(curve.coverage[point])))
    if not pairs:
        raise DataError(f"no model of the pool has a price within the budget {budget:.4g}")
    return sorted(pairs, key=lambda pair: -pair.accuracy)
