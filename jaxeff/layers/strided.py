"""Strided and transposed convolutions of images and volumes, initialised as in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.arguments import one_size, require_whole
from jaxeff.layers.conv import uniform_fan_in
from jaxeff.ops import strided
from jaxeff.ops.precision import plus_bias
from jaxeff.typing import Array, Dtype, PRNGKey

uniform_fan_out = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


def uniform(bound: float) -> Callable[..., Array]:
    """Returns an initialiser that draws from U(-bound, bound)."""

    def draw(key: PRNGKey, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


class StridedConv(nn.Module):
    """`jaxeff.ops.strided.conv` with a learned kernel.

    Attributes:
      features: output channels.
      kernel_size: k, of all axes.
      strides: of all axes.
      padding: zeros on either side.
      use_bias: whether to add a bias per channel.
      dtype: of the computation; None follows the input.
    """

    features: int
    kernel_size: int | tuple[int, ...]
    strides: int | tuple[int, ...] = 1
    padding: int = 0
    use_bias: bool = False
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``[batch, *shape, channels]`` to ``[batch, *shape, features]``."""
        side, strides = _sizes(self)
        sides = (side,) * (x.ndim - 2)
        kernel = self.param("kernel", uniform_fan_in, (*sides, x.shape[-1], self.features))
        bias = None
        if self.use_bias:
            bound = (side ** len(sides) * x.shape[-1]) ** -0.5
            bias = self.param("bias", uniform(bound), (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = strided.conv(x, kernel, strides, self.padding)
        return y if bias is None else plus_bias(y, bias)


class TransposedConv(nn.Module):
    """`jaxeff.ops.strided.transposed_conv` with a learned kernel, without bias.

    Attributes:
      features: output channels.
      kernel_size: k, of all axes.
      strides: of all axes.
      padding: pixels cut off at either end.
      output_padding: pixels added at the far end.
      dtype: of the computation; None follows the input.
    """

    features: int
    kernel_size: int | tuple[int, ...]
    strides: int | tuple[int, ...] = 1
    padding: int = 0
    output_padding: int = 0
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``[batch, *shape, channels]`` to ``[batch, *shape, features]``."""
        side, strides = _sizes(self)
        sides = (side,) * (x.ndim - 2)
        kernel = self.param("kernel", uniform_fan_out, (*sides, x.shape[-1], self.features))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return strided.transposed_conv(x, kernel, strides, self.padding, self.output_padding)


def _sizes(layer: StridedConv | TransposedConv) -> tuple[int, int]:
    """Returns a layer's kernel side and stride; raises `ConfigError` for impossible values."""
    name = type(layer).__name__
    require_whole(f"{name}.features", layer.features)
    require_whole(f"{name}.padding", layer.padding, 0)
    return one_size(f"{name}.kernel_size", layer.kernel_size), one_size(
        f"{name}.strides", layer.strides
    )
