"""Trains the recurrent networks of the results table, three seeds each, and records the figures.

Writes ``results/rnn_accuracy.json``; lines that are there already and current are kept,
so an interrupted run goes on where it stopped:

    python benchmarks/rnn_accuracy.py            # all lines
    python benchmarks/rnn_accuracy.py digits     # lines whose name contains the word
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record_files import locked_record, read, words
from recorded import config_of, folder_of, is_current, key_of, known_report

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
    """Runs one training as a user would, unless it is done, and returns its report."""
    config = config_of_line(arguments, seed)
    workdir = folder_of(config, workdir)
    known = known_report(workdir)
    if known is not None:
        return known
    command = [sys.executable, "-m", "jaxeff.main", *f"--config={arguments}".split()]
    command += [f"--config.seed={seed}", f"--workdir={workdir}"]
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path}  # the code that the key is of
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=HERE.parent, env=environment)
    return read_report(workdir)


def config_of_line(arguments: str, seed: int) -> Any:
    """Returns the config that the command of a line stands for."""
    first, *options = arguments.split()
    file, _, argument = first.removeprefix("configs/").partition(":")
    overrides = [option.removeprefix("--config.").partition("=") for option in options]
    config = config_of(argument, [f"seed={seed}"], file.removesuffix(".py"))
    for field, _, value in overrides:
        number = int(value) if value.isdigit() else value
        config.update_from_flattened_dict({field: number})
    return config


def command_of(arguments: str) -> str:
    return f"python -m jaxeff.main --config={arguments}"


def key_of_line(arguments: str) -> str:
    return key_of(config_of_line(arguments, seed) for seed in SEEDS)


def line(name: str, arguments: str) -> dict:
    """Returns one line of the table over all seeds."""
    folder = Path("runs") / "results" / name.replace(", ", "-").replace(" ", "_")
    reports = [train(arguments, seed, HERE.parent / folder / str(seed)) for seed in SEEDS]
    test = [report["metrics"]["test"]["accuracy"] for report in reports]
    validation = [report["metrics"]["validation"]["accuracy"] for report in reports]
    cost = reports[0]["cost"]
    return {
        "command": command_of(arguments),
        "environment": reports[0]["environment"],
        "key": key_of_line(arguments),
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
    chosen = words("--again")
    for name, arguments in LINES.items():
        if not all(word in name for word in chosen):
            continue
        shown = read(OUT).get("lines", {}).get(name, {})
        if not is_current(shown, command_of(arguments), lambda a=arguments: key_of_line(a)):
            shown = line(name, arguments)
            with locked_record(OUT) as record:
                record["command"] = "python benchmarks/rnn_accuracy.py"
                record.setdefault("lines", {})[name] = shown
        print(
            f"{name:40s} test {shown['test_accuracy_mean']:.4f} "
            f"+- {shown['test_accuracy_deviation']:.4f}  {shown['parameters']} parameters  "
            f"{shown['training_seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
