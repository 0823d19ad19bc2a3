"""Values of a field at the cells ahead of and behind every cell."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxeff.ops.platforms import has_cpu_form
from jaxeff.typing import Array


@has_cpu_form("jaxeff.ops.cpu.neighbours")
def neighbours(
    h: Array, axis: int, distance: int, boundary: str, odd: bool = False
) -> tuple[Array, Array]:
    """Returns the arrays whose entries i are h's entries ``i + distance`` and ``i - distance``.

    Args:
      h: the field.
      axis: along which.
      distance: in cells, below h's length.
      boundary: "periodic" or "reflecting" (even extension about the walls).
      odd: whether a reflecting boundary uses the odd extension instead.
    """
    if boundary == "periodic":
        return jnp.roll(h, -distance, axis), jnp.roll(h, distance, axis)
    size, sign = h.shape[axis], -1 if odd else 1
    first, last, all_but_first, all_but_last = (
        jax.lax.slice_in_dim(h, start, end, axis=axis)
        for start, end in (
            (0, distance),
            (size - distance, size),
            (distance, size),
            (0, size - distance),
        )
    )
    ahead = jnp.concatenate((all_but_first, sign * jnp.flip(last, axis)), axis)
    behind = jnp.concatenate((sign * jnp.flip(first, axis), all_but_last), axis)
    return ahead, behind
