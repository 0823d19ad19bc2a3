"""A scan whose carry and shared arrays stay in a TPU's vector memory (VMEM) for the whole loop.

A scan that XLA compiles reads weights and state from the device's memory in every step, and starts
several small programs for it. Here one Pallas kernel runs all steps; inputs and outputs of the next
block of steps are copied while one is computed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxeff.errors import ConfigError
from jaxeff.ops.split import (
    SplitFunction,
    Step,
    arrays_before,
    packed,
    require_rows_alone,
    shaped,
    split_step,
)
from jaxeff.ops.wide_products import summed_wide
from jaxeff.typing import Array, Dtype

#: Bytes of vector memory that a kernel may ask for; cores of v5e and v6e have 128 MiB.
VMEM_LIMIT = 96 * 2**20
#: What the compiler needs beside the arrays, for values that registers do not hold.
VMEM_RESERVE = 8 * 2**20
#: Batches are cut at multiples of these rows, the sublanes of a tile in half precision.
ROWS = 16
LANES, SUBLANE_BYTES = 128, 32


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

    Rows of the batch must not depend on each other, and ``step`` is to consist of what Mosaic
    compiles, products and element-wise operations. What it computes from ``shared`` and ``indexed``
    alone may be anything, since that is done before the loop.

    Args:
      step: the body, plain JAX.
      shared: tree of arrays that all steps read.
      indexed: tree of arrays ``[blocks, block, batch, width]``; together with ``shared`` they give
        numbers ``[batch, width]`` of each step, as the step size of its time.
      carry: tree of arrays ``[batch, width]``.
      xs: tree of arrays ``[blocks, block, ..., batch, width]``.
      reverse: whether to run from the last step of the last block to the first of the first.
      interpret: whether to run the kernel's operations one by one, on any platform.

    Returns:
      the last carry, and the tree of ``y``, ``[blocks, block, ..., batch, width]``.

    Raises:
      ConfigError: no kernel can be made of the step, or it needs too much vector memory.
    """
    batch = jax.tree.leaves(carry)[0].shape[0]

    divided = functools.partial(split_step, step, shared, indexed, carry, xs)
    whole = divided(batch)
    arrays = arrays_before(whole, shared, indexed)
    scalars = [a for a in arrays if a.ndim == 0]
    constants = [a for a, d in zip(arrays, whole.indexed, strict=True) if a.ndim and not d]
    constants = [a[None] if a.ndim == 1 else a for a in constants]
    varying = [a for a, d in zip(arrays, whole.indexed, strict=True) if d]
    blocks, size = jax.tree.leaves(xs)[0].shape[:2]
    ys = jax.tree.map(lambda a: shaped(a, (blocks, size, *a.shape)), whole.result[1])

    moving = [*varying, *jax.tree.leaves((xs, ys))]
    rows, needed = _batch_block(batch, constants, jax.tree.leaves(carry), moving)
    part = whole if rows == batch else divided(rows)
    require_rows_alone(whole, part)

    def kernel(
        scalars: Any, constants: Any, varying: Any, start: Any, xs: Any, state: Any, ys: Any
    ) -> None:
        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            jax.tree.map(_write, state, jax.tree.map(_read, start))

        @pl.loop(0, size)
        def _(i: Array) -> None:
            i = size - 1 - i if reverse else i
            late = jax.tree.map(_read, state), jax.tree.map(lambda ref: ref[i], xs)
            read = _gathered(part, scalars, constants, varying, i)
            new, y = summed_wide(part.inside)(read, late)
            jax.tree.map(_write, state, new)
            jax.tree.map(lambda ref, value: ref.__setitem__(i, value), ys, y)

    def in_blocks(tree: Any) -> Any:
        return jax.tree.map(lambda a: _steps_spec(a, rows, blocks, reverse), tree)

    once = None if interpret else pl.Buffered(1)
    in_specs = (
        [pl.BlockSpec(memory_space=pltpu.SMEM)] * bool(scalars),
        [pl.BlockSpec(a.shape, _origin(a.ndim), pipeline_mode=once) for a in constants],
        in_blocks(varying),
        jax.tree.map(lambda a: _rows_spec(a, rows), carry),
        in_blocks(xs),
    )
    run = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(batch, rows), blocks),
        in_specs=in_specs,
        out_specs=(in_specs[3], in_blocks(ys)),
        out_shape=(jax.tree.map(lambda a: shaped(a, a.shape), carry), ys),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=needed
        ),
        interpret=interpret,
    )
    last, outputs = run([packed(scalars)] if scalars else [], constants, varying, carry, xs)
    return last, outputs


def vmem_bytes(
    constants: Sequence[Any], carry: Sequence[Any], moving: Sequence[Any], rows: int
) -> int:
    """Returns the bytes of vector memory that a kernel's arrays take, in whole tiles.

    Args:
      constants: arrays that are there once.
      carry: arrays ``[batch, width]``, there twice on the way in and twice on the way out.
      moving: arrays ``[blocks, block, ..., batch, width]``, there twice: one block of steps is
        copied while another is computed.
      rows: rows of a block of the batch.
    """
    total = sum(_tiled_bytes(a.shape, a.dtype) for a in constants)
    total += 4 * sum(_tiled_bytes((rows, a.shape[-1]), a.dtype) for a in carry)
    blocks = ((*a.shape[1:-2], rows, a.shape[-1]) for a in moving)
    return total + 2 * sum(
        _tiled_bytes(shape, a.dtype) for shape, a in zip(blocks, moving, strict=True)
    )


def _batch_block(batch: int, constants: Any, carry: Any, moving: Any) -> tuple[int, int]:
    """Returns the rows of a block of the batch, as many as fit, and the bytes of all blocks.

    A core computes the blocks of the batch one after the other, each with all steps.
    """
    rows = batch
    while (needed := vmem_bytes(constants, carry, moving, rows) + VMEM_RESERVE) > VMEM_LIMIT:
        if rows <= ROWS:
            raise ConfigError(
                f"a kernel for {rows} rows of this cell needs {needed / 2**20:.0f} MiB of vector "
                f"memory, and may take {VMEM_LIMIT / 2**20:.0f}; take driver='scan', or lower "
                "block_size or features"
            )
        rows = -(-rows // 2 // ROWS) * ROWS if rows > 2 * ROWS else ROWS
    return rows, needed


def _tiled_bytes(shape: tuple[int, ...], dtype: Dtype) -> int:
    """Returns the bytes of an array in tiles of 128 lanes and 8 sublanes of 32 bits."""
    *outer, rows, columns = shape
    item = jnp.dtype(dtype).itemsize
    sublanes = SUBLANE_BYTES // item
    rows, columns = -(-rows // sublanes) * sublanes, -(-columns // LANES) * LANES
    return math.prod(outer) * rows * columns * item


def _gathered(
    parts: SplitFunction, scalars: Any, constants: Any, varying: Any, i: Any
) -> list[Array]:
    """Returns the values that a step reads, in their order."""
    packed, constants, varying, values = 0, iter(constants), iter(varying), []
    for kind, varies in zip(parts.shapes, parts.indexed, strict=True):
        if varies:
            values.append(next(varying)[i])
        elif kind.shape:
            values.append(next(constants)[...].reshape(kind.shape))
        else:
            values.append(scalars[0][packed].astype(kind.dtype))
            packed += 1
    return values


def _steps_spec(a: Any, rows: int, blocks: int, reverse: bool) -> pl.BlockSpec:
    """Says which part of ``[blocks, block, ..., batch, width]`` a block of steps reads."""
    inner = a.ndim - 3

    def index(b: Any, t: Any) -> tuple[Any, ...]:
        return (blocks - 1 - t if reverse else t, *(0,) * inner, b, 0)

    return pl.BlockSpec((None, *a.shape[1:-2], rows, a.shape[-1]), index)


def _rows_spec(a: Any, rows: int) -> pl.BlockSpec:
    return pl.BlockSpec((rows, a.shape[-1]), lambda b, t: (b, 0))


def _origin(ndim: int) -> Callable[..., tuple[int, ...]]:
    return lambda b, t: (0,) * ndim


def _read(ref: Any) -> Array:
    value: Array = ref[...]
    return value


def _write(ref: Any, value: Array) -> None:
    ref[...] = value
