"""Recurrent kernels compiled by Mosaic and Triton for TPUs and GPUs that are not there."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scan_cases import CASES

from jaxeff import ode
from jaxeff.bench import topologies
from jaxeff.ops import platform

pytestmark = pytest.mark.slow

#: One width of whole tiles and one of none.
SETTINGS = [(128, jnp.float32), (100, jnp.float32), (128, jnp.bfloat16)]
#: Topologies, the package that compiles for each, and what a kernel is in the program.
CHIPS = {
    "tpu": ("v5e:2x2", "libtpu", 'custom_call_target="tpu_custom_call"'),
    "gpu": ("h100:1", "jax_plugins", 'custom_call_target="__gpu$xla.gpu.triton"'),
}


@pytest.fixture(scope="module", params=CHIPS)
def chip(request):
    """The platform, a device of it, and the name of its kernels."""
    name, package, kernel = CHIPS[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install 'jaxeff[aot-{request.param}]'")
    topologies.prepare(name)
    mesh = Mesh(topologies.topology(name).devices[:1], ("data",))
    return request.param, mesh, kernel


@pytest.mark.parametrize("name", [name for name, cell in CASES.items() if cell.fused])
@pytest.mark.parametrize(("width", "dtype"), SETTINGS)
def test_kernels_of_every_cell_compile(name, width, dtype, chip):
    kind, mesh, kernel = chip
    cell = dataclasses.replace(CASES[name], features=width)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8, dtype))
    carry = jax.eval_shape(lambda: cell.initial_carry((24,), dtype, 8))
    xs, mask = ((jax.ShapeDtypeStruct((21, 24, *w), t)) for w, t in (((8,), dtype), ((), bool)))

    def loss(params, xs, carry, mask):
        with platform(kind):
            out = ode.unroll(cell, params, xs, carry, mask=mask, driver="kernel")
        return sum(jnp.sum(jnp.sin(a.astype(jnp.float32))) for a in jax.tree.leaves(out))

    place = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), (params, xs, carry, mask)
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments)
    options = topologies.topology(CHIPS[kind][0]).compiler_options
    program = lowered.compile(compiler_options=options or None).as_text()
    # Forward and backward, of the whole blocks and of the remainder.
    assert program.count(kernel) == 4
