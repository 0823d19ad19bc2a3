"""Strided and transposed convolutions by small convolutions of images, without products with zeros.

The output pixels of each phase of a transposed convolution (remainder by the stride) are a small
convolution; a volume is convolved plane by plane. For compilers that multiply all zeros between the
inputs, and have slow convolutions of volumes, or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp

from jaxeff.ops.strided import padded_conv
from jaxeff.typing import Array


def plane_by_plane(x: Array, kernel: Array, strides: int, padding: int) -> Array:
    """Convolves volumes plane by plane: neighbouring planes become channels.

    Args:
      x: ``[batch, depth, rows, columns, inputs]``.
      kernel: ``[k, k, k, inputs, outputs]``.
      strides: of all axes.
      padding: zeros on either side of every axis.
    """
    depth, *plane, channels = x.shape[1:]
    side, outputs = kernel.shape[0], kernel.shape[-1]
    count = (depth + 2 * padding - side) // strides + 1
    x = jnp.pad(x, ((0, 0), (padding, padding), (0, 0), (0, 0), (0, 0)))
    around = [x[:, t : t + strides * (count - 1) + 1 : strides] for t in range(side)]
    stacked = jnp.concatenate(around, -1).reshape(-1, *plane, side * channels)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(side, side, side * channels, outputs)
    y = padded_conv(stacked, flat, strides, padding)
    return y.reshape(x.shape[0], count, *y.shape[1:])


def in_phases(
    x: Array,
    kernel: Array,
    strides: int,
    padding: int,
    sizes: tuple[int, ...],
    conv: Callable[[Array, Array], Array],
) -> Array:
    """Computes a transposed convolution with phases as channels, then interleaves them.

    Args:
      x: ``[batch, *shape, inputs]``.
      kernel: ``[k, ..., k, inputs, outputs]``, as `jaxeff.ops.strided.transposed_conv` takes it.
      strides: of all axes.
      padding: pixels cut off at the near end.
      sizes: of the output's axes.
      conv: convolves without strides and padding.
    """
    count, (inputs, outputs) = x.ndim - 2, kernel.shape[-2:]
    taps = math.ceil(kernel.shape[0] / strides)
    missing = taps * strides - kernel.shape[0]
    kernel = jnp.pad(kernel, ((0, missing),) * count + ((0, 0), (0, 0)))
    # [taps, phase, taps, phase, ..., inputs, outputs] to [taps..., inputs, phase..., outputs]
    kernel = kernel.reshape(*(taps, strides) * count, inputs, outputs)
    even, odd = range(0, 2 * count, 2), range(1, 2 * count, 2)
    kernel = kernel.transpose(*even, 2 * count, *odd, 2 * count + 1)
    kernel = jnp.flip(kernel, tuple(range(count)))
    kernel = kernel.reshape(*(taps,) * count, inputs, strides**count * outputs)
    # Only the groups of `strides` output pixels that are not cropped.
    first = padding // strides
    groups = [(padding + size - 1) // strides - first + 1 for size in sizes]
    low = taps - 1 - first
    ends = [m + taps - 1 - n - low for n, m in zip(x.shape[1:-1], groups, strict=True)]
    y = conv(_with_ends(x, [(low, end) for end in ends]), kernel)
    y = y.reshape(x.shape[0], *groups, *(strides,) * count, outputs)
    pairs = (axis for i in range(count) for axis in (1 + i, 1 + count + i))
    y = y.transpose(0, *pairs, 1 + 2 * count)
    y = y.reshape(x.shape[0], *(n * strides for n in groups), outputs)
    start = padding % strides
    return y[(slice(None), *(slice(start, start + size) for size in sizes))]


def _with_ends(x: Array, ends: list[tuple[int, int]]) -> Array:
    """Adds zeros at both ends of the axes between the first and the last; cuts off where negative.

    Written by operations that the converter to ONNX takes for any batch.
    """
    kept = tuple(
        slice(max(-low, 0), n - max(-high, 0))
        for n, (low, high) in zip(x.shape[1:-1], ends, strict=True)
    )
    added = [(max(low, 0), max(high, 0)) for low, high in ends]
    return jnp.pad(x[(slice(None), *kept)], [(0, 0), *added, (0, 0)])
