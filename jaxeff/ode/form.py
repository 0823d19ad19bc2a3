"""Checks that a cell meets the conditions of `jaxeff.ode.FusedCell` for the fused backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.ode.carry import parts_of
from jaxeff.ode.cells import Cell
from jaxeff.ode.fused import FusedCell
from jaxeff.typing import Array, Carry, Params


def steps_fused(cell: Cell) -> bool:
    """Whether a cell's step is that of `jaxeff.ode.FusedCell`."""
    fused = isinstance(cell, FusedCell) and cell.fused
    return fused and not _overridden(type(cell), "step", "fused")


def departure(cell: Cell, params: Params, carry: Carry, xs: Array) -> str:
    """Returns the reason why a cell cannot use the fused backward pass, or "" if it can.

    That backward pass assumes that certain functions of the cell are linear; for a nonlinear one it
    would return a wrong gradient.

    Args:
      cell: any cell.
      params: its parameters.
      carry: the carry before the first step.
      xs: inputs ``[time, ..., features]``.
    """
    name = type(cell).__name__
    if not isinstance(cell, FusedCell) or not cell.fused:
        return f"{name} is not"
    if not steps_fused(cell):
        return f"{name}.step overrides FusedCell.step"

    def shapes(params: Params, carry: Carry, x: Array) -> tuple[Any, ...]:
        kernels, parts = cell.prepare(params), parts_of(carry)
        projected = cell.project(kernels, x, parts._replace(state=None))
        return kernels, parts.state, cell.hidden(parts.state, parts.state), projected

    kernels, state, hidden, projected = jax.eval_shape(shapes, params, carry, xs[0])
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in jax.tree.leaves((kernels, state))):
        return f"{name} has arrays in its state or kernels that are not floating point"

    checks: list[tuple[str, Callable[..., Any], Any, tuple[Any, ...]]] = [
        ("output", lambda _, state: cell.output(state), (), (state,)),
        ("hidden", lambda _, *states: cell.hidden(*states), (), (state, state)),
        ("preactivation", cell.preactivation, kernels.recurrent, (hidden, projected)),
    ]
    if jax.tree.leaves(kernels.shared):
        checks.append(("preactivation", cell.preactivation, kernels.shared, (hidden, projected)))
    for method, function, fixed, arguments in checks:
        if not _is_linear(function, fixed, *arguments):
            return f"{name}.{method} is not linear"
    return ""


def _overridden(cls: type, method: str, by: str) -> bool:
    """Whether a class overrides ``method`` below the class that defines ``by``."""
    place = {
        name: number for number, c in reversed(list(enumerate(cls.__mro__))) for name in vars(c)
    }
    return place[method] < place[by]


def _is_linear(function: Callable[..., Any], fixed: Any, *like: Any) -> bool:
    """Whether JAX can transpose the function in all but its first argument: only linear ones."""

    def transposed(fixed: Any, cotangent: Any) -> Any:
        return jax.linear_transpose(lambda *a: function(fixed, *a), *like)(cotangent)

    try:
        jax.eval_shape(transposed, fixed, jax.eval_shape(function, fixed, *like))
    except Exception:  # the error depends on the first nonlinear primitive
        return False
    return True
