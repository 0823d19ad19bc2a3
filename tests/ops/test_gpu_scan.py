"""The scan of a GPU's registers, interpreted: sums over steps by a plain loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.ops.gpu.scan import scan_on_chip


def mixing(shared, indexed, carry, x):
    matrix, row, scale = shared
    carry = scale * (carry @ matrix) + row + x + indexed
    return carry, (carry, jnp.stack([carry, 2 * carry]))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("batch", "width"), [(5, 4), (33, 100)])
def test_sums_over_blocks_of_steps(batch, width, reverse):
    rng = np.random.default_rng(0)
    matrix, row = rng.normal(size=(width, width)) / width, rng.normal(size=width)
    xs, start = rng.normal(size=(3, 2, batch, width)), rng.normal(size=(batch, width))
    indexed = rng.normal(size=(3, 2, batch, 1))
    arrays = (matrix, row, 0.5), indexed, start, xs
    arrays = (tuple(map(jnp.float32, arrays[0])), *map(jnp.float32, arrays[1:]))
    last, (ys, pairs) = scan_on_chip(mixing, *arrays, reverse=reverse, interpret=True)
    state, expected = start, np.zeros_like(xs)
    steps = [(b, t) for b in range(3) for t in range(2)]
    for step in steps[::-1] if reverse else steps:
        state = 0.5 * (state @ matrix) + row + xs[step] + indexed[step]
        expected[step] = state
    np.testing.assert_allclose(last, state, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pairs, np.stack([expected, 2 * expected], 2), rtol=1e-5, atol=1e-5)


def test_coefficients_with_an_axis_of_the_batch_are_refused():
    def step(shared, indexed, carry, x):
        return carry * jnp.outer(jnp.arange(1.0, 1 + len(carry)), shared), None

    arrays = jnp.ones((20, 4)), jnp.ones((3, 2, 20, 4))
    with pytest.raises(ConfigError, match="coefficients have an axis of the batch"):
        scan_on_chip(step, jnp.ones(4), None, *arrays, interpret=True)
