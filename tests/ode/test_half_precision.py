"""Sums that are split into parts lose nothing in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff.ode import GRU, Elman, transport, unroll
from jaxeff.ode.transport import Coefficients
from jaxeff.ops import anchors, convolution, strided
from jaxeff.ops.cpu import rows

HALF = jnp.bfloat16


def random(seed, *shape):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, HALF).astype(jnp.float32)


def errors(function, *arguments):
    """Relative errors of the gradients in half precision, of a sum weighted by ones."""

    def gradients(arguments):
        def loss(arguments):
            return jnp.sum(function(*arguments).astype(jnp.float32))

        return jax.tree.map(lambda a: a.astype(jnp.float32), jax.grad(loss)(arguments))

    @jax.jit
    def both(arguments):
        return gradients(arguments), gradients(jax.tree.map(lambda a: a.astype(HALF), arguments))

    exact, half = map(jax.tree.leaves, both(arguments))
    return [
        float(jnp.linalg.norm((h - e).ravel()) / jnp.linalg.norm(e.ravel()))
        for h, e in zip(half, exact, strict=True)
    ]


CONVOLUTIONS = {
    "dense": (convolution.conv, (512, 6, 6, 2), (3, 3, 2, 3)),
    "depthwise": (convolution.depthwise_conv, (512, 6, 6, 2), (3, 3, 1, 2)),
    "strided": (lambda x, k: strided.conv(x, k, 2, 1), (512, 6, 6, 2), (3, 3, 2, 3)),
    "one channel": (lambda x, k: strided.conv(x, k, 1, 1), (512, 6, 6, 1), (3, 3, 1, 3)),
    "transposed": (
        lambda x, k: strided.transposed_conv(x, k, 2, 1, 1),
        (512, 3, 3, 2),
        (3, 3, 2, 3),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_of_kernels(name):
    function, images, kernel = CONVOLUTIONS[name]
    x, k = 1 + random(0, *images), random(1, *kernel)
    assert max(errors(function, x, k)) < 6e-3


def test_gradients_of_kernels_wider_than_the_image():
    x, k = 1 + random(0, 512, 4, 4, 2), random(1, 7, 7, 2, 3)
    assert errors(convolution.conv, x, k)[1] < 2.6e-3


@pytest.mark.slow
def test_outputs_of_many_taps():
    x, k = 1 + random(0, 1, 12, 12, 1), 1 + random(1, 9, 9, 1, 1)
    run = jax.jit(convolution.depthwise_conv)
    exact, half = run(x, k), run(x.astype(HALF), k.astype(HALF)).astype(jnp.float32)
    assert jnp.abs(half - exact).max() < 4e-3 * jnp.abs(exact).max()


def test_what_blocks_share(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 8)

    def scaled(shared, x):
        return x * shared

    def function(shared, x):
        return rows.rowwise(scaled, shared, x)

    assert max(errors(function, jnp.ones((1, 1)), 1 + 0.1 * random(0, 1024, 1))) < 4e-3


@pytest.mark.parametrize(
    ("cell", "backward"),
    swept([(Elman(2), "remat"), (Elman(2), "autodiff"), (GRU(2), "fused")], (GRU(2), "fused")),
)
def test_weights_of_recurrences(cell, backward):
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 1)

    def outputs(params, xs):
        return unroll(cell, params, xs, backward=backward)[1]

    xs = 1 + 0.1 * random(0, 768, 1, 1)
    assert max(errors(outputs, params, xs)[: len(params)]) < 6e-3


def test_sources_over_many_time_steps():
    h = 2 + random(0, 1, 4, 4, 1)

    def stepped(h, source):
        return transport.leapfrog(h, Coefficients(diffusion_x=0.125), source, num_steps=600)

    assert errors(stepped, h, 0.01 * h)[1] < 3e-2


@pytest.mark.slow
@pytest.mark.parametrize("fill", [anchors.interpolate, anchors.hold])
def test_values_that_many_pixels_take(fill):
    a, weight = random(0, 1, 3, 3, 2), 1 + random(1, 1, 192, 192, 2)

    def filled(a, weight):
        return fill(a, (192, 192), 64) * weight

    assert errors(filled, a, weight)[0] < 3e-3
