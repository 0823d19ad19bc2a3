"""What every artifact goes through after writing: a comparison with the model, and a stopwatch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxeff import bench
from jaxeff.errors import DataError
from jaxeff.exporting.entry import Artifact, Entry
from jaxeff.exporting.formats import Format

#: Examples that are compared.
COMPARED = 4
#: Seconds of timing an artifact at a size of the batch, and calls in a turn if they are short.
BUDGET, CALLS = 5.0, 5


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far an artifact is from the model.

    Attributes:
      largest: absolute difference of any number of any output, at any step.
      scale: largest absolute value of the model's outputs.
    """

    largest: float
    scale: float

    @property
    def relative(self) -> float:
        """The difference in parts of the scale, of at least 1."""
        return self.largest / max(1.0, self.scale)


def compare(entry: Entry, run: Callable[..., Sequence[Any]], batch: int = COMPARED) -> Difference:
    """Compares an artifact with the model on a batch of examples.

    A recurrent step is run over the whole sequence, artifact and model each with its own state, so
    that errors add up as they would; after the last step the outputs are compared with those of
    the model for the whole sequence too.

    Args:
      entry: what was exported.
      run: the artifact in its own runtime.
      batch: number of examples, which the artifact must take.

    Raises:
      DataError: an output of the model is not finite.
    """
    jitted: Callable[..., Sequence[Any]] = jax.jit(entry.function)
    states = [entry.first_state(batch), entry.first_state(batch)]
    largest = scale = 0.0
    results: list[list[np.ndarray]] = [[], []]
    for inputs in entry.steps(batch):
        for side, function in ((0, run), (1, jitted)):
            arguments = [{**inputs, **states[side]}[name] for name in entry.inputs]
            results[side] = [np.asarray(a) for a in function(*arguments)]
            named = dict(zip(entry.outputs, results[side], strict=True))
            states[side] = {to: named[output] for output, to in entry.state.items()}
        for name, artifact, model in zip(entry.outputs, *results, strict=True):
            distance = _distance(artifact, model)
            if name in entry.minimisers:
                distance = distance**2 / max(1.0, float(np.abs(model).max()))
            largest = max(largest, distance)
            if not np.isfinite(model).all():
                raise DataError(
                    f"the model's own {name} are NaN or infinite on the examples, so that nothing "
                    "can be compared with them; train it again, or give other inputs"
                )
            if entry.state.get(name) not in entry.counters:
                scale = max(scale, float(np.abs(model).max()))
    if entry.whole is not None:
        expected = np.asarray(jax.jit(entry.whole)(*entry.batch(batch).values()))
        largest = max(largest, _distance(results[0][0], expected))
    return Difference(largest, scale)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape:
        raise ValueError(f"outputs have shapes {one.shape} and {other.shape}")
    distance = np.abs(one.astype(np.float64) - other.astype(np.float64)).max(initial=0.0)
    return float(distance) if np.isfinite(distance) else float("inf")


def latency(
    entry: Entry, file_format: Format, artifact: Artifact, batch: int, threads: int, rounds: int
) -> dict[str, float]:
    """Returns median milliseconds of a call, of the ``artifact`` and of the ``jitted`` model.

    Both are timed in turns, of slow ones in fewer. Inputs are in place before; a recurrent entry
    makes one step.
    """
    inputs = {**entry.steps(batch)[0], **entry.first_state(batch)}
    arrays = [inputs[name] for name in entry.inputs]
    jitted, on_device = jax.jit(entry.function), jax.device_put(arrays)
    runtime = file_format.open(artifact, entry, threads)
    calls = {
        "artifact": file_format.bind(runtime, arrays),
        "jitted": lambda: jitted(*on_device),
    }
    turns, in_turn = affordable(sum(map(seconds, calls.values())), rounds)
    measured = bench.interleaved(calls, turns, in_turn, warmup=1)
    return {name: each.median_ms for name, each in measured.items()}


def affordable(cost: float, rounds: int) -> tuple[int, int]:
    """Returns turns and calls in a turn, fewer where they would take longer than the `BUDGET`.

    Args:
      cost: seconds of a call of everything that is timed in turns.
      rounds: turns that are asked for.
    """
    calls = max(1, int(BUDGET / max(cost, 1e-9)))
    in_turn = min(CALLS, calls)
    return min(rounds, max(1, calls // in_turn)), in_turn


def seconds(call: Callable[[], Any]) -> float:
    """Returns the time of a second call, which compiles nothing."""
    jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
