"""Trains the recurrent networks of the results table, three seeds each, and records the figures.

Writes ``results/rnn_accuracy.json``; lines that are there already with the same command are kept,
so an interrupted run goes on where it stopped:

    python benchmarks/rnn_accuracy.py            # all lines
    python benchmarks/rnn_accuracy.py digits     # lines whose name contains the word
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from jaxeff import bench
from jaxeff.eval import read_report

HERE = Path(__file__).parent
OUT = HERE / "results" / "rnn_accuracy.json"
SEEDS = (0, 1, 2)

CELLS = ("irnn", "rnn", "lstm", "gru", "fastrnn", "fastgrnn", "antisymmetric", "cornn")
LINES = {
    **{f"digits rows, {cell}": f"configs/irnn.py:rows,cell={cell}" for cell in CELLS},
    **{
        f"digits rows in file order, {cell}": (
            f"configs/irnn.py:rows,cell={cell} --config.data.name=digits_file_order"
        )
        for cell in ("irnn", "lstm")
    },
    **{f"digits pixels, {cell}": f"configs/irnn.py:pixels,cell={cell}" for cell in CELLS[:4]},
    **{
        f"fashion rows, {cell}": (
            f"configs/irnn.py:fashion_rows,cell={cell} --config.train.num_steps=1500"
        )
        for cell in ("irnn", "lstm")
    },
    **{
        f"fashion pixels, {cell}": (
            f"configs/irnn.py:fashion_pixels,cell={cell} --config.train.num_steps=300"
        )
        for cell in ("irnn", "lstm")
    },
}


def train(arguments: str, seed: int, workdir: Path) -> dict:
    """Runs one training as a user would, and returns its report."""
    command = [sys.executable, "-m", "jaxeff.main", *f"--config={arguments}".split()]
    command += [f"--config.seed={seed}", f"--workdir={workdir}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=HERE.parent)
    return read_report(workdir)


def line(name: str, arguments: str) -> dict:
    """Returns one line of the table over all seeds."""
    folder = Path("runs") / "results" / name.replace(", ", "-").replace(" ", "_")
    reports = [train(arguments, seed, HERE.parent / folder / str(seed)) for seed in SEEDS]
    test = [report["metrics"]["test"]["accuracy"] for report in reports]
    validation = [report["metrics"]["validation"]["accuracy"] for report in reports]
    cost = reports[0]["cost"]
    return {
        "command": f"python -m jaxeff.main --config={arguments}",
        "seeds": list(SEEDS),
        "data": reports[0]["data"]["description"],
        "test_accuracy": test,
        "test_accuracy_mean": mean(test),
        "test_accuracy_deviation": stdev(test),
        "validation_accuracy_mean": mean(validation),
        "parameters": cost["parameters"],
        "macs_per_example": cost["macs_per_example"],
        "latency_batch_1_ms": cost["latency_ms"]["batch_1"]["median"],
        "training_seconds": mean(report["training"]["seconds"] for report in reports),
        "steps": reports[0]["training"]["steps"],
    }


def main():
    record = json.loads(OUT.read_text()) if OUT.exists() else {"lines": {}}
    record["command"] = "python benchmarks/rnn_accuracy.py"
    record["environment"] = bench.environment()
    for name, arguments in LINES.items():
        if not all(word in name for word in sys.argv[1:]):
            continue
        known = record["lines"].get(name, {})
        if known.get("command") != f"python -m jaxeff.main --config={arguments}":
            record["lines"][name] = line(name, arguments)
            OUT.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        shown = record["lines"][name]
        print(
            f"{name:40s} test {shown['test_accuracy_mean']:.4f} "
            f"+- {shown['test_accuracy_deviation']:.4f}  {shown['parameters']} parameters  "
            f"{shown['training_seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
