import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.layers import RNN, LSTMCell
from jaxeff.models import MODELS, SequenceModel
from jaxeff.ode import GRU, IRNN, LSTM

XS = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)


def build(**fields):
    config = {"name": "sequence", "cell": {"name": "irnn", "features": 6}, **fields}
    return MODELS.build(config, "model", num_outputs=4)


def made(model, inputs=XS):
    return jax.jit(model.init_with_output)(jax.random.key(0), inputs)


@pytest.mark.parametrize(
    ("readout", "shape", "num_layers"),
    swept(
        [(*kind, n) for kind in (("last", (2, 4)), ("every_step", (2, 5, 4))) for n in (1, 2)],
        ("last", (2, 4), 2),
        ("every_step", (2, 5, 4), 1),
    ),
)
def test_output_shapes(readout, shape, num_layers):
    model = build(readout=readout, num_layers=num_layers)
    y, variables = made(model)
    chex.assert_shape(y, shape)
    assert y.dtype == jnp.float32
    cells = {f"cell_{i}" for i in range(num_layers)}
    assert set(variables["params"]) == {*cells, "readout"}
    chex.assert_tree_all_finite(y)


def test_model_is_its_layers_and_a_linear_readout():
    model = SequenceModel(cell=LSTM(6), num_outputs=4, num_layers=2)
    y, variables = made(model)

    @jax.jit
    def by_hand(params):
        states = XS
        for layer in range(2):
            states = RNN(LSTMCell(6)).apply({"params": {"cell": params[f"cell_{layer}"]}}, states)
        readout = params["readout"]
        return states[:, -1] @ readout["kernel"] + readout["bias"]

    expected = by_hand(variables["params"])
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.slow
def test_last_readout_is_the_end_of_every_step():
    last, every = (
        SequenceModel(cell=GRU(6), num_outputs=4, readout=readout)
        for readout in ("last", "every_step")
    )
    end, variables = made(last)
    outputs = np.asarray(jax.jit(every.apply)(variables, XS))
    np.testing.assert_allclose(end, outputs[:, -1], atol=1e-6)


def test_layers_have_parameters_of_their_own():
    variables = jax.eval_shape(build(num_layers=2).init, jax.random.key(0), XS)["params"]
    assert variables["cell_0"]["W"].shape == (3, 6)
    assert variables["cell_1"]["W"].shape == (6, 6)


def test_dropout_is_active_in_training_only():
    model = build(dropout=0.5)
    apply = jax.jit(model.apply, static_argnames="train")
    _, variables = made(model)
    plain = np.asarray(apply(variables, XS))
    np.testing.assert_array_equal(apply(variables, XS), plain)
    first, second = (
        np.asarray(apply(variables, XS, train=True, rngs={"dropout": jax.random.key(k)}))
        for k in (1, 2)
    )
    assert np.abs(first - second).max() > 0
    assert np.abs(first - plain).max() > 0
    # No dropout needs no key.
    without = jax.jit(lambda v: build().apply(v, XS, train=True))(variables)
    np.testing.assert_array_equal(without, plain)


def test_mask_is_a_shorter_sequence():
    model = build(num_layers=2)
    mask = np.asarray([[1, 1, 1, 0, 0]] * 2)

    @jax.jit
    def both():
        variables = model.init(jax.random.key(0), XS)
        return model.apply(variables, XS, mask=mask), model.apply(variables, XS[:, :3])

    masked, short = both()
    np.testing.assert_allclose(masked, short, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5), (2, 28, 28, 1), (3,)])
def test_wrong_rank_names_the_config_field(shape):
    with pytest.raises(ValueError, match=r"\[batch, time, features\].*config.data.view"):
        build().init(jax.random.key(0), jnp.ones(shape))


def test_dtype_is_that_of_the_computation():
    model = build(dtype="bfloat16")
    y, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), XS)
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_backward_reaches_the_layers():
    model = build(backward="fused", cell={"name": "irnn", "features": 6, "solver": "implicit"})
    with pytest.raises(ConfigError, match="needs a FusedCell"):
        model.init(jax.random.key(0), XS)


def test_config_reaches_the_cell():
    model = build(cell={"name": "irnn", "features": 6, "num_inner_steps": 3, "decay": 0.5})
    assert model.cell == IRNN(6, num_inner_steps=3, decay=0.5)
    assert model.num_outputs == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layer": 2}, "config.model.num_layer: .* did you mean 'num_layers'"),
        ({"readout": "lats"}, "readout: unknown choice 'lats'; did you mean 'last'"),
        ({"num_layers": 0}, "num_layers must be a whole number"),
        ({"cell": {"name": "irn", "features": 6}}, "config.model.cell.name: .*mean 'irnn'"),
        ({"cell": {"features": 6}}, "config.model.cell needs a field 'name'"),
        (
            {"cell": {"name": "irnn", "features": 6, "num_iner_steps": 2}},
            "config.model.cell.num_iner_steps: .* did you mean 'num_inner_steps'",
        ),
        ({"name": "sequense"}, "config.model.name: unknown model 'sequense'; did you mean"),
        ({"num_layers": 1.5}, "num_layers must be a whole number"),
        ({"dtype": "float33"}, "config.model.*float33"),
    ],
)
def test_wrong_config_says_which_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)


@pytest.mark.parametrize(
    ("cell", "num_layers"),
    swept([("lstm", 1), ("lstm", 2), ("tarnn", 1), ("tarnn", 2)], ("tarnn", 1)),
)
def test_parts_with_a_carried_state_equal_the_whole(cell, num_layers):
    fields = {"cell": {"name": cell, "features": 6}, "readout": "every_step"}
    model = build(num_layers=num_layers, **fields)

    @jax.jit
    def found():
        whole, variables = model.init_with_output(jax.random.key(0), XS)
        start = model.initial_carry(XS)
        first, carry = model.apply(variables, XS[:, :2], carry=start, return_carry=True)
        second, end = model.apply(variables, XS[:, 2:], carry=carry, return_carry=True)
        return jnp.concatenate([first, second], 1), whole, end, start

    parts, whole, end, start = found()
    chex.assert_trees_all_close(parts, whole, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(end, start)


def test_integers_are_embedded():
    model = build(embedding=5, readout="every_step")
    tokens = np.asarray([[0, 3, 1], [2, 2, 0]], np.int32)
    y, variables = jax.jit(model.init_with_output)(jax.random.key(0), tokens)
    chex.assert_shape(y, (2, 3, 4))
    table = variables["params"].pop("Embed_0")["embedding"]
    chex.assert_shape(table, (4, 5))
    vectors = np.asarray(table)[tokens]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, vectors), y, atol=1e-6)
    assert jax.eval_shape(model.initial_carry, tokens)[0].shape == (2, 6)
    with pytest.raises(ValueError, match=r"takes \[batch, time, features\] or integers"):
        model.init(jax.random.key(0), XS[..., 0])


@pytest.mark.slow
def test_time_constants_of_a_model_are_those_of_its_first_cell():
    model = build(cell={"name": "tarnn", "features": 6}, num_layers=2)

    @jax.jit
    def both():
        params = model.init(jax.random.key(0), XS)["params"]
        found = model.time_constants(params, XS)
        return found, model.cell.time_constants(params["cell_0"], jnp.swapaxes(XS, 0, 1))

    found, expected = map(np.asarray, both())
    np.testing.assert_array_equal(found, np.swapaxes(expected, 0, 1))
    assert model.time_adaptive
    assert not build().time_adaptive
