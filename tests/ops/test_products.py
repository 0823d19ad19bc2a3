"""Compiled products of matrices: batches, second derivatives and numbers of threads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ops.cpu import native
from jaxeff.ops.cpu.native import library
from jaxeff.ops.platforms import current_platform, reverse_mode
from jaxeff.ops.products import products

pytestmark = pytest.mark.skipif(
    current_platform() != "cpu" or not native.is_available(), reason="needs a C++ compiler"
)


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def slopes(x, kernel, other):
    """The derivative of a nonlinear function of two products."""

    def total(x, kernel, other):
        with reverse_mode():
            first, second = products(x, (kernel, other))
        return jnp.sum(jnp.sin(first)) + jnp.sum(second**3)

    return jax.grad(total, (0, 1, 2))(x, kernel, other)


def is_close(ours, exact):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(abs(b).max()))


@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, 0), (0, 0, None), (0, 0, 0)])
def test_a_batch_is_its_members_one_by_one(axes):
    shapes = [(9, 16), (16, 24), (16, 11)]
    shapes = [(3, *s) if axis == 0 else s for s, axis in zip(shapes, axes, strict=True)]
    args = arrays(*shapes)
    at_once = jax.jit(jax.vmap(slopes, axes))(*args)
    each = [
        slopes(*(a[i] if axis == 0 else a for a, axis in zip(args, axes, strict=True)))
        for i in range(3)
    ]
    is_close(at_once, jax.tree.map(lambda *a: jnp.stack(a), *each))


def test_rows_of_a_batch_are_one_product():
    x, kernel = arrays((3, 9, 16), (16, 24))

    @jax.vmap
    def multiply(x):
        with reverse_mode():
            return products(x, (kernel,))[0]

    text = jax.jit(multiply).lower(x).as_text()
    assert text.count("jaxeff_products") == 1
    assert "tensor<27x16xf32>" in text


@pytest.mark.slow
def test_second_derivatives():
    args = arrays((9, 16), (16, 24), (16, 11))

    def plain(x, kernel, other):
        def total(x, kernel, other):
            return jnp.sum(jnp.sin(x @ kernel)) + jnp.sum((x @ other) ** 3)

        return jax.grad(total, (0, 1, 2))(x, kernel, other)

    def squares(slopes, *args):
        return sum(jnp.sum(slope**2) for slope in slopes(*args))

    ours, exact = (
        jax.grad(functools.partial(squares, f), (0, 1, 2))(*args) for f in (slopes, plain)
    )
    is_close(ours, exact)


def test_the_number_of_threads_changes_nothing(monkeypatch):
    args = arrays((300, 64), (64, 200), (64, 131))  # enough work to be shared
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(library, "threads", lambda threads=threads: threads)
        results.append(jax.jit(lambda *a: slopes(*a))(*args))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
