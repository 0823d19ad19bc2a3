"""All time steps at once: values and gradients as those of the loop over time, or the loop."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from scan_cases import in_double, initialised, random, run, run_parallel, weighted

from jaxeff.errors import ConfigError
from jaxeff.ode import (
    GRU,
    IRNN,
    LSTM,
    TARNN,
    CarryParts,
    Cell,
    CoRNN,
    Elman,
    newton,
    parts_of,
    unroll,
    unroll_parallel,
)
from jaxeff.ode.carry import before_steps
from jaxeff.ode.fused_scan import Inputs
from jaxeff.ode.linearise import NewtonOptions, gather, linearise

INPUTS, TIME, BATCH = 3, 20, 2  # more steps than a block of the scan has
TIMED = {"step_size_mode": "per_time_step", "length": TIME + 2}

CASES = {
    "rnn": Elman(6),
    "lstm": LSTM(6),
    "gru": GRU(6),
    "cornn": CoRNN(6, step_size=0.3),
    "irnn_timed_three": IRNN(6, step_size=0.2, num_inner_steps=3, **TIMED),
    "tarnn": TARNN(6, step_size=0.2),
}


@pytest.fixture
def example(jitter):
    """Parameters, inputs and a non-zero first carry of a case."""

    def make(cell, time=TIME, batch=(BATCH,), dtype=jnp.float64):
        params = jitter(initialised(cell, INPUTS, dtype))
        xs = random(1, time, *batch, INPUTS, dtype=dtype)
        carry = cell.initial_carry(batch, dtype, INPUTS)
        moved = jitter(carry, seed=2, scale=0.3)
        # Step counters, of width 1, have come to 2.
        carry = jax.tree.map(lambda a, b: a + 2 if a.shape[-1] == 1 else b, carry, moved)
        return params, xs, carry

    return make


def expansive(scale, time):
    """A relu iRNN whose state grows without end, with its inputs."""
    cell = IRNN(16, step_size=0.1, activation="relu")
    params = dict(initialised(cell, INPUTS, jnp.float64))
    params["U"] = scale * random(0, 16, 16) / 4
    return cell, params, random(1, time, INPUTS)


def results(run, cell, arguments, **options):
    """Carry, outputs and what else there is, and the gradients in params, xs and carry."""

    def loss(params, xs, carry):
        out = run(cell, params, xs, carry, **options)
        return weighted(out[:2]), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arguments)
    return out[:2], grads, out[2:]


def loop(cell, params, xs, carry, **options):
    return unroll(cell, params, xs, carry, backward="autodiff", **options)


# The answer is that of the loop; test_every_cell.py has every cell.


@in_double
@pytest.mark.parametrize(
    ("time", "batch", "options"),
    [
        (1, (2,), {}),
        (17, (), {"return_sequence": False}),
        pytest.param(5, (2, 3), {}, marks=pytest.mark.slow),
    ],
)
def test_any_lengths_and_batches(time, batch, options, example):
    cell = CASES["cornn"]
    arguments = example(cell, time=time, batch=batch)
    expected = results(loop, cell, arguments, **options)
    actual = results(unroll_parallel, cell, arguments, **options)
    chex.assert_trees_all_close(actual, expected, atol=1e-9, rtol=1e-9)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)


@pytest.mark.slow
@in_double
def test_the_first_carry_may_be_left_out(example):
    cell = CASES["tarnn"]
    params, xs, _ = example(cell)
    expected = unroll(cell, params, xs)
    chex.assert_trees_all_close(unroll_parallel(cell, params, xs), expected, atol=1e-9)


@pytest.mark.slow
@in_double
def test_a_sequence_goes_on_where_another_ended(example):
    cell = CASES["irnn_timed_three"]
    params, xs, carry = example(cell)
    middle, first = unroll_parallel(cell, params, xs[:9], carry)
    np.testing.assert_array_equal(middle.steps, 11.0)
    end, second = unroll_parallel(cell, params, xs[9:], middle)
    expected = unroll(cell, params, xs, carry)
    chex.assert_trees_all_close((end, jnp.concatenate([first, second])), expected, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("jacobian", ["dense", "diagonal"])
def test_single_precision(jacobian, example):
    cell = Elman(6)
    arguments = example(cell, time=60, dtype=jnp.float32)
    options = {"jacobian": jacobian, "diagnostics": True}
    expected_out, expected_grads, _ = results(loop, cell, arguments)
    out, grads, (info,) = results(unroll_parallel, cell, arguments, **options)
    assert info.converged
    assert info.residual < 2e-6
    chex.assert_trees_all_close(out, expected_out, atol=1e-5)
    chex.assert_trees_all_close(grads, expected_grads, atol=1e-4, rtol=1e-4)
    chex.assert_trees_all_equal_shapes_and_dtypes((out, grads), (expected_out, expected_grads))


@pytest.mark.slow
def test_half_precision_is_iterated_in_single(example):
    cell = CASES["irnn_timed_three"]
    params, xs, carry = example(cell, dtype=jnp.bfloat16)
    carry, ys, info = unroll_parallel(cell, params, xs, carry, diagnostics=True)
    assert info.converged
    assert (ys.dtype, carry.state.dtype, carry.steps.dtype) == (
        jnp.bfloat16,
        jnp.bfloat16,
        jnp.float32,
    )
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, xs))
    _, start = example(cell, dtype=jnp.bfloat16)[1:]
    expected = unroll(cell, *wide, jax.tree.map(lambda a: a.astype(jnp.float32), start))[1]
    np.testing.assert_array_equal(ys, expected.astype(jnp.bfloat16))


@pytest.mark.slow
@in_double
def test_on_a_part_of_the_batch_per_device(example):
    cell = CASES["gru"]
    params, xs, carry = example(cell)
    mesh, batch = Mesh(jax.devices()[:1], "data"), PartitionSpec(None, "data")

    def gradient(params, xs, carry):
        return jax.grad(lambda p: weighted(unroll_parallel(cell, p, xs, carry)[1]))(params)

    mapped = jax.shard_map(
        gradient,
        mesh=mesh,
        in_specs=(PartitionSpec(), batch, PartitionSpec("data")),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    expected = jax.grad(lambda p: weighted(unroll(cell, p, xs, carry)[1]))(params)
    chex.assert_trees_all_close(jax.jit(mapped)(params, xs, carry), expected, atol=1e-9)


def test_repeated_calls_compile_once(example):
    arguments = example(Elman(6), dtype=jnp.float32)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def gradient(params, xs, carry):
        # A fresh cell each time: equal options must be as good as the same object.
        return jax.grad(lambda p: weighted(unroll_parallel(Elman(6), p, xs, carry)))(params)

    first = gradient(*arguments)
    chex.assert_trees_all_equal(gradient(*arguments), first)


# How many iterations it takes.


@in_double
@pytest.mark.parametrize(
    ("cell", "scale", "most"),
    [
        (IRNN(16, step_size=0.01), None, 3),
        (IRNN(16, step_size=0.1, activation="relu"), 0.5, 4),
        pytest.param(IRNN(16, step_size=0.1, num_inner_steps=3), None, 7, marks=pytest.mark.slow),
    ],
)
def test_few_iterations_at_initialisation(cell, scale, most):
    params = dict(initialised(cell, 1, jnp.float64))
    if scale is not None:
        params["U"] = scale * random(0, 16, 16) / 4
    xs = random(1, 784, 1)
    _, ys, info = run_parallel(cell, params, xs, tolerance=1e-8, diagnostics=True)
    assert info.converged
    assert 2 <= info.iterations <= most
    np.testing.assert_allclose(ys, run(cell, params, xs)[1], atol=1e-6)


@in_double
@pytest.mark.parametrize("dense", [True, False])
def test_iteration_k_makes_the_first_k_states_exact_whatever_the_jacobian(dense):
    kernel, xs = 1.5 * random(0, 4, 4), random(1, 20, 1, 4)
    # The products of the second kind overflow.
    jacobian = random(2, 20, 4, 4) if dense else 1e40 * random(2, 20, 1, 1, 4)

    def evaluate(states):
        before = jnp.concatenate([jnp.zeros((1, 1, 4)), states[:-1]])
        return jnp.tanh(before @ kernel + xs), jacobian

    exact = [jnp.zeros((1, 4))]
    for x in xs:
        exact.append(jnp.tanh(exact[-1] @ kernel + x))
    for count in (2, 18):  # also beyond a block of the scan
        found = newton.iterate(
            evaluate, jnp.zeros_like(xs), dense=dense, tolerance=1e-14, max_iterations=count
        )
        assert found.iterations == count
        assert not found.converged
        np.testing.assert_allclose(found.states[:count], exact[1 : count + 1], atol=1e-12)
        assert np.abs(found.states[count] - exact[count + 1]).max() > 1e-6


@in_double
def test_as_many_iterations_as_steps_are_enough(example):
    cell = CASES["rnn"]
    params, xs, carry = example(cell, time=9)
    _, ys, info = run_parallel(cell, params, 3 * xs, carry, damping=0.0, diagnostics=True)
    assert info.converged
    assert 7 <= info.iterations <= 9
    np.testing.assert_allclose(ys, run(cell, params, 3 * xs, carry)[1], atol=1e-12)


@in_double
@pytest.mark.parametrize(
    "name",
    ["lstm", "cornn", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gru", "tarnn", "rnn"))],
)
def test_diagonals_are_those_of_the_exact_jacobian(name, example):
    cell = CASES[name]
    params, xs, carry = example(cell)
    leaves, structure = jax.tree.flatten(parts_of(carry).state)
    arrays = len(leaves)
    parts = isinstance(carry, CarryParts)
    plan = NewtonOptions(cell, structure, (6,) * arrays, parts, True, 1, 1, 1, True)
    state = random(3, TIME, *gather(plan, parts_of(carry).state).shape)
    given = Inputs(xs, before_steps(carry, xs, None), None)
    both = jax.jit(lambda plan, *a: linearise(plan, *a), static_argnums=0)
    new, exact = both(plan, params, state, given)
    exact = exact.reshape(TIME, BATCH, arrays, 6, arrays, 6)
    exact = jnp.diagonal(exact, axis1=3, axis2=5)
    new_, diagonal = both(plan._replace(dense=False), params, state, given)
    np.testing.assert_allclose(new_, new, atol=1e-14)
    np.testing.assert_allclose(diagonal, exact, atol=1e-14)


@in_double
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("time", [11, *(pytest.param(t, marks=pytest.mark.slow) for t in (1, 4))])
def test_linear_recurrence(dense, reverse, time):
    right = random(0, time, 2, 2, 3)
    jacobian = random(1, time, 2, 6, 6) if dense else random(1, time, 2, 2, 2, 3)
    expected, d = np.zeros(right.shape), np.zeros((2, 2, 3))
    for t in reversed(range(time)) if reverse else range(time):
        if dense:
            d = np.einsum("bij,bj->bi", jacobian[t], d.reshape(2, 6)).reshape(2, 2, 3)
        else:
            d = np.einsum("bijd,bjd->bid", jacobian[t], d)
        expected[t], d = d, d + np.asarray(right[t])
    propagate = functools.partial(newton.propagate, dense=dense, reverse=reverse, block=4)
    actual = jax.jit(propagate)(jacobian, right)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


# What happens when it does not converge.


@in_double
def test_expansive_dynamics_fall_back_to_the_loop():
    cell, params, xs = expansive(scale=2.0, time=200)
    arguments = params, xs, cell.initial_carry((), jnp.float64)
    expected_out, expected_grads, _ = results(loop, cell, arguments)
    options = {"jacobian": "diagonal", "max_iterations": 20, "diagnostics": True}
    out, grads, (info,) = results(unroll_parallel, cell, arguments, **options)
    assert np.abs(out[1]).max() > 1e5
    assert (info.iterations, info.converged, info.fell_back) == (20, False, True)
    assert info.residual > 1e-10
    chex.assert_trees_all_close(out, expected_out, rtol=1e-12)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(expected_grads))
    chex.assert_trees_all_close(grads, expected_grads, rtol=1e-8, atol=1e-12 * largest)


@pytest.mark.slow
@in_double
def test_expansive_dynamics_converge_with_exact_jacobians():
    cell, params, xs = expansive(scale=1.2, time=300)
    carry, ys, info = run_parallel(cell, params, xs, diagnostics=True)
    assert info.converged
    assert info.iterations <= 12
    expected = run(cell, params, xs)
    chex.assert_trees_all_close((carry, ys), expected, atol=1e-8 * np.abs(ys).max())


@in_double
def test_without_a_fallback_failure_shows(example):
    cell = CASES["rnn"]
    params, xs, carry = example(cell)
    options = {"max_iterations": 2, "fallback": False, "diagnostics": True}
    carry, ys, info = run_parallel(cell, params, xs, carry, **options)
    assert (info.iterations, info.converged, info.fell_back) == (2, False, False)
    assert np.isnan(ys).all()
    assert np.isnan(carry).all()


@in_double
@pytest.mark.parametrize("jacobian", ["dense", pytest.param("diagonal", marks=pytest.mark.slow)])
def test_nan_stays_where_the_loop_has_it(jacobian, example):
    cell = CASES["lstm"]
    params, xs, carry = example(cell)
    xs = xs.at[7, 0, 1].set(jnp.nan)
    expected = run(cell, params, xs, carry)
    assert np.isnan(expected[1][7:, 0]).any()
    carry_, ys, info = run_parallel(cell, params, xs, carry, jacobian=jacobian, diagnostics=True)
    assert (info.iterations, info.fell_back) == (0, True)
    chex.assert_trees_all_close((carry_, ys), expected, atol=1e-12)  # NaN equals NaN here
    # At a step that is not real it is nowhere.
    mask = jnp.ones((TIME, BATCH)).at[7, 0].set(0)
    expected = run(cell, params, xs, carry, mask=mask)
    *actual, info = run_parallel(
        cell, params, xs, carry, mask=mask, jacobian=jacobian, diagnostics=True
    )
    assert info.converged
    chex.assert_tree_all_finite(actual)
    chex.assert_trees_all_close(tuple(actual), expected, atol=1e-9)


class Clocked(Cell):
    """A cell with a clock in its carry, which its subclasses advance."""

    def param_specs(self, input_size):
        return {}

    def initial_carry(self, batch_shape, dtype=jnp.float32, input_size=None):
        return jnp.zeros((*batch_shape, self.features), dtype), jnp.ones((*batch_shape, 1), dtype)

    def step(self, params, carry, x):
        h, clock = carry
        new = jnp.tanh(h / 2 + x * jnp.sin(jax.lax.stop_gradient(clock)))
        return (new, self.tick(h, clock)), h

    def output(self, state):
        return state[0]


class Doubling(Clocked):
    def tick(self, h, clock):
        return 2 * clock


class Counting(Clocked):
    def tick(self, h, clock):
        return clock + jax.lax.stop_gradient(h[..., :1] > 0)


@in_double
@pytest.mark.parametrize("kind", [Doubling, Counting])
def test_clocks_that_do_more_than_count_steps(kind):
    cell, xs = kind(3), random(0, 12, 2, 3)
    arguments = {}, xs, cell.initial_carry((2,), jnp.float64)
    expected = results(loop, cell, arguments)
    assert expected[0][0][1].min() > 3
    actual = results(unroll_parallel, cell, arguments)
    chex.assert_trees_all_close(actual, expected, atol=1e-9, rtol=1e-9)


# What is refused.


@pytest.mark.parametrize(
    "options",
    [
        {"jacobian": "densé"},
        {"tolerance": 0.0},
        {"tolerance": float("nan")},
        {"max_iterations": 0},
        {"max_iterations": 2.5},
        {"damping": 1.5},
    ],
)
def test_impossible_options_are_refused(options):
    cell = Elman(4)
    with pytest.raises(ConfigError, match=next(iter(options))):
        unroll_parallel(cell, initialised(cell, 2, jnp.float32), jnp.ones((3, 2)), **options)


def test_wrong_shapes_and_lengths_are_refused():
    cell = Elman(4)
    params = initialised(cell, 2, jnp.float32)
    with pytest.raises(ValueError, match="xs must be"):
        unroll_parallel(cell, params, jnp.ones((0, 2)))
    with pytest.raises(ValueError, match="mask"):
        unroll_parallel(cell, params, jnp.ones((3, 5, 2)), mask=jnp.ones((3, 4)))
    timed = IRNN(4, step_size_mode="per_time_step", length=2)
    with pytest.raises(ConfigError, match="length"):
        unroll_parallel(timed, timed.init(jax.random.key(0), 2), jnp.ones((3, 2)))
