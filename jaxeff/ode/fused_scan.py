"""A scan of a `FusedCell` over blocks of steps, with a custom backward pass.

Differentiating a plain scan keeps every intermediate array of every step and adds each step's
weight gradient to an accumulator. For a `FusedCell` it is enough to keep the activated values,
recompute the states from them without matrix products, and compute the weight gradient of a block
of steps in one large product.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.ode.carry import CarryParts
from jaxeff.ode.fused import Form, FusedCell, Kernels, fused_step
from jaxeff.ode.fused_backward import add, rebuild, shared_backward, step_backward, transposes
from jaxeff.ops.platforms import reverse_mode
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
    with reverse_mode():
        return scan_blocks_plainly(options, kernels, state, inputs)


@reverse_mode()
def _forward(options, kernels, state, inputs):
    def block(state, inputs):
        new, ys, t = _block_forward(options, kernels, state, inputs, store=options.store)
        return new, (ys, state, t)

    state, (ys, starts, t) = jax.lax.scan(block, state, inputs)
    return (state, ys), (kernels, inputs, starts, t)


@reverse_mode()
def _backward(options, residuals, cotangents):
    kernels, inputs, starts, t = residuals
    d_state, d_ys = cotangents

    def block(carry, step):
        d_state, total = carry
        start, inputs, t, d_y = step
        if not options.store:
            _, _, t = _block_forward(options, kernels, start, inputs, store=True)
        d_state, d_kernels, d_x = _block_backward(options, kernels, start, inputs, t, d_state, d_y)
        return (d_state, add(total, widened(d_kernels))), d_x

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
    form, coefficients = Form(cell.preactivation), kernels.coefficients
    first = jax.tree.map(lambda a: a[0], (inputs.x, inputs.known))
    projected = jax.eval_shape(lambda inputs: cell.project(kernels, *inputs), first)
    pulls = transposes(cell, kernels, start, projected, form)

    # First pass, no products: the states again, from the activated values.
    def again(start, inputs):
        t, steps, mask = inputs
        new, states = rebuild(cell, coefficients, start, t, steps, form)
        return keep(mask, new, start), states

    _, states = jax.lax.scan(again, start, (t, steps, mask))

    # Second pass, backward in time.
    def back(d_state, inputs):
        t, states, steps, mask, d_y = inputs
        if d_y is not None:
            d_state = add(d_state, pulls.output(d_y)[0])
        nothing = jax.tree.map(jnp.zeros_like, d_state)
        skipped = nothing if mask is None else keep(mask, nothing, d_state)
        d_real = keep(mask, d_state, nothing)
        d_start, d_a, d_new = step_backward(
            cell, coefficients, pulls, states, t, steps, d_real, form
        )
        return add(skipped, d_start), (d_a, d_new if jax.tree.leaves(coefficients) else None)

    xs = t, states, steps, mask, d_ys
    d_state, (d_a, d_new) = jax.lax.scan(back, d_state, xs, reverse=True)
    shared = cell, kernels, pulls, states, t, inputs.x, inputs.known, d_a, d_new
    return d_state, *shared_backward(*shared)
