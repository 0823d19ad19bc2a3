"""What a scan compiles to and costs, and what cells have for parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_cases import (
    CASES,
    FEATURES,
    INPUTS,
    every_cell,
    results,
    some_cells,
    weighted,
)
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.ode import (
    GRU,
    IRNN,
    LSTM,
    Antisymmetric,
    Cell,
    CoRNN,
    Elman,
    FastGRNN,
    FastRNN,
    parts_of,
    unroll,
)

# Types, compilation, memory.


def in_bfloat16(arguments):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), arguments)


@pytest.mark.slow
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


@some_cells
def test_gradients_have_the_type_of_their_parameters(name, example):
    cell = CASES[name]
    arguments = in_bfloat16(example(cell, time=3, dtype=jnp.float32))
    with jax.numpy_dtype_promotion("strict"):
        (_, out), grads = jax.eval_shape(lambda *a: results(cell, a), *arguments)
    assert {a.dtype for a in jax.tree.leaves((out, grads))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["irnn_timed_three", "lstm"])
def test_bfloat16_gradients_stay_close(name, example):
    cell = CASES[name]
    arguments = example(cell, time=3, dtype=jnp.float32)
    _, grads = results(cell, in_bfloat16(arguments))
    _, expected = results(cell, arguments)
    for actual, exact in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
        error = np.linalg.norm(actual.astype(jnp.float32) - exact)
        assert error <= 0.1 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    "name",
    swept(["lstm", "gru", "cornn", "irnn_timed_three", "irnn_implicit"], "irnn_timed_three", "gru"),
)
def test_step_leaks_no_tracers_and_is_the_same_without_jit(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell, time=1, dtype=jnp.float32)
    with jax.checking_leaks():
        compiled = jax.jit(cell.step)(params, carry, xs[0])
    if cell.fused:  # the implicit solver takes long without compilation
        with jax.disable_jit():
            plain = cell.step(params, carry, xs[0])
        chex.assert_trees_all_close(compiled, plain, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(compiled[0], carry)
    np.testing.assert_array_equal(compiled[1], cell.output(parts_of(compiled[0]).state))
    chex.assert_shape(compiled[1], (2, FEATURES))


@pytest.mark.slow
def test_gradient_leaks_no_tracers(example):
    arguments = example(Elman(6), time=2, dtype=jnp.float32)
    with jax.checking_leaks():
        results(Elman(6), arguments)


@pytest.mark.parametrize("backward", ["fused", "remat", "autodiff"])
def test_repeated_calls_compile_once(backward, example):
    arguments = example(Elman(6), time=2, dtype=jnp.float32)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def gradient(params, xs, carry):
        # A fresh cell each time: equal options must be as good as the same object.
        return jax.grad(lambda p: weighted(unroll(Elman(6), p, xs, carry, backward=backward)))(
            params
        )

    first = gradient(*arguments)
    chex.assert_trees_all_equal(gradient(*arguments), first)
    with pytest.raises(AssertionError):
        gradient(*example(Elman(6), time=8, dtype=jnp.float32))


@pytest.mark.slow
def test_memory_of_fused_is_below_autodiff_and_of_remat_below_fused(temp_bytes):
    cell = IRNN(32, num_inner_steps=3)
    params, xs = cell.init(jax.random.key(0), 1), jnp.ones((256, 16, 1))

    def measure(mode):
        def loss(params, xs):
            return jnp.sum(unroll(cell, params, xs, backward=mode, return_sequence=False)[1])

        return temp_bytes(jax.grad(loss), params, xs)

    size = {mode: measure(mode) for mode in ("autodiff", "fused", "remat")}
    assert size["remat"] < 0.5 * size["fused"]
    assert size["fused"] < 0.9 * size["autodiff"]


# Parameters.


@some_cells
def test_init_is_a_function_of_the_key(name):
    init = jax.jit(lambda key: CASES[name].init(key, INPUTS))
    first, again, other = (jax.device_get(init(jax.random.key(k))) for k in (0, 0, 1))
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
    "irnn_timed": {**DENSE, "step_size": (1, 25)},
    "irnn_timed_three": {**DENSE, "step_size": (3, 25)},
    "irnn_timed_fixed": DENSE,
    "irnn_rank": {**LOW_RANK, "step_size": (2,)},
    "irnn_cold": {**DENSE, "step_size": (2,)},
    "irnn_cold_one": {**DENSE, "step_size": (1,)},
    "irnn_implicit": {**DENSE, "step_size": (60,)},
    "irnn_implicit_timed": {**DENSE, "step_size": (60, 25)},
    "tarnn": {**GATED_ODE, "step_size": (1,)},
    "tarnn_outside": {**GATED_ODE, "step_size": (1,)},
    "tarnn_three": {**GATED_ODE, "step_size": (3,)},
    "tarnn_outside_three": {**GATED_ODE, "step_size": (3,)},
    "tarnn_timed_two": {**GATED_ODE, "step_size": (2, 25)},
    "dual_ode": {**TWO_BLOCKS, "beta": (), "step_size": (2,), "step_size_2": ()},
    "dual_ode_timed": {**TWO_BLOCKS, "beta": (25,), "step_size": (2, 25), "step_size_2": (25,)},
}


@every_cell
def test_parameter_names_and_shapes_do_not_drift(name):
    params = jax.eval_shape(lambda: CASES[name].init(jax.random.key(0), INPUTS))
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
        (Elman, {"features": 0}),
        (LSTM, {"features": "8"}),
        (GRU, {"features": True}),
        (Elman, {"features": 4, "activation": "gelu"}),
        (FastRNN, {"features": 4, "activation": ""}),
        (Antisymmetric, {"features": 4, "step_size": 0}),
        (CoRNN, {"features": 4, "gamma": -1.0}),
        (CoRNN, {"features": 4, "epsilon": 0.0}),
    ],
)
def test_impossible_options_of_other_cells_are_refused(cell, options):
    with pytest.raises(ConfigError, match=cell.__name__):
        cell(**options)


@pytest.mark.slow
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
