"""SelectiveNet's classifier: a selection head with a hidden layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import constant

from jaxeff.errors import ConfigError
from jaxeff.layers.conv import Ops
from jaxeff.models.base import MODELS
from jaxeff.typing import Array, Dtype


class Selecting(nn.Module):
    """Logits of classes, selection and auxiliary classes; the selection has a hidden layer.

    The hidden layer is linear in the backbone's features, so the backbone's last linear layer
    computes it together with the classes. Any classifier can be the backbone.

    Attributes:
      backbone: a classifier of ``2 classes + hidden`` outputs.
      hidden: width of the hidden layer.
      ops: factory of the normalisation.
    """

    backbone: nn.Module
    hidden: int
    ops: Ops

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False, **options: Any) -> Array:
        """Maps a batch to ``[batch, 2 classes + 1]``: classes, selection, auxiliary classes."""
        outputs = self.backbone(inputs, train=train, **options)
        classes = (outputs.shape[-1] - self.hidden) // 2
        first, hidden, second = jnp.split(outputs, (classes, classes + self.hidden), axis=-1)
        norm = self.ops.norm(train=train, name="norm", scale_init=constant(0.1))
        selection = nn.Dense(1, dtype=self.ops.dtype, name="selection")(norm(nn.relu(hidden)))
        return jnp.concatenate((first, selection, second), axis=-1)


@MODELS.register("selecting")
def selecting(
    *,
    num_outputs: int,
    backbone: Mapping[str, Any],
    hidden: int = 512,
    axis_name: str | None = None,
    dtype: Dtype = jnp.float32,
) -> Selecting:
    """Builds the network of SelectiveNet on any classifier.

    Geifman, El-Yaniv, "SelectiveNet", ICML 2019, whose code has 512 hidden units, rectified and
    normalised with scales that start at 0.1, before the selection.

    Args:
      num_outputs: 2 classes + 1, as the objective "selective_net" requires.
      backbone: fields of a classifier.
      hidden: width of the selection's hidden layer.
      axis_name: mapped axis over which the layer's batch statistics are averaged.
      dtype: of the layer.

    Raises:
      ConfigError: an impossible width, or an objective that has no selection.
    """
    if hidden < 1:
        raise ConfigError(f"hidden must be positive, not {hidden}")
    if num_outputs < 3 or num_outputs % 2 == 0:
        raise ConfigError(
            f"model 'selecting' has two heads and a selection, which cannot be {num_outputs} "
            f"outputs;"
            " train it with config.objective.name='selective_net'"
        )
    body = MODELS.build(backbone, "model.backbone", num_outputs=num_outputs - 1 + hidden)
    return Selecting(body, hidden, Ops.of(dtype, axis_name))
