"""Online selective classification: who is dropped, exact limits, regret and weighted errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.selective import online
from jaxeff.selective.rules import ABSTAIN

KEY = jax.random.key(0)


def stream(time=300, experts=12, seed=0):
    """Experts of which the first never errs and abstains on a third of the rounds."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, time)
    wrong = rng.random((time, experts)) < np.linspace(0.02, 0.4, experts)
    predictions = np.where(wrong, (labels[:, None] + 1) % 3, labels[:, None])
    predictions[rng.random((time, experts)) < 0.15] = ABSTAIN
    predictions[:, 0] = np.where(rng.random(time) < 1 / 3, ABSTAIN, labels)
    return jnp.asarray(predictions), jnp.asarray(labels)


@functools.partial(jax.jit, static_argnames=("tolerance", "feedback"))
def trace(predictions, labels, rate, **options):
    """Learners before every round, what happened, and the learner at the end."""

    def one(learner, inputs):
        new, happened = online.step(learner, *inputs, **options)
        return new, (learner, happened)

    time, experts = predictions.shape
    rates = jnp.full(time, rate, jnp.float32)
    keys = jax.random.split(KEY, time)
    return jax.lax.scan(one, online.start(experts), (predictions, labels, rates, keys))


@pytest.mark.parametrize("feedback", online.FEEDBACKS)
def test_mistaken_experts_are_dropped_at_their_first_observed_mistake(feedback):
    predictions, labels = stream()
    end, (before, happened) = trace(predictions, labels, 0.2, feedback=feedback)
    seen = np.asarray(happened.explored)
    if feedback == "abstention":
        seen = np.asarray(happened.actions) == ABSTAIN
    wrong = (predictions != ABSTAIN) & (predictions != labels[:, None])
    observed = np.cumsum(np.asarray(wrong) & seen[:, None], 0)
    after = np.vstack([np.asarray(before.log_weights)[1:], np.asarray(end.log_weights)[None]])
    np.testing.assert_array_equal(np.isneginf(after), observed > 0)
    assert np.isfinite(after[:, 0]).all()
    assert np.isneginf(after[-1]).sum() > 6
    assert end.feedbacks == seen.sum()
    np.testing.assert_array_equal(end.mistakes, observed[-1])
    np.testing.assert_allclose(np.exp(after).sum(1), 1, rtol=1e-5)


def test_played_experts_are_alive_and_followed():
    predictions, labels = stream()
    _, (before, happened) = trace(predictions, labels, 0.2)
    alive = np.isfinite(np.asarray(before.log_weights))
    played = np.asarray(happened.actions)
    offered = (np.asarray(predictions) == played[:, None]) & alive
    assert (offered.any(1) | np.asarray(happened.explored)).all()
    np.testing.assert_array_equal(
        happened.mistakes, (played != ABSTAIN) & (played != np.asarray(labels))
    )


def test_abstaining_costs_weight():
    predictions = jnp.tile(jnp.array([ABSTAIN, 1, 1]), (10, 1))
    labels = jnp.ones(10, int)
    end, _ = trace(predictions, labels, 0.3)
    weights = np.exp(np.asarray(end.log_weights))
    assert weights[0] / weights[1] == pytest.approx(0.7**10, rel=1e-4)
    assert weights[1] == weights[2]


def test_tolerance_drops_above_its_bound():
    predictions = jnp.tile(jnp.array([1, 0]), (200, 1))
    labels = jnp.asarray(np.random.default_rng(1).random(200) < 0.2, int)
    end, (before, _) = trace(predictions, labels, 0.5, tolerance=0.3)
    n = np.asarray(before.feedbacks)[1:]
    bound = n * 0.3 + np.sqrt(2 * n * 0.3)
    over = np.asarray(before.mistakes)[1:, 0] > bound
    first = np.argmax(over)
    assert over.any()
    weights = np.asarray(before.log_weights)[1:, 0]
    assert np.isfinite(weights[:first]).all()
    assert np.isneginf(weights[first:]).all()
    assert np.isfinite(np.asarray(end.log_weights)[1])


def test_where_everybody_would_be_dropped_the_round_is_forgotten():
    predictions, labels = jnp.zeros((20, 3), int), jnp.ones(20, int)
    end, _ = trace(predictions, labels, 0.5)
    assert end.feedbacks == 0
    assert (end.mistakes == 0).all()
    np.testing.assert_allclose(np.exp(np.asarray(end.log_weights)), 1 / 3, rtol=1e-5)


def test_exploring_always_abstains_always():
    predictions, labels = stream()
    learner, happened = online.play(predictions, labels, 1.0, KEY)
    assert not happened.mistakes.any()
    assert (happened.actions == ABSTAIN).all()
    assert happened.explored.all()
    assert np.isfinite(np.asarray(learner.log_weights)[0])
    assert not np.isnan(np.asarray(learner.log_weights)).any()


def test_experts_are_all_pairs_of_model_and_threshold():
    scores = np.random.default_rng(2).dirichlet(np.ones(3), (4, 50))
    thresholds = np.array([0.2, 0.5, 0.8])
    found = online.experts(jnp.asarray(scores), thresholds)
    assert found.shape == (50, 12)
    for model in range(4):
        for number, t in enumerate(thresholds):
            best = scores[model].argmax(-1)
            expected = np.where(scores[model].max(-1) >= t, best, ABSTAIN)
            np.testing.assert_array_equal(found[:, 3 * model + number], expected)


def test_regret_by_hand():
    labels = jnp.array([0, 0, 0, 0])
    predictions = jnp.array([[0, 0, -1], [1, -1, -1], [0, 0, -1], [0, 0, -1]])
    found = online.regret(jnp.array([0, 1, -1, -1]), predictions, labels)
    # One mistake and two abstentions; the second expert is the best with 0 and 1.
    assert found.mistakes == 1
    assert found.abstentions == 1
    assert found.matched_abstentions == 2  # the first expert errs once and never abstains
    cautious = online.regret(jnp.array([-1, -1, -1, -1]), predictions[:, :1], labels)
    assert cautious.matched_abstentions == 4  # nobody has as few mistakes


def noisy_scores(time, models=30, seed=0):
    """Scores [models, time, 10] of one example each, with sharpness growing with the model."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, time)
    z = rng.normal(0, 1, (time, 10)) + rng.gamma(3, 1.2, (time, 1)) * np.eye(10)[labels]
    sharpness = np.linspace(0.5, 2.0, models)[:, None, None]
    return jax.nn.softmax(sharpness * (z + rng.normal(0, 0.2, (models, time, 10)))), labels


@pytest.mark.slow
@pytest.mark.parametrize("feedback", online.FEEDBACKS)
def test_excess_abstentions_stay_below_the_reference_rate(feedback):
    time, runs = 4000, 20
    scores, labels = noisy_scores(time)
    predictions, labels = online.experts(scores, np.linspace(0.2, 0.95, 20)), jnp.asarray(labels)
    assert predictions.shape == (time, 600)

    @jax.jit
    def play(keys):
        happened, orders = online.play_permuted(
            predictions, labels, online.decaying(time), keys, tolerance=0.005, feedback=feedback
        )
        regret = jax.vmap(lambda a, o: online.regret(a, predictions[o], labels[o]))
        return regret(happened.actions, orders)

    found = play(jax.random.split(KEY, runs))
    assert found.matched_abstentions.shape == (runs,)
    assert found.matched_abstentions.mean() / time <= np.sqrt(2 * np.log(600) / time)


@pytest.mark.slow
def test_permuted_runs_are_plays_of_permutations():
    predictions, labels = stream(60)
    keys = jax.random.split(KEY, 3)
    happened, orders = online.play_permuted(predictions, labels, online.decaying(60), keys)
    assert (np.sort(orders, 1) == np.arange(60)).all()
    assert (orders[0] != orders[1]).any()
    order = orders[1]
    run_key = jax.random.split(keys[1])[1]
    _, alone = online.play(predictions[order], labels[order], online.decaying(60), run_key)
    np.testing.assert_array_equal(alone.actions, happened.actions[1])


def test_exploration_decays_as_the_inverse_root_up_to_its_cap():
    found = online.decaying(400)
    assert found.max() == np.float32(0.1)
    assert (found[:100] == np.float32(0.1)).all()
    np.testing.assert_allclose(found[[143, 399]], [1 / 12, 1 / 20], rtol=1e-6)


def test_weighted_errors_are_unbiased_with_honest_variances():
    rng = np.random.default_rng(4)
    time, runs = 2000, 300
    rates = jnp.asarray(online.decaying(time, 0.5)) + 0.05
    confidence = jnp.asarray(rng.uniform(size=time))
    wrong = jnp.asarray(rng.random(time) > np.asarray(confidence))
    thresholds = jnp.array([0.0, 0.5, 0.9])
    truth = np.array([np.mean(wrong & (confidence >= t)) for t in thresholds])

    @jax.jit
    @jax.vmap
    def estimate(key):
        explored = jax.random.bernoulli(key, rates)
        return online.weighted_errors(confidence, wrong, explored, rates, thresholds)

    means, variances = estimate(jax.random.split(KEY, runs))
    spread = np.asarray(means).std(0)
    np.testing.assert_array_less(np.abs(np.asarray(means).mean(0) - truth), 4 * spread / runs**0.5)
    # The errors are drawn once: their own spread is no part of that over the runs.
    own = np.array([np.var(wrong & (confidence >= t)) for t in thresholds])
    expected = (np.asarray(variances).mean(0) - own) / time
    np.testing.assert_allclose(expected, spread**2, rtol=0.3)


@pytest.mark.slow
def test_a_threshold_in_use_keeps_its_promise_and_moves_down():
    thresholds, rate, target = jnp.linspace(0, 1, 51), 0.3, 0.05

    @functools.partial(jax.jit, static_argnames="time")
    def choose(keys, time):
        def one(key):
            u, v, w = jax.random.uniform(key, (3, time))
            chosen = online.weighted_threshold(
                u, v > (1 + u) / 2, w < rate, jnp.full(time, rate), thresholds, target=target
            )
            return jnp.minimum(chosen, 1.0)

        return jax.vmap(one)(keys)

    means = []
    for time in (500, 2000, 20_000):
        chosen = np.asarray(choose(jax.random.split(KEY, 200), time))
        assert np.mean((1 - chosen) ** 2 / 4 > target) <= 0.1
        means.append(chosen.mean())
    best = 1 - np.sqrt(4 * target)
    assert means[0] > means[1] > means[2] > best
    assert means[2] < best + 0.1
    nothing = jnp.zeros(10, bool)  # of which nothing can be concluded
    few = online.weighted_threshold(
        jnp.ones(10), nothing, nothing, jnp.ones(10), thresholds, target=target
    )
    assert few == jnp.inf


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"feedback": "never"}, "feedback must be one of exploration, abstention, not 'never'"),
        ({"tolerance": -0.1}, "tolerance must not be negative"),
    ],
)
def test_impossible_play_is_one_sentence(options, sentence):
    predictions, labels = stream(5)
    with pytest.raises(ConfigError, match=sentence):
        online.play(predictions, labels, 0.1, KEY, **options)
