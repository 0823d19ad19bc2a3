"""Splits a function into what can be computed before a loop and what has to stand in it.

Kernels of accelerators take few operations: products and element-wise ones, but not, say, a gather
of the step size of a time step. A loop's body often needs those for numbers alone that are known
before the loop starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxeff.errors import ConfigError
from jaxeff.typing import Array

Step = Callable[[Any, Any, Any, Any], tuple[Any, Any]]

CONSTANT, SHARED, INDEXED, LATE = range(4)


class SplitFunction(NamedTuple):
    """A function ``f(shared, indexed, late)`` in two parts.

    Attributes:
      before: ``before(shared, indexed)`` returns the arrays that ``inside`` needs, a list.
      inside: ``inside(arrays, late)`` returns what ``f`` would.
      indexed: of each of these arrays, whether it depends on the argument ``indexed``.
      shapes: their shapes and types.
      result: shapes and types of what ``f`` returns.
    """

    before: Callable[[Any, Any], list[Any]]
    inside: Callable[[list[Any], Any], Any]
    indexed: tuple[bool, ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    result: Any


def split(
    function: Callable[[Any, Any, Any], Any], shared: Any, indexed: Any, late: Any
) -> SplitFunction:
    """Splits a function at the operations that need its last argument.

    Broadcasts that make an array larger stay inside, and so do operations on constants alone.

    Args:
      function: a pure function of three trees of arrays.
      shared: first argument, or its shapes: known before the loop, the same in all of its steps.
      indexed: second argument, or its shapes: known before the loop, other in every step.
      late: third argument, or its shapes: known in the loop only.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(shared, indexed, late)
    jaxpr, structure = closed.jaxpr, jax.tree.structure(shape)
    counts = [len(jax.tree.leaves(tree)) for tree in (shared, indexed)]
    early, of_late = jaxpr.invars[: sum(counts)], jaxpr.invars[sum(counts) :]
    kinds = dict.fromkeys((*jaxpr.constvars, *early[: counts[0]]), SHARED)
    kinds |= dict.fromkeys(early[counts[0] :], INDEXED) | dict.fromkeys(of_late, LATE)

    kind_of = {}
    for equation in jaxpr.eqns:
        kind = max((kinds[v] for v in _variables(equation.invars)), default=CONSTANT)
        kind_of[id(equation)] = kind
        kinds |= dict.fromkeys(equation.outvars, kind)

    # Backward from the results: the operations that they need inside, and the arrays these need.
    needed, kept = set(_variables(jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        is_known = kind_of[id(equation)] in (SHARED, INDEXED)
        if needed.isdisjoint(equation.outvars) or (is_known and not _grows(equation)):
            continue
        kept.append(equation)
        needed = (needed - set(equation.outvars)) | set(_variables(equation.invars))
    arrays = [v for v, kind in kinds.items() if v in needed and kind in (SHARED, INDEXED)]

    known = [equation for equation in jaxpr.eqns if kind_of[id(equation)] != LATE]
    before = _function(jaxpr.constvars, early, arrays, known)
    inside = _function([], [*arrays, *of_late], jaxpr.outvars, kept[::-1])
    return SplitFunction(
        lambda *args: before(*closed.consts, *jax.tree.leaves(args)),
        lambda values, late: jax.tree.unflatten(structure, inside(*values, *jax.tree.leaves(late))),
        tuple(kinds[v] == INDEXED for v in arrays),
        tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in arrays),
        shape,
    )


def split_step(
    step: Step, shared: Any, indexed: Any, carry: Any, xs: Any, rows: int
) -> SplitFunction:
    """Splits the step of a scan over blocks of steps, for so many rows of the batch.

    Args:
      step: ``carry, y = step(shared, indexed, carry, x)``.
      shared: tree of arrays that all steps read.
      indexed: tree of arrays ``[blocks, block, batch, width]``.
      carry: tree of arrays ``[batch, width]``.
      xs: tree of arrays ``[blocks, block, ..., batch, width]``.
      rows: size of the batch in the step.
    """

    def of_one_step(a: Any) -> jax.ShapeDtypeStruct:
        return shaped(a, (*a.shape[2:-2], rows, a.shape[-1]))

    first = jax.tree.map(lambda a: shaped(a, (rows, *a.shape[1:])), carry)
    known, x = jax.tree.map(of_one_step, (indexed, xs))
    return split(lambda s, i, late: step(s, i, *late), shared, known, (first, x))


def arrays_before(parts: SplitFunction, shared: Any, indexed: Any) -> list[Array]:
    """Returns the arrays that a loop reads, those of every step with the axes of the steps.

    Args:
      parts: the body of the loop.
      shared: its first argument.
      indexed: its second argument of all steps ``[blocks, block, ...]``.

    Raises:
      ConfigError: they are none that a kernel can read.
    """
    arrays = values_before(parts, shared, indexed)
    for kind, varies in zip(parts.shapes, parts.indexed, strict=True):
        if not jnp.issubdtype(kind.dtype, jnp.floating) or (varies and len(kind.shape) != 2):
            raise ConfigError(
                f"no kernel can be made of this cell, which needs {kind.dtype}{list(kind.shape)} "
                "in every step; take driver='scan'"
            )
    return arrays


def values_before(parts: SplitFunction, shared: Any, indexed: Any) -> list[Array]:
    """Returns the same arrays, whatever they are."""
    if not any(parts.indexed):
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape[2:], a.dtype), indexed)
        return parts.before(shared, nothing)
    axes = [0 if varies else None for varies in parts.indexed]
    over = jax.vmap(parts.before, (None, 0), axes)
    arrays: list[Array] = jax.vmap(over, (None, 0), axes)(shared, indexed)
    return arrays


def require_rows_alone(whole: SplitFunction, part: SplitFunction) -> None:
    """Raises `ConfigError` if what all steps share depends on the size of the batch.

    Args:
      whole: the body of a loop for the batch.
      part: the same for a part of its rows.
    """
    for a, b, varies in zip(whole.shapes, part.shapes, whole.indexed, strict=True):
        if a.shape != b.shape and not varies:
            raise ConfigError(
                "no kernel can be made of this cell, whose coefficients have an axis of the batch; "
                "take driver='scan'"
            )


def packed(scalars: list[Array]) -> Array:
    """Returns numbers as one vector, of single precision at least as scalar memory demands."""
    wide = any(a.dtype == jnp.float64 for a in scalars)
    return jnp.stack([a.astype(jnp.float64 if wide else jnp.float32) for a in scalars])


def shaped(a: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """Returns the description of an array of another shape."""
    return jax.ShapeDtypeStruct(shape, a.dtype)


def _variables(atoms: Any) -> list[Any]:
    return [a for a in atoms if not isinstance(a, core.Literal)]


def _grows(equation: Any) -> bool:
    if equation.primitive.name != "broadcast_in_dim":
        return False
    larger: bool = equation.outvars[0].aval.size > equation.invars[0].aval.size
    return larger


def _function(
    constants: Any, inputs: Any, outputs: Any, equations: Any
) -> Callable[..., list[Any]]:
    jaxpr = core.Jaxpr([], [*constants, *inputs], outputs, equations)
    function: Callable[..., list[Any]] = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))
    return function
