"""Cells whose step is a matrix product with the state followed by element-wise operations.

Splitting the step into these parts lets `jaxeff.ode.unroll` keep only the activated values for the
backward pass and compute the weight gradients in large products (`jaxeff.ode.fused_scan`); this is
the main reason for the speed of the package's recurrences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.ode import activations
from jaxeff.ode.activations import Blocks
from jaxeff.ode.carry import CarryParts, after_step, parts_of
from jaxeff.ode.cells import Cell
from jaxeff.ops.products import affine, products
from jaxeff.typing import Array, Carry, Params

Preactivation = Callable[[Any, Array, Blocks], Blocks]


class Kernels(NamedTuple):
    """Arrays that a `FusedCell` computes from its parameters once per sequence.

    Attributes:
      recurrent: kernels that `FusedCell.preactivation` multiplies the state with; by default one
        kernel ``[state, units]`` for each of the first blocks.
      input: kernel ``[inputs, units]`` of every block.
      bias: vector ``[units]`` of every block.
      coefficients: tree of the scalars and vectors that `FusedCell.update` needs.
      shared: kernels that multiply the state at the start of a step, for all of its inner steps;
        used like ``recurrent``, or ().
    """

    recurrent: Any
    input: Blocks
    bias: Blocks
    coefficients: Any = ()
    shared: Any = ()


class InnerStep(NamedTuple):
    """Position of an inner step.

    Attributes:
      number: index of the inner step within its time step, from 0.
      start: the state at the start of the time step.
      steps: number of time steps before this one ``[..., 1]``, if the carry counts them.
    """

    number: Array | int
    start: Any
    steps: Any


@dataclasses.dataclass(frozen=True)
class FusedCell(Cell):
    """A cell whose step is ``inner_steps`` times a product of the state and an update.

    One step from the state ``start`` with input ``x``, with ``k = prepare(params)``::

        projected = project(k, x, ...)
        state = start
        for i in range(inner_steps):
            a = preactivation(k.recurrent, hidden(state, start), projected)
            state = update(k.coefficients, state, activate(a), InnerStep(i, start, ...))

    A new cell needs `param_specs`, `prepare` and `update`; the rest has defaults.

    A pre-activation is a tuple of equally wide blocks ``[..., units]``, one per gate. They are
    separate arrays because XLA's CPU compiler does not vectorise over slices of one wide array; for
    an LSTM that would cost more than its matrix products.

    `hidden`, `preactivation` and `output` must be linear in their array arguments (except the
    kernels), every array of the state must be floating point, and `step` must not be overridden.
    Other cells run as plain cells (`jaxeff.ode.form`). `project` acts on each row separately.
    `update` is element-wise and should be cheap: the backward pass keeps the activated values but
    computes the update again.
    """

    @property
    def fused(self) -> bool:
        """Whether `step` has the form above."""
        return True

    @property
    def inner_steps(self) -> int:
        """Number of inner steps, and matrix products, per time step."""
        return 1

    @property
    def activations(self) -> tuple[str, ...]:
        """Name of the activation of each block of the pre-activation."""
        return ("tanh",)

    def prepare(self, params: Params) -> Kernels:
        """Returns the kernels and coefficients that all steps share, computed once per sequence."""
        raise NotImplementedError

    def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
        """Returns the next state from the activated blocks ``t``, each ``[..., units]``."""
        raise NotImplementedError

    def project(self, kernels: Kernels, x: Array, known: CarryParts) -> Blocks:
        """Returns the input term of the pre-activation, bias included.

        Args:
          kernels: what `prepare` returned.
          x: inputs ``[..., inputs]``.
          known: the parts of the carry other than the state.
        """
        del known
        return affine(x, kernels.input, kernels.bias)

    def hidden(self, state: Any, start: Any) -> Array:
        """Returns the row vectors that multiply the recurrent kernels, ``[..., state]``."""
        hidden: Array = state
        return hidden

    def preactivation(self, kernels: Any, hidden: Array, projected: Blocks) -> Blocks:
        """Adds the product of ``hidden`` and the kernel to every block that has a kernel."""
        shares = products(hidden, kernels)
        count = len(shares)
        return (
            *(h + x for h, x in zip(shares, projected[:count], strict=True)),
            *projected[count:],
        )

    def step(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """Advances by one input; see the class for the equations."""
        kernels, parts = self.prepare(params), parts_of(carry)
        projected = self.project(kernels, x, parts._replace(state=None))
        state, _ = fused_step(self, kernels, parts.state, projected, parts.steps)
        return after_step(carry, state, x), self.output(state)


def scan_inner_steps(
    cell: FusedCell,
    body: Callable[..., tuple[Any, Any]],
    init: Any,
    *xs: Any,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """Scans the inner steps with their index; a single one stays inline with a static index."""
    if cell.inner_steps == 1:
        return unrolled_inner_steps(cell, body, init, *xs)
    return jax.lax.scan(body, init, (jnp.arange(cell.inner_steps), *xs), reverse=reverse)


def unrolled_inner_steps(
    cell: FusedCell,
    body: Callable[..., tuple[Any, Any]],
    init: Any,
    *xs: Any,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """Writes all inner steps out, with static indices."""
    carry, ys = init, {}
    numbers = range(cell.inner_steps)
    for number in reversed(numbers) if reverse else numbers:
        x = jax.tree.map(lambda a: a[number], xs)  # noqa: B023
        carry, ys[number] = body(carry, (number, *x))
    if len(numbers) == 1:
        return carry, jax.tree.map(lambda a: a[None], ys[0])
    return carry, jax.tree.map(lambda *a: jnp.stack(a), *(ys[number] for number in numbers))


class Form(NamedTuple):
    """How a step is written for a compiler; the values are the same.

    Attributes:
      preactivation: stands in for that of the cell, with the same arguments.
      inner_steps: `scan_inner_steps` or `unrolled_inner_steps`.
      barrier: applied to the activated values, so that none is computed once per use.
    """

    preactivation: Preactivation
    inner_steps: Callable[..., tuple[Any, Any]] = scan_inner_steps
    barrier: Callable[[Any], Any] = jax.lax.optimization_barrier


def fused_step(
    cell: FusedCell,
    kernels: Kernels,
    start: Any,
    projected: Blocks,
    steps: Array | None,
    form: Form | None = None,
) -> tuple[Any, Blocks]:
    """Returns the state one step later, and the activated blocks ``[inner steps, ..., units]``.

    Args:
      cell: the cell.
      kernels: what ``cell.prepare`` returned.
      start: the state before the step.
      projected: the input's share of the pre-activation.
      steps: steps taken before, if the carry counts them.
      form: how the step is written; the usual one if None.
    """
    form = form or Form(cell.preactivation)
    if jax.tree.leaves(kernels.shared):
        projected = form.preactivation(kernels.shared, cell.hidden(start, start), projected)

    def inner_step(state: Any, inputs: tuple[Array | int]) -> tuple[Any, Blocks]:
        (number,) = inputs
        a = form.preactivation(kernels.recurrent, cell.hidden(state, start), projected)
        t = form.barrier(activations.apply(cell.activations, a))
        return cell.update(kernels.coefficients, state, t, InnerStep(number, start, steps)), t

    return form.inner_steps(cell, inner_step, start)
