"""Makes an integer program of a program and the ranges of its values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.models import SequenceModel
from jaxeff.programs import Instruction, Program, trace_step
from jaxeff.quantize import calibrate, formats
from jaxeff.quantize.arithmetic import UNIT_FRACTION
from jaxeff.quantize.formats import QuantizeOptions
from jaxeff.quantize.integer_program import IntegerInstruction, IntegerProgram
from jaxeff.quantize.lookup import FUNCTIONS, lookup_table
from jaxeff.typing import Array

#: How far the operands of a sum may be shifted so that it stays within 32 bits.
MAX_ALIGNMENT = 14


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
    return to_integer_program(program, ranges, options or QuantizeOptions())


def to_integer_program(
    program: Program, ranges: np.ndarray, options: QuantizeOptions
) -> IntegerProgram:
    """Returns the integer form of a program.

    Every value gets the most fraction bits with which its range fits into 16 bits, as far as its
    operands have so many. A state has one format before and after the step.

    Args:
      program: in floating point.
      ranges: least and greatest entry of its values ``[values, 2]``, see
        `jaxeff.quantize.calibrate.ranges`.
      options: bits of weights and state.

    Raises:
      ConfigError: an operation has no integer form.
    """
    return _Converter(program, ranges, options).convert()


@dataclasses.dataclass(eq=False)
class _Converter:
    """Builds the instructions one after the other."""

    program: Program
    ranges: np.ndarray
    options: QuantizeOptions

    def __post_init__(self):
        self.widths: list[int] = []
        self.fractions: list[int] = []
        self.bits: list[int] = []
        self.sources: list[int] = []
        self.instructions: list[IntegerInstruction] = []
        self.numbers: dict[int, int] = {}  # of the values, by their numbers in the program
        self.constants = {
            i.output: _constant_of(i) for i in self.program.instructions if i.op == "constant"
        }
        self.made: dict[tuple, int] = {}
        self.demanded: dict[int, tuple[int, int]] = {}  # fraction and bits of what becomes state

    def convert(self) -> IntegerProgram:
        """Returns the whole program."""
        program, bits = self.program, self.options.state_bits
        for number in program.inputs:
            symbols = any(i.op == "take" and number in i.inputs for i in program.instructions)
            fraction = 0 if symbols else formats.fraction_for(self.largest(number))
            self.numbers[number] = self.value(program.widths[number], fraction, 16, number)
        for before, after in zip(program.state, program.next_state, strict=True):
            fraction = formats.fraction_for(max(self.largest(before), self.largest(after)), bits)
            self.numbers[before] = self.value(program.widths[before], fraction, bits, before)
            self.demanded.setdefault(after, (fraction, bits))
        for instruction in program.instructions:
            if instruction.op != "constant":
                self.numbers[instruction.output] = self.converted(instruction)
        state = tuple(self.numbers[number] for number in program.state)
        next_state = tuple(
            self.in_format(self.operand(after), self.fractions[before], bits)
            for before, after in zip(state, program.next_state, strict=True)
        )
        return IntegerProgram(
            widths=tuple(self.widths),
            fractions=tuple(self.fractions),
            bits=tuple(self.bits),
            inputs=tuple(self.numbers[number] for number in program.inputs),
            state=state,
            next_state=next_state,
            outputs=tuple(self.operand(number) for number in program.outputs),
            instructions=tuple(self.instructions),
            initial_state=tuple(
                formats.integers(vector, self.fractions[number], bits)
                for number, vector in zip(state, program.initial_state, strict=True)
            ),
            sources=tuple(self.sources),
        )

    def largest(self, number: int) -> float:
        """Returns the greatest magnitude of a value."""
        return float(np.abs(self.ranges[number]).max()) * self.options.margin

    def value(self, width: int, fraction: int, bits: int = 16, source: int = -1) -> int:
        """Adds a value and returns its number."""
        self.widths.append(width)
        self.fractions.append(fraction)
        self.bits.append(bits)
        self.sources.append(source)
        return len(self.widths) - 1

    def emit(
        self,
        op: str,
        inputs: tuple[int, ...],
        width: int,
        fraction: int,
        bits: int = 16,
        constant: np.ndarray | None = None,
        multipliers: np.ndarray | None = None,
        **attributes: int,
    ) -> int:
        """Adds an instruction and returns the number of its value."""
        output = self.value(width, fraction, bits)
        self.instructions.append(
            IntegerInstruction(op, inputs, output, constant, multipliers, attributes)
        )
        return output

    def constant(self, number: int, fraction: int) -> int:
        """Returns a constant of the program with that many fraction bits."""
        key = ("constant", number, fraction)
        if key not in self.made:
            vector = formats.integers(self.constants[number], fraction)
            self.made[key] = self.emit("constant", (), len(vector), fraction, constant=vector)
        return self.made[key]

    def operand(self, number: int, fraction: int | None = None) -> int:
        """Returns a value of the program; a constant with the given or the most fraction bits."""
        if number not in self.constants:
            return self.numbers[number]
        if fraction is None:
            fraction = formats.fraction_for(float(np.abs(self.constants[number]).max()))
        return self.constant(number, fraction)

    def in_format(self, number: int, fraction: int, bits: int = 16) -> int:
        """Returns a value with that many fraction bits, shifted if need be."""
        shift = fraction - self.fractions[number]
        if shift == 0 and self.bits[number] <= bits:
            return number
        key = ("rescale", number, fraction, bits)
        if key not in self.made:
            left, right = max(shift, 0), max(-shift, 0)
            self.made[key] = self.emit(
                "rescale",
                (number,),
                self.widths[number],
                fraction,
                bits,
                left=min(left, 15),
                right=min(right, 31),
            )
        return self.made[key]

    def converted(self, instruction: Instruction) -> int:
        """Returns the number of the value that an instruction of the program becomes."""
        rule = _RULES.get(instruction.op)
        if rule is None:
            raise ConfigError(
                f"the operation {instruction.op} has no integer form; write the cell's step with "
                f"{', '.join(sorted(_RULES))}, or export it in floating point"
            )
        target, bits = self.demanded.get(
            instruction.output, (formats.fraction_for(self.largest(instruction.output)), 16)
        )
        number = rule(self, instruction, target, bits)
        if instruction.output in self.demanded:
            number = self.in_format(number, target, bits)
        if self.sources[number] < 0:
            self.sources[number] = instruction.output
        return number


def _constant_of(instruction: Instruction) -> np.ndarray:
    assert instruction.constant is not None  # operations with a constant always hold one
    return instruction.constant


def _dense(to: _Converter, instruction: Instruction, target: int, bits: int) -> int:
    a = to.operand(instruction.inputs[0])
    weights, scales = formats.integer_kernel(_constant_of(instruction), to.bits[a], to.options)
    for fraction in range(target, target - 32, -1):
        factors = scales * 2.0 ** (fraction - to.fractions[a])
        shifts = formats.column_shifts(weights, to.bits[a], factors)
        if shifts is not None:
            multipliers, left, right = shifts
            break
    else:
        raise ConfigError("a kernel's values are too far apart for integers; check the weights")
    return to.emit(
        "dense",
        (a,),
        weights.shape[1],
        fraction,
        bits if fraction == target else 16,
        weights,
        multipliers,
        left=left,
        right=right,
    )


def _sum(to: _Converter, instruction: Instruction, target: int, bits: int) -> int:
    a, b = (to.operand(number) for number in instruction.inputs)
    low, high = sorted((to.fractions[a], to.fractions[b]))
    common = min(max(high, target), low + MAX_ALIGNMENT)
    a, b = (
        to.in_format(number, common) if to.fractions[number] > common else number
        for number in (a, b)
    )
    fraction = min(target, common)
    return to.emit(
        instruction.op,
        (a, b),
        to.widths[a],
        fraction,
        bits if fraction == target else 16,
        left_a=common - to.fractions[a],
        left_b=common - to.fractions[b],
        right=min(common - fraction, 31),
    )


def _product(to: _Converter, instruction: Instruction, target: int, bits: int) -> int:
    a, b = (to.operand(number) for number in instruction.inputs)
    return _multiplied(to, a, b, target, bits)


def _multiplied(to: _Converter, a: int, b: int, target: int, bits: int) -> int:
    common = to.fractions[a] + to.fractions[b]
    fraction = min(target, common)
    right = min(common - fraction, 31)
    kept = bits if fraction == target else 16
    return to.emit("mul", (a, b), to.widths[a], common - right, kept, right=right)


def _quotient(to: _Converter, instruction: Instruction, target: int, bits: int) -> int:
    numerator, divisor = instruction.inputs
    if divisor in to.constants:
        inverse = 1.0 / to.constants[divisor].astype(np.float64)
        fraction = formats.fraction_for(float(np.abs(inverse).max()))
        vector = formats.integers(inverse, fraction)
        b = to.emit("constant", (), len(vector), fraction, constant=vector)
    else:
        low, high = to.ranges[divisor]
        if low <= 0 <= high:
            raise ConfigError(
                f"a division by a value between {low:g} and {high:g} has no integer form; keep the "
                "divisor away from zero"
            )
        b = _looked_up(to, "reciprocal", divisor)
    return _multiplied(to, to.operand(numerator), b, target, bits)


def _looked_up(to: _Converter, function: str, number: int) -> int:
    a = to.operand(number)
    table = lookup_table(function, to.ranges[number], to.fractions[a], to.options.margin)
    return to.emit(
        "lookup",
        (a,),
        to.widths[a],
        table.fraction,
        constant=table.entries,
        start=table.start,
        end=table.end,
        left=table.left,
    )


def _table(to: _Converter, instruction: Instruction, target: int, bits: int) -> int:
    return _looked_up(to, instruction.op, instruction.inputs[0])


def _squashed(to: _Converter, instruction: Instruction, target: int, bits: int) -> int:
    (a,) = (to.operand(number) for number in instruction.inputs)
    if to.fractions[a] < 0:  # beyond all that differs from 1
        a = to.in_format(a, 0)
    width, fraction = to.widths[a], to.fractions[a]
    return to.emit(instruction.op, (a,), width, UNIT_FRACTION, input_fraction=fraction)


def _same(to: _Converter, instruction: Instruction, target: int, bits: int) -> int:
    (a,) = (to.operand(number) for number in instruction.inputs)
    return to.emit(
        instruction.op,
        (a,),
        to.program.widths[instruction.output],
        to.fractions[a],
        to.bits[a],
        **instruction.attributes,
    )


def _extreme(to: _Converter, instruction: Instruction, target: int, bits: int) -> int:
    known = [to.fractions[to.numbers[n]] for n in instruction.inputs if n not in to.constants]
    return _aligned(to, instruction, min(target, max(known, default=target)))


def _joined(to: _Converter, instruction: Instruction, target: int, bits: int) -> int:
    known = [to.fractions[to.numbers[n]] for n in instruction.inputs if n not in to.constants]
    return _aligned(to, instruction, min(target, min(known, default=target)))


def _aligned(to: _Converter, instruction: Instruction, fraction: int) -> int:
    """Brings all operands to one format, which the output then has."""
    operands = tuple(
        to.in_format(to.operand(number, fraction), fraction) for number in instruction.inputs
    )
    return to.emit(instruction.op, operands, to.program.widths[instruction.output], fraction)


def _row(to: _Converter, instruction: Instruction, target: int, bits: int) -> int:
    rows = _constant_of(instruction)
    fraction = formats.fraction_for(float(np.abs(rows).max()))
    table = formats.integers(rows, fraction)
    return to.emit("take", (to.operand(instruction.inputs[0]),), rows.shape[1], fraction, 16, table)


_RULES: dict[str, Callable[[_Converter, Instruction, int, int], int]] = {
    **dict.fromkeys(("add", "sub"), _sum),
    **dict.fromkeys(("tanh", "logistic"), _squashed),
    **dict.fromkeys(("neg", "abs", "slice"), _same),
    **dict.fromkeys(("max", "min"), _extreme),
    **dict.fromkeys(("first", "concatenate"), _joined),
    **dict.fromkeys(sorted(set(FUNCTIONS) - {"reciprocal"}), _table),
    "dense": _dense,
    "mul": _product,
    "div": _quotient,
    "take": _row,
}
