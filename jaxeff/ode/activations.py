"""Activations of column blocks, with derivatives written in terms of the activated values.

Knowing the derivative from the output alone lets a backward pass keep the activated values and
throw the pre-activations away.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.typing import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
}

_FUNCTIONS = {**ACTIVATIONS, "identity": lambda a: a}
_SLOPES: dict[str, Callable[[Array], Array]] = {
    "tanh": lambda t: 1.0 - t * t,
    "relu": lambda t: (t > 0).astype(t.dtype),
    "sigmoid": lambda t: t * (1.0 - t),
    "identity": jnp.ones_like,
}


def _blockwise(functions: list[Callable[[Array], Array]], a: Array) -> Array:
    if len(functions) == 1:
        return functions[0](a)
    parts = jnp.split(a, len(functions), axis=-1)
    return jnp.concatenate([f(p) for f, p in zip(functions, parts, strict=True)], axis=-1)


def _row(values: list[float], width: int, dtype) -> np.ndarray:
    return np.repeat(np.asarray(values, dtype), width // len(values))


def apply(names: tuple[str, ...], a: Array) -> Array:
    """Applies the named activations to equally wide column blocks of ``a`` ``[..., units]``.

    A mixture of sigmoid and tanh blocks is one tanh over all columns, by
    ``sigmoid(a) = (1 + tanh(a / 2)) / 2``: a single vectorised pass instead of one per block.
    """
    if len(set(names)) > 1 and set(names) <= {"tanh", "sigmoid"}:
        scale = _row([0.5 if n == "sigmoid" else 1.0 for n in names], a.shape[-1], a.dtype)
        shift = _row([0.5 if n == "sigmoid" else 0.0 for n in names], a.shape[-1], a.dtype)
        return jnp.tanh(a * scale) * scale + shift
    if len(set(names)) == 1:
        return _FUNCTIONS[names[0]](a)
    return _blockwise([_FUNCTIONS[n] for n in names], a)


def slope(names: tuple[str, ...], t: Array) -> Array:
    """Returns the derivatives of the activations, given the activated values ``t``."""
    if len(set(names)) > 1 and set(names) <= {"tanh", "sigmoid"}:
        # 1 - t^2 for tanh, t - t^2 for sigmoid.
        first = _row([0.0 if n == "sigmoid" else 1.0 for n in names], t.shape[-1], t.dtype)
        second = _row([1.0 if n == "sigmoid" else 0.0 for n in names], t.shape[-1], t.dtype)
        return first + t * (second - t)
    if len(set(names)) == 1:
        return _SLOPES[names[0]](t)
    return _blockwise([_SLOPES[n] for n in names], t)
