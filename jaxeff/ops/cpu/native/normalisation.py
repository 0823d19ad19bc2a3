"""Sums by channel, by ``normalisation.cc``."""

from __future__ import annotations

from jaxeff.ops.cpu.native.library import call
from jaxeff.typing import Array


def channel_sums(a: Array, b: Array, mean: Array) -> Array:
    """Returns the sums of ``a`` and of ``a * (b - mean)`` by channel, ``[2, channels]``.

    Args:
      a: ``[..., channels]``.
      b: like a.
      mean: ``[channels]``.
    """
    return call("jaxeff_channel_sums", ((2, *mean.shape),), (a, b, mean))[0]


def masked_channel_sums(a: Array, b: Array, mean: Array, mask: Array) -> tuple[Array, Array]:
    """Returns a with zeros where ``mask`` is not positive, and `channel_sums` of that."""
    shapes = (a.shape, (2, *mean.shape))
    masked, sums = call("jaxeff_masked_channel_sums", shapes, (a, b, mean, mask))
    return masked, sums


def pixel_sums(x: Array) -> Array:
    """Returns the sums over the pixels of ``[batch, rows, columns, channels]``."""
    return call("jaxeff_pixel_sums", ((x.shape[0], x.shape[3]),), (x,))[0]
