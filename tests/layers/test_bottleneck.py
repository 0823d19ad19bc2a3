"""Bottlenecks of the sequence length: by hand, and what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import init
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.layers.bottleneck import KINDS, Bottleneck, merge_tokens, shortened
from jaxeff.models.encoder import masked_mean

LEARNED = ("mean", "linear", "conv", "attention")
RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(3, 11, 6)).astype(np.float32)
WEIGHT = (np.arange(11) < np.array([11, 7, 4])[:, None]).astype(np.float32)


def applied(module, tokens, weight, changed=None):
    variables = init(module, tokens, weight)
    if changed is not None:
        variables = jax.tree.map(changed, variables)
    return jax.jit(module.apply)(variables, tokens, weight), variables.get("params", {})


def group_means(tokens, weight, factor, keep):
    """Masked means of groups, by loops."""
    out = []
    for row, real in zip(tokens, weight, strict=True):
        rows = [*row[:keep]]
        for start in range(keep, len(row), factor):
            members = [row[i] for i in range(start, min(start + factor, len(row))) if real[i]]
            rows.append(np.mean(members, axis=0) if members else np.zeros(row.shape[-1]))
        out.append(rows)
    return np.array(out)


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize(("factor", "keep"), [(2, 0), (3, 1), (4, 2)])
def test_starts_as_the_mean_of_real_tokens(kind, factor, keep):
    (found, weight), _ = applied(Bottleneck(factor, kind, keep), TOKENS, WEIGHT)
    np.testing.assert_allclose(found, group_means(TOKENS, WEIGHT, factor, keep), atol=1e-6)
    np.testing.assert_array_equal(found[:, :keep], TOKENS[:, :keep])
    groups = [WEIGHT[:, i : i + factor].max(1) for i in range(keep, 11, factor)]
    expected = np.concatenate([WEIGHT[:, :keep], np.stack(groups, 1)], 1)
    np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("kind", LEARNED)
def test_learned_weights_do_what_the_equations_say(kind):
    factor, noise = 3, np.random.default_rng(1)
    (found, _), params = applied(
        Bottleneck(factor, kind), TOKENS, WEIGHT, lambda p: p + noise.normal(size=p.shape)
    )
    params = {k: np.asarray(v, np.float64) for k, v in params.items()}
    row, real = TOKENS[1].astype(np.float64), WEIGHT[1]
    for group in range(4):
        inside = [i for i in range(3 * group, min(3 * group + 3, 11)) if real[i]]
        if not inside:
            np.testing.assert_array_equal(found[1, group], 0)
            continue
        scale = factor / len(inside)
        if kind == "mean":
            expected = row[inside].mean(0)
        elif kind == "linear":
            blocks = params["kernel"].reshape(3, 6, 6)
            expected = scale * sum(row[i] @ blocks[i % 3] for i in inside) + params["bias"]
        elif kind == "conv":
            expected = scale * sum(row[i] * params["kernel"][i % 3] for i in inside)
            expected = expected + params["bias"]
        else:
            shares = np.exp(row[inside] @ params["query"] / np.sqrt(6))
            expected = shares @ row[inside] / shares.sum()
        np.testing.assert_allclose(found[1, group], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*LEARNED, "merge"])
def test_a_factor_of_one_changes_nothing(kind):
    (found, weight), _ = applied(Bottleneck(1, kind), TOKENS, WEIGHT)
    np.testing.assert_allclose(found, TOKENS * WEIGHT[..., None] if kind != "merge" else TOKENS)
    np.testing.assert_array_equal(weight, WEIGHT)


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("keep", swept([0, 1], 1))
def test_padding_makes_no_difference(kind, keep):
    noise = np.random.default_rng(2)
    module = Bottleneck(4, kind, keep)
    variables = init(module, TOKENS, WEIGHT)
    variables = jax.tree.map(lambda p: p + noise.normal(size=p.shape), variables)
    plain, _ = jax.jit(module.apply)(variables, TOKENS, WEIGHT)
    for more in (1, 5, 8):
        junk = np.concatenate([TOKENS, 99 * np.ones((3, more, 6), np.float32)], 1)
        found, weight = jax.jit(module.apply)(variables, junk, np.pad(WEIGHT, ((0, 0), (0, more))))
        n = plain.shape[1]
        np.testing.assert_allclose(found[:, :n], plain, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found[:, n:], 0)
        np.testing.assert_array_equal(weight[:, n:], 0)


def test_gradients_reach_every_parameter_and_stay_finite_where_all_is_padding():
    for kind in LEARNED[1:]:
        module = Bottleneck(2, kind)
        variables = init(module, TOKENS, WEIGHT)

        def loss(variables, module=module):
            return jnp.sum(module.apply(variables, TOKENS, WEIGHT)[0] ** 2)

        grads = jax.jit(jax.grad(loss))(variables)
        for leaf in jax.tree.leaves(grads):
            assert np.isfinite(leaf).all()
            assert np.abs(leaf).max() > 0


@pytest.mark.parametrize("length", [1, 2, 5, 38, 130])
@pytest.mark.parametrize("keep", [0, 1])
def test_lengths(length, keep):
    tokens, weight = np.ones((1, length, 2), np.float32), np.ones((1, length), np.float32)
    for factor in (2, 3, 4):
        for kind in ("mean", *(["merge"] if factor == 2 else [])):
            module = Bottleneck(factor, kind, keep)
            shape = jax.eval_shape(lambda m=module: m.apply({}, tokens, weight))[0].shape
            kept = min(keep, length)
            assert (
                shape[1] == shortened(length, factor, keep) == kept + -(-(length - kept) // factor)
            )
            assert shape[1] >= 1


def reference_merge(tokens, weight):
    """Token merging of one sequence by loops."""
    even, odd = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    best = {}
    for i in even:
        scores = [unit[i] @ unit[j] if weight[j] else -2 for j in odd]
        best[i] = (2 if not weight[i] else max(scores), odd[int(np.argmax(scores))])
    order = sorted(even, key=lambda i: best[i][0])
    stay = order[: len(even) - len(odd)]
    sums, counts = {j: tokens[j] * weight[j] for j in odd}, {j: weight[j] for j in odd}
    for i in order[len(even) - len(odd) :]:
        sums[best[i][1]] = sums[best[i][1]] + weight[i] * tokens[i]
        counts[best[i][1]] += weight[i]
    rows = [tokens[i] for i in stay] + [sums[j] / max(counts[j], 1) for j in odd]
    return np.array(rows), np.array([weight[i] for i in stay] + [counts[j] for j in odd])


def test_merging_is_that_of_the_loops():
    # Weights above one, as after an earlier merge.
    weight = WEIGHT * RNG.integers(1, 4, WEIGHT.shape)
    weight = weight.astype(np.float32)
    found, counts = jax.jit(lambda t, w: merge_tokens(t, w, 2))(TOKENS, weight)
    for b in range(3):
        rows, expected = reference_merge(TOKENS[b].astype(np.float64), weight[b])
        np.testing.assert_allclose(found[b], rows, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(counts[b], expected)
    # Nothing real is lost: the weighted sum of all tokens stays.
    np.testing.assert_allclose(counts.sum(1), weight.sum(1))
    whole = np.einsum("bld,bl->bd", TOKENS, weight)
    np.testing.assert_allclose(np.einsum("bld,bl->bd", found, counts), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "factor", "message"),
    [("maen", 2, "must be one of mean"), ("mean", 0, "at least 1"), ("merge", 3, "at most 2")],
)
def test_impossible_bottlenecks(kind, factor, message):
    with pytest.raises(ConfigError, match=message):
        Bottleneck(factor, kind).init(jax.random.key(0), TOKENS, WEIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_may_hold_anything(kind):
    layer = Bottleneck(2, kind, keep_first=1)
    tokens = jax.random.normal(jax.random.key(0), (2, 6, 4))
    weight = jnp.array([[1.0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    variables = jax.jit(layer.init)(jax.random.key(1), tokens, weight)

    @jax.jit
    def run(tokens):
        def loss(tokens):
            shorter, left = layer.apply(variables, tokens, weight)
            mean = masked_mean(shorter, left)
            return jnp.sum(mean**2), mean

        return jax.value_and_grad(loss, has_aux=True)(tokens)

    expected, found = (
        run(jnp.where(weight[..., None] > 0, tokens, value)) for value in (0.0, jnp.nan)
    )
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(expected))
    assert all(map(jnp.array_equal, *map(jax.tree.leaves, (found, expected))))
