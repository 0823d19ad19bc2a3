"""Normalisation against Flax's, and taken into the kernel before it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.layers.conv import Ops
from jaxeff.layers.normalisation import BatchNorm
from jaxeff.ops import platform


def perturbed(variables):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: a + jnp.asarray(rng.uniform(0.1, 1, a.shape), a.dtype), variables)


@pytest.mark.parametrize("use_running_average", [False, True])
def test_is_that_of_flax(use_running_average):
    x = jnp.asarray(np.random.default_rng(1).normal(1, 2, (4, 5, 6, 3)), jnp.float32)
    options = {"momentum": 0.8, "epsilon": 1e-3}
    ours = BatchNorm(use_running_average, **options)
    theirs = nn.BatchNorm(use_running_average, **options)
    variables = theirs.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == jax.tree.map(
        jnp.shape, variables
    )
    variables = perturbed(variables)

    def both(module):
        def loss(params, x):
            y, state = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, state)

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), both(ours), both(theirs))


@pytest.mark.parametrize(("name", "dtype", "atol"), [("cpu", "float32", 1e-5)])
@pytest.mark.parametrize("features", [6, 0])
def test_a_kernel_takes_it_in(features, name, dtype, atol):
    check_folding(features, name, dtype, atol)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("features", [6, 0])
def test_a_kernel_takes_it_in_exactly(features):
    check_folding(features, "reference", "float64", 1e-12)


def check_folding(features, name, dtype, atol):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 6, 4)), dtype)
    ops = Ops(dtype=jnp.dtype(dtype))
    unit = ops.conv_norm(features, 3)
    with platform(name):
        variables = perturbed(unit.init(jax.random.key(0), x))
        skip = jnp.ones((2, 5, 6, features or 4), dtype)
        folded = unit.apply(variables, x, skip=skip, activation="relu")
        parts = {kind: variables[kind] for kind in variables}
        y = ops.conv(features, 3).apply({"params": parts["params"]["conv"]}, x)
    norm = ops.norm(train=False)
    y = norm.apply({kind: tree["norm"] for kind, tree in parts.items()}, y)
    assert jnp.abs(y).max() > 1
    np.testing.assert_allclose(folded, nn.relu(y + skip), atol=atol, rtol=atol)
