"""Convolutional networks with early exits: later stages run for hard inputs only.

Teerapittayanon et al., "BranchyNet", 2016. They are cascades in which every stage continues from
the features of the previous one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.hybrid.route import Stage
from jaxeff.layers.checks import require_linen
from jaxeff.layers.conv import Ops
from jaxeff.models.base import MODELS
from jaxeff.models.convnet import ConvNet, Head
from jaxeff.models.staged import StagedModel, require_confidence
from jaxeff.typing import Array, Dtype


class EarlyExitNet(ConvNet):
    """A `ConvNet` with linear classifiers of the channel means after some stages.

    ``__call__`` returns the logits of the final head.

    Attributes:
      exits: stages with an exit, ascending.
      exit_heads: the heads, called like blocks.
    """

    exits: tuple[int, ...] = ()
    exit_heads: tuple[nn.Module, ...] = ()

    def segment(self, x: Array, number: int, *, train: bool = False) -> tuple[Array, Array]:
        """Runs the layers between two exits.

        Args:
          x: images ``[batch, rows, columns, channels]`` for the first segment, then the previous
            map.
          number: of the exit at the end; ``len(exits)`` is the final head.
          train: training or evaluation.

        Returns:
          logits ``[batch, outputs]`` and the map at the exit.
        """
        if number == 0:
            x = self.stem(jnp.asarray(x, self.dtype), train=train)
        ends = (*self.exits, len(self.stages) - 1)
        first = ends[number - 1] + 1 if number else 0
        for stage in range(first, ends[number] + 1):
            x = self.stage(stage, x, train=train)
        head = (*self.exit_heads, self.head)[number]
        return head(x, train=train), x

    def every_exit(self, inputs: Array, *, train: bool = False) -> Array:
        """Returns the logits of all exits, ``[exits + 1, batch, outputs]``."""
        x, exits = inputs, []
        for number in range(len(self.exits) + 1):
            logits, x = self.segment(x, number, train=train)
            exits.append(logits)
        return jnp.stack(exits)

    def __call__(self, inputs: Array, *, train: bool = False) -> Array:
        """See `ConvNet`; initialisation creates the exits' parameters too."""
        if self.is_initializing():
            self.every_exit(inputs, train=train)
        return super().__call__(inputs, train=train)


@MODELS.register("early_exit")
def early_exit(
    *,
    num_outputs: int,
    backbone: Mapping[str, Any],
    exits: Sequence[int] = (0, 1),
    axis_name: str | None = None,
    dtype: Dtype = jnp.float32,
) -> EarlyExitNet:
    """Builds an `EarlyExitNet`.

    Args:
      num_outputs: classes.
      backbone: name and fields of a convolutional model.
      exits: stages with an exit, from 0; the last stage has the final head.
      axis_name: mapped axis over which the backbone's batch statistics are averaged.
      dtype: of the exits.

    Raises:
      ConfigError: a backbone that is not convolutional, or stages that it does not have.
    """
    inner = {**backbone, "axis_name": axis_name} if axis_name else backbone
    body = MODELS.build(inner, "model.backbone", num_outputs=num_outputs)
    if not isinstance(body, ConvNet):
        raise ConfigError(f"backbone: '{backbone['name']}' is not a convolutional network")
    exits = tuple(exits)
    if not exits or list(exits) != sorted(set(exits)) or exits[0] < 0:
        raise ConfigError(f"exits must be ascending numbers of stages, not {exits}")
    if exits[-1] > len(body.stages) - 2:
        raise ConfigError(
            f"exits {exits} must stand before the last of the backbone's {len(body.stages)} stages"
        )
    heads = tuple(Head(Ops.of(dtype, axis_name), num_outputs) for _ in exits)
    layers = (body.stem, body.stages, body.head)
    return EarlyExitNet(*layers, body.dtype, body.remat, body.references, exits, heads)


def early_exits(
    model: EarlyExitNet,
    variables: Mapping[str, Any],
    thresholds: Sequence[float] | None = None,
    *,
    score: str = "softmax response",
    **options: Any,
) -> StagedModel:
    """Returns a trained network as a `StagedModel`; inputs answered at an exit skip the rest.

    Args:
      model: the network.
      variables: its parameters and other collections.
      thresholds: for each exit, minus the confidence below which inputs continue; by default all
        inputs stop at the first exit until `StagedModel.plan` is called.
      score: name of the confidence, see `jaxeff.models.staged.confident_stage`.
      **options: of `StagedModel`.

    Raises:
      ConfigError: not an `EarlyExitNet`, or an unknown confidence.
    """
    confident = require_confidence(score)
    require_linen(model, "a network with exits")
    if not isinstance(model, EarlyExitNet):
        raise ConfigError(f"early_exits needs an EarlyExitNet, not {type(model).__name__}")

    def stage(number: int) -> Stage:
        def call(variables: Any, payload: Any) -> tuple[Array, Array, Any]:
            x = payload["inputs"]
            segment: Any = model.apply(variables, x, number, method="segment")
            logits, x = segment
            return logits, -confident(logits.astype(jnp.float32)), {"inputs": x}

        return Stage(call, variables)

    stages = [stage(number) for number in range(len(model.exits) + 1)]
    return StagedModel(stages, thresholds or (np.inf,) * len(model.exits), **options)
