"""Multilayer perceptrons, for small tasks and as small students."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.layers.conv import activation as activation_named
from jaxeff.models.base import MODELS
from jaxeff.typing import Array, Dtype


class MLP(nn.Module):
    """Hidden layers and a linear read-out of flattened inputs.

    Attributes:
      hidden: widths of the hidden layers; () is a linear classifier.
      num_outputs: width of the read-out.
      activation: name in `jaxeff.ops.activations.ACTIVATIONS`.
      dtype: of the computation.
    """

    hidden: tuple[int, ...]
    num_outputs: int
    activation: str = "tanh"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False) -> Array:
        """Maps ``[batch, ...]`` to ``[batch, num_outputs]``; ``train`` has no effect."""
        x = jnp.asarray(inputs, self.dtype).reshape(inputs.shape[0], -1)
        act = activation_named(self.activation)
        for number, width in enumerate(self.hidden):
            x = act(nn.Dense(width, dtype=self.dtype, name=f"hidden_{number}")(x))
        self.sow("intermediates", "penultimate", x)
        return nn.Dense(self.num_outputs, dtype=self.dtype, name="readout")(x)


@MODELS.register("mlp")
def mlp(
    *,
    num_outputs: int,
    hidden: Sequence[int] = (64,),
    activation: str = "tanh",
    dtype: Dtype = jnp.float32,
) -> MLP:
    """Builds an `MLP` from a config's fields.

    Raises:
      ConfigError: a width is not positive, or the activation is unknown.
    """
    if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in hidden):
        raise ConfigError(f"hidden: widths must be positive whole numbers, not {tuple(hidden)}")
    require_whole("num_outputs", num_outputs)
    activation_named(activation)
    return MLP(tuple(hidden), num_outputs, activation, jnp.dtype(dtype))
