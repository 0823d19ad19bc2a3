"""Whether a cell keeps what `jaxeff.ode.ProductCell` demands, so that its own backward is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.ode.cells import Cell, ProductCell
from jaxeff.typing import Array, Carry, Params


def departure(cell: Cell, params: Params, carry: Carry, xs: Array, mask: Array | None) -> str:
    """Says in half a sentence why a cell cannot be run in product form; "" if it can.

    The backward passes of the product form skip what the chain rule needs nothing of where a
    function is linear. Of a function that is not they would give another function's gradient.

    Args:
      cell: any cell.
      params: its parameters.
      carry: the carry before the first step.
      xs: inputs ``[time, ..., features]``.
      mask: ``[time, ..., 1]`` or None.
    """
    name = type(cell).__name__
    if not isinstance(cell, ProductCell) or not cell.product_form:
        return f"{name} is not"
    for method in ("step", "advance", "given"):
        if overridden(type(cell), method, "product_form"):
            return f"{name}.{method} replaces the one that the form stands for"

    def shapes(params, carry, xs, mask):
        kernels = cell.prepare(params)
        core, inputs = cell.enter(carry, xs, mask)
        inner = cell.begin(core)
        hidden = cell.hidden(inner)
        given = cell.given(kernels, cell.project(kernels, inputs[0]), inner)
        return kernels, core, inner, hidden, cell.product(kernels.recurrent, hidden), given

    found = jax.eval_shape(shapes, params, carry, xs, mask)
    kernels, core, inner, hidden, from_state, given = found
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in jax.tree.leaves((kernels, core))):
        return f"{name} keeps what is not a floating-point number in its carry or its kernels"

    checks: dict[str, tuple[Callable[..., Any], Any, tuple[Any, ...]]] = {
        "output": (lambda _, core: cell.output(core), (), (core,)),
        "begin": (lambda _, core: cell.begin(core), (), (core,)),
        "end": (lambda _, inner: cell.end(inner), (), (inner,)),
        "hidden": (lambda _, inner: cell.hidden(inner), (), (inner,)),
        "combine": (lambda _, *shares: cell.combine(*shares), (), (from_state, given)),
        "product": (cell.product, kernels.recurrent, (hidden,)),
        "share": (cell.share, kernels.shared, (hidden,)),
    }
    for method, (function, fixed, arguments) in checks.items():
        if not _is_linear(function, fixed, *arguments):
            return f"{name}.{method} is not linear"
    return ""


def overridden(cls: type, method: str, by: str) -> bool:
    """Whether a class changes a method without changing another one that goes with it."""
    place = {
        name: number for number, c in reversed(list(enumerate(cls.__mro__))) for name in vars(c)
    }
    return place[method] < place[by]


def _is_linear(function: Callable[..., Any], fixed: Any, *like: Any) -> bool:
    """Whether JAX can transpose a function of all but its first argument, as it can linear ones."""

    def transposed(fixed, cotangent):
        return jax.linear_transpose(lambda *a: function(fixed, *a), *like)(cotangent)

    try:
        jax.eval_shape(transposed, fixed, jax.eval_shape(function, fixed, *like))
    except Exception:  # whatever the first primitive that is not linear raises
        return False
    return True
