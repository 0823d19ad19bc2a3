"""Strided and transposed convolutions without products with zeros.

XLA's CPU compiler multiplies all zeros that a transposed convolution, or the gradient of a strided
one, inserts between its inputs; here the output pixels of each phase (remainder by the stride) are
a small convolution instead. Volumes are convolved plane by plane, which is several times faster
than XLA's convolution. Kernel gradients are sums of matrix products over the taps, image by image.
Where there is a compiled library, it computes them in single precision (``volumes.py``).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxeff.ops.cpu import volumes
from jaxeff.ops.cpu.windows import product, sum_over_images, windows
from jaxeff.ops.platforms import is_forward_mode
from jaxeff.ops.precision import wide
from jaxeff.ops.strided import check_kernel, padded_conv, per_axis
from jaxeff.typing import Array

Pair = tuple[Array, Array]


def conv(x: Array, kernel: Array, strides: int = 1, padding: int = 0) -> Array:
    """Convolves volumes plane by plane, and single channels by one matrix product."""
    check_kernel(x, kernel)
    return (_conv if is_forward_mode() else _conv_with_gradient)(x, kernel, strides, padding)


def transposed_conv(
    x: Array,
    kernel: Array,
    strides: int = 1,
    padding: int = 0,
    output_padding: int | tuple[int, ...] = 0,
) -> Array:
    """Computes each phase of the output by a small convolution, and interleaves them."""
    check_kernel(x, kernel)
    more = per_axis(output_padding, x.ndim - 2)
    # A cotangent that is a stride longer has a convolution that is longer than the input.
    has_rule = max(more) < strides and not is_forward_mode()
    function = _transposed_with_gradient if has_rule else _transposed_conv
    return function(x, kernel, strides, padding, more)


def _conv(x: Array, kernel: Array, strides: int, padding: int) -> Array:
    count, side = x.ndim - 2, kernel.shape[0]
    channels, outputs = kernel.shape[-2:]
    # An output may be empty.
    is_compiled = volumes.is_computable(x, kernel) and min(x.shape[1:-1]) + 2 * padding >= side
    if is_compiled and volumes.is_to_channel(kernel, strides, padding):
        return volumes.conv_to_channel(x, kernel)
    if outputs == 1:
        taps = kernel.reshape(-1, channels)
        each = jnp.einsum("tc,...c->t...", taps, x, preferred_element_type=wide(x.dtype))
        shifted = [
            windows(a, (side,) * count, strides, (padding,) * count)[tap]
            for tap, a in enumerate(each)
        ]
        return functools.reduce(jnp.add, shifted)[..., None].astype(x.dtype)
    if is_compiled:
        return volumes.conv(x, kernel, strides, padding)
    if count == 2:
        return padded_conv(x, kernel, strides, padding)
    if channels == 1:
        seen = jnp.stack(windows(x[..., 0], (side,) * count, strides, (padding,) * count))
        return jnp.einsum("t...,to->...o", seen, kernel.reshape(-1, outputs))
    return _planes(x, kernel, strides, padding)


_conv_with_gradient = jax.custom_vjp(_conv, nondiff_argnums=(2, 3))


def _conv_forward(x: Array, kernel: Array, strides: int, padding: int) -> tuple[Array, Pair]:
    return _conv_with_gradient(x, kernel, strides, padding), (x, kernel)


def _conv_backward(strides: int, padding: int, saved: Pair, g: Array) -> Pair:
    x, kernel = saved
    # Pixels beyond the last window get no gradient.
    left = tuple((n + 2 * padding - kernel.shape[0]) % strides for n in x.shape[1:-1])
    dx = _transposed_conv(g, jnp.swapaxes(kernel, -1, -2), strides, padding, left)
    return dx, _kernel_gradient(x, g, kernel.shape[0], strides, padding)


_conv_with_gradient.defvjp(_conv_forward, _conv_backward)


def _transposed_conv(
    x: Array, kernel: Array, strides: int, padding: int, more: tuple[int, ...]
) -> Array:
    count, side = x.ndim - 2, kernel.shape[0]
    if strides == 1 and padding < side and not any(more):
        return _conv(x, jnp.flip(kernel, tuple(range(count))), 1, side - 1 - padding)
    sizes = tuple(
        (n - 1) * strides - 2 * padding + side + m for n, m in zip(x.shape[1:-1], more, strict=True)
    )
    outputs = kernel.shape[-1]
    # Of a single output channel most of a vector would be empty.
    if outputs > 1 and max(more) < strides and volumes.is_computable(x, kernel):
        shape = (x.shape[0], *sizes, outputs)
        return volumes.input_gradient(x, jnp.swapaxes(kernel, -1, -2), shape, strides, padding)
    return _phases(x, kernel, strides, padding, sizes)


_transposed_with_gradient = jax.custom_vjp(_transposed_conv, nondiff_argnums=(2, 3, 4))


def _transposed_forward(
    x: Array, kernel: Array, strides: int, padding: int, more: tuple[int, ...]
) -> tuple[Array, Pair]:
    return _transposed_with_gradient(x, kernel, strides, padding, more), (x, kernel)


def _transposed_backward(
    strides: int, padding: int, more: tuple[int, ...], saved: Pair, g: Array
) -> Pair:
    x, kernel = saved
    dx = _conv(g, jnp.swapaxes(kernel, -1, -2), strides, padding)
    dkernel = _kernel_gradient(g, x, kernel.shape[0], strides, padding)
    return dx, jnp.swapaxes(dkernel, -1, -2)


_transposed_with_gradient.defvjp(_transposed_forward, _transposed_backward)


def _planes(x: Array, kernel: Array, strides: int, padding: int) -> Array:
    """Convolves volumes plane by plane: neighbouring planes become channels."""
    batch, depth, *plane, channels = x.shape
    side, outputs = kernel.shape[0], kernel.shape[-1]
    count = (depth + 2 * padding - side) // strides + 1
    x = jnp.pad(x, ((0, 0), (padding, padding), (0, 0), (0, 0), (0, 0)))
    around = [x[:, t : t + strides * (count - 1) + 1 : strides] for t in range(side)]
    stacked = jnp.concatenate(around, -1).reshape(-1, *plane, side * channels)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(side, side, side * channels, outputs)
    y = padded_conv(stacked, flat, strides, padding)
    return y.reshape(batch, count, *y.shape[1:])


def _phases(x: Array, kernel: Array, strides: int, padding: int, sizes: tuple[int, ...]) -> Array:
    """Computes an output of ``sizes`` with its phases as channels, then interleaves them."""
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
    edges = ((0, 0, 0), *((low, end, 0) for end in ends), (0, 0, 0))
    y = _conv(jax.lax.pad(x, jnp.zeros((), x.dtype), edges), kernel, 1, 0)
    y = y.reshape(x.shape[0], *groups, *(strides,) * count, outputs)
    pairs = (axis for i in range(count) for axis in (1 + i, 1 + count + i))
    y = y.transpose(0, *pairs, 1 + 2 * count)
    y = y.reshape(x.shape[0], *(n * strides for n in groups), outputs)
    start = padding % strides
    return y[(slice(None), *(slice(start, start + size) for size in sizes))]


def _kernel_gradient(x: Array, g: Array, side: int, strides: int, padding: int) -> Array:
    """Returns the gradient of `conv`'s kernel for the cotangent ``g`` of its output."""
    count, (inputs, outputs) = x.ndim - 2, (x.shape[-1], g.shape[-1])
    if outputs == 1 and strides == 1 and padding < side:
        # Roles swapped: the input is the cotangent of a convolution of g.
        turned = _kernel_gradient(g, x, side, 1, side - 1 - padding)
        return jnp.swapaxes(jnp.flip(turned, tuple(range(count))), -1, -2)
    if volumes.is_computable(x, g):
        shape = (*(side,) * count, inputs, outputs)
        return volumes.kernel_gradient(x, g, shape, strides, padding)

    def of_image(x: Array, g: Array) -> Array:
        seen = windows(x, (side,) * count, strides, (padding,) * count)
        cotangent = g.reshape(-1, outputs)
        if inputs == 1:
            return product(jnp.stack([w.reshape(-1) for w in seen]), cotangent)
        return jnp.stack([product(w.reshape(-1, inputs).T, cotangent) for w in seen])

    total = sum_over_images(of_image, x, g)
    return total.reshape(*(side,) * count, inputs, outputs).astype(jnp.result_type(x, g))
