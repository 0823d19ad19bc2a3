import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sweeps import swept

from jaxeff import train
from jaxeff.errors import ConfigError
from jaxeff.train import objectives, optim
from jaxeff.train.algorithms import BPTT
from jaxeff.train.evaluate import Evaluator
from jaxeff.train.loop import better
from jaxeff.train.objectives import weighted_means

LOGITS = np.array([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]], np.float32)
LABELS = np.array([0, 2], np.int32)


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def objective(name="auto", task="classification", **fields):
    return objectives.build({"name": name, **fields}, task)


def test_cross_entropy_and_accuracy_by_hand():
    values = objective()(jnp.asarray(LOGITS), {"labels": LABELS})
    by_hand = [
        -np.log(np.exp(2) / (np.exp(2) + 1 + np.exp(-1))),
        -np.log(1 / (np.exp(0.5) + np.exp(1.5) + 1)),
    ]
    np.testing.assert_allclose(values["loss"], by_hand, rtol=1e-6)
    np.testing.assert_array_equal(values["accuracy"], [1, 0])
    np.testing.assert_allclose(
        values["loss"], optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
    )


def test_label_smoothing_mixes_the_target_with_the_uniform_distribution():
    values = objective(label_smoothing=0.3)(jnp.asarray(LOGITS), {"labels": LABELS})
    logs = log_softmax(LOGITS)
    closed = -(0.7 * logs[[0, 1], LABELS] + 0.3 * logs.mean(-1))
    np.testing.assert_allclose(values["loss"], closed, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_impossible_label_smoothing_is_refused(smoothing):
    with pytest.raises(ConfigError, match=r"label_smoothing must be in \[0, 1\)"):
        objective(label_smoothing=smoothing)


def test_half_precision_logits_are_scored_in_single_precision():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    values = objective()(logits, {"labels": LABELS})
    assert values["loss"].dtype == jnp.float32


def test_tagging_averages_over_time():
    logits = np.stack([LOGITS, LOGITS[::-1]])  # two examples of two steps
    labels = np.array([[0, 1], [2, 2]], np.int32)
    values = objective(task="tagging")(jnp.asarray(logits), {"labels": labels})
    logs = log_softmax(logits)
    by_hand = [
        -(logs[0, 0, 0] + logs[0, 1, 1]) / 2,
        -(logs[1, 0, 2] + logs[1, 1, 2]) / 2,
    ]
    np.testing.assert_allclose(values["loss"], by_hand, rtol=1e-6)
    np.testing.assert_array_equal(values["accuracy"], [1.0, 0.0])


def test_squared_error_is_averaged_over_outputs():
    outputs = jnp.array([[1.0, 3.0], [0.0, -1.0]])
    labels = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    values = objective(task="regression")(outputs, {"labels": labels})
    assert set(values) == {"loss"}
    np.testing.assert_allclose(values["loss"], [(1 + 4) / 2, 4 / 2])


def test_objective_of_another_name_is_found_by_the_closest_one():
    with pytest.raises(ConfigError, match="did you mean 'cross_entropy'"):
        objective("cross_entrop")


def test_weighted_means_leave_out_examples_of_weight_zero():
    values = {"loss": jnp.array([1.0, 2.0, 1e30]), "accuracy": jnp.array([0.0, 1.0, 1.0])}
    means = weighted_means(values, jnp.array([1.0, 3.0, 0.0]))
    np.testing.assert_allclose(means["loss"], (1 + 3 * 2) / 4)
    np.testing.assert_allclose(means["accuracy"], 3 / 4)


def test_weighted_means_over_an_axis_are_those_of_the_whole():
    values, weight = np.arange(6.0, dtype=np.float32), np.array([1, 0, 2, 0, 0, 1], np.float32)
    means = jax.vmap(lambda v, w: weighted_means({"loss": v}, w, "data"), axis_name="data")(
        values.reshape(2, 3), weight.reshape(2, 3)
    )
    np.testing.assert_allclose(means["loss"], [np.average(values, weights=weight)] * 2)


def rates(name, steps, num_steps=100, **fields):
    schedule = jax.jit(optim.schedule(name, 0.5, num_steps, **fields))
    return np.array([float(schedule(step)) for step in steps])


def test_constant_schedule_with_warmup():
    np.testing.assert_allclose(
        rates("constant", [0, 5, 10, 50, 100], warmup_steps=10), [0, 0.25, 0.5, 0.5, 0.5]
    )
    np.testing.assert_allclose(rates("constant", [0, 99]), [0.5, 0.5])


@pytest.mark.parametrize("warmup", [0, 20])
def test_cosine_schedule_reaches_zero_at_the_last_step(warmup):
    steps = np.arange(warmup, 101)
    closed = 0.25 * (1 + np.cos(np.pi * (steps - warmup) / (100 - warmup)))
    np.testing.assert_allclose(rates("cosine", steps, warmup_steps=warmup), closed, atol=1e-6)


def test_cosine_schedule_starts_again():
    found = rates("cosine", np.arange(10, 111), num_steps=110, warmup_steps=10, periods=4)
    one = rates("cosine", np.arange(26), num_steps=25)
    np.testing.assert_allclose(found, [*np.tile(one[:25], 4), 0.0], atol=1e-6)
    # Where the periods are no whole number of steps, they are of one length all the same.
    fall = 0.25 * (1 + np.cos(np.pi * np.array([0, 0.8, 0.6, 0.4, 0.2, 1.0])))
    np.testing.assert_allclose(
        rates("cosine", [0, 2, 4, 6, 8, 10], num_steps=10, periods=4), fall, atol=1e-6
    )


def test_step_schedule_drops_at_fractions_of_what_follows_the_warmup():
    fields = {"warmup_steps": 20, "boundaries": (0.5, 0.75), "decay_factor": 0.2}
    found = rates("step", [10, 20, 59, 61, 79, 81, 100], **fields)
    np.testing.assert_allclose(found, [0.25, 0.5, 0.5, 0.1, 0.1, 0.02, 0.02], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "cosin"}, "must be one of constant, cosine, step, not 'cosin'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, not 0.0"),
        ({"warmup_steps": 100}, r"warmup_steps must be in \[0, 100\)"),
        ({"periods": 0}, r"periods must be in \[1, 100\]"),
        ({"periods": 2, "name": "step"}, "periods=2 has no effect on the schedule 'step'"),
        ({"warmup_steps": -1}, r"warmup_steps must be in \[0, 100\)"),
    ],
)
def test_impossible_schedule_is_refused(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        optim.schedule(**{"name": "cosine", "learning_rate": 0.1, "num_steps": 100, **fields})


def first_update(params, grads, **fields):
    optimizer = optim.build(**{"num_steps": 10, "learning_rate": 0.1, **fields})
    first = jax.jit(
        lambda grads, params: optimizer.update(grads, optimizer.init(params), params)[0]
    )
    return first(grads, params)


@pytest.mark.parametrize(("norm", "factor"), [(1.0, 1 / 5), (10.0, 1.0), (0.0, 1.0)])
def test_clipping_bounds_the_global_norm(norm, factor):
    grads = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    updates = first_update(grads, grads, name="sgd", clip_norm=norm)
    np.testing.assert_allclose(updates["a"], [-0.1 * 3 * factor], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [[-0.1 * 4 * factor]], rtol=1e-6)


def test_negative_clipping_is_refused():
    with pytest.raises(ConfigError, match="clip_norm must not be negative"):
        optim.build("sgd", num_steps=10, learning_rate=0.1, clip_norm=-1.0)


def test_adamw_decays_kernels_only():
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0), "scale": jnp.array(2.0)}
    grads = jax.tree.map(jnp.zeros_like, params)
    updates = first_update(params, grads, name="adamw", weight_decay=0.5)
    np.testing.assert_allclose(updates["kernel"], np.full((2, 2), -0.1 * 0.5 * 2), rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)
    np.testing.assert_array_equal(updates["scale"], 0)


@pytest.mark.parametrize("name", ["adam", "adamax", "adamw", "rmsprop", "sgd"])
def test_every_optimizer_goes_downhill_by_its_learning_rate(name):
    params = {"x": jnp.array([1.0, -1.0])}
    small, large = (
        first_update(params, params, name=name, learning_rate=rate)["x"] for rate in (0.01, 0.02)
    )
    assert (np.sign(small) == [-1, 1]).all()
    np.testing.assert_allclose(large, 2 * small, rtol=1e-5)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, inputs, *, train=False):
        return nn.Dense(2, name="dense")(inputs)


@pytest.fixture
def linear():
    rng = np.random.default_rng(0)
    algorithm = BPTT(
        Linear(),
        objective(task="regression"),
        optim.build("sgd", num_steps=10, learning_rate=0.1),
    )
    batch = {
        "inputs": rng.normal(size=(5, 3)).astype(np.float32),
        "labels": rng.normal(size=(5, 2)).astype(np.float32),
        "weight": np.array([1, 2, 0, 1, 0.5], np.float32),
    }
    return algorithm, jax.jit(algorithm.init_state)(jax.random.key(0), batch["inputs"]), batch


def test_bptt_step_of_a_linear_model_by_hand(linear):
    algorithm, state, batch = linear
    new, metrics = jax.jit(algorithm.update)(state, batch)
    kernel, bias = (np.asarray(state.params["dense"][k], np.float64) for k in ("kernel", "bias"))
    x, w = batch["inputs"].astype(np.float64), batch["weight"].astype(np.float64)
    errors = x @ kernel + bias - batch["labels"]
    slope = w[:, None] * errors / w.sum()  # of the mean of squares over two outputs
    np.testing.assert_allclose(metrics["loss"], (w @ (errors**2).mean(1)) / w.sum(), rtol=1e-5)
    np.testing.assert_allclose(
        new.params["dense"]["kernel"], kernel - 0.1 * x.T @ slope, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        new.params["dense"]["bias"], bias - 0.1 * slope.sum(0), rtol=1e-4, atol=1e-6
    )
    assert int(new.step) == 1


def test_evaluation_sums_are_weighted_and_change_nothing(linear):
    algorithm, state, batch = linear
    sums = jax.jit(algorithm.evaluate)(state.params, state.model_state, batch)
    outputs = jax.jit(algorithm.model.apply)({"params": state.params}, batch["inputs"])
    losses = np.square(np.asarray(outputs) - batch["labels"]).mean(1)
    np.testing.assert_allclose(sums["loss"], losses @ batch["weight"], rtol=1e-5)
    np.testing.assert_allclose(sums["weight"], batch["weight"].sum())


# 150 and 297 examples: no multiples of 64.
@pytest.mark.parametrize("split", swept(["validation", "test"], "test"))
def test_evaluator_averages_over_exactly_the_examples_of_a_split(tiny_config, split):
    tiny_config.eval.batch_size = 64
    experiment = train.build(tiny_config)
    state = experiment.init_state()
    found = Evaluator(experiment)(state.params, state.model_state, split)
    examples = experiment.dataset.splits[split]
    assert len(examples) % 64
    whole = examples.take(np.arange(len(examples)))
    params = jax.device_get(state.params)
    logits = jax.jit(experiment.model.apply)({"params": params}, whole["inputs"])
    logits = np.asarray(logits, np.float64)
    hits = logits.argmax(-1) == whole["labels"]
    losses = -log_softmax(logits)[np.arange(len(hits)), whole["labels"]]
    assert set(found) == {"loss", "accuracy"}
    np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], hits.mean(), rtol=1e-7)


def test_evaluator_has_nothing_to_say_about_an_empty_split(tiny_config):
    tiny_config.data.validation_fraction = 0.0
    experiment = train.build(tiny_config)
    state = experiment.init_state()
    assert Evaluator(experiment)(state.params, state.model_state, "validation") == {}


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ({"accuracy": 0.5, "loss": 9.0}, {}, True),
        ({"accuracy": 0.6, "loss": 2.0}, {"accuracy": 0.5, "loss": 1.0}, True),
        ({"accuracy": 0.4, "loss": 0.1}, {"accuracy": 0.5, "loss": 1.0}, False),
        ({"accuracy": 0.5, "loss": 0.9}, {"accuracy": 0.5, "loss": 1.0}, True),
        ({"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.5, "loss": 1.0}, False),
        ({"loss": 0.9}, {"loss": 1.0}, True),
        ({"loss": 1.1}, {"loss": 1.0}, False),
    ],
)
def test_better_goes_by_accuracy_then_by_loss(new, old, expected):
    assert better(new, old) is expected


def test_untrained_validation_selects_the_last_parameters(tiny_config, tmp_path):
    from jaxeff.train.loop import Training

    tiny_config.data.validation_fraction = 0.0
    tiny_config.train.update({"num_steps": 4, "eval_every": 2})
    training = Training(train.build(tiny_config), tmp_path)
    assert training.run()
    selection = training.selection()
    chosen, step = selection.chosen, selection.step
    training.close()
    assert step == 4
    for a, b in zip(
        jax.tree.leaves(chosen["params"]), jax.tree.leaves(training.state.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_mixed_examples_have_both_labels_in_the_loss_and_the_first_in_the_accuracy():
    other, share = np.array([1, 0], np.int32), np.array([0.25, 0.5], np.float32)
    batch = {"labels": LABELS, "mixed_labels": other, "mixed_share": share}
    values = objective()(jnp.asarray(LOGITS), batch)
    logs = log_softmax(LOGITS)
    closed = -((1 - share) * logs[[0, 1], LABELS] + share * logs[[0, 1], other])
    np.testing.assert_allclose(values["loss"], closed, rtol=1e-6)
    np.testing.assert_array_equal(values["accuracy"], [1, 0])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_is_of_kernels_or_of_everything(name):
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved = {}
    for decayed in ("kernels", "all"):
        made = optim.build(name, num_steps=10, learning_rate=0.1, weight_decay=0.5, decayed=decayed)
        updates, _ = made.update(zeros, made.init(params), params)
        moved[decayed] = {key: float(u.ravel()[0]) for key, u in updates.items()}
    assert moved["kernels"] == {"kernel": pytest.approx(-0.05), "scale": 0.0}
    assert moved["all"] == {"kernel": pytest.approx(-0.05), "scale": pytest.approx(-0.05)}
    with pytest.raises(ConfigError, match="decayed must be one of kernels, all"):
        optim.build(name, num_steps=10, learning_rate=0.1, decayed="none")


@pytest.mark.parametrize("steps", [10, 1000])
def test_drops_at_one_step_of_a_short_run_all_count(steps):
    rate = optim.schedule("step", 1.0, steps, boundaries=(0.5, 0.51, 0.52), decay_factor=0.1)
    assert float(rate(steps // 2 - 1)) == pytest.approx(1)
    assert float(rate(steps - 1)) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boundaries": (0.5, 1.5)}, r"config\.optim\.boundaries must be in \[0, 1\], not 1\.5"),
        ({"decay_factor": 0.0}, r"config\.optim\.decay_factor must be positive, not 0"),
        ({"learning_rate": float("nan")}, r"config\.optim\.learning_rate must be positive"),
        ({"clip_norm": float("nan")}, r"config\.optim\.clip_norm must not be negative, not nan"),
        ({"b1": 1.0}, r"config\.optim\.b1 must be a number in \[0, 1\), not 1"),
        ({"b2": "high"}, r"config\.optim\.b2 must be a number in \[0, 1\), not 'high'"),
        ({"b2": -0.1}, r"config\.optim\.b2 must be a number in \[0, 1\), not -0\.1"),
    ],
)
def test_impossible_numbers_of_optimisers_are_refused(fields, message):
    given = {"name": "adam", "learning_rate": 0.1, "schedule_name": "step", **fields}
    with pytest.raises(ConfigError, match=message):
        optim.build(num_steps=10, **given)


@pytest.mark.parametrize(
    ("name", "task", "better"),
    [
        ("elbo", "classification", "cross_entropy"),
        ("cross_entropy", "regression", "mean_squared_error"),
        ("mean_squared_error", "tagging", "cross_entropy"),
    ],
)
def test_objectives_of_other_tasks_are_refused(name, task, better):
    with pytest.raises(ConfigError, match=rf"name='{name}' is for .* choose '{better}'"):
        objectives.build({"name": name}, task)
