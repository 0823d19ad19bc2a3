"""The integer form of a step: a program whose values are integers with a binary point.

What an instruction computes is said here to the bit, so that the simulator (`jaxeff.quantize.run`)
and generated C code give the same integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

#: Operations, with what they compute in 32-bit integers from inputs a and b. ``shift_right``,
#: ``multiply_high``, ``tanh`` and ``logistic`` are those of `jaxeff.quantize.arithmetic`; ``sat``
#: saturates to the bits of the output (`IntegerProgram.bits`).
OPERATIONS: dict[str, str] = {
    "constant": "the vector `constant`, int16",
    "dense": (
        "sat(shift_right(multiply_high((a @ constant) << left, multipliers), right)), with "
        "`constant` int8 [width of a, width of the output] and `multipliers` int16 [width of the "
        "output]; no sum leaves 32 bits, whatever a holds"
    ),
    "add": "sat(shift_right((a << left_a) + (b << left_b), right))",
    "sub": "sat(shift_right((a << left_a) - (b << left_b), right))",
    "mul": "sat(shift_right(a * b, right))",
    "rescale": "sat(shift_right(a << left, right))",
    "neg": "sat(-a)",
    "abs": "sat(|a|)",
    "max": "max(a, b), which have the fraction bits of the output",
    "min": "min(a, b), which have the fraction bits of the output",
    "tanh": "tanh(a, input_fraction), with the fraction bits of a",
    "logistic": "logistic(a, input_fraction), with the fraction bits of a",
    "lookup": (
        "position = (min(max(a, start), end) - start) << left; i = position >> 16; constant[i] + "
        "shift_right((constant[i + 1] - constant[i]) * ((position & 65535) >> 1), 15), with "
        "`constant` int16 [entries]"
    ),
    "first": "a at the first step of a sequence, b at the others; both as the output",
    "concatenate": "the inputs one behind the other; all as the output",
    "slice": "elements of a from attribute `start` to before `stop`",
    "take": "row a[0] of `constant`, int16 [rows, width]",
}


class IntegerInstruction(NamedTuple):
    """Makes one value.

    Attributes:
      op: one of `OPERATIONS`.
      inputs: numbers of the values that it reads.
      output: number of the value that it makes.
      constant: int8 kernel of "dense", int16 of "constant", "take" and "lookup", else None.
      multipliers: int16 factors of the columns of "dense", from 0 to 32767, else None.
      attributes: its shifts (from 0 to 31) and other integers, by name.
    """

    op: str
    inputs: tuple[int, ...]
    output: int
    constant: np.ndarray | None = None
    multipliers: np.ndarray | None = None
    attributes: Mapping[str, int] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class IntegerProgram:
    """A step in integers; see `jaxeff.programs.Program` for the parts of the same names.

    An integer i of a value with f fraction bits stands for ``i / 2**f``; f may be negative or
    beyond 15. Inputs come as integers with the fraction bits of their values
    (`jaxeff.quantize.arithmetic.from_real`); a symbol comes as its number, and its fraction is 0.

    Attributes:
      widths: length of every value.
      fractions: fraction bits of every value.
      bits: bits that every value saturates at, 16, or 8 for states that are kept in 8.
      inputs: values that hold the inputs of the step.
      state: values that hold the state before the step.
      next_state: values that hold the state after it; of the same fraction and bits.
      outputs: values that are the step's outputs.
      instructions: in order.
      initial_state: int16 vectors, the state before the first step.
      sources: for every value the number of the value of the floating-point program that it stands
        for, or -1 for one that only this program has.
    """

    widths: tuple[int, ...]
    fractions: tuple[int, ...]
    bits: tuple[int, ...]
    inputs: tuple[int, ...]
    state: tuple[int, ...]
    next_state: tuple[int, ...]
    outputs: tuple[int, ...]
    instructions: tuple[IntegerInstruction, ...]
    initial_state: tuple[np.ndarray, ...]
    sources: tuple[int, ...]

    @property
    def constant_bytes(self) -> int:
        """Bytes of all weights, multipliers and tables, equal ones once, without tanh's table."""
        arrays = {
            (array.shape, array.dtype, array.tobytes()): array.nbytes
            for instruction in self.instructions
            for array in (instruction.constant, instruction.multipliers)
            if array is not None
        }
        return sum(arrays.values())

    @property
    def state_bytes(self) -> int:
        """Bytes of the state, in as many bits as it needs."""
        return sum(self.widths[number] * self.bits[number] // 8 for number in self.state)

    def __str__(self) -> str:
        """Lists the instructions, a line each; "v3[64] Q12" is a value with 12 fraction bits."""
        return "\n".join(_line(self, instruction) for instruction in self.instructions)


def _line(program: IntegerProgram, instruction: IntegerInstruction) -> str:
    operands = [f"v{number}" for number in instruction.inputs]
    if instruction.constant is not None:
        kind = instruction.constant
        operands.append(f"{kind.dtype}{list(kind.shape)}")
    operands += [f"{name}={value}" for name, value in instruction.attributes.items()]
    number = instruction.output
    output = f"v{number}[{program.widths[number]}] Q{program.fractions[number]}"
    return f"{output} = {instruction.op}({', '.join(operands)})"
