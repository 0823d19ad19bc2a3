"""The range of every value of a program, over whole trajectories."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff import programs
from jaxeff.errors import DataError
from jaxeff.programs import Program
from jaxeff.quantize.simulate import kept_where_masked

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
    inputs = np.asarray(inputs)
    if inputs.ndim == 2:
        inputs = inputs[..., None]
    if inputs.ndim != 3 or not inputs.size:
        raise DataError(
            f"calibration takes inputs [examples, time, width] with at least one of each, not "
            f"{list(inputs.shape)}"
        )
    real = np.ones(inputs.shape[:2], bool) if mask is None else np.asarray(mask) != 0

    @jax.jit
    def extremes(xs, real):
        carry = programs.initial_carry(program, xs.shape[:1])
        unbounded = jnp.full(len(program.widths), jnp.inf)

        def step(before, at):
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
