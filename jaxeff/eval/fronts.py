"""Scores against costs: a dot per model, with names that do not lie on each other."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.eval.plots import _COLORS, _FAINT, _INK, _figure, _plain, _save

#: Up to so many models have their names beside the dots; more have numbers and a legend.
_NAMED = 8
_DIRECTIONS = 2 * np.pi * np.arange(32) / 32
#: Places that are tried around a dot: gaps between dot and name in points.
_GAPS = (6, 10, 16, 24, 34, 46)


def front(
    panels: Mapping[str, Mapping[str, tuple[float, float, float]]],
    path: str | os.PathLike[str],
    *,
    ylabel: str,
) -> Path:
    """Draws a score against several costs, a panel per cost, a dot per model.

    The line joins the models that no other one beats in both cost and score.

    Args:
      panels: cost, then model (the same in all), to (cost, score, deviation of the score); costs
        are positive.
      path: the PNG file to write; its folder is made if need be.
      ylabel: what the score is.

    Returns:
      ``path``.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    names = list(next(iter(panels.values())))
    numbered = len(names) > _NAMED
    figure = _figure(4.6 * len(panels), 5.2 if numbered else 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (cost, models) in zip(axes, panels.items(), strict=True):
        best = pareto({name: (x, y) for name, (x, y, _) in models.items()})
        joined = sorted(models[name][:2] for name in best)
        axis.plot(*zip(*joined, strict=True), color=_FAINT, linewidth=2.0, zorder=1)
        for number, (name, (x, y, deviation)) in enumerate(models.items(), start=1):
            color = _COLORS[0] if name in best else _COLORS[-1]
            style = {"fmt": "o", "color": color, "capsize": 2, "markersize": 4.5}
            axis.errorbar(x, y, yerr=deviation, label=f"{number}  {name}", **style)
        axis.set_xscale("log")
        costs = [x for x, _, _ in models.values()]
        narrow = max(costs) < 5 * min(costs)
        axis.xaxis.set_major_locator(LogLocator(subs=range(1, 10) if narrow else (1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.12)
        axis.set_xlabel(cost, fontsize=10.5, color=_INK)
        _plain(axis)
    axes[0].set_ylabel(ylabel, fontsize=10.5, color=_INK)
    if numbered:
        handles, labels = axes[0].get_legend_handles_labels()
        place = {"ncols": 3, "loc": "outside lower center", "columnspacing": 1.2}
        figure.legend(handles, labels, frameon=False, fontsize=8.8, handletextpad=0.2, **place)
    for axis, models in zip(axes, panels.values(), strict=True):
        labels = [str(i) if numbered else name for i, name in enumerate(models, start=1)]
        bars = [[(x, y - d), (x, y + d)] for x, y, d in models.values()]
        annotate(axis, labels, [m[:2] for m in models.values()], avoid=bars)
    return _save(figure, path)


def pareto(models: Mapping[str, tuple[float, float]]) -> set[str]:
    """Returns the models, given as (cost, score), that no other one equals or beats in both."""

    def beaten(name: str) -> bool:
        cost, score = models[name]
        others = (models[other] for other in models if other != name)
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in others)

    return {name for name in models if not beaten(name)}


def annotate(
    axis: Any,
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    *,
    avoid: Sequence[Any] = (),
    fontsize: float = 9.0,
) -> None:
    """Writes names near points of a panel, away from each other, the points and some lines.

    Call it last: what is added to the figure afterwards may move the panel.

    Args:
      axis: the panel.
      names: one for each point.
      points: in the panel's coordinates.
      avoid: lines, each a list of points.
      fontsize: of the names, in points.
    """
    from matplotlib.text import Text

    if not names:
        return
    figure = axis.get_figure()
    pointer = {"arrowstyle": "-", "color": _COLORS[-1], "linewidth": 0.6, "shrinkA": 1.0}
    style = {"ha": "center", "va": "center", "fontsize": fontsize, "color": _INK}
    texts = [
        axis.annotate(name, point, (0, 0), textcoords="offset pixels", arrowprops=pointer, **style)
        for name, point in zip(names, points, strict=True)
    ]
    for text in texts:
        text.set_in_layout(False)
    figure.draw_without_rendering()  # gives the panel its place
    renderer, pixels = figure.canvas.get_renderer(), figure.dpi / 72
    extents = [Text.get_window_extent(text, renderer) for text in texts]
    sizes = np.array([[extent.width, extent.height] for extent in extents])
    places = axis.transData.transform(np.asarray(points, np.float64))
    lines = [axis.transData.transform(np.asarray(line, np.float64)) for line in avoid]
    dots = np.concatenate([places, *(_along(line, 3 * pixels) for line in lines)])
    obstacles = np.concatenate([dots - 3 * pixels, dots + 3 * pixels], axis=1)
    bounds = np.array(axis.bbox.extents)
    centres = place_labels(places, sizes, obstacles, bounds, gaps=np.array(_GAPS) * pixels)
    for text, centre, place in zip(texts, centres, places, strict=True):
        text.set_position(centre - place)


def place_labels(
    points: np.ndarray,
    sizes: np.ndarray,
    obstacles: np.ndarray,
    bounds: np.ndarray,
    *,
    gaps: np.ndarray,
) -> np.ndarray:
    """Returns centres ``[labels, 2]`` of labels near their points that lie on as little as can be.

    One after the other, those with most neighbours first, each label takes the place in 32
    directions and at some gaps that overlaps least with the obstacles, the labels before it and the
    outside of the bounds, and that is not nearer to another point; of equal places the nearest.

    Args:
      points: ``[labels, 2]``.
      sizes: widths and heights of the labels, ``[labels, 2]``.
      obstacles: boxes ``[boxes, 4]``: left, bottom, right, top.
      bounds: a box ``[4]``.
      gaps: distances between a point and its label that are tried, ``[gaps]``.
    """
    around = np.stack([np.cos(_DIRECTIONS), np.sin(_DIRECTIONS)], -1)
    apart = np.abs(points[:, None] - points[None]).max(-1)
    crowded = (apart < 4 * sizes.max(-1)[:, None]).sum(1)
    centres = np.array(points, np.float64)
    for label in np.argsort(-crowded, kind="stable"):
        half = sizes[label] / 2
        tried = np.concatenate([points[label] + around * (half + gap) for gap in gaps])
        boxes = np.concatenate([tried - half, tried + half], axis=1)
        covered = _overlap(boxes, obstacles).sum(1)
        outside = sizes[label].prod() - _overlap(boxes, bounds[None]).sum(1)
        away = _distances(boxes, points)
        doubtful = (away < away[:, [label]] + 1).sum(1)  # nearer to another point than to its own
        cost = np.round(covered + 4 * outside + 0.4 * sizes[label].prod() * doubtful)
        best = tried[np.argmin(cost)]  # the first of equal ones is at the least gap
        centres[label] = best
        obstacles = np.concatenate([obstacles, [[*(best - half), *(best + half)]]])
    return centres


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the common area of every two boxes, ``[boxes, others]``."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    areas: np.ndarray = np.prod(np.maximum(high - low, 0), -1)
    return areas


def _distances(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns the distance of every box from every point, ``[boxes, points]``."""
    low, high = boxes[:, None, :2] - points, points - boxes[:, None, 2:]
    distances: np.ndarray = np.linalg.norm(np.maximum(np.maximum(low, high), 0), axis=-1)
    return distances


def _along(line: np.ndarray, step: float) -> np.ndarray:
    """Returns points ``[points, 2]`` at distances of at most ``step`` along a line."""
    parts = [line[:1]]
    for start, end in itertools.pairwise(line):
        count = max(int(np.ceil(np.linalg.norm(end - start) / step)), 1)
        parts.append(start + (end - start) * np.linspace(0, 1, count + 1)[1:, None])
    return np.concatenate(parts)
