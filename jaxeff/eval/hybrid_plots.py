"""Pictures of models that ask others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.eval import plots
from jaxeff.eval.fronts import annotate

#: Coordinates and accuracies of a line.
Line = tuple[Any, Any]


def trade_offs(
    panels: Mapping[str, Mapping[str, Line]],
    points: Mapping[str, Mapping[str, tuple[float, float]]],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
) -> Path:
    """Draws accuracy over coverage or cost, a panel for each, a line per rule, a dot per model.

    Args:
      panels: label of the axis, then rule, to the line.
      points: label of the axis, then model, to the point.
      path: the PNG file to write; its folder is made if need be.
      title: heading of the picture.

    Returns:
      ``path``.
    """
    from matplotlib.ticker import PercentFormatter

    figure = plots._figure(max(4.6 * len(panels), 5.6), 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (label, lines) in zip(axes, panels.items(), strict=True):
        for number, (name, line) in enumerate(lines.items()):
            color = plots._COLORS[number % len(plots._COLORS)]
            style = "-" if number < len(plots._COLORS) else "--"
            axis.plot(*line, style, color=color, linewidth=1.8, label=name)
        for x, y in points.get(label, {}).values():
            axis.plot([x], [y], "o", color=plots._INK, markersize=5)
        axis.set_xlabel(label, fontsize=11, color=plots._INK)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        plots._plain(axis)
    axes[0].set_ylabel("accuracy", fontsize=11, color=plots._INK)
    handles, names = axes[0].get_legend_handles_labels()
    place = {"frameon": False, "fontsize": 9.5, "labelcolor": plots._INK, "ncols": 3}
    figure.legend(handles, names, loc="outside lower center", **place)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", color=plots._INK)
    for axis, (label, lines) in zip(axes, panels.items(), strict=True):
        named = points.get(label, {})
        avoid = [np.column_stack(line) for line in lines.values()]
        annotate(axis, list(named), list(named.values()), avoid=avoid)
    return plots._save(figure, path)
