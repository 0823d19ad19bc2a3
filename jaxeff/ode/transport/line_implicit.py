"""Implicit steps along rows and columns alternately: conservative and stable for any step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxeff.ode.transport.equation import COLUMNS, ROWS, Coefficients, check_grid, full, precise
from jaxeff.ode.transport.tridiagonal import solve_tridiagonal
from jaxeff.typing import Array


def line_implicit(
    h: Array,
    coefficients: Coefficients,
    source: Array | float = 0.0,
    *,
    num_steps: int = 1,
    dt: float = 0.2,
    spacing: tuple[int, int] = (1, 1),
    boundary: str = "periodic",
) -> Array:
    r"""Steps by implicit Euler along the rows' axis, then along the columns', in flux form.

    Solves :math:`(1 - dt\,L_x)(1 - dt\,L_y) h^{k+1} = h^k + dt f`. The flux through the face
    between two cells is the mean of their diffusivities times the difference of h, less the face's
    velocity times h of the cell upwind; each :math:`L` is the difference of two fluxes. So the sum
    over the grid is conserved for any coefficients, every matrix is an M-matrix (a non-negative
    field stays non-negative for any step), and without velocity all values stay within the range of
    the field. First order in time.

    Arguments as for `leapfrog`; neighbours are adjacent cells whatever the spacing.

    Raises:
      ConfigError: unknown boundary, steps or spacing below 1.
      ValueError: h has fewer than three axes.
    """
    check_grid(h, boundary, num_steps, spacing)
    dtype, h = h.dtype, precise(h)
    u, v, diffusion_x, diffusion_y = (full(c, h) for c in coefficients)
    lines = [
        (_implicit_lines(d, velocity, axis, dt, distance, boundary), axis)
        for d, velocity, axis, distance in (
            (diffusion_x, u, ROWS, spacing[0]),
            (diffusion_y, v, COLUMNS, spacing[1]),
        )
    ]

    def step(h: Array, _: None) -> tuple[Array, None]:
        h = h + dt * precise(source)
        for (lower, diagonal, upper), axis in lines:
            rhs = jnp.moveaxis(h, axis, 0)
            h = jnp.moveaxis(solve_tridiagonal(lower, diagonal, upper, rhs), 0, axis)
        return h, None

    if num_steps == 1:
        return step(h, None)[0].astype(dtype)
    return jax.lax.scan(step, h, length=num_steps)[0].astype(dtype)


def _implicit_lines(
    diffusion: Array, velocity: Array, axis: int, dt: float, distance: int, boundary: str
) -> tuple[Array, Array, Array]:
    """Returns the three diagonals of ``1 - dt L``, lines along the first axis."""
    diffusion, velocity = (jnp.moveaxis(a, axis, 0) for a in (diffusion, velocity))
    # Faces between a cell and the next; the last one is periodic or a wall.
    spread = 0.5 * (diffusion + jnp.roll(diffusion, -1, 0)) * (dt / distance**2)
    wind = 0.5 * (velocity + jnp.roll(velocity, -1, 0)) * (dt / distance)
    if boundary == "reflecting":
        spread, wind = spread.at[-1].set(0.0), wind.at[-1].set(0.0)
    out_ahead = spread + jnp.maximum(wind, 0)  # flux out of a cell through the face ahead
    out_behind = spread + jnp.maximum(-wind, 0)  # flux back from the next cell
    diagonal = 1 + out_ahead + jnp.roll(out_behind, 1, 0)
    return -jnp.roll(out_ahead, 1, 0), diagonal, -out_behind
