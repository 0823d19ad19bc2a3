"""Normalisation whose sums over channels, of values and of gradients, are compiled loops.

XLA's sums of all axes but the last visit memory value by value.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.ops.cpu.native import is_computable, normalisation
from jaxeff.ops.normalisation import finished
from jaxeff.ops.platforms import is_forward_mode
from jaxeff.ops.precision import wide, widened
from jaxeff.typing import Array


def channel_moments(x: Array) -> tuple[Array, Array]:
    """Sums in one pass."""
    if is_forward_mode() or not is_computable(x):
        return _moments(x)
    return _compiled_moments(x)


def normalise(
    x: Array, mean: Array, scale: Array, bias: Array, skip: Array | None = None, relu: bool = False
) -> Array:
    """Masks the gradient and sums it in one pass."""
    arrays = [a for a in (x, mean, scale, bias, skip) if a is not None]
    per_channel = all(a.shape == x.shape[-1:] for a in (mean, scale, bias))
    if is_forward_mode() or not per_channel or not is_computable(*arrays):
        return _normalise(x, mean, scale, bias, skip, relu)
    return _with_gradient(x, mean, scale, bias, skip, relu)


def _moments(x: Array) -> tuple[Array, Array]:
    x = x.astype(wide(x.dtype))
    axes = tuple(range(x.ndim - 1))
    return jnp.mean(x, axes), jnp.mean(x * x, axes)


@jax.custom_vjp
def _compiled_moments(x: Array) -> tuple[Array, Array]:
    sums = normalisation.channel_sums(x, x, jnp.zeros_like(x, shape=x.shape[-1:]))
    mean, square = sums * (x.shape[-1] / x.size)
    return mean, square


def _moments_forward(x: Array) -> tuple[tuple[Array, Array], Array]:
    return _compiled_moments(x), x


def _moments_backward(x: Array, g: tuple[Array, Array]) -> tuple[Array]:
    of_mean, of_square = (slope * (x.shape[-1] / x.size) for slope in g)
    return (of_mean + 2 * of_square * x,)


_compiled_moments.defvjp(_moments_forward, _moments_backward)


def _normalise(
    x: Array, mean: Array, scale: Array, bias: Array, skip: Array | None, relu: bool
) -> Array:
    wide_x, mean, scale, bias = widened((x, mean, scale, bias))
    return finished(((wide_x - mean) * scale + bias).astype(x.dtype), skip, relu)


_with_gradient = functools.partial(jax.custom_vjp, nondiff_argnums=(5,))(_normalise)


def _normalise_forward(
    x: Array, mean: Array, scale: Array, bias: Array, skip: Array | None, relu: bool
) -> tuple[Array, Any]:
    y = _with_gradient(x, mean, scale, bias, skip, relu)
    return y, (x, mean, scale, skip is not None, y if relu else None)


def _normalise_backward(
    relu: bool, saved: Any, g: Array
) -> tuple[Array, Array, Array, Array, Array | None]:
    x, mean, scale, has_skip, y = saved
    if relu:
        g, sums = normalisation.masked_channel_sums(g, x, mean, y)
    else:
        sums = normalisation.channel_sums(g, x, mean)
    slopes, products = sums  # of the bias, and of the scale
    return g * scale, -slopes * scale, products, slopes, g if has_skip else None


_with_gradient.defvjp(_normalise_forward, _normalise_backward)
