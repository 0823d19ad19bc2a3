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


@functools.partial(jax.jit, static_argnums=(0, 3))
def pulled(function, x, kernel, strides, g):
    """A convolution's value and what its backward pass makes of ``g``, in one program."""
    y, pull = jax.vjp(functools.partial(function, strides=strides), x, kernel)
    return y, pull(g)


def slopes(shape, strides, channels):
    """A cotangent with no two numbers alike."""
    size = (shape[0], *(-(-n // strides) for n in shape[1:3]), channels)
    return np.sin(np.arange(np.prod(size), dtype=float)).reshape(size)


@pytest.mark.parametrize(("shape", "k", "strides"), CASES)
def test_is_the_grouped_convolution_and_so_are_its_gradients(x64, shape, k, strides):
    x, kernel = inputs(shape, k)
    g = slopes(shape, strides, shape[-1])
    found, ours = pulled(depthwise_conv, x, kernel, strides, g)

    def grouped(x, kernel, g):
        return _grouped(x, kernel, strides), _grouped_backward(x, kernel, g, strides)

    expected, theirs = jax.jit(grouped)(x, kernel, g)
    np.testing.assert_allclose(found, expected, atol=1e-13)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize(("shape", "k", "strides"), [*CASES, ((2, 5, 5, 3), 1, 2)])
def test_a_dense_one_is_xlas_and_so_are_its_gradients(x64, shape, k, strides):
    x = inputs(shape, k)[0]
    kernel = jax.random.normal(jax.random.key(3), (k, k, shape[-1], 6))
    g = slopes(shape, strides, 6)
    found, gradients = pulled(conv, x, kernel, strides, g)

    def xlas(x, kernel, g):
        y, pull = jax.vjp(lambda x: _xla(x, kernel, strides), x)
        return y, (*pull(g), _xla_kernel(x, kernel, g, strides))

    expected, wanted = jax.jit(xlas)(x, kernel, g)
    np.testing.assert_array_equal(found, expected)
    for ours, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


TINY = [((3, 2, 2, 4), 3, 1), ((2, 1, 4, 3), 3, 2), ((2, 3, 4, 2), 5, 2), ((2, 1, 1, 3), 3, 1)]


@pytest.mark.parametrize(("shape", "k", "strides"), TINY)
def test_tiny_images_are_rows_of_a_product(x64, shape, k, strides):
    x = inputs(shape, k)[0]
    kernel = jax.random.normal(jax.random.key(3), (k, k, shape[-1], 6))
    assert _is_tiny(x, kernel)
    g = slopes(shape, strides, 6)
    expected, wanted = pulled(_xla, x, kernel, strides, g)
    found, gradients = pulled(conv, x, kernel, strides, g)
    np.testing.assert_allclose(found, expected, atol=1e-13)
    for ours, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    text = jax.jit(conv, static_argnums=2).lower(x, kernel, strides).compile().as_text()
    assert " convolution(" not in text
    assert (
        count(functools.partial(conv, strides=strides), x, kernel).macs
        == found.size // 6 * kernel.size
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
