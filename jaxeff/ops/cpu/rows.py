"""Evaluates functions of a batch block by block, so that intermediates stay in a CPU's cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.ops.platforms import is_forward_mode
from jaxeff.ops.precision import narrowed, widened
from jaxeff.ops.rows import Result
from jaxeff.typing import Array

#: Bytes of one array of a block: few enough that a handful of them stay in a CPU's last cache, and
#: enough for the compiler to divide a loop among cores.
BLOCK = 1 << 20


def compute_once(function: Callable[..., Result], *args: Array) -> Result:
    """Returns ``function(*args)``, computed once and kept, however its values are used later.

    XLA's CPU compiler respects no other barrier than a branch.
    """

    def skipped(*args: Array) -> Any:
        shapes = jax.eval_shape(function, *args)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    if not args[0].size:  # an empty batch has no value to look at
        return function(*args)
    first_value = args[0].ravel()[0]
    never = (first_value > 1) & (first_value < -1)  # which the compiler does not know
    results: Result = jax.lax.cond(never, skipped, function, *args)
    return results


def rowwise(function: Callable[..., Result], shared: Any, x: Array, *others: Any) -> Result:
    """Evaluates block by block; the backward pass recomputes a block's intermediates."""
    args = dict(enumerate((x, *others)))
    arrays = {i: a for i, a in args.items() if hasattr(a, "ndim")}
    rows = _rows_of_block(x)
    if rows is None or is_forward_mode():
        return function(shared, *(args | _stored(arrays)).values())
    batched = {i: a for i, a in arrays.items() if a.ndim == x.ndim and a.shape[0] == x.shape[0]}
    broadcast = {i: a for i, a in arrays.items() if i not in batched}

    def of_block(common: Any, block: dict[int, Array]) -> Result:
        shared, broadcast = common
        return function(shared, *(args | broadcast | block).values())

    results: Result = _over_blocks(of_block, rows, (shared, broadcast), batched)
    return results


def _stored(arrays: dict[int, Array]) -> dict[int, Array]:
    """Materialises the arrays that a loop over several blocks reads."""
    distinct = {id(a): a for a in arrays.values()}
    stored = compute_once(lambda *a: a, *distinct.values())
    by_id = dict(zip(distinct, stored, strict=True))
    return {i: by_id[id(a)] for i, a in arrays.items()}


def _rows_of_block(x: Array) -> int | None:
    """Returns the rows per block, None for a single block or a symbolic batch size.

    The largest divisor of the batch size that fits the cache, unless it is far below the limit.
    """
    n = x.shape[0]
    if not isinstance(n, int):
        return None
    most = max(1, BLOCK * n // max(x.nbytes, 1))
    if n <= most:
        return None
    divisor = next(rows for rows in range(most, 0, -1) if n % rows == 0)
    return divisor if 2 * divisor > most else most


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _over_blocks(function: Callable[..., Any], rows: int, common: Any, batched: Any) -> Any:
    def of_block(common: Any, block: Any) -> tuple[Any, Any]:
        return (), function(common, block)

    return _joined(of_block, rows, common, batched)[1]


def _forward(function: Callable[..., Any], rows: int, common: Any, batched: Any) -> tuple[Any, Any]:
    return _over_blocks(function, rows, common, batched), (common, batched)


def _backward(
    function: Callable[..., Any], rows: int, saved: Any, cotangent: Any
) -> tuple[Any, Any]:
    def of_block(common: Any, block: Any) -> tuple[Any, Any]:
        block, cotangent = block
        of_common, of_rows = jax.vjp(function, common, block)[1](cotangent)
        return of_common, of_rows

    common, batched = saved
    return _joined(of_block, rows, common, (batched, cotangent))


_over_blocks.defvjp(_forward, _backward)


def _joined(
    function: Callable[[Any, Any], tuple[Any, Any]], rows: int, common: Any, batched: Any
) -> tuple[Any, Any]:
    """Returns the first results of ``function`` summed over blocks, the second concatenated."""
    n = jax.tree.leaves(batched)[0].shape[0]

    def of_block(start: Array | int, rows: int) -> tuple[Any, Any]:
        # Slices instead of arrays reshaped to blocks, which would cost a division per value in the
        # surrounding loops.
        return function(
            common,
            jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, rows), batched),
        )

    def add_block(start: Array | int, rows: int, results: tuple[Any, Any]) -> tuple[Any, Any]:
        total, joined = results
        part, values = of_block(start, rows)
        total = jax.tree.map(jnp.add, total, widened(part))
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return total, jax.tree.map(put, joined, values)

    part, values = jax.eval_shape(functools.partial(of_block, rows=rows), 0)
    total = widened(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), part))
    joined = jax.tree.map(lambda s: jnp.zeros((n, *s.shape[1:]), s.dtype), values)
    whole = n // rows
    results = jax.lax.fori_loop(
        0, whole, lambda i, results: add_block(i * rows, rows, results), (total, joined)
    )
    if n % rows:
        results = add_block(whole * rows, n % rows, results)
    return narrowed(results[0], part), results[1]
