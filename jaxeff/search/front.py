"""Fronts of cheap and good candidates: costs are to be small, values large."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Returns the candidates that no other beats, cheapest first.

    Of equals the first counts. NaN, as a cost or as a value, beats nothing and is left out.

    Args:
      costs: ``[candidates]``.
      values: ``[candidates]``.
    """
    order = np.lexsort((np.arange(len(costs)), -np.asarray(values), np.asarray(costs)))
    front: list[int] = []
    for candidate in order:
        if np.isnan(costs[candidate]) or np.isnan(values[candidate]):
            continue
        if not front or values[candidate] > values[front[-1]]:
            front.append(int(candidate))
    return front


def hull(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Returns the corners of the front's upper convex hull, cheapest first."""
    corners: list[int] = []
    for candidate in pareto(costs, values):
        while len(corners) > 1:
            (x0, y0), (x1, y1) = ((costs[i], values[i]) for i in corners[-2:])
            if (values[candidate] - y0) * (x1 - x0) < (y1 - y0) * (costs[candidate] - x0):
                break
            corners.pop()
        corners.append(candidate)
    return corners


def hypervolume(
    costs: Sequence[float], values: Sequence[float], worst_cost: float, worst_value: float
) -> float:
    """Returns the area between a front and a point that is worse than all of it.

    Candidates that are worse than the point in either way count nothing.
    """
    area, reached = 0.0, worst_value
    for candidate in pareto(costs, values):
        if costs[candidate] < worst_cost and values[candidate] > reached:
            area += (worst_cost - costs[candidate]) * (values[candidate] - reached)
            reached = values[candidate]
    return area
