"""Exact in time, for coefficients that are constant over the grid."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

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
from jaxeff.typing import Array

Transform = tuple[Callable[[Array], Array], Callable[[Array], Array], Array, Array]


def spectral(
    h: Array,
    coefficients: Coefficients,
    source: Array | float = 0.0,
    *,
    time: float = 0.2,
    spacing: tuple[int, int] = (1, 1),
    boundary: str = "periodic",
) -> Array:
    r"""Steps over ``time`` in one exact step, by the exponential of the operator's spectrum.

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
      time: length T of the step.
      spacing: grid spacing along both axes; neighbours are adjacent cells whatever it is.
      boundary: "periodic", or "reflecting" (without velocity).

    Raises:
      ConfigError: unknown boundary, a spacing below 1, or a velocity with reflecting boundaries.
      ValueError: coefficients that vary over the grid, or h with fewer than three axes.
    """
    check_grid(h, boundary, 1, spacing)
    for name, value in coefficients._asdict().items():
        shape = jnp.shape(value)
        if any(n != 1 for n in shape[ROWS:-1]) or (len(shape) == 2 and shape[0] != 1):
            raise ValueError(
                f"the spectral step needs coefficients that are constant over the grid, but {name} "
                f"has the shape {shape}; use 'line_implicit' or 'leapfrog'"
            )
    is_reflecting = boundary == "reflecting"
    if is_reflecting and not (is_zero(coefficients.u) and is_zero(coefficients.v)):
        raise ConfigError("the spectral step with reflecting boundaries takes no velocity")
    u, v, diffusion_x, diffusion_y = map(precise, coefficients)
    dtype, h = h.dtype, precise(h)
    forward, inverse, a, b = (_cosine_transform if is_reflecting else _fourier_transform)(h)
    decay = 4 * (
        diffusion_x * jnp.sin(a / 2) ** 2 / spacing[0] ** 2
        + diffusion_y * jnp.sin(b / 2) ** 2 / spacing[1] ** 2
    )
    drift = u * jnp.sin(a) / spacing[0] + v * jnp.sin(b) / spacing[1]
    z = -time * (decay if is_reflecting else decay + 1j * drift)
    spectrum = jnp.exp(z) * forward(h)
    if not is_zero(source):
        spectrum = spectrum + time * _phi1(z) * forward(full(source, h))
    return inverse(spectrum).astype(dtype)


def _fourier_transform(h: Array) -> Transform:
    """Returns the transform of fields like h, its inverse, and the frequencies of both axes."""
    size = rows, columns = h.shape[ROWS], h.shape[COLUMNS]
    a = 2 * jnp.pi * jnp.fft.fftfreq(rows, dtype=h.dtype)[:, None, None]
    b = 2 * jnp.pi * jnp.fft.rfftfreq(columns, dtype=h.dtype)[:, None]

    def forward(x: Array) -> Array:
        return jnp.fft.rfft2(x, axes=(ROWS, COLUMNS))

    def inverse(x: Array) -> Array:
        return jnp.fft.irfft2(x, s=size, axes=(ROWS, COLUMNS))

    return forward, inverse, a, b


def _cosine_transform(h: Array) -> Transform:
    """Returns the same for the even extension of the field."""
    rows, columns = h.shape[ROWS], h.shape[COLUMNS]
    a = jnp.pi * jnp.arange(rows, dtype=h.dtype)[:, None, None] / rows
    b = jnp.pi * jnp.arange(columns, dtype=h.dtype)[:, None] / columns
    to_rows, to_columns = (jnp.asarray(_cosines(n), h.dtype) for n in (rows, columns))

    def forward(x: Array) -> Array:
        return jnp.einsum("pi,qj,...ijc->...pqc", to_rows, to_columns, x)

    def inverse(x: Array) -> Array:
        return jnp.einsum("pi,qj,...pqc->...ijc", to_rows, to_columns, x)

    return forward, inverse, a, b


def _cosines(n: int) -> np.ndarray:
    """Returns the orthonormal cosine transform (DCT-II) as a matrix ``[frequency, position]``."""
    angles = np.pi / n * np.arange(n)[:, None] * (np.arange(n) + 0.5)
    basis: np.ndarray = np.cos(angles) * np.sqrt(2 / n)
    basis[0] /= np.sqrt(2)
    return basis


def _phi1(z: Array) -> Array:
    """Returns ``(e^z - 1) / z``, 1 at 0, with gradients."""
    small = jnp.abs(z) < 1e-3
    safe = jnp.where(small, 1.0, z)
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4))
    return jnp.where(small, series, jnp.expm1(safe) / safe)
