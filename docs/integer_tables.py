"""The table of what integers cost, from benchmarks/results/integer_accuracy.json."""

from __future__ import annotations

from statistics import mean, stdev

from records import read, table

NAMES = {"pixels": "digits by pixel", "motions": "motions"}
ROUNDED = "4 bits"


def integer_accuracy() -> str:
    """Returns a row per line that was trained in floating point, with a column per format."""
    rows, header = [], []
    for name, line in sorted(read("integer_accuracy")["lines"].items()):
        if ROUNDED in name:
            continue
        scores = [score(line["test"][each]) for each in formats(line)]
        sizes = (f"{line[size]:,}" for size in ("parameters", "constant_bytes", "state_bytes"))
        rows.append([told(name), *scores, *sizes])
        header = ["data, cell", *formats(line), "parameters", "bytes of constants", "of state"]
    return table(header, rows)


def trained_with_rounding() -> str:
    """Returns a row per line that was trained with 4-bit weights, beside the same seeds without."""
    lines, rows = read("integer_accuracy")["lines"], []
    for name, line in sorted(lines.items()):
        if ROUNDED in name:
            plain = lines[name.removesuffix(f", {ROUNDED}")]
            count = len(line["seeds"])
            columns = plain["test"]["float"], plain["test"]["4/16"], line["test"]["4/16"]
            rows.append([told(name), *(score(column[:count]) for column in columns)])
    return table(["data, cell", "float", "4/16", "4/16, trained so"], rows)


def told(name: str) -> str:
    task, cell = name.split(", ")[:2]
    return f"{NAMES[task]}, {cell}"


def score(values: list[float]) -> str:
    return f"{100 * mean(values):.2f} ± {100 * stdev(values):.2f}"


def formats(line: dict) -> list[str]:
    """Returns the names of a line's formats: floating point first, then by falling bits."""
    return sorted(line["test"], key=lambda name: (name != "float", bits(name)))


def bits(name: str) -> tuple[int, ...]:
    """Returns what falls from left to right: the bits of the state, then of the weights."""
    return tuple(-int(part) for part in reversed(name.split("/")) if part.isdigit())
