"""A scan whose carry stays in a GPU's registers for the whole loop: one kernel by Triton.

Each block of the grid takes some rows of the batch through all steps. It reads the arrays that the
steps share in every step, from the caches.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxeff.errors import ConfigError
from jaxeff.ops.gpu.tiles import LEAST, MOST, Later, Tiled, grid, on_tiles, padded_shape, tile_shape
from jaxeff.ops.split import (
    SplitFunction,
    Step,
    arrays_before,
    packed,
    require_rows_alone,
    shaped,
    split_step,
)
from jaxeff.typing import Array

#: Rows of the batch in a block, as few as products take, so that there are many blocks.
ROWS = LEAST
#: Tiles of matrices that a step may read: the products are written out one by one.
TILES = 64
#: Warps of a block with states of up to so many numbers, and of one with wider ones: the registers
#: of few threads do not hold a wide state.
NARROW, WARPS_OF_NARROW, WARPS_OF_WIDE = 128, 4, 8


def scan_on_chip(
    step: Step,
    shared: Any,
    indexed: Any,
    carry: Any,
    xs: Any,
    *,
    reverse: bool = False,
    interpret: bool = False,
) -> tuple[Any, Any]:
    """Runs ``carry, y = step(shared, indexed, carry, x)`` over blocks of steps, as a scan would.

    Arguments and results are those of `jaxeff.ops.tpu.scan.scan_on_chip`; ``step`` is to consist of
    what `jaxeff.ops.gpu.tiles` evaluates.

    Raises:
      ConfigError: no kernel can be made of the step, or it is too large for one.
    """
    batch = jax.tree.leaves(carry)[0].shape[0]
    blocks, size = jax.tree.leaves(xs)[0].shape[:2]
    length, rows = blocks * size, -(-batch // ROWS) * ROWS
    whole, part = (split_step(step, shared, indexed, carry, xs, n) for n in (batch, ROWS))
    require_rows_alone(whole, part)
    arrays = arrays_before(whole, shared, indexed)
    scalars = [a for a in arrays if a.ndim == 0]
    constants = [a for a, d in zip(arrays, whole.indexed, strict=True) if a.ndim and not d]
    varying = [a for a, d in zip(arrays, whole.indexed, strict=True) if d]
    _check_size(constants)
    # What a block reads in a step: its rows.
    of_rows = functools.partial(
        jax.tree.map, lambda a: shaped(a, (*a.shape[2:-2], ROWS, a.shape[-1]))
    )
    in_state = jax.tree.map(lambda a: shaped(a, (ROWS, a.shape[-1])), carry)
    in_varying, in_xs = of_rows(varying), of_rows(xs)

    def kernel(
        scalars: Any, constants: Any, varying: Any, start: Any, xs: Any, last: Any, ys: Any
    ) -> None:
        def body(i: Any, state: Any) -> Any:
            t = length - 1 - i if reverse else i
            steps = jax.tree.map(lambda ref, a: _load(ref, a.shape, t), varying, in_varying)
            late = state, jax.tree.map(lambda ref, a: _load(ref, a.shape, t), xs, in_xs)
            new, y = on_tiles(part.inside)(_gathered(part, scalars, constants, steps), late)
            jax.tree.map(lambda ref, value: _store(value, ref, t), ys, y)
            return new

        state = jax.tree.map(lambda ref, a: _load(ref, a.shape), start, in_state)
        state = jax.lax.fori_loop(0, length, body, state)
        jax.tree.map(lambda ref, value: _store(value, ref), last, state)

    def filled(a: Any) -> Array:
        return _filled(a, (*a.shape[:-2], rows, *padded_shape(a.shape[-1:])))

    varying, inputs = jax.tree.map(lambda a: filled(a.reshape(length, *a.shape[2:])), (varying, xs))
    start = jax.tree.map(filled, carry)
    constants = [_filled(a, padded_shape(a.shape)) for a in constants]
    outputs = jax.tree.map(
        lambda a: shaped(a, (length, *a.shape[:-2], rows, *padded_shape(a.shape[-1:]))),
        part.result[1],
    )
    in_blocks = functools.partial(jax.tree.map, _rows_spec)
    width = max(a.shape[-1] for a in jax.tree.leaves(carry))
    warps = WARPS_OF_NARROW if width <= NARROW else WARPS_OF_WIDE
    run = pl.pallas_call(
        kernel,
        grid=(rows // ROWS,),
        in_specs=(
            [pl.BlockSpec((len(scalars),), lambda b: (0,))] * bool(scalars),
            [pl.BlockSpec(a.shape, _origin(a.ndim)) for a in constants],
            *in_blocks((varying, start, inputs)),
        ),
        out_specs=in_blocks((start, outputs)),
        out_shape=(jax.tree.map(lambda a: shaped(a, a.shape), start), outputs),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
    )
    last, ys = run([packed(scalars)] if scalars else [], constants, varying, start, inputs)

    def cut(a: Array, like: Any) -> Array:
        a = a[..., :batch, : like.shape[-1]]
        return a.reshape(blocks, size, *a.shape[1:])

    last = jax.tree.map(lambda a, like: a[:batch, : like.shape[-1]], last, carry)
    return last, jax.tree.map(cut, ys, part.result[1])


def _check_size(constants: list[Array]) -> None:
    tiles = sum(math.prod(grid(a.shape)) for a in constants)
    if tiles > TILES:
        raise ConfigError(
            f"a kernel for GPUs of this cell reads {tiles} tiles of {MOST}x{MOST} weights in every "
            f"step, and may read {TILES}; take driver='scan', or lower features"
        )


def _gathered(
    parts: SplitFunction, scalars: Any, constants: Iterable[Any], steps: Iterable[Tiled]
) -> list[Array | Tiled]:
    """Returns the values that a step reads, in their order."""
    numbers, constants, steps = itertools.count(), iter(constants), iter(steps)
    values: list[Array | Tiled] = []
    for kind, varies in zip(parts.shapes, parts.indexed, strict=True):
        if varies:
            values.append(next(steps))
        elif kind.shape:
            values.append(_load_later(next(constants), kind.shape))
        else:
            values.append(scalars[0][next(numbers)].astype(kind.dtype))
    return values


def _load(ref: Any, shape: Sequence[int], *before: Any) -> Tiled:
    """Returns the array of such a shape at the origin of ``ref[before]``."""
    return Tiled.of(shape, lambda index: ref[(*before, *_window(shape, index))])


def _load_later(ref: Any, shape: Sequence[int]) -> Tiled:
    """Returns an array of which each tile is read where a step uses it."""

    def tile(index: tuple[int, ...]) -> Later:
        return Later(ref.dtype, lambda: ref[_window(shape, index)])

    return Tiled.of(shape, tile)


def _store(value: Tiled, ref: Any, *before: Any) -> None:
    for index in np.ndindex(*value.tiles.shape):
        ref[(*before, *_window(value.shape, index))] = value.tiles[index]


def _window(shape: Sequence[int], index: tuple[int, ...]) -> tuple[Any, ...]:
    """Returns where in an array a tile stands."""
    sides = tile_shape(shape)
    outer, inner = index[: -len(sides)], index[-len(sides) :]
    return *outer, *(pl.ds(i * n, n) for i, n in zip(inner, sides, strict=True))


def _filled(a: Array, shape: Sequence[int]) -> Array:
    """Returns an array that was filled up with zeros to a shape."""
    return jnp.pad(a, [(0, more - n) for n, more in zip(a.shape, shape, strict=True)])


def _rows_spec(a: Any) -> pl.BlockSpec:
    """Says which rows of ``[..., batch, width]`` a block of the batch has."""
    return pl.BlockSpec((*a.shape[:-2], ROWS, a.shape[-1]), lambda b: (*(0,) * (a.ndim - 2), b, 0))


def _origin(ndim: int) -> Callable[[Any], tuple[int, ...]]:
    return lambda b: (0,) * ndim
