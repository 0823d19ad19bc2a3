"""One step of a cell from many states at once, with its exact or block-diagonal Jacobian.

The arrays of a cell's state are gathered in one array ``[..., arrays, width]``: one row per array
if they are equally wide, else a single row. The two forms of a Jacobian are those of
`jaxeff.ode.newton`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.ode.activations import Blocks
from jaxeff.ode.carry import parts_of
from jaxeff.ode.cells import Cell
from jaxeff.ode.form import steps_fused
from jaxeff.ode.fused import Form, FusedCell, Preactivation, fused_step
from jaxeff.ode.fused_scan import Inputs
from jaxeff.typing import Array, Params


class NewtonOptions(NamedTuple):
    """Static choices of one evaluation; hashable, so that equal options share compiled code."""

    cell: Cell
    structure: Any  # of the state
    widths: tuple[int, ...]  # of its arrays
    parts: bool  # whether the carry is a CarryParts
    dense: bool
    tolerance: float
    max_iterations: int
    damping: float
    fallback: bool

    @property
    def arrays(self) -> int:
        """Number of equally wide arrays in the gathered state."""
        return len(self.widths) if len(set(self.widths)) == 1 else 1


def gather(options: NewtonOptions, state: Any) -> Array:
    """Returns the arrays of a state as one array ``[..., arrays, width]``."""
    joined = jnp.concatenate(jax.tree.leaves(state), axis=-1)
    return joined.reshape(*joined.shape[:-1], options.arrays, -1)


def spread(options: NewtonOptions, gathered: Array) -> Any:
    """Returns the state; the inverse of `gather`."""
    flat = gathered.reshape(*gathered.shape[:-2], -1)
    ends = [sum(options.widths[: i + 1]) for i in range(len(options.widths) - 1)]
    return jax.tree.unflatten(options.structure, jnp.split(flat, ends, axis=-1))


def advance(options: NewtonOptions, params: Params, state: Array, inputs: Inputs) -> Array:
    """Returns the gathered state one step later."""
    before = spread(options, state)
    carry = inputs.known._replace(state=before) if options.parts else before
    after, _ = options.cell.step(params, carry, inputs.x)
    return _kept(inputs.mask, gather(options, parts_of(after).state), state)


def _kept(mask: Array | None, new: Array, old: Array) -> Array:
    """Returns the new gathered state at the real steps, else the old one."""
    return new if mask is None else jnp.where(mask[..., None], new, old)


def linearise(
    options: NewtonOptions, params: Params, state: Array, inputs: Inputs
) -> tuple[Array, Array]:
    """Returns the next states from ``[time, ..., arrays, width]`` and the Jacobians of the step."""
    fused = steps_fused(options.cell)
    if options.dense:
        return (_dense_by_columns if fused else _dense_by_rows)(options, params, state, inputs)
    if fused and set(options.widths) == {options.cell.features}:
        return _diagonal_by_kernels(options, params, state, inputs)
    return _diagonal_by_rows(options, params, state, inputs)


def _dense_by_columns(
    options: NewtonOptions, params: Params, state: Array, inputs: Inputs
) -> tuple[Array, Array]:
    """Forward mode per step.

    Unit tangents are the same for all steps up to the first element-wise factor, so their product
    with the kernels is computed once.
    """
    lead, size = state.shape[:-2], math.prod(state.shape[-2:])
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(lead) :]), (state, inputs))

    def column(state: Array, inputs: Inputs) -> tuple[Array, Array]:
        def following(flat: Array) -> tuple[Array, Array]:
            new = advance(options, params, flat.reshape(state.shape), inputs).ravel()
            return new, new

        jacobian, new = jax.jacfwd(following, has_aux=True)(state.ravel())
        return jacobian, new

    jacobian, new = jax.vmap(column)(*flat)
    return new.reshape(state.shape), jacobian.reshape(*lead, size, size)


def _dense_by_rows(
    options: NewtonOptions, params: Params, state: Array, inputs: Inputs
) -> tuple[Array, Array]:
    """Reverse mode, for cells that have no forward mode: one cotangent per entry of the state."""
    size = math.prod(state.shape[-2:])
    new, pull = jax.vjp(lambda s: advance(options, params, s, inputs), state)
    units = jnp.eye(size, dtype=state.dtype).reshape(size, *state.shape[-2:])
    rows = jax.vmap(lambda unit: pull(jnp.broadcast_to(unit, state.shape))[0])(units)
    return new, jnp.moveaxis(rows.reshape(*rows.shape[:-2], size), 0, -2)


def _diagonal_by_rows(
    options: NewtonOptions, params: Params, state: Array, inputs: Inputs
) -> tuple[Array, Array]:
    """Reverse mode, one feature at a time; keeps only the entries that couple equal features."""
    new, pull = jax.vjp(lambda s: advance(options, params, s, inputs), state)
    arrays, width = state.shape[-2:]

    def feature(index: Array) -> Array:
        unit = jnp.zeros(state.shape, state.dtype)
        rows = [pull(unit.at[..., i, index].set(1))[0][..., index] for i in range(arrays)]
        return jnp.stack(rows, axis=-2)

    entries = jax.lax.map(feature, jnp.arange(width))
    return new, jnp.moveaxis(entries, 0, -1)


def _diagonal_by_kernels(
    options: NewtonOptions, params: Params, state: Array, inputs: Inputs
) -> tuple[Array, Array]:
    """Forward mode with the matrix products replaced by their diagonals.

    Only these products mix features, so one tangent of ones per array of the state gives the
    block-diagonal Jacobian.
    """
    cell = options.cell
    assert isinstance(cell, FusedCell)
    kernels = cell.prepare(params)
    projected = cell.project(kernels, inputs.x, inputs.known)
    thin = Form(functools.partial(_thin, cell.preactivation))

    def following(state: Array) -> Array:
        start = spread(options, state)
        new, _ = fused_step(cell, kernels, start, projected, inputs.known.steps, thin)
        return _kept(inputs.mask, gather(options, new), state)

    new, push = jax.linearize(following, state)
    columns = []
    for i in range(options.arrays):
        unit = jnp.zeros_like(state).at[..., i, :].set(1)
        columns.append(push(unit))
    return new, jnp.stack(columns, axis=-2)


def _thin(preactivation: Preactivation, kernels: Any, hidden: Array, projected: Blocks) -> Blocks:
    """Returns the pre-activation with the tangent of the products' diagonals alone.

    ``hidden`` holds one or more arrays of a block's width side by side.
    """
    fixed = jax.lax.stop_gradient(hidden)
    moving = hidden - fixed  # zero, with the tangent of hidden
    blocks = preactivation(kernels, fixed, projected)
    rows = jnp.eye(hidden.shape[-1], dtype=hidden.dtype)
    nothing = tuple(jnp.zeros((len(rows), p.shape[-1]), p.dtype) for p in projected)
    thin = []
    for block, matrix in zip(blocks, preactivation(kernels, rows, nothing), strict=True):
        width = matrix.shape[-1]
        diagonals = jnp.diagonal(matrix.reshape(-1, width, width), axis1=-2, axis2=-1)
        parts = moving.reshape(*moving.shape[:-1], -1, width)
        thin.append(block + (parts * diagonals).sum(-2))
    return tuple(thin)
