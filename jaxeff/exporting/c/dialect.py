"""What floating point and integers have in common as C, and what each must say."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from jaxeff.exporting.c.arrays import Arrays, blocked, number
from jaxeff.programs import Program
from jaxeff.quantize import IntegerProgram


class Dialect(abc.ABC):
    """Writes single instructions in one kind of numbers.

    Attributes:
      kind: C type of inputs, states and outputs.
      scalar: C type of a value in a loop.
      block: outputs that a product computes together.
      program: whose instructions they are.
      arrays: takes the constants.
    """

    kind: str
    scalar: str
    block: int

    def __init__(self, program: Program | IntegerProgram):
        self.program: Any = program
        self.arrays = Arrays()
        self.operations = sorted({i.op for i in program.instructions})

    @abc.abstractmethod
    def declarations(self) -> str:
        """Returns includes and types, which stand before the constants."""

    @abc.abstractmethod
    def functions(self) -> str:
        """Returns the functions that the step calls, which stand behind the constants."""

    @abc.abstractmethod
    def expression(self, instruction: Any, operands: list[str]) -> str:
        """Returns one element of an instruction's output from those of its inputs."""

    @abc.abstractmethod
    def dense(self, instruction: Any, operand: str, kind: str) -> str:
        """Returns the call that computes a block of a product, from output j on, n of them.

        ``kind`` is the C type of the operand's elements.
        """

    def stored(self, number: int) -> str:
        """Returns the C type in which a value is kept between loops and steps."""
        return self.kind

    def kernel(self, instruction: Any) -> str:
        """Adds a kernel; returns its name."""
        inputs, outputs = instruction.constant.shape
        return self.arrays.add(
            f"kernel_v{instruction.output}",
            blocked(instruction.constant, self.block),
            f"kernel of v{instruction.output}: {outputs} outputs in blocks of {self.block}; in "
            f"each the weights of the first input, of the second, ..., of {inputs}",
        )

    def constant(self, instruction: Any) -> str:
        """Returns one element of a constant vector: a number, or an element of an array."""
        vector = instruction.constant
        if np.all(vector == vector[0]) and np.isfinite(vector[0]):
            return number(vector[0])
        comment = f"the constant v{instruction.output}, {len(vector)} wide"
        return f"{self.arrays.add(f'constant_v{instruction.output}', vector, comment)}[at]"
