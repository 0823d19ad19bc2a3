"""The records in benchmarks/results, and how their numbers are written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


#: What a reader must know of an environment, in order.
FACTS = ("cpu", "cpu_cores", "python", "jax", "torch")


def environments(part_of_record: Any) -> list[dict]:
    """Returns the environments of a record or of a part of it, those of its lines included.

    Each is there as often as there are lines that were made in it.
    """
    if not isinstance(part_of_record, dict):
        return []
    here = [part_of_record["environment"]] if "environment" in part_of_record else []
    below = (environments(v) for name, v in part_of_record.items() if name != "environment")
    return here + [environment for part in below for environment in part]


def told(record: dict) -> str:
    """Returns in words where a record was made; where there were several machines, all of them."""
    counts: dict[tuple, int] = {}
    for environment in environments(record):
        facts = tuple(environment.get(name) for name in FACTS)
        counts[facts] = counts.get(facts, 0) + 1
    said = []
    for (cpu, cores, python, jax, torch), count in counts.items():
        words = f"{cpu}, {cores} core(s), Python {python}, jax {jax}"
        words += f", torch {torch}" if torch else ""
        said.append(words if len(counts) == 1 else f"{words} ({count} lines)")
    return "; ".join(said)


def mebibytes(size: int | None, digits: int) -> str:
    """Returns a size in MiB; one that was not measured as a dash."""
    return f"{size / 2**20:.{digits}f}" if size else "–"


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
