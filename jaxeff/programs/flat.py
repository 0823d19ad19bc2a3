"""A function's operations as one list, with what depends on constants alone computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from jaxeff.programs.rewriting import rewritten
from jaxeff.typing import Array

#: Computes the results of an operation from its number and operands.
Operation = Callable[[int, Sequence[Any]], Sequence[Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class FlatFunction:
    """The operations that depend on a function's input, in order.

    Attributes:
      equations: of JAX, none of which calls another program but for long loops and branches.
      constants: what else they read, by variable.
      input: the variable of the input.
      outputs: variables, or literals, of the results.
      tree: structure of the results.
    """

    equations: tuple[Any, ...]
    constants: Mapping[Any, Array]
    input: Any
    outputs: tuple[Any, ...]
    tree: Any

    def known(self, atom: Any) -> Any:
        """Returns the constant that an operand is, or None for one that depends on the input."""
        return atom.val if isinstance(atom, core.Literal) else self.constants.get(atom)

    def run(self, x: Array, operation: Operation, arrived: Callable[[Any, Any], Any]) -> Any:
        """Returns the results for an input.

        Args:
          x: shaped like the input that the function was traced with.
          operation: computes the results of an equation.
          arrived: maps every variable that depends on the input, and its value, to the value that
            is read in its place.
        """
        values: dict[Any, Any] = {self.input: arrived(self.input, x)}

        def read(atom: Any) -> Any:
            return values[atom] if self.known(atom) is None else self.known(atom)

        for number, equation in enumerate(self.equations):
            results = operation(number, [read(atom) for atom in equation.invars])
            for variable, result in zip(equation.outvars, results, strict=True):
                values[variable] = arrived(variable, result)
        return jax.tree.unflatten(self.tree, [read(atom) for atom in self.outputs])

    def plain(self, number: int, operands: Sequence[Any]) -> Sequence[Any]:
        """Computes an equation as JAX does."""
        return _bound(self.equations[number], operands)


def flattened(function: Callable[[Array], Any], example: Any, unrolled: int) -> FlatFunction:
    """Returns the operations of a function.

    Args:
      function: of one array; its result is a tree of arrays.
      example: an array, or its shape and type.
      unrolled: loops of at most so many steps are written out.
    """
    shaped = jax.ShapeDtypeStruct(example.shape, example.dtype)
    closed, shapes = jax.make_jaxpr(rewritten(function, {}, unrolled), return_shape=True)(shaped)
    jaxpr = closed.jaxpr
    constants = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    equations = []
    for equation in jaxpr.eqns:
        known = [
            atom.val if isinstance(atom, core.Literal) else constants.get(atom)
            for atom in equation.invars
        ]
        if all(value is not None for value in known):
            constants.update(zip(equation.outvars, _bound(equation, known), strict=True))
        else:
            equations.append(equation)
    needed = {a for e in equations for a in e.invars if not isinstance(a, core.Literal)}
    needed |= {a for a in jaxpr.outvars if not isinstance(a, core.Literal)}
    return FlatFunction(
        tuple(equations),
        {variable: value for variable, value in constants.items() if variable in needed},
        jaxpr.invars[0],
        tuple(jaxpr.outvars),
        jax.tree.structure(shapes),
    )


def _bound(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    primitive = equation.primitive
    results = primitive.bind(*operands, **primitive.get_bind_params(equation.params))
    return results if primitive.multiple_results else [results]
