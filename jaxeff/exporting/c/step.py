"""The body of a generated step: its loops, and the states that follow."""

from __future__ import annotations

import textwrap
from typing import Any

from jaxeff.errors import UserError
from jaxeff.exporting.c.dialect import Dialect
from jaxeff.exporting.c.loops import VectorLoop, loops, memory


class Step:
    """Writes the statements of a step.

    Attributes:
      scratch: C types and lengths of the vectors in the model's struct that only a step uses.
    """

    def __init__(self, dialect: Dialect):
        self.dialect = dialect
        self.program = program = dialect.program
        self.order = loops(program)
        kept = memory(program, self.order, dialect.stored)
        self.scratch = tuple(zip(kept.kinds, kept.widths, strict=True))
        self.makers = {i.output: i for i in program.instructions}
        self.places = {number: f"model->scratch{slot}" for number, slot in kept.slots.items()}
        self.places |= {number: f"model->state{i}" for i, number in enumerate(program.state)}
        self.places[program.inputs[0]] = "x"
        if program.outputs[0] in {n for loop in self.order for n in loop.stored}:
            self.places[program.outputs[0]] = "model->outputs"

    def text(self) -> str:
        """Returns the statements."""
        parts = [self.loop(loop) for loop in self.order]
        parts.append(self.copies())
        if "first" in self.dialect.operations:
            parts.append("model->started = 1;")
        return "\n".join(parts)

    def loop(self, loop: VectorLoop) -> str:
        """Returns the loop."""
        if loop.instructions[0].op == "concatenate":
            return self.joined(loop)
        products = [i for i in loop.instructions if i.op == "dense"]
        body, before = self.elements(loop)
        head = [f"/* {loop.width} elements, up to v{loop.instructions[-1].output} */", *before]
        if not products:
            first_line = f"for (int at = 0; at < {loop.width}; at++) {{"
            return "\n".join([*head, first_line, textwrap.indent(body, "  "), "}"])
        width, block = loop.width, self.dialect.block
        calls = [self.product(i) for i in products]
        vectors = ", ".join(f"v{i.output}[{block}]" for i in products)
        remaining = (
            f"{width} - j < {block} ? {width} - j : {block}" if width % block else f"{block}"
        )
        lines = [
            *head,
            f"for (int j = 0; j < {width}; j += {block}) {{",
            f"  const int n = {remaining};",
            f"  {self.dialect.scalar} {vectors};",
            *(f"  {call}" for call in calls),
            "  for (int k = 0; k < n; k++) {",
            "    const int at = j + k;",
            textwrap.indent(body, "    "),
            "  }",
            "}",
        ]
        return "\n".join(lines)

    def product(self, instruction: Any) -> str:
        """Returns the call of a product."""
        number = instruction.inputs[0]
        operand = self.require_vector(number)
        return self.dialect.dense(instruction, operand, self.kind(number))

    def kind(self, number: int) -> str:
        """Returns the C type of a value in memory; inputs and outputs have that of the header."""
        whole = self.places[number] in ("x", "model->outputs")
        return self.dialect.kind if whole else self.dialect.stored(number)

    def elements(self, loop: VectorLoop) -> tuple[str, list[str]]:
        """Returns the statements of one element, and what precedes the loop."""
        scalar = self.dialect.scalar
        names: dict[int, str] = {}  # what one element of a value is called
        lines: list[str] = []
        before: list[str] = []
        for instruction in loop.instructions:
            op, output = instruction.op, instruction.output
            if op == "dense":
                names[output] = f"v{output}[k]"
                continue
            if op == "slice":
                start = instruction.attributes["start"]
                source = self.require_vector(instruction.inputs[0])
                text = f"{source}[at + {start}]"
            elif op == "take":
                before.append(self.row(instruction))
                table = self.dialect.arrays.add(
                    f"rows_v{output}", instruction.constant, f"rows of v{output}"
                )
                text = f"{table}[row_v{output} * {loop.width} + at]"
            else:
                for number in instruction.inputs:
                    if number not in names:
                        names[number] = self.loaded(number, lines)
                operands = [names[number] for number in instruction.inputs]
                text = (
                    f"model->started ? {operands[1]} : {operands[0]}"
                    if op == "first"
                    else self.dialect.expression(instruction, operands)
                )
            names[output] = f"v{output}"
            lines.append(f"const {scalar} v{output} = {text};")
        for number in loop.stored:
            cast = "" if scalar == self.kind(number) else f"({self.kind(number)})"
            lines.append(f"{self.places[number]}[at] = {cast}{names[number]};")
        return "\n".join(lines), before

    def loaded(self, number: int, lines: list[str]) -> str:
        """Returns the name of an element that is in memory, or of a constant."""
        maker = self.makers.get(number)
        if maker is not None and maker.op == "constant":
            text = self.dialect.constant(maker)
            if "[" not in text:
                return text
        else:
            text = f"{self.places[number]}[at]"
        lines.append(f"const {self.dialect.scalar} v{number} = {text};")
        return f"v{number}"

    def require_vector(self, number: int) -> str:
        """Returns the name of a whole vector; a constant becomes an array."""
        if number not in self.places:
            maker = self.makers[number]
            self.places[number] = self.dialect.arrays.add(
                f"constant_v{number}", maker.constant, f"the constant v{number}"
            )
        return self.places[number]

    def row(self, instruction: Any) -> str:
        """Returns the statement that finds a row; numbers beyond the rows take the nearest."""
        last, source = len(instruction.constant) - 1, self.require_vector(instruction.inputs[0])
        choice = f"{source}[0] > {last} ? {last} : {source}[0] < 0 ? 0 : (int){source}[0]"
        return f"const int row_v{instruction.output} = {choice};"

    def joined(self, loop: VectorLoop) -> str:
        """Returns the copies that put vectors one behind the other."""
        (instruction,) = loop.instructions
        target, start = self.places[instruction.output], 0
        lines = [f"/* v{instruction.output} */"]
        for number in instruction.inputs:
            width = self.program.widths[number]
            source = self.require_vector(number)
            lines.append(f"for (int i = 0; i < {width}; i++) {target}[i + {start}] = {source}[i];")
            start += width
        return "\n".join(lines)

    def copies(self) -> str:
        """Returns the statements that make the next states, and outputs that no loop makes, last.

        A state that another one becomes is overwritten after that.
        """
        program = self.program
        waiting = [
            (before, after)
            for before, after in zip(program.state, program.next_state, strict=True)
            if before != after
        ]
        lines = ["/* the state after the step */"]
        if self.require_vector(program.outputs[0]) != "model->outputs":
            lines.append(self.copy("model->outputs", program.outputs[0]))
        while waiting:
            sources = {after for _, after in waiting}
            ready = [pair for pair in waiting if pair[0] not in sources]
            if not ready:
                raise UserError(
                    "states that only change places have no C form; add them to each other's sum"
                )
            lines += [self.copy(self.places[before], after) for before, after in ready]
            waiting = [pair for pair in waiting if pair not in ready]
        return "\n".join(lines)

    def copy(self, target: str, number: int) -> str:
        """Returns the loop that copies a value."""
        width, source = self.program.widths[number], self.require_vector(number)
        return f"for (int i = 0; i < {width}; i++) {target}[i] = {source}[i];"
