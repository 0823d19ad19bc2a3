"""Products in half precision as Mosaic takes them: summed in single precision, then rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxeff.ops.precision import wide


def summed_wide(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of the same values whose products in half precision are summed in single.

    XLA sums them so whatever the type of the result; a kernel's product has to say it.
    """

    def run(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        results = _evaluate(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return run


def _evaluate(closed: Any, values: list[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    inputs = zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *values), strict=True)
    environment = dict(inputs)

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else environment[atom]

    for equation in jaxpr.eqns:
        results = _apply(equation, [read(atom) for atom in equation.invars])
        environment |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, values: list[Any]) -> list[Any]:
    atoms = zip(equation.invars, values, strict=True)
    variables = {atom: value for atom, value in atoms if not isinstance(atom, core.Literal)}
    primitive, params = equation.primitive, equation.params
    if primitive.name in ("jit", "pjit"):
        return _evaluate(params["jaxpr"], values)
    if primitive.name == "dot_general":
        dtype = equation.outvars[0].aval.dtype
        params = {**params, "preferred_element_type": jnp.dtype(wide(dtype))}
        return [primitive.bind(*values, **params).astype(dtype)]
    alone = core.Jaxpr([], list(variables), equation.outvars, [equation])
    function = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))
    results: list[Any] = function(*variables.values())
    return results
