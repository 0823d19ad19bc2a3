r"""Advection, diffusion and sources on a grid: the solvers behind the Global layer.

Every channel c of a feature map follows its own scalar equation, without any mixing of channels:

.. math::
   \partial_t h + \partial_x (u h) + \partial_y (v h)
   = D_x \partial_{xx} h + D_y \partial_{yy} h + f

x is the axis of the rows and y that of the columns of arrays ``[..., rows, columns, channels]``.
Three ways to step it:

* `leapfrog`: central differences with DuFort-Frankel diffusion, the published scheme;
* `spectral`: exact in time for coefficients that are constant over the grid;
* `line_implicit`: a tridiagonal solve per row and column, conservative and stable for any step.

All compute in single precision at least, so that sums over steps are not rounded term by term, and
return the type of the field.

Reference:
  Kag, Saligrama, "Condensing CNNs with Partial Differential Equations", CVPR 2022; discretisation
  as in the authors' code. `spectral` and `line_implicit` are this package's own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.ops.blocks import apart, over_blocks
from jaxeff.ops.neighbours import neighbours
from jaxeff.ops.precision import wide
from jaxeff.typing import Array

BOUNDARIES = ("periodic", "reflecting")
STARTS = ("repeat", "euler")
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
    Diffusion stands outside the derivative, so that it conserves the sum over the grid only where
    it is constant; advection always conserves it.

    Args:
      h: field ``[..., rows, columns, channels]``.
      coefficients: of the equation. Each may also be a `jax.tree_util.Partial` of any part of h,
        ``[n, rows, columns, channels]``, which saves its values the way through a CPU's memory.
      source: f, broadcastable to h.
      num_steps: K, at least 1.
      dt: time step, a number or a scalar array.
      spacing: grid spacing along both axes, also the distance in cells to the neighbours.
      boundary: "periodic", or "reflecting": walls that nothing passes, h even and the velocity odd
        about them.
      start: where the field before the first comes from: "repeat" takes ``before`` (or h), as
        published, which is first order in dt; "euler" makes the first step by forward Euler, which
        is second order and leaves out the alternating mode.
      before: field one step before h, for ``start="repeat"``; h if None.

    Raises:
      ConfigError: unknown boundary or start, steps or spacing below 1, a spacing wider than the
        grid, or ``before`` with ``start="euler"``.
      ValueError: h has fewer than three axes.
    """
    _check(h, boundary, num_steps, spacing)
    for axis, distance in zip((ROWS, COLUMNS), spacing, strict=True):
        if distance >= h.shape[axis]:
            raise ConfigError(
                f"a spacing of {distance} does not fit a grid of {h.shape[axis]} cells; use larger "
                "images or a smaller spacing"
            )
    if start not in STARTS:
        raise ConfigError(f"start must be one of {', '.join(STARTS)}, not {start!r}")
    if start == "euler" and before is not None:
        raise ConfigError("before has no use with start='euler', which makes its own first step")
    steps = functools.partial(
        _leapfrog, num_steps=num_steps, spacing=spacing, boundary=boundary, start=start
    )
    fixed = isinstance(dt, int | float)  # else an array, perhaps traced
    if start == "repeat" and before is None:
        before = h
    given: tuple[Any, ...] = (h, before, source, *coefficients)
    arrays = [_like(x, h).reshape(-1, *h.shape[-3:]) for x in given if _is_array(x)]

    def of_block(skip, shared, *block):
        functions, step = shared
        left = iter(block)
        h, before, source, *c = (next(left) if _is_array(x) else x for x in given)
        found = apart(skip, lambda h: [f(h) for f in functions], h)
        by_function = dict(zip(map(id, given_functions), found, strict=True))
        values = Coefficients(*(by_function[id(f)] if callable(f) else f for f in c))
        return steps(skip, h, before, source, values, dt=dt if fixed else step)

    given_functions = list({id(f): f for f in coefficients if callable(f)}.values())
    shared = given_functions, None if fixed else jnp.asarray(dt)
    return over_blocks(of_block, shared, *arrays).reshape(h.shape)


def _leapfrog(
    skip: Array | None,
    h: Array,
    before: Array,
    source: Array | float,
    coefficients: Coefficients,
    *,
    num_steps: int,
    dt: float,
    spacing: tuple[int, int],
    boundary: str,
    start: str,
) -> Array:
    """Steps fields ``[n, rows, columns, channels]``; see `leapfrog` and `apart`."""
    u, v, diffusion_x, diffusion_y = map(_precise, coefficients)
    source, dtype = _precise(source), h.dtype
    axes = ((u, diffusion_x, ROWS, spacing[0]), (v, diffusion_y, COLUMNS, spacing[1]))

    # Per axis the weights of the cells ahead and behind; the divergence and the sum of the weights
    # belong to the centre.
    weights: list[tuple[Array | float, Array | float, int, int]] = []
    spread: Array | float = 0.0
    divergence: Array | float = 0.0
    for velocity, diffusion, axis, distance in axes:
        a, b = velocity * (dt / distance), diffusion * (dt / distance**2)
        spread = spread + 2 * b
        if not _is_zero(velocity):
            full = jnp.broadcast_to(jnp.asarray(velocity, wide(dtype)), h.shape)
            ahead, behind = neighbours(skip, full, axis, distance, boundary, True)
            divergence = divergence + (ahead - behind) * (dt / (2 * distance))
        if not (_is_zero(velocity) and _is_zero(diffusion)):
            weights.append((2 * b - a, 2 * b + a, axis, distance))

    def change(h):
        """Everything but the field one step before."""
        total = 2 * dt * source - 2 * divergence * _precise(h)
        for weight_ahead, weight_behind, axis, distance in weights:
            ahead, behind = map(_precise, neighbours(skip, h, axis, distance, boundary))
            total = total + weight_ahead * ahead + weight_behind * behind
        return total

    if start == "euler":
        first = _precise(h) + 0.5 * (change(h) - 2 * spread * _precise(h))
        before, h, num_steps = h, first.astype(dtype), num_steps - 1

    def step(state, _):
        h, before = state
        new = ((1 - spread) * _precise(before) + change(h)) / (1 + spread)
        return (new.astype(dtype), h), None

    if num_steps == 1:
        return step((h, before), None)[0][0]
    return jax.lax.scan(step, (h, before), length=num_steps)[0][0]


def stability_number(
    coefficients: Coefficients, dt: float = 0.2, spacing: tuple[int, int] = (1, 1)
) -> Array:
    """Returns a number of the broadcast coefficients' shape; `leapfrog` is stable up to 1.

    From von Neumann's analysis for constant coefficients: ``(Ax^2/Bx + Ay^2/By)(Bx + By)``, or
    ``(|Ax| + |Ay|)^2`` where there is no diffusion. An axis with a velocity but no diffusion beside
    one with diffusion has no such limit and gives infinity.
    """
    u, v, diffusion_x, diffusion_y = jnp.broadcast_arrays(*map(jnp.asarray, coefficients))
    ax, ay = abs(u) * (dt / spacing[0]), abs(v) * (dt / spacing[1])
    bx, by = diffusion_x * (dt / spacing[0] ** 2), diffusion_y * (dt / spacing[1] ** 2)

    def share(a, b):
        return jnp.where(a == 0, 0.0, a * a / b)

    return jnp.where(
        (bx == 0) & (by == 0), (ax + ay) ** 2, (share(ax, bx) + share(ay, by)) * (bx + by)
    )


def growth(coefficients: Coefficients, dt: float = 0.2, spacing: tuple[int, int] = (1, 1)) -> Array:
    """Returns the largest factor by which a step of `leapfrog` multiplies a wave, of that shape.

    Of all waves of whole eighths of a turn per cell, for coefficients that are constant around a
    cell; 1 where `stability_number` is within its limit. Where that number is infinite, for want of
    diffusion along one axis, a slow wave may still grow by next to nothing.
    """
    u, v, diffusion_x, diffusion_y = jnp.broadcast_arrays(*map(jnp.asarray, coefficients))
    ax, ay = u * (dt / spacing[0]), v * (dt / spacing[1])
    bx, by = diffusion_x * (dt / spacing[0] ** 2), diffusion_y * (dt / spacing[1] ** 2)
    spread = 2 * (bx + by)

    def factor(largest, turns):
        a, b = turns
        # The scheme's characteristic polynomial: (1 + S) g^2 - 2 z g - (1 - S) = 0.
        z = 2 * (bx * jnp.cos(a) + by * jnp.cos(b)) - 1j * (ax * jnp.sin(a) + ay * jnp.sin(b))
        root = jnp.sqrt(z * z + (1 - spread * spread))
        found = jnp.maximum(abs(z + root), abs(z - root)) / (1 + spread)
        return jnp.maximum(largest, found), None

    eighths = np.pi / 4 * np.arange(8, dtype=spread.dtype)
    turns = np.stack(np.meshgrid(eighths[:5], eighths), -1).reshape(-1, 2)
    return jax.lax.scan(factor, jnp.zeros_like(spread), turns)[0]


def spectral(
    h: Array,
    coefficients: Coefficients,
    source: Array | float = 0.0,
    *,
    time: float = 0.2,
    spacing: tuple[int, int] = (1, 1),
    boundary: str = "periodic",
) -> Array:
    r"""Steps over ``time`` at once, exactly, by the exponential of the operator's spectrum.

    With the symbol of the second-order stencil:

    .. math::
       \lambda &= -4 D_x \sin^2(a/2)/dx^2 - 4 D_y \sin^2(b/2)/dy^2
       - i(u \sin a/dx + v \sin b/dy) \\
       h(T) &= F^{-1}[e^{\lambda T} F h + T \varphi_1(\lambda T) F f],
       \quad \varphi_1(z) = (e^z - 1)/z

    Stable for any time, and every output depends on every input. Periodic grids take a Fourier
    transform, reflecting ones a cosine transform as two small matrix products.

    Args:
      h: field ``[..., rows, columns, channels]``.
      coefficients: constant over the grid: scalars or ``[..., 1, 1, channels]``.
      source: f, broadcastable to h.
      time: how far to go, T.
      spacing: grid spacing along both axes; neighbours are adjacent cells whatever it is.
      boundary: "periodic", or "reflecting" (without velocity).

    Raises:
      ConfigError: unknown boundary, a spacing below 1, or a velocity with reflecting boundaries.
      ValueError: coefficients that vary over the grid, or h with fewer than three axes.
    """
    _check(h, boundary, 1, spacing)
    for name, value in coefficients._asdict().items():
        shape = jnp.shape(value)
        if any(n != 1 for n in shape[ROWS:-1]) or (len(shape) == 2 and shape[0] != 1):
            raise ValueError(
                f"the spectral step needs coefficients that are constant over the grid, but {name} "
                f"has the shape {shape}; use 'line_implicit' or 'leapfrog'"
            )
    u, v, diffusion_x, diffusion_y = map(_precise, coefficients)
    rows, columns = h.shape[ROWS], h.shape[COLUMNS]
    dtype, h = h.dtype, _precise(h)
    if boundary == "reflecting":
        if not (_is_zero(u) and _is_zero(v)):
            raise ConfigError("the spectral step with reflecting boundaries takes no velocity")
        a = jnp.pi * jnp.arange(rows, dtype=h.dtype)[:, None, None] / rows
        b = jnp.pi * jnp.arange(columns, dtype=h.dtype)[:, None] / columns
        to_rows, to_columns = (jnp.asarray(_cosines(n), h.dtype) for n in (rows, columns))

        def forward(x):
            return jnp.einsum("pi,qj,...ijc->...pqc", to_rows, to_columns, x)

        def inverse(x):
            return jnp.einsum("pi,qj,...pqc->...ijc", to_rows, to_columns, x)

        drift = jnp.zeros((), h.dtype)
    else:
        a = 2 * jnp.pi * jnp.fft.fftfreq(rows, dtype=h.dtype)[:, None, None]
        b = 2 * jnp.pi * jnp.fft.rfftfreq(columns, dtype=h.dtype)[:, None]

        def forward(x):
            return jnp.fft.rfft2(x, axes=(ROWS, COLUMNS))

        def inverse(x):
            return jnp.fft.irfft2(x, s=(rows, columns), axes=(ROWS, COLUMNS))

        drift = 1j * (u * jnp.sin(a) / spacing[0] + v * jnp.sin(b) / spacing[1])
    decay = 4 * (
        diffusion_x * jnp.sin(a / 2) ** 2 / spacing[0] ** 2
        + diffusion_y * jnp.sin(b / 2) ** 2 / spacing[1] ** 2
    )
    z = -time * (decay + drift)
    spectrum = jnp.exp(z) * forward(h)
    if not _is_zero(source):
        spectrum = spectrum + time * _phi1(z) * forward(_like(source, h))
    return inverse(spectrum).astype(dtype)


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
    field stays so for any step), and without velocity no value leaves the range of the field.
    First order in time.

    Arguments as for `leapfrog`; neighbours are adjacent cells whatever the spacing.

    Raises:
      ConfigError: unknown boundary, steps or spacing below 1.
      ValueError: h has fewer than three axes.
    """
    _check(h, boundary, num_steps, spacing)
    dtype, h = h.dtype, _precise(h)
    u, v, diffusion_x, diffusion_y = (_like(c, h) for c in coefficients)
    lines = [
        (_implicit_lines(d, velocity, axis, dt, distance, boundary), axis)
        for d, velocity, axis, distance in (
            (diffusion_x, u, ROWS, spacing[0]),
            (diffusion_y, v, COLUMNS, spacing[1]),
        )
    ]

    def step(h, _):
        h = h + dt * _precise(source)
        for (lower, diagonal, upper), axis in lines:
            rhs = jnp.moveaxis(h, axis, 0)
            h = jnp.moveaxis(solve_tridiagonal(lower, diagonal, upper, rhs), 0, axis)
        return h, None

    if num_steps == 1:
        return step(h, None)[0].astype(dtype)
    return jax.lax.scan(step, h, length=num_steps)[0].astype(dtype)


def solve_tridiagonal(lower: Array, diagonal: Array, upper: Array, rhs: Array) -> Array:
    """Solves tridiagonal systems, all at once, by elimination along the first axis.

    ``lower[0]`` is the corner beside ``diagonal[0]`` on the right (the first unknown's dependence
    on the last) and ``upper[-1]`` the other one; zeros there make the system an ordinary one.
    Gradients solve the transposed system, so nothing of the elimination is kept. Meant for matrices
    that need no pivoting, such as diagonally dominant ones.

    Args:
      lower: what multiplies the unknown before, ``[n, ...]``.
      diagonal: what multiplies the unknown itself, ``[n, ...]``.
      upper: what multiplies the unknown after, ``[n, ...]``.
      rhs: right-hand sides ``[n, ...]``.
    """
    size = rhs.shape[0]

    def matvec(x):
        return diagonal * x + lower * jnp.roll(x, 1, 0) + upper * jnp.roll(x, -1, 0)

    def solver(lower, upper):
        return lambda _, b: _cyclic_elimination(lower, diagonal, upper, b)

    if size == 1:
        return rhs / (diagonal + lower + upper)
    transposed_lower, transposed_upper = jnp.roll(upper, 1, 0), jnp.roll(lower, -1, 0)
    return jax.lax.custom_linear_solve(
        matvec,
        rhs,
        solve=solver(lower, upper),
        transpose_solve=solver(transposed_lower, transposed_upper),
    )


def _cyclic_elimination(lower, diagonal, upper, rhs):
    """Thomas' algorithm; Sherman and Morrison's formula takes care of the corners."""
    first_corner, last_corner = lower[0], upper[-1]
    # A = T + p q^T with p = (g, 0.., last corner) and q = (1, 0.., first corner / g).
    g = -diagonal[0]
    changed = diagonal.at[0].add(-g).at[-1].add(-first_corner * last_corner / g)
    p = jnp.zeros_like(rhs).at[0].set(g).at[-1].set(last_corner)
    x, correction = _elimination(lower, changed, upper, jnp.stack([rhs, p], 1)).swapaxes(0, 1)

    def q(y):
        return y[0] + first_corner / g * y[-1]

    return x - correction * (q(x) / (1 + q(correction)))


def _elimination(lower, diagonal, upper, rhs):
    """Solves with two or more right-hand sides ``[n, sides, ...]``, ignoring the corners."""

    def down(state, line):
        ratio, reduced = state
        low, mid, up, b = line
        pivot = 1 / (mid - low * ratio)
        new = (up * pivot, (b - low * reduced) * pivot)
        return new, new

    nothing = (jnp.zeros_like(diagonal[0]), jnp.zeros_like(rhs[0]))
    _, (ratios, reduced) = jax.lax.scan(down, nothing, (lower, diagonal, upper, rhs))

    def back(x, line):
        ratio, b = line
        x = b - ratio * x
        return x, x

    return jax.lax.scan(back, jnp.zeros_like(rhs[0]), (ratios, reduced), reverse=True)[1]


def _implicit_lines(diffusion, velocity, axis, dt, distance, boundary):
    """Returns the three diagonals of ``1 - dt L``, lines along the first axis."""
    diffusion, velocity = (jnp.moveaxis(a, axis, 0) for a in (diffusion, velocity))
    # Faces between a cell and the next; the last one joins the ends, or is a wall.
    spread = 0.5 * (diffusion + jnp.roll(diffusion, -1, 0)) * (dt / distance**2)
    wind = 0.5 * (velocity + jnp.roll(velocity, -1, 0)) * (dt / distance)
    if boundary == "reflecting":
        spread, wind = spread.at[-1].set(0.0), wind.at[-1].set(0.0)
    out_ahead = spread + jnp.maximum(wind, 0)  # what leaves a cell through the face ahead
    out_behind = spread + jnp.maximum(-wind, 0)  # what comes back from the next cell through it
    diagonal = 1 + out_ahead + jnp.roll(out_behind, 1, 0)
    return -jnp.roll(out_ahead, 1, 0), diagonal, -out_behind


def _cosines(n: int) -> np.ndarray:
    """Returns the orthonormal cosine transform (DCT-II) as a matrix ``[frequency, position]``."""
    basis = np.cos(np.pi / n * np.arange(n)[:, None] * (np.arange(n) + 0.5)) * np.sqrt(2 / n)
    basis[0] /= np.sqrt(2)
    return basis


def _phi1(z: Array) -> Array:
    """Returns ``(e^z - 1) / z``, 1 at 0, with gradients."""
    small = jnp.abs(z) < 1e-3
    safe = jnp.where(small, 1.0, z)
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4))
    return jnp.where(small, series, jnp.expm1(safe) / safe)


def _precise(value: Any) -> Any:
    """Returns an array of at least single precision; numbers stay as they are."""
    return value.astype(wide(value.dtype)) if hasattr(value, "astype") else value


def _like(value: Array | float, h: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(value, h.dtype), h.shape)


def _is_zero(value: Array | float) -> bool:
    """Whether a coefficient was left out, which is known while tracing."""
    return isinstance(value, int | float) and value == 0


def _is_array(value: Any) -> bool:
    return not (value is None or callable(value) or isinstance(value, int | float))


def _check(h: Array, boundary: str, num_steps: int, spacing: tuple[int, int]) -> None:
    if h.ndim < 3:
        raise ValueError(f"the field must be [..., rows, columns, channels], not {h.shape}")
    if boundary not in BOUNDARIES:
        raise ConfigError(f"boundary must be one of {', '.join(BOUNDARIES)}, not {boundary!r}")
    if num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, not {num_steps}")
    if len(spacing) != 2 or not all(isinstance(d, int) and d >= 1 for d in spacing):
        raise ConfigError(f"spacing must be two whole numbers of at least 1, not {spacing}")
