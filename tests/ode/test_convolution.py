"""Convolutions against XLA's own and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxeff.bench import count
from jaxeff.ode.convolution import (
    _grouped,
    _grouped_backward,
    _is_tiny,
    _xla,
    _xla_kernel,
    conv,
    depthwise_conv,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

CASES = [((2, 7, 5, 3), 3, 1), ((2, 8, 7, 4), 3, 2), ((1, 6, 9, 2), 5, 2), ((2, 4, 4, 3), 5, 3)]


def inputs(shape, k):
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (k, k, 1, shape[-1]))


@pytest.mark.parametrize(("shape", "k", "strides"), CASES)
def test_is_the_grouped_convolution_and_so_are_its_gradients(x64, shape, k, strides):
    x, kernel = inputs(shape, k)
    expected = _grouped(x, kernel, strides)
    found, pull = jax.vjp(functools.partial(depthwise_conv, strides=strides), x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-13)
    g = jnp.sin(jnp.arange(expected.size, dtype=float)).reshape(expected.shape)
    for ours, theirs in zip(pull(g), _grouped_backward(x, kernel, g, strides), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize(("shape", "k", "strides"), [*CASES, ((2, 5, 5, 3), 1, 2)])
def test_a_dense_one_is_xlas_and_so_are_its_gradients(x64, shape, k, strides):
    x = inputs(shape, k)[0]
    kernel = jax.random.normal(jax.random.key(3), (k, k, shape[-1], 6))
    expected, pull_x = jax.vjp(lambda x: _xla(x, kernel, strides), x)
    found, pull = jax.vjp(functools.partial(conv, strides=strides), x, kernel)
    np.testing.assert_array_equal(found, expected)
    g = jnp.sin(jnp.arange(expected.size, dtype=float)).reshape(expected.shape)
    dx, dkernel = pull(g)
    np.testing.assert_allclose(dx, pull_x(g)[0], atol=1e-12)
    np.testing.assert_allclose(dkernel, _xla_kernel(x, kernel, g, strides), atol=1e-12)


TINY = [((3, 2, 2, 4), 3, 1), ((2, 1, 4, 3), 3, 2), ((2, 3, 4, 2), 5, 2), ((2, 1, 1, 3), 3, 1)]


@pytest.mark.parametrize(("shape", "k", "strides"), TINY)
def test_tiny_images_are_rows_of_a_product(x64, shape, k, strides):
    x = inputs(shape, k)[0]
    kernel = jax.random.normal(jax.random.key(3), (k, k, shape[-1], 6))
    assert _is_tiny(x, kernel)
    expected, pull = jax.vjp(functools.partial(_xla, strides=strides), x, kernel)
    found, own_pull = jax.vjp(functools.partial(conv, strides=strides), x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-13)
    g = jnp.sin(jnp.arange(expected.size, dtype=float)).reshape(expected.shape)
    for ours, theirs in zip(own_pull(g), pull(g), strict=True):
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
    y, pull = jax.vjp(depthwise_conv, x, kernel)
    assert y.dtype == jnp.bfloat16
    assert [g.dtype for g in pull(y)] == [jnp.bfloat16] * 2


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
