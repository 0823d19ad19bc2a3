"""Gradients of the incremental Elman: its implicit solver, fixed points, and what they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from irnn_cases import drawn, raw_cell
from jax.test_util import check_grads
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.ode import IRNN, damped_iteration, fixed_point, unroll

pytestmark = pytest.mark.usefixtures("x64")


def sequence_loss(cell, readout, xs, **options):
    def loss(params):
        _, ys = unroll(cell, params, xs, **options)
        return jnp.sum(jnp.tanh(ys @ params["readout"]) * readout)

    return loss


@pytest.mark.parametrize(("decay", "rank"), swept([(1.0, 0), (1.4, 0), (2.5, 3)], (2.5, 3)))
def test_implicit_gradient_equals_the_unrolled_gradient(decay, rank):
    rng = np.random.default_rng(0)
    params, _, _ = drawn(features=16, bias=0.2)
    if rank:
        del params["U"]
        params |= {"V2": rng.normal(size=(16, 3)) * 0.15, "V": rng.normal(size=(3, 16)) * 0.15}
    params["readout"] = rng.normal(size=(16, 4))
    params = jax.tree.map(jnp.asarray, params)
    xs, weights = (jnp.asarray(rng.normal(size=(12, 2, n))) for n in (5, 4))
    options = {"num_inner_steps": 400, "step_size": 0.4, "learn_step_size": False, "decay": decay}
    options["rank"] = rank
    grads = [
        jax.jit(jax.grad(sequence_loss(IRNN(16, solver=solver, **options), weights, xs)))(params)
        for solver in ("implicit", "euler")
    ]
    for name in params:
        assert np.abs(grads[1][name]).max() > 1e-2  # there is something to compare
        np.testing.assert_allclose(grads[0][name], grads[1][name], atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("decay", [1.0, 1.6])
def test_implicit_equilibrium_solves_its_equation_from_any_start(decay):
    params, h, x = drawn(bias=0.4)
    params = jax.tree.map(jnp.asarray, params)
    cell = IRNN(
        32, num_inner_steps=300, step_size=0.4, learn_step_size=False, solver="implicit",
        decay=decay,
    )  # fmt: skip
    s = np.asarray(cell.equilibrium(params, jnp.asarray(x)))
    right = np.tanh(s @ params["U"] + x @ params["W"] + params["b"])
    np.testing.assert_allclose(decay * s, right, atol=1e-13)
    far = cell.equilibrium(params, jnp.asarray(x), start=jnp.asarray(10.0 * h))
    np.testing.assert_allclose(far, s, atol=1e-13)
    new, _ = cell.step(params, jnp.asarray(h), jnp.asarray(x))
    np.testing.assert_allclose(new, s - h, atol=1e-13)


@pytest.mark.slow
def test_implicit_step_size_gets_no_gradient():
    cell = raw_cell(6, 200, solver="implicit")
    params = cell.init(jax.random.key(0), 3, jnp.float64) | {"step_size": jnp.full(200, 0.5)}
    params["U"] = 0.4 * params["U"]
    xs = jnp.ones((3, 3))
    grads = jax.grad(lambda p: jnp.sum(unroll(cell, p, xs)[1] ** 2))(params)
    assert not np.any(grads["step_size"])
    assert np.any(grads["U"])


@pytest.mark.parametrize(
    "options",
    [
        {"decay": 1.5},
        {"decay": 2.5, "rank": 2},
        pytest.param({}, marks=pytest.mark.slow),
    ],
)
def test_implicit_gradient_against_finite_differences(options):
    cell = IRNN(
        6, num_inner_steps=150, step_size=0.45, learn_step_size=False, solver="implicit",
        init_scale=0.15, **options,
    )  # fmt: skip
    params = cell.init(jax.random.key(1), 3, jnp.float64)
    xs = jax.random.normal(jax.random.key(2), (4, 2, 3), jnp.float64)
    h = jax.random.normal(jax.random.key(3), (2, 6), jnp.float64)

    def loss(params, xs, h):
        return jnp.sum(jnp.sin(unroll(cell, params, xs, h)[1]))

    check_grads(jax.jit(loss), (params, xs, h), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("backward", ["fused", pytest.param("remat", marks=pytest.mark.slow)])
def test_euler_gradient_against_finite_differences(backward):
    cell = raw_cell(5, 2, step_size_mode="per_time_step", length=4, decay=0.8)
    params = cell.init(jax.random.key(1), 3, jnp.float64)
    params["step_size"] = jax.random.uniform(jax.random.key(4), (2, 4), jnp.float64, 0.1, 0.6)
    xs = jax.random.normal(jax.random.key(2), (4, 2, 3), jnp.float64)

    def loss(params, xs):
        return jnp.sum(jnp.sin(unroll(cell, params, xs, backward=backward, block_size=2)[1]))

    check_grads(jax.jit(loss), (params, xs), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.fixture
def contraction():
    rng = np.random.default_rng(0)
    matrix, offset = rng.normal(size=(4, 4)) * 0.2, rng.normal(size=(3, 4))
    args = (jnp.asarray(matrix), jnp.asarray(offset))
    return lambda args, z: jnp.tanh(z @ args[0] + args[1]), args


@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_fixed_point_solves_and_differentiates(contraction, damping):
    update, args = contraction
    start = jnp.zeros((3, 4))
    z = fixed_point(update, args, start, 120, damping)
    np.testing.assert_allclose(z, update(args, z), atol=1e-14)

    def solve(args):
        return jnp.sum(jnp.sin(fixed_point(update, args, start, 120, damping)))

    def iterate(args):
        z = damped_iteration(lambda z: update(args, z), start, 120, damping)
        return jnp.sum(jnp.sin(z))

    check_grads(solve, (args,), order=1, modes=["rev"], atol=1e-7, rtol=1e-7)
    actual, expected = jax.grad(solve)(args), jax.grad(iterate)(args)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-13)


def test_fixed_point_start_and_damping_get_no_gradient(contraction):
    update, args = contraction
    grads = jax.grad(
        lambda start, damping: jnp.sum(fixed_point(update, args, start, 3, damping)), (0, 1)
    )(jnp.ones((3, 4)), jnp.asarray(0.5))
    assert not any(np.any(g) for g in grads)


@pytest.mark.slow
def test_fixed_point_works_under_vmap(contraction):
    update, (matrix, offsets) = contraction

    def solve(offset):
        return fixed_point(update, (matrix, offset), jnp.zeros(4), 100)

    batched = jax.vmap(jax.value_and_grad(lambda o: jnp.sum(jnp.sin(solve(o)))))(offsets)
    for i, offset in enumerate(offsets):
        single = jax.value_and_grad(lambda o: jnp.sum(jnp.sin(solve(o))))(offset)
        for a, e in zip(batched, single, strict=True):
            np.testing.assert_allclose(a[i], e, atol=1e-13)


@pytest.fixture
def gradient_bytes(temp_bytes):
    xs = jnp.ones((32, 8, 4))

    def measure(num_inner_steps, **options):
        backward = options.pop("backward", "auto")
        cell = IRNN(16, num_inner_steps=num_inner_steps, step_size_mode="shared", **options)
        params = cell.init(jax.random.key(0), 4, jnp.float64)

        def loss(params):
            return jnp.sum(unroll(cell, params, xs, backward=backward)[1] ** 2)

        return temp_bytes(jax.grad(loss), params)

    return measure


@pytest.mark.slow
def test_implicit_memory_does_not_depend_on_the_solver_steps(gradient_bytes):
    sizes = [gradient_bytes(k, solver="implicit") for k in (10, 30, 100)]
    assert max(sizes) < 1.05 * min(sizes)


@pytest.mark.slow
def test_differentiated_euler_memory_grows_with_the_inner_steps(gradient_bytes):
    sizes = [gradient_bytes(k, backward="autodiff") for k in (1, 10, 100)]
    assert sizes[1] > 3 * sizes[0]
    assert sizes[2] > 5 * sizes[1]


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_implicit_defaults_reach_the_equilibrium(activation):
    cell = IRNN(16, solver="implicit", activation=activation)
    params = cell.init(jax.random.key(0), 3, jnp.float64)
    x = jax.random.normal(jax.random.key(1), (5, 3), jnp.float64)
    s = cell.equilibrium(params, x)
    assert cell.residual(params, x, s).shape == (5,)
    assert cell.residual(params, x, s).max() < 1e-8
    assert cell.residual(params, x, s + 0.1).min() > 0.01
    h, _ = cell.step(params, jnp.zeros((5, 16)), x)
    np.testing.assert_allclose(h, s, atol=1e-8)  # from another start


def test_a_residual_is_that_of_the_equation():
    params, h, x = jax.tree.map(jnp.asarray, drawn(bias=0.3))
    cell = IRNN(32, solver="implicit", decay=1.5, learn_step_size=False)
    wrong = 1.5 * h - jnp.tanh(h @ params["U"] + x @ params["W"] + params["b"])
    np.testing.assert_allclose(cell.residual(params, x, h), jnp.abs(wrong).max(), rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"num_inner_steps": 1, "step_size": 0.01},
        {"num_inner_steps": 20, "step_size": 0.1},
        {"num_inner_steps": 500, "step_size": 0.9, "decay": 2.5},  # diverges
        {"decay": 0.3},
        {"init_scale": 0.3},
        {"rank": 2},
        {"rank": 2, "activation": "relu"},
    ],
)
def test_implicit_solutions_out_of_reach_are_refused(options):
    with pytest.raises(ConfigError, match="implicit"):
        IRNN(16, solver="implicit", **options)


def test_euler_defaults_are_those_of_the_authors():
    assert (IRNN(8).num_inner_steps, IRNN(8).step_size) == (1, 0.01)


@pytest.mark.parametrize(("steps", "damping"), [(0, 1.0), (2.5, 1.0), (10, 0.0), (10, 2.0)])
def test_impossible_iterations_are_refused(steps, damping):
    with pytest.raises(ConfigError, match="must be"):
        fixed_point(lambda args, z: z / 2, (), jnp.ones(3), steps, damping)
