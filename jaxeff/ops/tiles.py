"""Selects square tiles of feature maps by content, with static shapes.

Maps are ``[batch, rows, columns, channels]``; tiles ``[batch * k, t, t, channels]``, numbered row
by row in the map.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxeff.typing import Array


def split(x: Array, tile: int) -> Array:
    """Returns all tiles of a map, ``[batch, tiles, t, t, channels]``.

    Raises:
      ValueError: the tile's side does not divide rows and columns.
    """
    batch, rows, columns, channels = x.shape
    if rows % tile or columns % tile:
        raise ValueError(f"a map of {rows} x {columns} cannot be cut into tiles of {tile} x {tile}")
    grid = x.reshape(batch, rows // tile, tile, columns // tile, tile, channels)
    return grid.swapaxes(2, 3).reshape(batch, -1, tile, tile, channels)


def join(tiles: Array, size: tuple[int, int]) -> Array:
    """Reassembles the map of ``size`` (rows, columns); the inverse of `split`."""
    batch, _, tile, _, channels = tiles.shape
    rows, columns = size[0] // tile, size[1] // tile
    grid = tiles.reshape(batch, rows, columns, tile, tile, channels).swapaxes(2, 3)
    return grid.reshape(batch, *size, channels)


def choose(energy: Array, count: int) -> tuple[Array, Array]:
    """Chooses the ``count`` tiles of the highest energy.

    Args:
      energy: ``[batch, tiles]``.
      count: how many.

    Returns:
      their indices ``[batch, count]`` and gates of the same shape: ones in the forward pass, with
      the gradient of sigmoid(energy / mean energy) (a straight-through estimator).
    """
    scaled = energy / jax.lax.stop_gradient(energy.mean(-1, keepdims=True) + 1e-6)
    values, numbers = jax.lax.top_k(scaled, count)
    soft = jax.nn.sigmoid(values - 1)
    return numbers, 1 + soft - jax.lax.stop_gradient(soft)


def take(tiles: Array, numbers: Array) -> Array:
    """Returns the numbered tiles, ``[batch, k, t, t, channels]``."""
    return jnp.take_along_axis(tiles, numbers[:, :, None, None, None], axis=1)


def put(tiles: Array, numbers: Array, values: Array) -> Array:
    """Returns all tiles with the numbered ones replaced."""
    replaced: Array = jax.vmap(lambda a, n, v: a.at[n].set(v))(tiles, numbers, values)
    return replaced
