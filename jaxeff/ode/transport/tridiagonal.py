"""Tridiagonal and cyclic tridiagonal systems of equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.typing import Array


def solve_tridiagonal(lower: Array, diagonal: Array, upper: Array, rhs: Array) -> Array:
    """Solves (cyclic) tridiagonal systems in a batch, by elimination along the first axis.

    ``lower[0]`` and ``upper[-1]`` are the corner entries (the dependence of the first unknown on
    the last, and the reverse); they are zero for an ordinary tridiagonal system. Gradients solve
    the transposed system, so no intermediate values are kept. For matrices that need no pivoting,
    such as diagonally dominant ones.

    Args:
      lower: coefficients of the previous unknown, ``[n, ...]``.
      diagonal: coefficients of the unknown itself, ``[n, ...]``.
      upper: coefficients of the next unknown, ``[n, ...]``.
      rhs: right-hand sides ``[n, ...]``.
    """
    size = rhs.shape[0]

    def matvec(x: Array) -> Array:
        return diagonal * x + lower * jnp.roll(x, 1, 0) + upper * jnp.roll(x, -1, 0)

    def solver(lower: Array, upper: Array) -> Callable[[Any, Array], Array]:
        return lambda _, b: _cyclic_elimination(lower, diagonal, upper, b)

    if size == 1:
        return rhs / (diagonal + lower + upper)
    transposed_lower, transposed_upper = jnp.roll(upper, 1, 0), jnp.roll(lower, -1, 0)
    solution: Array = jax.lax.custom_linear_solve(
        matvec,
        rhs,
        solve=solver(lower, upper),
        transpose_solve=solver(transposed_lower, transposed_upper),
    )
    return solution


def _cyclic_elimination(lower: Array, diagonal: Array, upper: Array, rhs: Array) -> Array:
    """Thomas algorithm with the Sherman-Morrison formula for the corners."""
    first_corner, last_corner = lower[0], upper[-1]
    # A = T + p q^T with p = (g, 0.., last corner) and q = (1, 0.., first corner / g).
    g = -diagonal[0]
    changed = diagonal.at[0].add(-g).at[-1].add(-first_corner * last_corner / g)
    p = jnp.zeros_like(rhs).at[0].set(g).at[-1].set(last_corner)
    x, correction = _elimination(lower, changed, upper, jnp.stack([rhs, p], 1)).swapaxes(0, 1)

    def q(y: Array) -> Array:
        return y[0] + first_corner / g * y[-1]

    corrected: Array = x - correction * (q(x) / (1 + q(correction)))
    return corrected


def _elimination(lower: Array, diagonal: Array, upper: Array, rhs: Array) -> Array:
    """Solves with two or more right-hand sides ``[n, sides, ...]``, ignoring the corners."""

    def down(state: tuple[Array, Array], line: tuple[Array, ...]) -> tuple[Any, Any]:
        ratio, reduced = state
        low, mid, up, b = line
        pivot = 1 / (mid - low * ratio)
        new = (up * pivot, (b - low * reduced) * pivot)
        return new, new

    nothing = (jnp.zeros_like(diagonal[0]), jnp.zeros_like(rhs[0]))
    _, (ratios, reduced) = jax.lax.scan(down, nothing, (lower, diagonal, upper, rhs))

    def back(x: Array, line: tuple[Array, Array]) -> tuple[Array, Array]:
        ratio, b = line
        x = b - ratio * x
        return x, x

    return jax.lax.scan(back, jnp.zeros_like(rhs[0]), (ratios, reduced), reverse=True)[1]
