"""A program gives what the model gives."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff import ode
from jaxeff.errors import ConfigError
from jaxeff.models import SequenceModel
from jaxeff.programs import evaluate, initial_carry, trace_step

KEY = jax.random.key(0)
CELLS = [
    ode.IRNN(6),
    ode.IRNN(6, num_inner_steps=3, activation="relu"),
    ode.TARNN(6),
    ode.TARNN(6, variant="outside", num_inner_steps=2, previous_input="repeat"),
    ode.FastRNN(6),
    ode.FastGRNN(6),
    ode.GRU(6),
    ode.LSTM(6),
    ode.Elman(6, activation="sigmoid"),
    ode.CoRNN(6),
    ode.Antisymmetric(6),
    ode.DualODE(6),
]


def prepared(cell, num_layers=1, x=None):
    model = SequenceModel(cell, num_outputs=4, num_layers=num_layers, readout="every_step")
    x = jax.random.normal(KEY, (2, 7, 3)) if x is None else x
    variables = jax.jit(model.init)(KEY, x)
    # Every parameter away from zero, so that each of them shows in the outputs.
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, moved), x


def run(program, xs):
    """Evaluates a program over sequences ``[batch, time, ...]``."""

    def step(carry, x):
        carry, (y,) = evaluate(program, carry, x)
        return carry, y

    _, ys = jax.lax.scan(step, initial_carry(program, xs.shape[:1]), jnp.swapaxes(xs, 0, 1))
    return jnp.swapaxes(ys, 0, 1)


@pytest.mark.parametrize("cell", swept(CELLS, CELLS[1], CELLS[3], CELLS[8]), ids=str)
def test_every_cell(cell):
    model, variables, x = prepared(cell)
    program = trace_step(model, variables, 3)
    np.testing.assert_allclose(run(program, x), jax.jit(model.apply)(variables, x), atol=2e-6)


def test_layers_and_symbols():
    x = jax.random.randint(KEY, (2, 7), 0, 4)
    model, variables, x = prepared(ode.GRU(5), num_layers=2, x=x)
    program = trace_step(model, variables)
    expected = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(run(program, x[..., None]), expected, atol=2e-6)


@dataclasses.dataclass(frozen=True)
class Unusual(ode.Cell):
    """A cell with most operations that a program may have."""

    def param_specs(self, input_size):
        return {"W": ode.ParamSpec((self.features, input_size), nn.initializers.normal(1.0))}

    def step(self, params, carry, x):
        # The kernel on the left, a gate of width one, a power, a clipped and a part of a vector.
        a = params["W"] @ x + carry
        gate = jax.nn.sigmoid(a.sum())
        half = self.features // 2
        mixed = jnp.concatenate([a[half:], jnp.clip(a[:half], -0.3, 0.3)])
        mask = jnp.arange(self.features) % 2 == 0
        carry = gate * jnp.where(mask, mixed, jnp.tanh(a) ** 3) / (1 + jnp.exp(-a))
        return carry, carry


@pytest.mark.slow
def test_a_cell_of_ones_own():
    cell = Unusual(4)
    params = cell.init(KEY, 3)
    variables = {
        "params": {"cell_0": params, "readout": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}
    }
    program = trace_step(SequenceModel(cell, num_outputs=4), variables, 3)
    xs = jax.random.normal(KEY, (1, 5, 3))
    carry, ys = cell.initial_carry(()), []
    for x in xs[0]:
        carry, y = cell.step(params, carry, x)
        ys.append(y)
    np.testing.assert_allclose(run(program, xs)[0], np.stack(ys), atol=1e-6)


def test_nothing_is_computed_twice_or_for_nothing():
    model, variables, _ = prepared(ode.TARNN(6, activation="tanh"))
    program = trace_step(model, variables, 3)
    ops = [instruction.op for instruction in program.instructions]
    # U1 + U2, Ug and B2 on the state; W1, Wg and B1 on the input, W2 on the one before; read-out.
    assert ops.count("dense") == 8
    assert ops.count("logistic") == ops.count("tanh") == ops.count("first") == 1
    used = {n for i in program.instructions for n in i.inputs} | {
        *program.next_state,
        *program.outputs,
    }
    assert {i.output for i in program.instructions} <= used
    assert f"= dense(v{program.inputs[0]}, constant[3, 6])" in str(program)


def test_what_is_no_program_is_refused():
    timed = ode.IRNN(4, step_size_mode="per_time_step", length=7)
    model, variables, _ = prepared(timed)
    with pytest.raises(ConfigError, match="per time step"):
        trace_step(model, variables, 3)

    @dataclasses.dataclass(frozen=True)
    class Sorting(ode.Elman):
        def step(self, params, carry, x):
            carry = jnp.sort(carry)
            return carry, carry

    with pytest.raises(ConfigError, match="sort"):
        trace_step(SequenceModel(Sorting(4), num_outputs=2), variables, 3)
    with pytest.raises(ConfigError, match="no recurrent model"):
        trace_step(nn.Dense(3), variables, 3)
