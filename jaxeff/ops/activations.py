"""Activations between convolutions."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxeff.ops.platforms import current_platform
from jaxeff.typing import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "swish": jax.nn.swish,
    "hard_swish": jax.nn.hard_swish,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda x: x,
}


def elu(x: Array) -> Array:
    """Returns ``x`` where it is positive and ``e^x - 1`` elsewhere, of any shape.

    XLA's compiler for TPUs computes an activation within the convolution that reads it, once per
    tap of the kernel; ``expm1`` is long, and compiling that takes several times as long as the
    convolutions. There the values are kept apart from what reads them, and slopes come from them.
    """
    return _apart(x) if current_platform() == "tpu" else jax.nn.elu(x)


@jax.custom_jvp
def _apart(x: Array) -> Array:
    y: Array = jax.lax.optimization_barrier(jax.nn.elu(x))
    return y


@_apart.defjvp
def _apart_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = _apart(*primals)
    return y, (jnp.minimum(y, 0) + 1) * tangents[0]
