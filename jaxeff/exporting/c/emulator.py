"""Runs generated C on an emulated microcontroller and counts its instructions.

QEMU knows no pipeline, no cache and no wait states of flash: a count of instructions is exact, and
is no count of cycles. Its clock is told to advance by a fixed time with every instruction
(``-icount``), so that the board's timer counts them.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from jaxeff.errors import UserError
from jaxeff.exporting.c import arm
from jaxeff.exporting.c.host import TYPES, require_tool
from jaxeff.exporting.c.write import CSource

EMULATOR = "qemu-system-arm"
#: An instruction takes 2**6 ns of emulated time, more than a tick of any board.
SHIFT = 6

_DRIVER = """\
#include "board.h"
#include "{name}.h"

typedef union {{
  {kind} value;
  uint{bits}_t bits;
}} number;

static const number inputs[{steps}][{width}] = {{
{inputs}
}};
static const uint8_t starts[{steps}] = {{{starts}}};
static {name}_model model;

static void write_hex(uint32_t x, char end) {{
  char text[10];
  for (int i = 0; i < 8; i++) text[i] = "0123456789abcdef"[(x >> (28 - 4 * i)) & 15];
  text[8] = end;
  text[9] = 0;
  board_write(text);
}}

int main(void) {{
  uint32_t largest = 0;
  const uint32_t start = board_ticks();
  const uint32_t nothing = (board_ticks() - start) & 0xFFFFFF;
  for (int t = 0; t < {steps}; t++) {{
    if (starts[t]) {name}_init(&model);
    const uint32_t before = board_ticks();
    {name}_step(&model, &inputs[t][0].value);
    const uint32_t ticks = ((board_ticks() - before) & 0xFFFFFF) - nothing;
    if (ticks > largest) largest = ticks;
    for (int i = 0; i < {outputs}; i++) {{
      number output;
      output.value = {name}_logits(&model)[i];
      write_hex(output.bits, i + 1 < {outputs} ? ' ' : '\\n');
    }}
  }}
  write_hex(largest, '\\n');
  return 0;
}}
"""


@dataclasses.dataclass(frozen=True)
class EmulatedRun:
    """What an emulated microcontroller computed.

    Attributes:
      outputs: after every step ``[sequences, time, outputs]``.
      instructions: of the longest step.
    """

    outputs: np.ndarray
    instructions: int


def available() -> bool:
    """Returns whether compiler and emulator are installed."""
    return arm.available() and shutil.which(EMULATOR) is not None


def run(
    written: CSource,
    sequences: np.ndarray,
    board: arm.Board = arm.M4,
    optimize: str = "-O2",
    timeout: float = 120.0,
) -> EmulatedRun:
    """Runs a model over sequences ``[sequences, time, inputs]``.

    Args:
      written: what `jaxeff.exporting.c.write_c` wrote.
      sequences: inputs as the generated step takes them; all of them are in the program, so that
        they must fit into its flash (some megabytes).
      board: of `jaxeff.exporting.c.arm.BOARDS`.
      optimize: level of the compiler.
      timeout: seconds of the emulator.

    Raises:
      UserError: compiler or emulator is missing, or the program did not end as it should.
    """
    emulator = require_tool(EMULATOR, "install the package qemu-system-arm")
    sequences = np.ascontiguousarray(sequences, TYPES[written.kind])
    count, length, _ = sequences.shape
    with tempfile.TemporaryDirectory() as folder:
        driver, program = Path(folder, "driver.c"), Path(folder, "driver.elf")
        driver.write_text(_driver(written, sequences))
        include = written.header.parent
        arm.link([driver, written.source], program, board, include, optimize)
        command = [emulator, "-M", board.machine, "-nographic", "-monitor", "none"]
        command += ["-serial", "none", "-semihosting-config", "enable=on,target=native"]
        command += ["-icount", f"shift={SHIFT}", "-kernel", str(program)]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"{EMULATOR} did not end within {timeout:g} s; give fewer or shorter sequences"
            ) from None
    lines = (ended.stdout + ended.stderr).split("\n")
    if ended.returncode or len(lines) < count * length + 1:
        raise UserError(
            f"{EMULATOR} ended with status {ended.returncode} after {len(lines) - 1} of "
            f"{count * length} steps: {ended.stderr[-200:]!r}"
        )
    words = np.array([[int(w, 16) for w in line.split()] for line in lines[: count * length]])
    bits = np.uint32 if written.kind == "float" else np.uint16
    outputs = words.astype(bits).view(TYPES[written.kind])
    ticks = int(lines[count * length], 16)
    instructions = round(ticks * board.tick_ns / 2**SHIFT)
    return EmulatedRun(outputs.reshape(count, length, -1), instructions)


def _driver(written: CSource, sequences: np.ndarray) -> str:
    """Returns the program that feeds the sequences, which it holds as constants."""
    count, length, width = sequences.shape
    flat = sequences.reshape(-1, width)
    rows = [", ".join(f"{{{_literal(x)}}}" for x in row) for row in flat]
    return _DRIVER.format(
        name=written.name,
        kind=written.kind,
        bits=flat.dtype.itemsize * 8,
        steps=len(flat),
        width=width,
        outputs=written.outputs,
        inputs=",\n".join(f"{{{row}}}" for row in rows),
        starts=", ".join("1" if t % length == 0 else "0" for t in range(count * length)),
    )


def _literal(x: np.generic) -> str:
    """Returns a literal with the bits of a number."""
    return str(int(x)) if isinstance(x, np.integer) else float(x).hex() + "f"
