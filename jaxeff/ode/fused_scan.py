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
from jaxeff.ode.fused import Form, FusedCell, Kernels, fused_step, unrolled_inner_steps
from jaxeff.ode.fused_backward import add, rebuild, shared_backward, step_backward, transposes
from jaxeff.ops.platforms import reverse_mode
from jaxeff.ops.precision import narrowed, widened
from jaxeff.ops.row_scan import Window, is_compiled, row_scan, unwritten
from jaxeff.typing import Array

#: Least steps of a block, and bytes of the activated values of longer ones: so many that a cache
#: holds them, in a quarter of the sequence at most, or so few that they do not count, as those that
#: the kernels have, or some times these where no gradients of coefficients read the block again.
BLOCK_LENGTH, CACHED_BYTES, FEW_BYTES, FEW_KERNELS = 16, 2 << 20, 1 << 14, 4


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


def block_length(cell: FusedCell, kernels: Kernels, state: Any, inputs: Inputs) -> int:
    """Returns how many of the steps of inputs ``[time, ..., features]`` make a block.

    A compiled function runs a block in one call, so that blocks are as long as what they keep stays
    in a cache and is a small part of what the sequence keeps. They are equally long where the
    number of steps has such a divisor.
    """
    length = inputs.x.shape[0]
    with reverse_mode():  # blocks matter for what training keeps
        compiled = is_compiled(state, *jax.tree.leaves(kernels), inputs.x)
    if not compiled:
        return BLOCK_LENGTH
    options = FusedOptions(cell, store=True, sequence=False)
    blocks = jax.tree.map(lambda a: a[None], inputs)
    shapes = jax.eval_shape(functools.partial(_shapes, options), kernels, state, blocks)
    bytes_per_step = _bytes(shapes.activated)
    cached = min(CACHED_BYTES // bytes_per_step, length // 4)
    times = 1 if jax.tree.leaves(kernels.coefficients) else FEW_KERNELS
    few = max(FEW_BYTES, times * _bytes(kernels)) // bytes_per_step
    most = min(length, max(BLOCK_LENGTH, cached, few))
    divisors = (size for size in range(most, most // 2, -1) if length % size == 0)
    return next(divisors, most)


def _bytes(tree: Any) -> int:
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


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
    if not _form(options, kernels, state, inputs.x)[0]:
        return scan_blocks_plainly(options, kernels, state, inputs)
    blocks = inputs.x.shape[:2]
    joined = jax.tree.map(lambda a: a.reshape(1, -1, *a.shape[2:]), inputs)
    state, ys = scan_blocks_plainly(options, kernels, state, joined)
    return state, jax.tree.map(lambda a: a.reshape(*blocks, *a.shape[2:]), ys)


@reverse_mode()
def _forward(
    options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs
) -> tuple[tuple[Any, Array | None], Any]:
    blocks, length = inputs.x.shape[:2]
    shapes = _shapes(options, kernels, state, inputs)
    states = shapes.states if _keeps_states(options, kernels, state, inputs) else None
    values = Values(shapes.activated, states) if options.store else None

    def block(carry: tuple[Any, Any], step: Any) -> tuple[tuple[Any, Any], Any]:
        state, t = carry
        number, inputs = step
        new, ys, t = _block_forward(options, kernels, state, inputs, t, number * length)
        return (new, t), (ys, state)

    start = state, unwritten(blocks * length, values, (kernels, state, inputs))
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
        known = Window(t, number * length)
        if not options.store:
            again = _block_forward(options, kernels, start, inputs, again, 0)[2]
            known = Window(again, 0)
        d_state, d_kernels, d_x, rooms = _block_backward(
            options, kernels, start, inputs, known, d_state, d_y, rooms
        )
        return (d_state, add(total, widened(d_kernels)), rooms, again), d_x

    zeros = jax.tree.map(jnp.zeros_like, widened(kernels))
    after = kernels, starts, inputs
    again = None if options.store else unwritten(length, Values(shapes.activated, None), after)
    if _keeps_states(options, kernels, d_state, inputs):
        shapes = shapes._replace(states=None)
    carry = d_state, zeros, unwritten(length, shapes, after), again
    (d_state, d_kernels, _, _), (d_x, d_known) = jax.lax.scan(
        block, carry, (jnp.arange(blocks), starts, inputs, d_ys), reverse=True
    )
    return narrowed(d_kernels, kernels), d_state, Inputs(d_x, d_known, None)


scan_blocks.defvjp(_forward, _backward)


class Values(NamedTuple):
    """What the forward pass keeps of the steps.

    Attributes:
      activated: the activated values.
      states: the states before each inner step, or None where they are rebuilt.
    """

    activated: Any
    states: Any


def _keeps_states(options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs) -> bool:
    """Returns whether the forward pass keeps the states: of one block, memory is needed anyway."""
    one_block = options.store and len(inputs.x) == 1 and options.cell.inner_steps == 1
    return one_block and _form(options, kernels, state, inputs.x)[0]


class Rooms(NamedTuple):
    """Arrays of the steps of a block, written step by step in every block anew.

    A scan would allocate and clear its results in every block, and copy them out of it.

    Attributes:
      activated: like the activated values; for the cotangents of the pre-activations.
      states: the states before each inner step, or None where they are known; and
      d_states: the cotangents of the states after it, or None where nothing needs them.
    """

    activated: Any
    states: Any
    d_states: Any


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


def _block_forward(
    options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs, t: Any, first: Array | int
) -> tuple[Any, Array | None, Any]:
    """Runs one block; returns the state, the outputs, and ``t`` with the block's values.

    Args:
      options: static choices.
      kernels: what ``cell.prepare`` returned.
      state: before the block.
      inputs: of the block.
      t: room for `Values`, or None to keep none.
      first: where the block's values begin in it.
    """
    cell, store = options.cell, t is not None
    keeps = store and t.states is not None  # the step itself has no arrays but its arguments
    compiled, form = _form(options, kernels, state, inputs.x)
    # Inputs are projected a block at a time. Inputs of few features are projected inside the loop:
    # the product costs less than the memory traffic of its result.
    at_once = not compiled and (inputs.x.shape[-1] > 4 or cell.inner_steps > 1)
    projected = cell.project(kernels, inputs.x, inputs.known) if at_once else None

    def step(kernels: Kernels, steps: Any, state: Any, late: Any) -> tuple[Any, Any]:
        (x, known, mask, projected), _ = late
        if projected is None:
            projected = cell.project(kernels, x, known._replace(steps=steps))
        new, activated = fused_step(cell, kernels, state, projected, steps, form)
        before = jax.tree.map(lambda a: a[None], state) if keeps else None
        state = keep(mask, new, state)
        return state, (
            cell.output(state) if options.sequence else None,
            Values(activated, before) if store else None,
        )

    known = inputs.known
    x = None if at_once else inputs.x
    xs = x, known._replace(steps=None), inputs.mask, projected
    windows = Window(None, 0), Window(t, first)
    return row_scan(inputs.x.shape[0], step, kernels, known.steps, state, xs, *windows)


def _block_backward(
    options: FusedOptions,
    kernels: Kernels,
    start: Any,
    inputs: Inputs,
    t: Window,
    d_state: Any,
    d_ys: Array | None,
    rooms: Rooms,
) -> tuple[Any, Kernels, tuple[Array, CarryParts], Rooms]:
    """Returns the cotangents of a block's initial state, of the kernels and of its inputs."""
    cell, steps, mask = options.cell, inputs.known.steps, inputs.mask
    compiled, form = _form(options, kernels, start, inputs.x)
    first = jax.tree.map(lambda a: a[0], (inputs.x, inputs.known))
    projected = jax.eval_shape(lambda inputs: cell.project(kernels, *inputs), first)

    pulls = transposes(cell, kernels, start, projected, Form(cell.preactivation))
    outside = None if compiled else pulls  # a compiled step has no arrays but its arguments

    length = inputs.x.shape[0]
    activated = Window(t.values.activated, t.first)

    # First pass, no products: the states again, from the activated values.
    def again(coefficients: Any, steps: Any, start: Any, late: Any) -> tuple[Any, Any]:
        mask, t = late
        new, states = rebuild(cell, coefficients, start, t, steps, form)
        return keep(mask, new, start), (None, states)

    states = t.values.states
    if states is None:
        forward = again, kernels.coefficients, steps, start, mask
        _, _, states = row_scan(length, *forward, activated, Window(rooms.states, 0))

    # Second pass, backward in time.
    def back(kernels: Kernels, steps: Any, d_state: Any, late: Any) -> tuple[Any, Any]:
        (mask, d_y, before), t = late
        blocks = _alike(projected, d_state)
        ours = outside or transposes(cell, kernels, d_state, blocks, form)
        if d_y is not None:
            d_state = add(d_state, ours.output(d_y)[0])
        nothing = jax.tree.map(jnp.zeros_like, d_state)
        d_real = keep(mask, d_state, nothing)
        d_start, d_a, d_new = step_backward(
            cell, kernels.coefficients, ours, before, t, steps, d_real, form
        )
        if mask is not None:
            d_start = add(keep(mask, nothing, d_state), d_start)
        return d_start, (None, (d_a, d_new if has_coefficients else None))

    has_coefficients = rooms.d_states is not None
    backward = back, kernels, steps, d_state, (mask, d_ys, states)
    to = Window((rooms.activated, rooms.d_states), 0)
    d_state, _, (d_a, d_new) = row_scan(length, *backward, activated, to, reverse=True)
    of_block = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=t.first)
    values = jax.tree.map(lambda a: of_block(a, slice_size=length), activated.values)
    shared = cell, kernels, pulls, states, values, inputs.x, inputs.known, d_a, d_new
    rooms = Rooms(d_a, None if rooms.states is None else states, d_new)
    return d_state, *shared_backward(*shared), rooms


def _form(options: FusedOptions, kernels: Kernels, state: Any, x: Array) -> tuple[bool, Form]:
    """Returns whether steps are run by a compiled function, and how they are written."""
    compiled = is_compiled(state, *jax.tree.leaves(kernels), x)
    plain = Form(options.cell.preactivation)
    return compiled, plain._replace(inner_steps=unrolled_inner_steps) if compiled else plain


def _alike(shapes: Blocks, state: Any) -> Blocks:
    """Returns blocks of such widths with the batch of a state."""
    batch = jax.tree.leaves(state)[0].shape[:-1]
    return tuple(jnp.zeros((*batch, s.shape[-1]), s.dtype) for s in shapes)
