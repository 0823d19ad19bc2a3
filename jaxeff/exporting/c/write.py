"""Writes header and source of a model."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.exporting.c.arrays import number
from jaxeff.exporting.c.dialect import Dialect
from jaxeff.exporting.c.floats import Floats
from jaxeff.exporting.c.front_end import FrontEnd
from jaxeff.exporting.c.integers import Integers
from jaxeff.exporting.c.step import Step
from jaxeff.files.atomic import write_text_atomically
from jaxeff.programs import Program
from jaxeff.quantize import IntegerProgram
from jaxeff.version import __version__

_KEYWORDS = "auto double else float for if int long return short static struct switch void while"


@dataclasses.dataclass(frozen=True)
class CSource:
    """What `write_c` wrote.

    Attributes:
      name: prefix of all that the header declares.
      header: path of the header.
      source: path of the source.
      kind: C type of inputs and outputs, "float" or "int16_t".
      inputs: width of an input.
      outputs: number of outputs.
      state: widths of the vectors of the state.
      has_first: whether the first step of a sequence differs from the others.
      constant_bytes: of weights and tables.
    """

    name: str
    header: Path
    source: Path
    kind: str
    inputs: int
    outputs: int
    state: tuple[int, ...]
    has_first: bool
    constant_bytes: int


def write_c(
    program: Program | IntegerProgram,
    folder: Path,
    name: str,
    *,
    class_names: Sequence[str] = (),
    front_end: FrontEnd | None = None,
    description: str = "",
) -> CSource:
    """Writes ``NAME.h`` and ``NAME.c``.

    Args:
      program: one input, one output; in integers or floating point.
      folder: is made if need be.
      name: a C identifier.
      class_names: one per output, or none.
      front_end: makes inputs of raw values.
      description: of the model, for the header's comment.

    Raises:
      UserError: what is asked for has no C form; the sentence says what.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in _KEYWORDS.split():
        raise ConfigError(f"a name in C is letters, digits and underscores, not {name!r}")
    if len(program.inputs) != 1 or len(program.outputs) != 1:
        raise ConfigError(
            f"C code is written of a step with one input and one output, not "
            f"{len(program.inputs)} and {len(program.outputs)}"
        )
    outputs = program.widths[program.outputs[0]]
    if class_names and len(class_names) != outputs:
        raise ConfigError(f"{outputs} outputs need as many class names, not {len(class_names)}")
    if front_end is not None:
        front_end.check(program.widths[program.inputs[0]])
    dialect = Integers(program) if isinstance(program, IntegerProgram) else Floats(program)
    writer = _Writer(dialect, name, tuple(class_names), front_end, description)
    source = writer.source()
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.h", folder / f"{name}.c"
    write_text_atomically(paths[0], writer.header())
    write_text_atomically(paths[1], source)
    width = program.widths[program.inputs[0]]
    state = tuple(program.widths[n] for n in program.state)
    has_first = "first" in dialect.operations
    return CSource(
        name, *paths, dialect.kind, width, outputs, state, has_first, dialect.arrays.bytes
    )


@dataclasses.dataclass(eq=False)
class _Writer:
    """Puts the parts of the two files together."""

    dialect: Dialect
    name: str
    class_names: tuple[str, ...]
    front_end: FrontEnd | None
    description: str

    def __post_init__(self) -> None:
        self.program = self.dialect.program
        self.step = Step(self.dialect)

    def header(self) -> str:
        """Returns the text of the header."""
        name, kind, program = self.name, self.dialect.kind, self.program
        lines = [
            _comment(f"{name}: one step of a recurrent model, written by jaxeff {__version__}."),
            *([_comment(self.description)] if self.description else []),
            _comment(self.use()),
            f"#ifndef {name.upper()}_H",
            f"#define {name.upper()}_H",
            "",
            "#include <stdint.h>",
            "",
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            "",
            f"#define {name.upper()}_INPUTS {program.widths[program.inputs[0]]}",
            f"#define {name.upper()}_OUTPUTS {program.widths[program.outputs[0]]}",
        ]
        if isinstance(program, IntegerProgram):
            fractions = program.fractions
            lines += [
                "/* An integer i stands for i / 2^FRACTION. */",
                f"#define {name.upper()}_INPUT_FRACTION ({fractions[program.inputs[0]]})",
                f"#define {name.upper()}_OUTPUT_FRACTION ({fractions[program.outputs[0]]})",
            ]
        lines += ["", "typedef struct {"]
        for i, n in enumerate(program.state):
            lines.append(f"  {self.dialect.stored(n)} state{i}[{program.widths[n]}];")
        lines += [f"  {type_} scratch{i}[{n}];" for i, (type_, n) in enumerate(self.step.scratch)]
        lines.append(f"  {kind} outputs[{program.widths[program.outputs[0]]}];")
        if "first" in self.dialect.operations:
            lines.append("  uint8_t started;")
        lines += [
            f"}} {name}_model;",
            "",
            "/* Begins a sequence. */",
            f"void {name}_init({name}_model *model);",
            "/* Takes one input. */",
            f"void {name}_step({name}_model *model, const {kind} *x);",
            "/* The outputs after the last step. */",
            f"const {kind} *{name}_logits(const {name}_model *model);",
            "/* The number of the largest output. */",
            f"int {name}_predict(const {name}_model *model);",
        ]
        if self.front_end is not None:
            raw = "int16_t" if kind == "int16_t" else "float"
            lines += [
                _comment(
                    f"Makes an input of raw values: {self.front_end.description or 'as read'}"
                ),
                f"void {name}_normalize(const {raw} *raw, {kind} *x);",
            ]
        if self.class_names:
            lines += [
                "/* Names of the outputs. */",
                f"extern const char *const {name}_classes[{name.upper()}_OUTPUTS];",
            ]
        return "\n".join([*lines, "", "#ifdef __cplusplus", "}", "#endif", "", "#endif", ""])

    def use(self) -> str:
        """Returns how the functions are used and what an input is."""
        program = self.program
        width = program.widths[program.inputs[0]]
        if any(i.op == "take" and program.inputs[0] in i.inputs for i in program.instructions):
            form = "the number of a symbol"
        elif isinstance(program, IntegerProgram):
            form = (
                f"{width} integers of 16 bits, each the value times "
                f"2^{program.fractions[program.inputs[0]]}, rounded"
            )
        else:
            form = f"{width} numbers"
        made_by = f"{self.name}_normalize makes of raw values"
        prepared = f", which {made_by}" if self.front_end is not None else ""
        return (
            f"Call {self.name}_init before a sequence and {self.name}_step for each of its inputs; "
            f"{self.name}_predict and {self.name}_logits may be asked after any step. An input is "
            f"{form}{prepared}. All memory is in the struct; one struct per sequence."
        )

    def source(self) -> str:
        """Returns the text of the source."""
        name, kind, program = self.name, self.dialect.kind, self.program
        step = textwrap.indent(self.step.text(), "  ")
        init = textwrap.indent("\n".join(self.initial()), "  ")
        front = self.front()
        outputs = program.widths[program.outputs[0]]
        parts = [
            f'#include "{name}.h"\n',
            self.dialect.declarations(),
            self.listing(),
            *self.dialect_parts(),
            f"void {name}_init({name}_model *model) {{\n{init}\n}}\n",
            f"void {name}_step({name}_model *model, const {kind} *x) {{\n{step}\n}}\n",
            f"const {kind} *{name}_logits(const {name}_model *model) {{\n"
            "  return model->outputs;\n}\n",
            f"int {name}_predict(const {name}_model *model) {{\n"
            "  int best = 0;\n"
            f"  for (int i = 1; i < {outputs}; i++) {{\n"
            "    if (model->outputs[i] > model->outputs[best]) best = i;\n"
            "  }\n  return best;\n}\n",
            front,
            self.names(),
        ]
        return "\n".join(part for part in parts if part)

    def dialect_parts(self) -> list[str]:
        """Returns constants and functions; the latter may add to the former."""
        functions = self.dialect.functions()
        return [*self.dialect.arrays.definitions, functions]

    def listing(self) -> str:
        """Returns the step in a line per value, as a comment."""
        lines = "\n".join(f" *   {line}" for line in str(self.program).splitlines())
        places = [*(f"v{n} is the input" for n in self.program.inputs)]
        places += [f"v{n} is state{i}" for i, n in enumerate(self.program.state)]
        places += [
            f"v{n} is state{i} after the step" for i, n in enumerate(self.program.next_state)
        ]
        places += [f"v{n} is the output" for n in self.program.outputs]
        text = textwrap.fill("; ".join(places) + ".", 94)
        text = textwrap.indent(text, " * ")
        return f"/* The step, where v1[3] is value 1 with 3 elements:\n{lines}\n{text}\n */\n"

    def initial(self) -> list[str]:
        """Returns the statements that begin a sequence."""
        lines = []
        for i, vector in enumerate(self.program.initial_state):
            if np.all(vector == vector[0]):
                text = number(vector[0])
            else:
                array = self.dialect.arrays.add(
                    f"initial_state{i}", vector, f"state{i} before the first step"
                )
                text = f"{array}[i]"
            lines.append(f"for (int i = 0; i < {len(vector)}; i++) model->state{i}[i] = {text};")
        width = self.program.widths[self.program.outputs[0]]
        lines.append(f"for (int i = 0; i < {width}; i++) model->outputs[i] = 0;")
        if "first" in self.dialect.operations:
            lines.append("model->started = 0;")
        return lines

    def front(self) -> str:
        """Returns the function that normalises."""
        if self.front_end is None:
            return ""
        kind, program = self.dialect.kind, self.program
        number = program.inputs[0]
        if isinstance(program, IntegerProgram):
            raw = "int16_t"
            body = self.front_end.integers(self.dialect.arrays, program.fractions[number])
        else:
            raw, body = "float", self.front_end.floats(self.dialect.arrays)
        return (
            f"void {self.name}_normalize(const {raw} *raw, {kind} *x) {{\n"
            f"  for (int i = 0; i < {program.widths[number]}; i++) {{\n    {body}\n  }}\n}}\n"
        )

    def names(self) -> str:
        """Returns the table of the classes' names."""
        if not self.class_names:
            return ""
        quoted = ", ".join(_quoted(each) for each in self.class_names)
        body = textwrap.indent(textwrap.fill(quoted, 96), "    ")
        return f"const char *const {self.name}_classes[] = {{\n{body}}};\n"


def _comment(text: str) -> str:
    safe = text.replace("*/", "* /")
    return textwrap.fill(f"/* {safe} */", 96, subsequent_indent=" * ")


def _quoted(text: str) -> str:
    """Returns a C string; bytes beyond ASCII are written as octal numbers."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return f'"{escaped}"'
