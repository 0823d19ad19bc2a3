"""Calibrated thresholds: guarantees by simulation, exact counts, and sentences for bad input."""

import numpy as np
import pytest
from scipy.stats import binom

from jaxeff.errors import ConfigError, DataError
from jaxeff.selective import calibrate, metrics

REPEATS, DELTA = 500, 0.1
# Three deviations of the share of violations where it is exactly delta.
MOST = DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / REPEATS)


def draw(rng, n):
    """Confidences u ~ U(0, 1) of answers that are right with probability (1 + u) / 2.

    The selective risk of a threshold t is then (1 - t) / 4 and its joint error (1 - t)^2 / 4.
    """
    u = rng.uniform(size=n)
    return u, rng.random(n) > (1 + u) / 2


TRUE = {"selective": lambda t: (1 - t) / 4, "joint": lambda t: (1 - t) ** 2 / 4}


def simulate(choose, n, target, kind, **options):
    """True errors and coverages of chosen thresholds; nothing is accepted where there is none."""
    rng = np.random.default_rng(0)
    found = np.ones(REPEATS)
    for repeat in range(REPEATS):
        try:
            found[repeat] = choose(*draw(rng, n), target, kind, **options).value
        except DataError:
            continue
    return TRUE[kind](found), 1 - found


@pytest.mark.parametrize(("target", "n"), [(0.1, 1000), (0.05, 2000)])
def test_tested_selective_risks_hold_where_plug_in_ones_do_not(target, n):
    risks, coverage = simulate(calibrate.learn_then_test, n, target, "selective", delta=DELTA)
    assert np.mean(risks > target) <= MOST
    assert coverage.mean() > 0.25 * 4 * target  # not by accepting nothing
    risks, plug_in = simulate(calibrate.plug_in, n, target, "selective")
    assert np.mean(risks > target) > 0.3
    assert plug_in.mean() > coverage.mean()


def test_joint_errors_hold_with_probability_or_on_average():
    target, n = 0.02, 1000
    errors, tested = simulate(calibrate.learn_then_test, n, target, "joint", delta=DELTA)
    assert 0.02 < np.mean(errors > target) <= MOST
    errors, controlled = simulate(calibrate.conformal_risk_control, n, target, "joint")
    assert 0.9 * target < errors.mean() <= target * (1 + 3 / np.sqrt(REPEATS * n * target))
    assert np.mean(errors > target) > 0.3
    assert tested.mean() < controlled.mean()


def test_p_values_are_binomial_tails_and_the_walk_stops_at_the_first_failure():
    confidence, wrong = draw(np.random.default_rng(3), 800)
    confidence, grid = confidence.round(2), np.linspace(0, 1, 21).round(2)  # which meet
    found = calibrate.learn_then_test(confidence, wrong, 0.15, "selective", delta=0.2, grid=grid)
    last = None
    for t in grid[::-1]:
        kept = confidence >= t
        if kept.sum() < 25:
            continue
        if binom.cdf(wrong[kept].sum(), kept.sum(), 0.15) > 0.2:
            break
        last = t
    assert found.value == last
    assert found.rates == metrics.rates(confidence >= last, wrong)
    free = calibrate.plug_in(confidence, wrong, 0.15, "selective").rates.coverage
    assert found.coverage_cost == pytest.approx(free - found.rates.coverage)
    assert found.probability == 0.8
    assert "with probability 0.8 over calibration splits the selective risk" in found.guarantee


def test_thresholds_that_could_not_pass_without_any_error_are_passed_over():
    confidence = np.repeat([0.9, 0.5], [44, 456])  # 0.95^44 is above 0.1, 0.95^45 below it
    wrong = np.r_[np.ones(10, bool), np.zeros(490, bool)]
    assert calibrate.learn_then_test(confidence, wrong, 0.05).value < 0.51
    confidence[44] = 0.9
    with pytest.raises(DataError, match="no threshold keeps"):
        calibrate.learn_then_test(confidence, wrong, 0.05)
    with pytest.raises(DataError, match=r"accepts 230 of the 200 .* show a selective risk of 0.01"):
        calibrate.learn_then_test(confidence[:200], wrong[:200], 0.01)


def test_a_stricter_threshold_that_fails_ends_the_walk():
    confidence = np.repeat([0.9, 0.5], [100, 900])
    wrong = np.r_[np.arange(100) < 30, np.zeros(900, bool)]
    with pytest.raises(DataError, match=r"best possible is 0\.\d+ at coverage 0\.1, with"):
        calibrate.learn_then_test(confidence, wrong, 0.1, "selective")
    sentence = "keeps the selective risk at 0.1 with probability 0.9 with 1000 calibration examples"
    with pytest.raises(DataError, match=sentence) as caught:
        calibrate.learn_then_test(confidence, wrong, 0.1, "selective")
    best = float(str(caught.value).split("possible is ")[1].split(" ")[0])
    assert binom.cdf(30, 100, best) == pytest.approx(0.1, abs=1e-3)
    assert calibrate.plug_in(confidence, wrong, 0.1, "selective").rates.coverage == 1


def test_joint_error_is_tested_over_all_examples_at_all_confidences():
    confidence, wrong = draw(np.random.default_rng(4), 500)
    found = calibrate.learn_then_test(confidence, wrong, 0.05, "joint")
    passing = [
        t for t in confidence if binom.cdf((wrong & (confidence >= t)).sum(), 500, 0.05) <= 0.1
    ]
    assert found.value == min(passing)


def test_conformal_risk_control_is_its_inequality():
    confidence, wrong = draw(np.random.default_rng(5), 300)
    found = calibrate.conformal_risk_control(confidence, wrong, 0.04)
    passing = [t for t in confidence if ((wrong & (confidence >= t)).sum() + 1) / 301 <= 0.04]
    assert found.value == min(passing)
    assert found.probability is None


@pytest.mark.parametrize("coverage", [0.05, 0.5, 0.9, 1.0])
def test_quantile_is_the_smallest_feasible_coverage_without_a_grid(coverage):
    confidence = np.random.default_rng(6).uniform(size=400).round(2)
    found = calibrate.quantile(confidence, coverage)
    _, ties = np.unique(confidence, return_counts=True)
    assert found.rates.coverage == np.mean(confidence >= found.value)
    assert 0 <= found.rates.coverage - coverage < ties.max() / 400
    assert np.isnan(found.rates.joint_error)


def test_coverage_of_new_examples_is_what_the_sentence_says():
    rng = np.random.default_rng(7)
    covered = [1 - calibrate.quantile(rng.uniform(size=20), 0.8).value for _ in range(4000)]
    promised = 0.8 * 20 / 21
    assert f"at least {promised:.4g} on average" in calibrate.quantile(np.ones(20), 0.8).guarantee
    assert promised - 0.005 < np.mean(covered) < 0.8 + 1 / 21


def test_model_and_threshold_are_chosen_together():
    rng = np.random.default_rng(8)
    pairs = [draw(rng, 1000) for _ in range(3)]
    confidence, wrong = np.stack([c for c, _ in pairs]), np.stack([w for _, w in pairs])
    wrong[1] &= rng.random(1000) < 0.5
    number, found = calibrate.choose_model(confidence, wrong, 0.03)
    assert number == 1
    assert found.value == calibrate.plug_in(confidence[1], wrong[1], 0.03).value
    number, found = calibrate.choose_model(confidence, wrong, 0.6, by="coverage")
    assert number == 1
    assert found.rates == metrics.at_coverage(confidence[1], wrong[1], 0.6)
    # Ties go to the first model.
    assert calibrate.choose_model(confidence[[0, 0]], wrong[[0, 0]], 0.03)[0] == 0
    with pytest.raises(DataError, match="no threshold keeps the selective risk"):
        calibrate.choose_model(confidence[:1], np.ones((1, 1000), bool), 0.01, by="selective")


def test_grid_of_another_split_has_even_coverage():
    confidence = np.random.default_rng(9).beta(5, 1, 10_000)
    grid = calibrate.grid_of(confidence, 11)
    coverage = [np.mean(confidence >= t) for t in grid]
    np.testing.assert_allclose(coverage, np.linspace(1, 0, 11), atol=1e-3)


ONE, RIGHT = np.linspace(0, 1, 50), np.zeros(50, bool)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: calibrate.quantile([], 0.5), DataError, "is empty; set config.data.calibration"),
        (lambda: calibrate.plug_in([], [], 0.5), DataError, "is empty; set config.data.calibra"),
        (lambda: calibrate.quantile(ONE, 1.2), ConfigError, r"must be in \(0, 1\], not 1.2"),
        (lambda: calibrate.plug_in(ONE, RIGHT, 1.2), ConfigError, r"error must be in \(0, 1\)"),
        (lambda: calibrate.plug_in(ONE, RIGHT, 0.1, "all"), ConfigError, "kind must be one of"),
        (
            lambda: calibrate.plug_in(ONE, ~RIGHT, 0.01),
            DataError,
            "no threshold keeps the joint error at 0.01 with 50 calibration examples; the best "
            "possible is 0.02 at coverage 0.02, with the threshold 1",
        ),
        (
            lambda: calibrate.conformal_risk_control(ONE, RIGHT, 0.01),
            DataError,
            r"at 0.01 on average with 50 .* best possible is 0.01961 at coverage",
        ),
        (
            lambda: calibrate.conformal_risk_control(ONE, RIGHT, 0.1, "selective"),
            ConfigError,
            "needs an error that falls with the threshold",
        ),
        (
            lambda: calibrate.learn_then_test(ONE, RIGHT, 0.1, delta=0.0),
            ConfigError,
            r"delta must be in \(0, 1\)",
        ),
        (
            lambda: calibrate.learn_then_test(ONE * 2, RIGHT, 0.1),
            ConfigError,
            r"outside \[0, 1\] need a grid",
        ),
        (
            lambda: calibrate.learn_then_test(ONE[:10], RIGHT[:10], 0.1),
            DataError,
            "accepts 25 of the 10 calibration examples, the fewest",
        ),
    ],
)
def test_what_cannot_be_had_is_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
