"""The carry of a recurrence, and its parts that depend on inputs and mask alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.typing import Array, Carry, Dtype


class CarryParts(NamedTuple):
    """A carry with named parts; a carry of any other type is all state.

    Only the state needs to be stepped through. The other parts follow from the inputs and the
    mask, so `jaxeff.ode.unroll` and `jaxeff.ode.unroll_parallel` compute them for a whole sequence
    before the first step.

    Attributes:
      state: tree of floating-point arrays ``[..., width]``.
      previous_input: input of the last real step ``[..., inputs]``, zeros before the first; None
        for cells that do not look at it.
      steps: number of real steps so far ``[..., 1]``; None for cells that do not count.
    """

    state: Any
    previous_input: Any = None
    steps: Any = None


def parts_of(carry: Carry) -> CarryParts:
    """Returns the parts of any carry."""
    return carry if isinstance(carry, CarryParts) else CarryParts(carry)


def step_counter(batch_shape: tuple[int, ...], dtype: Dtype) -> Array:
    """Returns the step counter before the first step, zeros ``[*batch_shape, 1]``.

    It is floating point, so that every array of a carry is differentiable, and of at least single
    precision, so that it counts up to 2^24.
    """
    # Not `promote_types`, which strict promotion forbids.
    wide = dtype if jnp.finfo(dtype).bits > 32 else jnp.float32
    return jnp.zeros((*batch_shape, 1), wide)


def after_step(carry: Carry, state: Any, x: Array) -> Carry:
    """Returns the carry one step later, from the new state and the step's input."""
    if not isinstance(carry, CarryParts):
        return state
    _, previous, steps = carry
    return CarryParts(state, None if previous is None else x, None if steps is None else steps + 1)


def before_steps(carry: Carry, xs: Array, mask: Array | None) -> CarryParts:
    """Returns the previous input and the step count before every step of a sequence.

    Args:
      carry: the carry before the first step.
      xs: inputs ``[time, ..., inputs]``.
      mask: ``[time, ..., 1]``, true at the real steps, or None.

    Returns:
      the parts with a leading axis of time, and None in place of the state.
    """
    _, previous, steps = parts_of(carry)
    if previous is not None:
        if mask is None:
            previous = jnp.concatenate([previous[None], xs[:-1]])
        else:
            last = _last_real(mask)
            last = jnp.concatenate([jnp.full_like(last[:1], -1), last[:-1]])
            previous = _input_at(last, xs, previous)
    if steps is not None:
        after = jax.lax.stop_gradient(steps) + _real_steps(xs, mask, steps)
        steps = jnp.concatenate([jax.lax.stop_gradient(steps)[None], after[:-1]])
    return CarryParts(None, previous, steps)


def after_steps(carry: Carry, state: Any, xs: Array, mask: Array | None) -> Carry:
    """Returns the carry after a sequence, from the last state; arguments as `before_steps`."""
    if not isinstance(carry, CarryParts):
        return state
    _, previous, steps = carry
    if previous is not None:
        previous = xs[-1] if mask is None else _input_at(_last_real(mask)[-1:], xs, previous)[0]
    if steps is not None:
        steps = steps + _real_steps(xs, mask, steps)[-1]
    return CarryParts(state, previous, steps)


def _real_steps(xs: Array, mask: Array | None, like: Array) -> Array:
    """Returns how many of the steps up to each are real, ``[time, ..., 1]``."""
    if mask is None:
        numbers = jnp.arange(xs.shape[0]) + 1
        return jnp.expand_dims(numbers, range(1, like.ndim + 1)).astype(like.dtype)
    return jnp.cumsum(mask, axis=0, dtype=jnp.int32).astype(like.dtype)


def _last_real(mask: Array) -> Array:
    """Returns the index of the last real step up to each, or -1, ``[time, ..., 1]``."""
    steps = jnp.expand_dims(jnp.arange(mask.shape[0]), range(1, mask.ndim))
    return jax.lax.cummax(jnp.where(mask, steps, -1), axis=0)


def _input_at(index: Array, xs: Array, before: Array) -> Array:
    """Returns the inputs at the indices, and at -1 what came before the sequence."""
    inputs = jnp.take_along_axis(xs, jnp.maximum(index, 0), axis=0)
    return jnp.where(index < 0, before, inputs)
