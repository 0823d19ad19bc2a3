"""What distillation sees of a network on a batch."""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct

from jaxeff.errors import ConfigError
from jaxeff.typing import Array


@flax.struct.dataclass
class Seen:
    """Answers and features of a network on a batch.

    Attributes:
      logits: ``[batch, classes]``.
      features: by name, see `jaxeff.models.base.apply_with_features`; empty where only the answers
        are kept.
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
                f"a distillation loss or gate needs the features '{name}' of a network that shows "
                f"only: {there}; choose another one, or set config.algorithm.cache=False"
            )
        return self.features[name]
