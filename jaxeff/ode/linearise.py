"""One step of a cell from many states at once, with the step's Jacobian, exact or thinned out.

The states of a core's carry are gathered in one array ``[..., arrays, width]``, one row for each
array of the carry if they are equally wide, else one row in all; step counters stay apart. The two
forms of a Jacobian are those of `jaxeff.ode.newton`.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.ode.cells import Cell, ProductCell
from jaxeff.typing import Array, Carry, Params


class Plan(NamedTuple):
    """Static choices of one evaluation; hashable, so that equal plans share compiled code."""

    cell: Cell
    structure: Any  # of the core's carry
    counter: tuple[bool, ...]  # which of its leaves are counters
    widths: tuple[int, ...]  # of the other leaves
    arrays: int  # into how many equally wide arrays those are gathered
    dense: bool
    tolerance: float
    max_iterations: int
    damping: float
    fallback: bool


def split(plan: Plan, core: Carry) -> tuple[Array, list[Array]]:
    """Returns the core's states in one array ``[..., arrays, width]``, and its counters."""
    leaves = list(zip(jax.tree.leaves(core), plan.counter, strict=True))
    state = jnp.concatenate([leaf for leaf, counter in leaves if not counter], axis=-1)
    state = state.reshape(*state.shape[:-1], plan.arrays, -1)
    return state, [leaf for leaf, counter in leaves if counter]


def join(plan: Plan, state: Array, counters: list[Array]) -> Carry:
    """Returns the core's carry; the inverse of `split`."""
    flat = state.reshape(*state.shape[:-2], -1)
    ends = [sum(plan.widths[: i + 1]) for i in range(len(plan.widths) - 1)]
    states, counts = iter(jnp.split(flat, ends, axis=-1)), iter(counters)
    leaves = [next(counts) if counter else next(states) for counter in plan.counter]
    return jax.tree.unflatten(plan.structure, leaves)


def advance(plan: Plan, params: Params, state: Array, given: Any, cell: Cell | None = None):
    """Returns the state one step later; ``given`` are the input, the counters and the mask."""
    x, counters, mask = given
    new, _ = split(plan, (cell or plan.cell).advance(params, join(plan, state, counters), x))
    return new if mask is None else jnp.where(mask[..., None], new, state)


def linearise(plan: Plan, params: Params, state: Array, given: Any) -> tuple[Array, Array]:
    """Returns the next states from ``[time, ..., arrays, width]`` and the Jacobians of the step."""
    fused = isinstance(plan.cell, ProductCell) and plan.cell.product_form
    if plan.dense:
        return (_dense_by_columns if fused else _dense_by_rows)(plan, params, state, given)
    if fused and set(plan.widths) == {plan.cell.features}:
        return _diagonal_by_kernels(plan, params, state, given)
    return _diagonal_by_rows(plan, params, state, given)


def _dense_by_columns(plan, params, state, given):
    """Forward mode for each step by itself: unit tangents are shared by all steps until they meet
    an element-wise factor, so the product with the kernels is formed once for all of them.
    """
    lead, size = state.shape[:-2], math.prod(state.shape[-2:])
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(lead) :]), (state, given))

    def column(state, given):
        def following(flat):
            new = advance(plan, params, flat.reshape(state.shape), given).ravel()
            return new, new

        return jax.jacfwd(following, has_aux=True)(state.ravel())

    jacobian, new = jax.vmap(column)(*flat)
    return new.reshape(state.shape), jacobian.reshape(*lead, size, size)


def _dense_by_rows(plan, params, state, given):
    """Reverse mode, for cells that have no forward mode: one cotangent per entry of the state."""
    size = math.prod(state.shape[-2:])
    new, pull = jax.vjp(lambda s: advance(plan, params, s, given), state)
    units = jnp.eye(size, dtype=state.dtype).reshape(size, *state.shape[-2:])
    rows = jax.vmap(lambda unit: pull(jnp.broadcast_to(unit, state.shape))[0])(units)
    return new, jnp.moveaxis(rows.reshape(*rows.shape[:-2], size), 0, -2)


def _diagonal_by_rows(plan, params, state, given):
    """The same, one feature after the other, of which only the entries of that feature are kept."""
    new, pull = jax.vjp(lambda s: advance(plan, params, s, given), state)
    arrays, width = state.shape[-2:]

    def feature(index):
        unit = jnp.zeros(state.shape, state.dtype)
        rows = [pull(unit.at[..., i, index].set(1))[0][..., index] for i in range(arrays)]
        return jnp.stack(rows, axis=-2)

    entries = jax.lax.map(feature, jnp.arange(width))
    return new, jnp.moveaxis(entries, 0, -1)


def _diagonal_by_kernels(plan, params, state, given):
    """All else being element-wise, only the products mix features: with their diagonals in place
    of them, one tangent of ones per array of the state gives the whole answer.
    """
    thin = copy.copy(plan.cell)
    for name in ("product", "share"):
        object.__setattr__(thin, name, functools.partial(_thin, getattr(plan.cell, name)))
    new, push = jax.linearize(lambda s: advance(plan, params, s, given, thin), state)
    columns = []
    for i in range(plan.arrays):
        unit = jnp.zeros_like(state).at[..., i, :].set(1)
        columns.append(push(unit))
    return new, jnp.stack(columns, axis=-2)


def _thin(product, kernels, hidden):
    """Returns ``product(kernels, hidden)`` with the tangent of the product's diagonals alone.

    ``hidden`` holds one or more arrays of a block's width side by side.
    """
    fixed = jax.lax.stop_gradient(hidden)
    moving = hidden - fixed  # zero, with the tangent of hidden
    blocks = product(kernels, fixed)
    matrices = product(kernels, jnp.eye(hidden.shape[-1], dtype=hidden.dtype))
    thin = []
    for block, matrix in zip(blocks, matrices, strict=True):
        width = matrix.shape[-1]
        diagonals = jnp.diagonal(matrix.reshape(-1, width, width), axis1=-2, axis2=-1)
        parts = moving.reshape(*moving.shape[:-1], -1, width)
        thin.append(block + (parts * diagonals).sum(-2))
    return tuple(thin)
