"""Confidences: recorded numbers, closed forms, and the same function under NumPy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.selective import confidence, metrics


def logits(n=200, classes=5, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (n, classes))


def test_entropies_are_those_recorded(recorded):
    found = confidence.entropy(np.asarray(recorded[0]))[:4]
    expected = [1.31510566, 1.33798894, 1.28144010, 1.33354962]
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_closed_forms_of_probabilities():
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])
    z = np.log(np.maximum(p, 1e-300)) + 7.0
    np.testing.assert_allclose(confidence.softmax_response(z), [0.7, 0.5])
    np.testing.assert_allclose(confidence.margin(z), [0.5, 0.0], atol=1e-15)
    np.testing.assert_allclose(confidence.negative_entropy(z)[1], -np.log(2))
    np.testing.assert_allclose(confidence.not_abstaining(z), [0.9, 1.0])
    np.testing.assert_allclose(confidence.selection_probability(np.array([0.0, -800])), [0.5, 0])


@pytest.mark.parametrize("power", [1, 2.5, 40])
def test_p_norm_is_the_formula_and_does_not_know_scale_or_shift(power):
    z = logits()
    centred = z - z.mean(-1, keepdims=True)
    formula = centred.max(-1) / (np.abs(centred) ** power).sum(-1) ** (1 / power)
    found = confidence.max_logit_p_norm(z, power)
    np.testing.assert_allclose(found, formula, rtol=1e-12)
    np.testing.assert_allclose(confidence.max_logit_p_norm(1e3 * z + 5, power), found, rtol=1e-9)
    assert (confidence.max_logit_p_norm(np.ones((2, 3)), power) == 0).all()
    single = confidence.max_logit_p_norm((1e3 * z).astype(np.float32), power)  # must not overflow
    np.testing.assert_allclose(single, found, rtol=1e-4)


def test_tuned_power_has_the_smallest_area_or_falls_back():
    z = logits(600)
    scale = np.random.default_rng(1).lognormal(0, 2, (600, 1))  # breaks the softmax's confidence
    z[:, 0] += 2
    wrong = np.random.default_rng(2).random(600) > confidence.max_logit_p_norm(z, 2)
    power = confidence.tune_p_norm(z * scale, wrong)
    areas = [
        metrics.augrc(confidence.max_logit_p_norm(z * scale, p), wrong) for p in confidence.POWERS
    ]
    assert power == confidence.POWERS[int(np.argmin(areas))]
    broken = metrics.augrc(confidence.softmax_response(z * scale), wrong)
    assert min(areas) < 0.9 * broken
    # Where the softmax orders the mistakes perfectly, nothing is better.
    right = confidence.softmax_response(z)
    assert confidence.tune_p_norm(z, right < np.median(right)) is None
    np.testing.assert_array_equal(confidence.p_norm_or_response(z, None), right)
    np.testing.assert_array_equal(
        confidence.p_norm_or_response(z, 3), confidence.max_logit_p_norm(z, 3)
    )


@pytest.mark.parametrize(
    "function",
    [
        *confidence.OF_LOGITS.values(),
        confidence.not_abstaining,
        confidence.selection_probability,
        lambda z: confidence.max_logit_p_norm(z, 3),
    ],
)
def test_numpy_and_jax_agree_and_keep_the_type(function):
    z = logits().astype(np.float32)
    there, here = jax.jit(function)(jnp.asarray(z)), function(z)
    assert here.dtype == there.dtype == np.float32
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)
    assert function(z.astype(np.float64)).dtype == np.float64


def test_abstention_needs_a_class_beside_it():
    with pytest.raises(ConfigError, match="at least one class"):
        confidence.not_abstaining(np.zeros((3, 1)))
