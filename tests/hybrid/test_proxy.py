"""Proxy labels, weights and losses: their definitions, and values of the authors' code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.hybrid import proxy
from tests.helpers import released

pytestmark = pytest.mark.usefixtures("x64")


def case():
    """Logits, labels, gates and router logits of a fixed example, in double precision."""
    i, k = np.arange(8.0)[:, None], np.arange(6.0)[None]
    base = 2 * np.sin(0.7 * i + 1.3 * k) + 0.1 * k
    expert = 2.5 * np.cos(0.9 * i + 1.7 * k + 0.4 * i * k) + 0.2 * k
    labels = np.array([1, 5, 4, 1, 1, 3, 0, 2])
    gate = (np.arange(8) + 1) / 9
    stay = 0.8 * np.sin(1.1 * np.arange(8)) + 0.2
    return tuple(map(jnp.asarray, (base, expert, labels, gate, -stay)))


BASE_RIGHT = np.array([True, True, False, False])
EXPERT_RIGHT = np.array([True, False, True, False])


def test_labels_are_those_of_the_definition():
    query = proxy.query_target(BASE_RIGHT, EXPERT_RIGHT)
    np.testing.assert_array_equal(query, [False, False, True, False])
    np.testing.assert_array_equal(proxy.margin_oracle(BASE_RIGHT, EXPERT_RIGHT), query)
    np.testing.assert_array_equal(proxy.stay_target(BASE_RIGHT, EXPERT_RIGHT), ~query)
    np.testing.assert_array_equal(proxy.upper_oracle(BASE_RIGHT), [False, False, True, True])
    difference = proxy.difference_target(jnp.asarray(BASE_RIGHT), jnp.asarray(EXPERT_RIGHT))
    np.testing.assert_array_equal(difference, [0, -1, 1, 0])


def test_labels_of_the_fixed_example():
    base, expert, labels, _, _ = case()
    np.testing.assert_array_equal(base.argmax(-1), [1, 5, 5, 4, 4, 3, 3, 2])
    np.testing.assert_array_equal(expert.argmax(-1), [4, 3, 4, 1, 1, 4, 5, 0])
    right = proxy.correct(base, labels), proxy.correct(expert, labels)
    np.testing.assert_array_equal(proxy.query_target(*right), [0, 0, 1, 1, 1, 0, 0, 0])
    differ = proxy.agreement_oracle(base.argmax(-1), expert.argmax(-1))
    assert differ.all()
    assert not proxy.agreement_oracle(labels, labels).any()


def test_weights_emphasise_each_models_region_and_are_constants():
    asked = jnp.array([0.0, 1.0, 0.25])
    np.testing.assert_array_equal(proxy.base_weights(asked), [2, 1, 1.75])
    np.testing.assert_array_equal(proxy.expert_weights(asked), [1, 2, 1.25])
    for weights in (proxy.base_weights, proxy.expert_weights):
        np.testing.assert_array_equal(jax.grad(lambda r, w=weights: w(r).sum())(asked), 0)


def test_the_objective_of_the_authors_code_term_by_term():
    base, expert, labels, gate, query = case()
    distillation = dataclasses.replace(released.DISTILLATION, top_k=3)
    terms = jax.jit(lambda *args: released.objective(*args, distillation=distillation))(
        base, expert, labels, query, gate
    )
    expected = {
        "cross_entropy": 3.6183689239,
        "one_sided": 1.9278308310,
        "distillation": 7.6889015303,
        "distillation_budget": 0.8195760545,
        "router": 0.6278163195,
        "coverage": 0.0,
    }
    assert set(terms) == set(expected)
    for name, value in expected.items():
        # The router's term was recorded in single precision, one step of which is 6e-8.
        atol = 1e-7 if name == "router" else 1e-8
        np.testing.assert_allclose(terms[name], value, rtol=0, atol=atol, err_msg=name)
    np.testing.assert_allclose(sum(terms.values()), 14.6824936592, rtol=0, atol=1e-7)
    exact = np.logaddexp(0, query) - query * np.array([0, 0, 1, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(terms["router"], exact.mean(), atol=1e-12)


@pytest.mark.parametrize(
    ("gate", "top_k", "value"),
    [(0.0, 3, 28.3778937773), (1.0, 3, -2.2648613600), (0.0, 6, 30.0238646721)],
)
def test_distillation_at_fixed_gates(gate, top_k, value):
    base, expert, labels, _, _ = case()
    settings = dataclasses.replace(released.DISTILLATION, top_k=top_k)
    loss = jax.jit(settings.loss)(base, expert, labels, jnp.full(8, gate))
    np.testing.assert_allclose(loss.mean(), value, rtol=0, atol=1e-8)
    if top_k == 6:  # a softened cross entropy, of which the divergence is
        target = jax.nn.softmax(expert / 4)
        entropy = -jnp.sum(target * jnp.log(target), -1).mean()
        np.testing.assert_allclose(loss.mean() - 16 * entropy, 2.7025566213, rtol=0, atol=1e-8)


def test_unit_weights_of_the_one_sided_term():
    base, _, labels, _, _ = case()
    value = released.one_sided.objective(base, labels, mu=1.0, form="weighted")
    np.testing.assert_allclose(value, 1.9771210081, rtol=0, atol=1e-8)


def test_weights_stay_with_their_examples():
    base, expert, labels, _, _ = case()
    right = proxy.correct(base, labels), proxy.correct(expert, labels)
    weights = proxy.base_weights(proxy.query_target(*right).astype(base.dtype))
    losses = proxy.smoothed_cross_entropy(base, labels, 0.1)
    np.testing.assert_allclose(
        proxy.weighted_mean(losses, weights), 3.2114883100, rtol=0, atol=1e-8
    )
    as_released = proxy.weighted_mean(losses, weights, released=True)
    np.testing.assert_allclose(as_released, 3.6183689239, rtol=0, atol=1e-8)


def test_coverage_penalties():
    *_, query = case()
    corrected = proxy.coverage_penalty(query, 0.7)
    np.testing.assert_allclose(corrected, 0.1256791975, rtol=0, atol=1e-8)
    assert proxy.coverage_penalty(query, 0.7, form="printed") == 0
    assert proxy.coverage_penalty(query, 0.7, form="released") == 0
    np.testing.assert_allclose(
        proxy.coverage_penalty(query, 0.5, form="printed"), 0.2 - corrected, atol=1e-12
    )
    np.testing.assert_allclose(
        proxy.coverage_penalty(query, -0.5, form="released"), jnp.mean(-query) + 0.5, atol=1e-12
    )
    with pytest.raises(ConfigError, match="penalty must be one of"):
        proxy.coverage_penalty(query, 0.5, form="other")


def test_the_corrected_penalty_asks_for_more_coverage():
    """Its slope lowers the query logits where too few inputs are kept, the printed one's not."""
    *_, query = case()
    assert (jax.grad(proxy.coverage_penalty)(query, 0.9) > 0).all()

    def printed(query):
        return proxy.coverage_penalty(query, 0.1, form="printed")

    assert (jax.grad(printed)(query) < 0).all()


def test_router_losses_are_the_published_and_the_regression():
    scores = jnp.array([0.3, -2.0])
    queried = jnp.array([True, False])
    chance = 1 / (1 + np.exp(-np.asarray(scores)))
    expected = -np.log([chance[0], 1 - chance[1]])
    np.testing.assert_allclose(proxy.router_losses(scores, queried), expected, atol=1e-12)
    difference = jnp.array([1.0, -1.0])
    squares = proxy.difference_losses(scores, difference)
    np.testing.assert_allclose(squares, [0.49, 1.0], atol=1e-12)
