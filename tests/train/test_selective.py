"""Objectives of abstaining classifiers against their formulas, and the algorithms' states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxeff.errors import ConfigError
from jaxeff.selective import one_sided
from jaxeff.selective.confidence import class_logits
from jaxeff.train import ALGORITHMS, Task, objectives

CLASSES = 3
RNG = np.random.default_rng(0)
LABELS = np.array([0, 2, 1, 2, 0, 1], np.int32)
BATCH = {"labels": LABELS, "weight": np.ones(6, np.float32)}
SPECS = {
    "one_sided": {"mu": 0.7, "alpha": 0.9},
    "selective_net": {"coverage": 0.8},
    "deep_gamblers": {"payoff": 2.2},
    "self_adaptive": {"momentum": 0.8},
}
WIDTHS = {"one_sided": 6, "selective_net": 7, "deep_gamblers": 4, "self_adaptive": 4}


def objective(name, **fields):
    return objectives.build({"name": name, **{**SPECS[name], **fields}}, "classification")


def outputs(width, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (6, width)).astype(np.float32)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def value(name, z, batch=BATCH, **fields):
    made = objective(name, **fields)
    return jax.tree.map(np.asarray, jax.jit(made)(jnp.asarray(z), batch))


@pytest.mark.parametrize("name", SPECS)
def test_width_and_the_head_whose_accuracy_is_reported(name):
    made = objective(name)
    assert objectives.num_outputs(made, CLASSES) == WIDTHS[name]
    z = outputs(WIDTHS[name])
    z[:, CLASSES:] += 10  # no other output must count
    found = value(name, z)
    logits = class_logits(made, z)
    np.testing.assert_array_equal(logits, z[:, :CLASSES])
    np.testing.assert_array_equal(found["accuracy"], z[:, :CLASSES].argmax(1) == LABELS)
    assert set(found) <= {"loss", "accuracy", "coverage"}
    (confidence,) = made.confidences(z.astype(np.float64)).values()
    assert confidence.shape == (6,)
    assert ((confidence >= 0) & (confidence <= 1)).all()


def test_other_objectives_are_as_wide_as_the_classes():
    plain = objectives.build({"name": "auto"}, "classification")
    assert objectives.num_outputs(plain, CLASSES) == CLASSES
    assert class_logits(plain, outputs(CLASSES)).shape == (6, CLASSES)


def test_one_sided_is_the_closed_form_plus_auxiliary_cross_entropy():
    z = outputs(6)
    # In this batch every class has its even share.
    sides = one_sided.class_losses(jnp.asarray(z[:, :3]), LABELS)
    closed = float((sides.inside + 0.7 * sides.outside).sum())
    auxiliary = -log_softmax(z[:, 3:])[np.arange(6), LABELS].mean()
    assert value("one_sided", z)["loss"].mean() == pytest.approx(
        0.9 * closed + 0.1 * auxiliary, rel=1e-5
    )
    assert value("one_sided", z[:, :3], alpha=1.0)["loss"].mean() == pytest.approx(closed, rel=1e-5)
    lam = np.array([0.1, 0.5, 2.0], np.float32)
    found = value("one_sided", z[:, :3], {**BATCH, "multipliers": lam}, alpha=1.0)
    expected = float((sides.inside + lam * sides.outside).sum())
    assert found["loss"].mean() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(found["outside"].mean(0), sides.outside, rtol=1e-5)


def test_one_sided_divides_by_given_frequencies():
    z, shares = outputs(3), (0.5, 0.3, 0.2)
    found = value("one_sided", z, alpha=1.0, class_frequencies=shares)
    sides = one_sided.class_losses(jnp.asarray(z), LABELS, frequencies=jnp.asarray(shares))
    expected = float((sides.inside + 0.7 * sides.outside).sum())
    assert found["loss"].mean() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("risk", ["divided", "released"])
def test_selective_net_is_its_formula(risk):
    z, weight = outputs(7), np.array([1, 1, 1, 1, 0, 0], np.float32)
    found = value(
        "selective_net", z, {**BATCH, "weight": weight}, risk=risk, penalty=10.0, alpha=0.3
    )
    g = 1 / (1 + np.exp(-z[:, 3]))
    losses, other = (-log_softmax(part)[np.arange(6), LABELS] for part in (z[:, :3], z[:, 4:]))
    real = slice(0, 4)
    selective = np.mean((g * losses)[real]) / (g[real].mean() if risk == "divided" else 1)
    selective += 10 * max(0, 0.8 - g[real].mean()) ** 2
    assert g[real].mean() < 0.8
    expected = 0.3 * selective + 0.7 * other[real].mean()
    assert found["loss"][real].mean() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(found["coverage"], g >= 0.5)
    # No penalty above the target.
    z[:, 3] = 5
    one, two = (value("selective_net", z, penalty=p)["loss"] for p in (0.0, 10.0))
    np.testing.assert_array_equal(one, two)


def test_deep_gamblers_is_its_formula_and_pretrains_by_cross_entropy():
    z = outputs(4)
    p = np.exp(log_softmax(z))
    expected = -np.log(2.2 * p[np.arange(6), LABELS] + p[:, 3])
    np.testing.assert_allclose(value("deep_gamblers", z)["loss"], expected, rtol=1e-5)
    pretraining = {**BATCH, "pretraining": np.array(True)}
    plain = -log_softmax(z[:, :3])[np.arange(6), LABELS]
    found = value("deep_gamblers", z, pretraining)["loss"]
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    later = {**BATCH, "pretraining": np.array(False)}
    np.testing.assert_allclose(value("deep_gamblers", z, later)["loss"], expected, rtol=1e-5)


def test_self_adaptive_is_its_formula_and_targets_have_no_gradient():
    z, targets = outputs(4), np.linspace(0, 1, 6).astype(np.float32)
    own = np.exp(log_softmax(z[:, :3]))[np.arange(6), LABELS]
    t = 0.8 * targets + 0.2 * own
    logs = log_softmax(z)
    loss = -t * logs[np.arange(6), LABELS] - (1 - t) * logs[:, 3]
    batch = {**BATCH, "targets": targets}
    found = value("self_adaptive", z, batch)
    np.testing.assert_allclose(found["target"], t, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    made = objective("self_adaptive")
    slope = jax.jit(jax.grad(lambda z: made(z, batch)["loss"].sum()))(jnp.asarray(z))
    hot = np.zeros((6, 4))
    hot[np.arange(6), LABELS], hot[:, 3] = t, 1 - t
    np.testing.assert_allclose(slope, np.exp(logs) - hot, atol=1e-5)
    p = np.exp(log_softmax(z[:, :3]))
    entropy = -(p * np.log(p)).sum(1)
    found = value("self_adaptive", z, batch, entropy_weight=0.5)["loss"]
    np.testing.assert_allclose(found, loss + 0.5 * entropy, rtol=1e-5)
    # In evaluation the label is the target.
    expected = -logs[np.arange(6), LABELS]
    np.testing.assert_allclose(value("self_adaptive", z)["loss"], expected, rtol=1e-5)


class Linear(nn.Module):
    width: int

    @nn.compact
    def __call__(self, inputs, *, train=False):
        return nn.Dense(self.width)(inputs)


def algorithm(name, of, rate=0.1, **fields):
    task = Task(num_classes=CLASSES, num_examples=20)
    spec = {"name": name, **fields}
    made = objective(of) if isinstance(of, str) else of
    width = objectives.num_outputs(made, CLASSES)
    return ALGORITHMS.build(
        spec, "algorithm", model=Linear(width), objective=made, optimizer=optax.sgd(rate), task=task
    )


def batches(count, size=8, seed=1):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        labels = rng.integers(0, CLASSES, size).astype(np.int32)
        inputs = rng.normal(size=(size, 4)) + np.eye(CLASSES, 4)[labels] * 2
        yield {
            "inputs": inputs.astype(np.float32),
            "labels": labels,
            "weight": np.ones(size, np.float32),
            "index": rng.permutation(20)[:size].astype(np.int32),
        }


def run(algo, data):
    state = algo.init_state(jax.random.key(0), data[0]["inputs"])
    update, seen = jax.jit(algo.update), []
    for batch in data:
        before = state
        state, metrics = update(state, batch)
        seen.append((before, metrics))
    return state, seen


def test_targets_follow_the_network_from_the_labels():
    algo = algorithm("self_adaptive", "self_adaptive", pretrain_steps=2)
    data = list(batches(6))
    state, seen = run(algo, data)
    targets = np.ones(20)
    for step, ((before, metrics), batch) in enumerate(zip(seen, data, strict=True)):
        assert set(metrics) == {"loss", "accuracy"}
        z = np.asarray(algo.model.apply({"params": before.params}, batch["inputs"]))
        np.testing.assert_allclose(before.algo_state["targets"], targets, rtol=1e-5)
        p = np.exp(log_softmax(z[:, :CLASSES]))[np.arange(8), batch["labels"]]
        if step >= 2:
            targets[batch["index"]] = 0.8 * targets[batch["index"]] + 0.2 * p
        else:
            assert metrics["loss"] == pytest.approx(-np.log(p).mean(), rel=1e-4)
    np.testing.assert_allclose(state.algo_state["targets"], targets, rtol=1e-5)
    assert algo.needs_index
    assert (targets < 0.95).any()


def test_an_example_twice_in_a_batch_keeps_its_larger_target():
    algo = algorithm("self_adaptive", "self_adaptive")
    (batch,) = batches(1)
    batch["index"] = np.array([3, 3, 4, 5, 5, 6, 7, 8], np.int32)
    state, _ = run(algo, [batch])
    start = algo.init_state(jax.random.key(0), batch["inputs"])
    z = np.asarray(algo.model.apply({"params": start.params}, batch["inputs"]))
    p = np.exp(log_softmax(z[:, :CLASSES]))[np.arange(8), batch["labels"]]
    targets = 0.8 + 0.2 * p
    found = np.asarray(state.algo_state["targets"])[[3, 5]]
    np.testing.assert_allclose(found, [targets[:2].max(), targets[3:5].max()], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("self_adaptive", "self_adaptive"),
        ("one_sided_saddle", "one_sided"),
        ("pretrained", "deep_gamblers"),
    ],
)
def test_parts_on_two_devices_are_the_whole_batch(name, of):
    """vmap over a named axis is two devices as far as collectives can tell."""
    algo = algorithm(name, of)
    data = list(batches(3))
    state, seen = run(algo, data)
    halves = [jax.tree.map(lambda a: np.stack(np.split(a, 2)), batch) for batch in data]
    update = jax.jit(
        jax.vmap(lambda s, b: algo.update(s, b, "data"), in_axes=(None, 0), axis_name="data")
    )
    apart = seen[0][0]
    for half in halves:
        both, metrics = update(apart, half)
        for leaf in jax.tree.leaves((both.algo_state, both.params)):
            np.testing.assert_array_equal(leaf[0], leaf[1])  # replicated
        apart = jax.tree.map(lambda a: a[0], both)
    for one, two in zip(
        jax.tree.leaves((apart.params, apart.algo_state)),
        jax.tree.leaves((state.params, state.algo_state)),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert metrics["loss"][0] == pytest.approx(float(seen[-1][1]["loss"]), rel=1e-5)


@pytest.mark.slow
def test_multipliers_find_the_trade_off_and_slacks_the_losses():
    algo = algorithm("one_sided_saddle", "one_sided", rate=0.05)
    (batch,) = batches(1, size=60)
    start = algo.init_state(jax.random.key(0), batch["inputs"])
    np.testing.assert_allclose(start.algo_state["multipliers"], [0.2] * 3, rtol=1e-6)

    def step(_, state):
        return algo.update(state, batch)[0]

    state = jax.jit(lambda s: jax.lax.fori_loop(0, 20_000, step, s))(start)
    np.testing.assert_allclose(state.algo_state["multipliers"], 0.7, atol=5e-3)
    z = algo.model.apply({"params": state.params}, batch["inputs"])
    shares = jnp.full(3, 1 / 3)
    _, outside = one_sided.example_losses(z[:, :3], batch["labels"], 1.0, shares)
    np.testing.assert_allclose(state.algo_state["slacks"], outside.mean(0), atol=5e-3)
    # The gradient of the network knows the multipliers.
    algo_state = {**start.algo_state, "multipliers": jnp.full(3, 5.0)}
    moved = algo.update(start.replace(algo_state=algo_state), batch)[0].params
    usual = algo.update(start, batch)[0].params
    change = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), moved, usual)
    assert max(jax.tree.leaves(change)) > 1e-2


def test_pretraining_ends_when_it_should():
    algo = algorithm("pretrained", "deep_gamblers", rate=0.0, pretrain_steps=2)
    (batch,) = batches(1)
    _, seen = run(algo, [batch] * 4)
    losses = [float(metrics["loss"]) for _, metrics in seen]
    assert losses[0] == losses[1] != losses[2] == losses[3]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: objective("one_sided", mu=0.0), "mu must be positive"),
        (lambda: objective("one_sided", alpha=0.0), r"alpha must be in \(0, 1\]"),
        (
            lambda: objective("one_sided", class_frequencies=(0.5, 0.5)).num_outputs(3),
            "class_frequencies has 2 entries for 3 classes",
        ),
        (lambda: objective("one_sided").num_outputs(0), "needs data with at least two classes"),
        (lambda: objective("selective_net", coverage=1.5), r"coverage must be in \(0, 1\]"),
        (lambda: objective("selective_net", penalty=-1), "penalty must not be negative"),
        (lambda: objective("selective_net", alpha=2), r"alpha must be in \[0, 1\]"),
        (lambda: objective("selective_net", risk="devided"), "did you mean 'divided'"),
        (lambda: objective("deep_gamblers", payoff=1.0), "payoff must be above 1"),
        (lambda: objective("self_adaptive", momentum=1.0), r"momentum must be in \[0, 1\)"),
        (lambda: objective("self_adaptive", entropy_weight=-1), "entropy_weight must not be"),
        (
            lambda: objectives.build({"name": "self_adaptive"}, "classification", "bptt"),
            "needs config.algorithm.name='self_adaptive', not 'bptt'",
        ),
        (lambda: value("one_sided", np.zeros((6, 2, 6))), r"not outputs \(6, 2, 6\)"),
        (
            lambda: value("one_sided", outputs(6), {**BATCH, "mixed_labels": LABELS}),
            "takes one class per example, not mixed examples",
        ),
        (lambda: algorithm("pretrained", "one_sided", pretrain_steps=3), "has no pretraining"),
        (lambda: algorithm("pretrained", "one_sided", pretrain_steps=-3), "must not be negative"),
        (lambda: algorithm("one_sided_saddle", "deep_gamblers"), "name='one_sided'"),
        (
            lambda: algorithm("one_sided_saddle", "one_sided", multiplier_rate=0.0),
            "multiplier_rate must be positive",
        ),
        (lambda: algorithm("self_adaptive", "deep_gamblers"), "name='self_adaptive'"),
    ],
)
def test_what_cannot_work_is_one_sentence(call, sentence):
    with pytest.raises(ConfigError, match=sentence):
        call()
