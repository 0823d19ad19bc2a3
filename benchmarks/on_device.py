"""A recurrent classifier outside of JAX: its predictions, its memory, its instructions, its times.

What `integer_accuracy.py` and `microcontroller.py` measure with trained and with random weights.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxeff import bench, quantize
from jaxeff.exporting.c import CSource, arm, emulator, write_c
from jaxeff.exporting.c.host import HostModel
from jaxeff.exporting.entry import Entry
from jaxeff.exporting.litert import LiteRT
from jaxeff.programs import Program
from jaxeff.quantize import IntegerProgram

#: Sequences that LiteRT takes at once.
BATCH = 128
#: Steps that the emulator runs.
COUNTED = 20
ROUNDS = 30
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


def litert_outputs(entry: Entry, inputs: np.ndarray, precision: str) -> np.ndarray:
    """Returns LiteRT's outputs ``[examples, outputs]`` after the last step of sequences.

    Args:
      entry: a step, with examples that integers are calibrated on.
      inputs: ``[examples, time, width]``, every step of which is real.
      precision: of `LiteRT.precisions`.
    """
    litert, last = LiteRT(), []
    with tempfile.TemporaryDirectory() as folder:
        artifact = litert.write(entry, Path(folder), batch=BATCH, precision=precision)
        step = litert.open(artifact, entry, 1)
        for start in range(0, len(inputs), BATCH):
            rows = np.take(inputs, range(start, start + BATCH), axis=0, mode="wrap")
            state: dict[str, Any] = entry.first_state(BATCH)
            outputs = np.zeros(0)
            for t in range(inputs.shape[1]):
                outputs, *after = step(rows[:, t], *(state[name] for name in state))
                named = dict(zip(entry.outputs[1:], after, strict=True))
                state = {to: named[output] for output, to in entry.state.items()}
            last.append(np.asarray(outputs))
    return np.concatenate(last)[: len(inputs)]


def c_outputs(integers: IntegerProgram, inputs: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Returns the outputs of compiled C ``[examples, outputs]`` after the last real step."""
    sequences = np.asarray(quantize.to_integers(integers, inputs), np.int16)
    real = np.ones(sequences.shape[:2], bool) if mask is None else np.asarray(mask) != 0
    with tempfile.TemporaryDirectory() as folder:
        model = HostModel(write_c(integers, Path(folder), "model"), options=("-O2",))
        return np.stack([model.run(x[r])[-1] for x, r in zip(sequences, real, strict=True)])


def device_figures(program: Program | IntegerProgram, sequence: np.ndarray) -> dict[str, Any]:
    """Returns flash, memory, stack and the instructions of a step, of generated C.

    Args:
      program: the step.
      sequence: inputs ``[time, width]`` of the data.
    """
    sequence = as_inputs(program, sequence[:COUNTED])
    with tempfile.TemporaryDirectory() as folder:
        written = write_c(program, Path(folder), "model")
        taken = arm.footprint(written)
        return {
            "flash": taken.flash,
            "ram": taken.ram,
            "stack": taken.stack,
            "instructions": emulator.run(written, sequence[None]).instructions,
        }


def as_inputs(program: Program | IntegerProgram, sequence: np.ndarray) -> np.ndarray:
    """Returns real inputs as the generated step takes them."""
    if isinstance(program, IntegerProgram):
        return np.asarray(quantize.to_integers(program, sequence), np.int16)
    return np.asarray(sequence, np.float32)


def c_us(program: Program | IntegerProgram, rounds: int = ROUNDS) -> float:
    """Returns the median time of a step of generated C on this machine, in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        return host_us(write_c(program, Path(folder), "model"), rounds)


def host_us(written: CSource, rounds: int = ROUNDS) -> float:
    """Returns the median time of a step on this machine, in microseconds."""
    folder = written.header.parent
    timer, program = folder / "timer.c", folder / "timer"
    timer.write_text(
        _TIMER.format(name=written.name, kind=written.kind, inputs=written.inputs, rounds=rounds)
    )
    command = ["gcc", "-O3", "-std=c99", timer, written.source, "-o", program, "-lm"]
    subprocess.run(command, check=True)
    run = subprocess.run([program], check=True, capture_output=True, text=True)
    return statistics.median(map(float, run.stdout.split()))


def runtimes_us(
    entry: Entry, x: np.ndarray, precisions: tuple[str, ...], rounds: int = ROUNDS
) -> dict[str, float]:
    """Returns the microseconds of the jitted step and of LiteRT's, for an input ``[1, width]``."""
    arrays = [x, *entry.first_state(1).values()]
    jitted, litert = jax.jit(entry.function), LiteRT()
    calls = {"jitted": lambda: jitted(*arrays)}
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            artifact = litert.write(entry, Path(folder), batch=1, precision=precision)
            runtime = litert.open(artifact, entry, 1)
            calls[f"litert {precision}"] = litert.bind(runtime, arrays)
        times = {
            name: bench.interleaved({name: call}, rounds, 100, warmup=2)[name]
            for name, call in calls.items()
        }
    return {name: 1e3 * each.median_ms for name, each in times.items()}
