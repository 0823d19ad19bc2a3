"""Writes operations of a function in terms of others, and calls and short loops out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxeff.typing import Array

#: Maps arguments and parameters of a primitive to its results, or to None to leave it as it is.
Rule = Callable[..., list[Any] | None]

#: A function of one array whose operations are looked for in programs, and what is put in place.
Pattern = tuple[Callable[[Array], Array], Callable[[Array], Array]]

#: Primitives that call a program, which is written in their place.
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint")


def rewritten(
    function: Callable[..., Any],
    rules: Mapping[str, Rule],
    unrolled: int = 0,
    patterns: Sequence[Pattern] = (),
) -> Callable[..., Any]:
    """Returns a function whose program has other operations in place of some.

    Programs of longer loops and of branches stay as they are.

    Args:
      function: maps arrays to a tree of arrays.
      rules: by the name of the primitive.
      unrolled: loops of at most so many steps are written out.
      patterns: functions that JAX writes out in several operations, and what replaces them.
    """

    def call(*arrays: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*arrays)
        known = {**rules, **_loops(rules, unrolled, patterns)}
        results = _evaluate(program, arrays, known, patterns)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return call


def primitives(function: Callable[..., Any], *shapes: Any) -> set[str]:
    """Returns the names of all primitives in a function's program, those of inner ones too."""
    names: set[str] = set()

    def look(program: Any) -> None:
        for equation in program.eqns:
            names.add(equation.primitive.name)
            for value in jax.tree.leaves(equation.params, is_leaf=_is_program):
                if _is_program(value):
                    look(_closed(value).jaxpr)

    look(jax.make_jaxpr(function)(*shapes).jaxpr)
    return names


def zeros_between(x: Array, axis: int, factor: int) -> Array:
    """Returns an array with ``factor - 1`` zeros between entries of an axis, not of the first."""
    if factor == 1:
        return x
    length = x.shape[axis] * factor
    spread = jnp.stack([x, *[jnp.zeros_like(x)] * (factor - 1)], axis + 1)
    spread = spread.reshape(-1, *x.shape[1:axis], length, *x.shape[axis + 1 :])
    return jax.lax.slice_in_dim(spread, 0, length - factor + 1, axis=axis)


def largest_so_far(x: Array, *, axis: int, reverse: bool) -> list[Array] | None:
    """Writes a running maximum, ``cummax``, as maxima with itself moved by 1, 2, 4, ... places."""
    length, places = x.shape[axis], 1
    if not isinstance(length, int):
        return None
    while places < length:
        parts = ((places, length), (length - places, length))
        if not reverse:
            parts = ((0, places), (0, length - places))
        moved = [jax.lax.slice_in_dim(x, *part, axis=axis) for part in parts]
        x, places = jnp.maximum(x, jnp.concatenate(moved, axis)), 2 * places
    return [x]


def _unchanged(*arrays: Any, **parameters: Any) -> None:
    """Leaves a primitive as it is."""


def _loops(
    rules: Mapping[str, Rule], unrolled: int, patterns: Sequence[Pattern]
) -> dict[str, Rule]:
    """Returns the rule that writes short loops out."""

    def scan(*arrays: Any, jaxpr: Any, length: int, reverse: bool, **counts: Any) -> Any:
        if not isinstance(length, int) or length > unrolled:  # it may be open
            return None
        if "num_consts" in counts:
            first, carried = counts["num_consts"], counts["num_carry"]
        else:  # as later versions of JAX say it
            first, carried = (len(part) for part in counts["ft_in"].unpack()[:2])
        last = first + carried
        constants, carry, rows = arrays[:first], list(arrays[first:last]), arrays[last:]
        outputs = []
        for step in range(length)[:: -1 if reverse else 1]:
            values = [*constants, *carry, *(row[step] for row in rows)]
            results = _evaluate(_closed(jaxpr), values, {**rules, "scan": scan}, patterns)
            carry = results[: len(carry)]
            outputs.append(results[len(carry) :])
        ordered = outputs[:: -1 if reverse else 1]
        return [*carry, *(jnp.stack(each) for each in zip(*ordered, strict=True))]

    return {"scan": scan} if unrolled else {}


def _is_program(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def _closed(program: Any) -> Any:
    """Returns a program with its constants, of which an open one has none."""
    return program if hasattr(program, "consts") else core.ClosedJaxpr(program, ())


def _evaluate(
    program: Any, arrays: Any, rules: Mapping[str, Rule], patterns: Sequence[Pattern]
) -> list[Any]:
    """Returns what a closed program makes of arrays."""
    jaxpr = program.jaxpr
    known: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else known[variable]

    variables = (*jaxpr.constvars, *jaxpr.invars)
    known.update(zip(variables, (*program.consts, *arrays), strict=True))
    found = _found(jaxpr, patterns) if patterns else {}
    for equation in jaxpr.eqns:
        if equation.outvars[0] in found:
            argument, replacement = found[equation.outvars[0]]
            known[equation.outvars[0]] = replacement(read(argument))
            continue
        values = [read(v) for v in equation.invars]
        with _scope(str(equation.source_info.name_stack)):
            results = _results(equation, values, rules, patterns)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _scope(name: str) -> contextlib.AbstractContextManager[Any]:
    return jax.named_scope(name) if name else contextlib.nullcontext()


def _results(
    equation: Any, values: list[Any], rules: Mapping[str, Rule], patterns: Sequence[Pattern]
) -> list[Any]:
    """Returns what one operation, or what is in its place, makes of values."""
    primitive, parameters = equation.primitive, equation.params
    results = rules.get(primitive.name, _unchanged)(*values, **parameters)
    if results is None and primitive.name in _CALLS:
        inner = parameters.get("jaxpr") or parameters["call_jaxpr"]
        results = _evaluate(_closed(inner), values, rules, patterns)
    elif results is None:
        bound = primitive.bind(*values, **primitive.get_bind_params(parameters))
        results = bound if primitive.multiple_results else [bound]
    return results


def _found(jaxpr: Any, patterns: Sequence[Pattern]) -> dict[Any, tuple[Any, Any]]:
    """Returns the argument and the replacement of every pattern, by the variable of its result."""
    makers = _makers(jaxpr)
    found = {}
    for variable in makers:
        shape, kind = getattr(variable.aval, "shape", None), getattr(variable.aval, "dtype", None)
        if kind is None or not jnp.issubdtype(kind, jnp.floating):
            continue
        for function, replacement in patterns:
            argument = _argument(_program(function, shape, kind), variable, makers)
            if argument is not None:
                found[variable] = argument, replacement
    return found


@functools.cache
def _program(function: Callable[[Array], Array], shape: Any, kind: Any) -> Any:
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, kind)).jaxpr


def _makers(jaxpr: Any) -> dict[Any, Any]:
    return {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}


def _argument(pattern: Any, variable: Any, makers: Mapping[Any, Any]) -> Any:
    """Returns the variable from which operations as in the pattern make another; None if not."""
    (argument,), (result,) = pattern.invars, pattern.outvars
    steps = _makers(pattern)
    bound: dict[Any, Any] = {}

    def agree(expected: Any, given: Any) -> bool:
        if isinstance(expected, core.Literal) or isinstance(given, core.Literal):
            return (
                isinstance(expected, core.Literal)
                and isinstance(given, core.Literal)
                and bool(expected.val == given.val)
            )
        if expected is argument:
            return bound.setdefault(argument, given) is given
        step, equation = steps[expected], makers.get(given)
        return (
            equation is not None
            and step.primitive is equation.primitive
            and step.params == equation.params
            and all(map(agree, step.invars, equation.invars))
        )

    return bound.get(argument) if agree(result, variable) else None
