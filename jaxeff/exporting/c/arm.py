"""Compiles generated C for Cortex-M and measures what it takes of flash and memory."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from jaxeff.errors import UserError
from jaxeff.exporting.c.host import STRICT, compile_with, require_tool
from jaxeff.exporting.c.write import CSource

COMPILER = "arm-none-eabi-gcc"
ADVICE = "install the packages gcc-arm-none-eabi and libnewlib-arm-none-eabi"
BOARD_FILES = Path(__file__).parent / "board"


@dataclasses.dataclass(frozen=True)
class Board:
    """A microcontroller that an emulator has.

    Attributes:
      machine: name in QEMU.
      processor: in words.
      flags: of the compiler.
      flash: where the program is loaded.
      ram: where data and stack lie.
      tick_ns: of its timer.
    """

    machine: str
    processor: str
    flags: tuple[str, ...]
    flash: int
    ram: int
    tick_ns: int


M4 = Board(
    "mps2-an386",
    "Cortex-M4",
    ("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"),
    0x0,
    0x2000_0000,
    40,
)
M33 = Board(
    "mps2-an505",
    "Cortex-M33",
    ("-mcpu=cortex-m33", "-mthumb", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"),
    0x1000_0000,
    0x3800_0000,
    50,
)
BOARDS = {"m4": M4, "m33": M33}


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a model takes of a microcontroller.

    Attributes:
      flash: bytes of code, weights and tables, with what it needs of the C library.
      ram: bytes of the model's struct.
      stack: bytes of the deepest call of a step.
    """

    flash: int
    ram: int
    stack: int


def available() -> bool:
    """Returns whether the compiler is installed."""
    return shutil.which(COMPILER) is not None


def link(
    sources: list[Path], program: Path, board: Board, include: Path, optimize: str = "-Os"
) -> None:
    """Compiles and links a program with the start-up code.

    Raises:
      UserError: the compiler is missing, or does not take the code.
    """
    compiler = require_tool(COMPILER, ADVICE)
    options = ("-ffunction-sections", "-fdata-sections", "-nostartfiles", "--specs=nosys.specs")
    linker = ("-Wl,--gc-sections", f"-T{BOARD_FILES / 'board.ld'}", "-Wl,--no-warn-rwx-segments")
    origins = (
        f"-Wl,--defsym=FLASH_ORIGIN={board.flash:#x}",
        f"-Wl,--defsym=RAM_ORIGIN={board.ram:#x}",
    )
    files: list[str | Path] = [BOARD_FILES / "startup.c", *sources, "-o", program, "-lm"]
    flags = (optimize, *STRICT[:1], *board.flags, *options, f"-I{BOARD_FILES}", f"-I{include}")
    compile_with([compiler, *flags, *linker, *origins, *files])


def footprint(written: CSource, board: Board = M4, optimize: str = "-Os") -> Footprint:
    """Returns flash, memory and stack of a model: a program with it less one without.

    Raises:
      UserError: the compiler is missing, or does not take the code.
    """
    name = written.name
    inputs = f"static volatile {written.kind} x[{written.inputs}];\n"
    uses = (
        f'#include "{written.header.name}"\nstatic {name}_model model;\n{inputs}'
        f"int main(void) {{ {name}_init(&model); "
        f"{name}_step(&model, (const {written.kind} *)x); return {name}_predict(&model); }}\n"
    )
    without = f"{inputs}int main(void) {{ return (int)x[0]; }}\n"
    with tempfile.TemporaryDirectory() as folder:
        whole = _linked(Path(folder), "whole", uses, [written.source], written, board, optimize)
        empty = _linked(Path(folder), "empty", without, [], written, board, optimize)
        stack = _stack(written, board, optimize, Path(folder))
    (text, data, bss), (text_0, data_0, bss_0) = whole, empty
    return Footprint(text + data - text_0 - data_0, data + bss - data_0 - bss_0, stack)


def _linked(
    folder: Path,
    name: str,
    main: str,
    sources: list[Path],
    written: CSource,
    board: Board,
    optimize: str,
) -> tuple[int, int, int]:
    """Links a program and returns its text, data and bss."""
    path, program = folder / f"{name}.c", folder / f"{name}.elf"
    path.write_text("#include <stdint.h>\n" + main)
    link([path, *sources], program, board, written.header.parent, optimize)
    command = [require_tool("arm-none-eabi-size", ADVICE), str(program)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    text, data, bss, *_ = run.stdout.splitlines()[1].split()
    return int(text), int(data), int(bss)


def _stack(written: CSource, board: Board, optimize: str, folder: Path) -> int:
    """Returns the stack of a step and of the largest function that it may call."""
    compiler = require_tool(COMPILER, ADVICE)
    command = [compiler, optimize, STRICT[0], *board.flags, "-fstack-usage"]
    compile_with([*command, "-c", written.source, "-o", folder / "model.o"])
    usage = {
        match[1]: int(match[2])
        for match in re.finditer(r":(\w+)\t(\d+)\t", (folder / "model.su").read_text())
    }
    step = usage.get(f"{written.name}_step")
    if step is None:
        raise UserError(f"{COMPILER} tells no stack use of {written.name}_step; use gcc")
    helpers = [size for name, size in usage.items() if not name.startswith(f"{written.name}_")]
    return step + max(helpers, default=0)
