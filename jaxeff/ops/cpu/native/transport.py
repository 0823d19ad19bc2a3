"""Steps of advection and diffusion, by ``transport.cc``."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxeff.ops.cpu.native.library import call
from jaxeff.typing import Array

#: Most pixels of an image: the planes of one, about twenty, stay in cache.
PIXELS = 4096


def steps(
    h: Array,
    x: Array | None,
    predicted: Array | None,
    kernel: Array | None,
    norm: tuple[Array, Array],
    scales: np.ndarray,
    out: tuple[Array, Array] | None,
    options: dict[str, int],
) -> Array:
    """Returns the field after all steps.

    Args:
      h: initial field ``[batch, rows, columns, channels]``.
      x: the source and the field one step before; h if None.
      predicted: ``[batch, rows, columns, fields * channels]``, of which the coefficients
        ``scales * relu(factor * predicted + offset)`` are made; None: convolutions of h.
      kernel: ``[k, k, 1, fields * channels]`` of these convolutions, where predicted is None.
      norm: factor and offset ``[fields * channels]``.
      scales: of the two velocities and diffusivities (``dt / distance``, ``dt / distance^2``; the
        products themselves where diffusivities are constants and not fields), and of the source.
      out: factor and offset ``[channels]`` of a normalisation of the result, with the ReLU after
        it; None for neither.
      options: ``rows_apart``, ``columns_apart`` (distances in cells) and ``steps``.
    """
    absent = jnp.zeros((0,), h.dtype)
    maps = [absent if a is None else a for a in (x, predicted, kernel)]
    args = (h, *maps, *norm, jnp.asarray(scales), *(out or (absent, absent)))
    return call("jaxeff_transport", (h.shape,), args, **_attributes(options))[0]


def gradient(
    h: Array,
    x: Array | None,
    predicted: Array,
    norm: tuple[Array, Array],
    g: Array,
    scales: np.ndarray,
    options: dict[str, int],
) -> tuple[Array, Array | None, Array, tuple[Array, Array]]:
    """Returns the cotangents of h, x, predicted and norm, given that of the result."""
    source = jnp.zeros((0,), h.dtype) if x is None else x
    shapes = (h.shape, source.shape, predicted.shape, (2, *norm[0].shape))
    args = (h, source, predicted, *norm, jnp.asarray(scales), g)
    dh, dx, dpredicted, (factor, offset) = call(
        "jaxeff_transport_gradient", shapes, args, **_attributes(options)
    )
    return dh, None if x is None else dx, dpredicted, (factor, offset)


def _attributes(options: dict[str, int]) -> dict[str, Any]:
    return {name: np.int64(value) for name, value in options.items()}
