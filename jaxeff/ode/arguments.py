"""What the drivers of recurrences check and bring into shape before the first step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.ode.cells import Cell
from jaxeff.typing import Array, Carry, Params


def is_static(size: Any) -> bool:
    """Whether a size is a number and not a symbol of an exported program."""
    return isinstance(size, int) and not isinstance(size, bool)


def prepare_arguments(
    cell: Cell, params: Params, xs: Array, carry: Carry | None, mask: Array | None
) -> tuple[Array, Carry, Array | None]:
    """Checks the arguments of `jaxeff.ode.unroll`.

    Returns:
      the inputs, zero where a step is not real; the first carry; and the mask ``[time, ..., 1]``.
      Inputs and carry are at least of the type that inputs and parameters are promoted to.

    Raises:
      ValueError: xs or mask has the wrong shape.
      ConfigError: more steps than the cell can run, or a carry that is not the cell's.
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
    # A gradient of zero times what comes of NaN would be NaN.
    return jnp.where(mask, xs, jnp.zeros_like(xs)), carry, mask


def check_length(cell: Cell, length: Any) -> None:
    """Raises `ConfigError` if the cell cannot run over that many steps, of any number or a symbol.

    Args:
      cell: the cell.
      length: an integer, or a symbolic dimension, which stands for any.
    """
    if is_static(length):
        return cell.check_length(length)
    try:
        return cell.check_length(length)
    except ConfigError:
        raise
    except Exception as error:  # an undecided comparison
        raise ConfigError(
            f"{type(cell).__name__} cannot run over any number of steps; export it for one number "
            f"of steps instead of {length}"
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
        # By NumPy, which is not traced where the lengths are constants of a compiled function.
        known = np.asarray(lengths)
        if not np.array_equal(known, np.floor(known)):
            raise ValueError(f"sequence lengths must be whole numbers of steps, not {known.dtype}")
        least, most = int(known.min()), int(known.max())
        if least < 0 or most > time:
            wrong = least if least < 0 else most
            raise ValueError(
                f"a sequence length of {wrong} does not fit inputs of {time} steps; pad the inputs "
                "further, or mend the lengths"
            )
    lengths = jnp.asarray(lengths)
    steps = jnp.arange(time).reshape(-1, *(1,) * lengths.ndim)
    return steps < lengths
