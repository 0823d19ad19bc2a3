"""Programs for any batch and any number of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from sweeps import swept

from jaxeff import ode
from jaxeff.errors import ConfigError
from jaxeff.layers import GlobalLayer, Interpolated, SharedConv
from jaxeff.layers.conv import Ops
from jaxeff.layers.residual import BasicBody
from jaxeff.layers.strided import TransposedConv
from jaxeff.models import SequenceModel
from jaxeff.ops import platform

KEY = jax.random.key(0)
BATCH, TIME = export.symbolic_shape("b, t")


def exported(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return export.export(jax.jit(function), platforms=["cpu"])(*arguments)


def test_any_number_of_steps():
    model = SequenceModel(ode.TARNN(4), num_outputs=2, num_layers=2, readout="every_step")
    variables = jax.jit(model.init)(KEY, jnp.ones((1, 2, 3)))

    def run(x, mask):
        return model.apply(variables, x, mask=mask)

    program = exported(run, (BATCH, TIME, 3), (BATCH, TIME))
    x, mask = jax.random.normal(KEY, (3, 19, 3)), jnp.ones((3, 19)).at[1, 11:].set(0)
    np.testing.assert_allclose(program.call(x, mask), jax.jit(run)(x, mask), atol=1e-5)


def test_a_program_is_written_and_read():
    pytest.importorskip("flatbuffers")
    cell = ode.Elman(2)
    params = jax.jit(cell.init, static_argnums=1)(KEY, 3)
    program = exported(lambda xs: ode.unroll(cell, params, xs)[1], (TIME, BATCH, 3))
    read = export.deserialize(program.serialize())
    assert read.call(jnp.ones((5, 2, 3))).shape == (5, 2, 2)


@pytest.mark.parametrize("solver", ["euler", "implicit"])
def test_any_number_of_steps_of_a_cell(solver):
    cell = ode.IRNN(4, solver=solver)
    params = jax.jit(cell.init, static_argnums=1)(KEY, 3)
    program = exported(lambda xs: ode.unroll(cell, params, xs, reverse=True), (TIME, BATCH, 3))
    xs = jax.random.normal(KEY, (18, 2, 3))
    expected = jax.jit(lambda xs: ode.unroll(cell, params, xs, reverse=True))(xs)
    for found, wanted in zip(program.call(xs), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_needs_a_number_of_steps_says_so():
    timed = ode.IRNN(4, step_size_mode="per_time_step", length=9)
    for cell, run in ((timed, ode.unroll), (ode.Elman(4), ode.unroll_parallel)):
        params = jax.jit(cell.init, static_argnums=1)(KEY, 3)
        with pytest.raises(ConfigError, match="number of steps"):
            exported(lambda xs, c=cell, p=params, run=run: run(c, p, xs), (TIME, BATCH, 3))


LAYERS = [
    GlobalLayer(num_steps=2),
    Interpolated(BasicBody(Ops(), 2), dense_share=0.5),
    SharedConv("in_tile", 2, factor=2),
    TransposedConv(2, 3, 2, 1, 1),
]


@pytest.mark.parametrize("layer", swept(LAYERS, *list(LAYERS)[:2]))
def test_any_batch(layer):
    x = jax.random.normal(KEY, (5, 8, 8, 2))
    variables = jax.jit(layer.init)(KEY, x[:1])
    program = exported(lambda x: layer.apply(variables, x), (BATCH, 8, 8, 2))
    np.testing.assert_allclose(program.call(x), jax.jit(layer.apply)(variables, x), atol=1e-5)


def test_a_program_for_another_platform_has_no_branches():
    x = jax.ShapeDtypeStruct((BATCH, 8, 8, 2), jnp.float32)
    layer = LAYERS[0]
    variables = jax.eval_shape(layer.init, KEY, jnp.ones((1, 8, 8, 2)))

    def branches(name):
        with platform(name):
            program = export.export(jax.jit(layer.apply), platforms=["tpu"])(variables, x)
        return program.mlir_module().count("stablehlo.case")

    assert branches("reference") == 0
    assert branches("cpu") > 0  # arrays that are to be computed once
