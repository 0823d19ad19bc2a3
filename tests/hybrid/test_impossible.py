"""Numbers that no routing can have, and scores that are NaN, in what plans and prices routings."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.errors import ConfigError, DataError
from jaxeff.hybrid import cascade, cost, curves, proxy
from jaxeff.hybrid.route import Cascade, Stage, checked_thresholds
from jaxeff.models import staged

NAN = float("nan")
RIGHT = np.array([[1, 0, 1, 0], [1, 1, 1, 0]], bool)
SCORES = np.array([[0.1, 0.7, 0.2, 0.9]])
CURVE = curves.accuracy_coverage(SCORES[0], *RIGHT)
SHARES = curves.Shares.of(*RIGHT)
TABLE = cascade.ThresholdTable(SCORES, RIGHT, (1.0, 4.0))
MEASURED = cost.MeasuredCost(4, 1.0, (cost.AffineCost(0.0, 1.0),))

OF_COVERAGE = {
    "accuracy_at": CURVE.accuracy_at,
    "label_oracle": lambda q: curves.label_oracle(q, SHARES),
    "worst_case": lambda q: curves.worst_case(q, SHARES),
    "hybrid_macs": lambda c: cost.hybrid_macs(c, 1.0, 2.0),
    "EdgeCloud": cost.EdgeCloud().milliseconds,
    "MeasuredCost": MEASURED.milliseconds,
    "expected_ms": lambda share: MEASURED.expected_ms((share,)),
    "binomial": lambda share: cost.binomial(4, share),
    "cheapest": lambda accuracy: cost.cheapest(CURVE, MEASURED, accuracy),
    "coverage_penalty": lambda c: proxy.coverage_penalty(SCORES[0], c),
    "smoothing": lambda s: proxy.smoothed_cross_entropy(np.zeros((4, 2)), np.zeros(4, int), s),
}


@pytest.mark.parametrize("name", OF_COVERAGE)
@pytest.mark.parametrize("value", [90, 1.5, -0.1, NAN])
def test_impossible_shares_are_refused(name, value):
    with pytest.raises(ConfigError, match=r"must be in \[0, 1"):
        OF_COVERAGE[name](value)


@pytest.mark.parametrize("name", sorted(set(OF_COVERAGE) - {"smoothing"}))
def test_both_ends_of_the_interval_are_shares(name):
    for value in (0, 0.5):
        OF_COVERAGE[name](value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: cost.within(CURVE, MEASURED, 0.0),
        lambda: cost.within(CURVE, MEASURED, -1.0),
        lambda: cost.within(CURVE, MEASURED, NAN),
        lambda: cost.EdgeCloud(query_ms=-1.0),
        lambda: cost.EdgeCloud(ms_per_mj=0.0),
        lambda: TABLE.best(budget=NAN),
        lambda: TABLE.best(budget=-1.0),
        lambda: TABLE.best(price=NAN),
        lambda: cascade.best_pairs(RIGHT, (1.0, 2.0), NAN),
        lambda: cascade.best_pairs(RIGHT, (1.0, 0.0), 2.0),
        lambda: cascade.ThresholdTable(SCORES, RIGHT, (1.0, NAN)),
        lambda: cascade.ThresholdTable(SCORES, RIGHT, (1.0, 4.0), candidates=0),
        lambda: cascade.follow(SCORES, RIGHT, (1.0, 4.0), (NAN,)),
    ],
)
def test_impossible_prices_budgets_and_thresholds_are_refused(call):
    with pytest.raises(ConfigError, match="must be in"):
        call()


def test_a_threshold_for_more_than_everything_warns():
    with pytest.warns(UserWarning, match="share in .* 90 keeps everything, as 1 does"):
        assert curves.calibrated_threshold(SCORES[0], 90) == np.inf
    with pytest.warns(UserWarning, match="-0.1 queries everything, as 0 does"):
        assert curves.calibrated_threshold(SCORES[0], -0.1) == -np.inf
    with pytest.raises(ConfigError, match="not nan"):
        curves.calibrated_threshold(SCORES[0], NAN)


@pytest.mark.parametrize(
    "call",
    [
        lambda scores: curves.calibrated_threshold(scores, 0.5),
        lambda scores: curves.accuracy_coverage(scores, *RIGHT),
        lambda scores: cascade.ThresholdTable(scores[None], RIGHT, (1.0, 4.0)),
        lambda scores: cascade.best_pairs(RIGHT, (1.0, 2.0), 2.0, np.stack([scores, scores])),
    ],
)
def test_no_threshold_is_chosen_on_scores_that_are_nan(call):
    with pytest.raises(DataError, match="1 of 4 query scores are NaN, the first that of example 2"):
        call(np.where(np.arange(4) == 2, np.nan, SCORES[0]))


def test_what_has_no_score_goes_on_to_the_last_stage():
    """Input 2 would be answered rightly by the first stage alone, if its score counted as low."""
    scores = np.array([[0.1, 0.7, np.nan, 0.9]])
    right = np.array([[1, 0, 1, 0], [1, 1, 0, 0]], bool)
    kept = cascade.follow(scores, right, (1.0, 4.0), (np.inf,))
    assert kept.reached == (1.0, 0.25)
    assert kept.accuracy == 0.25


def test_who_is_right_must_be_known_of_every_score():
    with pytest.raises(DataError, match="must all be"):
        curves.accuracy_coverage(SCORES[0], RIGHT[0], RIGHT[1][:3])


@pytest.mark.parametrize(
    "right", [np.array([1.0, NAN, 1, 0]), RIGHT[0].astype(str), RIGHT[0] * 2, RIGHT[0] * -1]
)
def test_who_is_right_is_true_or_false(right):
    for call in (
        lambda: curves.accuracy_coverage(SCORES[0], right, RIGHT[1]),
        lambda: curves.Shares.of(RIGHT[0], right),
        lambda: curves.breakdown(right, *RIGHT),
    ):
        with pytest.raises(DataError, match="true or false"):
            call()


def test_a_breakdown_is_of_as_many_examples_everywhere():
    for queried in (RIGHT[0][:1], RIGHT[0][:0], RIGHT):
        with pytest.raises(DataError, match="the same examples"):
            curves.breakdown(queried, *RIGHT)
    with pytest.raises(DataError, match="the same examples"):
        curves.Shares.of([], [])


def test_text_is_no_number():
    for call in (
        lambda: curves.calibrated_threshold(SCORES[0], "0.5"),
        lambda: TABLE.best(price="0.1"),
        lambda: CURVE.accuracy_at("0.5"),
    ):
        with pytest.raises(ConfigError, match="must be a number in"):
            call()
    with pytest.raises(DataError, match="query scores must be numbers"):
        curves.calibrated_threshold(SCORES[0].astype(str), 0.5)


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.5)])
def test_a_cascade_is_followed_by_a_threshold_for_every_stage_but_the_last(thresholds):
    with pytest.raises(ConfigError, match="2 stages need"):
        cascade.follow(SCORES, RIGHT, (1.0, 4.0), thresholds)
    assert cascade.follow(SCORES.tolist(), RIGHT.tolist(), (1.0, 4.0), (0.5,)).accuracy == 0.75


def _stage(width: int) -> Stage:
    def call(weight, payload):
        first = payload["inputs"][:, :1]
        return first * weight + jnp.zeros(width), first[:, 0], payload

    return Stage(call, jnp.ones(()))


@pytest.mark.parametrize("widths", [(3, 1), (1, 3), (3, 4)])
def test_stages_answer_with_the_same_classes(widths):
    """An output of one column would otherwise be spread over all classes."""
    stages = [_stage(width) for width in widths]
    with pytest.raises(ConfigError, match="same classes"):
        Cascade(stages, (-np.inf,))({"inputs": np.ones((4, 2), np.float32)}, np.ones(4, bool))
    with pytest.raises(ConfigError, match="same classes"):
        staged.StagedModel(stages, (0.5,)).collect(np.ones((4, 2), np.float32))


@pytest.mark.parametrize("limit", [-1, 2.5, "2", True])
def test_a_limit_is_a_number_of_rows(limit):
    with pytest.raises(ConfigError, match="a limit of rows must be a whole number"):
        Cascade([_stage(3), _stage(3)], (0.0,), (limit,))


def test_what_a_cascade_is_made_of_is_told():
    with pytest.raises(ConfigError, match="batch_size must be a whole number"):
        staged.StagedModel([_stage(3)], (), batch_size=2.5)
    with pytest.raises(ConfigError, match="at least one classifier"):
        staged.cascade([])
    with pytest.raises(ConfigError, match="one number each"):
        checked_thresholds([[0.5]])
