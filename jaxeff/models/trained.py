"""A trained model with its variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model that an algorithm builds on.

    Attributes:
      model: the Flax module.
      variables: its parameters and other collections.
      experience: the data that it and its own prerequisites have used, see `jaxeff.train.leakage`.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    experience: tuple[Any, ...] = ()
