"""Draws the pictures of the pages from the records in benchmarks/results.

python docs/pictures.py
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

import poses
import recurrent
import texts
from convolutional import networks
from tables import ALGORITHMS, lines_order, read, through_time_lines

from jaxeff.eval.fronts import front
from jaxeff.eval.hybrid_plots import trade_offs
from jaxeff.eval.plots import comparison, scores

HERE = Path(__file__).resolve().parent
LABELS = {"pixels": "digits by pixel", "vowels": "Japanese vowels", "motions": "basic motions"}


def adding() -> None:
    """Validation error of every run of the adding task over the batches."""
    panels: dict = {}
    for (_, cell, algorithm), line in sorted(through_time_lines("adding").items()):
        runs = [([s for s, *_ in c], [e for _, e, *_ in c]) for c in line["validation_curves"]]
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
                ALGORITHMS[a]: (
                    100 * lines[task, cell, a]["test_mean"],
                    100 * lines[task, cell, a]["test_deviation"],
                )
                for a in ("bptt", "tbptt", "fptt")
                if (task, cell, a) in lines
            }
            if row:
                panels.setdefault(label, {})[cell] = row
    scores(panels, HERE / "through_time.png", xlabel="test accuracy, %")


def convolutional() -> None:
    """Accuracy of the convolutional networks against multiply-adds and against latency."""
    times = read("cnn_speed")["tables"]["28x28, batch 1"]
    costs: dict = {"million multiply-adds": {}, "latency at batch 1, ms": {}}
    for name, line in networks("fashion").items():
        accuracy = 100 * line["test_mean"], 100 * line["test_deviation"]
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
    classification()
    convolutional()
    routing()
    turned()
    shortened()
    recurrent.draw(HERE / "recurrent.png")
