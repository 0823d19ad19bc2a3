"""A scan over time whose rows do not depend on each other, in one call of a compiled function.

XLA starts several small programs in every step, which takes longer than the arithmetic of a short
or narrow recurrence, and what it writes it reads again from memory. The compiled function runs a
list of operations (`jaxeff.ops.cpu.row_program`) on some rows at a time, for all steps.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from jaxeff.ops.cpu import native
from jaxeff.ops.cpu.row_code import RowProgram
from jaxeff.ops.cpu.row_program import UnsupportedStep, translated
from jaxeff.ops.platforms import is_forward_mode, is_reverse_mode, platform
from jaxeff.ops.row_scan import Step, Window, scan_steps, zeros
from jaxeff.ops.split import SplitFunction, split, values_before
from jaxeff.typing import Array

#: Numbers of a state up to which passes of training are compiled on a device of one core. Above it,
#: products take most of the time, and XLA does several element-wise operations in one pass. More
#: cores share a compiled loop, but none of XLA's.
MOST_IN_TRAINING = 4096


def is_compiled(carry: Any, *arrays: Any) -> bool:
    """Returns whether the arrays are of single precision and known sizes, and the loop pays."""
    leaves = jax.tree.leaves(carry)
    if is_forward_mode() or not native.is_computable(*leaves, *arrays):
        return False
    is_alone = is_reverse_mode() and native.threads() == 1
    return not is_alone or max(a.size for a in leaves) <= MOST_IN_TRAINING


def unwritten(length: int, shapes: Any, after: Any) -> Any:
    """Returns memory as it is: to clear the values of a long sequence takes a tenth of a step."""
    leaves, structure = jax.tree.flatten(shapes)
    arrays: list[Any] = [jax.ShapeDtypeStruct((length, *a.shape), a.dtype) for a in leaves]
    if not arrays or is_forward_mode() or not native.is_computable(*arrays):
        return zeros(length, shapes)
    memory = _memory(tuple(a.shape for a in arrays), jax.tree.leaves(after))
    return jax.tree.unflatten(structure, memory)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _memory(shapes: tuple[tuple[int, ...], ...], after: Sequence[Array]) -> Any:
    take = custom_vmap(lambda *after: list(native.call("jaxeff_memory", shapes, after)))

    def batch(size: int, _: Any, *after: Array) -> tuple[Any, Any]:
        return _memory(tuple((size, *shape) for shape in shapes), after), [True] * len(shapes)

    take.def_vmap(batch)
    return take(*after)


@_memory.defjvp
def _memory_jvp(shapes: tuple[tuple[int, ...], ...], primals: Any, _: Any) -> tuple[Any, Any]:
    return _memory(shapes, *primals), [jnp.zeros(shape, jnp.float32) for shape in shapes]


def row_scan(
    length: int,
    step: Step,
    shared: Any,
    indexed: Any,
    carry: Any,
    xs: Any,
    known: Window,
    rooms: Window,
    reverse: bool = False,
) -> tuple[Any, Any, Any]:
    """Runs the steps in one call; in a loop of XLA where the function lacks an operation."""
    loop = _Loop(length, step, reverse)
    args = (shared, indexed, carry, xs, known, rooms)
    others = jax.tree.leaves((xs, known.values, rooms.values))
    if not is_compiled(carry, *(a for a in others if a.dtype != bool)):
        return scan_steps(*loop, *args)
    try:
        results: tuple[Any, Any, Any] = _compiled(loop, *args)
        return results
    except UnsupportedStep:
        # In a loop, compiled products would transpose their kernels in every step.
        with platform("reference"):
            return scan_steps(*loop, *args)


class _Loop(NamedTuple):
    """What is known of a scan without its arrays."""

    length: int
    step: Step
    reverse: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compiled(loop: _Loop, *args: Any) -> Any:
    run = custom_vmap(functools.partial(_run, loop))
    run.def_vmap(functools.partial(_run_batch, loop))
    return run(*args)


def _forward(loop: _Loop, *args: Any) -> tuple[Any, Any]:
    return _compiled(loop, *args), args


def _backward(loop: _Loop, args: Any, cotangents: Any) -> Any:
    # A derivative of a derivative: rare enough for XLA's loop.
    return jax.vjp(functools.partial(scan_steps, *loop), *args)[1](cotangents)


_compiled.defvjp(_forward, _backward)


def _run_batch(loop: _Loop, size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
    """Runs a batch of scans as one whose rows are those of all."""
    axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched)
    of_shared, _, of_carry, _, of_known, of_rooms = batched
    is_joined = all(jax.tree.leaves((of_carry, of_rooms.values)))
    if any(jax.tree.leaves((of_shared, of_known.first, of_rooms.first))) or not is_joined:
        results = jax.vmap(functools.partial(scan_steps, *loop), axes)(*args)
    else:
        results = _run_joined(loop, size, batched, *args)
    return results, jax.tree.map(lambda _: True, results)


def _run_joined(
    loop: _Loop, size: int, batched: Any, shared: Any, *args: Any
) -> tuple[Any, Any, Any]:
    indexed, carry, xs, known, rooms = args
    axes = jax.tree.leaves(carry)[0].ndim - 1  # of the batch, with the new one

    def joined(a: Array, is_batched: bool) -> Array:
        a = a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
        return jnp.moveaxis(a, 0, a.ndim - 1 - axes)

    def separate(a: Array) -> Array:
        return jnp.moveaxis(a, a.ndim - 1 - axes, 0)

    indexed, carry, xs = (
        jax.tree.map(joined, tree, flags)
        for tree, flags in zip((indexed, carry, xs), batched[1:4], strict=True)
    )
    known, rooms = (
        window._replace(values=jax.tree.map(joined, window.values, flags.values))
        for window, flags in zip((known, rooms), batched[4:], strict=True)
    )
    results = _run(loop, shared, indexed, carry, xs, known, rooms)
    last, ys, room = jax.tree.map(separate, results)
    return last, ys, room


def _run(
    loop: _Loop,
    shared: Any,
    indexed: Any,
    carry: Any,
    xs: Any,
    known: Window,
    rooms: Window,
) -> tuple[Any, Any, Any]:
    batch = jax.tree.leaves(carry)[0].shape[:-1]

    def one_axis(a: Any) -> Any:
        return a.reshape(*a.shape[: a.ndim - 1 - len(batch)], -1, a.shape[-1])

    indexed, carry, xs, past, room = jax.tree.map(
        one_axis, (indexed, carry, xs, known.values, rooms.values)
    )
    first = functools.partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype))
    late = carry, (first(xs), first(past))
    with platform("reference"):  # its operations, not forms of them for XLA
        parts = split(lambda s, i, late: loop.step(s, i, *late), shared, first(indexed), late)
    constants, moving = _before(parts, shared, indexed)
    program = _translated(parts, late)
    inputs = [*moving, *jax.tree.leaves(xs)]
    matrices, turned = _matrices(program, constants, jax.tree.leaves(carry)[0].shape[0])
    tables = (
        [constants[number].reshape(-1) for number in program.vectors],
        matrices,
        list(map(_as_numbers, inputs)),
        list(map(_as_numbers, jax.tree.leaves(past))),
        jax.tree.leaves(carry),
        jax.tree.leaves(room),
    )
    firsts = jnp.stack([jnp.asarray(w.first, jnp.int32) for w in (known, rooms)])
    scalars = jnp.stack([constants[n] for n in program.scalars] or [jnp.zeros((), jnp.float32)])
    last, (y, _) = parts.result
    ys = jax.tree.map(lambda a: jax.ShapeDtypeStruct((loop.length, *a.shape), a.dtype), y)
    outputs = _call(loop, program, turned, tables, firsts, scalars, (last, ys, room))

    def batch_axes(a: Any) -> Any:
        return a.reshape(*a.shape[:-2], *batch, a.shape[-1])

    structure = jax.tree.structure((last, ys, room))
    last, ys, room = jax.tree.unflatten(structure, map(batch_axes, outputs))
    return last, ys, room


def _before(parts: SplitFunction, shared: Any, indexed: Any) -> tuple[list[Array], list[Array]]:
    """Returns the arrays that all steps share, and those of every step ``[steps, rows, width]``."""
    arrays = values_before(parts, shared, jax.tree.map(lambda a: a[None], indexed))
    pairs = list(zip(arrays, parts.indexed, strict=True))
    return [a for a, moves in pairs if not moves], [a[0] for a, moves in pairs if moves]


def _translated(parts: SplitFunction, late: Any) -> RowProgram:
    shapes = list(zip(parts.shapes, parts.indexed, strict=True))
    constants = [a for a, moves in shapes if not moves]
    moving = [a for a, moves in shapes if moves]
    rows = jax.tree.leaves(late)[0].shape[0]
    if any(a.dtype != jnp.float32 for a in constants):
        raise UnsupportedStep("coefficients that are not of single precision")
    if any(a.shape[:-1] != (rows,) or a.dtype not in (jnp.float32, bool) for a in moving):
        raise UnsupportedStep("numbers of every step that no row has")

    def inside(constants: list[Any], late: tuple[list[Any], Any]) -> Any:
        arrays, moving = iter(constants), iter(late[0])
        order = [next(moving if moves else arrays) for moves in parts.indexed]
        return parts.inside(order, late[1])

    def kinds(kind: str, tree: Any) -> Any:
        return jax.tree.map(lambda _: kind, tree)

    carry, (xs, past) = late
    of_late = kinds("state", carry), (kinds("input", xs), kinds("known", past))
    last, (y, kept) = parts.result
    goals = kinds("next", last), (kinds("output", y), kinds("room", kept))
    return translated(inside, constants, (moving, late), (kinds("input", moving), of_late), goals)


def _matrices(
    program: RowProgram, constants: Sequence[Array], rows: int
) -> tuple[list[Array], list[bool]]:
    """Returns the matrices, and whether products read each transposed, as one row may.

    Others are transposed here, which XLA does once for all blocks of steps.
    """
    turned = [is_turned for _, is_turned in program.matrices]
    matrices = [constants[number] for number, _ in program.matrices]
    if rows == 1:  # reads each number of a kernel once, wherever it lies
        return matrices, turned
    pairs = zip(matrices, turned, strict=True)
    return [_transposed(m) if is_turned else m for m, is_turned in pairs], [False] * len(matrices)


def _transposed(matrix: Array) -> Array:
    transpose: Array = native.call("jaxeff_transposed", (matrix.shape[::-1],), (matrix,))[0]
    return transpose


def _as_numbers(a: Array) -> Array:
    return a.astype(jnp.float32)


def _call(
    loop: _Loop,
    program: RowProgram,
    turned: Sequence[bool],
    tables: Sequence[Sequence[Array]],
    firsts: Array,
    scalars: Array,
    results: Any,
) -> Sequence[Array]:
    """Calls the function; ``results`` are the shapes of states, outputs and rooms."""
    states, outputs, rooms = map(jax.tree.leaves, results)
    args = (firsts, scalars, *itertools.chain(*tables))
    shapes = [a.shape for a in (*states, *outputs, *rooms)]
    slots, code = program.encoded()
    counts = [*map(len, tables[:-1]), len(outputs)]
    in_place = {len(args) - i: len(shapes) - i for i in range(1, len(rooms) + 1)}
    return native.call_in_place(
        "jaxeff_row_scan",
        shapes,
        args,
        in_place,
        slots=slots,
        code=code,
        counts=np.asarray(counts, np.int64),
        turned=np.asarray(turned, np.int64),
        rows=np.int64(states[0].shape[0]),
        steps=np.int64(loop.length),
        work=np.int64(program.work),
        reverse=loop.reverse,
    )
