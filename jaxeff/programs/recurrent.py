"""The step of a sequence model, with all its layers and the read-out, as a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.models import SequenceModel
from jaxeff.ode import CarryParts, parts_of
from jaxeff.programs.program import Instruction, Program
from jaxeff.programs.trace import Builder, StepCount, Vector, trace


def trace_step(
    model: SequenceModel, variables: Mapping[str, Any], input_width: int | None = None
) -> Program:
    """Returns one step of a recurrent model.

    Its input is a vector ``[input_width]``, or, for a model that embeds integers, one of length 1
    that holds the number of a symbol. Its output is the read-out of the state after the step.

    Args:
      model: the model.
      variables: its parameters, in ``"params"``.
      input_width: features of an input; None for integers.

    Raises:
      ConfigError: a cell has an operation that no program has, such as step sizes per time step.
    """
    if not isinstance(model, SequenceModel):
        raise ConfigError(
            f"{type(model).__name__} is no recurrent model, so it has no step; give a SequenceModel"
        )
    params = jax.tree.map(lambda a: np.asarray(a, np.float32), dict(variables["params"]))
    builder = Builder()
    if input_width is None:
        (table,) = (params[name]["embedding"] for name in params if name.startswith("Embed"))
        source = builder.placeholder(1)
        x = builder.add("take", [source], (model.embedding,), table)
    else:
        require_whole("input_width", input_width)
        source = x = builder.placeholder(input_width)

    state: list[Vector] = []
    next_state: list[Vector] = []
    initial: list[np.ndarray] = []
    for layer in range(model.num_layers):
        weights = params[f"cell_{layer}"]
        carry = model.cell.initial_carry((), np.float32, x.width)
        before = jax.tree.map(lambda a: builder.placeholder(len(a)), _without_steps(carry))
        state += jax.tree.leaves(before)
        initial += [np.asarray(a) for a in jax.tree.leaves(_without_steps(carry))]
        after, x = trace(
            builder,
            lambda carry, x, weights=weights: model.cell.step(weights, carry, x),
            _with_count(carry, before),
            x,
        )
        next_state += [
            builder.vector(value, (old.width,))
            for value, old in zip(
                jax.tree.leaves(_without_steps(after)), jax.tree.leaves(before), strict=True
            )
        ]
    read = params["readout"]
    output = trace(builder, lambda x: x @ read["kernel"] + read["bias"], x)
    return _only_used(builder, [source], state, next_state, [output], initial)


def _without_steps(carry: Any) -> Any:
    """Returns a carry without its count of steps, which a program knows of itself."""
    return carry._replace(steps=None) if isinstance(carry, CarryParts) else carry


def _with_count(carry: Any, vectors: Any) -> Any:
    if parts_of(carry).steps is None:
        return vectors
    return vectors._replace(steps=StepCount())


def _only_used(
    builder: Builder,
    inputs: list[Vector],
    state: list[Vector],
    next_state: list[Vector],
    outputs: list[Vector],
    initial: list[np.ndarray],
) -> Program:
    """Returns the program without what nothing reads, its values numbered anew."""
    used = {vector.number for vector in (*next_state, *outputs)}
    kept: list[Instruction] = []
    for instruction in reversed(builder.instructions):
        if instruction.output in used:
            kept.append(instruction)
            used |= set(instruction.inputs)
    kept.reverse()
    order = [
        *(vector.number for vector in (*inputs, *state)),
        *(instruction.output for instruction in kept),
    ]
    new = {old: number for number, old in enumerate(order)}

    def numbers(vectors: list[Vector]) -> tuple[int, ...]:
        return tuple(new[vector.number] for vector in vectors)

    return Program(
        widths=tuple(builder.widths[old] for old in order),
        inputs=numbers(inputs),
        state=numbers(state),
        next_state=numbers(next_state),
        outputs=numbers(outputs),
        instructions=tuple(
            instruction._replace(
                inputs=tuple(new[old] for old in instruction.inputs),
                output=new[instruction.output],
            )
            for instruction in kept
        ),
        initial_state=tuple(initial),
    )
