"""What a program is: instructions in order, each of which makes one vector from others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

#: Operations on one vector, element by element.
UNARY = (
    "abs",
    "cos",
    "erf",
    "exp",
    "log",
    "logistic",
    "neg",
    "rsqrt",
    "sin",
    "sqrt",
    "tanh",
)
#: Operations on two vectors of one width, element by element.
BINARY = ("add", "div", "max", "min", "mul", "sub")

#: All operations, with their inputs and what they make of them.
OPERATIONS: dict[str, str] = {
    **dict.fromkeys(UNARY, "(a): element by element"),
    **dict.fromkeys(BINARY, "(a, b) of one width: element by element"),
    "concatenate": "(a, b, ...): one behind the other",
    "constant": "(): the vector `constant`",
    "dense": "(a): a @ constant, a kernel [width of a, width of the output]",
    "first": "(a, b): a at the first step of a sequence, b at the others",
    "slice": "(a): elements from attribute `start` to before `stop`",
    "take": "(a), a single whole number: the row of `constant` [rows, width] with that number",
}


class Instruction(NamedTuple):
    """Makes one value.

    Attributes:
      op: one of `OPERATIONS`.
      inputs: numbers of the values that it reads.
      output: number of the value that it makes.
      constant: what of the parameters it holds, float32, or None.
      attributes: its other settings, by name.
    """

    op: str
    inputs: tuple[int, ...]
    output: int
    constant: np.ndarray | None = None
    attributes: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A step: from an input and the state before to the state after and the outputs.

    Values are vectors, known by their numbers, and each is made once. All that depends on
    parameters alone is a constant.

    Attributes:
      widths: length of every value.
      inputs: values that hold the inputs of the step.
      state: values that hold the state before the step.
      next_state: values that hold the state after it, as many and as wide.
      outputs: values that are the step's outputs.
      instructions: in order.
      initial_state: the state before the first step.
    """

    widths: tuple[int, ...]
    inputs: tuple[int, ...]
    state: tuple[int, ...]
    next_state: tuple[int, ...]
    outputs: tuple[int, ...]
    instructions: tuple[Instruction, ...]
    initial_state: tuple[np.ndarray, ...]

    def __str__(self) -> str:
        """Lists the instructions, a line each."""
        return "\n".join(_line(self, instruction) for instruction in self.instructions)


def _line(program: Program, instruction: Instruction) -> str:
    operands = [f"v{number}" for number in instruction.inputs]
    if instruction.constant is not None:
        operands.append(f"constant{list(instruction.constant.shape)}")
    operands += [f"{name}={value}" for name, value in instruction.attributes.items()]
    output = f"v{instruction.output}[{program.widths[instruction.output]}]"
    return f"{output} = {instruction.op}({', '.join(operands)})"
