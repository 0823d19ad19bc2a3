"""A scan is a loop over time, for each example by itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_cases import (
    CASES,
    FEATURES,
    INPUTS,
    TIMED,
    in_double,
    loop,
    random,
    random_mask,
    results,
)
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.ode import (
    IRNN,
    Elman,
    unroll,
)

# The scan is a loop over time, for each example by itself.


@in_double
@pytest.mark.parametrize(
    "name", swept(["lstm", "irnn_timed_three", "irnn_implicit"], "irnn_timed_three")
)
def test_unroll_is_a_map_over_examples(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell)
    mask = random_mask(7, 2)

    def whole(xs, carry, mask):
        return unroll(cell, params, xs, carry, mask=mask, block_size=3)

    single = jax.vmap(whole, in_axes=(1, 0, 1), out_axes=(0, 1))
    found, expected = jax.jit(lambda *a: (single(*a), whole(*a)))(xs, carry, mask)
    chex.assert_trees_all_close(found, expected, atol=1e-13)


@in_double
@pytest.mark.parametrize("name", ["irnn_timed", pytest.param("lstm", marks=pytest.mark.slow)])
def test_gradients_map_over_examples(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell, time=4)

    def loss(params, xs, carry):
        return jnp.sum(jnp.sin(unroll(cell, params, xs, carry, block_size=2)[1]))

    gradient = jax.grad(loss, (0, 1))
    whole = jax.jit(gradient)(params, xs, carry)
    each = jax.jit(jax.vmap(gradient, in_axes=(None, 1, 0), out_axes=(0, 1)))(params, xs, carry)
    each = jax.tree.map(lambda g: g.sum(0), each[0]), each[1]
    chex.assert_trees_all_close(each, whole, atol=1e-12)


@in_double
@pytest.mark.parametrize("backward", ["fused", "autodiff"])
def test_reverse_is_forward_over_the_flipped_sequence(backward, example):
    cell = CASES["lstm"]
    params, xs, carry = example(cell)
    mask = random_mask(7, 2)
    options = {"backward": backward, "block_size": 3}
    expected, ys = unroll(cell, params, xs[::-1], carry, mask=mask[::-1], **options)
    actual = unroll(cell, params, xs, carry, mask=mask, reverse=True, **options)
    chex.assert_trees_all_close(actual, (expected, ys[::-1]), atol=1e-14)


@in_double
@pytest.mark.parametrize("name", ["lstm", "cornn", "irnn_timed_three"])
def test_last_output_is_that_of_the_sequence(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell)
    expected, ys = unroll(cell, params, xs, carry)
    actual, last = unroll(cell, params, xs, carry, return_sequence=False)
    chex.assert_trees_all_close((actual, last), (expected, ys[-1]), atol=1e-14)
    chex.assert_shape(last, (2, FEATURES))


@in_double
def test_two_halves_make_the_whole(example):
    cell = CASES["irnn_timed_three"]
    params, xs, carry = example(cell)
    expected, ys = unroll(cell, params, xs, carry)
    middle, first = unroll(cell, params, xs[:3], carry)
    actual, second = unroll(cell, params, xs[3:], middle)
    chex.assert_trees_all_close(
        (actual, jnp.concatenate([first, second])), (expected, ys), atol=1e-14
    )


# Masks.


@in_double
@pytest.mark.parametrize(
    "name",
    swept(["lstm", "cornn", "irnn_timed_three", "irnn_implicit"], "lstm"),
)
def test_padding_at_both_ends_changes_nothing(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell, time=4)
    before, after = 1e6 * random(8, 2, 2, INPUTS), 1e6 * random(9, 3, 2, INPUTS)
    padded = jnp.concatenate([before, xs, after])
    mask = jnp.zeros((9, 2)).at[2:6].set(1)
    (value, out), grads = results(cell, (params, xs, carry), return_sequence=False)
    (value_, out_), grads_ = results(
        cell, (params, padded, carry), mask=mask, return_sequence=False, block_size=3
    )
    chex.assert_trees_all_close((value_, out_), (value, out), atol=1e-13)
    chex.assert_trees_all_close((grads_[0], grads_[2]), (grads[0], grads[2]), atol=1e-12)
    np.testing.assert_allclose(grads_[1][2:6], grads[1], atol=1e-12)
    assert not np.any(grads_[1][:2])
    assert not np.any(grads_[1][6:])


@pytest.mark.slow
@in_double
@pytest.mark.parametrize("mode", ["fused", "remat", "autodiff"])
def test_examples_of_unequal_lengths_in_one_batch(mode, example):
    cell = CASES["gru"]
    params, xs, carry = example(cell, batch=(3,))
    lengths = (7, 4, 1)
    mask = jnp.arange(7)[:, None] < jnp.asarray(lengths)
    options = {"backward": mode, "block_size": 3}

    def last(params, xs, carry, **mask):
        return unroll(cell, params, xs, carry, return_sequence=False, **options, **mask)[1]

    def gradient(params, xs, carry, **mask):
        loss = lambda p: jnp.sum(jnp.sin(last(p, xs, carry, **mask)))  # noqa: E731
        return jax.grad(loss)(params)

    ys = last(params, xs, carry, mask=mask)
    total = jax.tree.map(jnp.zeros_like, params)
    for i, length in enumerate(lengths):
        alone = params, xs[:length, i], carry[i]
        chex.assert_trees_all_close(ys[i], last(*alone), atol=1e-14)
        total = jax.tree.map(jnp.add, total, gradient(*alone))
    chex.assert_trees_all_close(gradient(params, xs, carry, mask=mask), total, atol=1e-12)


@in_double
def test_masked_outputs_repeat(example):
    cell = CASES["lstm"]
    params, xs, carry = example(cell, time=4, batch=())
    _, ys = unroll(cell, params, xs, carry, mask=jnp.asarray([0, 1, 0, 0]))
    np.testing.assert_array_equal(ys[0], carry[1])
    np.testing.assert_array_equal(ys[2], ys[1])
    np.testing.assert_array_equal(ys[3], ys[1])
    assert np.abs(ys[1] - ys[0]).max() > 1e-3


@in_double
@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.float32])
def test_mask_of_any_type(dtype, example):
    cell = CASES["rnn"]
    arguments = example(cell)
    mask = np.random.default_rng(0).random((7, 2)) < 0.6
    expected = loop(cell, *arguments, mask)
    actual = unroll(cell, *arguments, mask=jnp.asarray(mask, dtype))
    chex.assert_trees_all_close(actual, expected, atol=1e-14)
    np.testing.assert_array_equal(
        unroll(cell, *arguments, mask=jnp.ones((7, 2), dtype))[1], unroll(cell, *arguments)[1]
    )


# What is refused.


@pytest.fixture
def tiny():
    cell = Elman(4)
    return cell, cell.init(jax.random.key(0), 2)


def test_unknown_backward_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"backward must be one of .*fused.*not 'fussed'"):
        unroll(*tiny, jnp.ones((3, 2)), backward="fussed")


@pytest.mark.parametrize("shape", [(2,), (0, 2), (0, 5, 2)])
def test_inputs_without_time_are_refused(tiny, shape):
    with pytest.raises(ValueError, match=r"xs must be \[time, ..., features\]"):
        unroll(*tiny, jnp.ones(shape))


@pytest.mark.parametrize("shape", [(5,), (5, 3), (3, 5), (5, 2, 1), (1, 2)])
def test_mask_of_a_wrong_shape_is_refused(tiny, shape):
    with pytest.raises(ValueError, match=r"mask .* must have the shape of xs without features"):
        unroll(*tiny, jnp.ones((5, 2, 2)), mask=jnp.ones(shape))


def test_stored_needs_a_product_form():
    cell = CASES["irnn_implicit"]
    with pytest.raises(ConfigError, match="backward='fused' needs a FusedCell"):
        unroll(cell, cell.init(jax.random.key(0), 2), jnp.ones((3, 2)), backward="fused")


def test_sequence_longer_than_the_step_sizes_is_refused():
    cell = IRNN(4, **TIMED)
    params = cell.init(jax.random.key(0), 2)
    unroll(cell, params, jnp.ones((25, 2)))
    with pytest.raises(ConfigError, match=r"length=25 .* has 26; raise length"):
        unroll(cell, params, jnp.ones((26, 2)))
