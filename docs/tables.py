"""Writes the tables of README.md and the pages in docs from the records in benchmarks/results.

    python docs/tables.py           # rewrite the tables
    python docs/tables.py --check   # fail if a table differs from the records

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from pathlib import Path

import accelerators
import device_tables
import hardness
import headlines
import integer_tables
import poses
import shipped
import texts
from records import mebibytes, read, score, table, told

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/results.md",
    "docs/accelerators.md",
    "docs/export.md",
    "docs/integers.md",
    "docs/loading.md",
    "docs/microcontrollers.md",
)


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


ALGORITHMS = {
    "bptt": "BPTT",
    "tbptt": "truncated BPTT",
    "fptt": "FPTT",
    "bptt_repeated": "BPTT, repeated updates",
    "bptt_small_batches": "BPTT, small batches",
    "fptt_no_regularizer": "FPTT without regulariser",
    "fptt_no_auxiliary": "FPTT without auxiliary loss",
}


def through_time_lines(*tasks: str) -> dict[tuple[str, str, str], dict]:
    lines = read("through_time")["lines"]
    split = {tuple(name.split(", ")): line for name, line in lines.items()}
    return {key: line for key, line in split.items() if key[0] in tasks}


def grid(task: str, algorithms=("bptt", "tbptt", "fptt")) -> str:
    """Returns a row per cell with the scores of the algorithms side by side, and their costs."""
    lines = through_time_lines(task)
    cells = sorted({cell for _, cell, _ in lines}, key=lambda c: lines_order(c))
    rows = []
    for cell in cells:
        chosen = [lines.get((task, cell, algorithm)) for algorithm in algorithms]
        known = next((line for line in chosen if line), None)
        if known is None:
            continue
        seconds = " / ".join(f"{li['seconds_per_epoch']:.1f}" if li else "–" for li in chosen)
        memory = " / ".join(mebibytes(li["step_temp_bytes"], 1) if li else "–" for li in chosen)
        rows.append(
            [
                cell,
                *(score(line) if line else "–" for line in chosen),
                f"{known['parameters']:,}",
                f"{known['macs_per_example']:,}",
                seconds,
                memory,
            ]
        )
    header = ["cell", *(ALGORITHMS[a] for a in algorithms), "parameters", "MACs"]
    return table([*header, "seconds per epoch", "step memory, MiB"], rows)


def lines_order(cell: str) -> tuple[int, str]:
    first = ("tarnn", "irnn", "lstm", "gru")
    return (first.index(cell) if cell in first else len(first), cell)


def ablations() -> str:
    lines, rows = through_time_lines("pixels"), []
    for cell in ("lstm", "tarnn"):
        for algorithm in ALGORITHMS:
            line = lines.get(("pixels", cell, algorithm))
            if line:
                name, updates = ALGORITHMS[algorithm], f"{line['updates']:,}"
                seconds = f"{line['seconds_per_epoch']:.2f}"
                rows.append([cell, name, score(line), updates, seconds])
    header = ["cell", "training", "test accuracy, %", "updates", "seconds per epoch"]
    return table(header, rows)


def fashion() -> str:
    rows = []
    for (_, cell, algorithm), line in sorted(through_time_lines("fashion_pixels").items()):
        rows.append(
            [
                cell,
                ALGORITHMS[algorithm],
                score(line),
                f"{line['epochs']:.2f}",
                f"{line['updates']:,}",
                f"{line['parameters']:,}",
                f"{line['training_seconds']:.0f}",
                mebibytes(line["step_temp_bytes"], 0),
            ]
        )
    header = ["cell", "training", "test accuracy, %", "epochs", "updates", "parameters"]
    return table([*header, "seconds", "step memory, MiB"], rows)


def search() -> str:
    """Returns what every setting of the search reached on validation data."""
    rows = []
    for name, line in sorted(read("through_time_tuning")["lines"].items()):
        cell, algorithm, start, rate, *rest = name.split(", ")
        accuracy = "diverged" if line["accuracy"] is None else f"{100 * line['accuracy']:.1f}"
        start, rate = start.replace("_", " "), rate.removeprefix("rate ")
        rows.append([cell, ALGORITHMS[algorithm], start, rate, ", ".join(rest) or "–", accuracy])
    return table(["cell", "training", "start", "rate", "second look", "validation, %"], rows)


def memory() -> str:
    by_setting = {
        (e["cell"], e["length"], e["algorithm"]): e["temp_bytes"]
        for e in read("fptt_memory")["entries"]
    }
    rows = []
    for cell, length in dict.fromkeys((c, n) for c, n, _ in by_setting):
        fptt, bptt, scan = (
            by_setting[cell, length, a] for a in ("fptt", "bptt", "bptt, differentiated scan")
        )
        sizes = (f"{size / 2**20:.1f}" for size in (fptt, bptt, scan))
        rows.append([cell, f"{length:,}", *sizes, f"{bptt / fptt:.0f}", f"{scan / fptt:.0f}"])
    header = ["cell", "steps", "FPTT, MiB", "BPTT, MiB", "BPTT by a differentiated scan, MiB"]
    return table([*header, "BPTT / FPTT", "scan / FPTT"], rows)


def parallel() -> str:
    entries = {
        (e["cell"], e["width"], e["length"], e["batch"], e["task"], e["method"]): e
        for e in read("parallel_in_time")["entries"]
    }
    rows = []
    for key in dict.fromkeys(k[:4] for k in entries):
        cells = []
        for method in ("dense", "diagonal"):
            both = [
                entries.get((*key, task, method)) for task in ("forward", "forward and backward")
            ]
            cells.append(" / ".join(f"{e['loop_over_this']:.2f}" for e in both if e) or "–")
            cells.append(str(both[0]["iterations"]) if both[0] else "–")
        loop = [entries[(*key, task, "loop")] for task in ("forward", "forward and backward")]
        rows.append([*map(str, key), " / ".join(f"{e['ms']:.1f}" for e in loop), *cells])
    header = ["cell", "width", "steps", "batch", "loop, ms", "dense: speed-up", "iterations"]
    return table([*header, "diagonal: speed-up", "iterations"], rows)


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
        *(
            [
                label,
                cell(f"jaxeff/{ours}"),
                "–",
                cell(f"torch/{theirs}"),
                cell(f"torch_tuned/{theirs}"),
            ]
            for label, ours, theirs in (
                ("TARNN, K = 1", "tarnn", "tarnn_loop"),
                ("TARNN, K = 2", "tarnn_k2", ""),
                ("FPTT, TARNN: a batch of training", "fptt_tarnn", "fptt_tarnn"),
                ("FPTT, LSTM: a batch of training", "fptt_lstm", "fptt_lstm"),
            )
        ),
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


def networks(data: str) -> dict[str, dict]:
    """Returns the lines of the convolutional comparison on a data set, by network."""
    lines = read("cnn_accuracy")["lines"]
    order = ("host", "global", "global 5 steps", "interpolated")
    names = [n.partition(", ")[2] for n in lines if n.startswith(f"{data}, ")]
    ranked = sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n))
    return {name: lines[f"{data}, {name}"] for name in ranked}


def cnn(data: str) -> str:
    rows = []
    speed = read("cnn_speed")["tables"]
    for name, line in networks(data).items():
        ms = speed["28x28, batch 1"].get(name, {}).get("median_ms", math.nan)
        rows.append(
            [
                name,
                score(line),
                f"{line['parameters']:,}",
                f"{line['macs_per_example'] / 1e6:.2f}",
                *([f"{ms:.2f}"] if data == "fashion" else []),
                f"{line['epochs']:.1f}",
                f"{line['training_seconds']:.0f}",
                f"`{line['command'].removeprefix('python -m jaxeff.main ')}`",
            ]
        )
    header = ["network", "test accuracy, %", "parameters", "million MACs"]
    header += ["ms, batch 1"] if data == "fashion" else []
    return table([*header, "epochs", "seconds", "command"], rows)


def cnn_speed() -> str:
    rows = []
    for part, lines in read("cnn_speed")["tables"].items():
        if part.startswith("28x28") or part == "convolutions":
            continue
        for name, line in lines.items():
            size = f"{line['parameters']:,}" if "parameters" in line else "–"
            macs = f"{line['macs_per_example'] / 1e6:.1f}" if "parameters" in line else "–"
            rows.append([part, name, f"{line['median_ms']:.1f}", size, macs])
    return table(["input", "network", "ms", "parameters", "million MACs"], rows)


def cnn_ratios() -> str:
    """Returns what the times of the table above say about each other."""
    tables = read("cnn_speed")["tables"]
    large = tables["32x32, batch 256"]
    host, global_1, global_5, bare = (
        large[name]["median_ms"]
        for name in (
            "ResNet32",
            "ResNet32-Global, K=1",
            "ResNet32-Global, K=5",
            "ResNet32-Global without its layers",
        )
    )
    rows = [
        ["ResNet32 over its Global network, K = 1, batch 256", f"{host / global_1:.2f}"],
        ["the same, K = 5", f"{host / global_5:.2f}"],
        ["share of the Global layers, K = 1", f"{1 - bare / global_1:.2f}"],
    ]
    for model in ("EfficientNet-B0", "MobileNetV3-L"):
        for batch in (1, 64):
            times = tables[f"224x224, batch {batch}"]
            ratio = times[model]["median_ms"] / times[f"{model}-SI"]["median_ms"]
            rows.append([f"{model} over {model}-SI, batch {batch}", f"{ratio:.2f}"])
    return table(["time", "ratio"], rows)


def convolutions() -> str:
    times = read("cnn_speed")["tables"]["convolutions"]
    rows = []
    for name in dict.fromkeys(n.rpartition(", ")[0] for n in times):
        ours, theirs = (times[f"{name}, {who}"]["median_ms"] for who in ("jaxeff", "XLA"))
        rows.append([name, f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.1f}"])
    return table(["convolution", "jaxeff, ms", "XLA, ms", "ratio"], rows)


def conditions(name: str, *parts: str) -> str:
    """Returns where a record was taken and by which command; ``parts`` lead to what is meant."""
    record = read(name)
    said = [record[key] for key in ("task", "method") if key in record]
    said.append(told(functools.reduce(dict.__getitem__, parts, record)))
    return "; ".join(said) + f". Command: `{record['command']}`."


TABLES = {
    "trained": shipped.models,
    "headlines": headlines.headlines,
    "accuracy": accuracy,
    "accuracy conditions": lambda: conditions("rnn_accuracy"),
    **{
        f"through time {task}": functools.partial(grid, task)
        for task in ("pixels", "permuted", "vowels", "motions", "text", "adding")
    },
    "ablations": ablations,
    "fashion": fashion,
    "fashion search": search,
    "exports": device_tables.exports,
    "exports conditions": lambda: conditions("export_table"),
    "forms in LiteRT": device_tables.forms_in_litert,
    "microcontroller": device_tables.microcontroller,
    "microcontroller conditions": lambda: conditions("microcontroller"),
    "integer accuracy": integer_tables.integer_accuracy,
    "integer training": integer_tables.trained_with_rounding,
    "integer accuracy conditions": lambda: conditions("integer_accuracy"),
    "memory": memory,
    "memory conditions": lambda: conditions("fptt_memory"),
    "parallel": parallel,
    "parallel conditions": lambda: conditions("parallel_in_time"),
    "through time conditions": lambda: conditions("through_time"),
    "cnn digits": lambda: cnn("digits"),
    "cnn fashion": lambda: cnn("fashion"),
    "cnn conditions": lambda: conditions("cnn_accuracy"),
    "cnn speed": cnn_speed,
    "cnn ratios": cnn_ratios,
    "convolutions": convolutions,
    "cnn speed conditions": lambda: conditions("cnn_speed"),
    "calibration": hardness.calibration,
    "autoencoders digits": lambda: poses.autoencoders("digits"),
    "autoencoders shifted": lambda: poses.autoencoders("digits_shifted"),
    "autoencoders voxels": lambda: poses.autoencoders("voxels", "reducible"),
    "autoencoders by angle": lambda: poses.by_angle("digits"),
    "autoencoders by length": lambda: poses.by_length("digits"),
    "pose searches": poses.search_times,
    "pose inference": poses.inference,
    "pose conditions": lambda: conditions("pose_search_speed"),
    "texts": texts.accuracy,
    "texts searches": texts.searches,
    "texts times": texts.times,
    "texts served": texts.serving,
    "texts predicted": texts.prediction,
    "texts strategies": texts.strategies,
    "texts against torch": texts.against_torch,
    "texts conditions": lambda: conditions("bottleneck_results", texts.SETTING, "latency"),
    "compiled steps": accelerators.matrix,
    "compiled steps conditions": lambda: conditions("compile_matrix"),
    "scaling on paper": accelerators.scaling,
    "kernel memory": accelerators.kernels,
    "kernel memory conditions": lambda: conditions("kernel_memory"),
    "calibration conditions": lambda: conditions("calibration"),
    "distilled": hardness.distilled,
    "distilled images": hardness.distilled_images,
    "routed": hardness.routed,
    "routed conditions": lambda: conditions("hybrid_accuracy"),
    "constrained fashion": lambda: hardness.constrained("fashion"),
    "constrained conditions": lambda: conditions("dcl_accuracy"),
    "routing toy": hardness.routing_toy,
    "routing toy conditions": lambda: conditions("routing_toy"),
    "routing speed": hardness.routing_speed,
    "routing speed conditions": lambda: conditions("routing_speed"),
    "selective digits": lambda: hardness.selective("digits"),
    "selective fashion": lambda: hardness.selective("fashion"),
    "selective conditions": lambda: conditions("selective_accuracy"),
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
        filled = fill(text)
        if filled != text:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(filled, encoding="utf-8")
    if "--check" in sys.argv and stale:
        print(f"tables differ from benchmarks/results in {', '.join(stale)}; run docs/tables.py")
        return 1
    print(f"tables {'agree' if not stale else 'written'}: {', '.join(PAGES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
