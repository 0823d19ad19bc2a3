"""A scan of a `FusedCell` over blocks of steps, with a custom backward pass.

Differentiating a plain scan keeps every intermediate array of every step and adds each step's
weight gradient to an accumulator. For a `FusedCell` it is enough to keep the activated values,
recompute the states from them without matrix products, and compute the weight gradient of a block
of steps in one large product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.ode import activations
from jaxeff.ode.activations import Blocks
from jaxeff.ode.carry import CarryParts
from jaxeff.ode.fused import FusedCell, InnerStep, Kernels, fused_step, scan_inner_steps
from jaxeff.ops.precision import narrowed, widened
from jaxeff.typing import Array


class FusedOptions(NamedTuple):
    """Static choices of one scan; hashable, so that equal options share compiled code.

    Attributes:
      cell: the cell.
      store: whether the activated values of all steps are kept, or computed again block by block.
      sequence: whether the outputs of all steps are returned.
    """

    cell: FusedCell
    store: bool
    sequence: bool


class Inputs(NamedTuple):
    """Inputs of the steps, each array with the leading axes of the steps.

    Attributes:
      x: inputs ``[..., inputs]``.
      known: the parts of the carry other than the state, before each step.
      mask: ``[..., 1]``, true at the real steps, or None.
    """

    x: Array
    known: CarryParts
    mask: Array | None


def keep(mask: Array | None, new: Any, old: Any) -> Any:
    """Returns ``new`` at real steps and ``old`` at padded ones."""
    if mask is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(mask, n, o), new, old)


def scan_blocks_plainly(options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs):
    """Runs the steps of inputs ``[blocks, block, batch, features]``, differentiated by JAX.

    Returns:
      the last state, and the outputs in blocks like the inputs', or None.
    """

    def block(state, inputs):
        state, ys, _ = _block_forward(options, kernels, state, inputs, store=False)
        return state, ys

    return jax.lax.scan(block, state, inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_blocks(options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs):
    """Runs the same steps with the custom backward pass."""
    return scan_blocks_plainly(options, kernels, state, inputs)


def _forward(options, kernels, state, inputs):
    def block(state, inputs):
        new, ys, t = _block_forward(options, kernels, state, inputs, store=options.store)
        return new, (ys, state, t)

    state, (ys, starts, t) = jax.lax.scan(block, state, inputs)
    return (state, ys), (kernels, inputs, starts, t)


def _backward(options, residuals, cotangents):
    kernels, inputs, starts, t = residuals
    d_state, d_ys = cotangents

    def block(carry, step):
        d_state, total = carry
        start, inputs, t, d_y = step
        if not options.store:
            _, _, t = _block_forward(options, kernels, start, inputs, store=True)
        d_state, d_kernels, d_x = _block_backward(options, kernels, start, inputs, t, d_state, d_y)
        return (d_state, _add(total, widened(d_kernels))), d_x

    zeros = jax.tree.map(jnp.zeros_like, widened(kernels))
    (d_state, d_kernels), (d_x, d_known) = jax.lax.scan(
        block, (d_state, zeros), (starts, inputs, t, d_ys), reverse=True
    )
    return narrowed(d_kernels, kernels), d_state, Inputs(d_x, d_known, None)


scan_blocks.defvjp(_forward, _backward)


def _block_forward(
    options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs, store: bool
):
    """Runs one block; returns the state, the outputs and, if asked, the activated values."""
    cell = options.cell
    # Inputs are projected a block at a time. Inputs of few features are projected inside the loop:
    # the product costs less than the memory traffic of its result.
    at_once = inputs.x.shape[-1] > 4 or cell.inner_steps > 1
    projected = cell.project(kernels, inputs.x, inputs.known) if at_once else None

    def step(state, inputs):
        (x, known, mask), projected = inputs
        if projected is None:
            projected = cell.project(kernels, x, known)
        new, t = fused_step(cell, kernels, state, projected, known.steps)
        state = keep(mask, new, state)
        return state, (cell.output(state) if options.sequence else None, t if store else None)

    state, (ys, t) = jax.lax.scan(step, state, (inputs, projected))
    return state, ys, t


def _block_backward(options, kernels, start, inputs, t, d_state, d_ys):
    """Returns the cotangents of a block's initial state, of the kernels and of its inputs."""
    cell, steps, mask = options.cell, inputs.known.steps, inputs.mask
    has_shared = bool(jax.tree.leaves(kernels.shared))
    has_coefficients = bool(jax.tree.leaves(kernels.coefficients))

    # First pass, no products: the states again, from the activated values.
    def rebuild(start, inputs):
        t, steps, mask = inputs

        def inner_step(state, inputs):
            number, t = inputs
            at = InnerStep(number, start, steps)
            return cell.update(kernels.coefficients, state, t, at), state

        new, states = scan_inner_steps(cell, inner_step, start, t)
        return keep(mask, new, start), states

    _, states = jax.lax.scan(rebuild, start, (t, steps, mask))

    # Second pass, backward in time: one product per inner step carries the cotangent on.
    like = jax.tree.map(jnp.zeros_like, start)
    hidden_like, pull_hidden = jax.vjp(cell.hidden, like, like)
    _, pull_output = jax.vjp(cell.output, like)
    first = jax.tree.map(lambda a: a[0], (inputs.x, inputs.known))
    projected_like = _zeros(jax.eval_shape(lambda x: cell.project(kernels, *x), first))
    pull_recurrent, pull_shared = (
        jax.vjp(functools.partial(cell.preactivation, k), hidden_like, projected_like)[1]
        for k in (kernels.recurrent, kernels.shared if has_shared else kernels.recurrent)
    )

    def back(d_state, inputs):
        t, states, steps, mask, d_y = inputs
        start = jax.tree.map(lambda a: a[0], states)
        if d_y is not None:
            d_state = _add(d_state, pull_output(d_y)[0])
        nothing = jax.tree.map(jnp.zeros_like, d_state)
        skipped = nothing if mask is None else keep(mask, nothing, d_state)

        def inner_step(carry, inputs):
            d_new, d_start = carry
            number, t, state = inputs

            def update(state, t, start):
                at = InnerStep(number, start, steps)
                return cell.update(kernels.coefficients, state, t, at)

            d_old, d_t, direct = jax.vjp(update, state, t, start)[1](d_new)
            d_a = activations.backward(cell.activations, t, d_t)
            through_state, through_start = pull_hidden(pull_recurrent(d_a)[0])
            d_start = _add(d_start, _add(direct, through_start))
            return (_add(d_old, through_state), d_start), (d_a, d_new)

        d_both = keep(mask, d_state, nothing), nothing
        (d_old, d_start), (d_a, d_new) = scan_inner_steps(
            cell, inner_step, d_both, t, states, reverse=True
        )
        if has_shared:
            d_projected = _sum(jax.vmap(pull_recurrent)(d_a)[1], 0)
            d_start = _add(d_start, _add(*pull_hidden(pull_shared(d_projected)[0])))
        d_state = _add(skipped, _add(d_old, d_start))
        return d_state, (d_a, d_new if has_coefficients else None)

    d_state, (d_a, d_new) = jax.lax.scan(
        back, d_state, (t, states, steps, mask, d_ys), reverse=True
    )

    # The gradients of the shared kernels, for the whole block at once: one product per kernel.
    d_coefficients = kernels.coefficients
    if has_coefficients:
        d_coefficients = _coefficients_backward(cell, d_coefficients, states, t, steps, d_new)
    d_recurrent = _kernels_backward(cell, kernels.recurrent, states, projected_like, d_a)
    d_projected = _sum(jax.vmap(jax.vmap(pull_recurrent))(d_a)[1], 1)
    d_shared = kernels.shared
    if has_shared:
        starts = jax.tree.map(lambda a: a[:, :1], states)
        d_given = jax.tree.map(lambda a: a[:, None], d_projected)
        d_shared = _kernels_backward(cell, kernels.shared, starts, projected_like, d_given)
        d_projected = jax.vmap(pull_shared)(d_projected)[1]
    flat = _flat((inputs.x, inputs.known))
    _, pull_project = jax.vjp(cell.project, kernels, *flat)
    d_kernels, *d_inputs = pull_project(_flat(d_projected))
    # A cell's projection may use any of the kernels.
    others = {"recurrent": d_recurrent, "coefficients": d_coefficients, "shared": d_shared}
    d_kernels = d_kernels._replace(
        **{name: _add(getattr(d_kernels, name), d) for name, d in others.items()}
    )
    shaped = jax.tree.map(lambda d, a: d.reshape(a.shape), tuple(d_inputs), inputs[:2])
    return d_state, d_kernels, shaped


def _kernels_backward(cell: FusedCell, kernels: Any, states: Any, like: Blocks, d_a: Blocks) -> Any:
    """Returns the cotangent of kernels that multiply states ``[block, inner steps, ...]``."""

    def hidden(states):
        start = jax.tree.map(lambda a: a[0], states)
        return jax.vmap(lambda state: cell.hidden(state, start))(states)

    rows = _flat(jax.vmap(hidden)(states))
    # One transposed copy for all kernels: a product over the first axis of both is slower.
    rows = jax.lax.optimization_barrier(rows.T).T
    projected = tuple(jnp.zeros((len(rows), p.shape[-1]), p.dtype) for p in like)
    _, pull = jax.vjp(lambda k: cell.preactivation(k, rows, projected), kernels)
    return pull(_flat(d_a))[0]


def _coefficients_backward(cell, coefficients, states, t, steps, d_new):
    """Returns the cotangent of the coefficients, summed in single precision at least."""
    wide, states, t = widened((coefficients, states, t))

    def updates(coefficients):
        return _update_block(cell, coefficients, states, t, steps)

    _, pull = jax.vjp(updates, _lanes(cell, updates, wide))
    return jax.tree.map(
        lambda d, c: (d.sum() if c.ndim == 0 else d).astype(c.dtype),
        pull(widened(d_new))[0],
        coefficients,
    )


def _lanes(cell: FusedCell, updates: Callable[[Any], Any], coefficients: Any) -> Any:
    """Returns the coefficients with scalars repeated per unit, if the update accepts that.

    Their gradients are summed over units last, because a sum over all axes does not vectorise.
    """
    lanes = jax.tree.map(
        lambda c: jnp.broadcast_to(c, cell.features) if c.ndim == 0 else c, coefficients
    )
    try:
        same = jax.eval_shape(updates, lanes) == jax.eval_shape(updates, coefficients)
    except (TypeError, ValueError):  # arrays of other widths
        same = False
    return lanes if same else coefficients


def _update_block(cell: FusedCell, coefficients: Any, states: Any, t: Blocks, steps: Any) -> Any:
    """Applies the element-wise update to all steps of a block, ``[block, inner steps, ...]``."""

    def step(states, t, steps):
        start = jax.tree.map(lambda a: a[0], states)

        def inner_step(number, state, t):
            return cell.update(coefficients, state, t, InnerStep(number, start, steps))

        if cell.inner_steps > 1:
            return jax.vmap(inner_step)(jnp.arange(cell.inner_steps), states, t)
        return jax.vmap(functools.partial(inner_step, 0))(states, t)

    return jax.vmap(step)(states, t, steps)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _sum(a: Any, axis: int) -> Any:
    return jax.tree.map(lambda a: a.sum(axis), a)


def _flat(a: Any) -> Any:
    """Joins all axes but the last."""
    return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), a)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
