"""A convolutional network whose last features are projected to another width (SimKD's student)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.layers.conv import Ops
from jaxeff.models.base import MODELS
from jaxeff.models.convnet import ConvNet, Head
from jaxeff.typing import Array, Dtype


class Projector(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1, each with normalisation and activation.

    Attributes:
      ops: factory of the convolutions.
      width: output channels.
      factor: ratio of ``width`` to the inner channels.
    """

    ops: Ops
    width: int
    factor: int = 2

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Maps ``[batch, rows, columns, channels]`` to ``[batch, rows, columns, width]``."""
        between = self.width // self.factor
        for features, size in ((between, 1), (between, 3), (self.width, 1)):
            x = self.ops.act(self.ops.conv_norm(features, size)(x, train=train))
        return x


@MODELS.register("projected")
def projected(
    *,
    num_outputs: int,
    backbone: Mapping[str, Any],
    width: int,
    factor: int = 2,
    axis_name: str | None = None,
    dtype: Dtype = jnp.float32,
) -> ConvNet:
    """Builds the student of SimKD: a backbone, a projector, channel means and a classifier.

    Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, section
    3.2. The projector stays in the network at inference, and counts as parameters of the student.

    Args:
      num_outputs: classes.
      backbone: fields of a convolutional model, whose own head is dropped.
      width: channels of the teacher's last map.
      factor: ratio of ``width`` to the projector's inner channels.
      axis_name: mapped axis over which the projector's batch statistics are averaged.
      dtype: of the projector.

    Raises:
      ConfigError: impossible fields, or a backbone that is not convolutional.
    """
    body = MODELS.build(backbone, "model.backbone", num_outputs=num_outputs)
    if not isinstance(body, ConvNet):
        raise ConfigError(f"backbone: '{backbone['name']}' is not a convolutional network")
    if not 1 <= factor <= width:
        raise ConfigError(f"factor must be in [1, width={width}], not {factor}")
    ops = Ops.of(dtype, axis_name)
    stages = (*body.stages, (Projector(ops, width, factor),))
    return body.clone(stages=stages, head=Head(ops, num_outputs))
