"""Wall-clock time of a JAX function, without the mistakes that asynchronous dispatch invites.

Every timed call ends with ``jax.block_until_ready``, and every variant has been called before its
first timed call, so that compilation is never in the figure. Quote the median with the 95th
percentile and the machine, and compare two variants in one process with :func:`interleaved`: the
speed of a shared machine drifts by more than most differences worth reporting.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Latency:
    """Times of repeated calls, in milliseconds per call.

    Attributes:
      median_ms: middle of the times, the figure to quote.
      p95_ms: 95th percentile, interpolated between the two nearest calls.
      min_ms: fastest call, the figure least disturbed by other work on the machine.
      repeats: number of timed calls.
    """

    median_ms: float
    p95_ms: float
    min_ms: float
    repeats: int


def measure(
    fn: Callable[..., Any],
    *args: Any,
    warmup: int = 10,
    repeats: int = 50,
    min_seconds: float = 0.0,
) -> Latency:
    """Returns the time of ``fn(*args)``.

    Args:
      fn: usually a jitted function. It gets the same arguments every time, so it must not donate
        them.
      *args: arguments, made and put on the device beforehand.
      warmup: untimed calls before the first timed one; they compile ``fn``.
      repeats: timed calls, at least.
      min_seconds: keep timing until the timed calls add up to this many seconds.

    Raises:
      ValueError: ``warmup`` or ``repeats`` is no whole number from 1, or ``min_seconds`` is
        negative, infinite or NaN.
    """
    _check_at_least_one(warmup=warmup, repeats=repeats)
    if not 0 <= min_seconds < math.inf:
        raise ValueError(f"min_seconds must be at least 0 and finite, got {min_seconds!r}")
    jax.block_until_ready(args)
    for _ in range(warmup):
        jax.block_until_ready(fn(*args))
    seconds: list[float] = []
    total = 0.0
    while len(seconds) < repeats or total < min_seconds:
        seconds.append(_timed(fn, *args))
        total += seconds[-1]
    return _summarise(seconds)


def interleaved(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int = 10,
    calls_per_round: int = 5,
    *,
    warmup: int = 3,
) -> dict[str, Latency]:
    """Returns the time of each variant, all measured in turns within one run.

    The order of the variants rotates from round to round, so that a drift of the machine's speed
    and the cache left behind by the variant before fall on all of them alike.

    Args:
      variants: functions without arguments, by name; jit them and bind their arguments first.
      rounds: times that every variant has its turn.
      calls_per_round: timed calls in a turn.
      warmup: untimed calls of every variant before the first round; they compile it.

    Returns:
      For each name, the times of its ``rounds * calls_per_round`` calls.

    Raises:
      ValueError: no variants, or a number is no whole number from 1.
    """
    _check_at_least_one(
        rounds=rounds, calls_per_round=calls_per_round, warmup=warmup, variants=len(variants)
    )
    names = list(variants)
    for name in names:
        for _ in range(warmup):
            jax.block_until_ready(variants[name]())
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name] += [_timed(variants[name]) for _ in range(calls_per_round)]
    return {name: _summarise(times) for name, times in seconds.items()}


def compile_time(fn: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Returns ``fn`` compiled for ``args``, and the seconds that tracing and compiling took.

    The time is that of a cold start only if neither this process nor a persistent compilation
    cache has compiled the same program before.
    """
    jitted = fn if hasattr(fn, "lower") else jax.jit(fn)
    start = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    return compiled, time.perf_counter() - start


def _timed(fn: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - start


def _summarise(seconds: Sequence[float]) -> Latency:
    times = 1e3 * np.asarray(seconds)
    return Latency(
        median_ms=float(np.median(times)),
        p95_ms=float(np.percentile(times, 95)),
        min_ms=float(times.min()),
        repeats=len(seconds),
    )


def _check_at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
