"""Activations: values and derivatives of every order of evaluation, on every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ops import platform
from jaxeff.ops.activations import elu

X = np.linspace(-4, 3, 12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("name", ["cpu", "tpu", "reference"])
def test_elu_and_its_derivatives_are_those_of_the_formula(name):
    with platform(name):
        y, push = jax.linearize(jax.jit(jax.vmap(elu)), X)
        (back,) = jax.vjp(elu, X)[1](X)
        slopes = jax.vmap(push)(np.stack([np.ones_like(X), X]))
    x = X.astype(np.float64)
    slope = np.where(x > 0, 1.0, np.exp(x))
    np.testing.assert_allclose(y, np.where(x > 0, x, np.expm1(x)), rtol=1e-6)
    np.testing.assert_allclose(back, slope * x, rtol=1e-5)
    np.testing.assert_allclose(slopes, [slope, slope * x], rtol=1e-5)


def test_only_programs_for_tpus_keep_the_values_apart():
    def has_barrier(name):
        with platform(name):
            return "optimization_barrier" in str(jax.make_jaxpr(elu)(jnp.asarray(X)))

    assert [name for name in ("cpu", "gpu", "tpu", "reference") if has_barrier(name)] == ["tpu"]
