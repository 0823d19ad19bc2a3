"""Training of convolutional networks: running statistics, their average, bfloat16, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxeff import data, train
from jaxeff.models import MODELS
from jaxeff.train import objectives
from jaxeff.train.algorithms import BPTT
from jaxeff.train.evaluate import Evaluator
from jaxeff.train.loop import Training

SMALL = {"name": "resnet", "blocks": (1, 1), "widths": (8, 16)}


def algorithm(rate=0.1, average_decay=0.0, **spec):
    model = MODELS.build({**SMALL, **spec}, "model", num_outputs=10)
    objective = objectives.build({"name": "auto"}, "classification")
    return BPTT(model, objective, optax.sgd(rate, momentum=0.9), average_decay=average_decay)


@pytest.fixture(scope="module")
def batches():
    stream = data.make_train_iterator(data.load("digits").splits["train"], batch_size=32, seed=0)
    return [next(stream) for _ in range(60)]


def difference(one, two):
    gaps = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), one, two)
    return max(map(float, jax.tree.leaves(gaps)))


@pytest.mark.slow
def test_the_average_of_the_weights_has_the_average_of_the_statistics(batches):
    algo = algorithm(average_decay=0.75)
    state = jax.jit(algo.init_state)(jax.random.key(0), batches[0]["inputs"])
    expected = jax.tree.map(jnp.asarray, (state.params, state.model_state))
    update = jax.jit(algo.update)
    for batch in batches[:5]:
        state, _ = update(state, batch)
        new = state.params, state.model_state
        expected = jax.tree.map(lambda e, n: 0.75 * e + 0.25 * n, expected, new)
    found = algo.candidates(state)["average"], algo.statistics(state, "average")
    assert difference(found, expected) < 1e-5
    assert difference(found[1], state.model_state) > 1e-3
    assert algo.statistics(state, "live") is state.model_state


@pytest.mark.slow
@pytest.mark.parametrize(
    "design",
    [
        "plain",
        *(pytest.param(d, marks=pytest.mark.slow) for d in ("global", "interpolated", "shared")),
    ],
)
def test_learns_in_bfloat16_about_as_well_as_in_float32(batches, design):
    fields = {"global": {"stages": (0,)}, "shared": {"stages": (1,)}}.get(design, {})
    losses = {}
    for dtype in ("float32", "bfloat16"):
        algo = algorithm(dtype=dtype, design={"name": design, **fields})
        state = jax.jit(algo.init_state)(jax.random.key(0), batches[0]["inputs"])
        update = jax.jit(algo.update)
        seen = []
        for batch in batches:
            state, metrics = update(state, batch)
            seen.append(float(metrics["loss"]))
        losses[dtype] = np.mean(seen[-10:])
        assert {p.dtype for p in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        assert {p.dtype for p in jax.tree.leaves(state.model_state)} == {jnp.dtype("float32")}
        assert seen[0] > 2
    assert losses["float32"] < 1.0
    assert abs(losses["bfloat16"] - losses["float32"]) < 0.2


def config(**model):
    made = train.base_config()
    made.name = "images"
    made.data.name = "digits"
    made.model = {**SMALL, **model}
    made.optim.name = "sgd"
    made.optim.learning_rate = 0.1
    made.train.batch_size = 32
    made.optim.momentum = 0.9
    made.train.num_steps = 80
    made.train.log_every = made.train.eval_every = made.checkpoint.every = 40
    made.devices.cpu = 1
    return made


@pytest.mark.slow
def test_a_run_evaluates_with_the_running_statistics_of_its_best_weights(tmp_path):
    made = config(axis_name="data", design={"name": "interpolated"})
    made.algorithm.average_decay = 0.9
    report = train.run(made, tmp_path)
    # At least the first batch is waited for.
    assert 0 < report["training"]["waiting_for_data"] < 1
    assert report["metrics"]["test"]["accuracy"] > 0.5
    built = train.build(made)
    training = Training(built, tmp_path)
    try:
        chosen = training.selection().chosen
        again = Evaluator(built)(chosen["params"], chosen["model_state"], "test")
    finally:
        training.close()
    assert again == report["metrics"]["test"]


@pytest.mark.slow
def test_statistics_are_those_of_the_whole_batch_where_an_axis_is_named(batches):
    """Parts of a batch with synchronised statistics update as the whole batch does."""
    batch = batches[0]
    plain, named = algorithm(), algorithm(axis_name="data")
    state = jax.jit(plain.init_state)(jax.random.key(0), batch["inputs"])
    halves = jax.tree.map(lambda a: jnp.stack(jnp.split(jnp.asarray(a), 2)), batch)

    # vmap over an axis of that name is two devices as far as collectives can tell.
    def update(algo):
        mapped = jax.vmap(
            lambda part: algo.update(state, part, axis_name="data")[0], axis_name="data"
        )
        return jax.tree.map(lambda a: a[0], jax.jit(mapped)(halves))

    whole = jax.jit(plain.update)(state, batch)[0]
    together, apart = update(named), update(plain)
    assert difference(together.params, whole.params) < 1e-5
    assert difference(together.model_state, whole.model_state) < 1e-5
    assert difference(apart.params, whole.params) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("dt", "warned"), [
    pytest.param(0.2, False, marks=pytest.mark.slow), (50.0, True),
])  # fmt: skip
def test_a_run_says_that_its_time_steps_are_unstable(tmp_path, capsys, dt, warned):
    layer = {"stages": (0,), "num_steps": 2, "dt": dt, "diffusivity": (1.0, 1.0)}
    made = config(design={"name": "global", "coefficient_epsilon": 1e-5, **layer})
    made.optim.learning_rate = 1e-4
    made.train.num_steps = 2
    train.run(made, tmp_path)
    assert ("warning: the leapfrog scheme of stages_0_1/layer" in capsys.readouterr().out) == warned
