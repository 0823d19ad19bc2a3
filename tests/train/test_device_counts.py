"""Dropout and averages over a batch do not depend on the number of devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sweeps import swept

from jaxeff.train import objectives
from jaxeff.train.algorithms import BPTT, Task
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


def one_step(objective, parts):
    objective = objectives.build({"name": objective}, "classification")
    width = objectives.num_outputs(objective, 3)
    task = Task("classification", 3)
    algorithm = BPTT(Dropping(width), objective, optax.sgd(1.0), task)
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
