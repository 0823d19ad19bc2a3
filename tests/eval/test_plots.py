"""Pictures exist, show what they should, and leave the rest of matplotlib alone."""

import sys

import numpy as np
import pytest

from jaxeff.eval import learning_curve, plots

HISTORY = [
    {"step": 0, "train/loss": 2.0, "train/accuracy": 0.1},
    {"step": 10, "train/loss": 1.0, "train/accuracy": 0.5, "validation/loss": 1.2},
    {"step": 20, "train/loss": float("nan"), "validation/loss": 0.8, "validation/accuracy": 0.7},
    {"step": 30, "train/loss": 0.5, "validation/loss": 0.9, "validation/accuracy": None},
]


def pixels(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def coloured(path, colour):
    """Returns the number of pixels close to a colour."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels(path) - rgb).max(axis=-1) < 12).sum())


@pytest.fixture
def axes(monkeypatch):
    """Collects the axes that are drawn."""
    seen = {}
    draw = plots._draw

    def spy(axis, metric, curves):
        draw(axis, metric, curves)
        seen[metric] = axis

    monkeypatch.setattr(plots, "_draw", spy)
    return seen


def lines(axis):
    found = {line.get_label(): line for line in axis.get_lines()}
    return {k: line.get_xydata().tolist() for k, line in found.items() if not k.startswith("_")}


def test_both_panels_show_both_curves(tmp_path, axes):
    path = learning_curve(HISTORY, tmp_path / "plots" / "curve.png", title="a run")
    assert path == tmp_path / "plots" / "curve.png"
    assert lines(axes["loss"]) == {
        "train": [[0, 2], [10, 1], [30, 0.5]],
        "validation": [[10, 1.2], [20, 0.8], [30, 0.9]],
    }
    assert lines(axes["accuracy"])["validation"] == [[20, 0.7]]
    for metric, axis in axes.items():
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", metric)
        assert axis.get_legend() is not None
    assert axes["loss"].get_title(loc="left") == "best validation loss 0.8 at step 20"
    assert "0.7 at step 20" in axes["accuracy"].get_title(loc="left")
    for style in (plots._STYLES["train"], plots._STYLES["validation"]):
        assert coloured(path, style["color"]) > 300


def test_columns_draw_the_same_picture_as_rows(tmp_path):
    rows = [{"step": i, "train/loss": i + 1.0, "val_loss": i + 2.0} for i in range(5)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    first = pixels(learning_curve(rows, tmp_path / "rows.png"))
    second = pixels(learning_curve(columns, tmp_path / "columns.png"))
    np.testing.assert_array_equal(first, second)


def test_a_missing_metric_has_no_panel(tmp_path, axes):
    losses = [{k: v for k, v in row.items() if "accuracy" not in k} for row in HISTORY]
    one = pixels(learning_curve(losses, tmp_path / "one.png"))
    assert set(axes) == {"loss"}
    two = pixels(learning_curve(HISTORY, tmp_path / "two.png"))
    assert two.shape[1] == pytest.approx(2 * one.shape[1], rel=0.02)


def test_a_single_point_can_be_seen(tmp_path, axes):
    path = learning_curve({"loss": [0.5]}, tmp_path / "point.png")
    assert lines(axes["loss"]) == {"train": [[0, 0.5]]}
    line = next(iter(axes["loss"].get_lines()))
    assert line.get_marker() == "o"
    assert list(axes["loss"].get_xticks()) == [0]
    assert coloured(path, plots._STYLES["train"]["color"]) > 20


def test_other_metrics_on_request(tmp_path, axes):
    history = {"step": [1, 2], "test/error": [3.0, 2.0], "train/loss": [1.0, 1.0]}
    learning_curve(history, tmp_path / "error.png", metrics=["error"])
    assert list(axes) == ["error"]
    assert lines(axes["error"]) == {"test": [[1, 3], [2, 2]]}


def test_a_loss_over_decades_has_a_logarithmic_axis(tmp_path, axes):
    learning_curve({"loss": [100.0, 1.0]}, tmp_path / "a.png")
    assert axes["loss"].get_yscale() == "log"
    assert axes["loss"].get_ylabel() == "loss (log scale)"
    learning_curve({"loss": [100.0, 0.0]}, tmp_path / "b.png")
    assert axes["loss"].get_yscale() == "linear"


@pytest.mark.parametrize("history", [[], {"step": [1]}, [{"step": 1, "train/loss": np.nan}]])
def test_nothing_to_draw(tmp_path, history):
    with pytest.raises(ValueError, match="loss or accuracy"):
        learning_curve(history, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_pyplot_is_not_touched(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    learning_curve(HISTORY, tmp_path / "curve.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_time_constants_have_a_row_per_unit_quick_ones_first(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    shown = []
    draw = Axes.imshow

    def imshow(axis, values, **options):
        shown.append(np.asarray(values))
        return draw(axis, values, **options)

    monkeypatch.setattr(Axes, "imshow", imshow)
    constants = np.array([[30.0, 2.0, 9.0]] * 4) * np.linspace(1, 2, 4)[:, None]
    path = plots.time_constants(np.zeros((4, 1)), constants, tmp_path / "a" / "b.png", title="t")
    assert path.read_bytes().startswith(b"\x89PNG")
    np.testing.assert_array_equal(shown[0], constants[:, [1, 2, 0]].T)


@pytest.mark.parametrize("constants", [np.ones((3, 2)), np.zeros((4, 2))])
def test_time_constants_that_do_not_fit_are_refused(constants, tmp_path):
    with pytest.raises(ValueError, match="4 inputs and"):
        plots.time_constants(np.zeros((4, 1)), constants, tmp_path / "b.png")


def test_the_range_of_time_constants_is_that_of_the_units(tmp_path, monkeypatch):
    seen = []
    plain = plots._plain
    monkeypatch.setattr(plots, "_plain", lambda axis: (seen.append(axis), plain(axis)))
    constants = np.random.default_rng(0).uniform(1, 20, (6, 11))
    plots.time_constants(np.ones((6, 2)), constants, tmp_path / "b.png")
    _, middle = seen
    ranked = np.sort(constants, axis=1)  # of eleven units the 2nd, 6th and 10th
    np.testing.assert_allclose(middle.get_lines()[0].get_ydata(), ranked[:, 5])
    (band,) = middle.collections
    corners = band.get_paths()[0].vertices
    for step, (low, high) in enumerate(ranked[:, [1, 9]]):
        at = corners[corners[:, 0] == step, 1]
        assert (at.min(), at.max()) == pytest.approx((low, high))
