"""Outputs of a network on a batch, for distillation."""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct

from jaxeff.errors import ConfigError
from jaxeff.typing import Array


@flax.struct.dataclass
class Seen:
    """Logits and features of a network on a batch.

    Attributes:
      logits: ``[batch, classes]``.
      features: by name, see `jaxeff.models.base.apply_with_features`; empty if only logits are
        cached.
    """

    logits: Array
    features: Mapping[str, Array]

    def read(self, name: str) -> Array:
        """Returns "logits" or the named features.

        Raises:
          ConfigError: they are not there.
        """
        if name == "logits":
            return self.logits
        if name not in self.features:
            there = ", ".join(["logits", *self.features])
            raise ConfigError(
                f"a distillation loss or gate needs the features '{name}', but the network has "
                f"only: {there}; choose another one, or set config.algorithm.cache=False"
            )
        return self.features[name]
