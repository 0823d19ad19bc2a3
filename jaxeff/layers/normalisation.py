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
      dtype: of the result; None follows the input. Statistics stay float32.
      param_dtype: of the parameters.
      scale_init: initialiser of the scale.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Callable[..., Any] = nn.initializers.ones

    @nn.compact
    def _variables(
        self, channels: int
    ) -> tuple[Array, Array, nn.Variable[Array], nn.Variable[Array]]:
        shape = (channels,)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        return scale, bias, mean, variance

    def folded(
        self, channels: int, dtype: Dtype, moments: tuple[Array, Array] | None = None
    ) -> tuple[Array, Array]:
        """Returns factor and offset ``[channels]`` of the normalisation.

        Args:
          channels: of what is normalised.
          dtype: of what is normalised; they are computed in it, in single precision at least.
          moments: of the batch (`jaxeff.ops.normalisation.channel_moments`), which also move the
            running statistics; None normalises by these.
        """
        return self._normalisation(channels, moments).folded(dtype)

    def running(self, channels: int) -> normalisation.Normalisation:
        """Returns the normalisation by the running statistics."""
        return self._normalisation(channels, None)

    def _normalisation(
        self, channels: int, moments: tuple[Array, Array] | None
    ) -> normalisation.Normalisation:
        scale, bias, running_mean, running_variance = self._variables(channels)
        mean, variance = running_mean.value, running_variance.value
        if moments is not None:
            mean, variance = self._moved(running_mean, running_variance, moments)
        return normalisation.Normalisation(scale, bias, mean, variance, self.epsilon)

    def __call__(self, x: Array, skip: Array | None = None, *, relu: bool = False) -> Array:
        """Normalises ``[..., channels]``; see `jaxeff.ops.normalisation.normalise` for the rest."""
        moments = None if self.use_running_average else normalisation.channel_moments(x)
        norm = self._normalisation(x.shape[-1], moments)
        factor, _ = norm.folded(x.dtype)
        x = x if self.dtype is None else x.astype(self.dtype)
        return normalisation.normalise(x, norm.mean, factor, norm.bias, skip, relu)

    def _moved(
        self,
        running_mean: nn.Variable[Array],
        running_variance: nn.Variable[Array],
        moments: tuple[Array, Array],
    ) -> tuple[Array, Array]:
        """Returns mean and variance of the batch, and moves the running ones towards them."""
        if self.axis_name is not None and not self.is_initializing():
            moments = jax.lax.pmean(moments, self.axis_name)
        mean, square = moments
        variance = jnp.maximum(0.0, square - mean * mean)
        if not self.is_initializing():
            for running, new in ((running_mean, mean), (running_variance, variance)):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        return mean, variance
