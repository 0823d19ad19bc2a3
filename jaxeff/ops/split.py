"""Splits a function into what can be computed before a loop and what has to stand in it.

Kernels of accelerators take few operations: products and element-wise ones, but not, say, a gather
of the step size of a time step. A loop's body often needs those for numbers alone that are known
before the loop starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

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
