"""Modules of Flax that do not know training from evaluation, as students, teachers and models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxeff.distill import kd
from jaxeff.errors import ConfigError
from jaxeff.models import MODELS
from jaxeff.models.trained import Trained
from jaxeff.train import experiment, objectives
from jaxeff.train.algorithms import BPTT, BPTTWithoutFold, Constrained, Distillation, Task

KEY = jax.random.key(0)
TASK = Task("classification", 3, steps_per_epoch=2)
BATCH = {
    "inputs": jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32),
    "labels": jnp.asarray([0, 1, 2, 0, 1, 2]),
    "weight": jnp.ones(6),
}
OBJECTIVE = objectives.build({"name": "auto"}, "classification")


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


class Other(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


def test_a_plain_module_is_trained():
    algorithm = BPTT(Plain(), OBJECTIVE, optax.sgd(0.1), TASK)
    state = jax.jit(algorithm.init_state)(jax.random.key(0), BATCH["inputs"])

    def loss(params):
        logits = Plain().apply({"params": params}, BATCH["inputs"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["labels"]).mean()

    new, metrics = jax.jit(algorithm.update)(state, BATCH)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, jax.grad(loss)(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new.params, expected)
    np.testing.assert_allclose(metrics["loss"], loss(state.params), rtol=1e-6)
    algorithm.evaluate(new.params, {}, BATCH)


@pytest.mark.slow
def test_a_plain_module_teaches_by_its_answers_alone():
    variables = Plain().init(jax.random.key(3), BATCH["inputs"])
    options = {"label_weight": 0.0, "trained": {"teacher": Trained(Plain(), variables)}}
    shared = Plain(), OBJECTIVE, optax.sgd(1.0), TASK
    algorithm = Distillation(*shared, losses={"kd": {"temperature": 2.0}}, **options)
    state = jax.jit(algorithm.init_state)(jax.random.key(0), BATCH["inputs"])
    own, goal = (Plain().apply(v, BATCH["inputs"]) for v in ({"params": state.params}, variables))
    metrics = jax.jit(algorithm.update)(state, BATCH)[1]
    np.testing.assert_allclose(metrics["kd"], kd(own, goal, 2.0).mean(), rtol=1e-5)
    reading = Distillation(*shared, losses={"fitnet": {}}, **options)
    with pytest.raises(ConfigError, match=r"needs the features 'penultimate'.* has only: logits"):
        reading.init_state(jax.random.key(0), BATCH["inputs"])


def test_modules_of_nnx_are_told_how_they_fit():
    sentence = r"flax\.nnx\.bridge\.ToLinen\(Other"
    bare = BPTT(Other(nnx.Rngs(0)), OBJECTIVE, optax.sgd(0.1), TASK)
    with pytest.raises(ConfigError, match=f"the model must be .* {sentence}"):
        bare.init_state(jax.random.key(0), BATCH["inputs"])
    with pytest.raises(ConfigError, match=f"the teacher must be .* {sentence}"):
        Distillation(
            Plain(), OBJECTIVE, optax.sgd(0.1), TASK, trained={"teacher": Trained(Other, {})}
        )
    wrapped = BPTT(nnx.bridge.ToLinen(Other), OBJECTIVE, optax.sgd(0.1), TASK)
    state = wrapped.init_state(jax.random.key(0), BATCH["inputs"])
    assert np.isfinite(wrapped.update(state, BATCH)[1]["loss"])


class Mistaken(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(3)(x.reshape(len(x), -1)) + "a"


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            lambda **_: Mistaken(),
            r"^config\.model does not fit .* TypeError: .*test_plain_modules\.py, line \d+\)",
        ),
        (lambda **_: Other(nnx.Rngs(0)), r"^config\.model must be .*ToLinen\(Other"),
    ],
)
def test_a_mistake_in_a_users_model_is_shown(made, sentence, monkeypatch, tiny_config):
    monkeypatch.setitem(MODELS._factories, "own", made)
    tiny_config.model = {"name": "own"}
    with pytest.raises(ConfigError, match=sentence) as caught:
        experiment.build(tiny_config)
    if "does not fit" in sentence:
        assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize(
    "make",
    [
        lambda *shared: BPTTWithoutFold(
            model=shared[0], objective=shared[1], optimizer=shared[2], task=shared[3], folds=3
        ),
        lambda *shared: Constrained(*shared, constraints=[{"name": "entropy", "start": 0.3}]),
        lambda *shared: Distillation(
            *shared,
            losses={"kd": {}},
            trained={"teacher": Trained(Plain(), Plain().init(KEY, BATCH["inputs"]))},
        ),
    ],
    ids=["fold", "constrained", "distill"],
)
def test_a_batch_of_which_no_example_counts_changes_nothing(make):
    """As a small one of held-out examples alone, whose weights are 0."""
    algorithm = make(Plain(), OBJECTIVE, optax.sgd(1.0), TASK)
    state = jax.jit(algorithm.init_state)(KEY, BATCH["inputs"])
    weight = jnp.ones(6) if isinstance(algorithm, BPTTWithoutFold) else jnp.zeros(6)
    batch = {**BATCH, "index": 3 * jnp.arange(6), "weight": weight}
    new, metrics = jax.jit(algorithm.update)(state, batch)
    jax.tree.map(np.testing.assert_array_equal, new.params, state.params)
    assert all(np.isfinite(value).all() for value in jax.tree.leaves((new.algo_state, metrics)))
    assert metrics["loss"] == 0
