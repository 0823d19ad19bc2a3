"""The incremental Elman against its equations and against every measured property of the method.

Setting A: double precision, 32 units, 5 inputs, U of spectral norm 0.9, no bias, decay 1, tanh.
Inequalities stand where a figure depends on the draw.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from irnn_cases import drawn, raw_cell
from scipy.integrate import solve_ivp

from jaxeff.errors import ConfigError
from jaxeff.ode import IRNN, CarryParts, FastRNN, unroll

pytestmark = pytest.mark.usefixtures("x64")

NUMPY_ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0.0),
    "sigmoid": lambda a: 1.0 / (1.0 + np.exp(-a)),
}


def numpy_step(params, h, x, etas, activation="tanh", decay=1.0):
    """The equations, one line per line."""
    phi = NUMPY_ACTIVATIONS[activation]
    U = params["U"] if "U" in params else np.eye(h.shape[-1]) + params["V2"] @ params["V"]
    g = h
    for eta in etas:
        g = g + eta * (phi((g + h) @ U + x @ params["W"] + params["b"]) - decay * (g + h))
    return g


def package_step(params, h, x, etas, activation="tanh", decay=1.0):
    cell = raw_cell(h.shape[-1], len(etas), activation=activation, decay=decay)
    params = jax.tree.map(jnp.asarray, {**params, "step_size": etas})
    return cell.step(params, jnp.asarray(h), jnp.asarray(x))[0]


def repeated(eta, count, total=500):
    """That many steps of one size, then steps of size zero: all counts share one program."""
    return np.where(np.arange(total) < count, eta, 0.0)


@functools.cache
def compiled_jacobian(step, activation):
    def run(h, params, x, etas):
        new = step(params, h, x, etas, activation=activation)
        return new, new

    return jax.jit(jax.jacfwd(run, has_aux=True))


def jacobian(step, params, h, x, etas, activation="tanh"):
    """Returns dh_k / dh_{k-1}, and h_k."""
    return jax.tree.map(np.asarray, compiled_jacobian(step, activation)(h, params, x, etas))


# The oracle as functions of a step, so that wrong steps can be put before it too.


def check_equations(step):
    for activation, decay, num_steps in (("tanh", 1.0, 1), ("relu", 0.6, 3), ("sigmoid", 1.7, 4)):
        params, h, x = drawn(features=7, inputs=3, seed=num_steps, bias=0.3)
        etas = np.linspace(0.05, 0.4, num_steps)
        expected = numpy_step(params, h, x, etas, activation, decay)
        np.testing.assert_allclose(
            step(params, h, x, etas, activation=activation, decay=decay), expected, atol=1e-14
        )


def check_plus_identity(step):
    params, h, x = drawn()
    J, _ = jacobian(step, params, h, x, np.full(1, 0.01))
    values = np.linalg.svd(J, compute_uv=False)
    assert 0.96 < values.min() < values.max() < 1.0
    assert abs(np.trace(J) / 32 - 0.98) < 0.01


def check_equilibrium(step):
    params, h, x = drawn()
    J, new = jacobian(step, params, h, x, repeated(0.5, 100))
    assert np.abs(numpy_step(params, h, x, [1.0]) - h).max() > 0.1  # h is no equilibrium itself
    residual = np.tanh((new + h) @ params["U"] + x @ params["W"]) - (new + h)
    assert np.abs(residual).max() < 1e-13
    assert np.abs(J + np.eye(32)).max() < 1e-12


CHECKS = (check_equations, check_plus_identity, check_equilibrium)


def euler(params, h, x, etas, activation="tanh", decay=1.0, *, warm=1.0, shift=1.0, sign=1.0):
    """The step once more, with a knob for every way to get it wrong."""
    phi = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}[activation]
    U, W, b = (jnp.asarray(params[name]) for name in "UWb")

    def body(g, eta):
        a = (g + shift * h) @ U + x @ W + b
        return g + eta * (phi(a) - sign * decay * (g + h)), None

    return jax.lax.scan(body, warm * h, etas)[0]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("step", [package_step, euler])
def test_step_passes_the_oracle(step, check):
    check(step)


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (check_equations, {"warm": 0.0}),
        (check_equations, {"shift": 0.0}),
        (check_equations, {"sign": -1.0}),
        (check_plus_identity, {"warm": 0.0}),
        (check_plus_identity, {"sign": -1.0}),
        (check_equilibrium, {"shift": 0.0}),
        (check_equilibrium, {"sign": -1.0}),
    ],
)
def test_oracle_rejects_a_wrong_step(check, wrong):
    def broken(*args, **options):
        return euler(*args, **options, **wrong)

    with pytest.raises(AssertionError):
        check(broken)


@settings(max_examples=8, deadline=None)
@given(
    features=st.integers(1, 9),
    inputs=st.integers(1, 4),
    num_inner_steps=st.integers(1, 5),
    activation=st.sampled_from(sorted(NUMPY_ACTIVATIONS)),
    decay=st.floats(0.1, 3.0),
    seed=st.integers(0, 99),
)
def test_step_equals_the_loop_for_any_sizes(
    features, inputs, num_inner_steps, activation, decay, seed
):
    params, h, x = drawn(features, inputs, seed=seed, bias=0.5)
    etas = np.random.default_rng(seed).uniform(0.01, 0.8, num_inner_steps)
    expected = numpy_step(params, h, x, etas, activation, decay)
    actual = package_step(params, h, x, etas, activation, decay)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("mode", ["shared", "per_inner_step", "per_time_step"])
@pytest.mark.parametrize("num_inner_steps", [1, 3])
def test_unroll_equals_the_loop_over_time(num_inner_steps, mode, rank):
    time, features = 6, 5
    rng = np.random.default_rng(1)
    params, _, _ = drawn(features, 3, bias=0.3)
    if rank:
        del params["U"]
        params |= {"V2": rng.normal(size=(5, rank)) * 0.4, "V": rng.normal(size=(rank, 5)) * 0.4}
    shape = {"shared": (), "per_inner_step": (num_inner_steps,)}
    params["step_size"] = rng.uniform(0.05, 0.5, shape.get(mode, (num_inner_steps, time)))
    cell = raw_cell(
        features, num_inner_steps, step_size_mode=mode, length=time, rank=rank, decay=0.8
    )
    xs, h = rng.normal(size=(time, 2, 3)), rng.normal(size=(2, features))
    carry = jnp.asarray(h)
    if mode == "per_time_step":
        carry = CarryParts(carry, steps=jnp.zeros((2, 1)))
    (_, ys) = unroll(cell, jax.tree.map(jnp.asarray, params), jnp.asarray(xs), carry)
    for t in range(time):
        etas = params["step_size"]
        etas = etas[:, t] if mode == "per_time_step" else np.broadcast_to(etas, num_inner_steps)
        h = numpy_step(params, h, xs[t], etas, decay=0.8)
        np.testing.assert_allclose(ys[t], h, rtol=1e-12, atol=1e-13)


# The table of measured properties.


def test_spectral_norm_of_setting_a():
    assert abs(np.linalg.norm(drawn()[0]["U"], 2) - 0.8956) < 1e-4


def test_residual_shrinks_linearly():
    params, h, x = drawn()

    def residual(num_steps):
        _, g = jacobian(package_step, params, h, x, repeated(0.5, num_steps))
        return np.abs(np.tanh((g + h) @ params["U"] + x @ params["W"]) - (g + h)).max()

    r = {k: residual(k) for k in (5, 10, 20, 50, 100)}
    assert r[5] < 2
    assert r[10] < 0.2
    assert r[20] < 5e-3
    assert r[50] < 1e-9
    assert r[100] < 1e-14
    # One factor a step throughout, and not a better one: convergence is linear.
    early, late = (r[20] / r[10]) ** (1 / 10), (r[50] / r[20]) ** (1 / 30)
    assert 0.4 < early < 0.75
    assert 0.4 < late < 0.75
    assert abs(early - late) < 0.1


@pytest.mark.parametrize(("num_steps", "bound"), [(10, 0.1), (20, 1e-3), (50, 1e-9), (100, 1e-13)])
def test_jacobian_tends_to_minus_identity(num_steps, bound):
    params, h, x = drawn()
    J, _ = jacobian(package_step, params, h, x, repeated(0.5, num_steps))
    assert np.abs(J + np.eye(32)).max() < bound


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_minus_identity_with_other_activations(activation):
    params, h, x = drawn()
    J, _ = jacobian(package_step, params, h, x, repeated(0.5, 50), activation=activation)
    assert np.abs(J + np.eye(32)).max() < 1e-8


@pytest.mark.parametrize(
    ("num_steps", "low", "high"), [(1, 0.97, 0.99), (3, 0.92, 0.96), (10, 0.75, 0.86)]
)
def test_plus_identity_regime(num_steps, low, high):
    params, h, x = drawn()
    J, _ = jacobian(package_step, params, h, x, repeated(0.01, num_steps))
    assert low < np.trace(J) / 32 < high


@pytest.mark.parametrize(
    ("num_steps", "low", "high"), [(50, 0.1, 0.35), (100, -0.4, -0.15), (500, -1.0, -0.95)]
)
def test_dead_zone_between_the_regimes(num_steps, low, high):
    params, h, x = drawn()
    J, _ = jacobian(package_step, params, h, x, repeated(0.01, num_steps))
    assert low < np.trace(J) / 32 < high


@pytest.mark.parametrize(("eta", "num_steps"), [(0.01, 69), (0.1, 7), (0.5, 1)])
def test_dead_zone_without_recurrence_is_where_the_closed_form_says(eta, num_steps):
    params, h, x = drawn(scale=0.0)
    J, _ = jacobian(package_step, params, h, x, repeated(eta, num_steps))
    np.testing.assert_allclose(J, (2 * (1 - eta) ** num_steps - 1) * np.eye(32), atol=1e-13)
    assert np.abs(J).max() < 0.05


def test_cold_start_has_a_vanishing_jacobian():
    params, h, x = drawn()

    def cold(params, h, x, etas, activation):
        cell = raw_cell(32, 1, warm_start=False, activation=activation)
        return cell.step({**params, "step_size": etas}, h, jnp.asarray(x))[0]

    J, _ = jacobian(cold, jax.tree.map(jnp.asarray, params), h, x, np.full(1, 0.01))
    assert np.abs(J + 0.01 * np.eye(32)).max() < 0.01
    assert np.linalg.svd(J, compute_uv=False).max() < 0.02
    with pytest.raises(AssertionError):
        check_plus_identity(cold)


def test_jacobian_of_fifty_steps_at_equilibrium_is_the_identity():
    params, h, _ = drawn(features=16)
    params = jax.tree.map(jnp.asarray, params)
    cell = IRNN(16, num_inner_steps=600, step_size=0.5, learn_step_size=False)
    xs = jnp.asarray(np.random.default_rng(3).normal(size=(51, 5)))

    def final(h, steps):
        return unroll(cell, params, xs[:steps], h, backward="autodiff", return_sequence=False)[1]

    for steps in (50, 51):  # of either parity
        J = jax.jit(jax.jacfwd(final), static_argnums=1)(jnp.asarray(h), steps)
        assert np.abs(J - (-1.0) ** steps * np.eye(16)).max() < 1e-12


@pytest.mark.parametrize("solver", ["euler", "implicit"])
def test_states_at_equilibrium_are_alternating_sums(solver):
    params, h, _ = drawn(bias=0.3)
    params = jax.tree.map(jnp.asarray, params)
    cell = IRNN(32, num_inner_steps=400, step_size=0.5, learn_step_size=False, solver=solver)
    xs = jnp.asarray(np.random.default_rng(3).normal(size=(20, 5)))
    _, ys = unroll(cell, params, xs, jnp.asarray(h))
    features = np.asarray(cell.equilibrium(params, xs))
    signs = (-1.0) ** np.arange(20)[:, None]
    expected = signs * (np.cumsum(signs * features, 0) - h)
    np.testing.assert_allclose(ys, expected, atol=1e-12)


@pytest.mark.parametrize("eta", [0.05, 0.2])
def test_one_inner_step_is_fastrnn(eta):
    params, _, _ = drawn(features=8, bias=0.3)
    rng = np.random.default_rng(5)
    xs, h = rng.normal(size=(9, 3, 5)), rng.normal(size=(3, 8))
    params = jax.tree.map(jnp.asarray, params)
    fast = {
        **params,
        "U": 2 * params["U"],
        "alpha": jnp.log(eta / (1 - eta)),
        "beta": jnp.log((1 - 2 * eta) / (2 * eta)),
    }
    _, expected = unroll(FastRNN(8), fast, jnp.asarray(xs), jnp.asarray(h))
    slow = {**params, "step_size": jnp.full(1, eta)}
    _, actual = unroll(raw_cell(8, 1), slow, jnp.asarray(xs), jnp.asarray(h))
    np.testing.assert_allclose(actual, expected, atol=1e-13)
    for t in range(9):
        a = h @ (2 * np.asarray(params["U"])) + xs[t] @ np.asarray(params["W"])
        h = (1 - 2 * eta) * h + eta * np.tanh(a + np.asarray(params["b"]))
        np.testing.assert_allclose(actual[t], h, atol=1e-13)


@pytest.mark.parametrize(("eta", "converges"), [(1.9, True), (2.1, False)])
def test_stability_bound_without_recurrence(eta, converges):
    params, h, x = drawn(scale=0.0)
    new = package_step(params, h, x, np.full(300, eta))
    residual = np.abs(np.tanh(x @ params["W"]) - (new + h)).max()
    assert (residual < 1e-10) == converges
    assert (residual > 1e10) != converges


def test_more_and_smaller_steps_approach_the_differential_equation_at_first_order():
    params, h, x = drawn(features=8, bias=0.2)

    def slope(_, g):
        return np.tanh((g + h) @ params["U"] + x @ params["W"] + params["b"]) - 0.7 * (g + h)

    exact = solve_ivp(slope, (0.0, 1.0), h, rtol=1e-11, atol=1e-12).y[:, -1]
    errors = [
        np.abs(package_step(params, h, x, np.full(k, 1.0 / k), decay=0.7) - exact).max()
        for k in (20, 40, 80)
    ]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 1.0, atol=0.1)


# Step sizes.


@pytest.mark.parametrize("mode", ["shared", "per_inner_step", "per_time_step"])
@pytest.mark.parametrize("form", ["bounded", "raw"])
def test_initial_step_sizes_are_as_asked(mode, form):
    cell = IRNN(
        4, num_inner_steps=3, step_size=0.07, step_size_mode=mode, step_size_param=form, length=5,
        max_step_size=0.5,
    )  # fmt: skip
    params = cell.init(jax.random.key(0), 2, jnp.float64)
    shape = {"shared": (), "per_inner_step": (3,), "per_time_step": (3, 5)}[mode]
    assert params["step_size"].shape == shape
    np.testing.assert_allclose(cell.step_sizes(params), 0.07, rtol=1e-12)


@given(raw=st.floats(-30, 30), bound=st.floats(0.1, 2.0))
@settings(max_examples=30, deadline=None)
def test_bounded_step_sizes_stay_in_range(raw, bound):
    cell = IRNN(2, max_step_size=bound)
    eta = float(cell.step_sizes({"step_size": jnp.full(1, raw)})[0])
    assert 0.0 < eta <= bound
    assert eta == pytest.approx(bound / (1 + np.exp(-raw)), rel=1e-9)


def test_fixed_step_size_is_no_parameter():
    cell = IRNN(8, step_size=0.3, num_inner_steps=2, learn_step_size=False)
    params, h, x = drawn(features=8)
    assert set(cell.param_specs(5)) == {"W", "U", "b"}
    new, _ = cell.step(jax.tree.map(jnp.asarray, params), jnp.asarray(h), jnp.asarray(x))
    np.testing.assert_allclose(new, numpy_step(params, h, x, [0.3, 0.3]), atol=1e-14)


@pytest.mark.slow
def test_step_counter_counts_real_steps_only():
    cell = IRNN(3, num_inner_steps=2, step_size_mode="per_time_step", length=6)
    params = cell.init(jax.random.key(0), 2, jnp.float64)
    mask = jnp.asarray([[1, 1], [1, 0], [0, 0], [1, 0]])
    carry, _ = unroll(cell, params, jnp.ones((4, 2, 2)), mask=mask)
    np.testing.assert_array_equal(carry.steps, [[3], [1]])


@pytest.mark.slow
def test_step_sizes_of_long_sequences_are_found_in_half_precision():
    time = 300
    etas = jnp.where(jnp.arange(time) == time - 1, 0.5, 0.0)[None].astype(jnp.bfloat16)
    cell = raw_cell(2, 1, step_size_mode="per_time_step", length=time)
    params = cell.init(jax.random.key(0), 1, jnp.bfloat16) | {"step_size": etas}
    _, ys = unroll(cell, params, jnp.ones((time, 1), jnp.bfloat16))
    assert not np.any(ys[:-1])
    assert np.all(ys[-1] != 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": 0},
        {"features": 2.5},
        {"num_inner_steps": 0},
        {"num_inner_steps": 1.5},
        {"decay": -1.0},
        {"step_size": 0.0},
        {"step_size": 1.0},
        {"max_step_size": 0.005},
        {"activation": "tahn"},
        {"step_size_mode": "per_step"},
        {"step_size_param": "log"},
        {"solver": "newton"},
        {"rank": -1},
        {"rank": 1.5},
        {"step_size_mode": "per_time_step"},
        {"step_size_mode": "per_time_step", "length": 2.5},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        IRNN(**{"features": 4, **wrong})


def test_misspelt_choice_names_the_nearest():
    with pytest.raises(ConfigError, match=r"IRNN.activation.*did you mean 'tanh'"):
        IRNN(4, activation="tahn")
