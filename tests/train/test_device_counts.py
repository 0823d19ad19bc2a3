"""Dropout and averages over a batch do not depend on the number of devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sweeps import swept

from jaxeff import ode
from jaxeff.errors import ConfigError
from jaxeff.models import SequenceModel
from jaxeff.train import objectives
from jaxeff.train.algorithms import BPTT, FPTT, Task
from jaxeff.train.example_keys import of_part

KEY = jax.random.fold_in(jax.random.key(3), 7)
RNG = np.random.default_rng(0)
BATCH = {
    "inputs": jnp.asarray(RNG.normal(size=(8, 5)), jnp.float32),
    "labels": jnp.asarray(RNG.integers(0, 3, 8)),
    "weight": jnp.asarray([1, 1, 0.5, 1, 1, 1, 0, 0], jnp.float32),
}


class Dropping(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(16)(x)))
        return nn.Dense(self.outputs)(x)


def in_parts(batch, parts):
    return jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)


@pytest.mark.parametrize(
    "draw",
    [
        lambda key, shape: jax.random.bernoulli(key, 0.3, shape),
        lambda key, shape: jax.random.normal(jax.random.fold_in(key, 2), shape),
        lambda key, shape: jax.random.bits(jax.random.split(key)[1], shape, "uint8"),
        lambda key, shape: jax.random.randint(key, shape, 0, 100),
    ],
)
def test_parts_draw_what_the_whole_draws(draw):
    whole = draw(KEY, (8, 5, 3))
    parts = [draw(of_part(KEY, part), (2, 5, 3)) for part in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_keys_of_other_generators_differ_from_part_to_part():
    key = jax.random.key(0, impl="rbg")
    one, other = (jax.random.uniform(of_part(key, part), (4,)) for part in (0, 1))
    assert not np.any(one == other)


def one_step(objective, parts, accumulate=1):
    objective = objectives.build({"name": objective}, "classification")
    width = objectives.num_outputs(objective, 3)
    task = Task("classification", 3)
    algorithm = BPTT(Dropping(width), objective, optax.sgd(1.0), task, accumulate=accumulate)
    state = jax.jit(algorithm.init_state)(jax.random.key(0), BATCH["inputs"])

    def step(state, batch, axis_name=None):
        new, metrics = algorithm.update(state, batch, axis_name)
        return new.params, metrics, algorithm.evaluate(new.params, {}, batch, axis_name)

    if not parts:
        return jax.jit(step)(state, BATCH)
    on_devices = jax.vmap(lambda s, b: step(s, b, "data"), (None, 0), axis_name="data")
    found = jax.jit(on_devices)(state, in_parts(BATCH, parts))
    for leaf in jax.tree.leaves(found):
        np.testing.assert_allclose(leaf, jnp.broadcast_to(leaf[:1], leaf.shape), rtol=1e-6)
    return jax.tree.map(lambda a: a[0], found)


@pytest.mark.parametrize("objective", swept(["cross_entropy", "selective_net"], "selective_net"))
def test_a_step_is_the_same_on_any_number_of_devices(objective):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        one_step(objective, 4),
        one_step(objective, 0),
    )


@pytest.mark.parametrize(("devices", "parts"), [(0, 4), (2, 2)])
def test_a_step_is_the_same_in_any_number_of_parts(devices, parts):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        one_step("cross_entropy", devices, parts),
        one_step("cross_entropy", 0),
    )


@pytest.mark.slow
def test_fptt_in_parts_keeps_the_sweep():
    model = SequenceModel(ode.LSTM(3), num_outputs=3, dropout=0.5)
    task = Task("classification", 3, length=6, steps_per_epoch=5)
    x = jnp.asarray(RNG.normal(size=(8, 6, 2)), jnp.float32)
    batch = {**BATCH, "inputs": x, "mask": jnp.ones((8, 6)).at[2:4, 4:].set(0)}
    ends = []
    for accumulate in (1, 4):
        algorithm = FPTT(
            model,
            objectives.build({"name": "cross_entropy"}, "classification"),
            optax.sgd(1.0),
            task,
            parts=3,
            auxiliary="uniform",
            accumulate=accumulate,
        )
        state = jax.jit(algorithm.init_state)(jax.random.key(0), x)
        ends.append(jax.jit(algorithm.update)(state, batch))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        *((state.params, state.algo_state, metrics) for state, metrics in ends),
    )


@pytest.mark.slow
def test_parts_save_memory():
    model = SequenceModel(ode.LSTM(16), num_outputs=3)
    x = jax.ShapeDtypeStruct((64, 32, 4), jnp.float32)
    batch = {
        "inputs": x,
        "labels": jax.ShapeDtypeStruct((64,), jnp.int32),
        "weight": jax.ShapeDtypeStruct((64,), jnp.float32),
    }
    needed = []
    for accumulate in (1, 8):
        objective = objectives.build({"name": "cross_entropy"}, "classification")
        algorithm = BPTT(model, objective, optax.sgd(1.0), accumulate=accumulate)
        state = jax.eval_shape(algorithm.init_state, jax.random.key(0), x)
        compiled = jax.jit(algorithm.update).lower(state, batch).compile()
        needed.append(compiled.memory_analysis().temp_size_in_bytes)
    assert needed[1] < needed[0] / 3


def test_parts_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"accumulate=3 must divide the 8 examples"):
        one_step("cross_entropy", 0, 3)
    with pytest.raises(ConfigError, match="no sum over the examples"):
        one_step("selective_net", 0, 2)
    with pytest.raises(ConfigError, match=r"config\.algorithm\.accumulate"):
        one_step("cross_entropy", 0, 0)
