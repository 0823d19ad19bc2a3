"""Convolutions: finite differences, types, counts; their CPU forms are in `test_cpu_forms.py`."""

import jax
import jax.numpy as jnp
import pytest
from jax.test_util import check_grads

from jaxeff.bench import count
from jaxeff.ops import platform
from jaxeff.ops.convolution import conv, depthwise_conv


def inputs(shape, k):
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (k, k, 1, shape[-1]))


def dense(shape, k):
    return jax.random.normal(jax.random.key(3), (k, k, shape[-1], 6))


def test_tiny_images_are_rows_of_a_product(x64):
    x, kernel = inputs((3, 2, 2, 4), 3)[0], dense((3, 2, 2, 4), 3)
    with platform("cpu"):
        text = jax.jit(conv).lower(x, kernel).compile().as_text()
    assert " convolution(" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("function", [conv, depthwise_conv])
def test_second_derivatives(x64, function, name):
    x, kernel = inputs((1, 4, 3, 2), 3)
    kernel = jnp.tile(kernel, (1, 1, 2, 1)) if function is conv else kernel
    with platform(name):
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
