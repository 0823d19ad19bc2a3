"""The coefficients of the equation, and helpers that its solvers share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.ops.precision import wide
from jaxeff.typing import Array

BOUNDARIES = ("periodic", "reflecting")
ROWS, COLUMNS = -3, -2


class Coefficients(NamedTuple):
    """Coefficients of the equation, each broadcastable to the grid; 0.0 leaves the term out.

    Attributes:
      u: velocity along the rows' axis, cells per unit of time at unit spacing.
      v: velocity along the columns' axis.
      diffusion_x: non-negative diffusivity along the rows' axis.
      diffusion_y: non-negative diffusivity along the columns' axis.
    """

    u: Any = 0.0
    v: Any = 0.0
    diffusion_x: Any = 0.0
    diffusion_y: Any = 0.0


def check_grid(h: Array, boundary: str, num_steps: int, spacing: tuple[int, int]) -> None:
    """Raises an error for a field or options that no scheme supports."""
    if h.ndim < 3:
        raise ValueError(f"the field must be [..., rows, columns, channels], not {h.shape}")
    if boundary not in BOUNDARIES:
        raise ConfigError(f"boundary must be one of {', '.join(BOUNDARIES)}, not {boundary!r}")
    if num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, not {num_steps}")
    if len(spacing) != 2 or not all(isinstance(d, int) and d >= 1 for d in spacing):
        raise ConfigError(f"spacing must be two whole numbers of at least 1, not {spacing}")


def precise(value: Any) -> Any:
    """Returns an array in at least single precision; Python numbers are unchanged."""
    return value.astype(wide(value.dtype)) if hasattr(value, "astype") else value


def full(value: Array | float, h: Array) -> Array:
    """Returns a coefficient or source at every cell, in the field's shape and type."""
    return jnp.broadcast_to(jnp.asarray(value, h.dtype), h.shape)


def is_zero(value: Array | float) -> bool:
    """Returns whether a coefficient is the constant 0; known while tracing."""
    return isinstance(value, int | float) and value == 0
