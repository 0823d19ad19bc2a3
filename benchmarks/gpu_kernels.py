"""What recurrent kernels take of a GPU, compiled ahead of time for it: registers and shared memory.

Writes ``results/gpu_kernels.json``. No GPU is needed, only ``jaxeff[aot-gpu]``. Registers and what
of them is spilled to the device's memory are what ``ptxas`` says of each kernel, blocks and shared
memory what XLA says of its launch:

    python benchmarks/gpu_kernels.py               # a quarter of an hour on a core
    python benchmarks/gpu_kernels.py --cells rnn --widths 128
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX looks for the devices that are not there

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from kernel_memory import INPUTS, gradient
from record_files import RESULTS, stamp, write

from jaxeff.bench import topologies
from jaxeff.ode import CELLS

TOPOLOGY = "h100:1"
OUT = RESULTS / "gpu_kernels.json"
#: What the two kernels are called in a program of both.
WAYS = {"forward": "kernel", "backward": "kernel__1"}
#: Calls the compiler of the folder that it stands for, and keeps what that says of each kernel.
PTXAS = """#!/bin/sh
"{program}" -v "$@" 2>"{log}.$$"
status=$?
cat "{log}.$$" >>"{log}"
cat "{log}.$$" >&2
exit $status
"""


def with_log(cuda: Path, folder: Path) -> Path:
    """Makes a folder like that of CUDA, whose ``ptxas`` writes a log; returns the log's path."""
    log = folder / "ptxas.log"
    (folder / "bin").mkdir()
    for path in [*cuda.iterdir(), *(cuda / "bin").iterdir()]:
        place = folder / path.relative_to(cuda)
        if not place.exists():
            place.symlink_to(path)
    program = folder / "bin" / "ptxas"
    program.unlink()
    program.write_text(PTXAS.format(program=cuda / "bin" / "ptxas", log=log), encoding="ascii")
    program.chmod(0o755)
    return log


def figures(log: str, launches: str) -> dict[str, dict[str, int]]:
    """Returns the figures of both kernels.

    Args:
      log: of ``ptxas``.
      launches: what XLA dumps of a program's steps.
    """
    kernels = {}
    for way, name in WAYS.items():
        (said,) = re.findall(rf"function '{name}' .*?\n.*?\n(.*?)\n(.*?)\n", log)
        launch = re.search(rf" {name} grid: \[(\d+),.*threads: \[(\d+),.*: (\d+) bytes", launches)
        assert launch is not None
        names = ("blocks", "threads", "shared_bytes")
        kernels[way] = dict(zip(names, map(int, launch.groups()), strict=True)) | {
            "registers": int(re.findall(r"Used (\d+) registers", said[1])[0]),
            "spilled_bytes": int(re.findall(r"(\d+) bytes spill stores", said[0])[0]),
        }
    return kernels


def measure(name: str, width: int, dtype: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Compiles the gradient by the kernel and by the scan."""
    cell, target = CELLS[name](features=width), topologies.topology(TOPOLOGY)
    mesh = Mesh(target.devices, ("data",))
    place = NamedSharding(mesh, PartitionSpec())
    shapes = (
        jax.eval_shape(lambda: cell.init(jax.random.key(0), INPUTS, dtype)),
        jax.ShapeDtypeStruct((args.length, args.batch, INPUTS), dtype),
    )
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes)
    entry = {"cell": name, "width": width, "dtype": jnp.dtype(dtype).name, "topology": TOPOLOGY}
    for driver in ("scan", "kernel"):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            lowered = jax.jit(gradient(cell, driver, "gpu")).lower(*shapes)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            log = with_log(Path(target.compiler_options["xla_gpu_cuda_data_dir"]), folder)
            options = {"xla_gpu_cuda_data_dir": str(folder), "xla_dump_to": str(folder / "dump")}
            compiled = lowered.compile(compiler_options={**target.compiler_options, **options})
            entry[f"{driver}_temp_bytes"] = compiled.memory_analysis().temp_size_in_bytes
            if driver == "kernel":
                (launches,) = (folder / "dump").glob("*.thunk_sequence.txt")
                entry |= figures(log.read_text(), launches.read_text())
    print(entry, flush=True)
    return entry


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=["irnn", "tarnn", "lstm"])
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 256])
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=784)
    args = parser.parse_args()
    topologies.prepare(TOPOLOGY)
    record = stamp(shlex.join(["python", "benchmarks/gpu_kernels.py", *sys.argv[1:]])) | {
        "task": f"gradient of the mean squared last output, {args.length} steps of {INPUTS} input, "
        f"batch {args.batch}",
        "entries": [],
    }
    for width, cell, dtype in itertools.product(args.widths, args.cells, args.types):
        record["entries"].append(measure(cell, width, jnp.dtype(dtype), args))
        write(OUT, record)


if __name__ == "__main__":
    main()
