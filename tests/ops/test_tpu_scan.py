"""The scan of a TPU's vector memory: what it takes, and what it is compiled to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.ops.tpu import scan as tpu_scan
from jaxeff.ops.tpu.scan import scan_on_chip, vmem_bytes
from jaxeff.ops.wide_products import summed_wide


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_bytes_are_those_of_whole_tiles():
    tile = 8 * 128 * 4
    assert vmem_bytes([array(3, 130)], [], [], rows=8) == 2 * tile
    assert vmem_bytes([array(16, 128, dtype=jnp.bfloat16)], [], [], rows=8) == tile
    assert vmem_bytes([], [array(20, 100)], [], rows=9) == 4 * 2 * tile
    assert vmem_bytes([], [], [array(7, 5, 3, 64, 1)], rows=16) == 2 * 15 * 2 * tile


def test_batches_are_cut_as_little_as_fits(monkeypatch):
    moving = [array(4, 16, 1000, 128)]
    assert tpu_scan._batch_block(1000, [], [], moving)[0] == 1000
    needed = vmem_bytes([], [], moving, 256) + tpu_scan.VMEM_RESERVE
    monkeypatch.setattr(tpu_scan, "VMEM_LIMIT", needed)
    assert tpu_scan._batch_block(1000, [], [], moving) == (256, needed)
    monkeypatch.setattr(tpu_scan, "VMEM_LIMIT", tpu_scan.VMEM_RESERVE)
    with pytest.raises(ConfigError, match="a kernel for 16 rows of this cell needs 8 MiB"):
        tpu_scan._batch_block(1000, [], [], moving)


def summing(shared, indexed, carry, x):
    carry = shared * carry + x
    return carry, carry


@pytest.mark.parametrize("reverse", [False, True])
def test_sums_over_blocks_of_steps(reverse):
    rng = np.random.default_rng(0)
    xs, start = rng.normal(size=(3, 2, 5, 4)), rng.normal(size=(5, 4))
    options = {"reverse": reverse, "interpret": True}
    last, ys = scan_on_chip(
        summing, jnp.float32(0.5), None, jnp.float32(start), jnp.float32(xs), **options
    )
    state, expected = start, np.zeros_like(xs)
    steps = [(b, t) for b in range(3) for t in range(2)]
    for step in steps[::-1] if reverse else steps:
        state = 0.5 * state + xs[step]
        expected[step] = state
    np.testing.assert_allclose(ys, expected, atol=1e-6)
    np.testing.assert_allclose(last, state, atol=1e-6)


def test_what_is_no_number_in_every_step_is_refused():
    def step(shared, indexed, carry, x):
        return jnp.where(shared > 0, carry, x), None

    arrays = jnp.ones((5, 4)), jnp.ones((3, 2, 5, 4))
    with pytest.raises(ConfigError, match=r"needs bool\[4\] in every step; take driver='scan'"):
        scan_on_chip(step, jnp.ones(4), None, *arrays, interpret=True)


def test_coefficients_with_an_axis_of_the_batch_are_refused(monkeypatch):
    monkeypatch.setattr(tpu_scan, "_batch_block", lambda *_: (16, 2**20))

    def step(shared, indexed, carry, x):
        return carry * jnp.outer(jnp.arange(1.0, 1 + len(carry)), shared), None

    arrays = jnp.ones((20, 4)), jnp.ones((3, 2, 20, 4))
    with pytest.raises(ConfigError, match="coefficients have an axis of the batch"):
        scan_on_chip(step, jnp.ones(4), None, *arrays, interpret=True)


def test_products_in_half_precision_are_summed_in_single():
    @jax.jit
    def inner(a, b):
        return jnp.tanh(a @ b)

    a = jnp.ones((4, 8), jnp.bfloat16)
    b = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.bfloat16)
    program = jax.make_jaxpr(summed_wide(lambda a, b: 2 * inner(a, b)))(a, b)
    assert "preferred_element_type=float32" in str(program)
    assert "preferred_element_type=bfloat16" not in str(program)
    result = summed_wide(inner)(a, b)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(result), np.float32(inner(a, b)), rtol=2e-2)
