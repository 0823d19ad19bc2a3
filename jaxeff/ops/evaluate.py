"""Functions of arrays, evaluated operation by operation with other meanings of some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
from jax.extend import core

Apply = Callable[[Any, list[Any]], list[Any]]

#: Operations that are a function themselves, which is evaluated in their place.
_FUNCTIONS = {"jit": "jaxpr", "pjit": "jaxpr"}
#: Those that have a derivative of their own, for what is not differentiated any more.
DIFFERENTIATED = {**_FUNCTIONS, "custom_jvp_call": "call_jaxpr"}


def evaluated(
    function: Callable[..., Any],
    apply: Apply,
    is_leaf: Callable[[Any], bool] | None = None,
    functions: Mapping[str, str] = MappingProxyType(_FUNCTIONS),
) -> Callable[..., Any]:
    """Returns a function that does ``apply(equation, values)`` for every operation of another one.

    Args:
      function: a function of trees of arrays.
      apply: returns the results of an equation of a jaxpr for such operands.
      is_leaf: says what stands for an array in the arguments; it has ``shape`` and ``dtype``.
      functions: names of operations that are functions, and of the parameter that holds it.
    """

    def evaluate(closed: Any, values: list[Any]) -> list[Any]:
        jaxpr = closed.jaxpr
        inputs = zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *values), strict=True)
        environment = dict(inputs)

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else environment[atom]

        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            inner = functions.get(equation.primitive.name)
            if inner:
                results = evaluate(equation.params[inner], operands)
            else:
                results = apply(equation, operands)
            environment |= dict(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def run(*args: Any) -> Any:
        values, structure = jax.tree.flatten(args, is_leaf)
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values]
        arguments = jax.tree.unflatten(structure, shapes)
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        return jax.tree.unflatten(jax.tree.structure(shape), evaluate(closed, values))

    return run


def plainly(equation: Any, values: list[Any]) -> list[Any]:
    """Returns what an operation gives by itself."""
    atoms = zip(equation.invars, values, strict=True)
    variables = {atom: value for atom, value in atoms if not isinstance(atom, core.Literal)}
    alone = core.Jaxpr([], list(variables), equation.outvars, [equation])
    results: list[Any] = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*variables.values())
    return results
