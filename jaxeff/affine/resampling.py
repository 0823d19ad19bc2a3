"""Affine resampling of images and voxels by pull-back.

A transform maps a point ``g`` of the output to the point ``matrix @ g + shift`` of the input that
it is read from. Points are in ``[-1, 1]`` along every axis, from edge to edge, so pixel ``i`` of
``n`` is at ``(2 i + 1) / n - 1``; their components are (x, y[, z]), the reverse of the arrays'
axes. That is PyTorch's ``affine_grid`` and ``grid_sample`` with ``align_corners=False`` and zero
padding.

The functions take the array module (``xp``), so that data in NumPy and models in JAX share the
code.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.errors import ConfigError

#: Smallest absolute determinant of an invertible matrix.
SMALLEST_DETERMINANT = 1e-6

#: Scope of the operations of `resample` in programs.
SCOPE = "affine_resample"


class Transform(NamedTuple):
    """Affine maps of points.

    Attributes:
      matrix: ``[..., d, d]``.
      shift: ``[..., d]``.
    """

    matrix: Any
    shift: Any


def identity(dimensions: int) -> Transform:
    """Returns the identity transform."""
    return Transform(jnp.eye(dimensions), jnp.zeros(dimensions))


def compose(outer: Transform, inner: Transform) -> Transform:
    """Returns the map of points ``g -> outer(inner(g))``."""
    moved = (outer.matrix @ inner.shift[..., None])[..., 0]
    return Transform(outer.matrix @ inner.matrix, moved + outer.shift)


def determinant(matrix: Any) -> Any:
    """Returns the determinants of matrices ``[..., d, d]``, d = 2 or 3."""
    adjugate = _adjugate(matrix)
    return (adjugate[..., 0, :] * matrix[..., :, 0]).sum(-1)


def inverse(transform: Transform) -> Transform:
    """Returns the exact inverse, ``(M^-1, -M^-1 t)``.

    Raises:
      ConfigError: a matrix is singular. Not checked for traced values; the result is then infinite.
    """
    matrix, shift = transform
    volume = determinant(matrix)
    if not isinstance(volume, jax.core.Tracer):
        smallest = np.abs(np.asarray(volume)).min(initial=np.inf)
        if not smallest >= SMALLEST_DETERMINANT:
            raise ConfigError(
                f"a transform with determinant {smallest:.3g} has no inverse; give a matrix whose "
                f"determinant is at least {SMALLEST_DETERMINANT:g} in size"
            )
    back = _adjugate(matrix) / volume[..., None, None]
    return Transform(back, -(back @ shift[..., None])[..., 0])


def _adjugate(matrix: Any) -> Any:
    xp = np if isinstance(matrix, np.ndarray) else jnp
    if matrix.shape[-2:] == (2, 2):
        a, b, c, d = (matrix[..., i, j] for i in (0, 1) for j in (0, 1))
        return xp.stack([xp.stack([d, -b], -1), xp.stack([-c, a], -1)], -2)
    if matrix.shape[-2:] != (3, 3):
        raise ConfigError(
            f"a transform needs matrices [..., 2, 2] or [..., 3, 3], not {matrix.shape}"
        )
    first, second, third = (matrix[..., i] for i in range(3))  # columns
    rows = [xp.cross(second, third), xp.cross(third, first), xp.cross(first, second)]
    return xp.stack(rows, -2)


def grid(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the centres of pixels, float32 ``[*shape, d]``, components (x, y[, z])."""
    axes = [(2 * np.arange(n) + 1) / n - 1 for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1).astype(np.float32)


def apply(transform: Transform, points: Any) -> Any:
    """Maps points ``[..., points, d]`` by transforms ``[..., d, d]``."""
    turned = points @ transform.matrix.swapaxes(-1, -2)
    return turned + transform.shift[..., None, :]


def sample(images: Any, points: Any, xp: Any = jnp) -> Any:
    """Interpolates images multilinearly at points; outside they are zero.

    Args:
      images: ``[batch, *shape, channels]`` with two or three axes in ``shape``.
      points: ``[batch, points, d]``.
      xp: ``jax.numpy`` or ``numpy``.

    Returns:
      ``[batch, points, channels]``.
    """
    images, points = xp.asarray(images), xp.asarray(points)
    batch, *shape, channels = images.shape
    flat = images.reshape(batch, math.prod(shape), channels)
    places = ((points[..., ::-1] + 1) * xp.asarray(shape, points.dtype) - 1) / 2
    low = xp.floor(places)
    above = places - low
    low = low.astype(xp.int32)
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    total: Any = 0.0
    for corner in itertools.product((0, 1), repeat=len(shape)):
        weight: Any = 1.0
        index: Any = 0
        for axis, (side, size) in enumerate(zip(corner, shape, strict=True)):
            at = low[..., axis] + side
            share = above[..., axis] if side else 1 - above[..., axis]
            weight = weight * xp.where((at >= 0) & (at < size), share, 0)
            index = index + xp.clip(at, 0, size - 1) * strides[axis]
        total = total + weight[..., None] * _rows(flat, index, xp)
    return total


def _rows(flat: Any, index: Any, xp: Any) -> Any:
    if xp is np:
        return np.take_along_axis(flat, index[..., None], 1)
    # No bounds checks: the indices are clipped.
    return jax.vmap(lambda rows, i: rows.at[i].get(mode="promise_in_bounds"))(flat, index)


def reads_inside(shape: tuple[int, ...], transform: Transform) -> np.ndarray:
    """Returns which pixels of a resampled image are read from inside of the input.

    A reconstruction that is resampled back by the inverse is compared with the input at exactly
    these pixels of the canonical image.

    Args:
      shape: of the images, without channels.
      transform: of each image, ``[batch, d, d]`` and ``[batch, d]``.

    Returns:
      boolean ``[batch, *shape]``.
    """
    matrix, shift = (np.asarray(part) for part in transform)
    points = grid(shape).reshape(1, -1, len(shape))
    places = apply(Transform(matrix, shift), points)
    inside: np.ndarray = (np.abs(places) <= 1).all(-1).reshape(len(matrix), *shape)
    return inside


def resample(images: Any, transform: Transform, xp: Any = jnp) -> Any:
    """Returns transformed images.

    Args:
      images: ``[batch, *shape, channels]`` with two or three axes in ``shape``.
      transform: of each image, ``[batch, d, d]`` and ``[batch, d]``.
      xp: ``jax.numpy`` or ``numpy``.

    Returns:
      ``[batch, *shape, channels]``.

    Raises:
      ConfigError: images of another rank, or one that does not fit the transform.
    """
    images, transform = xp.asarray(images), Transform(*map(xp.asarray, transform))
    shape = images.shape[1:-1]
    dimensions = transform.matrix.shape[-1]
    if len(shape) != dimensions:
        axes = "[batch, rows, columns, channels]"
        axes = axes if dimensions == 2 else "[batch, depth, rows, columns, channels]"
        raise ConfigError(
            f"a transform of {dimensions} dimensions takes images {axes}, not {images.shape}"
        )
    points = grid(shape).reshape(1, -1, dimensions)
    with jax.named_scope(SCOPE):
        points = apply(transform, xp.asarray(points, transform.matrix.dtype))
        return sample(images, points, xp).reshape(images.shape)
