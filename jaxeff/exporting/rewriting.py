"""Writes operations that a format does not have in terms of others, in a function's program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core

#: Maps arguments and parameters of a primitive to its results, or to None to leave it as it is.
Rule = Callable[..., list[Any] | None]

#: Primitives that call a program, which is written in their place.
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint")


def rewritten(function: Callable[..., Any], rules: Mapping[str, Rule]) -> Callable[..., Any]:
    """Returns a function whose program has other operations in place of some.

    Programs of loops and branches stay as they are.

    Args:
      function: maps arrays to a tree of arrays.
      rules: by the name of the primitive.
    """

    def call(*arrays: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*arrays)
        results = _evaluate(program.jaxpr, program.consts, arrays, rules)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return call


def _unchanged(*arrays: Any, **parameters: Any) -> None:
    """Leaves a primitive as it is."""


def _evaluate(
    program: core.Jaxpr, constants: Any, arrays: Any, rules: Mapping[str, Rule]
) -> list[Any]:
    known: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else known[variable]

    known.update(zip((*program.constvars, *program.invars), (*constants, *arrays), strict=True))
    for equation in program.eqns:
        primitive, parameters = equation.primitive, equation.params
        values = [read(v) for v in equation.invars]
        rule = rules.get(primitive.name, _unchanged)
        results = rule(*values, **parameters)
        if results is None and primitive.name in _CALLS:
            inner = parameters.get("jaxpr") or parameters["call_jaxpr"]
            closed = inner if hasattr(inner, "consts") else core.ClosedJaxpr(inner, ())
            results = _evaluate(closed.jaxpr, closed.consts, values, rules)
        elif results is None:
            bound = primitive.bind(*values, **primitive.get_bind_params(parameters))
            results = bound if primitive.multiple_results else [bound]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in program.outvars]
