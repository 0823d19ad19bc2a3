"""Cells whose step is a product of the state followed by element-wise operations.

Saying so in small functions lets `jaxeff.ode.unroll` keep only the activated values for the
backward pass and form the weight gradients in large products (`jaxeff.ode.fused_scan`), which is
what makes the package's recurrences fast.
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
from jaxeff.typing import Array, Carry, Params

Preactivation = Callable[[Any, Array, Blocks], Blocks]


class Kernels(NamedTuple):
    """What a `FusedCell` computes from its parameters once per sequence.

    Attributes:
      recurrent: what `FusedCell.preactivation` multiplies the state with; unless that is
        overridden, a kernel ``[state, units]`` for each of the first blocks.
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
    """Where an inner step is.

    Attributes:
      number: how many inner steps came before it in this step.
      start: the state at the start of the step.
      steps: steps taken before this one ``[..., 1]``, if the carry counts them.
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

    A pre-activation is a tuple of equally wide blocks ``[..., units]``, one per gate. They stay
    apart on purpose: compilers for CPUs do not vectorise over the slices of one wide array, which
    costs an LSTM more than its products do.

    `hidden`, `preactivation` and `output` should be linear in their array arguments (but for the
    kernels), every array of the state floating point, and `step` is not to be overridden. A cell
    that is otherwise is run as one that has a step alone (`jaxeff.ode.form`). `project` goes row by
    row. `update` is element-wise and should be cheap: it is computed again in the backward pass,
    while the activated values are kept.
    """

    @property
    def fused(self) -> bool:
        """Whether `step` really has the form above."""
        return True

    @property
    def inner_steps(self) -> int:
        """Products per step."""
        return 1

    @property
    def activations(self) -> tuple[str, ...]:
        """Name of the activation of each block of the pre-activation."""
        return ("tanh",)

    def prepare(self, params: Params) -> Kernels:
        """Returns what every step shares, computed once per sequence."""
        raise NotImplementedError

    def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
        """Returns the next state from the activated blocks ``t``, each ``[..., units]``."""
        raise NotImplementedError

    def project(self, kernels: Kernels, x: Array, known: CarryParts) -> Blocks:
        """Returns the input's share of the pre-activation, bias included.

        Args:
          kernels: what `prepare` returned.
          x: inputs ``[..., inputs]``.
          known: what the carry holds beside the state.
        """
        del known
        return tuple(x @ w + b for w, b in zip(kernels.input, kernels.bias, strict=True))

    def hidden(self, state: Any, start: Any) -> Array:
        """Returns the row vectors that multiply the recurrent kernels, ``[..., state]``."""
        return state

    def preactivation(self, kernels: Any, hidden: Array, projected: Blocks) -> Blocks:
        """Adds products of ``hidden`` to the input's share, of the blocks that have a kernel."""
        products = tuple(hidden @ kernel for kernel in kernels)
        count = len(products)
        return (
            *(h + x for h, x in zip(products, projected[:count], strict=True)),
            *projected[count:],
        )

    def step(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """Advances by one input; see the class for the equations."""
        kernels, parts = self.prepare(params), parts_of(carry)
        projected = self.project(kernels, x, parts._replace(state=None))
        state, _ = fused_step(self, kernels, parts.state, projected, parts.steps)
        return after_step(carry, state, x), self.output(state)


def scan_inner_steps(
    cell: FusedCell, body: Callable, init: Any, *xs: Any, reverse: bool = False
) -> tuple[Any, Any]:
    """Scans the inner steps with their index; a single one stays inline with a static index."""
    if cell.inner_steps == 1:
        return unrolled_inner_steps(cell, body, init, *xs)
    return jax.lax.scan(body, init, (jnp.arange(cell.inner_steps), *xs), reverse=reverse)


def unrolled_inner_steps(
    cell: FusedCell, body: Callable, init: Any, *xs: Any, reverse: bool = False
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
    inner_steps: Callable = scan_inner_steps
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

    def inner_step(state, inputs):
        (number,) = inputs
        a = form.preactivation(kernels.recurrent, cell.hidden(state, start), projected)
        t = form.barrier(activations.apply(cell.activations, a))
        return cell.update(kernels.coefficients, state, t, InnerStep(number, start, steps)), t

    return form.inner_steps(cell, inner_step, start)
