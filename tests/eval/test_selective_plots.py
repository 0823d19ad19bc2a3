"""The picture of risk-coverage curves shows each confidence and the best possible."""

import numpy as np
import pytest
from PIL import Image

from jaxeff.analyses.selective import SelectiveAnalysis
from jaxeff.eval import plots, selective_plots
from jaxeff.selective import calibrate, metrics


@pytest.fixture
def axes(monkeypatch):
    """Collects the axes that are drawn."""
    seen = []
    plain = plots._plain
    monkeypatch.setattr(plots, "_plain", lambda axis: (seen.append(axis), plain(axis)))
    return seen


def test_lines_are_the_curves(axes, tmp_path):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=(2, 200))
    wrong = rng.random(200) < 0.3
    curves = {
        name: metrics.risk_coverage(c, wrong) for name, c in zip("ab", confidence, strict=True)
    }
    path = selective_plots.risk_coverage(curves, tmp_path / "deep" / "c.png", title="A title")
    assert np.asarray(Image.open(path)).std() > 0
    assert len(axes) == 2
    for axis, kind in zip(axes, ("selective", "joint"), strict=True):
        lines = {line.get_label(): line for line in axis.get_lines()}
        assert list(lines) == ["a", "b", "best possible"]
        for name, curve in curves.items():
            x, y = lines[name].get_data()
            np.testing.assert_array_equal(x, curve.coverage[24:])  # what fewer say is chance
            np.testing.assert_array_equal(y, curve.error(kind)[24:])
        x, y = lines["best possible"].get_data()
        assert (x[0], y[0]) == (1 - wrong.mean(), 0)
        assert (x[-1], y[-1]) == pytest.approx((1, wrong.mean()))
        accepted_wrong = x - (1 - wrong.mean())
        expected = accepted_wrong / x if kind == "selective" else accepted_wrong
        np.testing.assert_allclose(y, expected)


def test_few_examples_are_drawn_all_the_same(axes, tmp_path):
    curve = metrics.risk_coverage(np.ones(3), np.array([0, 1, 0]))
    selective_plots.risk_coverage({"a": curve}, tmp_path / "c.png")
    assert axes[0].get_lines()[0].get_data()[0].tolist() == [1.0]


def test_a_guarantee_is_a_line_at_its_target_and_a_point_on_the_curve(axes, tmp_path):
    wrong = np.arange(100) >= 90
    curve = metrics.risk_coverage(np.arange(100, 0, -1) / 100, wrong)
    one = selective_plots.GuaranteedError("a", "joint", 0.05, 0.9, coverage=0.92, error=0.02)
    selective_plots.risk_coverage({"a": curve}, tmp_path / "c.png", guarantees=[one])
    selective, joint = axes
    assert len(selective.get_lines()) == 2
    _, _, level, drop, point = joint.get_lines()
    np.testing.assert_allclose(level.get_xydata(), [[0, 0.05], [0.92, 0.05]])
    np.testing.assert_allclose(drop.get_xydata(), [[0.92, 0.05], [0.92, 0.02]])
    np.testing.assert_allclose(point.get_xydata(), [[0.92, 0.02]])
    x, y = curve.coverage, curve.joint_error
    assert point.get_ydata()[0] == pytest.approx(np.interp(0.92, x, y))
    assert "probability 0.9" in point.get_label()
    assert [text.get_text() for text in joint.texts] == ["≤ 5 %"]


def test_drawn_guarantees_are_the_tested_thresholds_judged_on_the_test_split():
    rng = np.random.default_rng(0)
    confidences = {name: rng.uniform(size=4000) for name in ("calibration", "test")}
    wrong = {name: rng.random(4000) > c for name, c in confidences.items()}
    analysis = SelectiveAnalysis(joint_errors=(0.1, 1e-6), selective_risks=(0.3,))
    table = analysis._of(confidences, wrong)
    joint, selective = analysis._guarantees("a", table)  # no threshold reaches a millionth
    for one, kind, target in ((joint, "joint", 0.1), (selective, "selective", 0.3)):
        threshold = calibrate.learn_then_test(
            confidences["calibration"], wrong["calibration"], target, kind, delta=0.1
        )
        reached = metrics.rates(confidences["test"] >= threshold.value, wrong["test"])
        error = reached.joint_error if kind == "joint" else reached.selective_risk
        assert (one.curve, one.kind, one.target, one.probability) == ("a", kind, target, 0.9)
        assert (one.coverage, one.error) == pytest.approx((reached.coverage, error), abs=1e-4)
