"""Training that rounds as integers will."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxeff
from jaxeff import layers, ode
from jaxeff.config import base_config, distinctive, plain
from jaxeff.errors import ConfigError
from jaxeff.layers.residual import InvertedBody
from jaxeff.models import SequenceModel
from jaxeff.ops import convolution as ops
from jaxeff.quantize import FakeQuantization, Grid, quantize_network
from jaxeff.quantize.formats import QuantizeOptions, integer_kernel
from jaxeff.quantize.training import rounded_activation, rounded_kernel, rounded_state
from jaxeff.train import experiment, launch
from jaxeff.train.trained_model import run_config

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_kernels_are_those_of_the_integer_program(bits, per_channel):
    kernel = RNG.normal(size=(7, 5)).astype(np.float32) * [1, 2, 5, 0.1, 0]
    options = QuantizeOptions(weight_bits=bits, per_channel=per_channel)
    weights, scales = integer_kernel(kernel, 16, options)
    rounded = rounded_kernel(jnp.asarray(kernel, jnp.float32), bits, per_channel)
    np.testing.assert_allclose(rounded, weights * scales, rtol=1e-5)
    # What is rounded once stays, so that exported weights are the trained ones.
    np.testing.assert_allclose(rounded_kernel(rounded, bits, per_channel), rounded, rtol=1e-6)


def test_gradients_pass_through():
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 2, 4)), jnp.float32)
    weights = jnp.asarray(RNG.normal(size=kernel.shape), jnp.float32)
    grads = jax.grad(lambda k: (rounded_kernel(k, 4) * weights).sum())(kernel)
    np.testing.assert_allclose(grads, weights)
    state = jnp.array([-3.0, -0.3, 0.3, 3.0])
    np.testing.assert_allclose(rounded_state(state, 8, 1.0), [-1, -38 / 128, 38 / 128, 127 / 128])
    np.testing.assert_allclose(rounded_state(state, 8, 4.0), [-3, -10 / 32, 10 / 32, 3])
    grads = jax.grad(lambda s: rounded_state(s, 8, 1.0).sum())(state)
    np.testing.assert_array_equal(grads, [0, 1, 1, 0])


@pytest.mark.slow
def test_states_are_rounded_at_every_step_and_gradients_are_those_of_any_backward():
    rounding = FakeQuantization(state_bits=8)
    cell = rounding.cell(ode.TARNN(5, num_inner_steps=2, activation="tanh", step_size=0.3))
    params = cell.init(jax.random.key(0), 3)
    xs = jnp.asarray(RNG.normal(size=(9, 2, 3)), jnp.float32)
    carry = cell.initial_carry((2,), jnp.float32, 3)

    def loss(params, backward):
        _, ys = ode.unroll(cell, params, xs, carry, backward=backward)
        return (ys**2).sum(), ys

    grads = {}
    for backward in ("fused", "autodiff"):
        grads[backward], ys = jax.grad(loss, has_aux=True)(params, backward)
        np.testing.assert_array_equal(ys * 128, np.round(ys * 128))
        assert np.abs(ys).max() > 0.05
    # From a state of zeros the inner steps are those of the cell itself, and only their end rounds.
    _, y = ode.TARNN(5, num_inner_steps=2, activation="tanh", step_size=0.3).step(
        params, carry, xs[0]
    )
    np.testing.assert_allclose(ys[0], np.floor(y * 128 + 0.5) / 128, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads["fused"], grads["autodiff"]
    )


@pytest.mark.slow
def test_other_cells_round_too():
    cell = FakeQuantization(state_bits=8).cell(ode.DualODE(4, activation="tanh", step_size=0.9))
    params = cell.init(jax.random.key(0), 3)
    carry, y = cell.step(params, cell.initial_carry((2,)), 5 * jnp.ones((2, 3)))
    assert np.abs(y).max() > 0.05
    np.testing.assert_array_equal(y * 128, np.round(y * 128))
    np.testing.assert_array_equal(carry, y)
    with pytest.raises(ConfigError, match="solver=euler"):
        FakeQuantization(state_bits=8).cell(ode.IRNN(4, solver="implicit"))


def config_with(**quantize_fields):
    config = base_config()
    config.data.update({"name": "digits", "view": "rows"})
    config.model = {"name": "sequence", "cell": {"name": "gru", "features": 4}}
    config.quantize.update(quantize_fields)
    return config


@pytest.mark.parametrize("bits", [8, 16])
def test_activations_are_multiples_of_a_scale_of_each_example(bits):
    x = jnp.asarray(RNG.normal(size=(3, 40)), jnp.float32) * jnp.array([[1.0], [10.0], [0.0]]) + 0.5
    rounded = np.asarray(rounded_activation(x, bits))
    for row, exact in zip(rounded, np.asarray(x), strict=True):
        grid = Grid.of_range(exact.min(), exact.max(), bits)
        np.testing.assert_allclose(row, grid.reals(grid.integers(exact)), atol=1.001 * grid.scale)
        multiples = row / grid.scale
        np.testing.assert_allclose(multiples, np.round(multiples), atol=1e-2)
    np.testing.assert_allclose(rounded_activation(x[:1], bits), rounded[:1], rtol=1e-6)
    grads = jax.grad(lambda x: (rounded_activation(x, bits) * x).sum())(x)
    np.testing.assert_allclose(grads, rounded + x, rtol=1e-6)


def test_layers_read_rounded_inputs_and_nothing_else_changes():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnp.tanh(layers.Conv(3)(x))
            return nn.Dense(4)(x.reshape(len(x), -1))

    x = jnp.asarray(RNG.normal(size=(2, 4, 4, 1)), jnp.float32)
    variables = Model().init(jax.random.key(0), x)
    with FakeQuantization(activation_bits=8).activations():
        outputs = Model().apply(variables, x)
    first, second = (variables["params"][name] for name in ("Conv_0", "Dense_0"))
    y = jnp.tanh(ops.conv(rounded_activation(x, 8), first["kernel"])).reshape(2, -1)
    expected = rounded_activation(y, 8) @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    assert np.abs(outputs - Model().apply(variables, x)).max() > 1e-4


def test_every_convolution_of_a_block_reads_rounded_inputs():
    block = layers.Interpolated(InvertedBody(layers.Ops(), 4, hidden=8))
    x = jnp.asarray(RNG.normal(size=(1, 6, 6, 4)), jnp.float32)
    variables = block.init(jax.random.key(0), x)
    called = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, layers.Conv) and context.method_name == "__call__":
            called.append((*context.module.path, "kernel"))
        return call(*args, **kwargs)

    with FakeQuantization(activation_bits=8).activations(), nn.intercept_methods(note):
        block.apply(variables, x)
    kernels = [path for path in flatten_dict(variables["params"]) if path[-1] == "kernel"]
    assert sorted(called) == sorted(kernels)


@pytest.mark.slow
def test_a_training_rounds_weights_and_activations(tmp_path):
    config = base_config()
    config.data.name = "digits"
    config.model = {"name": "mlp", "hidden": (8,)}
    config.quantize.update({"weight_bits": 4, "activation_bits": 8})
    config.train.num_steps, config.devices.cpu = 300, 1
    launch.run(config, tmp_path)
    run = jaxeff.load(tmp_path, data=True)
    train, test = (run.dataset.splits[each] for each in ("train", "test"))
    options = QuantizeOptions(weight_bits=4, activation_bits=8)
    calibration = train.take(np.arange(128))["inputs"]
    network = quantize_network(run.model, run.variables, calibration, options)
    inputs = test.take(np.arange(len(test)))["inputs"]
    rounded = np.asarray(run.forward(run.variables, {"inputs": inputs}))
    plain_outputs = np.asarray(run.model.apply(run.variables, inputs))
    # What the training's rounding predicts is what the integers give, up to the activations' scale.
    assert np.abs(network(inputs) - rounded).max() < 0.3 * np.abs(plain_outputs - rounded).max()


@pytest.mark.slow
def test_a_config_rounds_what_its_algorithm_sees():
    built = experiment.build(config_with(weight_bits=4, state_bits=8))
    batch = {"inputs": jnp.asarray(RNG.normal(size=(2, 8, 8)), jnp.float32)}
    variables = built.model.init(jax.random.key(0), batch["inputs"])
    outputs, _, _ = built.algorithm.forward(variables, batch, train=False)
    rounding = FakeQuantization(weight_bits=4, state_bits=8)
    cell = rounding.cell(ode.GRU(4))
    model = SequenceModel(cell, num_outputs=10)
    expected = model.apply(rounding.variables(variables), batch["inputs"])
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    assert np.abs(outputs - built.model.apply(variables, batch["inputs"])).max() > 1e-3
    kernel = rounding.variables(variables)["params"]["readout"]["kernel"]
    assert len(np.unique(np.asarray(kernel[:, 0]))) < 5


def test_impossible_roundings_are_refused():
    for fields, match in (
        ({"weight_bits": 9}, "weight_bits"),
        ({"state_bits": 4}, "state_bits must be 0, 8 or 16"),
        ({"activation_bits": 4}, "activation_bits must be 0, 8 or 16"),
        ({"activation_bits": 8}, "a recurrent model rounds its state"),
        ({"state_bits": 8, "state_bound": 3.0}, "power of two"),
        ({"weight_bits": 8, "state_bound": 2.0}, "state_bound has no effect; set state_bits"),
        ({"state_bits": 8, "per_channel": False}, "per_channel has no effect; set weight_bits"),
    ):
        with pytest.raises(ConfigError, match=match):
            experiment.build(config_with(**fields))
    config = config_with(state_bits=8)
    config.model = {"name": "mlp"}
    with pytest.raises(ConfigError, match="no recurrent state"):
        experiment.build(config)
    config = config_with(weight_bits=8)
    config.algorithm.name = "early_exits"
    with pytest.raises(ConfigError, match="early_exits"):
        experiment.build(config)


def test_runs_of_before_go_on(tmp_path):
    fields = plain(config_with())
    older = {name: value for name, value in fields.items() if name != "quantize"}
    older["prerequisites"] = {"base": dict(older)}
    newer = {**fields, "prerequisites": {"base": dict(fields)}}
    assert distinctive(newer) == distinctive(older)
    rounding = plain(config_with(weight_bits=8))
    assert distinctive(rounding) != distinctive(older)
    # Configs that already had the section lacked its last field.
    for each in (fields, rounding):
        section = {n: v for n, v in each["quantize"].items() if n != "activation_bits"}
        assert distinctive({**each, "quantize": section}) == distinctive(each)
    older["devices"] = {"cpu": 3}
    older["prerequisites"] = {}
    (tmp_path / "config.json").write_text(json.dumps(older))
    expected = config_with()
    expected.devices.cpu = 3
    assert plain(run_config(tmp_path)) == plain(expected)
