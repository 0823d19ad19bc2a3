"""Tables of what training steps need of accelerators, and of how they would scale."""

from __future__ import annotations

import math

from records import read, table

from jaxeff import bench

TOPOLOGIES = ("v5e:2x4", "v6e:2x2", "h100:8")
LOCAL = ", local statistics"
#: Chips, and the slices of how many chips they stand in.
SIZES = {8: ((2, 4), 1), 64: ((8, 8), 1), 512: ((16, 16), 2), 4096: ((16, 16), 16)}
SCALED_BATCH = 64


def by_config() -> dict[str, dict[str, dict]]:
    """Returns the lines of every config and kind of statistics, by topology."""
    text: dict[str, dict[str, dict]] = {}
    for name, line in read("compile_matrix")["lines"].items():
        config, topology, *local = name.split(", ")
        text.setdefault(", ".join([config, *local]), {})[topology] = line
    order = ("irnn", "tarnn", "fptt", "images", "global_cnn", "si_cnn", "shared_conv", "selective")
    order += ("dcl", "hybrid", "disk", "bottleneck", "avae", "avae3d")
    return dict(sorted(text.items(), key=lambda item: order.index(item[0].partition(",")[0])))


def matrix() -> str:
    """Returns a row per config: exchanges, memory and compile time on the topologies."""
    rows = []
    for name, lines in by_config().items():

        def each(field: str, shown, lines=lines) -> str:
            cells = []
            for topology in TOPOLOGIES:
                line = lines.get(topology)
                if line is None or not line["compiled"]:
                    cells.append("–" if line is None else "fails")
                else:
                    cells.append(shown(line[field]))
            return " / ".join(cells)

        first = lines.get(TOPOLOGIES[0]) or next(iter(lines.values()))
        rows.append(
            [
                name,
                str(first["batch_size"]),
                each("all_reduces", str),
                f"{first['bytes_per_step'] / 1e3:,.0f}",
                each("estimated_seconds", lambda s: f"{1e6 * s:,.0f}"),
                each("step_bytes", lambda size: f"{size / 2**20:,.1f}"),
                each("compile_seconds", lambda s: f"{s:,.0f}"),
            ]
        )
    header = ["config", "batch", "all-reduces", "kB exchanged", "exchange, µs", "MiB per device"]
    return table([*header, "compile, s"], rows)


def exchange_seconds(line: dict, kind: str, sizes: tuple[int, ...], slices: int = 1) -> float:
    """Estimates the exchanges of a line on other devices, with the bytes spread evenly."""
    count = line["per_step"]
    each = line["bytes_per_step"] / count
    return count * bench.all_reduce_seconds(kind, sizes, each, slices=slices)


def scaling() -> str:
    """Returns a row per config: the batch that hides the exchange, and weak scaling on v5e."""
    rows = []
    for name, lines in by_config().items():
        line = lines.get("v5e:2x4")
        if not line or not line["compiled"]:
            continue
        flops = line["flops_per_step"] / line["batch_size"]
        cells = [name, f"{flops / 1e6:,.1f}"]
        for kind, sizes in (("v5e", (2, 4)), ("v6e", (2, 4)), ("h100", (8,))):
            seconds = exchange_seconds(line, kind, sizes)
            cells.append(f"{math.ceil(bench.hidden_batch(kind, seconds, flops)):,}")
        for sizes, slices in SIZES.values():
            seconds = exchange_seconds(line, "v5e", sizes, slices)
            share = bench.scaling_efficiency("v5e", seconds, flops, SCALED_BATCH)
            cells.append(f"{100 * share:.1f}")
        rows.append(cells)
    header = ["config", "MFLOPs per example", "v5e: hides at", "v6e", "H100"]
    return table([*header, *(f"{size:,} chips, %" for size in SIZES)], rows)


def kernels() -> str:
    """Returns a row per cell, width and type: memory of the recurrent kernels and of the scan."""
    rows = [
        [
            entry["cell"],
            str(entry["width"]),
            entry["dtype"],
            entry["topology"],
            *(f"{entry[f'{way}_vmem_bytes'] / 2**20:.0f}" for way in ("forward", "backward")),
            str(entry["passes"]),
            *(f"{entry[f'{driver}_temp_bytes'] / 2**20:,.0f}" for driver in ("kernel", "scan")),
        ]
        for entry in read("kernel_memory")["entries"]
    ]
    header = ["cell", "width", "type", "topology", "VMEM forward, MiB", "backward", "passes"]
    return table([*header, "HBM by kernels, MiB", "by the scan"], rows)


def gpu_kernels() -> str:
    """Returns a row per cell, width and type: what the recurrent kernels take of a GPU."""
    rows = []
    for entry in read("gpu_kernels")["entries"]:

        def both(field: str, scale: int = 1, entry=entry) -> str:
            values = (entry[way][field] / scale for way in ("forward", "backward"))
            return " / ".join(f"{value:,.0f}" for value in values)

        rows.append(
            [
                entry["cell"],
                str(entry["width"]),
                entry["dtype"],
                both("registers"),
                both("spilled_bytes"),
                both("shared_bytes", 2**10),
                str(entry["forward"]["blocks"]),
                *(f"{entry[f'{by}_temp_bytes'] / 2**20:,.0f}" for by in ("kernel", "scan")),
            ]
        )
    header = ["cell", "width", "type", "registers per thread", "spilled, bytes", "shared, KiB"]
    return table([*header, "blocks", "memory by kernels, MiB", "by the scan"], rows)
