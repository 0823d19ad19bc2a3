"""Neighbours on a grid against NumPy, and their transposes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ops.neighbours import neighbours

CASES = [
    (axis, distance, boundary, odd)
    for axis in (-3, -2)
    for distance in (1, 3)
    for boundary, odd in (("periodic", False), ("reflecting", False), ("reflecting", True))
]


def field(seed=0):
    return jax.random.normal(jax.random.key(seed), (2, 5, 4, 3))


@pytest.mark.parametrize(("axis", "distance", "boundary", "odd"), CASES)
def test_neighbours_are_those_of_the_extended_array(axis, distance, boundary, odd):
    h = np.asarray(field())
    pad = [(0, 0)] * 4
    pad[axis] = (distance, distance)
    if boundary == "periodic":
        extended = np.pad(h, pad, mode="wrap")
    else:
        extended = np.pad(h, pad, mode="symmetric", reflect_type="even")
        if odd:
            inside = np.pad(np.ones_like(h), pad)
            extended = np.where(inside == 1, extended, -extended)
    size = h.shape[axis]
    expected = (
        np.take(extended, range(2 * distance, 2 * distance + size), axis),
        np.take(extended, range(size), axis),
    )
    for skip in (None, jnp.array(False)):
        call = jax.jit(
            functools.partial(neighbours, axis=axis, distance=distance, boundary=boundary, odd=odd)
        )
        for found, wanted in zip(call(skip, h), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("axis", "distance", "boundary", "odd"), CASES)
def test_gradients_are_the_transpose(axis, distance, boundary, odd):
    """<A h, g> = <h, A' g> for the matrix A of both results."""
    h, g = field(), (field(1), field(2))

    @jax.jit
    def both(skip, h, g):
        out, pull = jax.vjp(lambda h: neighbours(skip, h, axis, distance, boundary, odd), h)
        return sum(jnp.vdot(a, b) for a, b in zip(out, g, strict=True)), jnp.vdot(h, pull(g)[0])

    for skip in (None, jnp.array(False)):
        np.testing.assert_allclose(*both(skip, h, g), rtol=1e-5)
