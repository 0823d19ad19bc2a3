"""Gradients of biases and scales in half precision: sums of many pixels in single precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.layers import Conv, GlobalLayer, SharedConv
from jaxeff.layers.strided import StridedConv

LAYERS = {
    "conv": (Conv(4, (3, 3), use_bias=True), lambda p: p["bias"]),
    "strided": (StridedConv(4, 3, 2, use_bias=True), lambda p: p["bias"]),
    "shift": (SharedConv("in_tile", 4, (3, 3), modulate=True), lambda p: p["shift"]),
    "scale": (SharedConv("in_tile", 4, (3, 3), modulate=True), lambda p: p["scale"]),
    "global": (GlobalLayer(num_steps=1), lambda p: p["norm_diffusion_x"]["bias"]),
}


@pytest.mark.parametrize(
    "name",
    ["conv", "strided", "shift", "scale", pytest.param("global", marks=pytest.mark.slow)],
)
def test_gradients_of_biases_and_scales_are_summed_in_single_precision(name):
    layer, bias = LAYERS[name]
    x = jax.random.normal(jax.random.key(0), (4, 64, 64, 4), jnp.bfloat16)

    @jax.jit
    def both(x):
        variables = layer.init(jax.random.key(1), x.astype(jnp.float32))

        def gradient(layer, x):
            def loss(variables):
                return (layer.apply(variables, x).astype(jnp.float32) ** 2).mean()

            return bias(jax.grad(loss)(variables)["params"])

        return gradient(layer, x.astype(jnp.float32)), gradient(layer.clone(dtype=x.dtype), x)

    full, half = map(np.asarray, both(x))
    assert np.linalg.norm(half - full) < 0.03 * np.linalg.norm(full)
