"""The records in benchmarks/results, and how their numbers are written."""

from __future__ import annotations

import json
import math
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def score(line: dict) -> str:
    value, deviation = line["test_mean"], line["test_deviation"]
    if line["metric"] == "accuracy":
        return f"{100 * value:.1f} ± {100 * deviation:.1f}"
    if line["command"].startswith("python -m jaxeff.main --config=configs/fptt.py:text"):
        return f"{value / math.log(2):.3f} ± {deviation / math.log(2):.3f}"
    return f"{value:.4f} ± {deviation:.4f}"
