"""Convolutions of images, padded with ``k // 2`` zeros on every side."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxeff.ops.activations import ACTIVATIONS
from jaxeff.ops.normalisation import Normalisation, finished
from jaxeff.ops.platforms import has_cpu_form
from jaxeff.ops.precision import plus_bias
from jaxeff.typing import Array


@has_cpu_form("jaxeff.ops.cpu.convolution")
def conv(
    x: Array,
    kernel: Array,
    strides: int = 1,
    bias: Array | None = None,
    skip: Array | None = None,
    activation: str = "identity",
    norm: Normalisation | None = None,
    gate: Array | None = None,
) -> Array:
    """Convolves ``[batch, rows, columns, inputs]`` with ``[k, k, inputs, outputs]``, odd k.

    Args:
      x: the images.
      kernel: the kernel.
      strides: of both axes.
      bias: ``[outputs]``, added; None for nothing.
      skip: like the result, added; None for nothing.
      activation: of the sum, a name in `jaxeff.ops.activations.ACTIVATIONS`.
      norm: applied after the bias, before the skip is added: its factor is taken into the kernel,
        before that takes the images' type. None for nothing.
      gate: ``[batch, inputs]``, by which every pixel is multiplied first; None for ones.

    Returns:
      ``[batch, ceil(rows / strides), ceil(columns / strides), outputs]``.

    Raises:
      ValueError: shapes that do not fit, or an even kernel.
    """
    check_kernel(x, kernel, x.shape[-1:], "[k, k, inputs, outputs]")
    kernel, bias = folded(kernel, bias, norm, x)
    y = grouped_conv(gated(x, gate), kernel, strides, groups=1)
    return followed(y, bias, skip, activation)


def gated(x: Array, gate: Array | None) -> Array:
    """Returns images multiplied by ``[batch, channels]``, or the images for None."""
    return x if gate is None else x * gate[:, None, None]


def folded(
    kernel: Array, bias: Array | None, norm: Normalisation | None, x: Array
) -> tuple[Array, Array | None]:
    """Returns kernel and bias with a normalisation taken into them, of the type of the images."""
    if norm is None:
        return kernel, bias
    factor, offset = norm.folded(x.dtype)
    offset = offset if bias is None else offset + bias * factor
    return (kernel * factor).astype(x.dtype), offset.astype(x.dtype)


def followed(y: Array, bias: Array | None, skip: Array | None, activation: str) -> Array:
    """Returns what `conv` makes of a convolution."""
    y = finished(y if bias is None else plus_bias(y, bias), skip, relu=False)
    return ACTIVATIONS[activation](y)


@has_cpu_form("jaxeff.ops.cpu.convolution")
def depthwise_conv(
    x: Array,
    kernel: Array,
    strides: int = 1,
    bias: Array | None = None,
    skip: Array | None = None,
    activation: str = "identity",
    norm: Normalisation | None = None,
) -> Array:
    """Convolves every channel with its own kernel.

    Args:
      x: ``[batch, rows, columns, channels]``.
      kernel: ``[k, k, 1, channels]``, odd k.
      strides: of both axes.
      bias: ``[channels]``; see `conv`, as for the next two.
      skip: like the result.
      activation: of the sum.
      norm: as of `conv`.

    Returns:
      ``[batch, ceil(rows / strides), ceil(columns / strides), channels]``.

    Raises:
      ValueError: shapes that do not fit, or an even kernel.
    """
    check_kernel(x, kernel, (1, x.shape[-1]), "[k, k, 1, channels]")
    kernel, bias = folded(kernel, bias, norm, x)
    y = grouped_conv(x, kernel, strides, groups=x.shape[-1])
    return followed(y, bias, skip, activation)


@has_cpu_form("jaxeff.ops.cpu.convolution")
def depthwise_fields(x: Array, kernel: Array) -> Array:
    """Convolves every channel with several kernels; on a CPU in one pass.

    Args:
      x: ``[batch, rows, columns, channels]``.
      kernel: ``[k, k, 1, fields * channels]``, odd k, one field after the other.

    Returns:
      ``[batch, rows, columns, fields * channels]``.

    Raises:
      ValueError: shapes that do not fit, or an even kernel.
    """
    kernels = jnp.split(kernel, kernel.shape[-1] // x.shape[-1], -1)
    return jnp.concatenate([depthwise_conv(x, k) for k in kernels], -1)


def grouped_conv(x: Array, kernel: Array, strides: int, groups: int) -> Array:
    """Grouped convolution by XLA."""
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        ((rows, rows), (columns, columns)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def check_kernel(x: Array, kernel: Array, channels: tuple[int, ...], layout: str) -> None:
    """Raises `ValueError` for a kernel of even sides, or of other channels than the input."""
    fits = x.ndim == 4 and kernel.ndim == 4 and kernel.shape[2 : 2 + len(channels)] == channels
    if not fits:
        raise ValueError(
            f"a convolution of [batch, rows, columns, channels] needs a kernel {layout}, not "
            f"{kernel.shape} for an input {x.shape}"
        )
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"a convolution's kernel must have odd sides, not {kernel.shape[:2]}")
