"""Risk-coverage curves and their areas against recorded numbers, brute force and closed forms."""

import numpy as np
import pytest

from jaxeff.errors import ConfigError, DataError
from jaxeff.selective import metrics

CONFIDENCE = np.array([0.95, 0.9, 0.8, 0.8, 0.6, 0.55, 0.4, 0.3])
WRONG = np.array([0, 0, 1, 0, 0, 1, 0, 1])


def tied(n=500, seed=0):
    """Random confidences of which about a third have company."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(size=n)
    shared = rng.random(n) < 0.3
    confidence[shared] = rng.choice(confidence[:20], shared.sum())
    return confidence, rng.random(n) > confidence


def test_points_of_a_curve_merge_ties():
    curve = metrics.risk_coverage(CONFIDENCE, WRONG)
    np.testing.assert_array_equal(curve.coverage, [0.125, 0.25, 0.5, 0.625, 0.75, 0.875, 1])
    risks = [0, 0, 0.25, 0.2, 1 / 3, 2 / 7, 0.375]
    np.testing.assert_allclose(curve.selective_risk, risks, rtol=1e-15)
    np.testing.assert_array_equal(curve.thresholds, np.unique(CONFIDENCE)[::-1])


@pytest.mark.parametrize(
    ("area", "value"),
    [
        (metrics.aurc, 0.17269345),
        (metrics.augrc, 0.125),
        (metrics.aurc_of_prefixes, 0.22217262),
    ],
)
def test_areas_are_those_recorded(area, value):
    assert area(CONFIDENCE, WRONG) == pytest.approx(value, abs=1e-8)


def test_below_the_smallest_coverage_the_risk_is_constant():
    assert metrics.aurc([0.9, 0.5], [1, 0]) == pytest.approx(0.5 * 1 + 0.5 * 0.75)
    assert metrics.augrc([0.9, 0.5], [1, 0]) == pytest.approx(0.5 * 0.25 + 0.5 * 0.5)


def test_best_areas_are_those_recorded_and_are_reached_if_mistakes_come_last():
    assert metrics.best_aurc(3 / 8) == pytest.approx(0.08124773, abs=1e-8)
    assert metrics.best_augrc(3 / 8) == pytest.approx(0.0703125, abs=1e-12)
    n = 20_000
    confidence, wrong = np.linspace(1, 0, n), np.arange(n) >= 0.7 * n
    assert metrics.aurc(confidence, wrong) == pytest.approx(metrics.best_aurc(0.3), abs=1e-4)
    assert metrics.augrc(confidence, wrong) == pytest.approx(metrics.best_augrc(0.3), abs=1e-4)
    assert metrics.best_aurc(1.0) == 1.0


def test_curve_counts_are_those_of_brute_force():
    confidence, wrong = tied()
    curve = metrics.risk_coverage(confidence, wrong)
    assert len(curve.thresholds) < 400
    for t, accepted, errors in zip(curve.thresholds, curve.accepted, curve.errors, strict=True):
        kept = [i for i in range(500) if confidence[i] >= t]
        assert accepted == len(kept)
        assert errors == sum(wrong[i] for i in kept)
    assert curve.accepted[-1] == 500


def test_joint_error_is_coverage_times_selective_risk_and_falls_with_the_threshold():
    confidence, wrong = tied(seed=1)
    curve = metrics.risk_coverage(confidence, wrong)
    np.testing.assert_allclose(curve.joint_error, curve.coverage * curve.selective_risk, rtol=1e-15)
    assert (np.diff(curve.coverage) > 0).all()
    assert (np.diff(curve.joint_error) >= 0).all()
    assert curve.joint_error[-1] == wrong.mean()
    found = metrics.rates(confidence >= curve.thresholds[100], wrong)
    assert found == curve.at(100)
    assert found.accuracy == pytest.approx(found.coverage - found.joint_error)


def test_accepting_nothing_has_rates():
    assert metrics.rates(np.zeros(3, bool), np.ones(3, bool)) == metrics.Rates(0.0, 0.0, 0.0)


@pytest.mark.parametrize("target", [0.01, 0.3, 0.5, 0.77, 1.0])
def test_target_coverage_is_reached_as_closely_as_ties_allow(target):
    confidence, wrong = tied(seed=2)
    found = metrics.at_coverage(confidence, wrong, target)
    _, ties = np.unique(confidence, return_counts=True)
    assert 0 <= found.coverage - target < ties.max() / 500
    if target == 1:
        assert found.joint_error == wrong.mean()


@pytest.mark.parametrize("kind", metrics.ERRORS)
def test_target_error_takes_the_largest_coverage_within_it(kind):
    confidence, wrong = tied(seed=3)
    found = metrics.at_error(confidence, wrong, 0.1, kind)
    within = [
        rates.coverage
        for t in confidence
        if (rates := metrics.rates(confidence >= t, wrong))
        and (rates.joint_error if kind == "joint" else rates.selective_risk) <= 0.1
    ]
    assert found.coverage == max(within)
    assert metrics.at_error(np.ones(4), np.ones(4, bool), 0.1, kind).coverage == 0


@pytest.mark.parametrize("change", [np.exp, lambda c: 5 * c - 3, lambda c: c**3])
def test_increasing_maps_of_the_confidence_change_nothing(change):
    confidence, wrong = tied(seed=4)
    for target in np.linspace(0.01, 1, 50):
        before = metrics.at_coverage(confidence, wrong, target)
        assert metrics.at_coverage(change(confidence), wrong, target) == before
    assert metrics.aurc(change(confidence), wrong) == metrics.aurc(confidence, wrong)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: metrics.rates([], []), DataError, "there are no examples"),
        (lambda: metrics.aurc([0.1], [0, 1]), DataError, r"shapes \(1,\) and \(2,\) must both be"),
        (lambda: metrics.augrc([0.1, np.nan], [0, 1]), DataError, "1 of the confidences are not"),
        (
            lambda: metrics.at_coverage([0.1], [0], 1.5),
            ConfigError,
            r"be in \(0, 1\], not 1.5",
        ),
        (lambda: metrics.at_error([0.1], [0], 0.1, "risk"), ConfigError, "must be one of joint"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
