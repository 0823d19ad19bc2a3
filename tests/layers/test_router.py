"""Routers: what they see of the base, and their sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff import bench
from jaxeff.errors import ConfigError
from jaxeff.layers.router import build
from jaxeff.selective.features import confidence_features, margins


def shapes(name, width, classes, **fields):
    """Router, its variables' shapes and its inputs' shapes."""
    router = build({"name": name, **fields})
    inputs = [jax.ShapeDtypeStruct((1, n), jnp.float32) for n in (classes, width)]
    variables = jax.eval_shape(lambda *x: router.init(jax.random.key(0), *x), *inputs)
    return router, variables, inputs


@pytest.mark.parametrize(
    ("width", "parameters", "macs"), [(1024, 440_033, 433_264), (192, 333_537, 326_768)]
)
def test_released_router_has_the_published_size(width, parameters, macs):
    router, variables, inputs = shapes("released", width, 1000)
    assert bench.count_parameters(variables["params"]) == parameters
    assert bench.count(lambda v, x: router.apply(v, *x), variables, inputs).macs == macs


@pytest.mark.parametrize("width", [8, 64, 1024, 1280, 4096])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_slim_router_stays_small_and_keeps_no_statistics(width, classes):
    router, variables, inputs = shapes("slim", width, classes)
    assert set(variables) == {"params"}
    assert bench.count_parameters(variables["params"]) <= 20_000
    assert bench.count(lambda v, x: router.apply(v, *x), variables, inputs).macs <= 20_000


@pytest.mark.slow
def test_entropies_of_the_fixed_example(x64):
    i, k = np.arange(8.0)[:, None], np.arange(6.0)[None]
    logits = jnp.asarray(2 * np.sin(0.7 * i + 1.3 * k) + 0.1 * k)
    found = confidence_features(logits)[:4, 0]
    np.testing.assert_allclose(
        found, [1.31510566, 1.33798894, 1.28144010, 1.33354962], rtol=0, atol=1e-8
    )


def test_margins_are_differences_of_the_largest_probabilities(x64):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 12)))
    ranked = np.sort(jax.nn.softmax(logits), axis=-1)[:, ::-1][:, :10]
    every = (ranked[:, :, None] - ranked[:, None, :]).reshape(5, 100)
    np.testing.assert_allclose(margins(logits, released=True), every, atol=1e-14)
    slim = margins(logits)
    assert slim.shape == (5, 45)
    assert (slim > 0).all()
    pairs = [ranked[:, a] - ranked[:, b] for a in range(10) for b in range(a + 1, 10)]
    np.testing.assert_allclose(slim, np.stack(pairs, 1), atol=1e-14)
    assert margins(logits[:, :3]).shape == (5, 3)


@pytest.mark.slow
def test_slim_router_scores_every_example_by_itself():
    router = build({"name": "slim"})
    rng = np.random.default_rng(0)
    logits, features = (jnp.asarray(rng.normal(size=(6, n)), jnp.float32) for n in (10, 32))
    variables = jax.jit(router.init)(jax.random.key(0), logits, features)
    apply = jax.jit(router.apply)
    whole = apply(variables, logits, features)
    assert whole.dtype == jnp.float32
    single = [apply(variables, logits[i : i + 1], features[i : i + 1])[0] for i in range(6)]
    np.testing.assert_allclose(whole, single, atol=1e-6)
    # The features, not the confidence alone, move the score.
    assert np.abs(whole - apply(variables, logits, features[::-1])).max() > 1e-3
    half = apply(variables, logits.astype(jnp.bfloat16), features.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32


@pytest.mark.slow
def test_released_router_updates_its_statistics_in_training():
    router = build({"name": "released"})
    rng = np.random.default_rng(0)
    logits, features = (jnp.asarray(rng.normal(size=(6, n)), jnp.float32) for n in (10, 32))
    variables = jax.jit(router.init)(jax.random.key(0), logits, features)
    train = jax.jit(lambda v, *x: router.apply(v, *x, train=True, mutable=["batch_stats"]))
    scores, changed = train(variables, logits, features)
    assert scores.shape == (6,)
    before, after = map(jax.tree.leaves, (variables["batch_stats"], changed["batch_stats"]))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))


def test_unknown_routers_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'slim'"):
        build({"name": "slm"})
