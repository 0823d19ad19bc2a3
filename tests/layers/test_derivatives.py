"""Derivatives of any order and mode of every layer but the recurrent ones, as plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff.layers import Conv, GlobalLayer, Interpolated, Ops, SharedConv
from jaxeff.layers import residual as bodies
from jaxeff.layers.router import ReleasedRouter, SlimRouter
from jaxeff.layers.shared_conv import MODES, TILED
from jaxeff.layers.strided import StridedConv, TransposedConv
from jaxeff.ops import platform

OPS = Ops(activation="swish")  # smooth, so that second derivatives are not zero
MAP, VOLUME = (2, 6, 6, 4), (2, 4, 4, 4, 2)

#: Layers, and the shapes of what they read.
LAYERS = {
    "conv": (Conv(3, use_bias=True), MAP),
    "depthwise": (Conv(0, 5, 2), MAP),
    "tiny": (Conv(3, 7), (2, 2, 2, 4)),
    "strided": (StridedConv(3, 3, 2, 1), MAP),
    "strided_volume": (StridedConv(3, 3, 2, 1), VOLUME),
    "transposed": (TransposedConv(3, 4, 2, 1, 1), MAP),
    "transposed_volume": (TransposedConv(2, 3, 2, 1), VOLUME),
    "global": (GlobalLayer(num_steps=2, activation="swish"), MAP),
    "global_euler": (GlobalLayer(start="euler", num_steps=2, boundary="reflecting"), MAP),
    "global_product": (GlobalLayer(product=True, residual=True, velocity="signed"), MAP),
    "global_spectral": (GlobalLayer(scheme="spectral"), MAP),
    "global_implicit": (GlobalLayer(scheme="line_implicit", num_steps=2), MAP),
    "interpolated": (Interpolated(bodies.BasicBody(OPS, 4)), MAP),
    "interpolated_edges": (
        Interpolated(bodies.BasicBody(OPS, 4), interpolation="edge_aware", dense_share=0.5, tile=3),
        MAP,
    ),
    **{
        f"shared_{mode}": (SharedConv(mode, 4, factor=2 if mode in TILED else 1), MAP)
        for mode in MODES
    },
    "bottleneck": (bodies.BottleneckBody(OPS, 4), MAP),
    "inverted": (bodies.InvertedBody(OPS, 4), MAP),
    "inverted_expanded": (bodies.InvertedBody(OPS, 4, hidden=8), MAP),
    "separable": (bodies.SeparableBody(OPS, 4), MAP),
    "dense": (bodies.DenseBody(OPS, 4, 4), MAP),
    "slim_router": (SlimRouter(), (2, 5), (2, 8)),
    "released_router": (ReleasedRouter(), (2, 5), (2, 8)),
}
FAST = ("conv", "depthwise", "strided", "transposed", "global", "global_implicit", "interpolated")


def along_a_line(layer, *shapes):
    """A number of t, of parameters and inputs that t moves along fixed ways."""
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
    variables = jax.eval_shape(layer.init, jax.random.key(0), *inputs)
    variables = jax.tree.map(lambda v: jnp.asarray(0.1 + 0.3 * rng.random(v.shape)), variables)
    start = variables["params"], inputs
    way = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), start)

    def value(t):
        params, inputs = jax.tree.map(lambda a, b: a + t * b, start, way)
        y = layer.apply({**variables, "params": params}, *inputs)
        return jnp.mean(jnp.sin(y))

    return value


def derivatives(value):
    """First and second derivatives at 0, each by several combinations of modes."""
    first = jax.grad(value), lambda t: jax.jvp(value, (t,), (1.0,))[1]
    second = jax.hessian(value), jax.jacfwd(jax.jacfwd(value)), jax.jacrev(jax.jacfwd(value))
    return lambda t: ([f(t) for f in first], [f(t) for f in second])


@pytest.mark.parametrize("name", swept(LAYERS, *FAST))
def test_a_hessian_takes_forward_and_reverse_mode(x64, name):
    with platform("reference"):
        assert jax.eval_shape(jax.hessian(along_a_line(*LAYERS[name])), 0.0).shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_all_modes_of_differentiation_agree(x64, name):
    with platform("reference"):
        first, second = jax.jit(derivatives(along_a_line(*LAYERS[name])))(0.0)
    rtol = 1e-3 if "router" in name else 1e-9  # routers compute in single precision
    np.testing.assert_allclose(first[1], first[0], rtol=rtol)
    np.testing.assert_allclose(second[1:], second[0], rtol=rtol)
