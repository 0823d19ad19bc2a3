"""Retention vectors: ranks, what they leave of a network, and the plans they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_cases import SHAPE

from jaxeff.models import MODELS
from jaxeff.models.encoder_space import EncoderSpace
from jaxeff.search import retention

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 20, (4, 9)).astype(np.int32)
MASK = (np.arange(9) < np.array([[9], [6], [3], [1]])).astype(np.float32)


@pytest.fixture(scope="module", params=[0, 1])
def network(request):
    spec = {"name": "encoder_supernet", "shape": SHAPE, "depths": (1, 3), "kind": "mean"}
    model = MODELS.build({**spec, "keep_first": request.param}, num_outputs=3)
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    params = jax.tree.map(
        lambda p: p + jnp.asarray(0.5 * RNG.normal(size=p.shape), p.dtype), variables["params"]
    )
    found = jax.jit(lambda v, x, mask: retention.logits_of(model, params, v, x, mask))
    return model, params, found


def test_significance_leaves_out_what_a_token_pays_to_itself():
    shares = RNG.dirichlet(np.ones(4), (2, 3, 4))
    weight = np.array([[1, 1, 1, 1], [1, 0.5, 1, 0]])
    wanted = np.zeros((2, 4))
    for b in range(2):
        for head in range(3):
            for query in range(4):
                for key in range(4):
                    if key != query:
                        wanted[b, key] += weight[b, query] * shares[b, head, query, key]
    found = retention.significance(jnp.asarray(shares), jnp.asarray(weight))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_most_significant_tokens_have_the_first_entries():
    weight = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    scores = jnp.array([[0.2, 0.1, 0.5, 0.9]])
    vector = jnp.array([1.0, 0.5, 0.25, 0.125])
    found = retention.scaled(weight, scores, vector)
    np.testing.assert_allclose(found, [[0.5, 0.25, 1.0, 0.0]])
    found = retention.scaled(weight, scores, vector, keep_first=2)
    np.testing.assert_allclose(found, [[1.0, 0.5, 0.25, 0.0]])


@pytest.mark.slow
def test_keeping_everything_is_the_full_network(network):
    model, params, found = network
    full = retention.full(model.space, 12)  # longer than these sequences
    wanted = model.apply({"params": params}, TOKENS, mask=MASK)
    np.testing.assert_allclose(found(full, TOKENS, MASK), wanted, atol=1e-5)


@pytest.mark.slow
def test_nothing_kept_is_the_network_without_the_token(network):
    """Against layers applied by hand, each to the tokens that are left."""
    model, params, found = network
    keep, kept = model.space.keep_first, (6, 3)
    vectors = np.zeros((2, 9), np.float32)
    for place, number in enumerate(kept):
        vectors[place, :number] = 1
    outputs = found(jnp.asarray(vectors), TOKENS, MASK)
    for row, mask in zip(range(4), MASK, strict=True):
        weight = jnp.ones((1, int(mask.sum())))
        states = {}

        def between(number, tokens, weight, shares, states=states):
            # Gathers, so that the next layer does not see the others at all.
            scores = np.array(retention.significance(shares, weight)[0])
            scores[:keep] = np.inf
            order = np.sort(np.argsort(-scores)[: kept[number - 1]])
            states[number] = len(order)
            return tokens[:, order], weight[:, order]

        encoder = model.encoder.clone(between=between, parent=None)
        tokens = TOKENS[row : row + 1, : weight.shape[1]]
        final = encoder.apply({"params": params["encoder"]}, tokens)
        layer = params["classifier"]
        wanted = model.pooled(*final) @ layer["kernel"] + layer["bias"]
        np.testing.assert_allclose(outputs[row], wanted[0], rtol=1e-4, atol=1e-5)
        assert states[2] == min(3, weight.shape[1])


def test_masses_count_later_layers_more():
    vectors = jnp.stack([jnp.full(4, 0.25), jnp.full(4, 1.0)])
    assert float(retention.mass(vectors)) == pytest.approx((1 * 0.25 + 2 * 1.0) / 3)


def vectors(*lengths, full=24):
    return np.stack([(np.arange(full) < length).astype(float) for length in lengths])


@pytest.mark.parametrize(
    ("lengths", "depth", "cuts"),
    [
        ((24, 24, 24), 4, ()),
        ((12, 12, 12), 4, ((1, 2),)),
        ((12, 24, 4), 4, ((1, 2), (3, 3))),  # no length grows again
        ((24, 8, 1), 4, ((2, 3), (3, 4))),  # 24 is beyond the largest factors
        ((24, 8, 1), 3, ((2, 3),)),
        ((17.6, 24, 24), 4, ()),  # nearer to 24 than to 12, by ratio
        ((16.5, 24, 24), 4, ((1, 2),)),
    ],
)
def test_plans_have_the_nearest_lengths(lengths, depth, cuts):
    space = EncoderSpace((2, 3, 4), (2, 3, 4), 3)
    kept = vectors(*lengths)
    kept[0] = lengths[0] / 24  # a mass need not be of whole entries
    assert retention.plan_of(space, kept, depth) == space.plan(depth, cuts)


def test_of_too_many_cuts_the_largest_stay():
    space = EncoderSpace((4,), (2, 4), 1)
    assert retention.plan_of(space, vectors(12, 12, 3), 4) == space.plan(4, ((3, 4),))
