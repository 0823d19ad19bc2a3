"""Cells that depart from the product form, and what stands in the padding."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_cases import weighted
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.layers import RNN as Layer
from jaxeff.layers import GRUCell
from jaxeff.models import SequenceModel
from jaxeff.ode import (
    IRNN,
    LSTM,
    TARNN,
    DualODE,
    Elman,
    Kernels,
    length_mask,
    parts_of,
    unroll,
    unroll_parallel,
)


class BentHidden(Elman):
    def hidden(self, state, start):
        return jnp.tanh(3.0 * state)


class BentStart(Elman):
    def hidden(self, state, start):
        return state + start * jnp.abs(start)


class BentOutput(Elman):
    def output(self, state):
        return jnp.where(state > 0, state, 0.1 * state)


class BentSum(Elman):
    def preactivation(self, kernels, hidden, projected):
        return tuple((hidden @ k + 1) * x for k, x in zip(kernels, projected, strict=True))


class BentProduct(Elman):
    def preactivation(self, kernels, hidden, projected):
        return super().preactivation(kernels, jnp.sin(hidden), projected)


class BentShare(Elman):
    """Only what the inner steps share is not linear."""

    def prepare(self, params):
        kernels = super().prepare(params)
        return kernels._replace(shared={"squared": kernels.recurrent})

    def preactivation(self, kernels, hidden, projected):
        if isinstance(kernels, dict):
            return super().preactivation(kernels["squared"], hidden**2, projected)
        return super().preactivation(kernels, hidden, projected)


class OwnStep(Elman):
    def step(self, params, carry, x):
        carry, _ = super().step(params, carry, x)
        return carry / 2, carry / 2


class OwnStepOfSeveral(IRNN):
    def step(self, params, carry, x):
        carry, _ = super().step(params, carry, x)
        return carry / 2, carry / 2


class Whole(Elman):
    """A carry with a whole number."""

    def initial_carry(self, batch_shape, dtype=jnp.float32, input_size=None):
        return super().initial_carry(batch_shape, dtype), jnp.zeros((*batch_shape, 1), jnp.int32)

    def output(self, state):
        return state[0]

    def hidden(self, state, start):
        return state[0]

    def update(self, coefficients, state, t, at):
        return t[0] / (1 + state[1]), state[1] + 1


DEPARTURES = (
    BentHidden,
    BentStart,
    BentOutput,
    BentSum,
    BentProduct,
    BentShare,
    OwnStep,
    OwnStepOfSeveral,
    Whole,
)


class Projecting(Elman):
    """Its projection uses the coefficients."""

    def prepare(self, params):
        return super().prepare(params)._replace(coefficients=params["b"])

    def project(self, kernels, x, known):
        return (x @ kernels.input[0] * kernels.coefficients,)


class Doubled(Elman):
    """A scalar coefficient beside a state of twice the cell's width."""

    def param_specs(self, input_size):
        specs = super().param_specs(input_size)
        return specs | {"s": specs["b"]._replace(shape=())}

    def initial_carry(self, batch_shape, dtype=jnp.float32, input_size=None):
        return jnp.zeros((*batch_shape, 2 * self.features), dtype)

    def output(self, state):
        return state[..., : self.features]

    def hidden(self, state, start):
        return state[..., self.features :]

    def prepare(self, params):
        return super().prepare(params)._replace(coefficients=params["s"])

    def update(self, coefficients, state, t, at):
        return jnp.concatenate([t[0], t[0]], -1) + coefficients * state


def gradients(cell, mode, xs, mask=None):
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), xs.shape[-1])

    def loss(params, xs):
        carry, ys = unroll(cell, params, xs, mask=mask, backward=mode)
        return weighted((ys, cell.output(parts_of(carry).state)))

    return jax.jit(jax.grad(loss, (0, 1)))(params, xs)


@pytest.mark.parametrize(
    "kind",
    swept([*DEPARTURES, Projecting, Doubled], BentHidden, Projecting),
)
def test_gradients_are_those_of_the_steps(kind):
    cell, xs = kind(3), np.random.default_rng(1).normal(size=(5, 2, 2)).astype(np.float32)
    expected = gradients(cell, "autodiff", xs)
    assert max(np.abs(a).max() for a in jax.tree.leaves(expected)) > 1e-3
    chex.assert_trees_all_close(gradients(cell, "auto", xs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", DEPARTURES)
def test_a_backward_pass_that_would_be_wrong_is_refused(kind):
    cell = kind(3)
    params = jax.eval_shape(lambda: jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 2))
    with pytest.raises(ConfigError, match=f"needs a FusedCell, but {kind.__name__}"):
        jax.eval_shape(lambda p: unroll(cell, p, jnp.ones((4, 2)), backward="fused"), params)


def test_steps_of_ones_own_are_taken():
    cell, xs = OwnStep(3), jnp.ones((1, 2))
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 2)
    expected = cell.step(params, jnp.zeros(3), xs[0])[1]
    np.testing.assert_allclose(unroll(cell, params, xs)[1][0], expected, rtol=1e-6)


@pytest.mark.parametrize("jacobian", ["dense", "diagonal"])
def test_steps_of_ones_own_are_taken_in_parallel_too(jacobian):
    cell, xs = OwnStep(3), np.random.default_rng(1).normal(size=(9, 2)).astype(np.float32)
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 2)
    _, ys, info = unroll_parallel(cell, params, xs, jacobian=jacobian, diagnostics=True)
    assert info.converged
    np.testing.assert_allclose(ys, unroll(cell, params, xs)[1], atol=1e-5)


def test_states_of_whole_numbers_are_refused_in_parallel():
    cell = Whole(3)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    with pytest.raises(ConfigError, match=r"Whole carries float32, int32; count steps in"):
        jax.eval_shape(lambda p: unroll_parallel(cell, p, jnp.ones((4, 2))), params)


@dataclasses.dataclass(frozen=True)
class Unknown(Elman):
    @property
    def activations(self):
        return ("gelu",)


def test_an_activation_that_has_no_derivative_here_is_named():
    cell = Unknown(3)
    with pytest.raises(ConfigError, match="unknown activation 'gelu'"):
        unroll(cell, jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 2), jnp.ones((3, 2)))


# Padding.

LENGTHS = jnp.array([4, 2, 0])


def padded(value):
    """Sequences of 5 steps, the first of them padding for all, and their mask."""
    xs = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    mask = np.concatenate([np.zeros((1, 3), bool), length_mask(LENGTHS, 4)])
    xs[~mask] = value
    return jnp.asarray(xs), jnp.asarray(mask)


CELLS = {
    "lstm": LSTM(3),
    "irnn": IRNN(3, num_inner_steps=2, step_size=0.2),
    "tarnn": TARNN(3),
    "dual_ode": DualODE(4),
    "implicit": IRNN(3, solver="implicit", num_inner_steps=20, step_size=0.8),
}


@pytest.mark.parametrize("given", swept(["mask", "seq_lengths"], "mask"))
def test_padding_of_layers_and_models_may_hold_anything(given):
    xs, mask = (jnp.swapaxes(a[1:], 0, 1) for a in padded(np.nan))
    options = {"mask": mask} if given == "mask" else {"seq_lengths": LENGTHS}
    model: object = Layer(GRUCell(3), reverse=True)
    if given == "mask":
        model = SequenceModel(TARNN(3), num_outputs=2, num_layers=2)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros_like(xs))

    @jax.jit
    def gradient(variables):
        return jax.grad(lambda v: jnp.sum(model.apply(v, xs, **options) ** 2))(variables)

    found = gradient(variables)
    chex.assert_tree_all_finite(found)
    assert max(np.abs(a).max() for a in jax.tree.leaves(found)) > 1e-6


def test_gates_of_padding_are_numbers():
    cell, (xs, mask) = CELLS["tarnn"], padded(np.nan)
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 2)
    assert jnp.isfinite(cell.time_constants(params, xs, mask=mask)).all()


# Types.


@pytest.mark.parametrize("kinds", [(jnp.float32, HALF := jnp.bfloat16), (HALF, jnp.float32)])
def test_inputs_and_parameters_of_different_types(kinds):
    cell = LSTM(3)
    params = cell.init(jax.random.key(0), 2, kinds[0])
    for run in (unroll, unroll_parallel):
        carry, ys = jax.eval_shape(
            lambda p, x, run=run: run(cell, p, x), params, jnp.ones((3, 2), kinds[1])
        )
        assert {a.dtype for a in jax.tree.leaves((carry, ys))} == {jnp.dtype(jnp.float32)}


def test_whole_numbers_as_inputs():
    cell = Elman(3)
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 2)
    xs = np.arange(6, dtype=np.uint8).reshape(3, 2)
    chex.assert_trees_all_equal(
        unroll(cell, params, xs), unroll(cell, params, xs.astype(np.float32))
    )


@pytest.mark.slow
def test_kernels_may_hold_plain_numbers():
    class Plain(Elman):
        def prepare(self, params):
            return Kernels(*super().prepare(params)[:3], coefficients=0.5)

        def update(self, coefficients, state, t, at):
            return coefficients * state + t[0]

    xs = jnp.ones((3, 2))
    chex.assert_trees_all_close(
        gradients(Plain(3), "auto", xs), gradients(Plain(3), "autodiff", xs), rtol=1e-5
    )
