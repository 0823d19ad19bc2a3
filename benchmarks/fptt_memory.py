"""Compiled memory of one training step: FPTT with 64 parts against back-propagation through time.

Writes ``results/fptt_memory.json``; nothing is trained:

    python benchmarks/fptt_memory.py
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from record_files import write

from jaxeff import bench, ode
from jaxeff.models import SequenceModel
from jaxeff.train.algorithms import BPTT, FPTT, Task
from jaxeff.train.objectives import cross_entropy

OUT = Path(__file__).parent / "results" / "fptt_memory.json"
BATCH, FEATURES, PARTS = 128, 128, 64
LENGTHS = (256, 1024, 4096)
CELLS = {"lstm": ode.LSTM(FEATURES), "tarnn": ode.TARNN(FEATURES), "irnn": ode.IRNN(FEATURES)}


def memory(cell: ode.Cell, length: int, algorithm: str, backward: str) -> int | None:
    """Returns the temporary memory of an update, in bytes."""
    model = SequenceModel(cell, 10, backward=backward)
    task = Task("classification", 10, length, steps_per_epoch=100)
    optimizer = optax.adam(1e-3)
    configured = (
        FPTT(model, cross_entropy(), optimizer, task, parts=PARTS, auxiliary="uniform")
        if algorithm == "fptt"
        else BPTT(model, cross_entropy(), optimizer, task)
    )
    shape = (BATCH, length, 1)
    state = jax.eval_shape(
        configured.init_state, jax.random.key(0), jax.ShapeDtypeStruct(shape, "f4")
    )
    batch = {
        "inputs": jax.ShapeDtypeStruct(shape, jnp.float32),
        "labels": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
        "weight": jax.ShapeDtypeStruct(shape[:1], jnp.float32),
    }
    step = jax.jit(configured.update, donate_argnums=(0,))
    return bench.compiled_memory(step, state, batch)["temp_bytes"]


def main():
    variants = {
        "fptt": ("fptt", "auto"),
        "bptt": ("bptt", "auto"),
        "bptt, differentiated scan": ("bptt", "autodiff"),
    }
    entries = [
        {"cell": name, "length": length, "algorithm": label, "temp_bytes": temp_bytes}
        for name, cell in CELLS.items()
        for length in LENGTHS
        for label, options in variants.items()
        if (temp_bytes := memory(cell, length, *options)) is not None
    ]
    record = {
        "command": "python benchmarks/fptt_memory.py",
        "task": f"one update, batch {BATCH}, {FEATURES} units, {PARTS} parts",
        "method": "temporary memory as the compiler plans it, one device",
        "environment": bench.environment(),
        "entries": entries,
    }
    write(OUT, record)
    for entry in entries:
        print(*(f"{value}" for value in entry.values()))


if __name__ == "__main__":
    main()
