"""Functions split into what is computed before a loop and what stands in it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.ops.split import split


def primitives(function, *args):
    return {equation.primitive.name for equation in jax.make_jaxpr(function)(*args).eqns}


def test_the_parts_give_what_the_function_gives():
    def function(shared, indexed, late):
        sizes = jnp.exp(shared["sizes"])[indexed[:, 0].astype(int)][:, None]
        return {"y": sizes * late @ shared["kernel"].T, "also": shared["bias"] + late.sum()}

    rng = np.random.default_rng(0)
    shared = {
        "sizes": rng.normal(size=5),
        "kernel": rng.normal(size=(3, 3)),
        "bias": rng.normal(size=3),
    }
    indexed, late = np.array([[1.0], [4.0]]), rng.normal(size=(2, 3))
    parts = split(function, shared, indexed, late)
    arrays = parts.before(shared, indexed)
    actual, expected = parts.inside(arrays, late), function(shared, indexed, late)
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-6)
    inside = primitives(parts.inside, arrays, late)
    assert not inside & {"gather", "exp", "transpose", "convert_element_type"}, inside
    assert [a.shape for a, varies in zip(arrays, parts.indexed, strict=True) if varies] == [(2, 1)]


def test_broadcasts_and_constants_stay_inside():
    def function(scale, _, late):
        return jnp.broadcast_to(scale, late.shape) * late + jnp.zeros((4, 3))

    late = np.ones((4, 3), np.float32)
    parts = split(function, jnp.float32(2.0), (), late)
    assert [kind.shape for kind in parts.shapes] == [()]
    np.testing.assert_allclose(parts.inside(parts.before(jnp.float32(2.0), ()), late), 2.0)


def test_what_nothing_needs_is_left_out():
    def function(shared, _, late):
        jnp.tanh(late @ shared)
        return late + 1

    parts = split(function, jnp.ones((3, 3)), (), jnp.ones((2, 3)))
    assert parts.shapes == ()
    assert primitives(parts.inside, [], jnp.ones((2, 3))) == {"add"}
