"""Writes the tables of README.md and the pages in docs from the records in benchmarks/results.

    python docs/tables.py           # rewrite the tables
    python docs/tables.py --check   # fail if a table differs from the records

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import csv
import functools
import io
import re
import sys
from pathlib import Path

import accelerators
import convolutional
import device_tables
import hardness
import headlines
import input_tables
import integer_tables
import poses
import recurrent
import shipped
import texts
from records import mebibytes, read, score, table, told

ROOT = Path(__file__).resolve().parent.parent
#: Pages with tables.
PAGES = (
    "README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)
#: Tables too long for a page, by the file that has them.
FILES = {"docs/results/fashion_search.csv": "fashion search"}


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
    records = [read("rnn_speed"), read("rnn_speed_newer")]
    columns = [record["ratios"] for record in records]
    rows = [[name, *(f"{column[name]:.2f}" for column in columns)] for name in columns[0]]
    jax = (f"jax {record['environment']['jax']}" for record in records)
    return table(["time of the first over time of the second", *jax], rows)


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
    "example accuracy": device_tables.example_accuracy,
    "example figures": device_tables.example_figures,
    "microcontroller": device_tables.microcontroller,
    "microcontroller conditions": lambda: conditions("microcontroller"),
    "integer accuracy": integer_tables.integer_accuracy,
    "integer training": integer_tables.trained_with_rounding,
    "integer accuracy conditions": lambda: conditions("integer_accuracy"),
    "integer networks": integer_tables.network_accuracy,
    "integer networks training": integer_tables.networks_trained_with_rounding,
    "integer networks conditions": lambda: conditions("integer_networks"),
    "memory": memory,
    "memory conditions": lambda: conditions("fptt_memory"),
    "parallel": parallel,
    "parallel conditions": lambda: conditions("parallel_in_time"),
    "through time conditions": lambda: conditions("through_time"),
    "cnn digits": lambda: convolutional.cnn("digits"),
    "cnn fashion": lambda: convolutional.cnn("fashion"),
    "cnn conditions": lambda: conditions("cnn_accuracy"),
    "cnn speed": convolutional.cnn_speed,
    "cnn ratios": convolutional.cnn_ratios,
    "convolutions": convolutional.convolutions,
    "cnn speed conditions": lambda: conditions("cnn_speed"),
    "cnn profile": convolutional.profile,
    "cnn profile conditions": lambda: conditions("cnn_profile"),
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
    "text integers single": lambda: texts.integers(1),
    "text integers batches": lambda: texts.integers(32),
    "text integers ratios": texts.integer_ratios,
    "text integers searches": lambda: texts.searches(single=True),
    "text integers conditions": lambda: conditions("encoder_integers"),
    "texts conditions": lambda: conditions("bottleneck_results", texts.SETTING, "latency"),
    "compiled steps": accelerators.matrix,
    "compiled steps conditions": lambda: conditions("compile_matrix"),
    "scaling on paper": accelerators.scaling,
    "input rates": input_tables.rates,
    "input limits": input_tables.limits,
    "input conditions": input_tables.conditions,
    "kernel memory": accelerators.kernels,
    "kernel memory conditions": lambda: conditions("kernel_memory"),
    "gpu kernels": accelerators.gpu_kernels,
    "gpu kernels conditions": lambda: conditions("gpu_kernels"),
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
    "recurrent heat": recurrent.heat,
    "recurrent heat conditions": lambda: conditions("rnn_heat"),
    "speed conditions": lambda: conditions("rnn_speed"),
    "newer speed conditions": lambda: conditions("rnn_speed_newer"),
}


def fill(text: str) -> str:
    """Returns a page with every table made again."""

    def replace(match: re.Match) -> str:
        try:
            body = TABLES[match[1]]()
        except FileNotFoundError as error:
            body = f"Not measured yet: there is no `{Path(error.filename).name}`."
        return f"<!-- table {match[1]} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- table ([A-Za-z ]+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


def as_csv(lines: str) -> str:
    """Returns a table as comma-separated values."""
    header, _, *rows = (line.strip("| ").split(" | ") for line in lines.splitlines())
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def main() -> int:
    stale = []
    for page in (*PAGES, *FILES):
        path = ROOT / page
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        filled = as_csv(TABLES[FILES[page]]()) if page in FILES else fill(text)
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
