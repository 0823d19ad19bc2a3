"""Convolutions that halve the sides of images or volumes, and transposed ones that double them.

Both work for two and three axes. XLA's CPU compiler multiplies all the zeros that a transposed
convolution, or the gradient of a strided one, puts between its inputs; here the output's pixels of
each remainder by the stride are a small convolution of their own instead. Volumes are convolved
plane by plane there, which is several times faster than XLA's own. `trained_conv` and
`trained_transposed_conv` also have kernel gradients that are sums of matrix products over the taps,
image by image, which are many times faster on CPUs; unlike the others they cannot be differentiated
in forward mode. Accelerators keep XLA's.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.ops.convolution import product
from jaxeff.ops.precision import wide
from jaxeff.typing import Array

LAYOUTS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def conv(x: Array, kernel: Array, strides: int = 1, padding: int = 0) -> Array:
    """Convolves ``[batch, *shape, inputs]`` with ``[k, ..., k, inputs, outputs]``.

    Args:
      x: images or volumes.
      kernel: of the same side k along every axis.
      strides: of all axes.
      padding: zeros on either side of every axis.

    Returns:
      ``[batch, *((n + 2 padding - k) // strides + 1), outputs]``.

    Raises:
      ValueError: shapes that do not fit.
    """
    _check(x, kernel)
    plain = functools.partial(_xla, strides=strides, padding=padding)
    small = functools.partial(_on_cpu, strides=strides, padding=padding)
    return jax.lax.platform_dependent(x, kernel, cpu=small, default=plain)


def transposed_conv(
    x: Array,
    kernel: Array,
    strides: int = 1,
    padding: int = 0,
    output_padding: int | tuple[int, ...] = 0,
) -> Array:
    """Adds ``x[i] * kernel[t]`` to the output's pixel ``strides * i + t - padding``.

    These are PyTorch's transposed convolutions: ``padding`` crops the output at both ends of an
    axis, ``output_padding`` lengthens it at the far end.

    Args:
      x: ``[batch, *shape, inputs]``.
      kernel: ``[k, ..., k, inputs, outputs]``.
      strides: of all axes.
      padding: pixels cut off at either end.
      output_padding: pixels added at the far end, of all axes or of each.

    Returns:
      ``[batch, *((n - 1) strides - 2 padding + k + output_padding), outputs]``.

    Raises:
      ValueError: shapes that do not fit.
    """
    _check(x, kernel)
    count, side = x.ndim - 2, kernel.shape[0]
    more = (output_padding,) * count if isinstance(output_padding, int) else output_padding
    if strides == 1 and padding < side and not any(more):
        return conv(x, jnp.flip(kernel, tuple(range(count))), 1, side - 1 - padding)
    dilated = functools.partial(_dilated, strides=strides, padding=padding, more=more)
    sizes = tuple(
        (n - 1) * strides - 2 * padding + side + m for n, m in zip(x.shape[1:-1], more, strict=True)
    )
    phases = functools.partial(_phases, strides=strides, padding=padding, sizes=sizes)
    return jax.lax.platform_dependent(x, kernel, cpu=phases, default=dilated)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def trained_conv(x: Array, kernel: Array, strides: int = 1, padding: int = 0) -> Array:
    """Returns `conv`; see the module for its gradients."""
    return conv(x, kernel, strides, padding)


def _conv_forward(x: Array, kernel: Array, strides: int, padding: int) -> Any:
    return conv(x, kernel, strides, padding), (x, kernel)


def _conv_backward(strides: int, padding: int, saved: Any, g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    # Pixels that the last stride did not reach get no gradient.
    left = tuple((n + 2 * padding - kernel.shape[0]) % strides for n in x.shape[1:-1])
    dx = transposed_conv(g, jnp.swapaxes(kernel, -1, -2), strides, padding, left)
    return dx, _kernel_gradient(x, g, kernel, strides, padding)


trained_conv.defvjp(_conv_forward, _conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def trained_transposed_conv(
    x: Array, kernel: Array, strides: int = 1, padding: int = 0, output_padding: int = 0
) -> Array:
    """Returns `transposed_conv`; see the module for its gradients."""
    return transposed_conv(x, kernel, strides, padding, output_padding)


def _transposed_forward(x: Array, kernel: Array, *options: int) -> Any:
    return transposed_conv(x, kernel, *options), (x, kernel)


def _transposed_backward(
    strides: int, padding: int, output_padding: int, saved: Any, g: Array
) -> tuple[Array, Array]:
    # Shorter than a stride, the padding at the far end does not lengthen the convolution back.
    x, kernel = saved
    turned = jnp.swapaxes(kernel, -1, -2)
    dx = conv(g, turned, strides, padding)
    return dx, jnp.swapaxes(_kernel_gradient(g, x, turned, strides, padding), -1, -2)


trained_transposed_conv.defvjp(_transposed_forward, _transposed_backward)


def _check(x: Array, kernel: Array) -> None:
    if x.ndim not in (4, 5) or kernel.ndim != x.ndim or kernel.shape[-2] != x.shape[-1]:
        raise ValueError(
            "a convolution of [batch, (depth,) rows, columns, channels] needs a kernel "
            f"[(k,) k, k, inputs, outputs], not {kernel.shape} for an input {x.shape}"
        )


def _xla(x: Array, kernel: Array, strides: int, padding: int) -> Array:
    count = x.ndim - 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides,) * count,
        ((padding, padding),) * count,
        dimension_numbers=LAYOUTS[count],
    )


def _on_cpu(x: Array, kernel: Array, strides: int, padding: int) -> Array:
    """Convolves volumes plane by plane, and single channels by one matrix product."""
    count, side = x.ndim - 2, kernel.shape[0]
    channels, outputs = kernel.shape[-2:]
    if outputs == 1:
        taps = kernel.reshape(-1, channels)
        each = jnp.einsum("tc,...c->t...", taps, x, preferred_element_type=wide(x.dtype))
        shifted = [_windows(a, count, side, strides, padding)[tap] for tap, a in enumerate(each)]
        return functools.reduce(jnp.add, shifted)[..., None].astype(x.dtype)
    if count == 2:
        return _xla(x, kernel, strides, padding)
    if channels == 1:
        seen = jnp.stack(_windows(x[..., 0], count, side, strides, padding))
        return jnp.einsum("t...,to->...o", seen, kernel.reshape(-1, outputs))
    return _planes(x, kernel, strides, padding)


def _windows(x: Array, count: int, side: int, strides: int, padding: int) -> list[Array]:
    """Returns what each tap of a kernel sees of ``[batch, *shape, ...]``, ``count`` axes long."""
    rest = ((0, 0),) * (x.ndim - 1 - count)
    x = jnp.pad(x, ((0, 0), *((padding, padding),) * count, *rest))
    spans = [strides * ((n - side) // strides) + 1 for n in x.shape[1 : 1 + count]]
    return [
        x[(slice(None), *(slice(t, t + n, strides) for t, n in zip(tap, spans, strict=True)))]
        for tap in itertools.product(range(side), repeat=count)
    ]


def _planes(x: Array, kernel: Array, strides: int, padding: int) -> Array:
    """Convolves volumes plane by plane: what lies around a plane becomes its channels."""
    batch, depth, *plane, channels = x.shape
    side, outputs = kernel.shape[0], kernel.shape[-1]
    count = (depth + 2 * padding - side) // strides + 1
    x = jnp.pad(x, ((0, 0), (padding, padding), (0, 0), (0, 0), (0, 0)))
    around = [x[:, t : t + strides * (count - 1) + 1 : strides] for t in range(side)]
    stacked = jnp.concatenate(around, -1).reshape(-1, *plane, side * channels)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(side, side, side * channels, outputs)
    y = _xla(stacked, flat, strides, padding)
    return y.reshape(batch, count, *y.shape[1:])


def _dilated(x: Array, kernel: Array, strides: int, padding: int, more: tuple[int, ...]) -> Array:
    count, low = x.ndim - 2, kernel.shape[0] - 1 - padding
    return jax.lax.conv_general_dilated(
        x,
        jnp.flip(kernel, tuple(range(count))),
        (1,) * count,
        tuple((low, low + m) for m in more),
        lhs_dilation=(strides,) * count,
        dimension_numbers=LAYOUTS[count],
    )


def _phases(x: Array, kernel: Array, strides: int, padding: int, sizes: tuple[int, ...]) -> Array:
    """Computes the output's pixels of each remainder by the stride, and puts them side by side."""
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
    # Of the output's groups of `strides` pixels, only those that are not cut off.
    first = padding // strides
    groups = [(padding + size - 1) // strides - first + 1 for size in sizes]
    low = taps - 1 - first
    ends = [m + taps - 1 - n - low for n, m in zip(x.shape[1:-1], groups, strict=True)]
    edges = ((0, 0, 0), *((low, end, 0) for end in ends), (0, 0, 0))
    y = _on_cpu(jax.lax.pad(x, jnp.zeros((), x.dtype), edges), kernel, 1, 0)
    y = y.reshape(x.shape[0], *groups, *(strides,) * count, outputs)
    pairs = (axis for i in range(count) for axis in (1 + i, 1 + count + i))
    y = y.transpose(0, *pairs, 1 + 2 * count)
    y = y.reshape(x.shape[0], *(n * strides for n in groups), outputs)
    start = padding % strides
    return y[(slice(None), *(slice(start, start + size) for size in sizes))]


def _kernel_gradient(x: Array, g: Array, kernel: Array, strides: int, padding: int) -> Array:
    """Returns the gradient of `conv`'s kernel for the cotangent ``g`` of its output."""
    by_taps: Callable[..., Array] = functools.partial(
        _sum_over_images, side=kernel.shape[0], strides=strides, padding=padding
    )

    def plain(x: Array, g: Array) -> Array:
        _, pull = jax.vjp(lambda kernel: _xla(x, kernel, strides, padding), kernel)
        return pull(g)[0]

    return jax.lax.platform_dependent(x, g, cpu=by_taps, default=plain)


def _sum_over_images(x: Array, g: Array, side: int, strides: int, padding: int) -> Array:
    count, (inputs, outputs) = x.ndim - 2, (x.shape[-1], g.shape[-1])
    if outputs == 1 and strides == 1 and padding < side:
        # The other way round: the input is what a convolution of the cotangent should be.
        turned = _sum_over_images(g, x, side, 1, side - 1 - padding)
        return jnp.swapaxes(jnp.flip(turned, tuple(range(count))), -1, -2)

    def add(total: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
        windows = _windows(image[0][None], count, side, strides, padding)
        cotangent = image[1].reshape(-1, outputs)
        if inputs == 1:
            seen = jnp.stack([w.reshape(-1) for w in windows])
            return total + product(seen, cotangent)[:, None], None
        return total + jnp.stack(
            [product(w.reshape(-1, inputs).T, cotangent) for w in windows]
        ), None

    dtype = jnp.result_type(x, g)
    zero = jnp.zeros((side**count, inputs, outputs), wide(dtype))
    total = jax.lax.scan(add, zero, (x, g))[0]
    return total.reshape(*(side,) * count, inputs, outputs).astype(dtype)
