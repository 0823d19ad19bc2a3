"""Neighbours on a grid against NumPy."""

import jax
import numpy as np
import pytest

from jaxeff.ops import platform
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
    found = jax.jit(lambda h: neighbours(h, axis, distance, boundary, odd))
    for name in ("cpu", "reference"):
        with platform(name):
            for actual, wanted in zip(found(h), expected, strict=True):
                np.testing.assert_array_equal(actual, wanted)
