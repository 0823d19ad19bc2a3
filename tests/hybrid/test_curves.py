"""Accuracy-coverage curves against counting, closed forms and the bounds of any router."""

import numpy as np
import pytest

from jaxeff.errors import DataError
from jaxeff.hybrid import curves
from jaxeff.hybrid.curves import Shares, accuracy_coverage, calibrated_threshold


def case(seed=0, examples=500, ties=0.3):
    """Scores of which a share is tied, and who is right."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=examples).astype(np.float32)
    tied = rng.random(examples) < ties
    scores[tied] = rng.choice(np.array([-0.5, 0.0, 1.0], np.float32), tied.sum())
    base, expert = rng.random(examples) < 0.7, rng.random(examples) < 0.9
    return scores, base, expert


@pytest.mark.parametrize("seed", range(3))
def test_curve_counts_as_the_definition_does(seed):
    scores, base, expert = case(seed)
    curve = accuracy_coverage(scores, base, expert)
    thresholds = [-np.inf, *np.unique(scores)]
    assert len(curve.threshold) == len(thresholds)
    for point, t in enumerate(thresholds):
        assert curve.threshold[point] == t
        kept = sum(bool(s <= t) for s in scores)
        hits = sum(bool(b if s <= t else g) for s, b, g in zip(scores, base, expert, strict=True))
        assert (curve.kept[point], curve.hits[point]) == (kept, hits)


def test_identity_of_the_parts_holds_at_all_coverages():
    scores, base, expert = case()
    for coverage in np.linspace(0, 1, 101):
        queried = scores > calibrated_threshold(scores, coverage)
        found = curves.breakdown(queried, base, expert)
        joined = found.coverage * found.base_on_kept
        joined += (1 - found.coverage) * found.expert_on_queried
        assert abs(found.accuracy - joined) < 1e-12
        assert found.accuracy == np.where(queried, expert, base).mean()
    kept = curves.breakdown(np.zeros(500, bool), base, expert)
    assert kept == (1.0, base.mean(), base.mean(), 0.0)
    asked = curves.breakdown(np.ones(500, bool), base, expert)
    assert asked == (0.0, expert.mean(), 0.0, expert.mean())


@pytest.mark.parametrize("ties", [0.0, 0.3, 0.9])
def test_threshold_is_the_smallest_feasible_coverage(ties):
    scores, _, _ = case(ties=ties)
    values, counts = np.unique(scores, return_counts=True)
    for target in [*np.linspace(0.001, 0.999, 97), 0.5, 0.7, 250 / 500, 350 / 500]:
        threshold = calibrated_threshold(scores, target)
        coverage = np.mean(scores <= threshold)
        assert threshold in values
        assert 0 <= coverage - target < counts[values == threshold][0] / len(scores)
    assert calibrated_threshold(scores, 0.0) == -np.inf
    assert calibrated_threshold(scores, 1.0) == np.inf


def test_label_oracle_reaches_its_closed_form_and_nothing_lies_outside_the_bounds():
    for seed in range(20):
        scores, base, expert = case(seed, examples=120)
        shares = Shares.of(base, expert)
        gain = expert.astype(float) - base
        oracle = accuracy_coverage(gain, base, expert)
        worst = accuracy_coverage(-gain, base, expert)
        for queries in np.linspace(0, 1, 61):
            best = curves.label_oracle(queries, shares)
            least = curves.worst_case(queries, shares)
            assert abs(best - oracle.accuracy_at(1 - queries)) < 1e-12
            assert abs(least - worst.accuracy_at(1 - queries)) < 1e-12
        curve = accuracy_coverage(scores, base, expert)
        queries = 1 - curve.coverage
        assert (curve.accuracy <= curves.label_oracle(queries, shares) + 1e-12).all()
        assert (curve.accuracy >= curves.worst_case(queries, shares) - 1e-12).all()


def test_agreement_oracle_is_as_good_as_the_expert_where_they_agree():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    base = np.where(rng.random(400) < 0.6, labels, rng.integers(0, 3, 400))
    expert = np.where(rng.random(400) < 0.8, labels, rng.integers(0, 3, 400))
    differ = (base != expert).astype(float)
    curve = accuracy_coverage(differ, base == labels, expert == labels)
    agreed = np.mean(base == expert)
    for coverage in (0.0, agreed / 2, agreed):
        assert curve.accuracy_at(coverage) == np.mean(expert == labels)


def test_increasing_maps_of_the_scores_change_nothing():
    scores, base, expert = case()
    plain = accuracy_coverage(scores, base, expert)
    for changed in (np.exp(scores.astype(float)), 3 * scores + 7, scores.astype(float) ** 3):
        found = accuracy_coverage(changed, base, expert)
        np.testing.assert_array_equal(found.kept, plain.kept)
        np.testing.assert_array_equal(found.hits, plain.hits)


def test_area_is_the_mean_accuracy_over_coverages():
    _, base, expert = case()
    chance = accuracy_coverage(np.zeros(500), base, expert)
    assert chance.area == pytest.approx((base.mean() + expert.mean()) / 2, abs=1e-12)
    scores = np.arange(500.0)
    curve = accuracy_coverage(scores, base, expert)
    fine = np.linspace(0, 1, 50_001)
    assert curve.area == pytest.approx(curve.accuracy_at(fine).mean(), abs=1e-4)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match=r"1 of 2 query scores are NaN, .* example 1"):
        accuracy_coverage(np.array([0.0, np.nan]), np.ones(2, bool), np.ones(2, bool))
    with pytest.raises(DataError, match="no query scores"):
        accuracy_coverage(np.array([]), np.array([], bool), np.array([], bool))
