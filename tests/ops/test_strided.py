"""Strided and transposed convolutions against loops over their definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff.ops import forward_mode, platform, strided

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


def check_both(x, kernel, wanted, function):
    """Values on a CPU and elsewhere; `test_cpu_forms.py` compares gradients."""
    for name in ("cpu", "reference"):
        with platform(name):
            np.testing.assert_allclose(jax.jit(function)(x, kernel), wanted, atol=1e-12)


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
    check_both(x, kernel, wanted, apply)


@pytest.mark.parametrize(("d", "k", "s", "p", "n"), swept(CONVS, CONVS[1], CONVS[3]))
def test_convolution_is_the_sum_over_taps(d, k, s, p, n):
    x, kernel = operands(d, k, n)
    size = (n + 2 * p - k) // s + 1
    padded = np.pad(x, ((0, 0), *((p, p),) * d, (0, 0)))
    wanted = np.zeros((2, *(size,) * d, 2))
    for o in np.ndindex(*(size,) * d):
        at = tuple(slice(s * a, s * a + k) for a in o)
        window = padded[(slice(None), *at)].reshape(2, -1)
        wanted[(slice(None), *o)] = window @ np.asarray(kernel).reshape(-1, 2)
    check_both(x, kernel, wanted, functools.partial(strided.conv, strides=s, padding=p))


def test_forward_mode_agrees_with_reverse_mode():
    x, kernel = operands(2, 5, 4)

    def total(x):
        y = strided.conv(jnp.sin(x), kernel, 2, 2)
        return jnp.sin(strided.transposed_conv(y, jnp.swapaxes(kernel, -1, -2), 2, 2, 1)).sum()

    way = drawn(*x.shape, seed=2)
    with forward_mode():
        forward = jax.jit(lambda x: jax.jvp(total, (x,), (way,))[1])(x)
    np.testing.assert_allclose(forward, (jax.jit(jax.grad(total))(x) * way).sum(), rtol=1e-10)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="needs a kernel"):
        strided.conv(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 2, 1)))
    with pytest.raises(ValueError, match="needs a kernel"):
        strided.transposed_conv(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 3, 1)))
