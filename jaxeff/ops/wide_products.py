"""Products as kernels of accelerators take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.ops.evaluate import evaluated, plainly
from jaxeff.ops.precision import wide


def summed_wide(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of the same values whose products in half precision are summed in single.

    XLA sums them so whatever the type of the result; a kernel's product has to say it.
    """

    def apply(equation: Any, values: list[Any]) -> list[Any]:
        if equation.primitive.name != "dot_general":
            return plainly(equation, values)
        return [wide_product(equation, *values).astype(equation.outvars[0].aval.dtype)]

    return evaluated(function, apply)


def wide_product(equation: Any, a: Any, b: Any) -> Any:
    """Returns the product that an equation says of two arrays, in single precision at least."""
    dtype = jnp.dtype(wide(equation.outvars[0].aval.dtype))
    return equation.primitive.bind(a, b, **{**equation.params, "preferred_element_type": dtype})


class _Joined(NamedTuple):
    """An array ``[rows, width]`` as the parts that stand side by side in it."""

    parts: tuple[Any, ...]


def multiplied_in_parts(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of the same values that multiplies arrays before they are joined.

    Where ``function`` joins arrays ``[rows, width]`` to one and multiplies that by a matrix, each
    is multiplied by its rows of the matrix: kernels cannot always join arrays, and what the
    transpose of a product gives can be cut no better.
    """

    def apply(equation: Any, values: list[Any]) -> list[Any]:
        name = equation.primitive.name
        out = equation.outvars[0].aval
        if name == "concatenate" and equation.params["dimension"] == out.ndim - 1 == 1:
            return [_Joined(tuple(values))]
        if isinstance(values[0], _Joined):
            if name == "convert_element_type":
                parts = tuple(part.astype(out.dtype) for part in values[0].parts)
                return [_Joined(parts)]
            if name == "dot_general" and equation.params["dimension_numbers"][0][0] == (1,):
                return [_product_in_parts(equation, *values).astype(out.dtype)]
        return plainly(equation, [_whole(value) for value in values])

    def run(*args: Any) -> Any:
        return jax.tree.map(
            _whole,
            evaluated(function, apply)(*args),
            is_leaf=lambda value: isinstance(value, _Joined),
        )

    return run


def _product_in_parts(equation: Any, joined: _Joined, matrix: Any) -> Any:
    (axis,) = equation.params["dimension_numbers"][0][1]
    start, total = 0, 0
    for part in joined.parts:
        stop = start + part.shape[1]
        rows = jax.lax.slice_in_dim(matrix, start, stop, axis=axis)
        total, start = total + wide_product(equation, part, rows), stop
    return total


def _whole(value: Any) -> Any:
    return jnp.concatenate(value.parts, -1) if isinstance(value, _Joined) else value
