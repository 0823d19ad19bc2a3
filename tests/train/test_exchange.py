"""Means over devices: their values, and how many arrays are exchanged."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.train.exchange import JOINED, mean_over_devices

RNG = np.random.default_rng(0)
#: Of four devices: numbers, vectors and matrices of two types, and an array that is not joined.
TREE = {
    "scale": RNG.normal(size=4).astype(np.float32),
    "vectors": [RNG.normal(size=(4, n)).astype(np.float32) for n in (1, 7, 0, 3)],
    "matrix": RNG.normal(size=(4, 5, 2)).astype(np.float32),
    "half": jnp.asarray(RNG.integers(-8, 8, size=(4, 6)), jnp.bfloat16),
    "large": RNG.normal(size=(4, JOINED + 1)).astype(np.float32),
}


def mean(tree):
    return mean_over_devices(tree, "data")


def test_means_are_those_of_each_array():
    expected = jax.tree.map(
        lambda a: jnp.broadcast_to(np.float32(a).mean(0), a.shape).astype(a.dtype), TREE
    )
    actual = jax.vmap(mean, axis_name="data")(TREE)
    chex.assert_trees_all_close(actual, expected, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)


@pytest.mark.parametrize(("devices", "arrays"), [(4, 3), (1, 8)])
def test_small_arrays_of_a_type_travel_as_one(devices, arrays):
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), TREE)
    jaxpr = jax.make_jaxpr(mean, axis_env=[("data", devices)])(shapes).jaxpr
    counts = [len(e.invars) for e in jaxpr.eqns if e.primitive.name.startswith("psum")]
    assert sum(counts) == arrays


def test_without_devices_nothing_changes():
    assert mean_over_devices(TREE, None) is TREE
