"""Checks and preprocessing of the arguments of `unroll` and `unroll_parallel`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.ode.cells import Cell
from jaxeff.typing import Array, Carry, Params


def is_static(size: Any) -> bool:
    """Whether a size is an integer, not a symbolic dimension of `jax.export`."""
    return isinstance(size, int) and not isinstance(size, bool)


def prepare_arguments(
    cell: Cell, params: Params, xs: Array, carry: Carry | None, mask: Array | None
) -> tuple[Array, Carry, Array | None]:
    """Checks the arguments of `jaxeff.ode.unroll`.

    Returns:
      the inputs, zero at padded steps; the initial carry; and the mask ``[time, ..., 1]``.
      Inputs and carry have at least the promoted type of inputs and parameters.

    Raises:
      ValueError: xs or mask has the wrong shape.
      ConfigError: more steps than the cell can run, or a carry of another structure or shape.
    """
    xs = jnp.asarray(xs)
    if xs.ndim < 2 or xs.shape[0] == 0:
        raise ValueError(f"xs must be [time, ..., features] with time >= 1, not {xs.shape}")
    if mask is not None and not hasattr(mask, "shape"):
        mask = jnp.asarray(mask)
    if mask is not None and mask.shape != xs.shape[:-1]:
        raise ValueError(f"mask {mask.shape} must have the shape of xs without features {xs.shape}")
    check_length(cell, xs.shape[0])
    floats = [a for a in jax.tree.leaves(params) if jnp.issubdtype(a.dtype, jnp.floating)]
    dtype = jnp.result_type(xs, *floats)
    xs = xs.astype(dtype)

    def initial() -> Carry:
        return cell.initial_carry(xs.shape[1:-1], dtype, xs.shape[-1])

    carry = initial() if carry is None else _fitting(carry, jax.eval_shape(initial))
    carry = jax.tree.map(lambda a: _at_least(jnp.asarray(a), dtype), carry)
    if mask is None:
        return xs, carry, None
    mask = (jnp.asarray(mask) != 0)[..., None]
    # Masking the outputs alone is not enough: zero cotangents times NaN would give NaN gradients.
    return jnp.where(mask, xs, jnp.zeros_like(xs)), carry, mask


def check_length(cell: Cell, length: Any) -> None:
    """Raises `ConfigError` if the cell cannot run over ``length`` steps.

    Args:
      cell: the cell.
      length: an integer, or a symbolic dimension, which stands for any length.
    """
    if is_static(length):
        return cell.check_length(length)
    try:
        return cell.check_length(length)
    except ConfigError:
        raise
    except Exception as error:  # a comparison that a symbolic dimension cannot decide
        raise ConfigError(
            f"{type(cell).__name__} cannot run over an arbitrary number of steps; export it for a "
            f"fixed number instead of {length}"
        ) from error


def _fitting(carry: Carry, like: Any) -> Carry:
    """Returns the carry; raises `ConfigError` unless it has the arrays and shapes of another."""
    shapes, needed = (jax.tree.map(np.shape, tree) for tree in (carry, like))
    if shapes != needed:
        raise ConfigError(f"the carry must have arrays of the shapes {needed}, not {shapes}")
    return carry


def _at_least(a: Array, dtype: Any) -> Array:
    floating = jnp.issubdtype(a.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.floating)
    wider = floating and jnp.finfo(a.dtype).bits < jnp.finfo(dtype).bits
    return a.astype(dtype) if wider else a


def length_mask(lengths: Array, time: int) -> Array:
    """Returns the mask ``[time, batch]`` of sequences that are padded at the end.

    Args:
      lengths: number of real steps of every sequence, integers ``[batch]``.
      time: steps of the padded sequences.

    Raises:
      ValueError: a length is negative or above ``time`` (where the lengths are known).
    """
    if not isinstance(lengths, jax.core.Tracer) and np.size(lengths):
        # NumPy, so that constant lengths are checked even inside a traced function.
        known = np.asarray(lengths)
        if not np.array_equal(known, np.floor(known)):
            raise ValueError(f"sequence lengths must be whole numbers of steps, not {known.dtype}")
        least, most = int(known.min()), int(known.max())
        if least < 0 or most > time:
            wrong = least if least < 0 else most
            raise ValueError(
                f"a sequence length of {wrong} does not fit inputs of {time} steps; pad the inputs "
                f"further, or correct the lengths"
            )
    lengths = jnp.asarray(lengths)
    steps = jnp.arange(time).reshape(-1, *(1,) * lengths.ndim)
    return steps < lengths
