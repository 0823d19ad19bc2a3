"""The sandwich rule: what one step does, against the gradients of each network by itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from encoder_cases import SHAPE

from jaxeff.errors import ConfigError
from jaxeff.models import MODELS
from jaxeff.train import objectives
from jaxeff.train.algorithms import BPTT, Sandwich, Task

SPEC = {"name": "encoder_supernet", "shape": SHAPE, "depths": (2, 3), "factors": (2,)}
RNG = np.random.default_rng(0)
BATCH = {
    "inputs": RNG.integers(0, 20, (6, 10)).astype(np.int32),
    "mask": (np.arange(10) < RNG.integers(3, 11, (6, 1))).astype(np.float32),
    "labels": RNG.integers(0, 3, 6).astype(np.int32),
    "weight": np.array([1, 1, 1, 1, 1, 0], np.float32),
}


TASK = Task(num_classes=3, length=10)


def algorithm(model=None, task=TASK, **fields):
    model = model or MODELS.build(SPEC, num_outputs=3)
    objective = objectives.build({"name": "auto"}, "classification")
    return Sandwich(model, objective, optax.sgd(1.0), task, **fields)


@pytest.fixture(scope="module")
def started():
    """An algorithm with a pool of one, and a state that is not symmetric."""
    own = algorithm(pool=1, draws=2)
    state = jax.jit(own.init_state)(jax.random.key(0), BATCH["inputs"])
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda p: p + jnp.asarray(0.2 * rng.normal(size=p.shape), p.dtype), state.params
    )
    return own, state.replace(params=params)


def by_hand(own, params):
    """The gradient of the mean of four losses, each written out."""

    def logits(plan, params):
        network = own.model.subnetwork(plan)
        return network.apply({"params": params}, BATCH["inputs"], mask=BATCH["mask"])

    weight = BATCH["weight"] / BATCH["weight"].sum()
    targets = jax.nn.softmax(logits(own.model.space.full, params))  # a constant

    def loss(params):
        full = jax.nn.log_softmax(logits(own.model.space.full, params))
        total = -jnp.sum(weight * full[jnp.arange(6), BATCH["labels"]])
        for plan, times in ((own.smallest, 1), (own.pool[0], 2)):
            answers = jax.nn.log_softmax(logits(plan, params))
            cross = -jnp.sum(jax.lax.stop_gradient(targets) * answers, axis=-1)
            total += times * jnp.sum(weight * cross)
        return total / 4

    return jax.grad(loss)(params)


@pytest.mark.slow
def test_one_step_is_the_mean_of_four_gradients(started):
    own, state = started
    assert own.pool[0] != own.smallest != own.model.space.full
    new, metrics = jax.jit(own.update)(state, BATCH)
    moved = jax.tree.map(jnp.subtract, state.params, new.params)
    wanted = jax.jit(lambda p: by_hand(own, p))(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), moved, wanted)
    assert int(new.step) == 1
    assert set(metrics) == {"loss", "accuracy", "distillation"}
    # Cuts of no plan that took part stay as they were.
    used = {f"cut_{p}_{f}" for plan in (own.smallest, *own.pool) for p, f in plan.cuts}
    for name, cut in moved["encoder"].items():
        if name.startswith("cut_"):
            assert bool(jnp.any(cut["kernel"] != 0)) == (name in used)


@pytest.mark.slow
def test_first_steps_train_the_full_network_alone(started):
    _, state = started
    later = algorithm(pool=1, draws=2, full_steps=1)
    full = BPTT(*(later.model, later.objective, later.optimizer, later.task))
    state = state.replace(opt_state=full.init_state(state.key, BATCH["inputs"]).opt_state)
    update = jax.jit(later.update)
    first, metrics = update(state, BATCH)
    alone, _ = jax.jit(full.update)(state, BATCH)
    assert float(metrics["distillation"]) == 0
    chex.assert_trees_all_close(first.params, alone.params, rtol=1e-5, atol=1e-6)
    second, metrics = update(first, BATCH)
    usual, expected = jax.jit(algorithm(pool=1, draws=2).update)(first, BATCH)
    assert float(metrics["distillation"]) == pytest.approx(float(expected["distillation"]))
    chex.assert_trees_all_close(second.params, usual.params, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_devices_together_make_the_step_of_one(started):
    own, state = started
    halves = jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), BATCH)
    mapped = jax.vmap(own.update, in_axes=(None, 0, None), axis_name="d")
    both, _ = jax.jit(lambda s, b: mapped(s, b, "d"))(state, halves)
    one, _ = jax.jit(own.update)(state, BATCH)
    for first, alone in zip(jax.tree.leaves(both.params), jax.tree.leaves(one.params), strict=True):
        np.testing.assert_allclose(first[0], first[1], atol=1e-6)
        np.testing.assert_allclose(first[0], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_evaluation_shows_both_ends(started):
    own, state = started
    sums = jax.jit(own.evaluate)(state.params, {}, BATCH)
    for plan, name in ((own.model.space.full, "accuracy"), (own.smallest, "smallest_accuracy")):
        network = own.model.subnetwork(plan)
        found = network.apply({"params": state.params}, BATCH["inputs"], mask=BATCH["mask"])
        hits = BATCH["weight"] * (found.argmax(-1) == BATCH["labels"])
        assert float(sums[name]) == hits.sum()


def test_the_pool_is_spread_over_the_costs():
    own = algorithm(pool=4, draws=1)
    macs = [plan.macs(own.model.encoder.shape, 10) for plan in own.pool]
    assert macs == sorted(macs)
    assert len(set(own.pool)) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": 0}, "pool must be at least 1"),
        ({"full_steps": -1}, "full_steps not negative"),
        ({"full_steps": 5, "task": Task(num_classes=3, length=10, num_steps=5)}, "below the 5"),
        ({"temperature": 0.0}, "temperature must be positive"),
        (
            {"model": MODELS.build({"name": "encoder", "shape": SHAPE}, num_outputs=3)},
            "needs a supernet",
        ),
    ],
)
def test_impossible_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        algorithm(**fields)
