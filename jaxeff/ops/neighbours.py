"""Values of a field at the cells ahead of and behind every cell."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxeff.ops.blocks import apart
from jaxeff.typing import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def neighbours(
    skip: Array | None, h: Array, axis: int, distance: int, boundary: str, odd: bool = False
) -> tuple[Array, Array]:
    """Returns the arrays whose entries i are h's entries ``i + distance`` and ``i - distance``.

    Args:
      skip: see `jaxeff.ops.blocks.apart`.
      h: the field.
      axis: along which.
      distance: in cells, below h's length.
      boundary: "periodic" or "reflecting", which continues h evenly about its walls.
      odd: whether a reflecting boundary continues oddly.
    """

    def extended(h):
        return _extended(h, axis, distance, boundary, odd)

    return _ends(apart(skip, extended, h), axis, distance)


def _forward(skip, h, *static):
    return neighbours(skip, h, *static), skip


def _backward(axis, distance, boundary, odd, skip, cotangents):
    """The transpose: what is behind the one cotangent and ahead of the other.

    Differentiation would add up padded arrays, which is several times slower.
    """
    static = (axis, distance, boundary, odd)
    if boundary == "periodic":
        ahead, behind = (neighbours(skip, g, *static) for g in cotangents)
        return None, ahead[1] + behind[0]

    def plain(h):
        return _ends(_extended(h, *static), axis, distance)

    return None, *jax.linear_transpose(plain, cotangents[0])(cotangents)


neighbours.defvjp(_forward, _backward)


def _extended(h: Array, axis: int, distance: int, boundary: str, odd: bool) -> Array:
    """Returns h with ``distance`` more cells at both ends."""
    size = h.shape[axis]
    start = jax.lax.slice_in_dim(h, 0, distance, axis=axis)
    end = jax.lax.slice_in_dim(h, size - distance, size, axis=axis)
    if boundary == "periodic":
        return jnp.concatenate((end, h, start), axis)
    sign = -1 if odd else 1
    return jnp.concatenate((sign * jnp.flip(start, axis), h, sign * jnp.flip(end, axis)), axis)


def _ends(extended: Array, axis: int, distance: int) -> tuple[Array, Array]:
    size = extended.shape[axis]
    ahead = jax.lax.slice_in_dim(extended, 2 * distance, size, axis=axis)
    return ahead, jax.lax.slice_in_dim(extended, 0, size - 2 * distance, axis=axis)
