"""Batch normalisation that the convolution before it can take into its kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.ops import normalisation
from jaxeff.typing import Array, Dtype


class BatchNorm(nn.Module):
    """Normalises channels by the statistics of the batch, or by their running averages.

    Its parameters and statistics are called and shaped as those of `flax.linen.BatchNorm`.

    Attributes:
      use_running_average: whether the running statistics are used, as outside training.
      momentum: of the running statistics; Flax's is one minus PyTorch's.
      epsilon: added to the variance.
      axis_name: mapped axis over which batch statistics are averaged; None is each device's own.
      dtype: of the result; None follows the input. Statistics and parameters stay float32.
      scale_init: initialiser of the scale.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Dtype | None = None
    scale_init: Callable[..., Any] = nn.initializers.ones

    @nn.compact
    def _variables(self, channels: int) -> tuple[Array, Array, nn.Variable, nn.Variable]:
        shape = (channels,)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return scale, bias, mean, variance

    def folded(self, channels: int) -> tuple[Array, Array]:
        """Returns factor and offset ``[channels]`` of the normalisation by running statistics."""
        scale, bias, mean, variance = self._variables(channels)
        factor = scale * jax.lax.rsqrt(variance.value + self.epsilon)
        return factor, bias - mean.value * factor

    def __call__(self, x: Array, skip: Array | None = None, *, relu: bool = False) -> Array:
        """Normalises ``[..., channels]``; see `jaxeff.ops.normalisation.normalise` for the rest."""
        scale, bias, running_mean, running_variance = self._variables(x.shape[-1])
        if self.use_running_average:
            mean, variance = running_mean.value, running_variance.value
        else:
            mean, variance = self._statistics(x)
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_variance, variance)):
                    running.value = self.momentum * running.value + (1 - self.momentum) * new
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        x = x if self.dtype is None else x.astype(self.dtype)
        return normalisation.normalise(x, mean, factor, bias, skip, relu)

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        moments = normalisation.channel_moments(x)
        if self.axis_name is not None and not self.is_initializing():
            moments = jax.lax.pmean(moments, self.axis_name)
        mean, square = moments
        return mean, jnp.maximum(0.0, square - mean * mean)
