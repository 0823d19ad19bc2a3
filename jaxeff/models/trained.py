"""A model with the variables that a training gave it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model that was trained before, for an algorithm that builds on it.

    Attributes:
      model: the Flax module.
      variables: its parameters and other collections.
      experience: what it and those that it builds on have seen, see `jaxeff.train.leakage`.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    experience: tuple[Any, ...] = ()
