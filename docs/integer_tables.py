"""The table of what integers cost, from benchmarks/results/integer_accuracy.json."""

from __future__ import annotations

from records import read, table

NAMES = {"pixels": "digits by pixel", "motions": "motions"}


def integer_accuracy() -> str:
    """Returns a row per line with a column per format."""
    rows, header = [], []
    for name, line in sorted(read("integer_accuracy")["lines"].items()):
        task, cell = name.split(", ")[:2]
        scores = [
            f"{100 * line['test_mean'][each]:.2f} ± {100 * line['test_deviation'][each]:.2f}"
            for each in formats(line)
        ]
        sizes = (f"{line[size]:,}" for size in ("parameters", "constant_bytes", "state_bytes"))
        rows.append([f"{NAMES.get(task, task)}, {cell}", *scores, *sizes])
        header = ["data, cell", *formats(line), "parameters", "bytes of constants", "of state"]
    return table(header, rows)


def formats(line: dict) -> list[str]:
    """Returns the names of a line's formats: floating point first, then by falling bits."""
    return sorted(line["test_mean"], key=lambda name: (name != "float", len(name), bits(name)))


def bits(name: str) -> tuple[int, ...]:
    return tuple(-int(part) for part in name.partition(",")[0].split("/") if part.isdigit())
