"""Pieces of the backward pass of a `FusedCell`: one step's, and that of what all steps share.

Only the first needs a loop. Gradients of kernels and coefficients follow from the states, the
activated values and the cotangents of the pre-activations of many steps at once.
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
from jaxeff.ode.fused import Form, FusedCell, InnerStep, Kernels
from jaxeff.ops.precision import widened
from jaxeff.typing import Array


class Pulls(NamedTuple):
    """Transposes of the linear parts of a step, functions of cotangents.

    Attributes:
      hidden: of `FusedCell.hidden`, giving the cotangents of the state and of the step's start.
      output: of `FusedCell.output`.
      recurrent: of the pre-activation by the recurrent kernels, giving the cotangents of the hidden
        vector and of the projected input.
      shared: the same by the shared kernels, or None.
    """

    hidden: Callable[..., Any]
    output: Callable[..., Any]
    recurrent: Callable[..., Any]
    shared: Callable[..., Any] | None


def transposes(
    cell: FusedCell, kernels: Kernels, state: Any, projected: Blocks, form: Form
) -> Pulls:
    """Returns the transposes for arrays like these of one step."""
    zeros = functools.partial(jax.tree.map, lambda a: jnp.zeros(a.shape, a.dtype))
    state, projected = zeros(state), zeros(projected)
    hidden, pull_hidden = jax.vjp(cell.hidden, state, state)

    def pull(kernel: Any) -> Callable[..., Any]:
        return jax.vjp(functools.partial(form.preactivation, kernel), hidden, projected)[1]

    shared = pull(kernels.shared) if jax.tree.leaves(kernels.shared) else None
    return Pulls(pull_hidden, jax.vjp(cell.output, state)[1], pull(kernels.recurrent), shared)


def rebuild(
    cell: FusedCell, coefficients: Any, start: Any, t: Blocks, steps: Array | None, form: Form
) -> tuple[Any, Any]:
    """Returns the state one step later, and the state before each of its inner steps.

    No products: the activated values ``[inner steps, ..., units]`` are there.
    """

    def inner_step(state: Any, inputs: tuple[Array | int, Blocks]) -> tuple[Any, Any]:
        number, t = inputs
        return cell.update(coefficients, state, t, InnerStep(number, start, steps)), state

    return form.inner_steps(cell, inner_step, start, t)


def step_backward(
    cell: FusedCell,
    coefficients: Any,
    pulls: Pulls,
    states: Any,
    t: Blocks,
    steps: Array | None,
    d_state: Any,
    form: Form,
) -> tuple[Any, Blocks, Any]:
    """Takes the cotangent of the state back through one step, with one product per inner step.

    Args:
      cell: the cell.
      coefficients: those of its update.
      pulls: the transposes of its linear parts.
      states: the state before each inner step ``[inner steps, ..., width]``.
      t: activated values ``[inner steps, ..., units]``.
      steps: steps taken before this one, if the carry counts them.
      d_state: cotangent of the state after the step.
      form: how the step is written.

    Returns:
      the cotangents of the state before the step, of the pre-activations, and of the state after
      each inner step, the latter two ``[inner steps, ...]``.
    """
    start = jax.tree.map(lambda a: a[0], states)

    def inner_step(carry: tuple[Any, Any], inputs: tuple[Any, ...]) -> tuple[Any, Any]:
        d_new, d_start = carry
        number, t, state = inputs

        def update(state: Any, t: Blocks, start: Any) -> Any:
            return cell.update(coefficients, state, t, InnerStep(number, start, steps))

        d_old, d_t, direct = jax.vjp(update, state, t, start)[1](d_new)
        d_a = activations.backward(cell.activations, t, d_t)
        through_state, through_start = pulls.hidden(pulls.recurrent(d_a)[0])
        d_start = add(d_start, add(direct, through_start))
        return (add(d_old, through_state), d_start), (d_a, d_new)

    nothing = jax.tree.map(jnp.zeros_like, d_state)
    (d_old, d_start), (d_a, d_new) = form.inner_steps(
        cell, inner_step, (d_state, nothing), t, states, reverse=True
    )
    if pulls.shared is not None:
        d_projected = _sum(jax.vmap(pulls.recurrent)(d_a)[1], 0)
        d_start = add(d_start, add(*pulls.hidden(pulls.shared(d_projected)[0])))
    return add(d_old, d_start), d_a, d_new


def shared_backward(
    cell: FusedCell,
    kernels: Kernels,
    pulls: Pulls,
    states: Any,
    t: Blocks,
    x: Array,
    known: CarryParts,
    d_a: Blocks,
    d_new: Any,
) -> tuple[Kernels, tuple[Array, CarryParts]]:
    """Returns the gradients of what the steps of a block share, and those of their inputs.

    One product per kernel.

    Args:
      cell: the cell.
      kernels: what ``cell.prepare`` returned.
      pulls: the transposes of the linear parts of a step.
      states: the state before each inner step ``[block, inner steps, ..., width]``.
      t: activated values of these.
      x: inputs ``[block, ..., inputs]``.
      known: what the carry holds beside the state, before each step.
      d_a: cotangents of the pre-activations.
      d_new: cotangents of the state after each inner step; not read if there are no coefficients.
    """
    first = jax.tree.map(lambda a: a[0], (x, known))
    projected = _zeros(jax.eval_shape(lambda inputs: cell.project(kernels, *inputs), first))
    d_coefficients = kernels.coefficients
    if jax.tree.leaves(d_coefficients):
        d_coefficients = _coefficients_backward(cell, d_coefficients, states, t, known.steps, d_new)
    d_recurrent = _kernels_backward(cell, kernels.recurrent, states, projected, d_a)
    d_projected = _sum(jax.vmap(jax.vmap(pulls.recurrent))(d_a)[1], 1)
    d_shared = kernels.shared
    if pulls.shared is not None:
        starts = jax.tree.map(lambda a: a[:, :1], states)
        d_given = jax.tree.map(lambda a: a[:, None], d_projected)
        d_shared = _kernels_backward(cell, kernels.shared, starts, projected, d_given)
        d_projected = jax.vmap(pulls.shared)(d_projected)[1]
    flat = _flat((x, known))
    _, pull_project = jax.vjp(cell.project, kernels, *flat)
    d_kernels, *d_inputs = pull_project(_flat(d_projected))
    # A cell's projection may use any of the kernels.
    others = {"recurrent": d_recurrent, "coefficients": d_coefficients, "shared": d_shared}
    d_kernels = d_kernels._replace(
        **{name: add(getattr(d_kernels, name), d) for name, d in others.items()}
    )
    shaped = jax.tree.map(lambda d, a: d.reshape(a.shape), tuple(d_inputs), (x, known))
    return d_kernels, shaped


def _kernels_backward(cell: FusedCell, kernels: Any, states: Any, like: Blocks, d_a: Blocks) -> Any:
    """Returns the cotangent of kernels that multiply states ``[block, inner steps, ...]``."""

    def hidden(states: Any) -> Array:
        start = jax.tree.map(lambda a: a[0], states)
        return jax.vmap(lambda state: cell.hidden(state, start))(states)

    rows = _flat(jax.vmap(hidden)(states))
    projected = tuple(jnp.zeros((len(rows), p.shape[-1]), p.dtype) for p in like)
    _, pull = jax.vjp(lambda k: cell.preactivation(k, rows, projected), kernels)
    return pull(_flat(d_a))[0]


def _coefficients_backward(
    cell: FusedCell, coefficients: Any, states: Any, t: Blocks, steps: Any, d_new: Any
) -> Any:
    """Returns the cotangent of the coefficients, summed in single precision at least."""
    wide, states, t = widened((coefficients, states, t))

    def updates(coefficients: Any) -> Any:
        return _update_block(cell, coefficients, states, t, steps)

    _, pull = jax.vjp(updates, _lanes(cell, updates, wide))
    return jax.tree.map(
        lambda d, c: (d.sum() if c.ndim == 0 else d).astype(c.dtype),
        pull(widened(d_new))[0],
        coefficients,
    )


def _lanes(cell: FusedCell, updates: Callable[[Any], Any], coefficients: Any) -> Any:
    """Returns the coefficients with a lane per unit for every scalar, where the update takes them.

    Their gradients are summed at the end: a sum over everything does not vectorise.
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

    def step(states: Any, t: Blocks, steps: Any) -> Any:
        start = jax.tree.map(lambda a: a[0], states)

        def inner_step(number: Array | int, state: Any, t: Blocks) -> Any:
            return cell.update(coefficients, state, t, InnerStep(number, start, steps))

        if cell.inner_steps > 1:
            return jax.vmap(inner_step)(jnp.arange(cell.inner_steps), states, t)
        return jax.vmap(functools.partial(inner_step, 0))(states, t)

    return jax.vmap(step)(states, t, steps)


def add(a: Any, b: Any) -> Any:
    """Returns the sum of two trees."""
    return jax.tree.map(jnp.add, a, b)


def _sum(a: Any, axis: int) -> Any:
    return jax.tree.map(lambda a: a.sum(axis), a)


def _flat(a: Any) -> Any:
    """Joins all axes but the last."""
    return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), a)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
