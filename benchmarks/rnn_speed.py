"""Forward plus backward of recurrent layers: jaxeff, Flax's own, and PyTorch, taking turns.

Writes ``results/rnn_speed.json``. PyTorch runs in an environment of its own, made on first use
unless ``TORCH_PYTHON`` names an interpreter, once with the default allocator and once with one that
keeps its pages. Run it on an idle machine, the second line with a newer JAX:

    python benchmarks/rnn_speed.py
    python benchmarks/rnn_speed.py --out=benchmarks/results/rnn_speed_newer.json
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from record_files import write
from workers import Worker, take_turns

from jaxeff import bench
from jaxeff.train.runtime import cpu_cores

HERE = Path(__file__).parent
TORCH = "2.13.0"
KEEP_PAGES = {
    "MALLOC_MMAP_THRESHOLD_": "10000000000",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}
# What is compared with what: (theirs, ours).
RATIOS = {
    "torch.nn.RNN, allocator tuned, to iRNN": ("torch_tuned/RNN", "jaxeff/irnn"),
    "torch.nn.RNN, default allocator, to iRNN": ("torch/RNN", "jaxeff/irnn"),
    "PyTorch loop of the same cell, default allocator, to iRNN": (
        "torch/irnn_loop",
        "jaxeff/irnn",
    ),
    "PyTorch loop of the same cell, allocator tuned, to iRNN": (
        "torch_tuned/irnn_loop",
        "jaxeff/irnn",
    ),
    "torch.nn.RNN, allocator tuned, to RNN": ("torch_tuned/RNN", "jaxeff/RNN"),
    "torch.nn.LSTM, allocator tuned, to LSTM": ("torch_tuned/LSTM", "jaxeff/LSTM"),
    "torch.nn.LSTM, default allocator, to LSTM": ("torch/LSTM", "jaxeff/LSTM"),
    "torch.nn.GRU, allocator tuned, to GRU": ("torch_tuned/GRU", "jaxeff/GRU"),
    "PyTorch loop of the same cell, default allocator, to TARNN": (
        "torch/tarnn_loop",
        "jaxeff/tarnn",
    ),
    "PyTorch loop of the same cell, allocator tuned, to TARNN": (
        "torch_tuned/tarnn_loop",
        "jaxeff/tarnn",
    ),
    "PyTorch FPTT of a TARNN loop, default allocator, to FPTT": (
        "torch/fptt_tarnn",
        "jaxeff/fptt_tarnn",
    ),
    "PyTorch FPTT of a TARNN loop, allocator tuned, to FPTT": (
        "torch_tuned/fptt_tarnn",
        "jaxeff/fptt_tarnn",
    ),
    "PyTorch FPTT of torch.nn.LSTM, default allocator, to FPTT": (
        "torch/fptt_lstm",
        "jaxeff/fptt_lstm",
    ),
    "PyTorch FPTT of torch.nn.LSTM, allocator tuned, to FPTT": (
        "torch_tuned/fptt_lstm",
        "jaxeff/fptt_lstm",
    ),
    "TARNN to its matrix products alone": ("jaxeff/tarnn", "jaxeff/products_of_tarnn"),
    "LSTM to its matrix products alone": ("jaxeff/LSTM", "jaxeff/products_of_LSTM"),
    "PyTorch loop of the same cell, allocator tuned, to TARNN's products alone": (
        "torch_tuned/tarnn_loop",
        "jaxeff/products_of_tarnn",
    ),
    "Flax RNN to RNN": ("flax/RNN", "jaxeff/RNN"),
    "Flax LSTM to LSTM": ("flax/LSTM", "jaxeff/LSTM"),
    "Flax GRU to GRU": ("flax/GRU", "jaxeff/GRU"),
}


def torch_python(folder: Path) -> str:
    """Returns the interpreter of an environment with PyTorch, making it if it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", f"torch=={TORCH}", "numpy"]
        subprocess.run(pip, check=True)
    return str(python)


def measure(
    sizes: tuple[int, int, int, int], rounds: int, calls: int, torch: str | None
) -> dict[str, dict[str, float]]:
    """Returns the times of all variants, see `take_turns`.

    Args:
      sizes: batch, steps, inputs and units.
      rounds: times that every variant has its turn.
      calls: in a turn.
      torch: interpreter of an environment with PyTorch; None leaves PyTorch out.
    """
    words = list(map(str, sizes))
    jax = [sys.executable, str(HERE / "jax_worker.py")]
    commands: dict[str, tuple[list[str], dict[str, str]]] = {
        "jaxeff": ([*jax, "jaxeff", *words], {}),
        "flax": ([*jax, "flax", *words], {}),
    }
    if torch:
        theirs = [torch, str(HERE / "torch_worker.py"), *words, str(cpu_cores())]
        commands |= {"torch": (theirs, {}), "torch_tuned": (theirs, KEEP_PAGES)}
    workers = {label: Worker(*command) for label, command in commands.items()}
    try:
        return take_turns(workers, rounds, calls)
    finally:
        for worker in workers.values():
            worker.close()


def ratios_of(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Returns their times over ours, of what was measured."""
    return {
        name: results[theirs]["ms"] / results[ours]["ms"]
        for name, (theirs, ours) in RATIOS.items()
        if theirs in results and ours in results
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--time", type=int, default=784)
    parser.add_argument("--inputs", type=int, default=1)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--torch-env", type=Path, default=HERE.parent / ".venv-torch")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rnn_speed.json")
    args = parser.parse_args()

    python = os.environ.get("TORCH_PYTHON") or torch_python(args.torch_env)
    sizes = (args.batch, args.time, args.inputs, args.features)
    results = measure(sizes, args.rounds, args.calls, python)
    ratios = ratios_of(results)
    record = {
        "command": " ".join(["python benchmarks/rnn_speed.py", *sys.argv[1:]]),
        "task": (
            f"forward and backward, batch {args.batch}, {args.time} steps, {args.inputs} input(s), "
            f"{args.features} units, {cpu_cores()} CPU cores"
        ),
        "method": (
            f"median over {args.rounds} interleaved rounds of the fastest of {args.calls} calls"
        ),
        "environment": bench.environment() | {"torch": TORCH},
        "results": results,
        "ratios": ratios,
    }
    write(args.out, record)
    for name, value in results.items():
        print(f"{name:24s} {value['ms']:8.1f} ms")
    for name, value in ratios.items():
        print(f"{value:6.2f} x  {name}")


if __name__ == "__main__":
    main()
