"""Cells and inputs for tests of scans."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ode import (
    GRU,
    IRNN,
    LSTM,
    TARNN,
    Antisymmetric,
    CoRNN,
    DualODE,
    Elman,
    FastGRNN,
    FastRNN,
    parts_of,
    unroll,
    unroll_parallel,
)

FEATURES, INPUTS = 6, 3
TIMED = {"step_size_mode": "per_time_step", "length": 25}

CASES = {
    "rnn": Elman(6),
    "rnn_relu": Elman(6, activation="relu"),
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

in_double = pytest.mark.usefixtures("x64")
every_cell = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in CORE else pytest.mark.slow) for n in CASES]
)


# One cell of each way in which a scan runs: products of the state, inner steps, counters, none.
FEW = ["lstm", "fastgrnn", "cornn", "irnn_timed_three", "irnn_implicit", "tarnn_outside_three"]
some_cells = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in CASES]
)


def random(seed, *shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


#: Drivers as one program; operation by operation they are dozens of small ones.
STATIC = ("return_sequence", "backward", "block_size", "reverse")
run = jax.jit(unroll, static_argnums=0, static_argnames=STATIC)
STATIC = ("jacobian", "tolerance", "max_iterations", "damping", "fallback", "diagnostics")
run_parallel = jax.jit(unroll_parallel, static_argnums=0, static_argnames=STATIC)


@functools.cache
def initialised(cell, inputs, dtype):
    """First parameters of a cell, made by one program."""
    return jax.jit(lambda: cell.init(jax.random.key(0), inputs, dtype))()


def weighted(tree):
    """A scalar that depends on every number of a tree, each in its own way."""
    return sum(
        jnp.sum(jnp.sin(a) * random(i, *a.shape, dtype=a.dtype))
        for i, a in enumerate(jax.tree.leaves(tree))
    )


def with_gradients(cell, **options):
    """A compiled function of what `results` takes."""

    def loss(params, xs, carry):
        out = unroll(cell, params, xs, carry, **options)
        return weighted(out), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def results(cell, arguments, **options):
    """Value, carry, outputs, and the gradients in params, xs and the first carry."""
    return with_gradients(cell, **options)(*arguments)


def assert_backward_agrees(mode, cell, arguments, **options):
    expected = results(cell, arguments, backward="autodiff", **options)
    chex.assert_tree_all_finite(expected)
    assert np.abs(expected[1][1]).max() > 1e-4  # there is something to compare
    actual = results(cell, arguments, backward=mode, **options)
    chex.assert_trees_all_close(actual, expected, atol=1e-12, rtol=1e-12)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)


def loop(cell, params, xs, carry, mask=None):
    """A plain loop over time."""

    @jax.jit
    def step(carry, x, real):
        new, _ = cell.step(params, carry, x)
        new = jax.tree.map(lambda n, o: jnp.where(real[..., None] != 0, n, o), new, carry)
        return new, cell.output(parts_of(new).state)

    ys = []
    for t, x in enumerate(np.asarray(xs)):
        carry, y = step(carry, x, np.ones(x.shape[:-1]) if mask is None else np.asarray(mask)[t])
        ys.append(np.asarray(y))
    return carry, np.stack(ys)


def random_mask(*shape):
    return jnp.asarray(np.random.default_rng(0).random(shape) < 0.7)
