"""Strided convolutions of images and volumes, and their transposes, by the compiled library.

The library convolves images. A plane of a volume is an image whose channels are those of its
neighbouring planes, as many as the kernel is deep.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxeff.ops.cpu import native
from jaxeff.ops.platforms import is_forward_mode
from jaxeff.typing import Array

_LANES = 16  # a multiple of those of every processor


def is_computable(side: int, strides: int, padding: int, *arrays: Array) -> bool:
    """Returns whether the functions below take such kernels: odd, centred on the pixels."""
    fits = side % 2 == 1 and padding == side // 2 and strides <= side
    return fits and not is_forward_mode() and native.is_computable(*arrays)


def conv(x: Array, kernel: Array, strides: int) -> Array:
    """Convolves ``[batch, *shape, inputs]`` with ``[k, ..., k, inputs, outputs]``.

    Returns:
      ``[batch, *(ceil(n / strides)), outputs]``.
    """
    if x.ndim == 4:
        return native.convolution.conv(x, kernel, strides, None, None, "identity")
    seen = _around(x, kernel.shape[0], strides)
    y = native.convolution.conv(seen, _flat(kernel), strides, None, None, "identity")
    return y.reshape(x.shape[0], -1, *y.shape[1:])


def fits_one_channel(kernel: Array, strides: int) -> bool:
    """Returns whether `conv_to_channel` takes a kernel that `is_computable`."""
    return kernel.shape[-1] == strides == 1 and kernel.shape[-2] % _LANES == 0


@jax.custom_vjp
def conv_to_channel(x: Array, kernel: Array) -> Array:
    """Convolves with one kernel ``[k, ..., k, inputs, 1]``, without strides.

    Returns:
      ``[batch, *shape, 1]``.
    """
    volumes = x if x.ndim == 5 else x[:, None]
    taps = kernel[..., 0] if x.ndim == 5 else kernel[None, ..., 0]
    (y,) = native.call("jaxeff_conv_to_channel", (volumes.shape[:-1],), (volumes, taps))
    return y.reshape(*x.shape[:-1], 1)


def _turned(kernel: Array) -> Array:
    return jnp.flip(jnp.swapaxes(kernel, -1, -2), tuple(range(kernel.ndim - 2)))


def _to_channel_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return conv_to_channel(x, kernel), (x, kernel)


def _to_channel_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    # Both are convolutions of the cotangent, a single channel, which fill their vectors.
    x, kernel = saved
    turned = _turned(kernel)
    return conv(g, turned, 1), _turned(kernel_gradient(g, x, turned.shape, 1))


conv_to_channel.defvjp(_to_channel_forward, _to_channel_backward)


def input_gradient(g: Array, kernel: Array, shape: tuple[int, ...], strides: int) -> Array:
    """Returns the transpose of `conv` with regard to an input of a shape."""
    if g.ndim == 4:
        return native.convolution.input_gradient(g, kernel, shape, strides)
    batch, depth, *plane = shape
    padding = kernel.shape[0] // 2
    phases = []
    for phase in range(strides):
        # Plane `strides * i + phase` is seen through tap t from plane `i + shift` of g.
        taps = [t for t in range(kernel.shape[0]) if (phase + padding - t) % strides == 0]
        shifts = [(phase + padding - t) // strides for t in taps]
        count = -(-(depth - phase) // strides)
        seen = _planes(g, [range(s, s + count) for s in shifts])
        weights = jnp.concatenate([kernel[t] for t in taps], -1)
        dx = native.convolution.input_gradient(seen, weights, (batch * count, *plane), strides)
        phases.append(dx.reshape(batch, count, *plane))
    missing = -depth % strides
    phases = [p if p.shape[1] == phases[0].shape[1] else _longer(p) for p in phases]
    dx = jnp.stack(phases, 2).reshape(batch, depth + missing, *plane)
    return dx[:, :depth]


def kernel_gradient(x: Array, g: Array, shape: tuple[int, ...], strides: int) -> Array:
    """Returns the transpose of `conv` with regard to a kernel of a shape."""
    if x.ndim == 4:
        return native.convolution.kernel_gradient(x, g, shape, strides)
    side, inputs, outputs = shape[0], *shape[-2:]
    seen, flat = _around(x, side, strides), g.reshape(-1, *g.shape[2:])
    total = native.convolution.kernel_gradient(
        seen, flat, (side, side, side * inputs, outputs), strides
    )
    return jnp.moveaxis(total.reshape(side, side, side, inputs, outputs), 2, 0)


def _around(x: Array, side: int, strides: int) -> Array:
    """Returns planes that a kernel sees, ``[batch * count, rows, columns, side * channels]``."""
    count = -(-x.shape[1] // strides)
    first = -(side // 2)
    ranges = [range(first + t, first + t + strides * count, strides) for t in range(side)]
    return _planes(x, ranges)


def _planes(x: Array, ranges: Sequence[range]) -> Array:
    """Returns planes of volumes, zeros outside, the ranges next to each other as channels."""
    low = max(0, *(-r[0] for r in ranges))
    high = max(0, *(r[-1] + 1 - x.shape[1] for r in ranges))
    x = jnp.pad(x, ((0, 0), (low, high), (0, 0), (0, 0), (0, 0)))
    chosen = [x[:, low + r[0] : low + r[-1] + 1 : r.step] for r in ranges]
    joined = jnp.concatenate(chosen, -1)
    return joined.reshape(-1, *joined.shape[2:])


def _longer(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))


def _flat(kernel: Array) -> Array:
    """Returns a kernel of volumes as one of planes with their neighbours."""
    side, channels, outputs = kernel.shape[0], *kernel.shape[-2:]
    return jnp.moveaxis(kernel, 0, 2).reshape(side, side, side * channels, outputs)
