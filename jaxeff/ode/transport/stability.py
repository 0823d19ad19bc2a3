"""Stability of the leapfrog scheme."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.ode.transport.equation import Coefficients
from jaxeff.typing import Array


def stability_number(
    coefficients: Coefficients, dt: float = 0.2, spacing: tuple[int, int] = (1, 1)
) -> Array:
    """Returns the stability number, of the coefficients' broadcast shape; stable up to 1.

    From von Neumann's analysis for constant coefficients: ``(Ax^2/Bx + Ay^2/By)(Bx + By)``, or
    ``(|Ax| + |Ay|)^2`` where there is no diffusion. Infinity where one axis has diffusion and the
    other has velocity without diffusion: there is no such limit then.
    """
    u, v, diffusion_x, diffusion_y = jnp.broadcast_arrays(*map(jnp.asarray, coefficients))
    ax, ay = abs(u) * (dt / spacing[0]), abs(v) * (dt / spacing[1])
    bx, by = diffusion_x * (dt / spacing[0] ** 2), diffusion_y * (dt / spacing[1] ** 2)

    def share(a: Array, b: Array) -> Array:
        return jnp.where(a == 0, 0.0, a * a / b)

    return jnp.where(
        (bx == 0) & (by == 0), (ax + ay) ** 2, (share(ax, bx) + share(ay, by)) * (bx + by)
    )


def growth(coefficients: Coefficients, dt: float = 0.2, spacing: tuple[int, int] = (1, 1)) -> Array:
    """Returns the largest amplification of a wave per step of `leapfrog`, of the same shape.

    The maximum over waves with a phase of multiples of 45 degrees per cell, for locally constant
    coefficients; 1 where `stability_number` is within its limit. Where that number is infinite (no
    diffusion along one axis), a slow wave may still grow very slightly.
    """
    u, v, diffusion_x, diffusion_y = jnp.broadcast_arrays(*map(jnp.asarray, coefficients))
    ax, ay = u * (dt / spacing[0]), v * (dt / spacing[1])
    bx, by = diffusion_x * (dt / spacing[0] ** 2), diffusion_y * (dt / spacing[1] ** 2)
    spread = 2 * (bx + by)

    def factor(largest: Array, turns: Any) -> tuple[Array, None]:
        a, b = turns
        # The scheme's characteristic polynomial: (1 + S) g^2 - 2 z g - (1 - S) = 0.
        z = 2 * (bx * jnp.cos(a) + by * jnp.cos(b)) - 1j * (ax * jnp.sin(a) + ay * jnp.sin(b))
        root = jnp.sqrt(z * z + (1 - spread * spread))
        larger_root = jnp.maximum(abs(z + root), abs(z - root)) / (1 + spread)
        return jnp.maximum(largest, larger_root), None

    eighths = np.pi / 4 * np.arange(8, dtype=spread.dtype)
    turns = np.stack(np.meshgrid(eighths[:5], eighths), -1).reshape(-1, 2)
    return jax.lax.scan(factor, jnp.zeros_like(spread), turns)[0]
