"""The driver: every backward pass of every cell against plain differentiation of a plain scan."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxeff.errors import ConfigError
from jaxeff.ode import (
    CELLS,
    GRU,
    IRNN,
    LSTM,
    RNN,
    TARNN,
    Antisymmetric,
    Cell,
    CoRNN,
    DualODE,
    FastGRNN,
    FastRNN,
    unroll,
)

FEATURES, INPUTS = 6, 3
TIMED = {"step_size_mode": "per_time_step", "length": 16}

CASES = {
    "rnn": RNN(6),
    "rnn_relu": RNN(6, activation="relu"),
    "lstm": LSTM(6, forget_bias=1.0),
    "gru": GRU(6),
    "fastrnn": FastRNN(6, alpha_init=-1.0, beta_init=1.0),
    "fastrnn_sigmoid": FastRNN(6, activation="sigmoid"),
    "fastgrnn": FastGRNN(6, nu_init=-1.0),
    "antisymmetric": Antisymmetric(6, step_size=0.3, diffusion=0.1),
    "antisymmetric_plain": Antisymmetric(6, gated=False, step_size=0.3),
    "cornn": CoRNN(6, step_size=0.3),
    "irnn": IRNN(6, step_size=0.2),
    "irnn_shared": IRNN(6, step_size=0.2, step_size_mode="shared", num_inner_steps=3, decay=0.7),
    "irnn_three": IRNN(6, step_size=0.2, num_inner_steps=3, step_size_param="raw"),
    "irnn_timed": IRNN(6, step_size=0.3, **TIMED),
    "irnn_timed_three": IRNN(6, step_size=0.2, num_inner_steps=3, **TIMED),
    "irnn_timed_fixed": IRNN(6, step_size=0.2, learn_step_size=False, **TIMED),
    "irnn_rank": IRNN(6, step_size=0.2, num_inner_steps=2, rank=2, activation="relu", decay=1.5),
    "irnn_cold": IRNN(6, step_size=0.2, num_inner_steps=2, warm_start=False),
    "irnn_cold_one": IRNN(6, step_size=0.2, warm_start=False),
    "irnn_implicit": IRNN(6, num_inner_steps=60, step_size=0.6, solver="implicit", decay=1.6),
    "irnn_implicit_timed": IRNN(
        6, num_inner_steps=60, step_size=0.6, solver="implicit", decay=1.6, **TIMED
    ),
}
TARNNS = {
    "tarnn": TARNN(6, step_size=0.3, activation="tanh"),
    "tarnn_outside": TARNN(6, step_size=0.3, variant="outside", gate_bias=0.0),
    "tarnn_three": TARNN(6, step_size=0.3, num_inner_steps=3, previous_input="zero"),
    "tarnn_outside_three": TARNN(
        6, step_size=0.3, num_inner_steps=3, variant="outside", gate_bias=0.0
    ),
    "tarnn_timed_two": TARNN(6, step_size=0.3, num_inner_steps=2, **TIMED),
    "dual_ode": DualODE(6, step_size=0.3, gate_bias=0.0),
    "dual_ode_timed": DualODE(6, step_size=0.3, gate_bias=0.0, **TIMED),
}
CASES |= TARNNS
# One case of each kind always runs; the rest are variations for the longer checks.
CORE = ["rnn", "lstm", "gru", "fastrnn", "fastgrnn", "antisymmetric", "cornn"]
CORE += ["irnn", "irnn_timed_three", "irnn_rank", "irnn_implicit"]
CORE += ["tarnn", "tarnn_outside_three", "dual_ode"]

in_double = pytest.mark.usefixtures("x64", "quick_compile")
quick = pytest.mark.usefixtures("quick_compile")
every_cell = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in CORE else pytest.mark.slow) for n in CASES]
)


def test_every_registered_cell_has_a_case():
    assert {type(cell) for cell in CASES.values()} == {CELLS[name] for name in CELLS}


def random(seed, *shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.fixture
def example(jitter):
    """Parameters, inputs and a non-zero first carry of a case."""

    def make(cell, time=7, batch=(2,), inputs=INPUTS, dtype=jnp.float64):
        params = jitter(cell.init(jax.random.key(0), inputs, dtype))
        xs = random(1, time, *batch, inputs, dtype=dtype)
        carry = jitter(cell.initial_carry(batch, dtype, inputs), seed=2)
        if isinstance(cell, TARNN) or getattr(cell, "timed", False):
            carry = (*carry[:-1], jnp.zeros((*batch, 1), dtype))  # the counter of steps
        return params, xs, carry

    return make


def weighted(tree):
    """A scalar that depends on every number of a tree, each in its own way."""
    return sum(
        jnp.sum(jnp.sin(a) * random(i, *a.shape, dtype=a.dtype))
        for i, a in enumerate(jax.tree.leaves(tree))
    )


def results(cell, arguments, **options):
    """Value, carry, outputs, and the gradients in params, xs and the first carry."""

    def loss(params, xs, carry):
        out = unroll(cell, params, xs, carry, **options)
        return weighted(out), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arguments)


def assert_backward_agrees(mode, cell, arguments, **options):
    expected = results(cell, arguments, backward="autodiff", **options)
    chex.assert_tree_all_finite(expected)
    assert np.abs(expected[1][1]).max() > 1e-4  # there is something to compare
    actual = results(cell, arguments, backward=mode, **options)
    chex.assert_trees_all_close(actual, expected, atol=1e-12, rtol=1e-12)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)


def loop(cell, params, xs, carry, mask=None):
    """A plain loop over time."""
    ys, step = [], jax.jit(cell.step)
    for t, x in enumerate(xs):
        new, _ = step(params, carry, x)
        if mask is not None:
            real = mask[t][..., None] != 0
            new = jax.tree.map(lambda n, o: jnp.where(real, n, o), new, carry)  # noqa: B023
        carry = new
        ys.append(cell.output(carry))
    return carry, jnp.stack(ys)


# Every backward pass gives the same values and gradients.


def random_mask(*shape):
    return jnp.asarray(np.random.default_rng(0).random(shape) < 0.7)


@in_double
@every_cell
def test_backwards_agree(name, example):
    cell = CASES[name]
    mode = "stored" if cell.product_form else "recomputed"
    options = {"mask": random_mask(6, 2), "block_size": 3}
    assert_backward_agrees(mode, cell, example(cell, time=6), **options)


@in_double
@pytest.mark.parametrize("name", ["lstm", "irnn_timed_three"])
def test_recomputed_agrees_in_reverse_and_with_a_remainder(name, example):
    cell = CASES[name]
    arguments = example(cell, time=5, inputs=5)  # inputs wide enough to be projected at once
    options = {
        "mask": random_mask(5, 2),
        "block_size": 2,
        "reverse": True,
        "return_sequence": False,
    }
    assert_backward_agrees("recomputed", cell, arguments, **options)


@in_double
@pytest.mark.parametrize(
    ("time", "batch", "options"),
    [
        (1, (2,), {}),
        (2, (), {"block_size": 4}),  # shorter than a block
        (7, (2,), {"block_size": 4}),  # a block and a remainder
        (7, (2,), {"block_size": 2, "reverse": True}),  # blocks and a remainder
        (4, (2, 3), {"block_size": 1, "return_sequence": False}),
        (3, (2,), {"reverse": True, "return_sequence": False}),
    ],
)
def test_stored_agrees_for_lengths_and_batches(time, batch, options, example):
    cell = CASES["rnn"]
    arguments = example(cell, time=time, batch=batch)
    assert_backward_agrees("stored", cell, arguments, **options)


@pytest.mark.slow
@in_double
@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["lstm", "irnn_three", "irnn_timed", "irnn_rank"]),
    mode=st.sampled_from(["stored", "recomputed"]),
    time=st.integers(1, 9),
    block_size=st.sampled_from([1, 2, 4, None]),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    masked=st.booleans(),
    reverse=st.booleans(),
    return_sequence=st.booleans(),
    inputs=st.sampled_from([3, 5]),
)
def test_backwards_agree_for_any_lengths_and_options(
    name, mode, time, block_size, batch, masked, reverse, return_sequence, inputs
):
    cell = CASES[name]
    params = cell.init(jax.random.key(0), inputs, jnp.float64)
    xs, carry = random(1, time, *batch, inputs), cell.initial_carry(batch, jnp.float64)
    options = {"block_size": block_size, "reverse": reverse, "return_sequence": return_sequence}
    if masked:
        options["mask"] = random_mask(time, *batch)
    expected = results(cell, (params, xs, carry), backward="autodiff", **options)
    actual = results(cell, (params, xs, carry), backward=mode, **options)
    chex.assert_trees_all_close(actual, expected, atol=1e-12, rtol=1e-12)


@in_double
def test_auto_is_stored_for_products_and_recomputed_for_others(example):
    def program(cell, backward):
        arguments = example(cell)
        return str(
            jax.make_jaxpr(jax.grad(lambda *a: weighted(unroll(cell, *a, backward=backward))))(
                *arguments
            )
        )

    for cell, mode in ((CASES["lstm"], "stored"), (CASES["irnn_implicit"], "recomputed")):
        size = {m: program(cell, m).count("=") for m in ("auto", mode, "autodiff")}
        assert size["auto"] == size[mode] != size["autodiff"]


@in_double
@pytest.mark.parametrize("mode", ["stored", pytest.param("recomputed", marks=pytest.mark.slow)])
def test_second_derivatives_agree(mode, example):
    cell = CASES["irnn"]
    arguments = example(cell, time=4)

    def curvature(backward):
        def slope(params, xs, carry):
            options = {"backward": backward, "block_size": 2}
            grads = jax.grad(lambda p: weighted(unroll(cell, p, xs, carry, **options)))(params)
            return weighted(grads)

        return jax.jit(jax.grad(slope, (0, 1, 2)))(*arguments)

    expected = curvature("autodiff")
    assert np.abs(expected[1]).max() > 1e-3
    chex.assert_trees_all_close(curvature(mode), expected, atol=1e-11, rtol=1e-11)


# The scan is a loop over time, for each example by itself.


@in_double
@every_cell
def test_unroll_is_a_loop_of_steps(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell)
    mask = random_mask(7, 2)
    expected = loop(cell, params, xs, carry, mask)
    options = {"mask": mask, "block_size": 3}
    chex.assert_trees_all_close(unroll(cell, params, xs, carry, **options), expected, atol=1e-13)


@in_double
@pytest.mark.parametrize("name", ["lstm", "irnn_timed_three", "irnn_implicit"])
def test_unroll_is_a_map_over_examples(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell)
    mask = random_mask(7, 2)
    expected = unroll(cell, params, xs, carry, mask=mask, block_size=3)

    def single(xs, carry, mask):
        return unroll(cell, params, xs, carry, mask=mask, block_size=3)

    carries, ys = jax.vmap(single, in_axes=(1, 0, 1), out_axes=(0, 1))(xs, carry, mask)
    chex.assert_trees_all_close((carries, ys), expected, atol=1e-13)


@in_double
@pytest.mark.parametrize("name", ["irnn_timed", pytest.param("lstm", marks=pytest.mark.slow)])
def test_gradients_map_over_examples(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell, time=4)

    def loss(params, xs, carry):
        return jnp.sum(jnp.sin(unroll(cell, params, xs, carry, block_size=2)[1]))

    gradient = jax.grad(loss, (0, 1))
    whole = jax.jit(gradient)(params, xs, carry)
    each = jax.jit(jax.vmap(gradient, in_axes=(None, 1, 0), out_axes=(0, 1)))(params, xs, carry)
    each = jax.tree.map(lambda g: g.sum(0), each[0]), each[1]
    chex.assert_trees_all_close(each, whole, atol=1e-12)


@in_double
@pytest.mark.parametrize("backward", ["stored", "autodiff"])
def test_reverse_is_forward_over_the_flipped_sequence(backward, example):
    cell = CASES["lstm"]
    params, xs, carry = example(cell)
    mask = random_mask(7, 2)
    options = {"backward": backward, "block_size": 3}
    expected, ys = unroll(cell, params, xs[::-1], carry, mask=mask[::-1], **options)
    actual = unroll(cell, params, xs, carry, mask=mask, reverse=True, **options)
    chex.assert_trees_all_close(actual, (expected, ys[::-1]), atol=1e-14)


@in_double
@pytest.mark.parametrize("name", ["lstm", "cornn", "irnn_timed_three"])
def test_last_output_is_that_of_the_sequence(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell)
    expected, ys = unroll(cell, params, xs, carry)
    actual, last = unroll(cell, params, xs, carry, return_sequence=False)
    chex.assert_trees_all_close((actual, last), (expected, ys[-1]), atol=1e-14)
    chex.assert_shape(last, (2, FEATURES))


@in_double
def test_two_halves_make_the_whole(example):
    cell = CASES["irnn_timed_three"]
    params, xs, carry = example(cell)
    expected, ys = unroll(cell, params, xs, carry)
    middle, first = unroll(cell, params, xs[:3], carry)
    actual, second = unroll(cell, params, xs[3:], middle)
    chex.assert_trees_all_close(
        (actual, jnp.concatenate([first, second])), (expected, ys), atol=1e-14
    )


# Masks.


@in_double
@pytest.mark.parametrize("name", ["lstm", "cornn", "irnn_timed_three", "irnn_implicit"])
def test_padding_at_both_ends_changes_nothing(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell, time=4)
    before, after = 1e6 * random(8, 2, 2, INPUTS), 1e6 * random(9, 3, 2, INPUTS)
    padded = jnp.concatenate([before, xs, after])
    mask = jnp.zeros((9, 2)).at[2:6].set(1)
    (value, out), grads = results(cell, (params, xs, carry), return_sequence=False)
    (value_, out_), grads_ = results(
        cell, (params, padded, carry), mask=mask, return_sequence=False, block_size=3
    )
    chex.assert_trees_all_close((value_, out_), (value, out), atol=1e-13)
    chex.assert_trees_all_close((grads_[0], grads_[2]), (grads[0], grads[2]), atol=1e-12)
    np.testing.assert_allclose(grads_[1][2:6], grads[1], atol=1e-12)
    assert not np.any(grads_[1][:2])
    assert not np.any(grads_[1][6:])


@pytest.mark.slow
@in_double
@pytest.mark.parametrize("mode", ["stored", "recomputed", "autodiff"])
def test_examples_of_unequal_lengths_in_one_batch(mode, example):
    cell = CASES["gru"]
    params, xs, carry = example(cell, batch=(3,))
    lengths = (7, 4, 1)
    mask = jnp.arange(7)[:, None] < jnp.asarray(lengths)
    options = {"backward": mode, "block_size": 3}

    def last(params, xs, carry, **mask):
        return unroll(cell, params, xs, carry, return_sequence=False, **options, **mask)[1]

    def gradient(params, xs, carry, **mask):
        loss = lambda p: jnp.sum(jnp.sin(last(p, xs, carry, **mask)))  # noqa: E731
        return jax.grad(loss)(params)

    ys = last(params, xs, carry, mask=mask)
    total = jax.tree.map(jnp.zeros_like, params)
    for i, length in enumerate(lengths):
        alone = params, xs[:length, i], carry[i]
        chex.assert_trees_all_close(ys[i], last(*alone), atol=1e-14)
        total = jax.tree.map(jnp.add, total, gradient(*alone))
    chex.assert_trees_all_close(gradient(params, xs, carry, mask=mask), total, atol=1e-12)


@in_double
def test_masked_outputs_repeat(example):
    cell = CASES["lstm"]
    params, xs, carry = example(cell, time=4, batch=())
    _, ys = unroll(cell, params, xs, carry, mask=jnp.asarray([0, 1, 0, 0]))
    np.testing.assert_array_equal(ys[0], carry[1])
    np.testing.assert_array_equal(ys[2], ys[1])
    np.testing.assert_array_equal(ys[3], ys[1])
    assert np.abs(ys[1] - ys[0]).max() > 1e-3


@in_double
@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.float32])
def test_mask_of_any_type(dtype, example):
    cell = CASES["rnn"]
    arguments = example(cell)
    mask = np.random.default_rng(0).random((7, 2)) < 0.6
    expected = loop(cell, *arguments, mask)
    actual = unroll(cell, *arguments, mask=jnp.asarray(mask, dtype))
    chex.assert_trees_all_close(actual, expected, atol=1e-14)
    np.testing.assert_array_equal(
        unroll(cell, *arguments, mask=jnp.ones((7, 2), dtype))[1], unroll(cell, *arguments)[1]
    )


# What is refused.


@pytest.fixture
def tiny():
    cell = RNN(4)
    return cell, cell.init(jax.random.key(0), 2)


def test_unknown_backward_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"backward must be one of .*stored.*not 'stord'"):
        unroll(*tiny, jnp.ones((3, 2)), backward="stord")


@pytest.mark.parametrize("shape", [(2,), (0, 2), (0, 5, 2)])
def test_inputs_without_time_are_refused(tiny, shape):
    with pytest.raises(ValueError, match=r"xs must be \[time, ..., features\]"):
        unroll(*tiny, jnp.ones(shape))


@pytest.mark.parametrize("shape", [(5,), (5, 3), (3, 5), (5, 2, 1), (1, 2)])
def test_mask_of_a_wrong_shape_is_refused(tiny, shape):
    with pytest.raises(ValueError, match=r"mask .* must have the shape of xs without features"):
        unroll(*tiny, jnp.ones((5, 2, 2)), mask=jnp.ones(shape))


def test_stored_needs_a_product_form():
    cell = CASES["irnn_implicit"]
    with pytest.raises(ConfigError, match="backward='stored' needs a cell in product form"):
        unroll(cell, cell.init(jax.random.key(0), 2), jnp.ones((3, 2)), backward="stored")


def test_sequence_longer_than_the_step_sizes_is_refused():
    cell = IRNN(4, **TIMED)
    params = cell.init(jax.random.key(0), 2)
    unroll(cell, params, jnp.ones((16, 2)))
    with pytest.raises(ConfigError, match=r"length=16 .* has 17; raise length"):
        unroll(cell, params, jnp.ones((17, 2)))


# Types, compilation, memory.


def in_bfloat16(arguments):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), arguments)


@quick
@every_cell
def test_outputs_in_three_precisions(name, example):
    cell = CASES[name]
    arguments = example(cell, time=3, dtype=jnp.float32)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), arguments)
        _, exact = unroll(cell, *double)
    _, single = unroll(cell, *arguments)
    _, half = unroll(cell, *in_bfloat16(arguments))
    assert (exact.dtype, single.dtype, half.dtype) == (jnp.float64, jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(single, exact, atol=2e-6)
    np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=0.12)


@every_cell
def test_gradients_have_the_type_of_their_parameters(name, example):
    cell = CASES[name]
    arguments = in_bfloat16(example(cell, time=3, dtype=jnp.float32))
    with jax.numpy_dtype_promotion("strict"):
        (_, out), grads = jax.eval_shape(lambda *a: results(cell, a), *arguments)
    assert {a.dtype for a in jax.tree.leaves((out, grads))} == {jnp.dtype(jnp.bfloat16)}


@quick
@pytest.mark.parametrize("name", ["irnn_timed_three", pytest.param("lstm", marks=pytest.mark.slow)])
def test_bfloat16_gradients_stay_close(name, example):
    cell = CASES[name]
    arguments = example(cell, time=3, dtype=jnp.float32)
    _, grads = results(cell, in_bfloat16(arguments))
    _, expected = results(cell, arguments)
    for actual, exact in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
        error = np.linalg.norm(actual.astype(jnp.float32) - exact)
        assert error <= 0.1 * np.linalg.norm(exact)


@quick
@pytest.mark.parametrize("name", ["lstm", "gru", "cornn", "irnn_timed_three", "irnn_implicit"])
def test_step_leaks_no_tracers_and_is_the_same_without_jit(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell, time=1, dtype=jnp.float32)
    with jax.checking_leaks():
        compiled = jax.jit(cell.step)(params, carry, xs[0])
    if cell.product_form:  # the implicit solver takes long without compilation
        with jax.disable_jit():
            plain = cell.step(params, carry, xs[0])
        chex.assert_trees_all_close(compiled, plain, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(compiled[0], carry)
    np.testing.assert_array_equal(compiled[1], cell.output(compiled[0]))
    chex.assert_shape(compiled[1], (2, FEATURES))


@quick
def test_gradient_leaks_no_tracers(example):
    arguments = example(RNN(6), time=2, dtype=jnp.float32)
    with jax.checking_leaks():
        results(RNN(6), arguments)


@quick
@pytest.mark.parametrize("backward", ["stored", "recomputed", "autodiff"])
def test_repeated_calls_compile_once(backward, example):
    arguments = example(RNN(6), time=2, dtype=jnp.float32)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def gradient(params, xs, carry):
        # A fresh cell each time: equal options must be as good as the same object.
        return jax.grad(lambda p: weighted(unroll(RNN(6), p, xs, carry, backward=backward)))(params)

    first = gradient(*arguments)
    chex.assert_trees_all_equal(gradient(*arguments), first)
    with pytest.raises(AssertionError):
        gradient(*example(RNN(6), time=8, dtype=jnp.float32))


def test_memory_stored_is_below_autodiff_and_recomputed_below_stored(temp_bytes):
    cell = IRNN(32, num_inner_steps=3)
    params, xs = cell.init(jax.random.key(0), 1), jnp.ones((256, 16, 1))

    def measure(mode):
        def loss(params, xs):
            return jnp.sum(unroll(cell, params, xs, backward=mode, return_sequence=False)[1])

        return temp_bytes(jax.grad(loss), params, xs)

    size = {mode: measure(mode) for mode in ("autodiff", "stored", "recomputed")}
    assert size["recomputed"] < 0.5 * size["stored"]
    assert size["stored"] < 0.9 * size["autodiff"]


# Parameters.


@every_cell
def test_init_is_a_function_of_the_key(name):
    cell = CASES[name]
    first, again, other = (cell.init(jax.random.key(k), INPUTS) for k in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert np.abs(first[next(iter(first))] - other[next(iter(other))]).max() > 1e-3
    chex.assert_tree_all_finite(first)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "irnn_timed"])
def test_init_in_half_precision(name):
    cell = CASES[name]
    half = cell.init(jax.random.key(0), INPUTS, jnp.bfloat16)
    assert {a.dtype for a in half.values()} == {jnp.dtype(jnp.bfloat16)}


DENSE = {"W": (3, 6), "U": (6, 6), "b": (6,)}
LOW_RANK = {"W": (3, 6), "V2": (6, 2), "V": (2, 6), "b": (6,)}
GATED_ODE = dict.fromkeys(("W1", "W2", "B1", "Wg"), (3, 6))
GATED_ODE |= dict.fromkeys(("U1", "U2", "B2", "Ug"), (6, 6)) | {"b1": (6,), "bg": (6,)}
TWO_BLOCKS = dict.fromkeys(("W1", "W3", "Wg", "U1", "U2", "U4", "Ug"), (3, 3))
TWO_BLOCKS |= dict.fromkeys(("b1", "b2", "bg"), (3,))
PARAMETERS = {
    "rnn": DENSE,
    "rnn_relu": DENSE,
    "lstm": {"W": (3, 24), "U": (6, 24), "b": (24,)},
    "gru": {"W": (3, 18), "U": (6, 18), "b": (18,), "b_n": (6,)},
    "fastrnn": {**DENSE, "alpha": (), "beta": ()},
    "fastrnn_sigmoid": {**DENSE, "alpha": (), "beta": ()},
    "fastgrnn": {"W": (3, 6), "U": (6, 6), "b_z": (6,), "b_h": (6,), "zeta": (), "nu": ()},
    "antisymmetric": {"A": (15,), "V": (3, 12), "b": (12,)},
    "antisymmetric_plain": {"A": (15,), "V": (3, 6), "b": (6,)},
    "cornn": {"U": (12, 6), "V": (3, 6), "b": (6,)},
    "irnn": {**DENSE, "step_size": (1,)},
    "irnn_shared": {**DENSE, "step_size": ()},
    "irnn_three": {**DENSE, "step_size": (3,)},
    "irnn_timed": {**DENSE, "step_size": (1, 16)},
    "irnn_timed_three": {**DENSE, "step_size": (3, 16)},
    "irnn_timed_fixed": DENSE,
    "irnn_rank": {**LOW_RANK, "step_size": (2,)},
    "irnn_cold": {**DENSE, "step_size": (2,)},
    "irnn_cold_one": {**DENSE, "step_size": (1,)},
    "irnn_implicit": {**DENSE, "step_size": (60,)},
    "irnn_implicit_timed": {**DENSE, "step_size": (60, 16)},
    "tarnn": {**GATED_ODE, "step_size": (1,)},
    "tarnn_outside": {**GATED_ODE, "step_size": (1,)},
    "tarnn_three": {**GATED_ODE, "step_size": (3,)},
    "tarnn_outside_three": {**GATED_ODE, "step_size": (3,)},
    "tarnn_timed_two": {**GATED_ODE, "step_size": (2, 16)},
    "dual_ode": {**TWO_BLOCKS, "beta": (), "step_size": (2,), "step_size_2": ()},
    "dual_ode_timed": {**TWO_BLOCKS, "beta": (16,), "step_size": (2, 16), "step_size_2": (16,)},
}


@every_cell
def test_parameter_names_and_shapes_do_not_drift(name):
    params = CASES[name].init(jax.random.key(0), INPUTS)
    assert {key: array.shape for key, array in params.items()} == PARAMETERS[name]


def test_initial_values_are_those_of_the_papers():
    cells = {
        "lstm": LSTM(64, forget_bias=2.0),
        "gru": GRU(64),
        "fastrnn": FastRNN(64),
        "fastgrnn": FastGRNN(64),
        "irnn": IRNN(64),
        "irnn_normal": IRNN(64, init_scale=0.3),
        "antisymmetric": Antisymmetric(64),
        "cornn": CoRNN(64),
    }
    init = jax.jit(lambda key: {name: cell.init(key, 20) for name, cell in cells.items()})
    p = jax.tree.map(np.asarray, init(jax.random.key(0)))
    np.testing.assert_array_equal(p["lstm"]["b"].reshape(4, 64)[:, 0], [0.0, 2.0, 0.0, 0.0])
    assert np.ptp(p["lstm"]["b"].reshape(4, 64), axis=1).max() == 0.0
    for block in np.split(p["gru"]["U"], 3, axis=-1):  # each gate by itself
        np.testing.assert_allclose(block @ block.T, np.eye(64), atol=1e-5)
    assert (p["fastrnn"]["alpha"], p["fastrnn"]["beta"]) == (-3.0, 3.0)
    assert np.std(p["fastrnn"]["U"]) == pytest.approx(0.1, rel=0.05)
    np.testing.assert_array_equal(p["fastrnn"]["b"], 1.0)
    assert (p["fastgrnn"]["zeta"], p["fastgrnn"]["nu"]) == (1.0, -4.0)
    assert 0.12 < np.abs(p["irnn"]["U"]).max() <= 1 / 8
    assert np.std(p["irnn_normal"]["W"]) == pytest.approx(0.3, rel=0.1)
    assert np.std(p["antisymmetric"]["A"]) == pytest.approx(1 / 8, rel=0.05)
    assert 0.08 < np.abs(p["cornn"]["U"]).max() <= 148**-0.5


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        (RNN, {"features": 0}),
        (LSTM, {"features": "8"}),
        (GRU, {"features": True}),
        (RNN, {"features": 4, "activation": "gelu"}),
        (FastRNN, {"features": 4, "activation": ""}),
        (Antisymmetric, {"features": 4, "step_size": 0}),
        (CoRNN, {"features": 4, "gamma": -1.0}),
        (CoRNN, {"features": 4, "epsilon": 0.0}),
    ],
)
def test_impossible_options_of_other_cells_are_refused(cell, options):
    with pytest.raises(ConfigError, match=cell.__name__):
        cell(**options)


def test_a_cell_of_ones_own_needs_three_methods():
    class Sum(Cell):
        def param_specs(self, input_size):
            return {}

        def step(self, params, carry, x):
            new = carry + x
            return new, new

    carry, ys = unroll(Sum(2), {}, jnp.arange(6.0).reshape(3, 2), block_size=2)
    np.testing.assert_array_equal(ys, [[0, 1], [2, 4], [6, 9]])
    np.testing.assert_array_equal(carry, [6, 9])
