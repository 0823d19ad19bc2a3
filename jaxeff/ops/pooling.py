"""Means of images."""

from __future__ import annotations

import jax.numpy as jnp

from jaxeff.ops.platforms import has_cpu_form
from jaxeff.typing import Array


@has_cpu_form("jaxeff.ops.cpu.pooling")
def pixel_means(x: Array) -> Array:
    """Returns the means over the pixels of ``[..., rows, columns, channels]``, ``[..., channels]``.

    Sums are in single precision at least.
    """
    return jnp.mean(x, (-3, -2))
