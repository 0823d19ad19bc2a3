"""Values and instructions of an integer program under construction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxeff.programs import Instruction, Program
from jaxeff.quantize import formats
from jaxeff.quantize.formats import QuantizeOptions
from jaxeff.quantize.integer_program import IntegerInstruction


def constant_of(instruction: Instruction) -> np.ndarray:
    """Returns the constant of an instruction that has one."""
    assert instruction.constant is not None
    return instruction.constant


@dataclasses.dataclass(eq=False)
class IntegerBuilder:
    """Collects the instructions of an integer program.

    Attributes:
      program: in floating point.
      ranges: least and greatest entry of its values.
      options: bits of weights and state.
      moments: second moments of the inputs of products, by their numbers in the program.
    """

    program: Program
    ranges: np.ndarray
    options: QuantizeOptions
    moments: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.widths: list[int] = []
        self.fractions: list[int] = []
        self.bits: list[int] = []
        self.sources: list[int] = []
        self.instructions: list[IntegerInstruction] = []
        self.numbers: dict[int, int] = {}  # of the values, by their numbers in the program
        self.constants = {
            i.output: constant_of(i) for i in self.program.instructions if i.op == "constant"
        }
        self.produced: dict[tuple[Any, ...], int] = {}
        self.demanded: dict[int, tuple[int, int]] = {}  # fraction and bits of what becomes state

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
        if key not in self.produced:
            vector = formats.integers(self.constants[number], fraction)
            self.produced[key] = self.emit("constant", (), len(vector), fraction, constant=vector)
        return self.produced[key]

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
        if key not in self.produced:
            left, right = max(shift, 0), max(-shift, 0)
            self.produced[key] = self.emit(
                "rescale",
                (number,),
                self.widths[number],
                fraction,
                bits,
                left=min(left, 15),
                right=min(right, 31),
            )
        return self.produced[key]
