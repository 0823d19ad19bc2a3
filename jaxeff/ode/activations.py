"""Activations, with derivatives written in terms of the activated values.

With the derivative as a function of the output, a backward pass needs only the activated values and
can drop the pre-activations.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.registry import closest
from jaxeff.typing import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
}

_FUNCTIONS: dict[str, Callable[[Array], Array]] = {**ACTIVATIONS, "identity": lambda a: a}
_SLOPES: dict[str, Callable[[Array], Array]] = {
    "tanh": lambda t: 1.0 - t * t,
    "relu": lambda t: (t > 0).astype(t.dtype),
    "sigmoid": lambda t: t * (1.0 - t),
    "identity": jnp.ones_like,
}

Blocks = tuple[Array, ...]


def apply(names: tuple[str, ...], a: Blocks) -> Blocks:
    """Applies the named activations to the blocks of a pre-activation.

    Raises:
      ConfigError: an unknown name.
    """
    for name in names:
        if name not in _FUNCTIONS:
            raise ConfigError(f"unknown activation '{name}'{closest(name, _FUNCTIONS)}")
    return tuple(_FUNCTIONS[name](block) for name, block in zip(names, a, strict=True))


def backward(names: tuple[str, ...], t: Blocks, cotangents: Blocks) -> Blocks:
    """Returns the cotangents of the pre-activation, given the activated values ``t``."""
    return tuple(
        cotangent * _SLOPES[name](block)
        for name, block, cotangent in zip(names, t, cotangents, strict=True)
    )
