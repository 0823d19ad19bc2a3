"""Strided and transposed convolutions against loops over their definition, and their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff.ops import strided

pytestmark = pytest.mark.usefixtures("x64")

#: dimensions, kernel, strides, padding, output padding, side.
TRANSPOSED = [
    (2, 4, 1, 2, 0, 6),
    (2, 5, 2, 1, 1, 5),
    (2, 5, 2, 2, 1, 4),
    (3, 3, 2, 1, 1, 3),
    (3, 4, 1, 1, 0, 3),
    (2, 3, 3, 0, 2, 4),
    (2, 2, 2, 0, 1, 4),
]
CONVS = [(2, 4, 2, 1, 6), (2, 3, 2, 1, 7), (2, 5, 1, 2, 6), (3, 5, 2, 2, 4), (2, 3, 3, 0, 8)]


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def operands(d, k, n):
    return drawn(2, *(n,) * d, 3), drawn(*(k,) * d, 3, 2, seed=1)


def values_and_slopes(x, kernel, *functions):
    """Values of functions at x and a kernel, and the slopes of the sums of their sines."""

    def one(function, x, kernel):
        y, pull = jax.vjp(function, x, kernel)
        return y, *pull(jnp.cos(y))

    return jax.jit(lambda *at: [one(function, *at) for function in functions])(x, kernel)


def check_both(x, kernel, wanted, trained, apply):
    (one, *ours), (other, *theirs) = values_and_slopes(x, kernel, trained, apply)
    np.testing.assert_allclose(one, wanted, atol=1e-12)
    np.testing.assert_allclose(other, wanted, atol=1e-12)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)


@pytest.mark.parametrize(
    ("d", "k", "s", "p", "more", "n"), swept(TRANSPOSED, *TRANSPOSED[1:4], TRANSPOSED[5])
)
def test_transposed_convolution_is_the_scattered_sum(d, k, s, p, more, n):
    x, kernel = operands(d, k, n)
    size = (n - 1) * s - 2 * p + k + more
    scattered = np.zeros((2, *(((n - 1) * s + k + more + p),) * d, 2))
    for i in np.ndindex(*(n,) * d):
        for t in np.ndindex(*(k,) * d):
            at = (slice(None), *(s * a + b for a, b in zip(i, t, strict=True)))
            scattered[at] += np.asarray(x)[(slice(None), *i)] @ np.asarray(kernel)[t]
    wanted = scattered[(slice(None), *(slice(p, p + size),) * d)]
    apply = functools.partial(strided.transposed_conv, strides=s, padding=p, output_padding=more)
    # What accelerators run.
    dilated = functools.partial(strided._dilated, strides=s, padding=p, more=(more,) * d)
    np.testing.assert_allclose(jax.jit(dilated)(x, kernel), wanted, atol=1e-12)
    trained = functools.partial(lambda x, w: strided.trained_transposed_conv(x, w, s, p, more))
    check_both(x, kernel, wanted, trained, apply)


@pytest.mark.parametrize(("d", "k", "s", "p", "n"), swept(CONVS, CONVS[1], CONVS[3]))
def test_convolution_is_the_sum_over_taps_and_so_are_its_gradients(d, k, s, p, n):
    x, kernel = operands(d, k, n)
    size = (n + 2 * p - k) // s + 1
    padded = np.pad(x, ((0, 0), *((p, p),) * d, (0, 0)))
    wanted = np.zeros((2, *(size,) * d, 2))
    for o in np.ndindex(*(size,) * d):
        at = tuple(slice(s * a, s * a + k) for a in o)
        window = padded[(slice(None), *at)].reshape(2, -1)
        wanted[(slice(None), *o)] = window @ np.asarray(kernel).reshape(-1, 2)
    apply = functools.partial(strided.conv, strides=s, padding=p)
    trained = functools.partial(lambda x, w: strided.trained_conv(x, w, s, p))
    check_both(x, kernel, wanted, trained, apply)


@pytest.mark.parametrize(
    ("d", "inputs", "outputs", "k", "s", "p"),
    swept(
        [
            (3, 1, 2, 3, 1, 0),
            (3, 3, 1, 4, 1, 2),
            (2, 3, 1, 4, 1, 1),
            (2, 1, 2, 4, 2, 1),
            (3, 2, 1, 3, 2, 0),
        ],
        (2, 3, 1, 4, 1, 1),
        (2, 1, 2, 4, 2, 1),
        (3, 2, 1, 3, 2, 0),
    ),
)
def test_single_channels_are_convolved_like_others(d, inputs, outputs, k, s, p):
    x, kernel = drawn(2, *(5,) * d, inputs), drawn(*(k,) * d, inputs, outputs, seed=1)
    plain = functools.partial(strided._xla, strides=s, padding=p)
    trained = functools.partial(lambda x, w: strided.trained_conv(x, w, s, p))
    for one, other in zip(*values_and_slopes(x, kernel, trained, plain), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)


def test_forward_mode_agrees_with_reverse_mode():
    x, kernel = operands(2, 5, 4)

    def total(x):
        y = strided.conv(jnp.sin(x), kernel, 2, 2)
        return jnp.sin(strided.transposed_conv(y, jnp.swapaxes(kernel, -1, -2), 2, 2, 1)).sum()

    way = drawn(*x.shape, seed=2)
    forward = jax.jit(lambda x: jax.jvp(total, (x,), (way,))[1])(x)
    np.testing.assert_allclose(forward, (jax.jit(jax.grad(total))(x) * way).sum(), rtol=1e-10)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="needs a kernel"):
        strided.conv(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 2, 1)))
    with pytest.raises(ValueError, match="needs a kernel"):
        strided.transposed_conv(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 3, 1)))
