"""Runs integer programs in JAX, for batches of sequences, and compares them with their origin."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff import programs
from jaxeff.programs import Program
from jaxeff.quantize import arithmetic
from jaxeff.quantize.arithmetic import multiply_high, saturate, shift_right
from jaxeff.quantize.integer_program import IntegerInstruction, IntegerProgram
from jaxeff.typing import Array, Carry


def initial_carry(program: IntegerProgram, batch_shape: tuple[int, ...] = ()) -> Carry:
    """Returns the carry before the first step: the state, and whether a step has been taken."""
    state = tuple(
        jnp.broadcast_to(jnp.asarray(vector, jnp.int32), (*batch_shape, len(vector)))
        for vector in program.initial_state
    )
    return state, jnp.zeros(batch_shape, bool)


def integer_values(program: IntegerProgram, carry: Carry, *inputs: Array) -> list[Array]:
    """Returns every value of a step, int32 ``[..., width]``, in the order of their numbers.

    Args:
      program: the step.
      carry: as `initial_carry` or the step before returned it.
      *inputs: one integer array ``[..., width]`` per input of the program.
    """
    state, started = carry
    every: list[Any] = [None] * len(program.widths)
    for number, array in zip((*program.inputs, *program.state), (*inputs, *state), strict=True):
        every[number] = jnp.asarray(array, jnp.int32)
    for instruction in program.instructions:
        operands = [every[number] for number in instruction.inputs]
        result = _result(instruction, operands, started)
        every[instruction.output] = saturate(result, program.bits[instruction.output])
    return [
        jnp.broadcast_to(array, (*started.shape, width))
        for array, width in zip(every, program.widths, strict=True)
    ]


def evaluate(
    program: IntegerProgram, carry: Carry, *inputs: Array
) -> tuple[Carry, tuple[Array, ...]]:
    """Takes one step; returns the carry after it and the outputs, int32. See `integer_values`."""
    every = integer_values(program, carry, *inputs)
    state = tuple(every[number] for number in program.next_state)
    return (state, jnp.ones_like(carry[1])), tuple(every[number] for number in program.outputs)


def _result(instruction: IntegerInstruction, operands: list[Array], started: Array) -> Array:
    """Returns what an instruction computes, before it is saturated."""
    op, at = instruction.op, instruction.attributes
    if op in ("constant", "dense", "take", "lookup"):
        constant = jnp.asarray(instruction.constant, jnp.int32)
        if op == "constant":
            return constant
        if op == "dense":
            product = (operands[0] @ constant) << at["left"]
            multipliers = jnp.asarray(instruction.multipliers, jnp.int32)
            return shift_right(multiply_high(product, multipliers), at["right"])
        return constant[operands[0][..., 0]] if op == "take" else _lookup(constant, operands[0], at)
    if op == "first":
        return jnp.where(started[..., None], operands[1], operands[0])
    if op == "concatenate":
        batch = jnp.broadcast_shapes(*(a.shape[:-1] for a in operands))
        return jnp.concatenate([jnp.broadcast_to(a, (*batch, a.shape[-1])) for a in operands], -1)
    return _ELEMENTWISE[op](at, *operands)


def _lookup(table: Array, a: Array, at: Any) -> Array:
    position = (jnp.clip(a, at["start"], at["end"]) - at["start"]) << at["left"]
    low, high = table[position >> 16], table[(position >> 16) + 1]
    return low + shift_right((high - low) * ((position & 0xFFFF) >> 1), 15)


_ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "add": lambda at, a, b: shift_right((a << at["left_a"]) + (b << at["left_b"]), at["right"]),
    "sub": lambda at, a, b: shift_right((a << at["left_a"]) - (b << at["left_b"]), at["right"]),
    "mul": lambda at, a, b: shift_right(a * b, at["right"]),
    "rescale": lambda at, a: shift_right(a << at["left"], at["right"]),
    "neg": lambda at, a: -a,
    "abs": lambda at, a: jnp.abs(a),
    "max": lambda at, a, b: jnp.maximum(a, b),
    "min": lambda at, a, b: jnp.minimum(a, b),
    "tanh": lambda at, a: arithmetic.tanh(a, at["input_fraction"]),
    "logistic": lambda at, a: arithmetic.logistic(a, at["input_fraction"]),
    "slice": lambda at, a: a[..., at["start"] : at["stop"]],
}


def to_integers(program: IntegerProgram, inputs: Array) -> Array:
    """Returns real inputs ``[..., width]`` as the program takes them; numbers of symbols stay."""
    if jnp.issubdtype(jnp.asarray(inputs).dtype, jnp.integer):
        return jnp.asarray(inputs, jnp.int32)
    return arithmetic.from_real(inputs, program.fractions[program.inputs[0]])


@functools.partial(jax.jit, static_argnums=0)
def run_integers(program: IntegerProgram, inputs: Array, mask: Array | None = None) -> Array:
    """Returns the first output after every step, int32 ``[batch, time, width]``.

    Args:
      program: with one input.
      inputs: integers ``[batch, time, width]``.
      mask: ``[batch, time]``, non-zero where a step is real; the others change nothing.
    """
    real = jnp.ones(inputs.shape[:2], bool) if mask is None else jnp.asarray(mask) != 0
    carry = initial_carry(program, inputs.shape[:1])
    output = jnp.zeros((inputs.shape[0], program.widths[program.outputs[0]]), jnp.int32)

    def step(before: Any, at: Any) -> tuple[Any, Array]:
        x, is_real = at
        carry, (output, *_) = evaluate(program, before[0], x)
        after = kept_where_masked(is_real, (carry, output), before)
        return after, after[1]

    _, outputs = jax.lax.scan(
        step, (carry, output), (jnp.swapaxes(inputs, 0, 1), jnp.swapaxes(real, 0, 1))
    )
    return jnp.swapaxes(outputs, 0, 1)


def run(program: IntegerProgram, inputs: Array, mask: Array | None = None) -> Array:
    """Returns the first output after every step as real numbers ``[batch, time, width]``.

    Args:
      program: with one input.
      inputs: as the model takes them, ``[batch, time, width]``, or integers ``[batch, time]`` for
        one that embeds them.
      mask: ``[batch, time]``, non-zero where a step is real; the others repeat the output.
    """
    inputs = jnp.asarray(inputs)
    inputs = inputs[..., None] if inputs.ndim == 2 else inputs
    outputs = run_integers(program, to_integers(program, inputs), mask)
    return arithmetic.to_real(outputs, program.fractions[program.outputs[0]])


def kept_where_masked(real: Array, after: Any, before: Any) -> Any:
    """Returns the tree ``after`` at the real examples ``[batch]`` and ``before`` at the others."""

    def kept(new: Array, old: Array) -> Array:
        return jnp.where(real.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(kept, after, before)


class Errors(NamedTuple):
    """How far integers are from floating point, over a batch of sequences.

    Attributes:
      sources: numbers of the values in the floating-point program.
      largest: greatest absolute error of each at every step, ``[values, time]``.
      rms: root of the mean square of the errors, ``[values, time]``.
    """

    sources: tuple[int, ...]
    largest: np.ndarray
    rms: np.ndarray


def errors(
    program: Program, integer_program: IntegerProgram, inputs: Array, mask: Array | None = None
) -> Errors:
    """Returns the errors of every value over time.

    Both programs run on their own states, so that errors build up as they would on a device.

    Args:
      program: in floating point.
      integer_program: made of it.
      inputs: ``[batch, time, width]``, or integers ``[batch, time]``.
      mask: ``[batch, time]``, non-zero where a step is real.
    """
    inputs = jnp.asarray(inputs)
    inputs = inputs[..., None] if inputs.ndim == 2 else inputs
    real = jnp.ones(inputs.shape[:2], bool) if mask is None else jnp.asarray(mask) != 0
    places = {source: place for place, source in enumerate(integer_program.sources) if source >= 0}
    sources = tuple(sorted(places))
    as_integers = to_integers(integer_program, inputs)

    def step(carries: Any, at: Any) -> tuple[Any, tuple[Array, Array]]:
        x, x_integer, is_real = at
        exact = programs.values(program, carries[0], x)
        integers = integer_values(integer_program, carries[1], x_integer)
        weights = is_real.astype(jnp.float32)[:, None]
        largest, squares = [], []
        for source in sources:
            fraction = integer_program.fractions[places[source]]
            error = arithmetic.to_real(integers[places[source]], fraction) - exact[source]
            error = jnp.where(is_real[:, None], error, 0)
            largest.append(jnp.abs(error).max())
            squares.append((error**2).mean(-1).sum() / jnp.maximum(weights.sum(), 1))
        after = (
            (tuple(exact[n] for n in program.next_state), jnp.ones_like(carries[0][1])),
            (
                tuple(integers[n] for n in integer_program.next_state),
                jnp.ones_like(carries[1][1]),
            ),
        )
        after = kept_where_masked(is_real, after, carries)
        return after, (jnp.stack(largest), jnp.sqrt(jnp.stack(squares)))

    batch = inputs.shape[:1]
    carries = programs.initial_carry(program, batch), initial_carry(integer_program, batch)
    ats = tuple(jnp.swapaxes(a, 0, 1) for a in (inputs, as_integers, real))
    _, (largest, rms) = jax.lax.scan(step, carries, ats)
    return Errors(sources, np.asarray(largest).T, np.asarray(rms).T)
