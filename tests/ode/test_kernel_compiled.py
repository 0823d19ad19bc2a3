"""Recurrent kernels compiled by Mosaic for TPUs that are not there."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scan_cases import CASES

from jaxeff import ode
from jaxeff.ops import platform

pytestmark = pytest.mark.slow

#: What libtpu asks a TPU machine's metadata for, where there is none.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
#: One width of whole tiles and one of none.
SETTINGS = [(128, jnp.float32), (100, jnp.float32), (128, jnp.bfloat16)]


@pytest.fixture
def place(monkeypatch):
    pytest.importorskip("libtpu", reason="needs libtpu: pip install 'jaxeff[aot-tpu]'")
    for variable, value in NO_TPU.items():
        monkeypatch.setenv(variable, value)
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    return NamedSharding(Mesh(devices[:1], ("data",)), PartitionSpec())


@pytest.mark.parametrize("name", [name for name, cell in CASES.items() if cell.fused])
@pytest.mark.parametrize(("width", "dtype"), SETTINGS)
def test_kernels_of_every_cell_compile(name, width, dtype, place):
    cell = dataclasses.replace(CASES[name], features=width)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8, dtype))
    carry = jax.eval_shape(lambda: cell.initial_carry((24,), dtype, 8))
    xs, mask = ((jax.ShapeDtypeStruct((21, 24, *w), t)) for w, t in (((8,), dtype), ((), bool)))

    def loss(params, xs, carry, mask):
        with platform("tpu"):
            out = ode.unroll(cell, params, xs, carry, mask=mask, driver="kernel")
        return sum(jnp.sum(jnp.sin(a.astype(jnp.float32))) for a in jax.tree.leaves(out))

    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), (params, xs, carry, mask)
    )
    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile().as_text()
    # Forward and backward, of the whole blocks and of the remainder.
    assert program.count('custom_call_target="tpu_custom_call"') == 4
