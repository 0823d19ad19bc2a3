"""Writes the tables of README.md and docs/results.md from the records in benchmarks/results.

    python docs/tables.py           # rewrite the tables
    python docs/tables.py --check   # fail if a table differs from the records

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/results.md")


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def accuracy(prefix: str = "") -> str:
    rows = []
    for name, line in read("rnn_accuracy")["lines"].items():
        if name.startswith(prefix):
            rows.append(
                [
                    name,
                    f"{100 * line['test_accuracy_mean']:.1f} ± "
                    f"{100 * line['test_accuracy_deviation']:.1f}",
                    f"{line['parameters']:,}",
                    f"{line['macs_per_example']:,}",
                    f"{line['steps']:,}",
                    f"{line['training_seconds']:.0f}",
                    f"`{line['command'].removeprefix('python -m jaxeff.main ')}`",
                ]
            )
    header = ["data, cell", "test accuracy, %", "parameters", "MACs", "steps", "seconds", "command"]
    return table(header, rows)


def short_accuracy() -> str:
    lines = read("rnn_accuracy")["lines"]
    rows = []
    for cell, label in (("irnn", "**iRNN**"), ("lstm", "LSTM"), ("gru", "GRU"), ("rnn", "RNN")):
        line = lines[f"digits rows, {cell}"]
        rows.append(
            [
                label,
                f"{100 * line['test_accuracy_mean']:.1f} ± "
                f"{100 * line['test_accuracy_deviation']:.1f}",
                f"{line['parameters']:,}",
                f"{line['macs_per_example']:,}",
            ]
        )
    return table(["64 units", "test accuracy, %", "parameters", "MACs per image"], rows)


def speed() -> str:
    results = read("rnn_speed")["results"]

    def cell(key: str) -> str:
        return f"{results[key]['ms']:.0f}" if key in results else "–"

    rows = [
        [
            "iRNN, K = 1",
            cell("jaxeff/irnn"),
            "–",
            cell("torch/irnn_loop"),
            cell("torch_tuned/irnn_loop"),
        ],
        ["iRNN, K = 3", cell("jaxeff/irnn_k3"), "–", "–", "–"],
    ]
    for kind in ("RNN", "LSTM", "GRU"):
        rows.append(
            [kind, *(cell(f"{who}/{kind}") for who in ("jaxeff", "flax", "torch", "torch_tuned"))]
        )
    header = ["ms", "jaxeff", "Flax", "PyTorch", "PyTorch, allocator tuned"]
    return table(header, rows)


def ratios() -> str:
    rows = [[name, f"{value:.2f}"] for name, value in read("rnn_speed")["ratios"].items()]
    return table(["their time over ours", "ratio"], rows)


def conditions(name: str) -> str:
    record = read(name)
    environment = record["environment"]
    parts = [record[key] for key in ("task", "method") if key in record]
    parts.append(
        f"{environment['cpu']}, {environment['cpu_cores']} cores, Python {environment['python']}, "
        f"jax {environment['jax']}"
        + (f", torch {environment['torch']}" if "torch" in environment else "")
    )
    return "; ".join(parts) + f". Command: `{record['command']}`."


TABLES = {
    "digits": short_accuracy,
    "accuracy": accuracy,
    "accuracy conditions": lambda: conditions("rnn_accuracy"),
    "speed": speed,
    "speed ratios": ratios,
    "speed conditions": lambda: conditions("rnn_speed"),
}


def fill(text: str) -> str:
    """Returns a page with every table made again."""

    def replace(match: re.Match) -> str:
        return f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table ([a-z ]+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main() -> int:
    stale = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        made = fill(text)
        if made != text:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(made, encoding="utf-8")
    if "--check" in sys.argv and stale:
        print(f"tables differ from benchmarks/results in {', '.join(stale)}; run docs/tables.py")
        return 1
    print(f"tables {'agree' if not stale else 'written'}: {', '.join(PAGES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
