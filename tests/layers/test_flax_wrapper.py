"""`jaxeff.layers.RNN` in the place of ``flax.linen.RNN``: the same arguments, the same meaning."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import apply, init
from flax import nnx

from jaxeff.layers import RNN, GRUCell, LSTMCell, RecurrentCell, recurrent

KEY = jax.random.key(0)
TIME, INPUTS, FEATURES = 4, 3, 5
LENGTHS = np.array([2, 4])


def inputs(*batch, time_major=False):
    shape = (TIME, *batch, INPUTS) if time_major else (*batch, TIME, INPUTS)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def real(ys, lengths, time_major):
    """The outputs of the real steps; what stands in the padding is nobody's."""
    ys = np.swapaxes(ys, 0, 1) if time_major else np.asarray(ys)
    return [y if lengths is None else y[: lengths[i]] for i, y in enumerate(ys)]


@pytest.fixture(scope="module")
def trained():
    """A cell of each package with parameters."""
    xs = inputs(2)
    return {cell: init(nn.RNN(cell), xs) for cell in (LSTMCell(FEATURES), nn.LSTMCell(FEATURES))}


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"time_major": True}, LENGTHS),
        ({"reverse": True}, None),
        ({"reverse": True, "keep_order": True}, LENGTHS),
        ({"reverse": True, "time_major": True}, LENGTHS),
    ],
)
def test_options_of_the_call_mean_the_same(options, lengths, trained):
    time_major = options.get("time_major", False)
    xs = inputs(2, time_major=time_major)
    for cell, variables in trained.items():
        actual, expected = (
            apply(wrapper(cell), variables, xs, seq_lengths=lengths, return_carry=True, **options)
            for wrapper in (RNN, nn.RNN)
        )
        chex.assert_trees_all_close(actual[0], expected[0], atol=1e-6)
        ys = (real(out[1], lengths, time_major) for out in (actual, expected))
        chex.assert_trees_all_close(*ys, atol=1e-6)


def test_options_of_the_constructor_are_those_of_the_call(trained):
    cell, variables = next(iter(trained.items()))
    xs = inputs(2, time_major=True)
    options = {"reverse": True, "keep_order": True, "time_major": True, "return_carry": True}
    expected = apply(RNN(cell, **options), variables, xs)
    chex.assert_trees_all_equal(apply(RNN(cell), variables, xs, **options), expected)
    negated = dict.fromkeys(options, False)
    ys = apply(RNN(cell, **options), variables, inputs(2), **negated)
    np.testing.assert_array_equal(ys, apply(RNN(cell), variables, inputs(2)))


@pytest.mark.parametrize("batch", [pytest.param((), marks=pytest.mark.slow), (2, 2)])
def test_any_number_of_batch_axes(batch, trained):
    cell, variables = next(iter(trained.items()))
    actual, expected = (apply(w(cell), variables, inputs(*batch)) for w in (RNN, nn.RNN))
    assert actual.shape == (*batch, TIME, FEATURES)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_output_is_that_of_the_last_real_step_computed(reverse, trained):
    for cell, variables in trained.items():
        options = {"seq_lengths": LENGTHS, "reverse": reverse}
        last = apply(RNN(cell, return_sequence=False), variables, inputs(2), **options)
        _, h = apply(RNN(cell), variables, inputs(2), return_carry=True, **options)[0]
        np.testing.assert_allclose(last, h, atol=1e-6)


def test_both_ways(trained):
    cell, variables = next(iter(trained.items()))
    both = (nn.Bidirectional(w(cell.clone()), w(cell.clone())) for w in (RNN, nn.RNN))
    params = dict.fromkeys(("forward_rnn", "backward_rnn"), variables["params"])
    actual, expected = (
        apply(module, {"params": params}, inputs(2), seq_lengths=LENGTHS) for module in both
    )
    chex.assert_trees_all_close(*(real(y, LENGTHS, False) for y in (actual, expected)), atol=1e-6)


def shapes(module, *arguments, **options):
    return jax.eval_shape(lambda: module.init_with_output(KEY, *arguments, **options))


def test_cells_with_spatial_features():
    images = jnp.ones((2, TIME, 6, 6, INPUTS))
    cell = nn.ConvLSTMCell(FEATURES, (3, 3))
    actual = shapes(RNN(cell), images, seq_lengths=LENGTHS, return_carry=True)
    assert actual == shapes(nn.RNN(cell), images, seq_lengths=LENGTHS, return_carry=True)
    (_, ys), _ = actual
    assert ys.shape == (2, TIME, 6, 6, FEATURES)


@pytest.mark.parametrize(
    "options",
    [
        {"unroll": 2},
        {"variable_axes": {"params": 0}, "variable_broadcast": False, "split_rngs": {"params": 1}},
    ],
)
def test_options_of_the_lifted_scan(options):
    actual, expected = (shapes(w(GRUCell(FEATURES), **options), inputs(2)) for w in (RNN, nn.RNN))
    assert actual == expected
    per_step = (TIME,) * ("variable_axes" in options)
    assert actual[1]["params"]["cell"]["b_n"].shape == (*per_step, FEATURES)


class Drawn(LSTMCell):
    """A cell that draws its first carry."""

    scale: float = 1.0

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        carry = super().initialize_carry(rng, input_shape)
        return jax.tree.map(lambda a: self.scale * jax.random.normal(rng, a.shape), carry)


class Doubled(LSTMCell):
    def __call__(self, carry, inputs):
        carry, y = super().__call__(carry, inputs)
        return carry, 2 * y


def test_what_a_subclass_changes_is_changed(trained):
    drawn, doubled = Drawn(FEATURES, forget_bias=1.0, scale=3.0), Doubled(FEATURES)
    assert (drawn.pure.forget_bias, drawn.scale, drawn.clone()) == (1.0, 3.0, drawn)
    key, variables = jax.random.key(7), trained[LSTMCell(FEATURES)]
    for cell in (drawn, doubled):
        ys = (apply(w(cell), variables, inputs(2), init_key=key) for w in (RNN, nn.RNN))
        np.testing.assert_allclose(*ys, atol=1e-6)


@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_lifted_cells_take_the_same_fields(lift):
    cell = lift(LSTMCell)(FEATURES, dtype=jnp.bfloat16)
    assert isinstance(cell, RecurrentCell)
    ys, variables = shapes(RNN(cell), inputs(2))
    assert (ys.shape, ys.dtype) == ((2, TIME, FEATURES), jnp.bfloat16)
    assert set(variables["params"]["cell"]) == {"W", "U", "b"}


def test_the_names_of_submodules_are_those_of_their_classes():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            _, y = LSTMCell(FEATURES)((jnp.zeros(FEATURES),) * 2, x)
            return GRUCell(FEATURES)(y, x)

    _, variables = shapes(Two(), jnp.ones(INPUTS))
    assert set(variables["params"]) == {"LSTMCell_0", "GRUCell_0"}


@pytest.mark.slow
def test_a_bridged_cell_in_the_other_interfaces_wrapper():
    options = {"seq_lengths": LENGTHS, "reverse": True}
    names = {"nnx": nnx, "jnp": jnp}
    exec(recurrent.__doc__.split("::\n")[1].replace("\n    ", "\n"), names)
    cell = LSTMCell(FEATURES)
    bridged = names["Bridged"](cell, INPUTS, nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(bridged.cell, nnx.Param))
    carry, ys = nnx.RNN(bridged)(inputs(2), return_carry=True, **options)
    variables = {"params": {"cell": params}}
    expected = apply(RNN(cell), variables, inputs(2), return_carry=True, **options)
    chex.assert_trees_all_close(carry, expected[0], atol=1e-6)
    chex.assert_trees_all_close(*(real(y, LENGTHS, False) for y in (ys, expected[1])), atol=1e-6)
