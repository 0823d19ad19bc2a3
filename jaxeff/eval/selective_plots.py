"""Pictures of classifiers that may abstain."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxeff.eval import plots
from jaxeff.selective.metrics import RiskCoverageCurve

_LEAST = 25  # accepted examples below which a selective risk is mostly chance


def risk_coverage(
    curves: Mapping[str, RiskCoverageCurve],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
) -> Path:
    """Draws selective risk and joint error over coverage, a line per confidence.

    The dotted line is what the same mistakes would give if they all came last.

    Args:
      curves: risk-coverage curves of the same examples, by name.
      path: the PNG file to write; its folder is made if need be.
      title: heading of the picture.

    Returns:
      ``path``.
    """
    from matplotlib.ticker import PercentFormatter

    figure = plots._figure(11.2, 4.0)
    axes = figure.subplots(1, 2)
    for axis, kind, label in zip(
        axes, ("selective", "joint"), ("selective risk", "joint error"), strict=True
    ):
        for number, (name, curve) in enumerate(curves.items()):
            shown = curve.accepted >= min(_LEAST, curve.total)
            axis.plot(
                *(curve.coverage[shown], curve.error(kind)[shown]),
                color=plots._COLORS[number % len(plots._COLORS)],
                linewidth=1.8,
                label=name,
            )
        error = next(iter(curves.values())).joint_error[-1]
        coverage = np.linspace(1 - error, 1, 100)
        best = coverage - (1 - error)
        best = best / coverage if kind == "selective" else best
        axis.plot(coverage, best, color=plots._INK, linewidth=0.9, linestyle=":", label="at best")
        axis.set_xlabel("coverage", fontsize=11, color=plots._INK)
        axis.set_ylabel(label, fontsize=11, color=plots._INK)
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_formatter(PercentFormatter(1.0, decimals=None))
        plots._plain(axis)
    axes[0].legend(frameon=False, fontsize=9.5, labelcolor=plots._INK)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", color=plots._INK)
    return plots._save(figure, path)
