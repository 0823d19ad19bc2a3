"""What the step of a recurrent classifier takes of a microcontroller and of this machine, as C.

Cells with about 20,900 parameters each (9 inputs, 10 outputs), and an iRNN of 128 units with 32
inputs: flash, memory and stack of the generated C (``-Os``, Cortex-M4), instructions per step
(``-O2``, counted by an emulator: no count of cycles), and microseconds per step on one core
of this machine (``gcc -O3``, no options for its processor) beside the jitted step and LiteRT's. The
weights are random: none of this depends on their values. Writes ``results/microcontroller.json``.
Run it with nothing else on the machine:

    python benchmarks/microcontroller.py
    python benchmarks/microcontroller.py gru      # one line
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import on_device
from record_files import locked_record, stamp

from jaxeff import programs, quantize
from jaxeff.errors import UserError
from jaxeff.exporting.litert import LiteRT
from jaxeff.exporting.recurrent import recurrent_step
from jaxeff.exporting.systems import Exportable
from jaxeff.models import SequenceModel
from jaxeff.ode import CELLS
from jaxeff.programs import Program
from jaxeff.quantize import IntegerProgram

OUT = Path(__file__).parent / "results" / "microcontroller.json"
STEPS = 20
#: Cell, units, inputs and outputs of every line; units such that all have 20,600 to 21,100
#: parameters.
LINES = {
    "irnn": ("irnn", 135, 9, 10),
    "tarnn": ("tarnn", 66, 9, 10),
    "fastgrnn": ("fastgrnn", 134, 9, 10),
    "gru": ("gru", 77, 9, 10),
    "lstm": ("lstm", 66, 9, 10),
    "irnn 128": ("irnn", 128, 32, 10),
}


def measured(program: Program | IntegerProgram, sequence: np.ndarray) -> dict[str, Any]:
    """Returns the figures of one form."""
    return on_device.device_figures(program, sequence) | {"host_us": on_device.c_us(program)}


def other_runtimes(model: SequenceModel, variables: Any, x: np.ndarray) -> dict[str, Any]:
    """Returns microseconds of the jitted step and of LiteRT's; None where that is missing."""
    entry = recurrent_step(model, Exportable(variables, x))
    try:
        LiteRT().require()
        precisions: tuple[str, ...] = ("float32",)
    except UserError:
        precisions = ()
    times = on_device.runtimes_us(entry, x[:1, 0], precisions)
    return {"jitted_us": times["jitted"], "litert_us": times.get("litert float32")}


def line(cell: str, units: int, width: int, outputs: int) -> dict[str, Any]:
    """Returns all figures of one model."""
    rng = np.random.default_rng(0)
    model = SequenceModel(CELLS.build({"name": cell, "features": units}), outputs)
    x = rng.normal(size=(8, STEPS, width)).astype(np.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(x))
    program = programs.trace_step(model, variables, width)
    ranges = quantize.ranges(program, x)
    integers, bytes_of_state = (
        quantize.to_integer_program(program, ranges, quantize.QuantizeOptions(state_bits=bits))
        for bits in (16, 8)
    )
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables)),
        "units": units,
        "inputs": width,
        "float32": measured(program, x[0]),
        "int8": measured(integers, x[0]),
        "int8, state of 8 bits": measured(bytes_of_state, x[0]),
        **other_runtimes(model, variables, x),
    }


def main() -> None:
    """Measures the lines that the command line names, or all, and writes each as it is done."""
    for name in [word for word in sys.argv[1:] if word in LINES] or LINES:
        figures = line(*LINES[name])
        sys.stdout.write(f"{name}: {figures}\n")
        sys.stdout.flush()
        with locked_record(OUT) as record:
            record["command"] = "python benchmarks/microcontroller.py"
            provenance = stamp(f"python benchmarks/microcontroller.py '{name}'")
            record.setdefault("lines", {})[name] = {**figures, **provenance}


if __name__ == "__main__":
    main()
