"""The Global layer in compiled passes against its plain form in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff.layers import GlobalLayer
from jaxeff.ode.transport import Rectified
from jaxeff.ops import platform
from jaxeff.ops.cpu import native
from jaxeff.ops.cpu.native import library

pytestmark = pytest.mark.skipif(
    not native.is_available(), reason="no C++ compiler, or JAXEFF_NATIVE=never"
)

CASES = {
    "one step": ({}, 20, False),
    "constant diffusivity, wide spacing": (
        {"num_steps": 2, "diffusivity": (1.0, 0.5), "spacing": (2, 1), "velocity": "paper"},
        5,
        False,
    ),
    "five steps from another field": ({"num_steps": 5}, 16, True),
    "no source": ({"num_steps": 3, "source": False}, 3, False),
}


def normal(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


def layer_of(fields, channels):
    """A layer and variables off their initial values, with coefficients of ordinary size."""
    layer = GlobalLayer(coefficient_epsilon=0.01, **fields)
    x = normal(66, 5, 6, channels)  # more images than parts that sums are divided into
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda s: jnp.asarray(rng.random(s.shape), jnp.float32), shapes)
    return layer, values, x


def close(ours, exact):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b)
        assert np.linalg.norm(a - b) < 5e-6 * np.linalg.norm(b)


def in_both(function, args):
    """Results on a CPU, and of plain JAX in double precision."""
    with platform("cpu"):
        ours = jax.jit(function)(*args)
    with platform("reference"), jax.enable_x64(True):
        exact = jax.jit(function)(*jax.tree.map(lambda a: a.astype("float64"), args))
    return ours, exact


@pytest.mark.parametrize(
    ("case", "train"),
    swept(
        [(case, train) for case in CASES for train in (False, True)],
        ("constant diffusivity, wide spacing", False),
        ("five steps from another field", True),
    ),
)
def test_values_gradients_and_statistics(case, train):
    fields, channels, has_initial = CASES[case]
    layer, variables, x = layer_of(fields, channels)

    def run(variables, x, *initial):
        def apply(params, x, *initial):
            variables_of = {**variables, "params": params}
            return layer.apply(variables_of, x, *initial, train=train, mutable=["batch_stats"])

        y, pull, updated = jax.vjp(apply, variables["params"], x, *initial, has_aux=True)
        return y, updated, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    close(*in_both(run, (variables, x, *([x[::-1]] if has_initial else []))))


def test_nothing_becomes_a_number():
    layer, variables, x = layer_of({}, 1)
    x = x[:1].at[0, 2, 2, 0].set(jnp.nan)
    ours, exact = in_both(layer.apply, (variables, x))
    assert jnp.isnan(ours).any()
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(exact))


@pytest.mark.slow
def test_derivatives_of_derivatives():
    scheme = Rectified(2, 0.2, (1, 1), -1)
    h, predicted, direction = normal(2, 4, 5, 3), normal(2, 4, 5, 12), normal(2, 4, 5, 3)
    norm = normal(12), jnp.ones(12)

    def second(evolve):
        def slope(h, predicted):
            total = jax.grad(lambda h: jnp.sum(evolve(h, None, predicted, norm) ** 3))
            return jnp.sum(total(h) * direction)

        return jax.jit(jax.grad(slope, (0, 1)))(h, predicted)

    for ours, plain in zip(second(scheme.evolve), second(scheme.reference), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "size", "is_compiled"),
    [
        ({}, 8, True),
        ({"boundary": "reflecting"}, 8, False),
        ({"velocity": "signed"}, 8, False),
        ({}, 80, False),  # whose planes do not stay in cache
    ],
)
def test_which_layers_are_compiled(fields, size, is_compiled):
    layer, variables, _ = layer_of(fields, 4)
    x = jnp.zeros((1, size, size, 4))
    with platform("cpu"):
        text = str(jax.make_jaxpr(layer.apply)(variables, x))
    assert ("jaxeff_transport" in text) == is_compiled


def test_results_do_not_depend_on_threads(monkeypatch):
    scheme = Rectified(2, 0.2, (1, 1), -1)
    h, predicted = normal(9, 5, 6, 20), normal(9, 5, 6, 80)
    norm, results = (normal(80), jnp.ones(80)), []
    for threads in (1, 3):
        monkeypatch.setattr(library, "threads", lambda threads=threads: threads)
        y, pull = jax.vjp(lambda *args: scheme.evolve(args[0], None, *args[1:]), h, predicted, norm)
        kernel = native.fields.kernel_gradient(h, predicted, normal(3, 3, 1, 80))
        results.append((y, pull(h), kernel))
    jax.tree.map(np.testing.assert_array_equal, *results)
