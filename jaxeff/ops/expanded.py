"""The first half of an inverted residual: a 1x1 convolution, then a depthwise one."""

from __future__ import annotations

from jaxeff.ops.convolution import conv, depthwise_conv
from jaxeff.ops.normalisation import Normalisation
from jaxeff.ops.platforms import has_cpu_form
from jaxeff.typing import Array


@has_cpu_form("jaxeff.ops.cpu.expanded")
def expanded_depthwise(
    x: Array,
    expansion: Array,
    inner_norm: Normalisation,
    kernel: Array,
    norm: Normalisation,
    strides: int = 1,
    activation: str = "identity",
) -> Array:
    """Expands channels, then convolves each with its own kernel.

    Args:
      x: ``[batch, rows, columns, inputs]``.
      expansion: ``[1, 1, inputs, channels]``.
      inner_norm: follows the expansion, see `jaxeff.ops.convolution.conv`.
      kernel: ``[k, k, 1, channels]``, odd k.
      norm: follows the depthwise convolution.
      strides: of the depthwise convolution.
      activation: of both, a name in `jaxeff.ops.activations.ACTIVATIONS`.

    Returns:
      ``[batch, ceil(rows / strides), ceil(columns / strides), channels]``.

    Raises:
      ValueError: shapes that do not fit, or an even kernel.
    """
    return separately_expanded(x, expansion, inner_norm, kernel, norm, strides, activation)


def separately_expanded(
    x: Array,
    expansion: Array,
    inner_norm: Normalisation,
    kernel: Array,
    norm: Normalisation,
    strides: int,
    activation: str,
) -> Array:
    """Computes `expanded_depthwise` by one convolution after the other."""
    inner = conv(x, expansion, 1, None, None, activation, inner_norm)
    return depthwise_conv(inner, kernel, strides, None, None, activation, norm)
