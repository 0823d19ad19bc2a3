"""Cost of routing: multiply-adds, time on this device, and time of requests to a cloud."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxeff import bench
from jaxeff.arguments import require
from jaxeff.errors import DataError
from jaxeff.hybrid.curves import AccuracyCoverageCurve
from jaxeff.hybrid.route import Cascade, bucket, bucket_sizes


def hybrid_macs(coverage: float, base: float, expert: float, router: float = 0.0) -> float:
    """Returns multiply-adds per input: base and router on all, the expert on what is queried.

    The published figures leave the router out.

    Raises:
      ConfigError: a coverage outside [0, 1].
    """
    require("coverage", coverage, "[0, 1]")
    return base + router + (1 - coverage) * expert


class CostModel(Protocol):
    """Interface of cost models of hybrid inference."""

    def milliseconds(self, coverage: float) -> float:
        """Returns the time per input if the base keeps the fraction ``coverage``."""

    def batch_ms(self, reached: Sequence[int]) -> float:
        """Returns the time of one batch, given how many rows reached each stage."""


@dataclasses.dataclass(frozen=True)
class EdgeCloud:
    """A base on a microcontroller and an expert in the cloud.

    The defaults are derived from the plot on the authors' poster: hybrid points every 200 ms from
    coverage 0.9 at 400 ms to 0.3 at 1600 ms, and a tenth of that as energy in mJ.

    Attributes:
      device_ms: time of the base.
      query_ms: additional time of a query.
      ms_per_mj: milliseconds per millijoule.
    """

    device_ms: float = 200.0
    query_ms: float = 2000.0
    ms_per_mj: float = 10.0

    def __post_init__(self) -> None:
        require("device_ms and query_ms", (self.device_ms, self.query_ms), "[0, inf)")
        require("ms_per_mj", self.ms_per_mj, "(0, inf)")

    def milliseconds(self, coverage: float) -> float:
        """See `CostModel.milliseconds`."""
        require("coverage", coverage, "[0, 1]")
        return self.device_ms + (1 - coverage) * self.query_ms

    def batch_ms(self, reached: Sequence[int]) -> float:
        """See `CostModel.batch_ms`; one input after the other."""
        return self.device_ms * reached[0] + self.query_ms * sum(reached[1:])

    def millijoules(self, coverage: float) -> float:
        """Returns the energy per input."""
        return self.milliseconds(coverage) / self.ms_per_mj


@dataclasses.dataclass(frozen=True)
class AffineCost:
    """``fixed + per_row * rows``, and nothing for no rows."""

    fixed: float
    per_row: float

    @classmethod
    def fit(cls, rows: Sequence[float], values: Sequence[float]) -> AffineCost:
        """Returns the least-squares line with non-negative coefficients."""
        x, y = np.asarray(rows, float), np.asarray(values, float)
        matrix = np.stack([np.ones_like(x), x], axis=1)
        fixed, per_row = np.linalg.lstsq(matrix, y, rcond=None)[0]
        if per_row < 0:
            fixed, per_row = np.mean(y), 0.0
        elif fixed < 0:
            fixed, per_row = 0.0, x @ y / (x @ x)
        return cls(max(float(fixed), 0.0), max(float(per_row), 0.0))

    def __call__(self, rows: np.ndarray | float) -> np.ndarray:
        """Returns the value at numbers of rows."""
        rows = np.asarray(rows)
        return np.where(rows > 0, self.fixed + self.per_row * rows, 0.0)


@dataclasses.dataclass(frozen=True)
class MeasuredCost:
    """Milliseconds of a batch, affine in the size of the bucket that each later stage runs on.

    Attributes:
      batch: rows of a batch.
      base_ms: of the first stage with its router, on the whole batch.
      later: milliseconds of each later stage by the size of its bucket.
      query_ms: additional time of every queried input.
    """

    batch: int
    base_ms: float
    later: tuple[AffineCost, ...]
    query_ms: float = 0.0

    def batch_ms(self, reached: Sequence[int]) -> float:
        """See `CostModel.batch_ms`."""
        sizes = bucket_sizes(self.batch)
        stages = zip(self.later, reached[1:], strict=True)
        queries = sum(reached[1:])
        times = (float(line(bucket(rows, sizes))) for line, rows in stages)
        return self.base_ms + sum(times) + self.query_ms * queries

    def expected_ms(self, shares: Sequence[float]) -> float:
        """Returns the mean time per input, given the share of inputs that reaches each later stage.

        The number of queries per batch is binomial, so some batches need larger buckets than the
        mean.

        Raises:
          ConfigError: a share outside [0, 1].
        """
        sizes = bucket_sizes(self.batch)
        rows = np.arange(self.batch + 1)
        buckets = np.array([bucket(int(n), sizes) for n in rows])
        total = self.base_ms
        for line, share in zip(self.later, shares, strict=True):
            total += float(binomial(self.batch, share) @ line(buckets))
        return total / self.batch + self.query_ms * sum(shares)

    def milliseconds(self, coverage: float) -> float:
        """See `CostModel.milliseconds`; of a base and one expert."""
        require("coverage", coverage, "[0, 1]")
        return self.expected_ms((1 - coverage,))


def binomial(trials: int, share: float) -> np.ndarray:
    """Returns the probabilities of 0 to ``trials`` successes, ``[trials + 1]``.

    Raises:
      ConfigError: a share outside [0, 1].
    """
    require("a share", share, "[0, 1]")
    successes = np.arange(trials + 1)
    if share in (0, 1):
        certain: np.ndarray = successes == round(share) * trials
        return certain.astype(float)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    ways = logs[trials] - logs - logs[::-1]
    chances: np.ndarray = np.exp(
        ways + successes * np.log(share) + successes[::-1] * np.log1p(-share)
    )
    return chances


def measure(
    cascade: Cascade, inputs: Any, *, query_ms: float = 0.0, rounds: int = 5
) -> MeasuredCost:
    """Fits the cost of whole batches on this device, host work included.

    Every stage is timed with all its buckets, filled by the rows of highest score.

    Args:
      cascade: what to time.
      inputs: one batch.
      query_ms: see `MeasuredCost`.
      rounds: timed calls of each size.

    Returns:
      the `MeasuredCost`.
    """
    batch = len(jax.tree.leaves(inputs)[0])
    later = len(cascade.thresholds)
    sizes = bucket_sizes(batch)
    inputs = jax.device_put(inputs)

    def call(stage: int, rows: int) -> Callable[[], Any]:
        limits = [batch] * stage + [rows] + [0] * (later - stage - 1)
        everything = (-np.inf,) * later
        return lambda: cascade(inputs, thresholds=everything, limits=limits).outputs

    variants = {(0, 0): call(0, 0)} if later else {(0, 0): lambda: cascade(inputs).outputs}
    variants |= {(stage, rows): call(stage, rows) for stage in range(later) for rows in sizes}
    times = bench.interleaved({str(key): run for key, run in variants.items()}, rounds, 1, warmup=1)

    def spent(stage: int, rows: int) -> float:
        return times[str((stage, rows))].median_ms

    base, lines = spent(0, 0), []
    for stage in range(later):
        before = spent(stage - 1, batch) if stage else base
        lines.append(AffineCost.fit(sizes, [spent(stage, rows) - before for rows in sizes]))
    return MeasuredCost(batch, base, tuple(lines), query_ms)


def cheapest(curve: AccuracyCoverageCurve, cost: CostModel, accuracy: float) -> int:
    """Returns the number of the curve's point of least cost that reaches an accuracy.

    Raises:
      ConfigError: an accuracy outside [0, 1].
      DataError: no point reaches it.
    """
    require("accuracy", accuracy, "[0, 1]")
    reached = np.flatnonzero(curve.accuracy >= accuracy)
    if not reached.size:
        raise DataError(
            f"no threshold reaches accuracy {accuracy:.4f} on the calibration data; the best is "
            f"{curve.accuracy.max():.4f}"
        )
    costs = np.array([cost.milliseconds(float(c)) for c in curve.coverage[reached]])
    # The highest accuracy of equal costs, such as row counts within one bucket.
    best = np.lexsort((-curve.accuracy[reached], costs))[0]
    return int(reached[best])


def within(curve: AccuracyCoverageCurve, cost: CostModel, budget_ms: float) -> int:
    """Returns the number of the curve's most accurate point that costs at most the budget.

    Raises:
      ConfigError: a budget that is not above 0.
      DataError: no point is that cheap.
    """
    require("budget_ms", budget_ms, "(0, inf]")
    costs = np.array([cost.milliseconds(float(coverage)) for coverage in curve.coverage])
    allowed = np.flatnonzero(costs <= budget_ms)
    if not allowed.size:
        raise DataError(
            f"no threshold costs at most {budget_ms:.4g} ms per input; the base alone costs "
            f"{costs.min():.4g} ms"
        )
    best = np.lexsort((costs[allowed], -curve.accuracy[allowed]))[0]
    return int(allowed[best])
