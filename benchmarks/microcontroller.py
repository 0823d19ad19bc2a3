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

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from record_files import locked_record, stamp

from jaxeff import bench, programs, quantize
from jaxeff.errors import UserError
from jaxeff.exporting.c import CSource, arm, emulator, write_c
from jaxeff.exporting.litert import LiteRT
from jaxeff.exporting.recurrent import recurrent_step
from jaxeff.exporting.systems import Exportable
from jaxeff.models import SequenceModel
from jaxeff.ode import CELLS

OUT = Path(__file__).parent / "results" / "microcontroller.json"
STEPS, ROUNDS = 20, 30
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
_TIMER = """\
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <time.h>
#include "{name}.h"
static {name}_model model;
static {kind} x[{inputs}];
int main(void) {{
  for (int round = 0; round < {rounds}; round++) {{
    struct timespec start, end;
    {name}_init(&model);
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int t = 0; t < 1000; t++) {{ x[0] = t & 1; {name}_step(&model, x); }}
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%g\\n", (end.tv_sec - start.tv_sec) * 1e3 + (end.tv_nsec - start.tv_nsec) * 1e-6);
  }}
  return {name}_predict(&model) < 0;
}}
"""


def host_us(written: CSource) -> float:
    """Returns the median time of a step on this machine, in microseconds."""
    folder = written.header.parent
    timer, program = folder / "timer.c", folder / "timer"
    timer.write_text(
        _TIMER.format(name=written.name, kind=written.kind, inputs=written.inputs, rounds=ROUNDS)
    )
    command = ["gcc", "-O3", "-std=c99", timer, written.source, "-o", program, "-lm"]
    subprocess.run(command, check=True)
    run = subprocess.run([program], check=True, capture_output=True, text=True)
    return statistics.median(map(float, run.stdout.split()))


def measured(written: CSource, sequence: np.ndarray) -> dict[str, Any]:
    """Returns the figures of one form."""
    taken = arm.footprint(written)
    return {
        "flash": taken.flash,
        "ram": taken.ram,
        "stack": taken.stack,
        "instructions": emulator.run(written, sequence[None]).instructions,
        "host_us": host_us(written),
    }


def other_runtimes(model: SequenceModel, variables: Any, x: np.ndarray) -> dict[str, Any]:
    """Returns microseconds of the jitted step and of LiteRT's; None where that is missing."""
    entry = recurrent_step(model, Exportable(variables, x))
    arrays = [x[:1, 0], *entry.first_state(1).values()]
    jitted = jax.jit(entry.function)
    calls = {"jitted": lambda: jitted(*arrays)}
    times = bench.interleaved(calls, ROUNDS, 100, warmup=2)
    us: dict[str, Any] = {"jitted_us": 1e3 * times["jitted"].median_ms, "litert_us": None}
    try:
        litert = LiteRT()
        litert.require()
    except UserError:
        return us
    with tempfile.TemporaryDirectory() as folder:
        artifact = litert.write(entry, Path(folder), batch=1)
        call = litert.bind(litert.open(artifact, entry, 1), arrays)
        times = bench.interleaved({"litert": call}, ROUNDS, 100, warmup=2)
    return us | {"litert_us": 1e3 * times["litert"].median_ms}


def line(cell: str, units: int, width: int, outputs: int) -> dict[str, Any]:
    """Returns all figures of one model."""
    rng = np.random.default_rng(0)
    model = SequenceModel(CELLS.build({"name": cell, "features": units}), outputs)
    x = rng.normal(size=(8, STEPS, width)).astype(np.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(x))
    integers = quantize.quantize(model, variables, x)
    program = programs.trace_step(model, variables, width)
    with tempfile.TemporaryDirectory() as folder:
        in_float = write_c(program, Path(folder), "in_float")
        in_integers = write_c(integers, Path(folder), "in_integers")
        sequence = np.asarray(quantize.to_integers(integers, x[0]), np.int16)
        return {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables)),
            "units": units,
            "inputs": width,
            "float32": measured(in_float, x[0]),
            "int8": measured(in_integers, sequence),
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
