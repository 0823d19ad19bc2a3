"""Relaxed networks: a draw is the short network itself, and its latency is expected exactly."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_cases import SHAPE

from jaxeff.models import MODELS
from jaxeff.models.encoder_space import EncoderSpace
from jaxeff.search import relaxed
from jaxeff.search.latency import LatencyTable, needed

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 20, (5, 11)).astype(np.int32)
MASK = (np.arange(11) < np.array([[11], [7], [3], [1], [10]])).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_draw_is_the_short_network(keep):
    spec = {
        "name": "encoder_supernet",
        "shape": {**SHAPE, "layers": 4},
        "depths": (1, 4),
        "kind": "mean",
    }
    model = MODELS.build({**spec, "keep_first": keep, "max_cuts": 3}, num_outputs=3)
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    params = jax.tree.map(
        lambda p: p + jnp.asarray(0.3 * RNG.normal(size=p.shape), p.dtype), variables["params"]
    )
    draw = jax.jit(lambda c: relaxed.logits_of(model, params, c, TOKENS, MASK))
    space = model.space
    chosen = [
        space.full,
        space.plan(1),
        space.plan(4, ((1, 3), (3, 2))),
        space.plan(4, ((1, 2), (2, 4))),
        space.plan(4, ((1, 2), (2, 2), (3, 2))),
    ]
    for plan in chosen:
        found = draw(relaxed.one_hot(space, plan))
        network = model.subnetwork(plan)
        wanted = jax.jit(lambda n=network: n.apply({"params": params}, TOKENS, mask=MASK))()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


SPACE = EncoderSpace((1, 2, 3), (2, 3), 2)


def table():
    layers, cuts = needed(SPACE.plans, 12)
    return LatencyTable(
        *(1, 12, 0.7),
        {s: 0.1 * s[0] ** 1.5 for s in layers},
        {c: 0.01 * c[0] + c[1] for c in cuts},
        stack=1,
        uncached=0.2,
    )


def test_latencies_are_expected_exactly():
    """Against all draws with their probabilities; with two places no draw has too many cuts."""
    rng = np.random.default_rng(1)
    shares = {"factors": rng.dirichlet(np.ones(3), 2), "depth": rng.dirichlet(np.ones(3))}
    found = jax.jit(lambda p: relaxed.expected_latency(table(), SPACE, p))(shares)
    wanted = 0.0
    for depth, first, second in itertools.product(range(3), repeat=3):
        chance = shares["depth"][depth] * shares["factors"][0, first] * shares["factors"][1, second]
        own = (1, *SPACE.factors)
        cuts = [(place, own[k]) for place, k in ((1, first), (2, second)) if k]
        plan = SPACE.plan(depth + 1, [cut for cut in cuts if cut[0] <= depth])
        wanted += chance * table()(plan)
    assert float(found) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_draws_follow_the_probabilities_and_carry_gradients():
    logits = {"factors": jnp.array([[0.0, 1.0, -1.0]]), "depth": jnp.array([0.5, 0.0])}
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.jit(jax.vmap(lambda k: relaxed.drawn(logits, k, 0.7)))(keys)
    for name, own in found.items():
        np.testing.assert_allclose(own.max(-1), 1, atol=1e-6)
        np.testing.assert_allclose(own.mean(0), jax.nn.softmax(logits[name]), atol=0.03)

    def value(logits):
        return relaxed.drawn(logits, keys[0], 0.7)["depth"] @ jnp.array([1.0, 3.0])

    grads = jax.jit(jax.grad(value))(logits)
    assert float(grads["depth"][1]) > 0 > float(grads["depth"][0])


def test_plans_of_distributions():
    factors = np.array([[0.1, 0.6, 0.3], [0.0, 0.1, 0.9]])
    shares = {"factors": factors, "depth": np.array([0.1, 0.2, 0.7])}
    assert relaxed.likeliest(SPACE, shares) == SPACE.plan(3, ((1, 2), (2, 3)))
    few = EncoderSpace((1, 2, 3), (2, 3), 1)
    assert relaxed.likeliest(few, shares) == few.plan(3, ((2, 3),))
    shallow = {**shares, "depth": np.array([0.1, 0.9, 0.0])}
    assert relaxed.likeliest(SPACE, shallow) == SPACE.plan(2, ((1, 2),))
    rng = np.random.default_rng(0)
    plans = [relaxed.drawn_plan(few, shares, rng) for _ in range(300)]
    assert all(plan in few for plan in plans)
    assert np.mean([plan.depth == 3 for plan in plans]) == pytest.approx(0.7, abs=0.1)
