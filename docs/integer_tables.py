"""The tables of what integers cost, from integer_accuracy.json and integer_networks.json."""

from __future__ import annotations

from statistics import mean, stdev

from records import read, table

NAMES = {"pixels": "digits by pixel", "motions": "motions", "fashion": "Fashion by pixel"}
ROUNDED = "4 bits"


def integer_accuracy() -> str:
    """Returns a row per line that was trained in floating point, with a column per format."""
    rows, lines = [], read("integer_accuracy")["lines"]
    chosen = {name: line for name, line in sorted(lines.items()) if ROUNDED not in name}
    columns = formats(max(chosen.values(), key=lambda line: len(line["test"])))
    for name, line in chosen.items():
        scores = [score(line["test"].get(each)) for each in columns]
        agrees = score(line.get("agreement", {}).get("8/16"))
        sizes = (f"{line[size]:,}" for size in ("parameters", "constant_bytes", "state_bytes"))
        rows.append([told(name), *scores, agrees, *sizes])
    more = ["8/16, same class as float", "parameters", "bytes of constants", "of state"]
    return table(["data, cell", *columns, *more], rows)


def network_accuracy() -> str:
    """Returns a row per network that was trained in floating point, LiteRT's integers beside."""
    rows, header = [], []
    for name, line in read("integer_networks")["lines"].items():
        if "trained" in name:
            continue
        columns = sorted(line["test"], key=lambda n: (n != "float", bits(n), n.startswith("Li")))
        scores = [score(line["test"][each]) for each in columns]
        sizes = (f"{line[size]:,}" for size in ("parameters", "constant_bytes"))
        rows.append([name, *scores, *sizes])
        header = ["network", *columns, "parameters", "bytes of constants"]
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
    return table(["data, cell", "float", "4/16", "4/16, trained with rounding"], rows)


def networks_trained_with_rounding() -> str:
    """Returns a row per network that was trained with rounding, beside the same seeds without."""
    lines, rows = read("integer_networks")["lines"], []
    for name, line in lines.items():
        plain, comma, _ = name.partition(", trained in ")
        if comma:
            columns = (lines[plain]["test"][each] for each in ("float", "4/8"))
            rows.append([plain, *map(score, columns), score(line["test"]["4/8"])])
    return table(["network", "float", "4/8", "4/8, trained with rounding"], rows)


def told(name: str) -> str:
    task, cell = name.split(", ")[:2]
    return f"{NAMES[task]}, {cell}"


def score(values: list[float] | None) -> str:
    """Returns mean and deviation in per cent; a dash for what was not measured."""
    if values is None:
        return "–"
    if len(values) == 1:
        return f"{100 * values[0]:.2f}"
    return f"{100 * mean(values):.2f} ± {100 * stdev(values):.2f}"


def formats(line: dict) -> list[str]:
    """Returns the names of a line's formats: floating point first, then by falling bits."""
    known = (name for name in line["test"] if name == "float" or "/" in name)
    return sorted(known, key=lambda name: (name != "float", bits(name)))


def bits(name: str) -> tuple[int, ...]:
    """Returns what falls from left to right: the bits of the state, then of the weights."""
    digits = name.removeprefix("LiteRT ").split("/")
    return tuple(-int(part) for part in reversed(digits) if part.isdigit())
