"""What each operation of a program becomes in integers.

A rule takes the builder, the instruction, and the fraction bits and the bits that its value should
have. It returns the number of a value that has as many, or fewer fraction bits where the operands
have no more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.programs import Instruction
from jaxeff.quantize import formats
from jaxeff.quantize.arithmetic import UNIT_FRACTION
from jaxeff.quantize.builder import IntegerBuilder, constant_of
from jaxeff.quantize.lookup import FUNCTIONS, lookup_table

#: How far the operands of a sum may be shifted so that it stays within 32 bits.
MAX_ALIGNMENT = 14


def _dense(to: IntegerBuilder, instruction: Instruction, target: int, bits: int) -> int:
    a, moment = to.operand(instruction.inputs[0]), to.moments.get(instruction.inputs[0])
    kernel = constant_of(instruction)
    weights, scales = formats.integer_kernel(kernel, to.bits[a], to.options, moment)
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


def _sum(to: IntegerBuilder, instruction: Instruction, target: int, bits: int) -> int:
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


def _product(to: IntegerBuilder, instruction: Instruction, target: int, bits: int) -> int:
    a, b = (to.operand(number) for number in instruction.inputs)
    return _multiplied(to, a, b, target, bits)


def _multiplied(to: IntegerBuilder, a: int, b: int, target: int, bits: int) -> int:
    common = to.fractions[a] + to.fractions[b]
    fraction = min(target, common)
    right = min(common - fraction, 31)
    kept = bits if fraction == target else 16
    return to.emit("mul", (a, b), to.widths[a], common - right, kept, right=right)


def _quotient(to: IntegerBuilder, instruction: Instruction, target: int, bits: int) -> int:
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


def _looked_up(to: IntegerBuilder, function: str, number: int) -> int:
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


def _table(to: IntegerBuilder, instruction: Instruction, target: int, bits: int) -> int:
    return _looked_up(to, instruction.op, instruction.inputs[0])


def _squashed(to: IntegerBuilder, instruction: Instruction, target: int, bits: int) -> int:
    (a,) = (to.operand(number) for number in instruction.inputs)
    if to.fractions[a] < 0:  # beyond all that differs from 1
        a = to.in_format(a, 0)
    width, fraction = to.widths[a], to.fractions[a]
    return to.emit(instruction.op, (a,), width, UNIT_FRACTION, input_fraction=fraction)


def _same(to: IntegerBuilder, instruction: Instruction, target: int, bits: int) -> int:
    (a,) = (to.operand(number) for number in instruction.inputs)
    return to.emit(
        instruction.op,
        (a,),
        to.program.widths[instruction.output],
        to.fractions[a],
        to.bits[a],
        **instruction.attributes,
    )


def _extreme(to: IntegerBuilder, instruction: Instruction, target: int, bits: int) -> int:
    known = [to.fractions[to.numbers[n]] for n in instruction.inputs if n not in to.constants]
    return _aligned(to, instruction, min(target, max(known, default=target)))


def _joined(to: IntegerBuilder, instruction: Instruction, target: int, bits: int) -> int:
    known = [to.fractions[to.numbers[n]] for n in instruction.inputs if n not in to.constants]
    return _aligned(to, instruction, min(target, min(known, default=target)))


def _aligned(to: IntegerBuilder, instruction: Instruction, fraction: int) -> int:
    """Brings all operands to one format, which the output then has."""
    operands = tuple(
        to.in_format(to.operand(number, fraction), fraction) for number in instruction.inputs
    )
    return to.emit(instruction.op, operands, to.program.widths[instruction.output], fraction)


def _row(to: IntegerBuilder, instruction: Instruction, target: int, bits: int) -> int:
    rows = constant_of(instruction)
    fraction = formats.fraction_for(float(np.abs(rows).max()))
    table = formats.integers(rows, fraction)
    return to.emit("take", (to.operand(instruction.inputs[0]),), rows.shape[1], fraction, 16, table)


RULES: dict[str, Callable[[IntegerBuilder, Instruction, int, int], int]] = {
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
