"""Fronts against brute force."""

import numpy as np
import pytest

from jaxeff.search.front import hull, hypervolume, pareto


@pytest.fixture(params=range(5))
def points(request):
    rng = np.random.default_rng(request.param)
    return rng.integers(0, 12, 30).astype(float), rng.integers(0, 12, 30).astype(float)


def test_front_is_what_nothing_beats(points):
    costs, values = points
    wanted = set()
    for cost, value in zip(costs, values, strict=True):
        better = (costs <= cost) & (values >= value) & ((costs < cost) | (values > value))
        if not better.any():
            wanted.add((cost, value))
    found = [(costs[i], values[i]) for i in pareto(costs, values)]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert found == sorted(found)


def test_hull_is_what_some_price_makes_best(points):
    costs, values = points
    corners = {(costs[i], values[i]) for i in hull(costs, values)}
    best = set()
    for angle in np.linspace(1e-6, np.pi / 2 - 1e-6, 20001):
        i = np.argmax(np.cos(angle) * values - np.sin(angle) * costs)
        best.add((costs[i], values[i]))
    front = {(costs[i], values[i]) for i in pareto(costs, values)}
    assert best & front == corners


def test_hypervolume_is_the_share_of_points_that_are_beaten(points):
    costs, values = points
    found = hypervolume(costs, values, 10.0, 2.0)
    # Whole numbers: cells of one by one.
    x, y = np.meshgrid(np.arange(10) + 0.5, np.arange(2, 14) + 0.5)
    beaten = ((costs[:, None, None] < x) & (values[:, None, None] > y)).any(0)
    assert found == beaten.sum()


def test_points_on_a_line_have_two_corners():
    assert hull([1, 2, 3], [1, 2, 3]) == [0, 2]


def test_what_is_too_dear_counts_nothing():
    assert hypervolume([1, 20], [1, 5], 10, 0) == 9
    assert hypervolume([], [], 10, 0) == 0


def test_nan_beats_nothing():
    nan = float("nan")
    costs, values = [1.0, 2.0, nan, 3.0], [nan, 0.5, 0.9, 0.7]
    assert pareto(costs, values) == [1, 3]
    assert hull(costs, values) == [1, 3]
    assert hypervolume(costs, values, 4.0, 0.0) == pytest.approx(2 * 0.5 + 1 * 0.2)
