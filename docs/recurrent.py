"""Tables and the picture of recurrent layers beside PyTorch over batches, widths and lengths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from records import read, table

from jaxeff.eval import plots

NAMES = {"irnn": "iRNN", "tarnn": "TARNN", "GRU": "GRU", "LSTM": "LSTM"}
TASKS = ("inference", "step")


def grid(cell: str, task: str) -> dict[tuple[int, int, int], float]:
    """Returns the ratios of a cell, by batch, length and width; {} where it is not measured."""
    line = read("rnn_heat")["lines"].get(f"{cell}, {task}", {"settings": []})
    return {(s["batch"], s["length"], s["width"]): s["ratio"] for s in line["settings"]}


def heat() -> str:
    """Returns the least, the middle and the largest ratio, and those below 1."""
    rows = []
    for cell, name in NAMES.items():
        for task in TASKS:
            ratios = sorted(grid(cell, task).items(), key=lambda item: item[1])
            if not ratios:
                continue
            values = [ratio for _, ratio in ratios]
            (batch, length, width), least = ratios[0]
            middle = math.exp(sum(map(math.log, values)) / len(values))
            where = f"batch {batch}, {length} steps, width {width}"
            below = f"{sum(value < 1 for value in values)} of {len(values)}"
            rows.append(
                [name, task, f"{least:.2f}", where, f"{middle:.2f}", f"{values[-1]:.1f}", below]
            )
    header = ["cell", "task", "least ratio", "where", "geometric mean", "largest", "below 1"]
    return table(header, rows)


def draw(path: Path) -> None:
    """Draws all ratios: a panel per cell and task, a row per batch and length, a column per width.

    Colours are on a logarithmic scale with white at 1: blue where this package is faster.
    """
    from matplotlib.colors import LogNorm

    figure = plots._figure(13, 7.2)
    axes = figure.subplots(len(TASKS), len(NAMES), squeeze=False)
    image: Any = None
    for row, task in zip(axes, TASKS, strict=True):
        for axis, (cell, name) in zip(row, NAMES.items(), strict=True):
            ratios = grid(cell, task)
            rows = sorted({key[:2] for key in ratios})
            widths = sorted({key[2] for key in ratios})
            values = [[ratios[*key, width] for width in widths] for key in rows]
            scale = LogNorm(1 / 8, 8)
            image = axis.imshow(values, cmap="RdBu", norm=scale, aspect="auto")
            axis.set_title(f"{name}, {task}", color=plots._INK, fontsize=11)
            axis.set_xticks(range(len(widths)), widths)
            axis.set_yticks(range(len(rows)), [f"{batch} × {length}" for batch, length in rows])
            axis.tick_params(colors=plots._INK, labelsize=8.5, length=0)
            axis.set_xlabel("width", color=plots._INK)
            for i, line in enumerate(values):
                for j, value in enumerate(line):
                    dark = not 1 / 3.5 < value < 3.5
                    style = {"color": "white" if dark else plots._INK, "fontsize": 8}
                    label = f"{value:.0f}" if value >= 10 else f"{value:.2g}"
                    axis.text(j, i, label, ha="center", va="center", **style)
        row[0].set_ylabel("batch × steps", color=plots._INK)
    label = "time of PyTorch over that of jaxeff"
    bar = figure.colorbar(image, ax=axes, label=label, shrink=0.6, ticks=[])
    bar.set_ticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], labels=["1/8", "1/4", "1/2", *"1248"])
    bar.minorticks_off()
    plots._save(figure, path)
