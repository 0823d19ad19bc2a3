"""The time-adaptive cell against recorded arrays, loops from its equations, and its physics."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_cases import run
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.ode import (
    IRNN,
    LSTM,
    TARNN,
    CarryParts,
    DualODE,
    lstm_from_pytorch,
    tarnn_from_reference,
)
from jaxeff.ode.convert import TARNN_NAMES

GOLDEN = Path(__file__).parents[1] / "golden"
INPUTS, FEATURES, BATCH = 3, 6, 2
VARIANTS = ("inside", "outside")

pytestmark = pytest.mark.usefixtures("x64")
both = pytest.mark.parametrize("variant", VARIANTS)


def random(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape))


def sigmoid(a):
    return 1.0 / (1.0 + np.exp(-a))


@functools.partial(jax.jit, static_argnums=0)
def step(cell, params, carry, x):
    return cell.step(params, carry, x)


def start(cell, state, inputs=INPUTS):
    """A carry with that state, before any input."""
    return cell.initial_carry(state.shape[:-1], state.dtype, inputs)._replace(state=state)


@pytest.fixture(scope="module")
def recorded():
    return {v: dict(np.load(GOLDEN / f"tarnn_{v}.npz")) for v in VARIANTS}


def reference_cell(variant, arrays, **options):
    K, length = arrays["p_A1"].shape
    options = {"step_size_mode": "per_time_step", "length": length, **options}
    return TARNN(7, num_inner_steps=K, variant=variant, **{"step_size_param": "raw", **options})


def reference_params(cell, arrays):
    named = {name[2:]: array for name, array in arrays.items() if name.startswith("p_")}
    return tarnn_from_reference(cell, named)


@both
@pytest.mark.parametrize("backward", swept(["autodiff", "fused"], "fused"))
def test_values_and_gradients_equal_the_authors_cell(variant, backward, recorded):
    arrays = recorded[variant]
    cell = reference_cell(variant, arrays)
    params = reference_params(cell, arrays)
    carry = start(cell, jnp.asarray(arrays["h0"][0]), arrays["x"].shape[-1])

    def loss(params, xs):
        carry_out, ys = run(cell, params, xs, carry, backward=backward, block_size=4)
        return jnp.sum(ys**2), (carry_out, ys)

    (_, (last, ys)), (grads, d_xs) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        params, jnp.asarray(arrays["x"])
    )
    np.testing.assert_allclose(ys, arrays["y"], atol=1e-12)
    np.testing.assert_allclose(last.state, arrays["hT"][0], atol=1e-12)
    np.testing.assert_allclose(d_xs, arrays["dx"], atol=1e-12)
    for name in TARNN_NAMES:
        np.testing.assert_allclose(grads[name], arrays[f"g_{name}"], atol=1e-12, err_msg=name)
    np.testing.assert_allclose(grads["step_size"], arrays["g_A1"], atol=1e-12)


def test_conversion_to_bounded_step_sizes_gives_the_same_outputs(recorded):
    arrays = recorded["inside"]
    # The recorded step sizes may be negative, which no bounded cell can hold.
    arrays = {**arrays, "p_A1": 0.05 + 0.5 * sigmoid(arrays["p_A1"])}
    raw, bounded = (
        reference_cell("inside", arrays, step_size_param=how) for how in ("raw", "bounded")
    )
    xs = jnp.asarray(arrays["x"])
    expected, actual = (run(c, reference_params(c, arrays), xs)[1] for c in (raw, bounded))
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    assert np.abs(expected).max() > 1e-2


def test_conversion_names_what_does_not_fit(recorded):
    arrays = {n[2:]: a for n, a in recorded["inside"].items() if n.startswith("p_")}
    cell = TARNN(7, num_inner_steps=2, step_size_param="raw")
    with pytest.raises(
        ConfigError, match=r"A1 differs between steps.*'per_time_step' with length="
    ):
        tarnn_from_reference(cell, arrays)
    with pytest.raises(ConfigError, match="lack Ug"):
        tarnn_from_reference(cell, {k: v for k, v in arrays.items() if k != "Ug"})
    with pytest.raises(ConfigError, match=r"W1 has shape .* 8 features"):
        tarnn_from_reference(TARNN(8, num_inner_steps=2), arrays)
    with pytest.raises(ConfigError, match="num_inner_steps=3"):
        tarnn_from_reference(TARNN(7, num_inner_steps=3), arrays)
    with pytest.raises(ConfigError, match="the cell has length=12"):
        tarnn_from_reference(
            TARNN(7, num_inner_steps=2, step_size_mode="per_time_step", length=12), arrays
        )
    negative = {**arrays, "A1": np.full_like(arrays["A1"], -0.1)}
    with pytest.raises(ConfigError, match=r"outside .*use 'raw'"):
        tarnn_from_reference(TARNN(7, num_inner_steps=2), negative)


def test_the_tensorflow_file_calls_the_step_sizes_alpha(recorded):
    arrays = {n[2:]: a for n, a in recorded["inside"].items() if n.startswith("p_")}
    arrays["alpha"] = arrays.pop("A1")
    cell = reference_cell("inside", recorded["inside"])
    np.testing.assert_array_equal(tarnn_from_reference(cell, arrays)["step_size"], arrays["alpha"])


# Loops from the equations, in numpy.


def tarnn_loop(cell, p, xs, s, previous, etas):
    phi = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "sigmoid": sigmoid}[cell.activation]
    for t, x in enumerate(xs):
        before = previous if t else (x if cell.previous_input == "repeat" else np.zeros_like(x))
        previous = x
        q = sigmoid(s @ p["Ug"] + x @ p["Wg"] + p["bg"])
        fixed = s @ p["U2"] + x @ p["W1"] + before @ p["W2"] + p["b1"]
        z = s
        for k in range(cell.num_inner_steps):
            eta = etas[k, t]
            slope = phi(z @ p["U1"] + fixed) - z - s + x @ p["B1"] + s @ p["B2"]
            if cell.variant == "inside":
                z = z + eta * q * slope
            else:
                z = (1 - eta) * z + eta * slope
        s = z if cell.variant == "inside" else (1 - q) * s + q * z
        yield s


@both
@pytest.mark.parametrize("previous_input", ["repeat", "zero"])
@pytest.mark.parametrize("K", [1, 3])
def test_cell_equals_a_loop_from_its_equations(variant, previous_input, K, jitter):
    cell = TARNN(
        FEATURES,
        num_inner_steps=K,
        variant=variant,
        previous_input=previous_input,
        activation="tanh",
        step_size=0.3,
    )
    params = jitter(cell.init(jax.random.key(0), INPUTS, jnp.float64), scale=0.5)
    xs, state = random(1, 7, BATCH, INPUTS), random(2, BATCH, FEATURES)
    _, ys = run(cell, params, xs, start(cell, state))
    etas = np.broadcast_to(np.asarray(cell.step_sizes(params))[:, None], (K, 7))
    assert np.ptp(etas[:, 0]) > 0.01 or K == 1
    arrays = jax.tree.map(np.asarray, params)
    expected = list(tarnn_loop(cell, arrays, np.asarray(xs), np.asarray(state), None, etas))
    np.testing.assert_allclose(ys, expected, atol=1e-13)


@pytest.mark.parametrize("timed", [False, True])
def test_two_block_cell_equals_a_loop_from_its_equations(timed, jitter):
    mode = {"step_size_mode": "per_time_step", "length": 6} if timed else {}
    cell = DualODE(FEATURES, num_inner_steps=3, activation="tanh", step_size=0.2, **mode)
    p = jitter(cell.init(jax.random.key(0), INPUTS, jnp.float64), scale=0.4)
    xs = random(1, 6, BATCH, INPUTS)
    _, ys = run(cell, p, xs)
    one = sigmoid(np.asarray(p["step_size"])) * np.ones(6) if timed else sigmoid(p["step_size"])
    two = np.broadcast_to(sigmoid(np.asarray(p["step_size_2"])), 6)
    beta = np.broadcast_to(np.asarray(p["beta"]), 6)
    p = jax.tree.map(np.asarray, p)
    g1 = g2 = np.zeros((BATCH, 3))
    for t, x in enumerate(np.asarray(xs)):
        q = sigmoid(g2 @ p["Ug"] + x @ p["Wg"] + p["bg"])
        g2 = beta[t] * g2 + two[t] * np.tanh(g2 @ p["U4"] + x @ p["W3"] + p["b2"])
        z = g1
        for k in range(3):
            eta = one[k, t] if timed else one[k]
            drive = z @ p["U1"] + g2 @ p["U2"] + g1 @ p["U1"] + x @ p["W1"] + p["b1"]
            z = (1 - eta) * z + eta * (np.tanh(drive) - g2 - g1)
        g1 = (1 - q) * g1 + q * z
        np.testing.assert_allclose(ys[t], np.concatenate([g1, g2], -1), atol=1e-13)


def test_two_block_cell_needs_an_even_width():
    with pytest.raises(ConfigError, match="must be even, not 5"):
        DualODE(5)


# Counts and initial values.


@both
def test_parameter_count_is_the_authors_without_their_unused_bias(variant):
    D, d, T = 128, 1, 784
    cell = TARNN(D, variant=variant, step_size_mode="per_time_step", length=T)
    count = sum(
        np.size(p) for p in jax.eval_shape(lambda: cell.init(jax.random.key(0), d)).values()
    )
    assert count + D == 67_216
    shared = TARNN(D, variant=variant, step_size_mode="shared")
    assert (
        sum(np.size(p) for p in jax.eval_shape(lambda: shared.init(jax.random.key(0), d)).values())
        == count - T + 1
    )


def test_initial_values():
    params = TARNN(64).init(jax.random.key(0), 64)
    for name in ("U1", "U2", "B1", "B2", "W1", "W2", "Wg", "Ug"):
        assert float(jnp.std(params[name])) == pytest.approx(0.1, rel=0.05), name
    assert float(params["bg"].max()) == 0.0
    assert float(TARNN(4, variant="outside").init(jax.random.key(0), 1)["bg"].max()) == -3.0
    assert float(TARNN(4).step_sizes(TARNN(4).init(jax.random.key(0), 1))[0]) == pytest.approx(0.01)


# The gate, the time constant and the equilibrium.


@both
@pytest.mark.parametrize("K", [1, 2])
def test_closed_gate_keeps_the_state_and_its_gradient(variant, K, jitter):
    cell = TARNN(FEATURES, num_inner_steps=K, variant=variant, step_size=0.5)
    params = jitter(cell.init(jax.random.key(0), INPUTS, jnp.float64))
    params = {**params, "bg": jnp.full(FEATURES, -800.0)}
    state, x = random(1, FEATURES), random(2, INPUTS)
    new = step(cell, params, start(cell, state), x)[1]
    np.testing.assert_array_equal(new, state)
    J = jax.jacobian(lambda s: step(cell, params, start(cell, s), x)[1])(state)
    np.testing.assert_allclose(J, np.eye(FEATURES), atol=1e-15)


def test_open_gate_at_unit_step_is_a_residual_free_network(jitter):
    cell = TARNN(FEATURES, learn_step_size=False, step_size=1.0, activation="tanh", gate_bias=800.0)
    p = jitter(cell.init(jax.random.key(0), INPUTS, jnp.float64))
    p = {**p, "B1": jnp.zeros((INPUTS, FEATURES)), "B2": jnp.zeros((FEATURES, FEATURES))}
    p["bg"] = jnp.full(FEATURES, 800.0)
    s, x, before = random(1, FEATURES), random(2, INPUTS), random(3, INPUTS)
    new = step(cell, p, CarryParts(s, before, jnp.ones(1)), x)[1]
    expected = jnp.tanh(s @ (p["U1"] + p["U2"]) + x @ p["W1"] + before @ p["W2"] + p["b1"]) - s
    np.testing.assert_allclose(new, expected, atol=1e-15)


@both
def test_jacobian_at_initialisation_is_near_the_identity(variant):
    cell = TARNN(128, variant=variant)
    params = cell.init(jax.random.key(0), 1, jnp.float64)
    state, x = random(1, 128, scale=0.1), random(2, 1)
    J = jax.jacobian(lambda s: step(cell, params, start(cell, s, 1), x)[1])(state)
    singular = np.linalg.svd(J, compute_uv=False)
    low, high, mean = {"inside": (0.96, 1.01, 0.99), "outside": (0.975, 1.006, 0.998)}[variant]
    assert low < singular.min()
    assert singular.max() < high
    assert singular.mean() == pytest.approx(mean, abs=0.005)


@pytest.mark.slow
def test_state_relaxes_by_the_time_constant(jitter):
    """With U1 = 0, z(t) - z* = (z0 - z*) exp(-q t) up to the order of the step."""
    K, eta = 400, 1e-3
    cell = TARNN(FEATURES, num_inner_steps=K, step_size_mode="shared", step_size=eta)
    p = jitter(cell.init(jax.random.key(0), INPUTS, jnp.float64))
    p = {**p, "U1": jnp.zeros((FEATURES, FEATURES)), "step_size": jnp.log(eta / (1 - eta))}
    s, x = random(1, FEATURES), random(2, INPUTS)
    new = step(cell, p, start(cell, s), x)[1]
    fixed = s @ p["U2"] + x @ p["W1"] + x @ p["W2"] + p["b1"]
    target = jax.nn.relu(fixed) - s + x @ p["B1"] + s @ p["B2"]
    q = cell.gates(p, x[None], start(cell, s))[0]
    np.testing.assert_allclose((new - target) / (s - target), np.exp(-q * K * eta), rtol=2 * eta)
    tau = cell.time_constants(p, x[None], start(cell, s))[0]
    np.testing.assert_allclose(tau, 1 / (q * K * eta), rtol=1e-12)


@pytest.mark.slow
def test_time_constants_of_every_mode(jitter):
    xs = random(0, 5, BATCH, INPUTS)
    mask = jnp.ones((5, BATCH)).at[2].set(0)
    for options, rate in (
        ({"step_size_mode": "shared", "num_inner_steps": 2}, 0.2),
        ({"num_inner_steps": 2}, 0.2),
        ({"step_size_mode": "per_time_step", "length": 9, "num_inner_steps": 2}, 0.2),
        ({"learn_step_size": False}, 0.1),
        ({"variant": "outside"}, 1.0),
    ):
        cell = TARNN(FEATURES, step_size=0.1, **options)
        params = cell.init(jax.random.key(0), INPUTS, jnp.float64)
        gates = cell.gates(params, xs, mask=mask)
        assert gates.shape == (5, BATCH, FEATURES)
        np.testing.assert_allclose(
            cell.time_constants(params, xs, mask=mask), 1 / (gates * rate), rtol=1e-12
        )
    # A gate read out is the gate that the step used: closing it everywhere stops the state.
    _, ys = run(cell, params, xs, mask=mask)
    before = jnp.concatenate([jnp.zeros_like(ys[:1]), ys[:-1]])
    real = xs * mask[..., None]  # what stands in padding is not read
    by_hand = jax.nn.sigmoid(before @ params["Ug"] + real @ params["Wg"] + params["bg"])
    np.testing.assert_allclose(gates, by_hand, rtol=1e-12)


@both
def test_many_steps_end_at_the_variants_own_equilibrium(variant, jitter):
    K = 2000
    cell = TARNN(
        FEATURES,
        num_inner_steps=K,
        variant=variant,
        step_size_mode="shared",
        step_size=0.3,
        activation="tanh",
        gate_bias=800.0,
    )
    p = cell.init(jax.random.key(0), INPUTS, jnp.float64)
    s, x = random(1, FEATURES), random(2, INPUTS)
    z = step(cell, p, start(cell, s), x)[1]
    fixed = s @ p["U2"] + x @ p["W1"] + x @ p["W2"] + p["b1"]
    right = jnp.tanh(z @ p["U1"] + fixed) + x @ p["B1"] + s @ p["B2"]
    left = {"inside": z + s, "outside": 2 * z + s}[variant]
    assert np.abs(left - right).max() < 1e-12
    assert np.abs(z).max() > 0.1


def test_is_the_incremental_cell_without_gate_and_linear_terms():
    cell = TARNN(FEATURES, num_inner_steps=2, step_size=0.2, activation="tanh", gate_bias=800.0)
    irnn = IRNN(FEATURES, num_inner_steps=2, step_size=0.2)
    q = irnn.init(jax.random.key(0), INPUTS, jnp.float64)
    zero, bg = jnp.zeros((INPUTS, FEATURES)), jnp.full(FEATURES, 800.0)
    square = jnp.zeros((FEATURES, FEATURES))
    params = {"W1": q["W"], "W2": zero, "B1": zero, "Wg": zero, "U1": q["U"], "U2": q["U"]}
    params |= {"B2": square, "Ug": square, "b1": q["b"], "bg": bg, "step_size": q["step_size"]}
    xs = random(1, 9, BATCH, INPUTS)
    np.testing.assert_allclose(run(cell, params, xs)[1], run(irnn, q, xs)[1], atol=1e-14)


# The previous input across masks and parts.


@pytest.mark.slow
@both
@pytest.mark.parametrize("previous_input", ["repeat", "zero"])
@pytest.mark.parametrize("timed", [False, True])
def test_parts_with_a_carried_carry_equal_the_whole(variant, previous_input, timed, jitter):
    mode = {"step_size_mode": "per_time_step", "length": 9} if timed else {}
    cell = TARNN(FEATURES, variant=variant, previous_input=previous_input, step_size=0.3, **mode)
    params = jitter(cell.init(jax.random.key(0), INPUTS, jnp.float64))
    xs = random(1, 9, BATCH, INPUTS)
    mask = jnp.asarray(np.random.default_rng(0).random((9, BATCH)) < 0.6).at[:2, 0].set(False)
    for m in (None, mask):
        carry, whole = run(cell, params, xs, mask=m)
        first, ys1 = run(cell, params, xs[:4], mask=None if m is None else m[:4])
        second, ys2 = run(cell, params, xs[4:], first, mask=None if m is None else m[4:])
        chex.assert_trees_all_close(second, carry, atol=1e-14)
        np.testing.assert_allclose(jnp.concatenate([ys1, ys2]), whole, atol=1e-14)


@pytest.mark.slow
def test_masked_steps_are_as_if_they_were_not_there(jitter):
    cell = TARNN(FEATURES, step_size=0.3, num_inner_steps=2)
    params = jitter(cell.init(jax.random.key(0), INPUTS, jnp.float64))
    xs = random(1, 8, 1, INPUTS)
    real = np.array([0, 1, 1, 0, 0, 1, 1, 0])
    noisy = jnp.where(real[:, None, None], xs, 99.0)
    carry, _ = run(cell, params, noisy, mask=jnp.asarray(real)[:, None])
    expected, _ = run(cell, params, xs[np.flatnonzero(real)])
    chex.assert_trees_all_close(carry, expected, atol=1e-14)


def test_shared_steps_run_at_any_length_and_timed_ones_refuse():
    params = TARNN(4).init(jax.random.key(0), 1)
    for length in (3, 50):
        assert run(TARNN(4), params, jnp.ones((length, 1, 1)))[1].shape == (length, 1, 4)
    cell = TARNN(4, step_size_mode="per_time_step", length=5)
    params = cell.init(jax.random.key(0), 1)
    with pytest.raises(ConfigError, match=r"TARNN has step sizes for length=5 .* sequence has 6"):
        run(cell, params, jnp.ones((6, 1, 1)))
    carry, _ = run(cell, params, jnp.ones((5, 1, 1)))
    # Where the length is only known when it runs, NaN stands for the step size that is not there.
    assert jnp.isnan(run(cell, params, jnp.ones((1, 1, 1)), carry)[1]).all()


def test_carry_needs_the_width_of_the_inputs():
    with pytest.raises(ConfigError, match=r"initial_carry needs input_size"):
        TARNN(4).initial_carry((2,))


def test_bad_options_name_their_field():
    for options, field in (
        ({"variant": "beside"}, "variant"),
        ({"previous_input": "none"}, "previous_input"),
        ({"step_size": 2.0}, "step_size"),
        ({"step_size_mode": "per_time_step"}, "length"),
        ({"init_scale": 0.0}, "init_scale"),
    ):
        with pytest.raises(ConfigError, match=rf"TARNN\.{field}"):
            TARNN(4, **options)


def test_pytorch_lstm_layout():
    arrays = dict(np.load(GOLDEN / "fptt_lstm_a.npz"))
    named = {n.removeprefix("init_rnn."): a for n, a in arrays.items() if n.startswith("init_rnn.")}
    params = lstm_from_pytorch(named)
    w, u = named["weight_ih_l0"], named["weight_hh_l0"]
    b = named["bias_ih_l0"] + named["bias_hh_l0"]
    h = c = np.zeros((5, 5))
    for x in arrays["x"]:
        i, f, g, o = np.split(x @ w.T + h @ u.T + b, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    _, last = run(LSTM(5), params, jnp.asarray(arrays["x"]), return_sequence=False)
    np.testing.assert_allclose(last, h, atol=1e-13)
    with pytest.raises(ConfigError, match="lack weight_ih_l1"):
        lstm_from_pytorch(named, "_l1")
