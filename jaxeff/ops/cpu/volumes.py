"""Strided convolutions of images and volumes, and their transposes, by the compiled library.

The library convolves images. A plane of a volume is an image whose channels are those of the planes
that the kernel sees from there.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxeff.ops.cpu import native
from jaxeff.ops.platforms import is_forward_mode
from jaxeff.typing import Array

_LANES = 16  # a multiple of those of every processor


def is_computable(*arrays: Array) -> bool:
    """Returns whether the functions below take arrays of such types, where they are called."""
    return not is_forward_mode() and native.is_computable(*arrays)


def conv(x: Array, kernel: Array, strides: int, padding: int) -> Array:
    """Convolves ``[batch, *shape, inputs]`` with ``[k, ..., k, inputs, outputs]``.

    Returns:
      ``[batch, *((n + 2 padding - k) // strides + 1), outputs]``.
    """
    if x.ndim == 4:
        return _convolved(x, kernel, strides, padding)
    seen = _seen(x, kernel.shape[0], strides, padding)
    y = _convolved(seen, _flat(kernel), strides, padding)
    return y.reshape(x.shape[0], -1, *y.shape[1:])


def is_to_channel(kernel: Array, strides: int, padding: int) -> bool:
    """Returns whether `conv_to_channel` computes a convolution."""
    centred = kernel.shape[0] == 2 * padding + 1
    return centred and kernel.shape[-1] == strides == 1 and kernel.shape[-2] % _LANES == 0


@jax.custom_vjp
def conv_to_channel(x: Array, kernel: Array) -> Array:
    """Convolves with one kernel ``[k, ..., k, inputs, 1]``, k odd, without strides.

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
    turned, padding = _turned(kernel), kernel.shape[0] // 2
    return conv(g, turned, 1, padding), _turned(kernel_gradient(g, x, turned.shape, 1, padding))


conv_to_channel.defvjp(_to_channel_forward, _to_channel_backward)


def input_gradient(
    g: Array, kernel: Array, shape: tuple[int, ...], strides: int, padding: int
) -> Array:
    """Returns the transpose of `conv` with regard to an input of a shape."""
    if g.ndim == 4:
        return native.convolution.input_gradient(g, kernel, shape, strides, padding)
    batch, depth, *plane = shape
    phases = []
    for phase in range(min(strides, depth)):
        # Plane `strides * i + phase` is seen through tap t from plane `i + shift` of g.
        taps = [t for t in range(kernel.shape[0]) if (phase + padding - t) % strides == 0]
        shifts = [(phase + padding - t) // strides for t in taps]
        count = -(-(depth - phase) // strides)
        if not taps:  # strides that are longer than the kernel
            phases.append(jnp.zeros((batch, count, *plane), g.dtype))
            continue
        seen = _planes(g, [range(s, s + count) for s in shifts])
        weights = jnp.concatenate([kernel[t] for t in taps], -1)
        flat = (batch * count, *plane)
        dx = native.convolution.input_gradient(seen, weights, flat, strides, padding)
        phases.append(dx.reshape(batch, count, *plane))
    longest = phases[0].shape[1]
    phases = [p if p.shape[1] == longest else _longer(p) for p in phases]
    dx = jnp.stack(phases, 2).reshape(batch, longest * len(phases), *plane)
    return dx[:, :depth]


def kernel_gradient(
    x: Array, g: Array, shape: tuple[int, ...], strides: int, padding: int
) -> Array:
    """Returns the transpose of `conv` with regard to a kernel of a shape."""
    if x.ndim == 4:
        return native.convolution.kernel_gradient(x, g, shape, strides, padding)
    side, inputs, outputs = shape[0], *shape[-2:]
    seen, flat = _seen(x, side, strides, padding), g.reshape(-1, *g.shape[2:])
    flat_shape = (side, side, side * inputs, outputs)
    total = native.convolution.kernel_gradient(seen, flat, flat_shape, strides, padding)
    return jnp.moveaxis(total.reshape(side, side, side, inputs, outputs), 2, 0)


def _convolved(images: Array, kernel: Array, strides: int, padding: int) -> Array:
    plain = (None, None, "identity", None, None)  # nothing is done with the sums
    return native.convolution.conv(images, kernel, strides, *plain, padding)


def _seen(x: Array, side: int, strides: int, padding: int) -> Array:
    """Returns planes that a kernel sees, ``[batch * count, rows, columns, side * channels]``."""
    count = (x.shape[1] + 2 * padding - side) // strides + 1
    first = range(-padding, -padding + side)
    return _planes(x, [range(t, t + strides * (count - 1) + 1, strides) for t in first])


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
