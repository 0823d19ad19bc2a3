"""Routers: small networks on the base's logits and features that score each query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.registry import Registry
from jaxeff.selective.features import confidence_features
from jaxeff.typing import Array

ROUTERS = Registry("router")


@ROUTERS.register("slim")
class SlimRouter(nn.Module):
    """A router of at most 20,000 parameters, without batch normalisation.

    Inputs are the base's normalised and projected features, its entropy and its margins; one hidden
    layer follows. Scores do not depend on the other inputs of a batch.

    Attributes:
      hidden: width of the hidden layer.
      projection: width to which the base's features are projected; less if that would need more
        than 16,384 weights.
      top: number of the base's largest probabilities in the margins.
    """

    hidden: int = 32
    projection: int = 16
    top: int = 10

    @nn.compact
    def __call__(self, logits: Array, features: Array, *, train: bool = False) -> Array:
        """Maps logits ``[batch, classes]`` and features ``[batch, width]`` to ``[batch]``."""
        logits, features = logits.astype(jnp.float32), features.astype(jnp.float32)
        width = max(1, min(self.projection, 2**14 // features.shape[-1]))
        plain = nn.LayerNorm(use_scale=False, use_bias=False)(features)
        projected = nn.Dense(width, name="projection")(plain)
        x = jnp.concatenate([confidence_features(logits, self.top), projected], axis=-1)
        x = jax.nn.relu(nn.LayerNorm(name="norm")(nn.Dense(self.hidden, name="hidden")(x)))
        return nn.Dense(1, name="score")(x)[:, 0]


@ROUTERS.register("released")
class ReleasedRouter(nn.Module):
    """The router of the authors' code: seven linear layers with batch normalisation.

    Attributes:
      top: number of the base's largest probabilities in the margins.
      axis_name: mapped axis over which batch statistics are averaged; None: not averaged.
    """

    top: int = 10
    axis_name: str | None = None

    @nn.compact
    def __call__(self, logits: Array, features: Array, *, train: bool = False) -> Array:
        """Maps logits ``[batch, classes]`` and features ``[batch, width]`` to ``[batch]``."""
        logits, x = logits.astype(jnp.float32), features.astype(jnp.float32)

        def layers(x: Array, *widths: int) -> Array:
            for width in widths:
                x = nn.Dense(width)(x)
                norm = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name or None)
                x = jax.nn.relu(norm(x))
            return x

        confidence = confidence_features(logits, self.top, released=True)
        classes = logits.shape[-1]
        x = jnp.concatenate([confidence, layers(x, 128, 64)], axis=-1)
        return nn.Dense(1, name="score")(layers(x, classes, 64, classes))[:, 0]


def build(spec: Mapping[str, Any]) -> nn.Module:
    """Builds the router of a config section; raises `ConfigError` for an unknown name or field."""
    return ROUTERS.build(spec, "model.router")
