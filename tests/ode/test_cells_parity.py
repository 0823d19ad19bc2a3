"""Cells against Flax's own, against loops written from the papers, and against their physics."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ode import (
    GRU,
    LSTM,
    Antisymmetric,
    CoRNN,
    Elman,
    FastGRNN,
    FastRNN,
    activations,
    unroll,
)

pytestmark = pytest.mark.usefixtures("x64")

TIME, BATCH, INPUTS, FEATURES = 6, 3, 4, 5


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def sigmoid(a):
    return 1.0 / (1.0 + np.exp(-a))


def packed(array, names):
    return dict(zip(names, jnp.split(array, len(names), axis=-1), strict=True))


def rnn_to_flax(params):
    return {"i": {"kernel": params["W"], "bias": params["b"]}, "h": {"kernel": params["U"]}}


def lstm_to_flax(params):
    W, U, b = (packed(params[name], "ifgo") for name in "WUb")
    return {f"i{g}": {"kernel": W[g]} for g in "ifgo"} | {
        f"h{g}": {"kernel": U[g], "bias": b[g]} for g in "ifgo"
    }


def gru_to_flax(params):
    W, U, b = (packed(params[name], "rzn") for name in "WUb")
    tree = {f"i{g}": {"kernel": W[g], "bias": b[g]} for g in "rzn"}
    tree |= {f"h{g}": {"kernel": U[g]} for g in "rzn"}
    tree["hn"]["bias"] = params["b_n"]
    return tree


PEERS = {
    "rnn": (Elman(5), nn.SimpleCell(5, param_dtype=float), rnn_to_flax),
    "rnn_relu": (
        Elman(5, activation="relu"),
        nn.SimpleCell(5, activation_fn=nn.relu, param_dtype=float),
        rnn_to_flax,
    ),
    "lstm": (LSTM(5), nn.LSTMCell(5, param_dtype=float), lstm_to_flax),
    "lstm_optimised": (LSTM(5), nn.OptimizedLSTMCell(5, param_dtype=float), lstm_to_flax),
    "gru": (GRU(5), nn.GRUCell(5, param_dtype=float), gru_to_flax),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "gru" else pytest.mark.slow) for name in PEERS],
)
def test_values_and_gradients_equal_flax(name, jitter):
    cell, peer, convert = PEERS[name]
    params = jitter(cell.init(jax.random.key(0), INPUTS, jnp.float64))
    xs, weights = random(1, TIME, BATCH, INPUTS), random(2, TIME, BATCH, FEATURES)
    carry = jitter(cell.initial_carry((BATCH,), jnp.float64), seed=3)

    def ours(params, xs, carry):
        carry, ys = unroll(cell, params, xs, carry, block_size=3)
        return jnp.sum(weights * ys), (carry, ys)

    def theirs(params, xs, carry):
        variables = {"params": convert(params)}
        carry, ys = jax.lax.scan(lambda c, x: peer.apply(variables, c, x), carry, xs)
        return jnp.sum(weights * ys), (carry, ys)

    actual, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(params, xs, carry)
        for f in (ours, theirs)
    )
    chex.assert_trees_all_close(actual, expected, atol=1e-13)
    assert all(np.abs(g).max() > 1e-3 for g in actual[1][0].values())


@pytest.mark.parametrize("name", PEERS)
def test_converted_parameters_are_all_that_flax_has(name):
    cell, peer, convert = PEERS[name]
    params = convert(cell.init(jax.random.key(0), INPUTS, jnp.float64))
    carry = cell.initial_carry((BATCH,), jnp.float64)
    expected = peer.init(jax.random.key(0), carry, jnp.ones((BATCH, INPUTS)))["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(params, expected)


# Loops from the papers, in numpy.


def fastrnn_loop(cell, p, xs, h):
    phi = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "sigmoid": sigmoid}[cell.activation]
    for x in xs:
        candidate = phi(x @ p["W"] + h @ p["U"] + p["b"])
        h = sigmoid(p["alpha"]) * candidate + sigmoid(p["beta"]) * h
        yield h


def fastgrnn_loop(cell, p, xs, h):
    for x in xs:
        shared = x @ p["W"] + h @ p["U"]
        z = sigmoid(shared + p["b_z"])
        candidate = np.tanh(shared + p["b_h"])
        h = (sigmoid(p["zeta"]) * (1 - z) + sigmoid(p["nu"])) * candidate + z * h
        yield h


def full_matrix(triangle, size):
    """The antisymmetric matrix whose upper triangle, row by row, is given."""
    matrix, k = np.zeros((size, size)), 0
    for i in range(size):
        for j in range(i + 1, size):
            matrix[i, j], matrix[j, i] = triangle[k], -triangle[k]
            k += 1
    return matrix


def antisymmetric_loop(cell, p, xs, h):
    M = full_matrix(p["A"], cell.features) - cell.diffusion * np.eye(cell.features)
    V, b = p["V"], p["b"]
    for x in xs:
        if cell.gated:
            gate = sigmoid(h @ M + x @ V[:, 5:] + b[5:])
            h = h + cell.step_size * gate * np.tanh(h @ M + x @ V[:, :5] + b[:5])
        else:
            h = h + cell.step_size * np.tanh(h @ M + x @ V + b)
        yield h


def cornn_loop(cell, p, xs, carry):
    y, z = carry
    for x in xs:
        drive = np.tanh(y @ p["U"][:5] + z @ p["U"][5:] + x @ p["V"] + p["b"])
        z = z + cell.step_size * (drive - cell.gamma * y - cell.epsilon * z)
        y = y + cell.step_size * z
        yield y


LOOPS = [
    (FastRNN(5), fastrnn_loop),
    (FastRNN(5, activation="relu", alpha_init=0.3, beta_init=-0.2), fastrnn_loop),
    (FastRNN(5, activation="sigmoid"), fastrnn_loop),
    (FastGRNN(5), fastgrnn_loop),
    (FastGRNN(5, zeta_init=-0.5, nu_init=0.4), fastgrnn_loop),
    (Antisymmetric(5, step_size=0.2, diffusion=0.3), antisymmetric_loop),
    (Antisymmetric(5, step_size=0.2, gated=False), antisymmetric_loop),
    (CoRNN(5, step_size=0.2), cornn_loop),
    (CoRNN(5, step_size=0.1, gamma=0.7, epsilon=1.3), cornn_loop),
]


@pytest.mark.parametrize(("cell", "loop"), LOOPS)
def test_cell_equals_the_loop_of_its_paper(cell, loop, jitter):
    params = jitter(cell.init(jax.random.key(0), INPUTS, jnp.float64))
    xs = random(1, TIME, BATCH, INPUTS)
    carry = jitter(cell.initial_carry((BATCH,), jnp.float64), seed=3)
    _, actual = unroll(cell, params, xs, carry)
    arrays = jax.tree.map(np.asarray, (params, xs, carry))
    np.testing.assert_allclose(actual, list(loop(cell, *arrays)), atol=1e-13)


# Physics.


@pytest.mark.slow
def test_antisymmetric_matrix_has_its_spectrum_on_the_line_of_the_diffusion():
    cell = Antisymmetric(7, diffusion=0.05)
    matrix = cell.prepare(cell.init(jax.random.key(0), 2, jnp.float64)).recurrent[0]
    skew = matrix + 0.05 * jnp.eye(7)
    np.testing.assert_allclose(skew, -skew.T, atol=1e-15)
    assert np.abs(skew[np.triu_indices(7, 1)]).min() > 0
    np.testing.assert_allclose(np.linalg.eigvals(matrix).real, -0.05, atol=1e-12)
    assert np.abs(np.linalg.eigvals(matrix).imag).max() > 0.5


@pytest.mark.slow
def test_antisymmetric_step_neither_explodes_nor_vanishes():
    cell = Antisymmetric(6, gated=False, step_size=0.1, diffusion=0.05)
    params = cell.init(jax.random.key(0), 2, jnp.float64)
    J = jax.jacobian(lambda h: cell.step(params, h, jnp.zeros(2))[0])(jnp.zeros(6))
    np.testing.assert_allclose(np.linalg.eigvals(J).real, 1 - 0.1 * 0.05, atol=1e-12)


def free_oscillator(step_size, time, **options):
    """Positions and velocities of uncoupled oscillators that start stretched and at rest."""
    cell = CoRNN(2, step_size=step_size, **options)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1, jnp.float64))
    start = jnp.asarray([1.0, -0.5]), jnp.zeros(2)
    steps = jnp.zeros((round(time / step_size), 1))

    def step(carry, x):
        carry, _ = cell.step(params, carry, x)
        return carry, carry

    y, z = jax.lax.scan(step, start, steps)[1]
    return np.asarray(y), np.asarray(z)


def test_undamped_oscillators_keep_their_energy():
    y, z = free_oscillator(0.01, 50.0, gamma=2.0, epsilon=1e-12)
    energy = 2.0 * y**2 / 2 + z**2 / 2
    np.testing.assert_allclose(energy, np.broadcast_to([1.0, 0.25], energy.shape), rtol=0.02)
    assert np.abs(z).max() > 1.3  # they move


def test_damped_oscillators_lose_energy():
    y, z = free_oscillator(0.01, 10.0, gamma=2.0, epsilon=1.0)
    energy = (2.0 * y**2 / 2 + z**2 / 2).sum(-1)[::100]
    assert np.all(np.diff(energy) < 0)
    assert energy[-1] / energy[0] == pytest.approx(np.exp(-9.0), rel=0.5)


def test_oscillators_approach_the_closed_form_at_first_order():
    gamma, epsilon, time = 2.0, 0.6, 2.0
    omega = np.sqrt(gamma - epsilon**2 / 4)
    phase = omega * time
    exact = np.exp(-epsilon * time / 2) * (np.cos(phase) + epsilon / (2 * omega) * np.sin(phase))
    errors = [
        abs(free_oscillator(dt, time, gamma=gamma, epsilon=epsilon)[0][-1, 0] - exact)
        for dt in (0.02, 0.01, 0.005)
    ]
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 1.0, atol=0.1)


# Derivatives from activated values.


@pytest.mark.parametrize("name", ["tanh", "relu", "sigmoid", "identity"])
def test_slope_from_the_output_equals_the_derivative(name):
    a, w = jnp.linspace(-4.0, 4.0, 38), random(0, 38)
    (t,), pull = jax.vjp(lambda a: activations.apply((name,), (a,)), a)
    (actual,) = activations.backward((name,), (t,), (w,))
    np.testing.assert_allclose(actual, pull((w,))[0], atol=1e-15)


@pytest.mark.parametrize(
    ("name", "function"),
    [("tanh", np.tanh), ("relu", lambda a: np.maximum(a, 0)), ("sigmoid", sigmoid)],
)
def test_activations_are_what_they_are_called(name, function):
    a = jnp.linspace(-4.0, 4.0, 38)
    np.testing.assert_allclose(
        activations.ACTIVATIONS[name](a), function(np.asarray(a)), atol=1e-15
    )


def test_blocks_keep_their_own_activations():
    a = jnp.linspace(-2.0, 2.0, 7)
    t = activations.apply(("relu", "sigmoid"), (a, 2 * a))
    np.testing.assert_allclose(t[0], np.maximum(a, 0))
    np.testing.assert_allclose(t[1], sigmoid(2 * np.asarray(a)), atol=1e-15)
    with pytest.raises(ValueError):
        activations.apply(("relu",), (a, a))
