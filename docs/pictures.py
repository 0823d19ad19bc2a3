"""Draws the pictures of the pages from the records in benchmarks/results.

python docs/pictures.py
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev

import hardness
import poses
import recurrent
import texts
from convolutional import networks
from tables import ALGORITHMS, lines_order, read, through_time_lines

from jaxeff.eval.fronts import front
from jaxeff.eval.hybrid_plots import trade_offs
from jaxeff.eval.plots import comparison, scores

HERE = Path(__file__).resolve().parent
MEMORY = {
    "bptt": "BPTT",
    "bptt, differentiated scan": "BPTT by a differentiated scan",
    "fptt": "FPTT",
}
LABELS = {"pixels": "digits by pixel", "vowels": "Japanese vowels", "motions": "basic motions"}


def _of(line: dict) -> tuple[float, float]:
    """Returns the mean and the deviation of a test accuracy, in per cent."""
    return 100 * line["test_mean"], 100 * line["test_deviation"]


def adding() -> None:
    """Validation error of every run of the adding task over the batches."""
    panels: dict = {}
    lines = through_time_lines("adding")
    for cell in sorted({cell for _, cell, _ in lines}):
        for algorithm in ("bptt", "tbptt", "fptt"):
            curves = lines["adding", cell, algorithm]["validation_curves"]
            runs = [([s for s, *_ in c], [e for _, e, *_ in c]) for c in curves]
            panels.setdefault(cell, {})[ALGORITHMS[algorithm]] = runs
    comparison(
        {f"{cell}, T = 500": runs for cell, runs in panels.items()},
        HERE / "adding.png",
        xlabel="batches",
        ylabel="validation error (mean squared)",
        level=("constant answer", 1 / 6),
    )


def classification() -> None:
    """Test accuracies of cells and algorithms, a panel per task."""
    panels: dict = {}
    for task, label in LABELS.items():
        lines = through_time_lines(task)
        for cell in sorted({c for _, c, _ in lines}, key=lines_order):
            row = {
                ALGORITHMS[a]: _of(lines[task, cell, a])
                for a in ("bptt", "tbptt", "fptt")
                if (task, cell, a) in lines
            }
            if row:
                panels.setdefault(label, {})[cell] = row
    scores(panels, HERE / "through_time.png", xlabel="test accuracy, %")


def cells() -> None:
    """Test accuracies of recurrent cells after equal training, a panel per data set."""
    panels: dict = {}
    for name, line in read("rnn_accuracy")["lines"].items():
        data, _, cell = name.rpartition(", ")
        if data in ("digits rows", "digits pixels"):
            accuracy = 100 * line["test_accuracy_mean"], 100 * line["test_accuracy_deviation"]
            panels.setdefault(data.replace("digits", "digits by"), {})[cell] = {"": accuracy}
    best = {task: sorted(row.items(), key=lambda r: -r[1][""][0]) for task, row in panels.items()}
    ordered = {task: dict(row) for task, row in sorted(best.items(), reverse=True)}
    scores(ordered, HERE / "cells.png", xlabel="test accuracy, %")


def fashion() -> None:
    """Test accuracies on Fashion-MNIST by pixel, a row per cell."""
    row: dict = {}
    for (_, cell, algorithm), line in sorted(through_time_lines("fashion_pixels").items()):
        row.setdefault(cell, {})[ALGORITHMS[algorithm]] = _of(line)
    panels = {"Fashion-MNIST by pixel": row}
    scores(panels, HERE / "through_time_fashion.png", xlabel="test accuracy, %")


def memory() -> None:
    """Memory of an update over the length of the sequence, a panel per cell."""
    panels: dict = {}
    for entry in read("fptt_memory")["entries"]:
        curves = panels.setdefault(entry["cell"], {label: [([], [])] for label in MEMORY.values()})
        lengths, sizes = curves[MEMORY[entry["algorithm"]]][0]
        lengths.append(entry["length"])
        sizes.append(entry["temp_bytes"] / 2**20)
    labels = {"xlabel": "steps of the sequence", "ylabel": "memory of an update, MiB"}
    comparison(panels, HERE / "memory.png", **labels, xticks=sorted(set(lengths)))


def objectives() -> None:
    """Test accuracies on Fashion-MNIST by distillation loss, and by constraints."""
    lines = read("distill_accuracy")["lines"]
    students = {
        hardness.DISTILLED[like]: {"": _of(lines[f"fashion, xxxs, {method}"])}
        for method, like in hardness.OF_IMAGES.items()
        if f"fashion, xxxs, {method}" in lines
    }
    constrained = {
        name: {"": _of(line)} for name, line in hardness.constrained_lines("fashion").items()
    }
    panels = {"Fashion-MNIST, distilled": students, "Fashion-MNIST, constrained": constrained}
    scores(panels, HERE / "objectives.png", xlabel="test accuracy, %")


def convolutional_times() -> None:
    """Times of ResNet-32 and its cheaper forms beside PyTorch's fastest, a panel per task."""
    panels: dict = {}
    for task in ("32x32, batch 1", "32x32, batch 256", "training step, 32x32, batch 128"):
        row: dict = {}
        for name, line in read("cnn_speed")["tables"][task].items():
            model = name.partition(" in PyTorch")[0]
            way = "PyTorch, fastest form" if model != name else "jaxeff"
            if "without" not in name:
                fastest = min(line["median_ms"], row.get(model, {}).get(way, (float("inf"),))[0])
                row.setdefault(model, {})[way] = (fastest, 0.0)
        panels[task.replace("32x32, ", "")] = row
    scores(panels, HERE / "convolutional_speed.png", xlabel="ms")


def convolutional() -> None:
    """Accuracy of the convolutional networks against multiply-adds and against latency."""
    times = read("cnn_speed")["tables"]["28x28, batch 1"]
    costs: dict = {"million multiply-adds": {}, "latency at batch 1, ms": {}}
    for name, line in networks("fashion").items():
        accuracy = _of(line)
        millions, ms = line["macs_per_example"] / 1e6, times[name]["median_ms"]
        for cost, value in zip(costs, (millions, ms), strict=True):
            costs[cost][name] = (value, *accuracy)
    front(costs, HERE / "networks.png", ylabel="test accuracy on Fashion-MNIST, %")


def routing() -> None:
    """Accuracy of routed and of static networks against the time of an image."""
    record, axis = read("hybrid_accuracy"), "time over the expert's"
    times, lines = record["times"], {}
    per_run = [analyses["hybrid"] for analyses in record["lines"]["hybrid"]["analyses"]]
    experts = [analyses["static"]["expert"]["milliseconds"] for analyses in per_run]
    for rule in ("learned router", "margin", "negative entropy"):
        tables = [analyses["rules"][rule]["at_coverage"] for analyses in per_run]
        lines[rule] = (
            [
                mean(t[c]["milliseconds"] / e for t, e in zip(tables, experts, strict=True))
                for c in tables[0]
            ],
            [mean(t[c]["accuracy"] for t in tables) for c in tables[0]],
        )
    points = {
        name: (ms / times["expert"], record["lines"][name]["test_mean"])
        for name, ms in times.items()
        if name in record["lines"]
    }
    trade_offs({axis: lines}, {axis: points}, HERE / "routing.png", title="Fashion-MNIST, test")


def shortened() -> None:
    """Accuracy of shortened text encoders against their times, with and without a batch."""
    costs: dict = {}
    for name, line in texts.part("accuracy").items():
        if math.isnan(texts.milliseconds(name, texts.PADDED)):
            continue
        label = "searched" if name.startswith("evolution") else name
        accuracy = 100 * mean(line["test"]), 100 * stdev(line["test"])
        for shape in (texts.ALONE, texts.PADDED):
            ms = texts.milliseconds(name, shape)
            costs.setdefault(f"latency, {shape}, ms", {})[label] = (ms, *accuracy)
    front(costs, HERE / "texts.png", ylabel="test accuracy on Rotten Tomatoes, %")


def turned() -> None:
    """Loss of autoencoders by the angle by which test digits are turned, a curve per seed."""
    curves: dict = {}
    shown = ("VAE, code of equal length", "AVAE", "VAE, trained upright", "AVAE, trained upright")
    for label, line in poses.lines_of("digits", upright=True):
        if label in shown:
            curves[label] = [(seed["degrees"], seed["loss"]) for seed in line["loss_by_angle"]]
    comparison(
        {"digits, test": curves},
        HERE / "poses.png",
        xlabel="rotation of the image, degrees",
        ylabel="loss",
    )


if __name__ == "__main__":
    adding()
    cells()
    classification()
    fashion()
    memory()
    objectives()
    convolutional()
    convolutional_times()
    routing()
    turned()
    shortened()
    recurrent.draw(HERE / "recurrent.png")
