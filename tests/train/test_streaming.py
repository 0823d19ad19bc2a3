"""Text that is read on from batch to batch: the state is carried, reset and judged as a whole."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sweeps import swept

from jaxeff import data, ode, train
from jaxeff.models import SequenceModel
from jaxeff.train.algorithms import BPTT, FPTT, Task
from jaxeff.train.evaluate import Evaluator
from jaxeff.train.loop import Training

SYMBOLS, ROWS, WINDOW = 5, 3, 6
CELLS = {
    "lstm": ode.LSTM(4),
    "tarnn": ode.TARNN(4, activation="tanh", step_size=0.3),  # remembers the previous input
}


def cross_entropy(outputs, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
    return {"loss": losses.mean(1)}


def network(cell):
    return SequenceModel(CELLS[cell], SYMBOLS, readout="every_step", embedding=3, dtype=jnp.float64)


def stream_of(length, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, SYMBOLS, (ROWS, length + 1)).astype(np.int32)
    return {
        "inputs": codes[:, :-1],
        "labels": codes[:, 1:],
        "weight": np.ones(ROWS),
        "start": np.zeros(ROWS),
    }


def window(stream, number, size=WINDOW):
    cut = slice(number * size, (number + 1) * size)
    return {**stream, **{name: np.asarray(stream[name])[:, cut] for name in ("inputs", "labels")}}


def started(algorithm, batch):
    """A state with drawn parameters and a carry that is not the initial one."""
    shapes = jax.eval_shape(algorithm.init_state, jax.random.key(0), batch["inputs"])
    rng = np.random.default_rng(7)

    def draw(a):
        return rng.normal(0.0, 0.5, a.shape).astype(a.dtype)

    params = jax.tree.map(lambda p: draw(p).astype(float), shapes.params)
    carry = jax.tree.map(draw, jax.eval_shape(algorithm.model.initial_carry, batch["inputs"]))
    return train.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=algorithm.init_optimizer(params),
        algo_state=algorithm.init(params),
        model_state={},
        key=jax.random.key(1),
        carry=carry,
    )


def task(length):
    return Task("tagging", SYMBOLS, length, 1000)


def still(cls, cell, length, **fields):
    """An algorithm that goes through the motions without moving the weights."""
    return cls(network(cell), cross_entropy, optax.sgd(0.0), task(length), **fields)


# That plain training carries its state is seen in the whole run below.
@pytest.mark.parametrize(
    ("cell", "name"),
    swept([(cell, name) for cell in CELLS for name in ("bptt", "fptt")], ("tarnn", "fptt")),
)
def test_two_windows_leave_the_state_of_one_of_twice_the_length(x64, cell, name):
    stream = stream_of(2 * WINDOW)
    windows = [window(stream, number) for number in range(2)]
    cls, options = {"bptt": (BPTT, {}), "fptt": (FPTT, {"parts": 4, "alpha": 0.0})}[name]
    short, long = (still(cls, cell, n, **options) for n in (WINDOW, 2 * WINDOW))
    state = started(long, stream)
    whole, metrics = jax.jit(long.update)(state, stream)
    step, halves, after = jax.jit(short.update), [], state
    for each in windows:
        after, found = step(after, each)
        halves.append(found["loss"])
    chex.assert_trees_all_close(after.carry, whole.carry, atol=1e-12, rtol=0)
    np.testing.assert_allclose(np.mean(halves), metrics["loss"], rtol=1e-12)
    changed = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), whole.carry, state.carry
    )
    assert min(jax.tree.leaves(changed)) > 1e-3


@pytest.mark.parametrize("cell", swept(CELLS, "tarnn"))
def test_rows_that_start_begin_with_the_initial_state(x64, cell):
    stream = stream_of(WINDOW)
    for cls, options in ((BPTT, {}), (FPTT, {"parts": 2, "alpha": 0.0})):
        algorithm = still(cls, cell, WINDOW, **options)
        state, step = started(algorithm, stream), jax.jit(algorithm.update)
        fresh = state.replace(carry=jax.jit(algorithm.model.initial_carry)(stream["inputs"]))
        anew, _ = step(fresh, stream)
        on, _ = step(state, stream)
        mixed, _ = step(state, {**stream, "start": np.array([0.0, 1.0, 0.0])})
        for new, kept, both in zip(
            *(jax.tree.leaves(tree.carry) for tree in (anew, on, mixed)), strict=True
        ):
            both, new, kept = map(np.asarray, (both, new, kept))
            np.testing.assert_allclose(both[1], new[1], atol=1e-14)
            np.testing.assert_allclose(both[::2], kept[::2], atol=1e-14)
        every, _ = step(state, {**stream, "start": np.ones(ROWS)})
        chex.assert_trees_all_close(every.carry, anew.carry, atol=1e-14, rtol=0)
        one, other = (np.asarray(state.carry[0][0]) for state in (anew, on))
        assert np.abs(one - other).max() > 1e-3


def test_no_gradient_goes_through_the_carried_state(x64):
    """Two updates by hand, the second from the state that the first weights left."""
    algorithm = BPTT(network("lstm"), cross_entropy, optax.sgd(0.5), task(WINDOW))
    stream = stream_of(2 * WINDOW)
    state = started(algorithm, stream)
    model = algorithm.model.clone(backward="autodiff")

    @jax.jit
    def by_hand(params, carry, batch):
        def loss(params):
            outputs, after = model.apply(
                {"params": params}, batch["inputs"], carry=carry, return_carry=True
            )
            return cross_entropy(outputs, batch)["loss"].mean(), after

        grads, after = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda w, g: w - 0.5 * g, params, grads), after

    params, carry = state.params, state.carry
    step = jax.jit(algorithm.update)
    for number in range(2):
        params, carry = by_hand(params, carry, window(stream, number))
        state, _ = step(state, window(stream, number))
    chex.assert_trees_all_close(state.params, params, atol=1e-12, rtol=0)
    chex.assert_trees_all_close(state.carry, carry, atol=1e-12, rtol=0)


@pytest.fixture
def text_config(tmp_path):
    """Runs on 2000 random characters; windows of eight, nineteen steps an epoch."""
    path = tmp_path / "text.txt"
    path.write_text("".join(np.random.default_rng(0).choice(list("abcde \n"), 2000)), "utf-8")
    config = train.base_config()
    config.name = "text"
    config.data.update({"name": "text", "file": str(path), "window": 8})
    config.model = {
        "name": "sequence",
        "cell": {"name": "tarnn", "features": 6, "activation": "tanh", "step_size": 0.3},
        "readout": "every_step",
        "embedding": 4,
    }
    config.algorithm = {"name": "fptt", "parts": 2, "alpha": 0.1, "reset": "epoch_weights"}
    config.train.update({"batch_size": 10, "num_steps": 25, "log_every": 10, "eval_every": 25})
    config.eval.batch_size = 4
    config.checkpoint.every = 100
    return config


@pytest.mark.parametrize("split", swept(["validation", "test"], "test"))
def test_evaluation_is_one_pass_over_each_stream(text_config, jitter, split):
    experiment = train.build(text_config)
    params = jitter(experiment.init_state().params, scale=0.5)
    found = Evaluator(experiment)(params, {}, split)
    # 24 windows in four streams of six; the last one is full here.
    part = experiment.dataset.splits[split]
    assert len(part) == 24
    windows = part.take(np.arange(24))
    streams = {name: windows[name].reshape(4, 48) for name in ("inputs", "labels")}
    logits = jax.jit(lambda x: experiment.model.apply({"params": params}, x))(streams["inputs"])
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    losses = -np.take_along_axis(logs, streams["labels"][..., None], -1)
    np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-6)
    hits = np.asarray(logits).argmax(-1) == streams["labels"]
    np.testing.assert_allclose(found["accuracy"], hits.mean(), rtol=1e-6)
    # Windows on their own would be another number.
    own = jax.jit(lambda x: experiment.model.apply({"params": params}, x))(windows["inputs"])
    own = -np.take_along_axis(
        np.asarray(jax.nn.log_softmax(own)), windows["labels"][..., None], -1
    ).mean()
    assert abs(own - losses.mean()) > 1e-4


@pytest.mark.slow
def test_evaluation_leaves_out_what_fills_the_last_streams(text_config, jitter):
    text_config.eval.batch_size = 7  # 24 windows: streams of four, of which the last is missing
    experiment = train.build(text_config)
    params = jitter(experiment.init_state().params, scale=0.5)
    found = Evaluator(experiment)(params, {}, "validation")
    windows = experiment.dataset.splits["validation"].take(np.arange(24))
    streams = {name: windows[name].reshape(6, 32) for name in ("inputs", "labels")}
    logits = jax.jit(lambda x: experiment.model.apply({"params": params}, x))(streams["inputs"])
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    losses = -np.take_along_axis(logs, streams["labels"][..., None], -1)
    np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-6)


def test_training_carries_its_state_and_starts_anew_with_an_epoch(text_config):
    """Read along with the parameters that every step was made with."""
    text_config.train.num_steps = 22
    text_config.algorithm = {"name": "bptt"}
    experiment = train.build(text_config)
    algorithm, update = experiment.algorithm, experiment.algorithm.update
    seen = []

    def spied(state, batch, axis_name=None):
        new, metrics = update(state, batch, axis_name)
        return new, {**metrics, "before": state.params, "after": new.carry}

    step = experiment.devices.map(spied)
    state = experiment.init_state()
    batches = data.make_train_iterator(
        experiment.dataset.splits["train"], batch_size=10, seed=0, prefetch=0
    )
    read = jax.jit(
        lambda params, x, carry: experiment.model.apply(
            {"params": params}, x, carry=carry, return_carry=True
        )[1]
    )
    carry = algorithm.model.initial_carry(np.zeros((10, 8), np.int32))
    initial = carry
    for number in range(22):
        batch = next(batches)
        if batch["start"].all():
            seen.append(number)
            carry = initial
        state, metrics = step(state, experiment.devices.shard(batch))
        carry = read(metrics["before"], batch["inputs"], carry)
        chex.assert_trees_all_close(metrics["after"], carry, atol=1e-5)
        chex.assert_trees_all_equal(state.carry, metrics["after"])
    assert seen == [0, 19]


@pytest.mark.slow
def test_a_run_on_text_learns_and_keeps_its_state(text_config, tmp_path):
    experiment = train.build(text_config)
    training = Training(experiment, tmp_path / "run")
    try:
        assert training.by == "loss"
        assert jax.tree.leaves(training.state.carry)[0].shape[0] == 10
        assert training.run()
        assert training.values["best_metrics"]["loss"] < np.log(8) + 0.2
        assert training.values["weights"] in ("running", "live")
        assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves(training.state.carry)) > 0
    finally:
        training.close()


def test_losses_of_masked_steps_count_nothing(x64):
    """The registered objective, on sequences of different lengths."""
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(2, 4, SYMBOLS)), rng.integers(0, SYMBOLS, (2, 4))
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], np.float32)
    objective = train.OBJECTIVES.build({"name": "cross_entropy"})
    judge = jax.jit(lambda logits: objective(logits, {"labels": labels, "mask": mask}))
    values = judge(logits)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(logs, labels[..., None], -1)[..., 0]
    expected = [losses[0, :3].mean(), losses[1, 0]]
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-6)
    hits = logits.argmax(-1) == labels
    np.testing.assert_allclose(values["accuracy"], [hits[0, :3].mean(), hits[1, 0]], rtol=1e-6)
    changed = logits + 100 * (1 - mask[..., None]) * rng.normal(size=logits.shape)
    chex.assert_trees_all_equal(judge(changed), values)
