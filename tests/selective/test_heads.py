"""Heads for all trade-offs at once on frozen features."""

import jax
import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.selective import heads, metrics, one_sided


def features(n=1500, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=[0.2, 0.3, 0.5])
    means = np.random.default_rng(1).normal(0, 1, (3, 5))
    scale = np.array([1.0, 100.0, 0.01, 1.0, 1.0])  # of units that differ
    return ((means[labels] + rng.normal(size=(n, 5))) * scale + 3).astype(np.float32), labels


MUS = (0.25, 1.0, 4.0)


@pytest.fixture(scope="module")
def trained():
    inputs, labels = features()
    options = {"num_classes": 3, "num_steps": 600, "learning_rate": 0.03}
    return heads.train_heads(inputs, labels, MUS, jax.random.key(0), **options)


@pytest.mark.slow
def test_heads_trade_sides_as_the_trade_off_says(trained):
    inputs, labels = features()
    scores = np.asarray(heads.head_scores(trained, inputs))
    assert scores.shape == (3, 1500, 3)
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)
    sides = [one_sided.class_losses(np.log(s), labels) for s in scores]
    inside = [float(s.inside.sum()) for s in sides]
    outside = [float(s.outside.sum()) for s in sides]
    assert inside == sorted(inside)
    assert outside == sorted(outside, reverse=True)
    # Each is the best of the three at its own trade-off.
    values = np.array([[i + mu * o for i, o in zip(inside, outside, strict=True)] for mu in MUS])
    np.testing.assert_array_equal(values.argmin(1), [0, 1, 2])


@pytest.mark.slow
def test_heads_generalise_and_reject_errors(trained):
    inputs, labels = features(seed=5)
    scores = np.asarray(heads.head_scores(trained, inputs))[1]
    wrong = scores.argmax(-1) != labels
    assert wrong.mean() < 0.35
    found = metrics.at_coverage(scores.max(-1), wrong, 0.5)
    assert found.selective_risk < 0.6 * wrong.mean()


@pytest.mark.slow
def test_one_head_does_not_depend_on_the_others(trained):
    inputs, labels = features()
    options = {"num_classes": 3, "num_steps": 600, "learning_rate": 0.03}
    alone = heads.train_heads(inputs, labels, MUS[1:2], jax.random.key(0), **options)
    expected = heads.head_scores(trained, inputs)[1:2]
    np.testing.assert_allclose(heads.head_scores(alone, inputs), expected, atol=1e-3)


def test_frequencies_are_shares():
    found = heads.class_frequencies(np.array([2, 0, 2, 2]), 4)
    np.testing.assert_array_equal(found, np.float32([0.25, 0, 0.75, 0]))


def test_impossible_heads_are_one_sentence():
    inputs, labels = features(10)
    for bad, sentence in (((), "every mu must be positive"), ((1.0, -1.0), "not \\[1.0, -1.0\\]")):
        with pytest.raises(ConfigError, match=sentence):
            heads.train_heads(inputs, labels, bad, jax.random.key(0), num_classes=3, num_steps=1)
    with pytest.raises(ConfigError, match="no features"):
        heads.train_heads(inputs[:0], [], MUS, jax.random.key(0), num_classes=3, num_steps=1)
