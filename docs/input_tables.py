"""Tables of the input pipeline: its rates beside PyTorch's, and where it limits an accelerator."""

from __future__ import annotations

from accelerators import by_config
from records import RESULTS, read, table, told

from jaxeff.bench.chips import CHIPS

#: What a pass of both pipelines reads, by its name in the record.
KINDS = {"jpeg": "JPEG images", "tokens": "texts to tokens", "features": "clips to log-mel"}
SYSTEMS = ("irnn", "tarnn", "fptt", "images", "bottleneck", "avae")
#: Share of a chip's peak that is taken for reached, and passes of a training step in inferences.
SHARE, PASSES = 0.1, 3
NO_RECORD = "*Not measured yet: `python benchmarks/input_speed.py` makes the record.*"


def _record() -> dict | None:
    return read("input_speed") if (RESULTS / "input_speed.json").exists() else None


def rates() -> str:
    """Returns a row per pipeline and number of cores: examples a second."""
    record = _record()
    if record is None:
        return NO_RECORD
    rows = [
        [who, *(f"{values[kind]:,.0f}" for kind in KINDS)]
        for who, values in record["examples_per_second"].items()
    ]
    return table(["pipeline", *KINDS.values()], rows)


def conditions() -> str:
    """Returns how the rates were measured, and where."""
    record = _record()
    if record is None:
        return "–"
    return f"{record['task']}; {record['method']}; {told(record)}. Command: `{record['command']}`."


def limits() -> str:
    """Returns a row per system: what a chip would take, and the cores that feed it."""
    record = _record()
    if record is None:
        return NO_RECORD
    own = record["examples_per_second"]["jaxeff, 1 core"]
    lines = by_config()
    systems = {}
    for name in SYSTEMS:
        line = lines[name]["v5e:2x4"]
        systems[f"`{name}`"] = line["flops_per_step"] / line["batch_size"], own[name]
    for name, network in read("cnn_speed")["tables"]["224x224, batch 1"].items():
        flops = 2 * PASSES * network["macs_per_example"]
        systems[f"{name}, JPEG files of 224 pixels"] = flops, own["jpeg"]
    rows = []
    for name, (flops, rate) in systems.items():
        taken = {kind: SHARE * CHIPS[kind].flops / flops for kind in ("v5e", "v6e", "h100")}
        cells = [f"{value:,.0f} / {value / rate:,.0f}" for value in taken.values()]
        rows.append([name, f"{flops / 1e6:,.1f}", f"{rate:,.0f}", *cells])
    header = ["system", "MFLOPs per example", "examples a second per core"]
    header += [f"{kind}: examples a second / cores" for kind in ("v5e", "v6e", "H100")]
    return table(header, rows)
