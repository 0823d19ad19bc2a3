"""Accumulation in single precision for half-precision arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.typing import Array, Dtype


def wide(dtype: Dtype) -> Dtype:
    """Returns the accumulation type: at least single precision for floating-point numbers."""
    half = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if half else jnp.dtype(dtype)


def widened(tree: Any) -> Any:
    """Converts floating-point arrays to at least single precision; others are unchanged."""
    return jax.tree.map(lambda a: a.astype(wide(a.dtype)), tree)


def narrowed(tree: Any, like: Any) -> Any:
    """Converts arrays to the types of those of ``like``."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like)


def plus_bias(values: Array, bias: Array) -> Array:
    """Returns values ``[..., channels]`` plus a bias ``[channels]``, in the values' type.

    The sum is in single precision, so that the gradient of the bias, a sum over all values of a
    channel, is accumulated in single precision.
    """
    wide_values, wide_bias = widened((values, bias))
    total: Array = wide_values + wide_bias.reshape((1,) * (values.ndim - 1) + (-1,))
    return total.astype(values.dtype)
