"""Tables of models outside of JAX: exports in every runtime, and C on a microcontroller."""

from __future__ import annotations

from statistics import mean
from typing import Any

from integer_tables import score, told
from records import read, table

#: Of the worked example, as its record calls them.
EXAMPLE_FORMS = ("float", "LiteRT int8", "8/16", "8/8")
EXAMPLE_TIMES = ("c float32", "c int8", "litert float32", "litert int8", "jitted")
RUNTIMES = ("stablehlo", "litert", "onnx", "c")
NAMES = {"": "unchanged", "_global": "Global", "_interpolated": "SI"}


def exports() -> str:
    """Returns a row per exported function, with a column per runtime."""
    rows = []
    for system, line in read("export_table")["lines"].items():
        written: dict[str, dict[str, dict]] = {}
        for row in line["rows"]:
            if not row["failure"] and "1" in row["latency_ms"]:
                written.setdefault(row["entry"], {})[row["format"]] = row
        for entry, by_format in written.items():
            known = list(by_format.values())
            apart = max(row["difference"] / max(1.0, row["scale"]) for row in known)
            jitted = min(row["latency_ms"]["1"]["jitted"] for row in known)
            cells = [_cell(by_format.get(name)) for name in RUNTIMES]
            rows.append([f"{system}: {entry}", f"{apart:.0e}", milliseconds(jitted), *cells])
    runtimes = ["JAX (StableHLO)", "LiteRT", "ONNX Runtime", "C"]
    return table(["model", "difference", "jitted, ms", *runtimes], rows)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{milliseconds(row['latency_ms']['1']['artifact'])} ms, {row['bytes'] / 1e3:,.0f} kB"


def milliseconds(value: float) -> str:
    return f"{value:.3g}" if value >= 0.01 else f"{value:.4f}"


def forms_in_litert() -> str:
    """Returns a row per network and size of images, with its forms' times."""
    rows = []
    for host, line in read("export_table")["speed"].items():
        for side, times in sorted(line["ms"].items(), key=lambda item: int(item[0])):
            plain = times[host]
            cells = [
                f"{times[host + form]:.3g} ({plain / times[host + form]:.2f})"
                for form in NAMES
                if form
            ]
            rows.append([host, f"{side}x{side}", f"{plain:.3g}", *cells])
    forms = [f"{name}, ms (times faster)" for form, name in NAMES.items() if form]
    return table(["network", "images", "unchanged, ms", *forms], rows)


def example_accuracy() -> str:
    """Returns a row per trained cell: accuracy in every form, and how often it is float's class."""
    rows = []
    for name, line in example_lines().items():
        test, agrees = line["test"], line["agreement"]
        cells = [score(test.get(each)) for each in EXAMPLE_FORMS]
        cells += [f"{100 * mean(agrees[each]):.2f}" for each in EXAMPLE_FORMS[1:]]
        rows.append([told(name), *cells])
    forms = ["float32", "LiteRT int8", "C int8", "C int8, state of 8 bits"]
    agreement = (f"same class as float32: {form}" for form in forms[1:])
    return table(["data, cell", *forms, *agreement], rows)


def example_figures() -> str:
    """Returns a row per trained cell: memory, instructions and times of its step."""
    times, rows = read("integer_accuracy").get("step_times", {}), []
    for name, line in example_lines().items():
        if name.startswith("fashion"):
            continue  # of the size of the one for digits
        parts = [line["device"][form] for form in ("float", "8/16", "8/8")]
        memory = [f"{part[key]:,}" for part in parts for key in ("flash", "ram", "stack")]
        counts = [f"{part['instructions']:,}" for part in parts[:2]]
        us = times.get(name, {}).get("us", {})
        shown = [f"{us[form]:.2f}" if form in us else "–" for form in EXAMPLE_TIMES]
        rows.append([told(name), *_threes(memory), *counts, *shown])
    header = [
        *("data, cell", "float32: flash / RAM / stack", "int8", "int8, state of 8 bits"),
        *("instructions, float32", "int8", "this machine, µs: C float32", "C int8"),
        *("LiteRT float32", "LiteRT int8", "jitted"),
    ]
    return table(header, rows)


def example_lines() -> dict[str, dict[str, Any]]:
    """Returns the lines of trained models whose C has been measured."""
    lines = sorted(read("integer_accuracy")["lines"].items())
    return {
        name: line
        for name, line in lines
        if {"float", "8/16", "8/8"} <= set(line.get("device", {}))
    }


def microcontroller() -> str:
    """Returns a row per cell: memory, instructions and times of its step in C."""
    rows = []
    for name, line in read("microcontroller")["lines"].items():
        real, whole = line["float32"], line["int8"]
        memory = [f"{part[key]:,}" for part in (whole, real) for key in ("flash", "ram", "stack")]
        narrow = line.get("int8, state of 8 bits", {}).get("ram")
        counts = [f"{part['instructions']:,}" for part in (whole, real)]
        times = [whole["host_us"], real["host_us"], line["litert_us"], line["jitted_us"]]
        cells = ["–" if time is None else f"{time:.2f}" for time in times]
        size = f"{name.split()[0]}, {line['units']} units, {line['inputs']} inputs"
        held = "–" if narrow is None else f"{narrow:,}"
        rows.append([size, f"{line['parameters']:,}", *_threes(memory), held, *counts, *cells])
    header = [
        *("cell", "parameters", "int8: flash / RAM / stack, bytes", "float32: flash / RAM / stack"),
        "RAM, state of 8 bits",
        *("instructions, int8", "float32", "this machine, µs: int8", "float32", "LiteRT", "jitted"),
    ]
    return table(header, rows)


def _threes(cells: list[str]) -> list[str]:
    return [" / ".join(cells[i : i + 3]) for i in range(0, len(cells), 3)]
