"""Convolutions that halve the sides of images or volumes, and transposed ones that double them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxeff.ops.platforms import has_cpu_form
from jaxeff.typing import Array

LAYOUTS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


@has_cpu_form("jaxeff.ops.cpu.strided")
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
    check_kernel(x, kernel)
    return padded_conv(x, kernel, strides, padding)


@has_cpu_form("jaxeff.ops.cpu.strided")
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
    check_kernel(x, kernel)
    count, low = x.ndim - 2, kernel.shape[0] - 1 - padding
    return jax.lax.conv_general_dilated(
        x,
        jnp.flip(kernel, tuple(range(count))),
        (1,) * count,
        tuple((low, low + more) for more in per_axis(output_padding, count)),
        lhs_dilation=(strides,) * count,
        dimension_numbers=LAYOUTS[count],
    )


def padded_conv(x: Array, kernel: Array, strides: int, padding: int) -> Array:
    """Returns `conv` computed by XLA."""
    count = x.ndim - 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides,) * count,
        ((padding, padding),) * count,
        dimension_numbers=LAYOUTS[count],
    )


def per_axis(size: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    """Returns a size for each of ``count`` axes."""
    return (size,) * count if isinstance(size, int) else size


def check_kernel(x: Array, kernel: Array) -> None:
    """Raises `ValueError` for shapes that do not fit."""
    if x.ndim not in (4, 5) or kernel.ndim != x.ndim or kernel.shape[-2] != x.shape[-1]:
        raise ValueError(
            "a convolution of [batch, (depth,) rows, columns, channels] needs a kernel "
            f"[(k,) k, k, inputs, outputs], not {kernel.shape} for an input {x.shape}"
        )
    if len(set(kernel.shape[:-2])) > 1:
        raise ValueError(f"a kernel must be of one side along all axes, not {kernel.shape[:-2]}")
