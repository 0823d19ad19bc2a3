"""A scan over time whose rows, the members of a batch, do not depend on each other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.ops.platforms import has_cpu_form
from jaxeff.typing import Array

Step = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


class Window(NamedTuple):
    """Arrays with an axis of steps, of which a scan takes some.

    Attributes:
      values: tree of arrays ``[steps and more, ..., rows, width]``, or None.
      first: where the steps of the scan begin in them.
    """

    values: Any
    first: Array | int


@has_cpu_form("jaxeff.ops.cpu.row_scan")
def is_compiled(carry: Any, *arrays: Any) -> bool:
    """Returns whether `row_scan` runs steps on such arrays as one function, without a loop of XLA.

    Its steps are to be written out then: a loop in a step would be none of the operations that the
    function has.

    Args:
      carry: tree of the carry's arrays.
      *arrays: the others.
    """
    return False


@has_cpu_form("jaxeff.ops.cpu.row_scan")
def unwritten(length: int, shapes: Any, after: Any) -> Any:
    """Returns arrays ``[length, ...]`` of such shapes, to be written before they are read.

    Args:
      length: of the arrays.
      shapes: tree of the other axes and types.
      after: arrays that differ in every turn of a loop around: memory that depends on none would be
        taken once, before the loop, and copied in each turn.
    """
    return zeros(length, shapes)


def zeros(length: int, shapes: Any) -> Any:
    """Returns arrays ``[length, ...]`` of zeros."""
    return jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes)


@has_cpu_form("jaxeff.ops.cpu.row_scan")
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
    """Runs ``carry, (y, kept) = step(shared, indexed, carry, (x, known))`` over steps.

    Args:
      length: number of steps.
      step: the body, which closes over no arrays. Rows must not depend on each other.
      shared: tree of arrays that all steps read.
      indexed: tree of arrays ``[steps, ..., rows, width]``, of any type; what the step computes
        from these and from ``shared`` alone may be anything.
      carry: tree of arrays ``[..., width]``, whose first axes are those of the batch.
      xs: tree of arrays ``[steps, ..., rows, width]``.
      known: more such arrays, in a window of steps.
      rooms: arrays in which ``kept`` is written in place, each step's at its own place in time.
      reverse: whether to run from the last step to the first.

    Returns:
      the last carry, the tree of ``y`` ``[steps, ...]``, and the arrays of ``rooms``.
    """
    return scan_steps(length, step, reverse, shared, indexed, carry, xs, known, rooms)


def scan_steps(
    length: int,
    step: Step,
    reverse: bool,
    shared: Any,
    indexed: Any,
    carry: Any,
    xs: Any,
    known: Window,
    rooms: Window,
) -> tuple[Any, Any, Any]:
    """Runs the steps of `row_scan` in a loop of XLA."""

    def body(state: tuple[Any, Any], inputs: Any) -> tuple[tuple[Any, Any], Any]:
        carry, room = state
        number, indexed, x = inputs
        past = _read(known.values, known.first + number)
        carry, (y, kept) = step(shared, indexed, carry, (x, past))
        return (carry, _write(room, kept, rooms.first + number)), y

    start = carry, rooms.values
    inputs = jnp.arange(length), indexed, xs
    (carry, room), ys = jax.lax.scan(body, start, inputs, reverse=reverse)
    return carry, ys, room


def _read(values: Any, number: Array) -> Any:
    take = functools.partial(jax.lax.dynamic_index_in_dim, index=number, keepdims=False)
    return jax.tree.map(take, values)


def _write(rooms: Any, values: Any, number: Array) -> Any:
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=number, axis=0)
    return jax.tree.map(put, rooms, values)
