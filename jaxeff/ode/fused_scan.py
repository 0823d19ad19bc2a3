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

from jaxeff.ode.activations import Blocks
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


def scan_blocks_plainly(
    options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs
) -> tuple[Any, Array | None]:
    """Runs the steps of inputs ``[blocks, block, batch, features]``, differentiated by JAX.

    Returns:
      the last state, and the outputs in blocks like the inputs', or None.
    """

    def block(state: Any, inputs: Inputs) -> tuple[Any, Array | None]:
        state, ys, _ = _block_forward(options, kernels, state, inputs, None, 0)
        return state, ys

    return jax.lax.scan(block, state, inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_blocks(
    options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs
) -> tuple[Any, Array | None]:
    """Runs the same steps with the custom backward pass."""
    return scan_blocks_plainly(options, kernels, state, inputs)


@reverse_mode()
def _forward(
    options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs
) -> tuple[tuple[Any, Array | None], Any]:
    blocks, length = inputs.x.shape[:2]
    activated = _shapes(options, kernels, state, inputs).activated if options.store else None

    def block(carry: tuple[Any, Any], step: Any) -> tuple[tuple[Any, Any], Any]:
        state, t = carry
        number, inputs = step
        new, ys, t = _block_forward(options, kernels, state, inputs, t, number * length)
        return (new, t), (ys, state)

    start = state, _room(blocks * length, activated)
    (state, t), (ys, starts) = jax.lax.scan(block, start, (jnp.arange(blocks), inputs))
    return (state, ys), (kernels, inputs, starts, t)


@reverse_mode()
def _backward(
    options: FusedOptions, residuals: Any, cotangents: Any
) -> tuple[Kernels, Any, Inputs]:
    kernels, inputs, starts, t = residuals
    d_state, d_ys = cotangents
    blocks, length = inputs.x.shape[:2]
    shapes = _shapes(options, kernels, d_state, inputs)

    def block(carry: Any, step: Any) -> tuple[Any, Any]:
        d_state, total, rooms, again = carry
        number, start, inputs, d_y = step
        known = Known(t, number * length)
        if not options.store:
            again = _block_forward(options, kernels, start, inputs, again, 0)[2]
            known = Known(again, 0)
        d_state, d_kernels, d_x, rooms = _block_backward(
            options, kernels, start, inputs, known, d_state, d_y, rooms
        )
        return (d_state, add(total, widened(d_kernels)), rooms, again), d_x

    zeros = jax.tree.map(jnp.zeros_like, widened(kernels))
    again = None if options.store else _room(length, shapes.activated)
    carry = d_state, zeros, _room(length, shapes), again
    (d_state, d_kernels, _, _), (d_x, d_known) = jax.lax.scan(
        block, carry, (jnp.arange(blocks), starts, inputs, d_ys), reverse=True
    )
    return narrowed(d_kernels, kernels), d_state, Inputs(d_x, d_known, None)


scan_blocks.defvjp(_forward, _backward)


class Rooms(NamedTuple):
    """Arrays of the steps of a block, written step by step in every block anew.

    A scan would allocate and clear its results in every block, and copy them out of it.

    Attributes:
      activated: like the activated values; for the cotangents of the pre-activations.
      states: the states before each inner step; and
      d_states: the cotangents of the states after it, or None where nothing needs them.
    """

    activated: Any
    states: Any
    d_states: Any


class Known(NamedTuple):
    """Activated values, of which those of a block begin at a step.

    Attributes:
      values: ``[steps, inner steps, ..., units]``.
      first: number of the block's first step.
    """

    values: Any
    first: Array | int

    def of_step(self, number: Array) -> Any:
        """Returns those of a step of the block."""
        return _read(self.values, self.first + number)

    def of_block(self, length: int) -> Any:
        """Returns those of all its steps."""
        return jax.tree.map(
            lambda a: jax.lax.dynamic_slice_in_dim(a, self.first, length), self.values
        )


def _shapes(options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs) -> Rooms:
    """Returns the shapes of what `Rooms` holds of a step."""
    cell = options.cell

    def step(state: Any, inputs: Inputs) -> Blocks:
        projected = cell.project(kernels, inputs.x, inputs.known)
        return fused_step(cell, kernels, state, projected, inputs.known.steps)[1]

    first = jax.tree.map(lambda a: a[0, 0], inputs)
    activated = jax.eval_shape(step, state, first)
    states = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((cell.inner_steps, *a.shape), a.dtype), state
    )
    return Rooms(activated, states, states if jax.tree.leaves(kernels.coefficients) else None)


def _room(steps: int, shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros((steps, *s.shape), s.dtype), shapes)


def _read(rooms: Any, number: Array) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, number, keepdims=False), rooms)


def _write(rooms: Any, values: Any, number: Array) -> Any:
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=number, axis=0)
    return jax.tree.map(put, rooms, values)


def _block_forward(
    options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs, t: Any, first: Array | int
) -> tuple[Any, Array | None, Any]:
    """Runs one block; returns the state, the outputs, and ``t`` with the block's values.

    Args:
      options: static choices.
      kernels: what ``cell.prepare`` returned.
      state: before the block.
      inputs: of the block.
      t: room for activated values, or None to keep none.
      first: where the block's values begin in it.
    """
    cell = options.cell
    # Inputs are projected a block at a time. Inputs of few features are projected inside the loop:
    # the product costs less than the memory traffic of its result.
    at_once = inputs.x.shape[-1] > 4 or cell.inner_steps > 1
    projected = cell.project(kernels, inputs.x, inputs.known) if at_once else None

    def step(carry: tuple[Any, Any], step: Any) -> tuple[tuple[Any, Any], Array | None]:
        state, t = carry
        number, (x, known, mask), projected = step
        if projected is None:
            projected = cell.project(kernels, x, known)
        new, activated = fused_step(cell, kernels, state, projected, known.steps)
        if t is not None:
            t = _write(t, activated, first + number)
        state = keep(mask, new, state)
        return (state, t), cell.output(state) if options.sequence else None

    numbers = jnp.arange(inputs.x.shape[0])
    (state, t), ys = jax.lax.scan(step, (state, t), (numbers, inputs, projected))
    return state, ys, t


def _block_backward(
    options: FusedOptions,
    kernels: Kernels,
    start: Any,
    inputs: Inputs,
    known: Known,
    d_state: Any,
    d_ys: Array | None,
    rooms: Rooms,
) -> tuple[Any, Kernels, tuple[Array, CarryParts], Rooms]:
    """Returns the cotangents of a block's initial state, of the kernels and of its inputs."""
    cell, steps, mask = options.cell, inputs.known.steps, inputs.mask
    form, coefficients = Form(cell.preactivation), kernels.coefficients
    first = jax.tree.map(lambda a: a[0], (inputs.x, inputs.known))
    projected = jax.eval_shape(lambda inputs: cell.project(kernels, *inputs), first)
    pulls = transposes(cell, kernels, start, projected, form)
    numbers = jnp.arange(inputs.x.shape[0])

    # First pass, no products: the states again, from the activated values.
    def again(carry: tuple[Any, Any], inputs: Any) -> tuple[tuple[Any, Any], None]:
        start, room = carry
        number, steps, mask = inputs
        t = known.of_step(number)
        new, states = rebuild(cell, coefficients, start, t, steps, form)
        return (keep(mask, new, start), _write(room, states, number)), None

    (_, states), _ = jax.lax.scan(again, (start, rooms.states), (numbers, steps, mask))

    # Second pass, backward in time.
    def back(carry: tuple[Any, Any, Any], inputs: Any) -> tuple[tuple[Any, Any, Any], None]:
        d_state, d_a_room, d_new_room = carry
        number, steps, mask, d_y = inputs
        if d_y is not None:
            d_state = add(d_state, pulls.output(d_y)[0])
        nothing = jax.tree.map(jnp.zeros_like, d_state)
        skipped = nothing if mask is None else keep(mask, nothing, d_state)
        d_real = keep(mask, d_state, nothing)
        t, before = known.of_step(number), _read(states, number)
        d_start, d_a, d_new = step_backward(
            cell, coefficients, pulls, before, t, steps, d_real, form
        )
        d_a_room = _write(d_a_room, d_a, number)
        if d_new_room is not None:
            d_new_room = _write(d_new_room, d_new, number)
        return (add(skipped, d_start), d_a_room, d_new_room), None

    carry = d_state, rooms.activated, rooms.d_states
    (d_state, d_a, d_new), _ = jax.lax.scan(back, carry, (numbers, steps, mask, d_ys), reverse=True)
    t = known.of_block(len(numbers))
    shared = cell, kernels, pulls, states, t, inputs.x, inputs.known, d_a, d_new
    return d_state, *shared_backward(*shared), Rooms(d_a, states, d_new)
