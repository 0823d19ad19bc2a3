"""A recurrence evaluated at all time steps at once against the loop over time, taking turns.

Writes ``results/parallel_in_time.json``. It takes the device as it finds it; the method is meant
for one with room to spare, and a CPU is expected to lose in most places. Run it on an idle machine:

    python benchmarks/parallel_in_time.py
    python benchmarks/parallel_in_time.py --lengths 1024 4096 16384 65536 --batch-widths 4 16 64
"""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from record_files import write

from jaxeff import bench
from jaxeff.ode import CELLS, unroll, unroll_parallel

HERE = Path(__file__).parent
INPUTS = 4
TASKS = ("forward", "forward and backward")
METHODS = ("dense", "diagonal")


def state_size(cell) -> int:
    return sum(
        leaf.shape[-1] for leaf in jax.tree.leaves(cell.initial_carry((), input_size=INPUTS))
    )


def programs(cell, methods):
    """Returns compiled-on-call functions of (params, xs) by (task, method)."""

    def loop(params, xs):
        return unroll(cell, params, xs)[1]

    def parallel(jacobian):
        return lambda params, xs: unroll_parallel(cell, params, xs, jacobian=jacobian)[1]

    compiled = {}
    for name, run in {"loop": loop, **{m: parallel(m) for m in methods}}.items():
        gradient = jax.grad(lambda params, xs, run=run: jnp.mean(jnp.square(run(params, xs))))
        compiled |= {(TASKS[0], name): jax.jit(run), (TASKS[1], name): jax.jit(gradient)}
    return compiled


def iterations(cell, jacobian, params, xs) -> dict:
    run = jax.jit(lambda p, x: unroll_parallel(cell, p, x, jacobian=jacobian, diagnostics=True))
    _, ys, info = run(params, xs)
    error = jnp.max(jnp.abs(ys - unroll(cell, params, xs)[1]))
    return {
        "iterations": int(info.iterations),
        "converged": bool(info.converged),
        "fell_back": bool(info.fell_back),
        "residual": float(info.residual),
        "difference_to_loop": float(error),
    }


def measure(name, width, length, batch, args) -> list[dict]:
    cell = CELLS[name](features=width)
    params = cell.init(jax.random.key(0), INPUTS)
    xs = jax.random.normal(jax.random.key(1), (length, batch, INPUTS))
    bytes_of_dense = 4 * length * batch * state_size(cell) ** 2
    methods = [m for m in METHODS if m != "dense" or bytes_of_dense <= args.dense_mib * 2**20]
    done = {m: iterations(cell, m, params, xs) for m in methods}
    variants = {
        key: lambda run=run: run(params, xs) for key, run in programs(cell, methods).items()
    }
    began = time.perf_counter()
    for call in variants.values():  # compiles
        jax.block_until_ready(call())
    compiled = time.perf_counter()
    for call in variants.values():
        jax.block_until_ready(call())
    one_round = time.perf_counter() - compiled
    rounds = max(1, min(args.rounds, math.floor(args.seconds / one_round)))
    times = bench.interleaved(variants, rounds, 1, warmup=1)
    print(
        f"{name} D={width} T={length} B={batch} rounds={rounds} "
        f"compile={compiled - began:.1f}s round={one_round:.2f}s"
    )
    entries = []
    for (task, method), latency in times.items():
        entry = {
            "cell": name,
            "width": width,
            "length": length,
            "batch": batch,
            "task": task,
            "method": method,
            "ms": latency.median_ms,
            "min_ms": latency.min_ms,
            "rounds": rounds,
            "loop_over_this": times[task, "loop"].median_ms / latency.median_ms,
        } | done.get(method, {})
        entries.append(entry)
        count = f"{entry['iterations']} iterations" if "iterations" in entry else ""
        speed = f"{entry['loop_over_this']:7.2f} x" if method != "loop" else " " * 9
        print(f"  {task:21s} {method:9s} {latency.median_ms:9.2f} ms {speed} {count}", flush=True)
    return entries


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [name for name in ("irnn", "gru", "tarnn") if name in CELLS]
    parser.add_argument("--cells", nargs="+", default=known)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--widths", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--batch", type=int, default=8, help="the batch besides one example")
    parser.add_argument(
        "--batch-widths", nargs="*", type=int, default=[16], help="widths that are run with it too"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed calls per setting")
    parser.add_argument("--dense-mib", type=float, default=64.0, help="largest dense Jacobian")
    parser.add_argument("--quick", action="store_true", help="one small setting, nothing written")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "parallel_in_time.json")
    args = parser.parse_args()
    if args.quick:
        args.lengths, args.widths, args.batch_widths, args.rounds = [256], [4], [], 2

    entries = []
    for name, width, length in itertools.product(args.cells, args.widths, args.lengths):
        for batch in (1, args.batch) if width in args.batch_widths else (1,):
            entries += measure(name, width, length, batch, args)
    if args.quick:
        return
    record = {
        "command": shlex.join(["python", "benchmarks/parallel_in_time.py", *sys.argv[1:]]),
        "task": (
            f"cells at their initial parameters, {INPUTS} normal inputs a step, single precision; "
            "backward is the gradient of the mean squared output in the parameters"
        ),
        "method": (
            f"median over interleaved rounds, at most {args.rounds} and about {args.seconds:g} s a "
            "setting; dense where one Jacobian of all steps is at most "
            f"{args.dense_mib:g} MiB"
        ),
        "device": jax.devices()[0].device_kind,
        "environment": bench.environment(),
        "entries": entries,
    }
    write(args.out, record)


if __name__ == "__main__":
    main()
