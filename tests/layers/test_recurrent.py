"""The Flax cells and the sequence wrapper against Flax's own and against the pure cells."""

import dataclasses
import inspect
import pydoc
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import apply, init
from flax import nnx
from sweeps import swept

from jaxeff import ode
from jaxeff.layers import (
    RNN,
    AntisymmetricRNNCell,
    CoRNNCell,
    DualODECell,
    FastGRNNCell,
    FastRNNCell,
    GRUCell,
    IRNNCell,
    LSTMCell,
    RNNCell,
    TARNNCell,
    from_pure,
)

CELLS = {
    "irnn": IRNNCell(5, num_inner_steps=2, step_size=0.3),
    "rnn": RNNCell(5),
    "lstm": LSTMCell(5),
    "gru": GRUCell(5),
    "fastrnn": FastRNNCell(5),
    "fastgrnn": FastGRNNCell(5),
    "antisymmetric": AntisymmetricRNNCell(5),
    "cornn": CoRNNCell(5),
    "tarnn": TARNNCell(5, step_size=0.3, num_inner_steps=2),
    "dual_ode": DualODECell(6, step_size=0.3),
}
CARRIES = {name: [5] for name in CELLS} | {"lstm": [5, 5], "cornn": [5, 5]}
CARRIES |= {"tarnn": [5, 3, 1], "dual_ode": [6]}
BATCH, TIME, INPUTS, FEATURES = 2, 4, 3, 5

every_cell = pytest.mark.parametrize("name", CELLS)


def inputs(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(BATCH, TIME, INPUTS)), dtype)


def test_every_registered_cell_has_a_layer():
    assert {type(cell.pure) for cell in CELLS.values()} == {ode.CELLS[n] for n in ode.CELLS}
    assert {ode.CELLS[name] for name in CELLS} == {ode.CELLS[n] for n in ode.CELLS}


@every_cell
def test_fields_and_defaults_are_those_of_the_pure_cell(name):
    cls = type(CELLS[name])
    pure = ode.CELLS[name]
    theirs = {f.name: f.default for f in dataclasses.fields(pure)}
    ours = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    assert {key: ours[key] for key in theirs if key != "features"} == {
        key: default for key, default in theirs.items() if key != "features"
    }
    assert set(ours) - set(theirs) == {"dtype", "param_dtype", "parent", "name"}
    assert list(ours)[: len(theirs)] == list(theirs)  # positional arguments too
    assert cls(8).pure == pure(8)
    assert cls(8, dtype=jnp.bfloat16).clone(name="x") == cls(8, dtype=jnp.bfloat16, name="x")
    assert cls.__name__ == cls.__qualname__
    assert pydoc.render_doc(cls).count("features")


@every_cell
def test_options_reach_the_pure_cell(name):
    changes = {
        "irnn": {"decay": 0.7, "solver": "implicit"},
        "rnn": {"activation": "relu"},
        "lstm": {"forget_bias": 1.0},
        "gru": {},
        "fastrnn": {"alpha_init": 0.0},
        "fastgrnn": {"nu_init": 0.0},
        "antisymmetric": {"gated": False},
        "cornn": {"gamma": 1.0},
        "tarnn": {"variant": "outside", "gate_bias": 1.0},
        "dual_ode": {"gate_bias": 0.0, "features": 4},
    }[name]
    changes = {"features": 3, **changes}
    assert type(CELLS[name])(**changes).pure == ode.CELLS[name](**changes)


@every_cell
def test_round_trip_from_the_pure_cell(name):
    cell = CELLS[name]
    layer = from_pure(cell.pure, dtype=jnp.bfloat16, name="x")
    assert (layer.pure, layer.dtype, layer.name) == (cell.pure, jnp.bfloat16, "x")
    trees = (jax.eval_shape(RNN(c).init, jax.random.key(0), inputs()) for c in (layer, cell))
    chex.assert_trees_all_equal_shapes_and_dtypes(*trees)


def test_a_cell_of_ones_own_becomes_a_layer():
    @dataclasses.dataclass(frozen=True)
    class Leaky(ode.Cell):
        """Leaky sum.

        Attributes:
          rate: leak.
        """

        rate: float = 0.5

        def param_specs(self, input_size):
            shape = (input_size, self.features)
            return {"W": ode.ParamSpec(shape, jax.nn.initializers.ones)}

        def step(self, params, carry, x):
            new = self.rate * carry + x @ params["W"]
            return new, new

    layer = from_pure(Leaky(2, rate=0.25))
    ys, variables = RNN(layer).init_with_output(jax.random.key(0), jnp.ones((1, 2, 3)))
    np.testing.assert_allclose(ys[0], [[3.0, 3.0], [3.75, 3.75]])
    assert variables["params"]["cell"]["W"].shape == (3, 2)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "cornn" else pytest.mark.slow) for name in CELLS],
)
def test_values_and_gradients_equal_flax_rnn(name, jitter):
    cell, xs = CELLS[name], inputs()
    own, peer = RNN(cell, return_carry=True), nn.RNN(cell, return_carry=True)
    variables = jitter(init(own, xs))
    theirs = jax.eval_shape(peer.init, jax.random.key(0), xs)
    chex.assert_trees_all_equal_shapes(variables, theirs)

    def loss(variables, xs, module):
        out = module.apply(variables, xs)
        return jnp.sum(jnp.sin(out[1])), out

    actual, expected = (
        jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)(
            variables, xs, module
        )
        for module in (own, peer)
    )
    chex.assert_trees_all_close(actual, expected, atol=2e-5, rtol=1e-5)
    chex.assert_shape(actual[0][1][1], (BATCH, TIME, cell.features))


@pytest.mark.parametrize("name", swept(["irnn", "lstm"], "irnn"))
def test_cells_work_in_flax_bidirectional(name):
    cell, xs = CELLS[name], inputs()
    both = nn.Bidirectional(nn.RNN(cell.clone()), nn.RNN(cell.clone()))
    ys, variables = jax.jit(both.init_with_output)(jax.random.key(0), xs)
    params = variables["params"]
    forward = apply(RNN(cell), {"params": params["forward_rnn"]}, xs)
    backward = apply(
        RNN(cell, reverse=True, keep_order=True), {"params": params["backward_rnn"]}, xs
    )
    np.testing.assert_allclose(ys, jnp.concatenate([forward, backward], -1), atol=1e-6)


@every_cell
def test_parameters_live_under_the_cell_and_fit_the_pure_cell(name):
    layer = RNN(CELLS[name])
    params = jax.eval_shape(layer.init, jax.random.key(0), inputs())["params"]
    assert set(params) == {"cell"}
    pure = CELLS[name].pure
    expected = jax.eval_shape(lambda k: pure.init(k, INPUTS), jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(params["cell"], expected)


@pytest.mark.parametrize("name", ["irnn", pytest.param("lstm", marks=pytest.mark.slow)])
def test_pure_step_takes_the_flax_parameters(name):
    cell, xs = CELLS[name], inputs()
    variables = init(RNN(cell), xs)
    pure = cell.pure

    def own_loop(params, xs):
        """One example, by scan; batches by vmap."""
        carry = pure.initial_carry(())
        return jax.lax.scan(lambda c, x: pure.step(params, c, x), carry, xs)[1]

    def loss(params, xs):
        return jnp.sum(jnp.sin(jax.vmap(own_loop, in_axes=(None, 0))(params, xs)))

    actual = jax.jit(jax.value_and_grad(loss))(variables["params"]["cell"], xs)
    theirs = jax.value_and_grad(lambda v: jnp.sum(jnp.sin(RNN(cell).apply(v, xs))))
    expected = jax.jit(theirs)(variables)
    chex.assert_trees_all_close(actual, (expected[0], expected[1]["params"]["cell"]), atol=1e-5)


# Types.


@every_cell
def test_dtype_is_that_of_the_computation_only(name):
    cell = CELLS[name].clone(dtype=jnp.bfloat16)
    layer, xs = RNN(cell, return_carry=True), inputs()
    variables = jax.eval_shape(layer.init, jax.random.key(0), xs)

    def loss(variables):
        carry, ys = layer.apply(variables, xs)
        return jnp.sum(ys.astype(jnp.float32)), (carry, ys)

    grads, out = jax.eval_shape(jax.grad(loss, has_aux=True), variables)
    narrow = [a for a in jax.tree.leaves(out) if a.shape[-1] > 1]  # a step counter stays wide
    assert {a.dtype for a in narrow} == {jnp.dtype(jnp.bfloat16)}
    assert {a.dtype for a in jax.tree.leaves((variables, grads))} == {jnp.dtype(jnp.float32)}


@every_cell
def test_param_dtype_is_that_of_the_parameters(name):
    cell = CELLS[name].clone(param_dtype=jnp.float16, dtype=jnp.float32)
    specs = cell.pure.param_specs(INPUTS)
    draw = lambda: RNN(cell).init_with_output(jax.random.key(0), inputs())  # noqa: E731
    ys, variables = jax.eval_shape(draw)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float16)}
    assert len(jax.tree.leaves(variables)) == len(specs)
    assert ys.dtype == jnp.float32


@pytest.mark.slow
def test_parameters_in_half_precision():
    layer = RNN(LSTMCell(5, param_dtype=jnp.bfloat16))
    ys, variables = jax.jit(layer.init_with_output)(jax.random.key(0), inputs(dtype=jnp.bfloat16))
    assert {a.dtype for a in jax.tree.leaves((ys, variables))} == {jnp.dtype(jnp.bfloat16)}


def test_types_are_promoted_without_dtype():
    layer = RNN(RNNCell(5, param_dtype=jnp.float32))
    ys, _ = jax.jit(layer.init_with_output)(jax.random.key(0), inputs(dtype=jnp.bfloat16))
    assert ys.dtype == jnp.float32


@pytest.mark.parametrize("wrapper", [RNN, nn.RNN])
def test_step_counter_survives_half_precision(wrapper):
    time = 300
    cell = IRNNCell(
        2,
        step_size_mode="per_time_step",
        step_size_param="raw",
        length=time,
        dtype=jnp.bfloat16,
    )
    layer, xs = wrapper(cell), jnp.ones((1, time, 1))
    params = init(layer, xs)["params"]["cell"]
    etas = jnp.zeros((1, time)).at[0, -1].set(0.5)
    ys = apply(layer, {"params": {"cell": {**params, "step_size": etas}}}, xs)
    assert not np.any(ys[:, :-1])
    assert np.all(ys[:, -1] != 0)


@every_cell
def test_initial_carry_is_zero_and_fits_the_step(name):
    cell = CELLS[name]
    carry = cell.initialize_carry(jax.random.key(0), (7, 2, INPUTS))
    assert [a.shape for a in jax.tree.leaves(carry)] == [(7, 2, n) for n in CARRIES[name]]
    assert not any(np.any(a) for a in jax.tree.leaves(carry))
    half = cell.clone(dtype=jnp.bfloat16).initialize_carry(jax.random.key(0), (7, INPUTS))
    narrow = [a for a in jax.tree.leaves(half) if a.shape[-1] > 1]
    assert {a.dtype for a in narrow} == {jnp.dtype(jnp.bfloat16)}
    (new, y), _ = jax.eval_shape(
        cell.init_with_output, jax.random.key(0), carry, jnp.ones((7, 2, INPUTS))
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(new, carry)
    chex.assert_shape(y, (7, 2, cell.features))
    assert cell.num_feature_axes == 1


# Options of the wrapper.


@pytest.fixture(scope="module")
def wrapped():
    cell, xs = LSTMCell(5), inputs()
    return cell, init(RNN(cell), xs), xs


def test_last_output(wrapped):
    cell, variables, xs = wrapped
    ys = apply(RNN(cell), variables, xs)
    last = apply(RNN(cell, return_sequence=False), variables, xs)
    np.testing.assert_allclose(last, ys[:, -1], atol=1e-7)


def test_return_carry(wrapped):
    cell, variables, xs = wrapped
    (_, h), ys = apply(RNN(cell, return_carry=True), variables, xs)
    np.testing.assert_allclose(h, ys[:, -1], atol=1e-7)


def test_time_major(wrapped):
    cell, variables, xs = wrapped
    expected = apply(RNN(cell), variables, xs)
    mask = jnp.asarray([[1, 1, 0, 0], [1, 1, 1, 1]])
    ys = apply(RNN(cell, time_major=True), variables, xs.swapaxes(0, 1))
    np.testing.assert_allclose(ys.swapaxes(0, 1), expected, atol=1e-7)
    masked = apply(
        RNN(cell, time_major=True, return_sequence=False), variables, xs.swapaxes(0, 1), mask=mask.T
    )
    np.testing.assert_allclose(
        masked, apply(RNN(cell, return_sequence=False), variables, xs, mask=mask), atol=1e-7
    )


@pytest.mark.parametrize("return_sequence", [True, False])
def test_reverse_keeps_the_order(wrapped, return_sequence):
    cell, variables, xs = wrapped
    flipped = apply(RNN(cell), variables, xs[:, ::-1])[:, ::-1]
    layer = RNN(cell, reverse=True, keep_order=True, return_sequence=return_sequence)
    ys = apply(layer, variables, xs)
    np.testing.assert_allclose(ys, flipped if return_sequence else flipped[:, 0], atol=1e-7)


def test_initial_carry_continues_a_sequence(wrapped):
    cell, variables, xs = wrapped
    layer = RNN(cell, return_carry=True)
    expected = apply(layer, variables, xs)
    carry, first = apply(layer, variables, xs[:, :1])
    carry, rest = apply(layer, variables, xs[:, 1:], initial_carry=carry)
    actual = carry, jnp.concatenate([first, rest], 1)
    chex.assert_trees_all_close(actual, expected, atol=1e-6)


def test_mask_is_a_shorter_sequence(wrapped):
    cell, variables, xs = wrapped
    mask = jnp.asarray([[1, 1, 0, 0], [1, 1, 1, 1]])
    last = apply(RNN(cell, return_sequence=False), variables, xs, mask=mask)
    ys = apply(RNN(cell), variables, xs)
    np.testing.assert_allclose(last, jnp.stack([ys[0, 1], ys[1, 3]]), atol=1e-6)


@pytest.mark.parametrize("option", [{"backward": "stord"}, {"block_size": 2, "backward": "x"}])
def test_backward_reaches_the_driver(wrapped, option):
    cell, variables, xs = wrapped
    with pytest.raises(ValueError, match="backward must be one of"):
        RNN(cell, **option).apply(variables, xs)


def test_block_size_reaches_the_driver(wrapped):
    cell, variables, xs = wrapped

    def program(block_size):
        layer = RNN(cell, block_size=block_size)
        return str(jax.make_jaxpr(lambda x: layer.apply(variables, x))(xs))

    assert program(2) != program(4)


# Flax's own cells in the wrapper.


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("shape", [(BATCH + 1, TIME), (TIME,), (BATCH, TIME, 1), ()])
def test_a_mask_of_another_shape_is_refused_with_the_shapes_of_the_caller(time_major, shape):
    xs = inputs().swapaxes(0, 1) if time_major else inputs()
    steps, shape = xs.shape[:2], shape[::-1] if time_major else shape
    sentence = re.escape(f"mask must be an array {steps}, as the inputs, not {shape}")
    with pytest.raises(ValueError, match=sentence):
        RNN(IRNNCell(5), time_major=time_major).init(jax.random.key(0), xs, mask=jnp.ones(shape))


def test_a_flax_cell_takes_no_mask():
    with pytest.raises(ValueError, match="mask works with the package's own cells only"):
        RNN(nn.GRUCell(5)).init(jax.random.key(0), inputs(), mask=jnp.ones((BATCH, TIME)))


def test_package_cell_equals_flax_cell_through_the_same_wrapper():
    xs = inputs()
    own, peer = RNN(RNNCell(5)), RNN(nn.SimpleCell(5))
    params = init(own, xs)["params"]["cell"]
    converted = {
        "i": {"kernel": params["W"], "bias": params["b"]},
        "h": {"kernel": params["U"]},
    }
    np.testing.assert_allclose(
        apply(own, {"params": {"cell": params}}, xs),
        apply(peer, {"params": {"cell": converted}}, xs),
        atol=1e-6,
    )


@pytest.mark.slow
def test_nnx_bridge_runs_and_differentiates():
    xs = inputs()
    model = nnx.bridge.ToNNX(RNN(IRNNCell(5)), rngs=nnx.Rngs(0))
    model.lazy_init(xs)
    ys = model(xs)
    params = nnx.state(model, nnx.Param)
    plain = {"params": nnx.to_pure_dict(params)}
    np.testing.assert_allclose(ys, RNN(IRNNCell(5)).apply(plain, xs), atol=1e-6)
    grads = nnx.grad(lambda model: jnp.sum(model(xs) ** 2))(model)
    expected = jax.grad(lambda v: jnp.sum(RNN(IRNNCell(5)).apply(v, xs) ** 2))(plain)
    chex.assert_trees_all_close({"params": nnx.to_pure_dict(grads)}, expected, atol=1e-6)


@pytest.mark.parametrize("time_major", swept([False, True], True))
def test_lengths_are_a_mask(time_major):
    layer = RNN(GRUCell(5), time_major=time_major)
    xs = jnp.swapaxes(inputs(), 0, 1) if time_major else inputs()
    variables = init(layer, xs)
    mask = jnp.asarray([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = layer.apply(variables, xs, mask=mask.T if time_major else mask)
    actual = layer.apply(variables, xs, seq_lengths=jnp.asarray([2, 4]))  # known, hence checked
    np.testing.assert_array_equal(actual, expected)
    jitted = jax.jit(lambda lengths: layer.apply(variables, xs, seq_lengths=lengths))
    np.testing.assert_allclose(jitted(jnp.asarray([2, 4])), expected, atol=1e-6)


def test_lengths_that_do_not_fit_are_one_sentence():
    layer = RNN(GRUCell(5))
    variables = layer.init(jax.random.key(0), inputs())
    with pytest.raises(ValueError, match="length of 5 does not fit inputs of 4 steps"):
        layer.apply(variables, inputs(), seq_lengths=jnp.asarray([2, 5]))
    with pytest.raises(ValueError, match="length of -1 does not fit"):
        layer.apply(variables, inputs(), seq_lengths=jnp.asarray([-1, 3]))
    with pytest.raises(ValueError, match="either mask or seq_lengths"):
        layer.apply(variables, inputs(), mask=jnp.ones((2, 4)), seq_lengths=jnp.asarray([2, 3]))
