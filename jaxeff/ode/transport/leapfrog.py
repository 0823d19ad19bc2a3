"""The published scheme: leapfrog in time with DuFort-Frankel diffusion."""

from __future__ import annotations

import functools

import jax

from jaxeff.errors import ConfigError
from jaxeff.ode.transport.equation import (
    COLUMNS,
    ROWS,
    Coefficients,
    check_grid,
    full,
    is_zero,
    precise,
)
from jaxeff.ops.neighbours import neighbours
from jaxeff.ops.rows import rowwise
from jaxeff.typing import Array

STARTS = ("repeat", "euler")


def leapfrog(
    h: Array,
    coefficients: Coefficients,
    source: Array | float = 0.0,
    *,
    num_steps: int = 1,
    dt: float = 0.2,
    spacing: tuple[int, int] = (1, 1),
    boundary: str = "periodic",
    start: str = "repeat",
    before: Array | None = None,
) -> Array:
    r"""Steps by leapfrog in time, central advection and DuFort-Frankel diffusion.

    With :math:`A_x = u\,dt/dx`, :math:`B_x = D_x dt/dx^2` (y likewise), :math:`S = 2B_x + 2B_y` and
    :math:`E = (u_x + v_y)dt`:

    .. math::
       (1+S) h^{k+1}_{ij} = (1-S) h^{k-1}_{ij} - 2E h^k_{ij} + 2\,dt f_{ij}
         &+ (2B_x - A_x) h^k_{i+1,j} + (2B_x + A_x) h^k_{i-1,j} \\
         &+ (2B_y - A_y) h^k_{i,j+1} + (2B_y + A_y) h^k_{i,j-1}

    Explicit, stable while ``(A_x^2/B_x + A_y^2/B_y)(B_x + B_y) <= 1`` (see `stability_number`).
    Diffusivities are outside the derivative, so diffusion conserves the sum over the grid only if
    they are constant; advection always conserves it.

    Args:
      h: field ``[..., rows, columns, channels]``.
      coefficients: of the equation.
      source: f, broadcastable to h.
      num_steps: K, at least 1.
      dt: time step, a number or a scalar array.
      spacing: grid spacing along both axes, also the distance in cells to the neighbours.
      boundary: "periodic", or "reflecting": walls without flux, h even and the velocity odd about
        them.
      start: how the field one step before h is obtained: "repeat" uses ``before`` (or h), as
        published, which is first order in dt; "euler" makes the first step by forward Euler,
        which is second order and does not excite the alternating mode.
      before: field one step before h, for ``start="repeat"``; h if None.

    Raises:
      ConfigError: unknown boundary or start, steps or spacing below 1, a spacing wider than the
        grid, or ``before`` with ``start="euler"``.
      ValueError: h has fewer than three axes.
    """
    check_grid(h, boundary, num_steps, spacing)
    for axis, distance in zip((ROWS, COLUMNS), spacing, strict=True):
        if distance >= h.shape[axis]:
            raise ConfigError(
                f"a spacing of {distance} does not fit a grid of {h.shape[axis]} cells; use larger "
                "images or a smaller spacing"
            )
    if start not in STARTS:
        raise ConfigError(f"start must be one of {', '.join(STARTS)}, not {start!r}")
    if start == "euler" and before is not None:
        raise ConfigError("before has no effect with start='euler', which computes the first step")
    steps = functools.partial(
        _steps, num_steps=num_steps, spacing=spacing, boundary=boundary, start=start
    )
    images = h[None] if h.ndim == 3 else h
    before = images if before is None else before
    last: Array = rowwise(steps, None, images, before, source, dt, *coefficients)
    return last.reshape(h.shape)


def _steps(
    _: None,
    h: Array,
    before: Array,
    source: Array | float,
    dt: float,
    *coefficients: Array | float,
    num_steps: int,
    spacing: tuple[int, int],
    boundary: str,
    start: str,
) -> Array:
    dtype, h = h.dtype, precise(h)
    before = full(before, h)
    source, u, v, diffusion_x, diffusion_y = (
        full(value, h) if hasattr(value, "ndim") else value for value in (source, *coefficients)
    )
    # Per axis the weights of the cells ahead and behind; the divergence E and the sum S of the
    # weights belong to the centre.
    weights: list[tuple[Array | float, Array | float, int, int]] = []
    total_weight: Array | float = 0.0
    divergence: Array | float = 0.0
    for velocity, diffusion, axis, distance in (
        (u, diffusion_x, ROWS, spacing[0]),
        (v, diffusion_y, COLUMNS, spacing[1]),
    ):
        a, b = velocity * (dt / distance), diffusion * (dt / distance**2)
        total_weight = total_weight + 2 * b
        if not is_zero(velocity):
            ahead, behind = neighbours(full(velocity, h), axis, distance, boundary, odd=True)
            divergence = divergence + (ahead - behind) * (dt / (2 * distance))
        if not (is_zero(velocity) and is_zero(diffusion)):
            weights.append((2 * b - a, 2 * b + a, axis, distance))

    def centred(h: Array) -> Array:
        """All terms of the update except those of the field one step before."""
        total = 2 * dt * source - 2 * divergence * h
        for weight_ahead, weight_behind, axis, distance in weights:
            ahead, behind = neighbours(h, axis, distance, boundary)
            total = total + weight_ahead * ahead + weight_behind * behind
        return total

    if start == "euler":
        before, h = h, h + 0.5 * (centred(h) - 2 * total_weight * h)
        num_steps -= 1

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        h, before = state
        new = ((1 - total_weight) * before + centred(h)) / (1 + total_weight)
        return (new, h), None

    if num_steps == 1:
        return step((h, before), None)[0][0].astype(dtype)
    return jax.lax.scan(step, (h, before), length=num_steps)[0][0].astype(dtype)
