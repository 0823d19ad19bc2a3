"""Ratios of recurrent layers in PyTorch and here over a grid of batches, widths and lengths.

PyTorch has its allocator tuned and as many threads as there are cores; its rival of GRU and LSTM is
its own layer, that of iRNN and TARNN a loop over the same equations. Inference is the forward pass,
a step the loss and its gradients. Both sides take turns, and a ratio is the median of those of the
turns. Writes ``results/rnn_heat.json``. It takes 8 minutes; run it with nothing else going on:

    TORCH_PYTHON=/path/to/python/with/torch python benchmarks/rnn_heat.py
    python benchmarks/rnn_heat.py --quick                       # a corner of the grid; no record
    python benchmarks/rnn_heat.py --cells LSTM --tasks step     # the other lines are kept
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from record_files import RESULTS, locked_record, stamp
from rnn_speed import KEEP_PAGES, TORCH, torch_python
from workers import Worker

from jaxeff.train.runtime import cpu_cores

HERE = Path(__file__).parent
OUT = RESULTS / "rnn_heat.json"
CELLS, TASKS = ("irnn", "tarnn", "GRU", "LSTM"), ("inference", "step")
SIZES = ("batch", "length", "width")
GRID = list(itertools.product((1, 16, 128), (28, 112, 784), (32, 64, 128, 256)))
QUICK = list(itertools.product((1, 16), (28,), (32, 128)))
#: Milliseconds of calls in a turn, where one call is shorter. PyTorch's threads look for work for
#: some milliseconds after its last call, and the scheduler needs tens of them to part ours again.
TURN_MS = 100.0


def compare(workers: dict[str, Worker], name: str, rounds: int) -> dict[str, float]:
    """Returns both sides' fastest milliseconds and the ratio of a setting."""
    one = {side: min(worker.time(name, 1)) for side, worker in workers.items()}
    # Long calls are measured twice: the clock's and the scheduler's jitter is small beside them.
    turns = rounds if max(one.values()) < 500 else 2
    times: dict[str, list[float]] = {side: [] for side in workers}
    for _ in range(turns):
        for side, worker in workers.items():
            calls = max(1, round(TURN_MS / one[side]))
            times[side].append(min(worker.time(name, calls)))
    pairs = zip(times["torch"], times["jaxeff"], strict=True)
    fastest = {f"{side}_ms": min(values) for side, values in times.items()}
    return {**fastest, "ratio": median(theirs / ours for theirs, ours in pairs)}


def started(python: str) -> dict[str, Worker]:
    """Returns both sides' workers, PyTorch's with the interpreter that has it."""
    torch = [python, str(HERE / "torch_heat_worker.py"), str(cpu_cores())]
    return {
        "torch": Worker(torch, KEEP_PAGES),
        "jaxeff": Worker([sys.executable, str(HERE / "jax_heat_worker.py")]),
    }


def lines(
    workers: dict[str, Worker],
    grid: list[tuple[int, int, int]],
    rounds: int,
    cells: Sequence[str] = CELLS,
    tasks: Sequence[str] = TASKS,
) -> Iterator[tuple[str, str, list[dict[str, float]]]]:
    """Yields each cell and task with what was measured at every setting of the grid."""
    for cell, task in itertools.product(cells, tasks):
        settings = []
        for sizes in grid:
            line = compare(workers, "/".join(map(str, (cell, task, *sizes))), rounds)
            settings.append({**dict(zip(SIZES, sizes, strict=True)), **line})
        yield cell, task, settings


def main() -> None:
    """Measures the grid, and writes each cell and task as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--torch-env", type=Path, default=HERE.parent / ".venv-torch")
    asked = parser.parse_args()
    grid, rounds = (QUICK, 3) if asked.quick else (GRID, asked.rounds)
    workers = started(os.environ.get("TORCH_PYTHON") or torch_python(asked.torch_env))
    provenance = stamp(shlex.join(["python", "benchmarks/rnn_heat.py", *sys.argv[1:]]))
    provenance["environment"] |= {"torch": TORCH, "torch_threads": cpu_cores()}
    for cell, task, settings in lines(workers, grid, rounds, asked.cells, asked.tasks):
        for line in settings:
            print(cell, task, *(f"{value:.4g}" for value in line.values()), flush=True)
        if not asked.quick:
            with locked_record(OUT) as record:
                record["command"] = "python benchmarks/rnn_heat.py"
                known = record.setdefault("lines", {})
                known[f"{cell}, {task}"] = {"settings": settings, **provenance}
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()
