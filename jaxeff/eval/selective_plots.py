"""Pictures of classifiers that may abstain."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.eval import plots
from jaxeff.selective.metrics import RiskCoverageCurve

_LEAST = 25  # accepted examples below which a selective risk is mostly chance


@dataclasses.dataclass(frozen=True)
class GuaranteedError:
    """An error that a threshold guarantees, and what the threshold reaches on other examples.

    Attributes:
      curve: name of the curve that the threshold belongs to.
      kind: "selective" (risk) or "joint" (error).
      target: the guaranteed error, as a fraction.
      probability: of the guarantee over calibration splits.
      coverage: fraction accepted of the examples drawn.
      error: their error of this kind.
    """

    curve: str
    kind: str
    target: float
    probability: float
    coverage: float
    error: float


def risk_coverage(
    curves: Mapping[str, RiskCoverageCurve],
    path: str | os.PathLike[str],
    *,
    guarantees: Sequence[GuaranteedError] = (),
    title: str | None = None,
) -> Path:
    """Draws selective risk and joint error over coverage, a line per confidence.

    The dotted line is what the same mistakes would give if they all came last. A guarantee is a
    dashed line at its target and a diamond where its threshold lies on the curve: the guarantee
    holds if the diamond is not above the line.

    Args:
      curves: risk-coverage curves of the same examples, by name.
      path: the PNG file to write; its folder is made if need be.
      guarantees: errors that thresholds guarantee, and the points that they reach.
      title: heading of the picture.

    Returns:
      ``path``.
    """
    from matplotlib.ticker import PercentFormatter

    figure = plots._figure(9.0, 4.6)
    axes = figure.subplots(1, 2)
    for axis, kind, label in zip(
        axes, ("selective", "joint"), ("selective risk", "joint error"), strict=True
    ):
        colors = dict(zip(curves, itertools.cycle(plots._COLORS), strict=False))
        for name, curve in curves.items():
            shown = curve.accepted >= min(_LEAST, curve.total)
            axis.plot(
                *(curve.coverage[shown], curve.error(kind)[shown]),
                color=colors[name],
                linewidth=1.8,
                label=name,
            )
        error = next(iter(curves.values())).joint_error[-1]
        coverage = np.linspace(1 - error, 1, 100)
        best = coverage - (1 - error)
        best = best / coverage if kind == "selective" else best
        style = {"color": plots._INK, "linewidth": 0.9, "linestyle": ":"}
        axis.plot(coverage, best, label="best possible", **style)
        of_kind = [one for one in guarantees if one.kind == kind]
        for number, one in enumerate(of_kind):
            _draw_guarantee(axis, one, colors[one.curve], at=0.15 * number)
        axis.set_xlabel("coverage", fontsize=11, color=plots._INK)
        axis.set_ylabel(label, fontsize=11, color=plots._INK)
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_formatter(PercentFormatter(1.0, decimals=None))
        plots._plain(axis)
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    style = {"frameon": False, "fontsize": 9, "labelcolor": plots._INK, "ncols": 3}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", **style)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", color=plots._INK)
    return plots._save(figure, path)


def _draw_guarantee(axis: Any, one: GuaranteedError, color: str, at: float) -> None:
    """Draws one guarantee, its target written at a coverage."""
    style = {"color": color, "linewidth": 1.0, "linestyle": "--"}
    axis.plot([0, one.coverage], [one.target, one.target], **style)
    axis.plot([one.coverage, one.coverage], [one.target, one.error], **style)
    label = f"threshold with guarantee, probability {one.probability:.4g}"
    marker = {"marker": "D", "markersize": 5, "linestyle": "none", "color": color}
    axis.plot([one.coverage], [one.error], label=label, **marker)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}  # hides lines of other targets
    where = {"textcoords": "offset points", "fontsize": 8.5, "color": color, "bbox": box}
    axis.annotate(f"≤ {100 * one.target:g} %", (at, one.target), (2, 2), **where)
