"""What calibration finds out of a program's values, over whole trajectories."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff import programs
from jaxeff.errors import DataError
from jaxeff.programs import Program
from jaxeff.quantize.simulate import kept_where_masked
from jaxeff.typing import Array

BATCH = 256


def ranges(program: Program, inputs: Any, mask: Any = None) -> np.ndarray:
    """Returns the least and the greatest entry of every value, ``[values, 2]``.

    These are the true extremes over all examples and steps. Averages of the extremes of batches,
    which other tools take, clip the state of a recurrence, and the error then stays in it.

    Args:
      program: the step.
      inputs: ``[examples, time, width]``, or integers ``[examples, time]`` that a model embeds.
      mask: ``[examples, time]``, non-zero where a step is real.

    Raises:
      DataError: there are no inputs, or a value is not finite.
    """
    inputs, real = _checked(inputs, mask)

    @jax.jit
    def extremes(xs: Array, real: Array) -> tuple[Array, Array]:
        carry = programs.initial_carry(program, xs.shape[:1])
        unbounded = jnp.full(len(program.widths), jnp.inf)

        def step(before: Any, at: Any) -> tuple[Any, None]:
            carry, low, high = before
            x, is_real = at
            values = programs.values(program, carry, x)
            after = tuple(values[n] for n in program.next_state), jnp.ones_like(carry[1])
            seen = is_real[:, None]
            low = jnp.minimum(low, jnp.stack([jnp.where(seen, v, jnp.inf).min() for v in values]))
            high = jnp.maximum(
                high, jnp.stack([jnp.where(seen, v, -jnp.inf).max() for v in values])
            )
            return (kept_where_masked(is_real, after, carry), low, high), None

        (_, low, high), _ = jax.lax.scan(
            step,
            (carry, unbounded, -unbounded),
            (jnp.swapaxes(xs, 0, 1), jnp.swapaxes(real, 0, 1)),
        )
        return low, high

    parts = [
        extremes(inputs[start : start + BATCH], real[start : start + BATCH])
        for start in range(0, len(inputs), BATCH)
    ]
    low = np.min([part[0] for part in parts], 0)
    high = np.max([part[1] for part in parts], 0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise DataError(
            "a value of the model is not finite on the calibration inputs, or none of their steps "
            "is real; check the inputs, their mask and the weights"
        )
    return np.stack([low, high], 1)


def moments(program: Program, inputs: Any, mask: Any = None) -> dict[int, np.ndarray]:
    """Returns the second moment ``[width, width]`` of every value that is the input of a product.

    Means over all examples and real steps of the products of every two of its elements, by the
    number of the value.

    Args:
      program: the step.
      inputs: as `ranges` takes them.
      mask: ``[examples, time]``, non-zero where a step is real.

    Raises:
      DataError: there are no inputs.
    """
    inputs, real = _checked(inputs, mask)
    numbers = sorted({i.inputs[0] for i in program.instructions if i.op == "dense"})

    @jax.jit
    def sums(xs: Array, real: Array) -> list[Array]:
        first = programs.initial_carry(program, xs.shape[:1])
        zeros = [jnp.zeros((program.widths[n],) * 2, jnp.float32) for n in numbers]

        def step(before: Any, at: Any) -> tuple[Any, None]:
            carry, total = before
            x, is_real = at
            values = programs.values(program, carry, x)
            after = tuple(values[n] for n in program.next_state), jnp.ones_like(carry[1])
            seen = [jnp.where(is_real[:, None], values[n], 0) for n in numbers]
            total = [before + v.T @ v for before, v in zip(total, seen, strict=True)]
            return (kept_where_masked(is_real, after, carry), total), None

        steps = jnp.swapaxes(xs, 0, 1), jnp.swapaxes(real, 0, 1)
        return jax.lax.scan(step, (first, zeros), steps)[0][1]

    parts = [
        sums(inputs[start : start + BATCH], real[start : start + BATCH])
        for start in range(0, len(inputs), BATCH)
    ]
    count = max(int(real.sum()), 1)
    return {
        number: np.sum([np.asarray(part[place], np.float64) for part in parts], 0) / count
        for place, number in enumerate(numbers)
    }


def _checked(inputs: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs ``[examples, time, width]`` and which of their steps are real."""
    inputs = np.asarray(inputs)
    if inputs.ndim == 2:
        inputs = inputs[..., None]
    if inputs.ndim != 3 or not inputs.size:
        raise DataError(
            f"calibration takes inputs [examples, time, width] with at least one of each, not "
            f"{list(inputs.shape)}"
        )
    return inputs, np.ones(inputs.shape[:2], bool) if mask is None else np.asarray(mask) != 0
