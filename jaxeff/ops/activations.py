"""Activations between convolutions."""

from __future__ import annotations

import jax

from jaxeff.ops.platforms import current_platform
from jaxeff.typing import Array


def elu(x: Array) -> Array:
    """Returns ``x`` where it is positive and ``e^x - 1`` elsewhere, of any shape.

    XLA's compiler for TPUs computes an activation within the convolution that reads it, once per
    tap of the kernel; ``expm1`` is long, and compiling that takes several times as long as the
    convolutions. There the values are kept apart from what reads them.
    """
    y = jax.nn.elu(x)
    return jax.lax.optimization_barrier(y) if current_platform() == "tpu" else y
