"""Fronts have the models that none beats, and names that lie on nothing."""

import itertools

import numpy as np
import pytest
from matplotlib.text import Annotation, Text

from jaxeff.eval import fronts

GAPS = np.array([4.0, 10.0, 20.0, 32.0])
BOUNDS = np.array([0.0, 0.0, 100.0, 100.0])
NOTHING = np.zeros((0, 4))


def boxes(centres, sizes):
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)


def apart(one, other):
    """Whether two boxes have no area in common."""
    return one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]


def test_the_front_has_the_models_that_none_beats_in_both():
    models = {"a": (1.0, 0.5), "b": (2.0, 0.4), "c": (2.0, 0.7), "d": (3.0, 0.7), "e": (9.0, 0.9)}
    assert fronts.pareto(models) == {"a", "c", "e"}


def test_a_label_alone_is_at_the_least_gap():
    points, sizes = np.array([[50.0, 50.0]]), np.array([[20.0, 10.0]])
    (centre,) = fronts.place_labels(points, sizes, NOTHING, BOUNDS, gaps=GAPS)
    np.testing.assert_allclose(centre, [50 + 10 + 4, 50])  # on the right


def test_labels_lie_neither_on_each_other_nor_on_obstacles_nor_outside():
    points = np.array([[95.0, 50.0], [94.0, 52.0], [50.0, 98.0], [93.0, 48.0]])
    sizes = np.tile([18.0, 8.0], (4, 1))
    obstacles = np.concatenate([points - 2, points + 2], axis=1)
    centres = fronts.place_labels(points, sizes, obstacles, BOUNDS, gaps=GAPS)
    placed = boxes(centres, sizes)
    assert (placed[:, :2] >= 0).all()
    assert (placed[:, 2:] <= 100).all()
    pairs = [*itertools.combinations(placed, 2), *itertools.product(placed, obstacles)]
    assert all(apart(one, other) for one, other in pairs)


@pytest.mark.parametrize("count", [5, 15])
def test_no_name_of_a_front_lies_on_another_or_on_a_dot(count, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(fronts, "_save", lambda figure, path: figures.append(figure))
    rng = np.random.default_rng(0)
    costs, scores = 10 ** rng.normal(1, 0.15, count), rng.normal(88, 0.5, count)
    models = {f"model {i}": (costs[i], scores[i], 0.4) for i in range(count)}
    fronts.front({"cost": models}, tmp_path / "f.png", ylabel="score")
    (figure,) = figures
    figure.draw_without_rendering()
    (axis,) = figure.axes
    renderer = figure.canvas.get_renderer()
    texts = [child for child in axis.get_children() if isinstance(child, Annotation)]
    assert [t.get_text() for t in texts] == (
        list(models) if count == 5 else [str(i + 1) for i in range(count)]
    )
    labels = [Text.get_window_extent(text, renderer).extents for text in texts]
    dots = axis.transData.transform(np.stack([costs, scores], -1))
    for one, other in itertools.combinations(labels, 2):
        assert apart(one, other)
    for label, dot in itertools.product(labels, dots):
        assert apart(label, [*(dot - 1), *(dot + 1)])


def test_a_front_is_drawn_for_every_cost(tmp_path):
    models = {"small": (1.0, 80.0, 1.0), "large": (10.0, 90.0, 0.5), "poor": (20.0, 85.0, 0.5)}
    path = fronts.front(
        {"multiply-adds": models, "latency, ms": models}, tmp_path / "x" / "f.png", ylabel="%"
    )
    assert path.read_bytes().startswith(b"\x89PNG")
