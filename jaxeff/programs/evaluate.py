"""Runs a program in floating point, for any batch of sequences at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.programs.program import BINARY, UNARY, Instruction, Program
from jaxeff.typing import Array, Carry, Dtype

_NAMES = {"max": jnp.maximum, "min": jnp.minimum}
_ELEMENTWISE: dict[str, Callable[..., Array]] = {
    op: _NAMES.get(op) or getattr(jax.lax, op) for op in (*UNARY, *BINARY)
}


def initial_carry(
    program: Program, batch_shape: tuple[int, ...] = (), dtype: Dtype = jnp.float32
) -> Carry:
    """Returns the carry before the first step: the state, and whether a step has been taken."""
    state = tuple(
        jnp.broadcast_to(jnp.asarray(vector, dtype), (*batch_shape, len(vector)))
        for vector in program.initial_state
    )
    return state, jnp.zeros(batch_shape, bool)


def evaluate(
    program: Program, carry: Carry, *inputs: Array, dtype: Dtype = jnp.float32
) -> tuple[Carry, tuple[Array, ...]]:
    """Takes one step.

    Args:
      program: the step.
      carry: as `initial_carry` or the step before returned it.
      *inputs: one array ``[..., width]`` per input of the program.
      dtype: type of the computation.

    Returns:
      the carry after the step, and the outputs, each ``[..., width]``.
    """
    every = values(program, carry, *inputs, dtype=dtype)
    _, started = carry
    state = tuple(every[number] for number in program.next_state)
    return (state, jnp.ones_like(started)), tuple(every[number] for number in program.outputs)


def values(
    program: Program, carry: Carry, *inputs: Array, dtype: Dtype = jnp.float32
) -> list[Array]:
    """Returns every value of a step ``[..., width]``, in the order of their numbers."""
    state, started = carry
    every: list[Any] = [None] * len(program.widths)
    for number, array in zip(program.inputs, inputs, strict=True):
        whole = jnp.issubdtype(jnp.asarray(array).dtype, jnp.integer)
        every[number] = array if whole else jnp.asarray(array, dtype)
    for number, array in zip(program.state, state, strict=True):
        every[number] = array
    for instruction in program.instructions:
        operands = [every[number] for number in instruction.inputs]
        every[instruction.output] = _result(instruction, operands, started, dtype)
    return [
        jnp.broadcast_to(array, (*started.shape, width))
        for array, width in zip(every, program.widths, strict=True)
    ]


def _result(
    instruction: Instruction, operands: Sequence[Array], started: Array, dtype: Dtype
) -> Array:
    op = instruction.op
    if op in _ELEMENTWISE:
        return _ELEMENTWISE[op](*jnp.broadcast_arrays(*operands))
    if op == "first":
        return jnp.where(started[..., None], operands[1], operands[0])
    if op == "concatenate":
        batch = jnp.broadcast_shapes(*(a.shape[:-1] for a in operands))
        wide = [jnp.broadcast_to(a, (*batch, a.shape[-1])) for a in operands]
        return jnp.concatenate(wide, -1)
    if op == "slice":
        return operands[0][..., instruction.attributes["start"] : instruction.attributes["stop"]]
    constant = jnp.asarray(instruction.constant, dtype)
    if op == "constant":
        return constant
    if op == "dense":
        return operands[0] @ constant
    if op == "take":
        return constant[jnp.asarray(operands[0][..., 0], jnp.int32)]
    raise ValueError(f"a program has no operation {op!r}")
