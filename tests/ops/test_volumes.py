"""Compiled convolutions of images and volumes against XLA's in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff.ops import platform, strided
from jaxeff.ops.cpu import native, volumes

pytestmark = pytest.mark.skipif(
    not native.is_available(), reason="no C++ compiler, or JAXEFF_NATIVE=never"
)

#: Shape of the input, side of the kernel, outputs, strides, padding.
CONVS = (
    ((2, 5, 6, 9, 3), 3, 5, 1, 1),
    ((3, 7, 6, 5, 16), 5, 17, 2, 2),
    ((2, 8, 9, 10, 1), 3, 16, 3, 1),
    ((2, 9, 4, 7, 8), 5, 16, 3, 2),
    ((2, 6, 5, 4, 4), 1, 3, 1, 0),
    ((2, 6, 5, 7, 4), 1, 3, 2, 1),
    ((2, 7, 8, 6, 5), 4, 9, 2, 1),
    ((2, 7, 5, 6, 3), 2, 4, 3, 0),
    ((2, 9, 12, 3), 5, 20, 2, 2),
    ((3, 8, 7, 1), 3, 4, 1, 1),
    ((3, 8, 11, 32), 4, 32, 2, 1),
    ((2, 6, 7, 3), 3, 5, 1, 3),
    ((2, 9, 8, 3), 2, 5, 1, 0),
    ((2, 5, 4, 9), 1, 33, 1, 1),
    ((2, 9, 6, 7, 16), 3, 1, 1, 1),
    ((2, 3, 4, 19, 32), 5, 1, 1, 2),
    ((3, 21, 18, 16), 3, 1, 1, 1),
    ((1, 2, 3, 3, 48), 5, 1, 1, 2),
    ((2, 5, 6, 16), 3, 1, 1, 0),
)

#: The same of transposed ones, and the output padding.
TRANSPOSED = (
    ((2, 3, 4, 5, 8), 5, 16, 2, 2, (1, 0, 1)),
    ((2, 4, 3, 2, 3), 3, 6, 2, 1, (0, 1, 1)),
    ((2, 3, 3, 2, 4), 3, 5, 3, 1, (1, 2, 0)),
    ((2, 4, 4, 3, 5), 3, 7, 1, 1, (0, 0, 0)),
    ((2, 4, 3, 3, 5), 4, 7, 2, 1, (0, 1, 0)),
    ((2, 2, 3, 2, 5), 2, 7, 3, 0, (0, 1, 2)),
    ((3, 5, 6, 4), 5, 20, 2, 2, (1, 0)),
    ((3, 5, 6, 4), 5, 16, 2, 1, (1, 1)),
    ((3, 7, 6, 16), 4, 32, 1, 2, (0, 0)),
    ((2, 3, 4, 2, 8), 3, 1, 2, 1, (1, 1, 1)),
    ((2, 4, 3, 3, 1), 3, 16, 1, 1, (0, 0, 0)),
)


def arrays(shape, kernel):
    rng = np.random.default_rng(0)
    spread = np.prod(kernel[:-1]) ** -0.5
    scaled = (rng.normal(size=shape), spread * rng.normal(size=kernel))
    return [jnp.asarray(a, jnp.float32) for a in scaled]


def close(computed, expected, atol):
    for a, b in zip(jax.tree.leaves(computed), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=atol * np.abs(b).max())


def in_double_precision(function, args):
    with jax.enable_x64(True), platform("reference"):
        return jax.device_get(jax.jit(function)(*(np.asarray(a, np.float64) for a in args)))


def squares(function, ways):
    """Returns a function that has derivatives of any order with regard to all arguments."""

    def total(*args):
        return (jnp.sin(function(*args)) * ways.astype(args[0].dtype)).sum()

    return total


def second(total):
    """Returns the gradient of the length of the gradient."""

    def length(*args):
        return sum((g**2).sum() for g in jax.grad(total, (0, 1))(*args))

    return jax.grad(length, (0, 1))


@pytest.mark.parametrize(
    ("shape", "side", "outputs", "strides", "padding"),
    swept(CONVS, CONVS[2], CONVS[6], CONVS[10], CONVS[14], CONVS[18]),
)
def test_values_and_derivatives_of_convolutions(shape, side, outputs, strides, padding):
    kernel = (side,) * (len(shape) - 2) + (shape[-1], outputs)
    args = arrays(shape, kernel)
    assert volumes.is_computable(*args)
    conv = functools.partial(strided.conv, strides=strides, padding=padding)
    expected = in_double_precision(conv, args)
    close(jax.jit(conv)(*args), expected, 2e-6)
    total = squares(conv, np.random.default_rng(1).normal(size=expected.shape))
    for derivative in (jax.grad(total, (0, 1)), second(total)):
        close(jax.jit(derivative)(*args), in_double_precision(derivative, args), 2e-5)


@pytest.mark.parametrize(
    ("shape", "side", "outputs", "strides", "padding", "more"),
    swept(TRANSPOSED, *TRANSPOSED[1:3], TRANSPOSED[4], TRANSPOSED[10]),
)
def test_values_and_derivatives_of_transposed_convolutions(
    shape, side, outputs, strides, padding, more
):
    kernel = (side,) * (len(shape) - 2) + (shape[-1], outputs)
    args = arrays(shape, kernel)
    options = {"strides": strides, "padding": padding, "output_padding": more}
    conv = functools.partial(strided.transposed_conv, **options)
    expected = in_double_precision(conv, args)
    close(jax.jit(conv)(*args), expected, 2e-6)
    total = squares(conv, np.random.default_rng(1).normal(size=expected.shape))
    for derivative in (jax.grad(total, (0, 1)), second(total)):
        close(jax.jit(derivative)(*args), in_double_precision(derivative, args), 2e-5)


def test_not_a_number_stays_where_it_is():
    x, kernel = arrays((1, 4, 5, 9, 16), (3, 3, 3, 16, 1))
    x = x.at[0, 1, 2, 3, 4].set(jnp.nan)
    y = jax.jit(functools.partial(strided.conv, strides=1, padding=1))(x, kernel)
    seen = np.zeros((1, 4, 5, 9, 1), bool)
    seen[0, 0:3, 1:4, 2:5] = True
    np.testing.assert_array_equal(np.isnan(y), seen)


def test_kernels_that_are_no_cubes_are_refused():
    with pytest.raises(ValueError, match="of one side"):
        strided.conv(*arrays((1, 4, 4, 3), (3, 5, 3, 2)), 1, 1)


@pytest.mark.parametrize("count", [2, 3])
def test_an_input_smaller_than_the_kernel_has_no_output(count):
    x, kernel = arrays((1, *(2,) * count, 16), (*(3,) * count, 16, 4))
    assert strided.conv(x, kernel).shape == (1, *(0,) * count, 4)
