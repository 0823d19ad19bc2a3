"""Work on a batch block by block, so that what lies between two passes stays in a CPU's cache.

XLA's CPU compiler makes one loop of everything elementwise. Where such a loop reads its
intermediate values at shifted places, it computes them again for every shift, and where it does not
make one loop, whole batches of intermediate values go through memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.ops.precision import narrowed, widened
from jaxeff.typing import Array

#: Bytes of one array of a block: few enough that a handful of them stay in a CPU's last cache, and
#: enough for the compiler to divide a loop among cores.
BLOCK = 1 << 20


def apart(skip: Array | None, function: Callable[..., Any], *args: Array) -> Any:
    """Returns ``function(*args)``, computed once and kept, however its values are used later.

    A branch is the one barrier that the compiler honours. ``skip`` is what `over_blocks` gives a
    function; None computes as usual.
    """
    if skip is None:
        return function(*args)

    def skipped(*args):
        shapes = jax.eval_shape(function, *args)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    return jax.lax.cond(skip, skipped, function, *args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def over_blocks(function: Callable[..., Any], shared: Any, *arrays: Array) -> Any:
    """Returns ``function(skip, shared, *arrays)``, on CPUs block by block of the leading axis.

    Gradients compute every block again instead of keeping what lies within it.

    Args:
      function: of `apart`'s first argument, of ``shared``, and of arrays ``[n, ...]`` with any n,
        row by row; returns such arrays. It must not close over traced values.
      shared: tree of arrays that all blocks need.
      *arrays: floats ``[n, ...]``.
    """

    def of_block(skip, shared, *block):
        return (), function(skip, shared, *block)

    return _per_platform(of_block, shared, *arrays)[1]


def _forward(function, shared, *arrays):
    return over_blocks(function, shared, *arrays), (shared, arrays)


def _backward(function, saved, cotangent):
    def of_block(skip, shared, *values):
        *block, cotangent = values
        pull = jax.vjp(functools.partial(function, skip), shared, *block)[1]
        of_shared, *of_arrays = pull(cotangent)
        return of_shared, tuple(of_arrays)

    shared, arrays = saved
    of_shared, of_arrays = _per_platform(of_block, shared, *arrays, cotangent)
    return of_shared, *of_arrays


over_blocks.defvjp(_forward, _backward)


def _per_platform(function: Callable[..., Any], shared: Any, *arrays: Any) -> tuple[Any, Any]:
    """Returns the first results of ``function`` summed over the blocks, the second joined."""
    return jax.lax.platform_dependent(
        shared,
        *arrays,
        cpu=functools.partial(_in_blocks, function),
        default=functools.partial(function, None),
    )


def _in_blocks(function: Callable[..., Any], shared: Any, *arrays: Any) -> tuple[Any, Any]:
    n = arrays[0].shape[0]
    if not isinstance(n, int):  # a symbol, of a program for any n
        return function(None, shared, *arrays)
    rows = _rows(n, max(1, min(n, BLOCK * n // max(arrays[0].nbytes, 1))))

    def of_block(start, rows):
        # Slices where they lie: arrays in the shape of the blocks would cost the loops around this
        # one a division per value.
        block = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, rows), arrays)
        # Never true, which the compiler does not know.
        first_value = block[0].ravel()[0]
        skip = (first_value > 1) & (first_value < -1)
        return function(skip, shared, *block)

    def step(start, rows, found):
        total, joined = found
        part, values = of_block(start, rows)
        total = jax.tree.map(jnp.add, total, widened(part))
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return total, jax.tree.map(put, joined, values)

    kind, joined = jax.eval_shape(functools.partial(of_block, rows=rows), 0)
    total = widened(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), kind))
    joined = jax.tree.map(lambda s: jnp.zeros((n, *s.shape[1:]), s.dtype), joined)
    whole = n // rows
    found = jax.lax.fori_loop(
        0, whole, lambda i, found: step(i * rows, rows, found), (total, joined)
    )
    if n % rows:
        found = step(whole * rows, n % rows, found)
    return narrowed(found[0], kind), found[1]


def _rows(n: int, most: int) -> int:
    """Returns the rows of a block: the largest divisor of n, if it is not far below the most."""
    fits = next(rows for rows in range(most, 0, -1) if n % rows == 0)
    return fits if 2 * fits > most else most
