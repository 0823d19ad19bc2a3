"""Impossible targets, labels that no class has, and scores that are NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.constraints import statistics
from jaxeff.constraints.schedules import level_schedule
from jaxeff.distill import dkd, kd, variant
from jaxeff.errors import ConfigError, DataError
from jaxeff.selective import calibrate, confidence, heads, metrics, online, rules

NAN = float("nan")
ONE = np.linspace(0, 1, 40)
WRONG = np.arange(40) % 5 == 0
CURVE = metrics.risk_coverage(ONE, WRONG)
SCORES = np.array([[[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]])
LABELS = np.array([0, 1, 1, 0])
LOGITS = np.array([[2.0, 0.0], [0.0, 1.0]])
ROUNDS = np.array([[0, -1], [1, 1], [0, 0]]), np.array([0, 1, 1])
KEY = jax.random.key(0)

OF_SHARE = {
    "covering": CURVE.covering,
    "within": lambda e: CURVE.within(e, "joint"),
    "at_error": lambda e: metrics.at_error(ONE, WRONG, e, "selective"),
    "best_aurc": metrics.best_aurc,
    "best_augrc": metrics.best_augrc,
    "quantile": lambda c: calibrate.quantile(ONE, c),
    "plug_in": lambda e: calibrate.plug_in(ONE, WRONG, e),
    "learn_then_test": lambda e: calibrate.learn_then_test(ONE, WRONG, e, "joint"),
    "delta": lambda d: calibrate.learn_then_test(ONE, WRONG, 0.5, "joint", delta=d),
    "conformal": lambda e: calibrate.conformal_risk_control(ONE, WRONG, e),
    "choose_model": lambda e: calibrate.choose_model(ONE[None], WRONG[None], e),
    "choose_coverage": lambda c: calibrate.choose_model(ONE[None], WRONG[None], c, "coverage"),
    "search_per_class": lambda e: rules.search_per_class(SCORES, LABELS, e),
    "decaying": lambda rate: online.decaying(4, rate),
    "play": lambda rate: online.play(*ROUNDS, rate, KEY),
    "play_permuted": lambda rate: online.play_permuted(*ROUNDS, rate, KEY[None]),
    "weighted_target": lambda e: online.weighted_threshold(
        ONE, WRONG, WRONG, np.ones(40), ONE, target=e
    ),
    "weighted_delta": lambda d: online.weighted_threshold(
        ONE, WRONG, WRONG, np.ones(40), ONE, target=0.5, delta=d
    ),
    "weighted_rates": lambda rate: online.weighted_errors(
        ONE, WRONG, WRONG, np.full(40, rate), ONE
    ),
    "hardest": lambda share: statistics.hardest(ONE, ONE, share),
}


@pytest.mark.parametrize("name", OF_SHARE)
@pytest.mark.parametrize("value", [90, 1.5, -0.1, NAN])
def test_impossible_shares_are_refused(name, value):
    with pytest.raises(ConfigError, match=r"must be in [(\[]0, 1[)\]], not"):
        OF_SHARE[name](value)


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: kd(LOGITS, LOGITS, bad),
        lambda bad: dkd(LOGITS, LOGITS, np.array([0, 1]), bad),
        lambda bad: variant(student_temperature=bad),
        lambda bad: confidence.max_logit_p_norm(LOGITS, bad),
        lambda bad: confidence.tune_p_norm(LOGITS, np.array([0, 1]), (1, bad)),
        lambda bad: heads.train_heads(LOGITS, [0, 1], [bad], KEY, num_classes=2, num_steps=1),
    ],
)
@pytest.mark.parametrize("bad", [0.0, -1.0, NAN])
def test_numbers_that_must_be_positive(call, bad):
    with pytest.raises(ConfigError, match=r"must be (positive|in \(0, inf\))"):
        call(bad)


def test_other_impossible_numbers_are_refused():
    for call in (
        lambda: level_schedule(NAN),
        lambda: level_schedule(0.1, (0.2, NAN), 3.0),
        lambda: level_schedule(0.1, 0.2, NAN),
        lambda: calibrate.grid_of(ONE, 0),
        lambda: calibrate.learn_then_test(ONE, WRONG, 0.5, grid=np.array([0.1, NAN])),
        lambda: confidence.tune_p_norm(LOGITS, np.array([0, 1]), ()),
    ):
        with pytest.raises(ConfigError):
            call()


@pytest.mark.parametrize(
    "call",
    [
        lambda scores: metrics.risk_coverage(scores, WRONG),
        lambda scores: metrics.aurc(scores, WRONG),
        lambda scores: metrics.aurc_of_prefixes(scores, WRONG),
        lambda scores: metrics.augrc(scores, WRONG),
        lambda scores: metrics.at_coverage(scores, WRONG, 0.5),
        lambda scores: calibrate.quantile(scores, 0.5),
        lambda scores: calibrate.plug_in(scores, WRONG, 0.5),
        lambda scores: calibrate.learn_then_test(scores, WRONG, 0.5),
        lambda scores: calibrate.conformal_risk_control(scores, WRONG, 0.5),
        lambda scores: calibrate.grid_of(scores),
    ],
)
def test_no_threshold_is_chosen_on_confidences_that_are_nan(call):
    scores = np.where(np.arange(40) == 7, np.nan, ONE)
    with pytest.raises(DataError, match=r"1 of the confidences .* first that of example 7; leave"):
        call(scores)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("rule", [rules.max_rule, rules.unique_rule])
def test_rules_abstain_where_a_score_is_nan(xp, rule):
    """Class 0 passes everywhere, and is alone in that in the first two rows."""
    scores = xp.asarray([[0.9, 0.1], [0.9, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(rule(scores, 0.5), [0, -1, -1])
    np.testing.assert_array_equal(jax.jit(rule)(jnp.asarray(scores), 0.5), [0, -1, -1])
    assert rules.overlap(np.array([[0.9, 0.8], [np.nan, 0.8]]), 0.5) == 0.5


def test_the_online_learners_experts_abstain_where_a_score_is_nan():
    scores = jnp.asarray(SCORES).at[0, 2, 0].set(jnp.nan)
    found = online.experts(scores, jnp.asarray([0.0, 0.5]))
    np.testing.assert_array_equal(found, [[0, 0], [1, 1], [-1, -1], [1, 1]])


@pytest.mark.parametrize("name", confidence.OF_LOGITS)
@pytest.mark.parametrize("xp", [np, jnp])
def test_confidences_of_nan_reach_no_threshold(name, xp):
    for row in ([np.nan, 0.0, 1.0], [np.nan] * 3, [np.inf, np.inf, 0.0]):
        assert not confidence.OF_LOGITS[name](xp.asarray([row])) >= -xp.inf
    assert not confidence.max_logit_p_norm(xp.asarray([[np.nan, 0.0, 1.0]]), 3) >= -xp.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda labels: rules.rates(np.array([0, 1, -1, 0]), labels),
        lambda labels: rules.search_per_class(SCORES, labels, 0.1),
        lambda labels: heads.train_heads(SCORES[0], labels, [1.0], KEY, num_classes=2, num_steps=1),
        lambda labels: heads.class_frequencies(labels, 2),
        lambda labels: online.play(np.zeros((4, 2), int), labels, 0.1, KEY),
        lambda labels: online.play_permuted(np.zeros((4, 2), int), labels, 0.1, KEY[None]),
        lambda labels: online.regret(np.zeros(4, int), np.zeros((4, 2), int), labels),
    ],
)
@pytest.mark.parametrize("labels", [[0, 1, -3, 0], [0.0, 1.0, 1.0, 0.0], np.eye(4)])
def test_labels_that_no_class_has_are_refused(call, labels):
    with pytest.raises(
        (ConfigError, DataError), match=r"must be (the num|integers|one num|.models)"
    ):
        call(np.asarray(labels))


def test_labels_beyond_the_classes_and_of_other_lengths_are_refused():
    for labels in ([0, 1, 7, 0], [0, 1, 1]):
        with pytest.raises(DataError, match="must be"):
            heads.train_heads(SCORES[0], labels, [1.0], KEY, num_classes=2, num_steps=1)
        with pytest.raises((ConfigError, DataError), match="must be"):
            rules.search_per_class(SCORES, labels, 0.1)
    with pytest.raises(DataError, match="must be true or false"):
        metrics.rates(np.array([1, 0]), np.array([0.5, 2.0]))
    with pytest.raises(ConfigError, match="one for each of the rounds"):
        online.play(*ROUNDS, np.full(2, 0.1), KEY)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool, object])
def test_confidences_of_every_kind_of_number_rank_like_real_ones(kind):
    """Counts of votes, such as unsigned ones, whose negatives wrap around."""
    votes = np.array([1, 0, 1, 1, 0, 0]) if kind is bool else np.array([5, 0, 3, 4, 2, 1])
    mistakes = np.array([0, 1, 0, 0, 0, 1], bool)
    for area in (metrics.augrc, metrics.aurc, metrics.aurc_of_prefixes):
        assert area(votes.astype(kind), mistakes) == area(votes.astype(float), mistakes)
    assert calibrate.quantile(votes.astype(kind), 0.5).value == (1 if kind is bool else 3)


def test_confidences_that_are_text_are_refused():
    with pytest.raises(DataError, match="confidences must be numbers"):
        metrics.augrc(ONE.astype(str), WRONG)


@pytest.mark.parametrize("name", list(confidence.OF_LOGITS))
def test_logits_may_be_lists_or_whole_numbers_and_rule_classes_out(name):
    score = confidence.OF_LOGITS[name]
    whole = [[1, 2, 0], [3, 0, 1]]
    wanted = score(np.array(whole, float))
    np.testing.assert_allclose(score(whole), wanted)
    np.testing.assert_allclose(score(np.array(whole, np.uint8)), wanted)
    ruled_out = np.array([[1.0, 2.0, -np.inf]])
    np.testing.assert_allclose(score(ruled_out), score(ruled_out[:, :2]))


def test_the_gradient_of_an_entropy_does_not_see_classes_that_are_ruled_out():
    found = jax.grad(lambda z: confidence.entropy(z).sum())(jnp.array([[1.0, 2.0, -jnp.inf]]))
    wanted = jax.grad(lambda z: confidence.entropy(z).sum())(jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(found[:, :2], wanted, rtol=1e-5)
    assert found[0, 2] == 0


def test_a_margin_needs_two_classes():
    with pytest.raises(ConfigError, match="two classes"):
        confidence.margin(np.ones((3, 1)))


def test_rules_take_scores_in_lists():
    scores = [[0.9, 0.8], [0.2, 0.6], [NAN, 0.9]]
    assert rules.max_rule(scores, 0.5).tolist() == [0, 1, rules.ABSTAIN]
    assert rules.unique_rule(scores, 0.5).tolist() == [rules.ABSTAIN, 1, rules.ABSTAIN]


def test_a_grid_lies_between_finite_confidences():
    np.testing.assert_array_equal(
        calibrate.grid_of(np.r_[-np.inf, ONE, np.inf], 5), calibrate.grid_of(ONE, 5)
    )
    with pytest.raises(DataError, match="all confidences are infinite"):
        calibrate.grid_of(np.array([np.inf, -np.inf]), 5)
