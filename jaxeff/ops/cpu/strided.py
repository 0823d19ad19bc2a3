"""Strided and transposed convolutions without products with zeros.

XLA's CPU compiler multiplies all zeros that a transposed convolution, or the gradient of a strided
one, inserts between its inputs; here the output pixels of each phase (remainder by the stride) are
a small convolution instead. Volumes are convolved plane by plane, which is several times faster
than XLA's convolution. Kernel gradients are sums of matrix products over the taps, image by image.
Where there is a compiled library, it computes them in single precision (``volumes.py``).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxeff.ops import strided_forms
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
    return strided_forms.plane_by_plane(x, kernel, strides, padding)


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
    return strided_forms.in_phases(
        x, kernel, strides, padding, sizes, lambda x, kernel: _conv(x, kernel, 1, 0)
    )


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
