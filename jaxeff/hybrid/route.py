"""Routing on static shapes: later stages run only on deferred rows, in buckets of few sizes.

A compiled program has static shapes, so a batch's queries are gathered into a bucket, the smallest
of at most eight sizes that holds them. The later stage runs once on the bucket, and its outputs are
scattered back. A `Cascade` compiles one program per stage and size. Only the number of queries is
read on the host between the stages.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.arguments import require, require_whole
from jaxeff.errors import ConfigError
from jaxeff.typing import Array

#: Largest number of compiled programs per stage.
BUCKETS = 8


def bucket_sizes(batch: int, limit: int | None = None) -> tuple[int, ...]:
    """Returns the sizes of a batch's buckets: eighths of it, up to ``limit`` rows."""
    sizes = {math.ceil(batch * part / BUCKETS) for part in range(1, BUCKETS + 1)}
    limit = batch if limit is None else min(limit, batch)
    return tuple(sorted({min(size, limit) for size in sizes} - {0}))


def bucket(rows: int, sizes: Sequence[int]) -> int:
    """Returns the smallest size that holds the rows, or the largest; 0 for no rows or no sizes."""
    if not rows or not sizes:
        return 0
    return next((size for size in sizes if size >= rows), sizes[-1])


def by_priority(scores: Array, queried: Array) -> Array:
    """Returns the rows ``[batch]``: the queried first, by falling score, equal ones by index.

    NaN scores come first, because they carry no evidence that the row can be kept.
    """
    scores = jnp.asarray(scores)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        scores = scores.astype(jnp.float32)  # negated unsigned integers would wrap around
    return jnp.lexsort((jnp.where(jnp.isnan(scores), -jnp.inf, -scores), ~queried))


def is_queried(scores: Array, threshold: Array | float) -> Array:
    """Returns which rows are deferred: scores above the threshold, and those that are NaN."""
    return ~(scores <= threshold)


def checked_thresholds(values: Sequence[float]) -> tuple[float, ...]:
    """Returns thresholds as floats; raises `ConfigError` for NaN."""
    require("a threshold", values, "[-inf, inf]")
    if np.ndim(values) != 1:
        raise ConfigError(f"thresholds must be one number each, not {values!r}")
    return tuple(map(float, values))


def gather(
    payload: Any, rows: Array, scores: Array, queried: Array, capacity: int
) -> tuple[Any, Array, Array]:
    """Gathers the ``capacity`` rows that come first by priority.

    Args:
      payload: tree of arrays ``[rows, ...]``.
      rows: their numbers in the batch.
      scores: their priorities.
      queried: which of them are deferred; other rows pad the bucket.
      capacity: size of the bucket.

    Returns:
      payload, numbers in the batch, and which of the gathered rows are queried.
    """
    first = by_priority(scores, queried)[:capacity]
    return jax.tree.map(lambda a: a[first], payload), rows[first], queried[first]


def scatter(old: Array, rows: Array, queried: Array, new: Array) -> Array:
    """Returns ``old [batch, ...]`` with its queried rows replaced by ``new [capacity, ...]``."""
    require_same_outputs(old, new)
    return old.at[jnp.where(queried, rows, len(old))].set(new.astype(old.dtype), mode="drop")


def require_same_outputs(old: Array, new: Array) -> None:
    """Raises `ConfigError` if outputs ``[batch, ...]`` of two stages differ in shape."""
    if old.shape[1:] != new.shape[1:]:
        raise ConfigError(
            f"all stages must answer with the same classes, but one gives outputs {old.shape[1:]} "
            f"and a later one {new.shape[1:]}"
        )


def route(
    expert: Callable[[Any], Array],
    payload: Any,
    outputs: Array,
    scores: Array,
    queried: Array,
    capacity: int,
) -> tuple[Array, Array]:
    """Runs the expert on at most ``capacity`` of the queried rows; for use inside ``jit``.

    Returns:
      outputs ``[batch, ...]`` and which rows the expert answered, booleans ``[batch]``.
    """
    rows = jnp.arange(len(scores))
    taken, rows, queried = gather(payload, rows, scores, queried, capacity)
    answered = scatter(jnp.zeros(len(scores), bool), rows, queried, jnp.ones(capacity, bool))
    return scatter(outputs, rows, queried, expert(taken)), answered


class Stage(NamedTuple):
    """A stage of a cascade.

    Attributes:
      call: maps ``(variables, payload)`` to outputs ``[rows, ...]``, scores ``[rows]`` that are
        high where the next stage should be asked, and the next stage's payload, a tree of arrays
        ``[rows, ...]``. The first payload is the inputs. The last stage's scores are not used.
      variables: its parameters and other collections.
    """

    call: Callable[[Any, Any], tuple[Array, Array, Any]]
    variables: Any


class Routed(NamedTuple):
    """Answers to a batch.

    Attributes:
      outputs: of the stage that answered, ``[batch, ...]``.
      answered_by: number of that stage, int32 ``[batch]``.
      scores: of the first stage, ``[batch]``.
      reached: rows that each stage answered or deferred, without padding.
      overflow: rows deferred beyond a stage's limit, which keep the previous answer.
    """

    outputs: Array
    answered_by: Array
    scores: Array
    reached: tuple[int, ...]
    overflow: int


class _Progress(NamedTuple):
    """State between two stages."""

    outputs: Array
    answered_by: Array
    rows: Array
    scores: Array
    queried: Array
    asked: Array
    payload: Any


class Cascade:
    """A cascade; each later stage runs only on rows whose score exceeds the previous threshold.

    The first stage runs on every row. Rows are deferred in descending order of their scores (equal
    ones by index) up to the stage's limit. Rows with NaN scores are always deferred, and first.

    Args:
      stages: the stages, cheapest first.
      thresholds: one fewer than the stages; rows with a score above are deferred.
      limits: largest number of rows of a batch for each later stage; None for no limit.

    Raises:
      ConfigError: numbers of stages, thresholds and limits that do not fit, or a limit that is no
        number of rows.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        thresholds: Sequence[float],
        limits: Sequence[int | None] | None = None,
    ):
        later = len(stages) - 1
        self.thresholds = checked_thresholds(thresholds)
        self.limits = (None,) * later if limits is None else tuple(limits)
        if later < 0 or len(self.thresholds) != later or len(self.limits) != later:
            raise ConfigError(
                f"{len(stages)} stages need {max(later, 0)} thresholds and limits, not "
                f"{len(self.thresholds)} and {len(self.limits)}"
            )
        for limit in self.limits:
            require_whole("a limit of rows", 0 if limit is None else limit, least=0)
        self._variables = [jax.device_put(stage.variables) for stage in stages]
        self._first = jax.jit(functools.partial(_first, stages[0].call))
        self._gather = jax.jit(gather, static_argnames="capacity")
        # The outputs so far are updated in place.
        self._later: list[Any] = [
            jax.jit(functools.partial(_later, stage.call, number), donate_argnums=(1, 2))
            for number, stage in enumerate(stages[1:], 1)
        ]

    @property
    def programs(self) -> list[int]:
        """Programs compiled so far for each later stage."""
        return [step._cache_size() for step in self._later]

    def __call__(self, inputs: Any, valid: Any = None, **options: Any) -> Routed:
        """Answers one batch; see `start` for the arguments."""
        return self.finish(self.start(inputs, valid, **options))

    def stream(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[Routed]:
        """Answers ``(inputs, valid)``, each after dispatching the first stage of the next."""
        before = None
        for inputs, valid in batches:
            now = self.start(inputs, valid)
            if before is not None:
                yield self.finish(before)
            before = now
        if before is not None:
            yield self.finish(before)

    def start(
        self,
        inputs: Any,
        valid: Any = None,
        *,
        thresholds: Sequence[float] | None = None,
        limits: Sequence[int | None] | None = None,
    ) -> Any:
        """Dispatches the first stage without waiting for its results.

        Args:
          inputs: tree of arrays ``[batch, ...]``.
          valid: booleans ``[batch]``, False for padding, which is never deferred; None for all.
          thresholds: override the cascade's.
          limits: override the cascade's.
        """
        batch = len(jax.tree.leaves(inputs)[0])
        valid = np.ones(batch, bool) if valid is None else np.asarray(valid)
        thresholds = self.thresholds if thresholds is None else checked_thresholds(thresholds)
        limits = self.limits if limits is None else tuple(limits)
        first = thresholds[0] if thresholds else np.inf
        progress = self._first(self._variables[0], inputs, valid, float(first))
        return progress, valid, thresholds, limits

    def finish(self, started: Any) -> Routed:
        """Runs the later stages of a started batch."""
        progress, valid, thresholds, limits = started
        batch, scores = len(valid), progress.scores
        reached, overflow = [int(np.sum(valid))], 0
        for number, step in enumerate(self._later):
            asked = int(progress.asked)
            capacity = bucket(asked, bucket_sizes(batch, limits[number]))
            overflow += max(asked - capacity, 0)
            reached.append(min(asked, capacity))
            if not capacity:
                break
            payload, rows, queried = self._gather(
                progress.payload,
                progress.rows,
                progress.scores,
                progress.queried,
                capacity=capacity,
            )
            last = number + 1 == len(thresholds)
            threshold = np.inf if last else float(thresholds[number + 1])
            progress = step(
                self._variables[number + 1],
                progress.outputs,
                progress.answered_by,
                payload,
                rows,
                queried,
                threshold,
            )
        reached += [0] * (len(self._variables) - len(reached))
        return Routed(progress.outputs, progress.answered_by, scores, tuple(reached), overflow)


def _first(call: Any, variables: Any, inputs: Any, valid: Array, threshold: Array) -> _Progress:
    outputs, scores, payload = call(variables, inputs)
    queried = is_queried(scores, threshold) & valid
    batch = len(valid)
    return _Progress(
        outputs,
        jnp.zeros(batch, jnp.int32),
        jnp.arange(batch),
        scores,
        queried,
        jnp.sum(queried),
        payload,
    )


def _later(
    call: Any,
    number: int,
    variables: Any,
    outputs: Array,
    answered_by: Array,
    payload: Any,
    rows: Array,
    taken: Array,
    threshold: Array,
) -> _Progress:
    new, scores, payload = call(variables, payload)
    queried = is_queried(scores, threshold) & taken
    return _Progress(
        scatter(outputs, rows, taken, new),
        scatter(answered_by, rows, taken, jnp.full(len(rows), number)),
        rows,
        scores,
        queried,
        jnp.sum(queried),
        payload,
    )
