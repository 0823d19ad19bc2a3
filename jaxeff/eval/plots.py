"""Pictures of a run, drawn without pyplot so that a notebook's own figures are left alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

History = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
Curves = dict[str, tuple[list[float], list[float]]]  # steps and values by split

_SPLITS = {"train": "train", "training": "train", "validation": "validation", "test": "test"}
_SPLITS |= {"valid": "validation", "val": "validation", "eval": "validation"}
_STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "#7f8ea3", "linewidth": 1.4},
    "validation": {"color": "#0b6fb8", "linewidth": 2.0},
    "test": {"color": "#c2571a", "linewidth": 2.0},
}
_INK = "#2b2f36"
_FAINT = "#d9dde3"
_COLORS = ("#0b6fb8", "#c2571a", "#2e8b57", "#7b4fa3", "#7f8ea3")
_BEST = {"loss": min, "accuracy": max}
_LOG_RATIO = 50.0  # a loss that falls by more than this is shown on a logarithmic axis


def learning_curve(
    history: History,
    path: str | os.PathLike[str],
    *,
    metrics: Sequence[str] = ("loss", "accuracy"),
    title: str | None = None,
) -> Path:
    """Draws the values of a run over its steps into a PNG file, one panel per metric.

    Args:
      history: rows as :func:`jaxeff.eval.metrics_log.read_history` returns them, or columns of
        equal length by name. Columns are named ``split/metric`` (or ``split_metric``); a bare
        ``metric`` counts as train. Missing and non-finite values are skipped. Without a column
        ``step``, points are numbered from 0.
      path: the file to write; its folder is made if need be.
      metrics: metrics to draw, in this order; those without any value have no panel.
      title: heading of the picture.

    Returns:
      ``path``.

    Raises:
      ValueError: the history has no value of any of the metrics.
    """
    rows = _rows(history)
    panels = {metric: curves for metric in metrics if (curves := _curves(rows, metric))}
    if not panels:
        raise ValueError(f"the history has no value of {' or '.join(metrics)}")
    figure = _figure(4.6 * len(panels), 3.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (metric, curves) in zip(axes, panels.items(), strict=True):
        _draw(axis, metric, curves)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", color=_INK)
    return _save(figure, path)


def time_constants(
    inputs: Any,
    constants: Any,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
) -> Path:
    """Draws the time constants of a time-adaptive network over one sequence.

    Above, the inputs; in the middle, the median over the units and the range from the 10th to the
    90th percentile; below, a row per unit (the quick ones on top) and a column per time step,
    bright where the unit follows its input within a few steps and dark where it holds its state.

    Args:
      inputs: ``[time, features]``; with more than eight features their mean is drawn.
      constants: time constants ``[time, units]`` in time steps, positive.
      path: the PNG file to write; its folder is made if need be.
      title: heading of the picture.

    Returns:
      ``path``.

    Raises:
      ValueError: the two differ in length, or a time constant is not positive.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    signal, constants = np.asarray(inputs, np.float64), np.asarray(constants, np.float64)
    if len(signal) != len(constants) or not (constants > 0).all():
        raise ValueError(
            f"{len(signal)} inputs and {len(constants)} time constants, which must be as many and "
            "positive"
        )
    order = np.argsort(np.median(constants, axis=0))
    figure = _figure(7.6, 5.8)
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 2.2))
    if signal.shape[1] > 8:
        signal = signal.mean(1, keepdims=True)
    above.plot(signal, linewidth=1.3, color=_INK if signal.shape[1] == 1 else None)
    above.set_ylabel("input", fontsize=11, color=_INK)
    _plain(above)
    steps, ranked = np.arange(len(constants)), np.percentile(constants, [10, 50, 90], axis=1)
    middle.fill_between(steps, ranked[0], ranked[2], color=_COLORS[0], alpha=0.2, linewidth=0)
    middle.plot(steps, ranked[1], color=_COLORS[0], linewidth=1.6)
    middle.set_yscale("log")
    middle.set_ylabel("time constant,\nsteps", fontsize=10, color=_INK)
    _plain(middle)
    low, high = np.percentile(constants, [1, 99])
    image = below.imshow(
        constants[:, order].T,
        aspect="auto",
        interpolation="nearest",
        cmap="magma_r",
        norm=LogNorm(low, max(high, 1.01 * low)),
        extent=(-0.5, len(constants) - 0.5, constants.shape[1], 0),
    )
    below.set_xlabel("time step", fontsize=11, color=_INK)
    below.set_ylabel("unit", fontsize=11, color=_INK)
    below.tick_params(colors=_INK, labelsize=9.5, length=0)
    bar = figure.colorbar(image, ax=below, pad=0.01)
    bar.set_label("time constant, steps", fontsize=10, color=_INK)
    bar.ax.tick_params(colors=_INK, labelsize=9)
    wide = ranked[2].max() > 30 * ranked[0].min()  # more than the panel has room for
    for scale, subs in ((bar.ax.yaxis, (1, 2, 5)), (middle.yaxis, (1, 3) if wide else (1, 2, 5))):
        scale.set_major_locator(LogLocator(subs=subs))
        scale.set_major_formatter(StrMethodFormatter("{x:g}"))
        scale.set_minor_formatter(NullFormatter())
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", color=_INK)
    return _save(figure, path)


Runs = Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]
Scores = Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]]


def comparison(
    panels: Mapping[str, Runs],
    path: str | os.PathLike[str],
    *,
    xlabel: str,
    ylabel: str,
    level: tuple[str, float] | None = None,
    xticks: Sequence[float] = (),
) -> Path:
    """Draws the curves of several runs per label, one panel per title, on a logarithmic axis.

    Args:
      panels: title, then label, then the runs of that label as (x, y) of equal length, y positive.
      path: the PNG file to write; its folder is made if need be.
      xlabel: what x is.
      ylabel: what y is.
      level: name and height of a line to compare with.
      xticks: the marks of a logarithmic axis of x; () for a linear one.

    Returns:
      ``path``.
    """
    from matplotlib.ticker import NullLocator

    figure = _figure(max(4.6 * len(panels), 6.0), 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for color, (label, runs) in zip(_COLORS, curves.items(), strict=False):
            for number, (x, y) in enumerate(runs):
                options = {"label": label} if number == 0 else {}
                axis.plot(x, y, color=color, linewidth=1.6, alpha=0.85, **options)
        if level:
            axis.axhline(level[1], color=_INK, linewidth=0.8, linestyle=":", label=level[0])
        axis.set_yscale("log")
        _plain_decade(axis)
        if xticks:
            axis.set_xscale("log")
            axis.set_xticks(xticks, [f"{x:g}" for x in xticks])
            axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title(title, fontsize=11, color=_INK, loc="left")
        axis.set_xlabel(xlabel, fontsize=11, color=_INK)
        _plain(axis)
    axes[0].set_ylabel(ylabel, fontsize=11, color=_INK)
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        frameon=False,
        ncols=2 * len(panels),
        loc="outside lower center",
        fontsize=9.5,
        labelcolor=_INK,
    )
    return _save(figure, path)


def scores(panels: Scores, path: str | os.PathLike[str], *, xlabel: str) -> Path:
    """Draws means and deviations side by side: a panel per task, a row per model, a dot per way.

    Args:
      panels: task, then model, then way of training ("" has no legend), to (mean, deviation).
      path: the PNG file to write; its folder is made if need be.
      xlabel: what the numbers are.

    Returns:
      ``path``.
    """
    ways = list(dict.fromkeys(w for rows in panels.values() for row in rows.values() for w in row))
    dots = len(ways) * max(map(len, panels.values()))
    width = sum(2.6 + 0.08 * max(map(len, rows)) for rows in panels.values())  # room for the names
    figure = _figure(max(width, 6.0), min(1.5 + 0.32 * dots, 3.8))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (task, rows) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(rows.values()):
            for number, way in enumerate(ways):
                if way in row:
                    y = place + 0.2 * (number - (len(ways) - 1) / 2)
                    mean, deviation = row[way]
                    options = {"label": way} if place == 0 else {}
                    axis.errorbar(
                        *([mean], [y]),
                        xerr=[deviation],
                        fmt="o",
                        color=_COLORS[number % len(_COLORS)],
                        capsize=2,
                        markersize=5,
                        **options,
                    )
        axis.set_yticks(range(len(rows)), list(rows))
        axis.invert_yaxis()
        axis.set_title(task, fontsize=11, color=_INK, loc="left")
        axis.set_xlabel(xlabel, fontsize=10, color=_INK)
        _plain(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, frameon=False, ncols=len(ways), loc="outside upper center")
    return _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """Returns an empty white figure of that size in inches, with a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Inches around the panels: the engine's own are too tight for a picture in a page.
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12, wspace=0.03)
    figure = Figure(figsize=(width, height), dpi=144, layout=layout)
    figure.set_facecolor("white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: str | os.PathLike[str]) -> Path:
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()
    # A palette is a third of the size; 200 colours lose nothing that can be seen.
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    image.quantize(200, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)
    return path


def _plain_decade(axis: Any) -> None:
    """Labels 1, 2, 3 and 5 on a logarithmic axis of little more than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_ylim()
    if high < 20 * low:
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())


def _plain(axis: Any) -> None:
    """Takes away what distracts from the data."""
    axis.tick_params(colors=_INK, labelsize=9.5, length=0)
    axis.grid(color=_FAINT, linewidth=0.8)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)


def _rows(history: History) -> list[Mapping[str, Any]]:
    if not isinstance(history, Mapping):
        return list(history)
    names = list(history)
    columns = (history[name] for name in names)
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _curves(rows: Sequence[Mapping[str, Any]], metric: str) -> Curves:
    """Returns the finite values of a metric by split, train first."""
    curves: Curves = {}
    for index, row in enumerate(rows):
        for name, value in row.items():
            split = _split_of(name, metric)
            if split is None or value is None or not math.isfinite(value):
                continue
            steps, values = curves.setdefault(split, ([], []))
            steps.append(float(row.get("step", index)))
            values.append(float(value))
    return {split: curves[split] for split in _STYLES if split in curves}


def _split_of(name: str, metric: str) -> str | None:
    """Returns the split whose ``metric`` a column holds, or None if it holds something else."""
    if name == metric:
        return "train"
    for separator in "/_.":
        split, _, rest = name.partition(separator)
        if rest == metric and split in _SPLITS:
            return _SPLITS[split]
    return None


def _draw(axis: Any, metric: str, curves: Curves) -> None:
    for split, (steps, values) in curves.items():
        # Without a marker a curve of one point would not show.
        marker = "o" if len(values) <= 25 else None
        axis.plot(steps, values, label=split, marker=marker, markersize=4, **_STYLES[split])
    _scale(axis, metric, curves)
    _mark_best(axis, metric, curves)
    is_log = axis.get_yscale() == "log"
    axis.set_xlabel("step", fontsize=11, color=_INK)
    axis.set_ylabel(f"{metric} (log scale)" if is_log else metric, fontsize=11, color=_INK)
    _plain(axis)
    axis.legend(frameon=False, fontsize=9.5, labelcolor=_INK)


def _scale(axis: Any, metric: str, curves: Curves) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    values = [value for _, curve in curves.values() for value in curve]
    if metric == "loss" and min(values) > 0 and max(values) > _LOG_RATIO * min(values):
        axis.set_yscale("log")
    steps = {step for where, _ in curves.values() for step in where}
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if len(steps) == 1:  # no room for other whole steps
        axis.set_xticks(list(steps))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))


def _mark_best(axis: Any, metric: str, curves: Curves) -> None:
    """Marks the best validation value, and states it above the panel."""
    if "validation" not in curves or metric not in _BEST:
        return
    steps, values = curves["validation"]
    best = _BEST[metric](values)
    step = steps[values.index(best)]
    ring = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.6}
    axis.plot([step], [best], color=_STYLES["validation"]["color"], **ring)
    text = f"best validation {metric} {best:.4g} at step {step:,.0f}"
    axis.set_title(text, fontsize=10, color=_INK, loc="left")
