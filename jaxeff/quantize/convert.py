"""Makes an integer program of a program and the ranges of its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.models import SequenceModel
from jaxeff.programs import Instruction, Program, trace_step
from jaxeff.quantize import calibrate, formats
from jaxeff.quantize.builder import IntegerBuilder
from jaxeff.quantize.formats import QuantizeOptions
from jaxeff.quantize.integer_program import IntegerProgram
from jaxeff.quantize.rules import RULES
from jaxeff.typing import Array


def quantize(
    model: SequenceModel,
    variables: Mapping[str, Any],
    calibration_inputs: Array,
    options: QuantizeOptions | None = None,
    mask: Array | None = None,
) -> IntegerProgram:
    """Returns the integer form of a trained recurrent model's step.

    Args:
      model: the model.
      variables: its parameters, in ``"params"``.
      calibration_inputs: typical inputs ``[examples, time, width]``, or integers
        ``[examples, time]`` for a model that embeds them; a hundred sequences of the training data.
      options: bits of weights and state.
      mask: ``[examples, time]`` of these inputs, non-zero where a step is real.

    Raises:
      ConfigError: the model's step cannot be written as a program, or has an operation without an
        integer form.
      DataError: calibration inputs that no range can be taken from.
    """
    if getattr(getattr(model, "cell", None), "solver", None) == "implicit":
        raise ConfigError(
            "a cell that solves for its equilibrium has no integer form, because each of its "
            "iterations would round; train with model.cell.solver=euler"
        )
    inputs = np.asarray(calibration_inputs)
    program = trace_step(model, variables, inputs.shape[-1] if inputs.ndim == 3 else None)
    ranges = calibrate.ranges(program, inputs, mask)
    moments = calibrate.moments(program, inputs, mask)
    return to_integer_program(program, ranges, options or QuantizeOptions(), moments)


def to_integer_program(
    program: Program,
    ranges: np.ndarray,
    options: QuantizeOptions,
    moments: Mapping[int, np.ndarray] | None = None,
) -> IntegerProgram:
    """Returns the integer form of a program.

    Every value gets the most fraction bits with which its range fits into 16 bits, as far as its
    operands have so many. A state has one format before and after the step.

    Args:
      program: in floating point.
      ranges: least and greatest entry of its values ``[values, 2]``, see
        `jaxeff.quantize.calibrate.ranges`.
      options: bits of weights and state.
      moments: second moments of the inputs of products, see `jaxeff.quantize.calibrate.moments`;
        without them every weight is rounded by itself, to the nearest integer.

    Raises:
      ConfigError: an operation has no integer form.
    """
    builder = IntegerBuilder(program, ranges, options, moments or {})
    bits = options.state_bits
    for number in program.inputs:
        symbols = any(i.op == "take" and number in i.inputs for i in program.instructions)
        fraction = 0 if symbols else formats.fraction_for(builder.largest(number))
        builder.numbers[number] = builder.value(program.widths[number], fraction, 16, number)
    for before, after in zip(program.state, program.next_state, strict=True):
        fraction = formats.fraction_for(max(builder.largest(before), builder.largest(after)), bits)
        builder.numbers[before] = builder.value(program.widths[before], fraction, bits, before)
        builder.demanded.setdefault(after, (fraction, bits))
    for instruction in program.instructions:
        if instruction.op != "constant":
            builder.numbers[instruction.output] = _converted(builder, instruction)
    state = tuple(builder.numbers[number] for number in program.state)
    next_state = tuple(
        builder.in_format(builder.operand(after), builder.fractions[before], bits)
        for before, after in zip(state, program.next_state, strict=True)
    )
    return IntegerProgram(
        widths=tuple(builder.widths),
        fractions=tuple(builder.fractions),
        bits=tuple(builder.bits),
        inputs=tuple(builder.numbers[number] for number in program.inputs),
        state=state,
        next_state=next_state,
        outputs=tuple(builder.operand(number) for number in program.outputs),
        instructions=tuple(builder.instructions),
        initial_state=tuple(
            formats.integers(vector, builder.fractions[number], bits)
            for number, vector in zip(state, program.initial_state, strict=True)
        ),
        sources=tuple(builder.sources),
    )


def _converted(builder: IntegerBuilder, instruction: Instruction) -> int:
    """Returns the number of the value that an instruction of the program becomes."""
    rule = RULES.get(instruction.op)
    if rule is None:
        raise ConfigError(
            f"the operation {instruction.op} has no integer form; write the cell's step with "
            f"{', '.join(sorted(RULES))}, or export it in floating point"
        )
    target, bits = builder.demanded.get(
        instruction.output, (formats.fraction_for(builder.largest(instruction.output)), 16)
    )
    number = rule(builder, instruction, target, bits)
    if instruction.output in builder.demanded:
        number = builder.in_format(number, target, bits)
    if builder.sources[number] < 0:
        builder.sources[number] = instruction.output
    return number
