"""What recurrent kernels take of a TPU core's vector memory, compiled ahead of time for it.

Writes ``results/kernel_memory.json``. No TPU is needed, only ``jaxeff[aot-tpu]``. A kernel asks the
compiler for the memory that it was computed to need (`jaxeff.ops.tpu.scan.vmem_bytes`), and the
compiler refuses a kernel that needs more, so each line is a number that suffices. Widths beside the
first are compiled for the first topology alone:

    python benchmarks/kernel_memory.py
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from record_files import RESULTS, stamp, write

from jaxeff import bench
from jaxeff.bench import topologies
from jaxeff.ode import CELLS, unroll
from jaxeff.ops import platform

INPUTS = 1


def device_of(topology: str) -> NamedSharding:
    """Returns a sharding onto the first device of a slice that is not there."""
    return NamedSharding(Mesh(bench.topology(topology).devices[:1], ("data",)), PartitionSpec())


def gradient(cell, driver, kind="tpu"):
    """Returns the loss and its gradients in the parameters, traced for a kind of device."""

    def loss(params, xs):
        with platform(kind):
            _, y = unroll(cell, params, xs, driver=driver, return_sequence=False)
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    return jax.value_and_grad(loss)


def kernels_in(jaxpr) -> list[tuple[int, tuple[int, ...]]]:
    """Returns the bytes of vector memory and the grid of every kernel of a program."""
    kernels = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            options = equation.params["compiler_params"]
            options = options.get("mosaic_tpu", options) if isinstance(options, dict) else options
            grid = tuple(equation.params["grid_mapping"].grid)
            kernels.append((options.vmem_limit_bytes, grid))
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, "jaxpr", value)  # of a closed one
            kernels += kernels_in(inner) if hasattr(inner, "eqns") else []
    return kernels


def measure(name, width, dtype, topology, args) -> dict:
    cell = CELLS[name](features=width)
    place = device_of(topology)

    def on_device(shapes):
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes
        )

    params = on_device(jax.eval_shape(lambda: cell.init(jax.random.key(0), INPUTS, dtype)))
    xs = on_device(jax.ShapeDtypeStruct((args.length, args.batch, INPUTS), dtype))
    entry = {"cell": name, "width": width, "dtype": jnp.dtype(dtype).name, "topology": topology}
    for driver in ("scan", "kernel"):
        run = jax.jit(gradient(cell, driver))
        began = time.perf_counter()
        compiled = run.lower(params, xs).compile()
        entry[f"{driver}_compile_seconds"] = round(time.perf_counter() - began, 1)
        entry[f"{driver}_temp_bytes"] = compiled.memory_analysis().temp_size_in_bytes
    kernels = kernels_in(jax.make_jaxpr(gradient(cell, "kernel"))(params, xs).jaxpr)
    (forward, grid), (backward, _) = kernels
    entry |= {"forward_vmem_bytes": forward, "backward_vmem_bytes": backward, "passes": grid[0]}
    print(entry, flush=True)
    return entry


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=["irnn", "tarnn", "lstm"])
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--topologies", nargs="+", default=["v5e:2x2", "v6e:2x2"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=784)
    args = parser.parse_args()
    topologies.prepare(args.topologies[0])
    record = stamp(shlex.join(["python", "benchmarks/kernel_memory.py", *sys.argv[1:]])) | {
        "task": f"gradient of the mean squared last output, {args.length} steps of {INPUTS} input, "
        f"batch {args.batch}",
        "entries": [],
    }
    settings = itertools.product(args.topologies, args.cells, args.widths, args.types)
    for topology, cell, width, dtype in settings:
        if width == args.widths[0] or topology == args.topologies[0]:
            record["entries"].append(measure(cell, width, jnp.dtype(dtype), topology, args))
            write(RESULTS / "kernel_memory.json", record)


if __name__ == "__main__":
    main()
