"""Convolutions against XLA's own and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from sweeps import swept

from jaxeff.bench import count
from jaxeff.ops.convolution import (
    _grouped,
    _grouped_backward,
    _is_tiny,
    _xla,
    _xla_kernel,
    conv,
    depthwise_conv,
)

CASES = [((2, 7, 5, 3), 3, 1), ((2, 8, 7, 4), 3, 2), ((1, 6, 9, 2), 5, 2), ((2, 4, 4, 3), 5, 3)]


def inputs(shape, k):
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (k, k, 1, shape[-1]))


def dense(shape, k):
    return jax.random.normal(jax.random.key(3), (k, k, shape[-1], 6))


def slope(y):
    return jnp.sin(jnp.arange(y.size, dtype=float)).reshape(y.shape)


@pytest.mark.parametrize(("shape", "k", "strides"), swept(CASES, *CASES[:3]))
def test_is_the_grouped_convolution_and_so_are_its_gradients(x64, shape, k, strides):
    @jax.jit
    def both(x, kernel):
        found, pull = jax.vjp(functools.partial(depthwise_conv, strides=strides), x, kernel)
        g = slope(found)
        expected = _grouped(x, kernel, strides), *_grouped_backward(x, kernel, g, strides)
        return (found, *pull(g)), expected

    for ours, theirs in zip(*both(*inputs(shape, k)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "k", "strides"), swept([*CASES, ((2, 5, 5, 3), 1, 2)], *CASES[:3])
)
def test_a_dense_one_is_xlas_and_so_are_its_gradients(x64, shape, k, strides):
    @jax.jit
    def both(x, kernel):
        expected, pull_x = jax.vjp(lambda x: _xla(x, kernel, strides), x)
        found, pull = jax.vjp(functools.partial(conv, strides=strides), x, kernel)
        g = slope(found)
        return (found, *pull(g)), (expected, *pull_x(g), _xla_kernel(x, kernel, g, strides))

    for ours, theirs in zip(*both(inputs(shape, k)[0], dense(shape, k)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


TINY = [((3, 2, 2, 4), 3, 1), ((2, 1, 4, 3), 3, 2), ((2, 3, 4, 2), 5, 2), ((2, 1, 1, 3), 3, 1)]


@pytest.mark.parametrize(("shape", "k", "strides"), swept(TINY, *TINY[:2]))
def test_tiny_images_are_rows_of_a_product(x64, shape, k, strides):
    x, kernel = inputs(shape, k)[0], dense(shape, k)
    assert _is_tiny(x, kernel)

    @jax.jit
    def both(x, kernel):
        expected, pull = jax.vjp(functools.partial(_xla, strides=strides), x, kernel)
        found, own_pull = jax.vjp(functools.partial(conv, strides=strides), x, kernel)
        g = slope(found)
        return (found, *own_pull(g)), (expected, *pull(g))

    (found, *_), _ = pair = both(x, kernel)
    for ours, theirs in zip(*pair, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    text = jax.jit(conv, static_argnums=2).lower(x, kernel, strides).compile().as_text()
    assert " convolution(" not in text
    assert (
        count(functools.partial(conv, strides=strides), x, kernel).macs
        == found[..., 0].size * kernel.size
    )


@pytest.mark.slow
@pytest.mark.parametrize("function", [conv, depthwise_conv])
def test_second_derivatives(x64, function):
    x, kernel = inputs((1, 4, 3, 2), 3)
    kernel = jnp.tile(kernel, (1, 1, 2, 1)) if function is conv else kernel
    check_grads(lambda x, k: jnp.sin(function(x, k)), (x, kernel), order=2, modes=["rev"])


def test_keeps_the_inputs_type():
    x, kernel = (a.astype(jnp.bfloat16) for a in inputs((1, 4, 4, 2), 3))

    def both(x, kernel):
        y, pull = jax.vjp(depthwise_conv, x, kernel)
        return y, *pull(y)

    assert [a.dtype for a in jax.eval_shape(both, x, kernel)] == [jnp.bfloat16] * 3


def test_is_counted_like_the_grouped_convolution():
    x, kernel = inputs((2, 8, 8, 4), 3)
    cost = count(depthwise_conv, x, kernel)
    assert cost.macs == 2 * 8 * 8 * 4 * 9
    assert not cost.unknown


@pytest.mark.parametrize("shape", [(3, 3, 4, 1), (3, 3, 1, 5), (2, 2, 1, 4)])
def test_kernels_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="a convolution"):
        depthwise_conv(jnp.zeros((1, 4, 4, 4)), jnp.zeros(shape))
    with pytest.raises(ValueError, match="a convolution"):
        conv(jnp.zeros((4, 4, 4)), jnp.zeros((3, 3, 4, 2)))
